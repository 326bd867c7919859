"""Figures of verdicts, for the README and for pages of docs/results.

`python -m paperlib.report.picture` draws them.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from paperlib.figures.style import COLOURS, style
from paperlib.report import published
from paperlib.runs.files import root, write_atomically

VERDICTS = {"reproduced": COLOURS[3], "direction only": COLOURS[5], "not reproduced": COLOURS[2]}


def rows(page: str | None = None) -> list[dict[str, Any]]:
    """Return the decided claims about differences in points, by paper, with paper and data added.

    For one page of docs/results, all are returned. Without `page`, only those with a number in the paper.
    """
    found = [
        {**claim, "paper": result["paper"].upper(), "data": result["data"]}
        for result in published.results()
        if page in (None, result["page"])
        for claim in result["claims"]
        if claim["outcome"] in VERDICTS and (page or claim["claimed"] is not None) and claim.get("kind") != "ratio"
    ]
    return sorted(found, key=lambda row: row["paper"])


def draw(claims: Sequence[Mapping[str, Any]]) -> Figure:
    """Claims in rows: measured difference with its 95 % interval, coloured by verdict; the paper's value as a diamond."""
    plt.rcParams.update(cast(Any, style("wide")))
    labels = [
        textwrap.fill(f"{row['paper']}, {row['data']}: {row['statement']}", 82, max_lines=2, placeholder=" …")
        for row in claims
    ]
    figure, axis = plt.subplots(figsize=(11, sum(0.22 + 0.13 * label.count("\n") for label in labels) + 1))
    for place, row in enumerate(claims):
        axis.plot([row["low"], row["high"]], [place, place], color=VERDICTS[row["outcome"]], linewidth=2)
        axis.plot(row["measured"], place, "o", color=VERDICTS[row["outcome"]], markersize=5, zorder=4)
        if row["claimed"] is not None:
            axis.plot(row["claimed"], place, "D", color="black", markerfacecolor="white", markersize=7, zorder=3)
        if place and row["paper"] != claims[place - 1]["paper"]:
            axis.axhline(place - 0.5, color="#cccccc", linewidth=0.8)
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_yticks(range(len(claims)), labels, linespacing=0.9)
    axis.set_ylim(len(claims) - 0.5, -0.5)
    axis.set_xlabel("difference in points of accuracy; other measures × 100")
    marks = [plt.Line2D([], [], color=colour, marker="o", linewidth=2, label=name) for name, colour in VERDICTS.items()]
    paper = plt.Line2D([], [], color="black", marker="D", linestyle="", markerfacecolor="white", label="the paper's value")
    figure.legend(handles=[*marks, paper], loc="outside upper center", ncols=4)
    return figure


def write() -> None:
    """Draw docs/claims.png, and claims.png for each page of docs/results that shows one."""
    plain: dict[str, Any] = {"format": "png", "dpi": 160, "metadata": {"Software": None}}
    pages = [page for page in published.folder().glob("*.md") if f"{page.stem}/claims.png" in page.read_text("utf-8")]
    files = {root() / "docs" / "claims.png": None} | {
        published.folder() / page.stem / "claims.png": page.stem for page in pages
    }
    for file, name in files.items():
        drawn = draw(rows(name))
        write_atomically(file, lambda temporary, drawn=drawn: drawn.savefig(temporary, **plain))  # type: ignore[misc]
        plt.close(drawn)


if __name__ == "__main__":
    write()
