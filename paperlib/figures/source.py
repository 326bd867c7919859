"""The code that computes an equation, shown in a notebook beside it."""

import inspect
from collections.abc import Callable
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer


class Source:
    """Source text that a notebook shows highlighted and a terminal as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        found: str = highlight(self.text, PythonLexer(), HtmlFormatter(noclasses=True, nobackground=True))
        return found

    def __repr__(self) -> str:
        return self.text


def show(*functions: Callable[..., Any]) -> Source:
    """The source of functions, as it runs."""
    return Source("\n\n".join(inspect.cleandoc("\n" + inspect.getsource(function)) for function in functions))
