"""Tables written as CSV, LaTeX and what a page shows."""

import json
from typing import Any

import numpy as np
import pandas as pd

from paperlib.figures.names import title
from paperlib.runs.files import write_text
from paperlib.runs.run import Run


def save(run: Run, data: pd.DataFrame, name: str, caption: str, digits: int = 1) -> Any:
    """Write a table as CSV and as LaTeX (booktabs) under tables/. Returns it with titles for names, to be shown.

    An empty one is not written; what is shown says so.
    """
    if data.empty:
        return f"{caption} Nothing of it was measured in this run."
    shown = data.rename(index=title, columns=title)
    written = as_latex(shown, digits, caption=latex(caption), label=f"tab:{run.notebook}-{name}", multicolumn_format="c")
    write_text(run.folder / "tables" / f"{name}.csv", data.to_csv())
    write_text(run.folder / "tables" / f"{name}.tex", written)
    write_text(run.folder / "tables" / f"{name}.json", json.dumps(as_read(shown, caption, digits), indent=1))
    return shown.style.format(precision=digits, na_rep="–")


def as_read(shown: pd.DataFrame, caption: str, digits: int) -> dict[str, Any]:
    """A table as a page shows it: its caption, heads and rows of words, the index first."""

    def words(value: Any) -> str:
        if isinstance(value, float | np.floating):
            return "–" if np.isnan(value) else f"{value:.{digits}f}"
        return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    rows = [[words(index), *map(words, row)] for index, row in zip(shown.index, shown.to_numpy(object), strict=True)]
    names = ", ".join(title(str(name)) for name in shown.index.names if name) or "name"
    return {"caption": caption, "heads": [names, *map(words, shown.columns)], "rows": rows}


def as_latex(shown: pd.DataFrame, digits: int, **options: Any) -> str:
    """A table as LaTeX (booktabs), its words escaped; `options` are of pandas' to_latex."""

    def words(value: Any) -> Any:
        return latex(value) if isinstance(value, str) else value

    escaped = shown.rename(columns=words, index=words).map(words)
    found: str = escaped.to_latex(float_format=f"%.{digits}f", na_rep="--", **options)
    return found


LATEX = {
    "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#",  # before the signs, whose code has underscores
    ">": "$>$", "<": "$<$", "Δ": r"$\Delta$",
    "η": r"$\eta$", "β": r"$\beta$", "γ": r"$\gamma$", "ρ": r"$\rho$", "×": r"$\times$",
    "ℓ∞": r"$\ell_\infty$", "ℓ2": r"$\ell_2$", "λ": r"$\lambda$", "ε": r"$\varepsilon$", "±": r"$\pm$",
}  # fmt: skip


def latex(text: str) -> str:
    """Text as LaTeX takes it, Greek and other signs in its mathematics."""
    for sign, code in LATEX.items():
        text = text.replace(sign, code)
    return text
