"""Styles of venues, and saving a figure with its data and settings."""

import json
import sys
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from paperlib.runs.files import write_atomically, write_text
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

# Width in inches of the text, and of a column in two-column venues.
WIDTHS = {
    "neurips": 5.5, "iclr": 5.5, "icml": 6.75, "icml-column": 3.25, "cvpr": 6.875, "cvpr-column": 3.25, "aaai": 6.975,
    "aaai-column": 3.3, "wide": 10.0,
}  # fmt: skip
# Okabe & Ito's colours, which colour-blind readers can distinguish.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^vPXh"


def style(venue: str) -> dict[str, Any]:
    """Return Matplotlib settings for a venue: its text width, TrueType fonts, and a layout that keeps that width.

    Use them after the style "default", so that a user's matplotlibrc has no effect.
    """
    return {
        "figure.figsize": (WIDTHS[venue], WIDTHS[venue] * 0.42), "figure.constrained_layout.use": True,
        "figure.dpi": 150, "savefig.dpi": 300, "savefig.bbox": "standard",  # "tight" would change the width
        "font.family": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix", "font.size": 9,
        "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "paperlib",
        "svg.fonttype": "none",  # text stays text, which can be searched and edited
    }  # fmt: skip


def new(
    run: Run[Settings], rows: int = 1, columns: int = 1, height: float | None = None, **more: Any
) -> tuple[Figure, Any]:
    """Return an empty figure in the run's venue style, `height` inches tall, and its axes as `plt.subplots` does."""
    plt.style.use(["default", style(run.settings.venue)])  # no context manager: notebooks draw after the cell
    width = WIDTHS[run.settings.venue]
    return plt.subplots(rows, columns, figsize=(width, height or max(1.9, width * 0.42)), **more)


def save(run: Run[Settings], figure: Figure, name: str, data: pd.DataFrame | None = None, words: str = "") -> Figure:
    """Write the figure as PNG, PDF and SVG under figures/, its data as CSV, and settings and alt text as JSON.

    The alt text is `words`, or the first docstring line of the calling function. The same data give the same bytes, since
    the files have no dates. Returns the figure, so that a notebook shows it.
    """
    folder = run.folder / "figures"
    provenance = {"notebook": run.notebook, "preset": run.preset, "run": run.folder.name}
    undated: dict[str, dict[str, Any]] = {
        "png": {"Description": json.dumps(provenance)},
        "pdf": {"CreationDate": None, "ModDate": None, "Keywords": json.dumps(provenance)},
        "svg": {"Date": None, "Description": json.dumps(provenance)},
    }
    for kind, metadata in undated.items():
        write_atomically(folder / f"{name}.{kind}", partial(figure.savefig, format=kind, metadata=metadata))
        figure.set_layout_engine("none")  # the other files and the notebook keep the layout of the first
    caller = sys._getframe(1)  # the function that drew the figure; its first docstring line is the alt text
    drawer = caller.f_globals.get(caller.f_code.co_name)
    words = words or ((drawer.__doc__ or "").partition("\n")[0] if drawer else "")
    about = {**provenance, "words": words, "settings": run.settings.model_dump()}
    write_text(folder / f"{name}.json", json.dumps(about, indent=1))
    if data is not None:
        numbers = data.drop(columns=["each", "by_seed"], errors="ignore")  # evaluation/ has outcomes by image
        if isinstance(numbers.columns, pd.MultiIndex):
            numbers.columns = [" ".join(filter(None, map(str, column))) for column in numbers.columns]
        write_text(folder / f"{name}.csv", numbers.to_csv(index=False))
    figure.set_label(words)
    _register_alt_text()
    plt.close(figure)
    return figure


def _register_alt_text() -> None:
    """Make a notebook use a figure's label as alt text."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from IPython.core.pylabtools import print_figure

        shell.display_formatter.formatters["image/png"].for_type(
            Figure, lambda figure: (print_figure(figure, base64=True, bbox_inches=None), {"alt": figure.get_label()})
        )
