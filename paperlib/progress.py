"""Progress for whoever is watching: a live bar on a terminal or in an open notebook, plain lines in a log."""

import sys

from tqdm import tqdm


def live() -> bool:
    """Whether somebody can see a line redraw itself: a terminal, or a kernel with a front end that takes input."""
    if "IPython" in sys.modules:
        shell = sys.modules["IPython"].get_ipython()
        kernel = getattr(shell, "kernel", None)
        if kernel is not None:  # headless clients (papermill, nbconvert) do not allow input
            return bool(getattr(kernel, "_allow_stdin", False))
    return sys.stdout.isatty()


def bar(total: int, description: str, unit: str) -> tqdm:
    """A tqdm bar on standard output, silent where nobody is watching."""
    return tqdm(total=total, desc=description, unit=unit, file=sys.stdout, disable=not live(), leave=False)
