"""Tables as CSV, LaTeX, and JSON for the site."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd

from paperlib.figures.names import title, with_interval
from paperlib.figures.style import WIDTHS
from paperlib.runs.files import write_text
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

MOST = 7  # columns of a LaTeX table, at most
CHARACTER, SEPARATION, POINTS = 4.6, 8, 72.27  # LaTeX points per character of small type, column gap, and inch
LINES = 50  # lines of a page, at most; then a new table begins
LONG = 34  # characters of a text column, at most; longer text is wrapped


def save(run: Run[Settings], data: pd.DataFrame, name: str, caption: str, digits: int = 1) -> Any:
    """Write a table as CSV, LaTeX (booktabs) and JSON under tables/; return it for display, with titles as names.

    Except in the CSV, intervals stand in the cells of their values. For an empty table return a sentence, and write no
    file.
    """
    if data.empty:
        return f"{caption} Nothing of it was measured in this run."
    shown = in_cells(data, digits).rename(index=title, columns=title)
    written = as_latex(shown, caption, f"tab:{run.notebook}-{name}", run.settings.venue)
    write_text(run.folder / "tables" / f"{name}.csv", data.to_csv())
    write_text(run.folder / "tables" / f"{name}.tex", written)
    write_text(run.folder / "tables" / f"{name}.json", json.dumps(as_read(shown, caption), indent=1))
    return escaped(shown)


def escaped(table: pd.DataFrame) -> Any:
    """Return a table for display in a notebook, with its texts escaped for HTML."""
    shown = table.style.format(escape="html")
    return shown.format_index(escape="html", axis=0).format_index(escape="html", axis=1)


def in_cells(data: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return the table as text: columns low and high become the interval of the column before them.

    A heading with a single column left below it replaces that column's name.
    """
    found: dict[Any, list[str]] = {}
    columns = list(data.columns)
    joined: set[int] = set()
    for place, column in enumerate(columns):
        *above, _ = column if isinstance(column, tuple) else (column,)
        ends = [(*above, end) if above else end for end in ("low", "high")]
        if columns[place + 1 : place + 3] == ends:
            rows = zip(*(data.iloc[:, at] for at in range(place, place + 3)), strict=True)
            found[column] = [with_interval(value, low, high, digits) for value, low, high in rows]
            joined |= {place + 1, place + 2}
        elif place not in joined:
            found[column] = [_words(value, digits) for value in data.iloc[:, place]]
    table = pd.DataFrame(list(zip(*found.values(), strict=True)), index=data.index)
    groups = [column[0] if isinstance(column, tuple) else column for column in found]
    single = [groups.count(group) == 1 for group in groups]
    named = [(group, "") if alone else column for group, column, alone in zip(groups, found, single, strict=True)]
    table.columns = pd.Index(groups) if all(single) else pd.MultiIndex.from_tuples(named)
    return table


def _words(value: Any, digits: int) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.{digits}f}"
    return str(value)


def as_read(shown: pd.DataFrame, caption: str) -> dict[str, Any]:
    """Return a table for the site: its caption, heads and rows as text, the index first."""

    def words(name: Any) -> str:
        return ", ".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)

    rows = [[words(index), *row] for index, row in zip(shown.index, shown.to_numpy(object), strict=True)]
    names = ", ".join(title(str(name)) for name in shown.index.names if name) or "name"
    return {"caption": caption, "heads": [names, *map(words, shown.columns)], "rows": rows}


def as_latex(shown: pd.DataFrame, caption: str, label: str, venue: str) -> str:
    """Return a table of text as escaped LaTeX (booktabs), split into parts of at most MOST columns that fit the width.

    In a two-column venue it spans both columns. Parts stand one below another; when a page is full, a new table begins.
    """
    escaped = shown.rename(columns=_latex, index=_latex).map(latex)
    escaped.index.names = [_latex(name) for name in shown.index.names]
    lengths = [_length([*(name if isinstance(name, tuple) else (name,)), *column]) for name, column in shown.items()]
    lengths = [min(length, LONG) for length in lengths]
    index = [_length(shown.index.get_level_values(level)) for level in range(shown.index.nlevels)]
    text, _, columns = venue.partition("-")
    room = WIDTHS[text] * POINTS - sum(CHARACTER * length + SEPARATION for length in index)
    parts: list[list[int]] = [[]]
    for place, length in enumerate(lengths):
        taken = sum(CHARACTER * lengths[one] + SEPARATION for one in parts[-1])
        if parts[-1] and (len(parts[-1]) + len(index) == MOST or taken + CHARACTER * length + SEPARATION > room):
            parts.append([])
        parts[-1].append(place)
    kinds = ["r" if length < LONG else f"p{{{CHARACTER * LONG:.0f}pt}}" for length in lengths]
    texts = [
        escaped.iloc[:, part].to_latex(
            column_format="l" * len(index) + "".join(kinds[place] for place in part), multicolumn_format="c", multirow=False
        )
        for part in parts
    ]
    kind, tables = f"table{'*' if columns else ''}", [[texts[0]]]
    for text in texts[1:]:
        if (len(tables[-1]) + 1) * (len(shown) + 6) > LINES:
            tables.append([])
        tables[-1].append(text)
    found = []
    for number, own in enumerate(tables):
        above = [rf"\begin{{{kind}}}", r"\centering\small\setlength{\tabcolsep}{4pt}"]
        above += [rf"\caption{{{latex(caption)}{' (continued)' if number else ''}}}"]
        above += [rf"\label{{{label}}}"] if number == 0 else []
        found.append("\n".join([*above, "\n\\medskip\n\n".join(own).rstrip(), rf"\end{{{kind}}}", ""]))
    return "\n".join(found)


def _length(texts: Any) -> int:
    return max(len(str(text)) for text in texts)


def _latex(name: Any) -> Any:
    return latex(name) if isinstance(name, str) else name


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "\n": " ",
    ">": "$>$", "<": "$<$", "Δ": r"$\Delta$",
    "η": r"$\eta$", "β": r"$\beta$", "γ": r"$\gamma$", "ρ": r"$\rho$", "×": r"$\times$",
    "−": "$-$", "–": "--", "∇": r"$\nabla$", "‖": r"$\|$", "σ": r"$\sigma$", "α": r"$\alpha$", "√": r"$\surd$", "²": "$^2$",
    "ℓ∞": r"$\ell_\infty$", "ℓ2": r"$\ell_2$", "λ": r"$\lambda$", "ε": r"$\varepsilon$", "±": r"$\pm$",
}  # fmt: skip

SIGN = re.compile("|".join(map(re.escape, sorted(LATEX, key=len, reverse=True))))


def latex(text: str) -> str:
    """Escape text for LaTeX, with Greek letters and other signs in math mode."""
    return SIGN.sub(lambda sign: LATEX[sign[0]], text)
