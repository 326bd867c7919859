"""Source code shown in a notebook beside the equation that it computes."""

import inspect
from collections.abc import Callable
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


class Source:
    """Source text, highlighted in a notebook and plain in a terminal."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        found: str = highlight(self.text, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))
        return found

    def __repr__(self) -> str:
        return self.text


def show(*functions: Callable[..., Any]) -> Source:
    """Return the source of functions as they run."""
    return Source("\n\n".join(inspect.cleandoc("\n" + inspect.getsource(function)) for function in functions))
