"""The README's picture: every decided claim of docs/results that has a number, against what the paper says.

`python -m paperlib.report.picture` draws docs/claims.png anew.
"""

import textwrap
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from paperlib.figures.style import COLOURS, style
from paperlib.report import published
from paperlib.runs.files import root, write_atomically

VERDICTS = {"reproduced": COLOURS[3], "direction only": COLOURS[5], "not reproduced": COLOURS[2]}


def rows() -> list[dict[str, Any]]:
    """The decided claims of differences in points, by paper, with paper and data added."""
    found = [
        {**claim, "paper": result["paper"].upper(), "data": result["data"]}
        for result in published.results()
        for claim in result["claims"]
        if claim["outcome"] in VERDICTS and claim["claimed"] is not None and claim.get("kind") != "ratio"
    ]
    return sorted(found, key=lambda row: row["paper"])


def draw() -> Figure:
    """A row a claim: the measured difference with its 95 % interval, coloured by verdict, and the paper's as a diamond."""
    plt.rcParams.update(cast(Any, style("wide")))
    claims = rows()
    figure, axis = plt.subplots(figsize=(10, 0.27 * len(claims) + 1))
    for place, row in enumerate(claims):
        axis.plot([row["low"], row["high"]], [place, place], color=VERDICTS[row["outcome"]], linewidth=2)
        axis.plot(row["measured"], place, "o", color=VERDICTS[row["outcome"]], markersize=5)
        axis.plot(row["claimed"], place, "D", color="black", markerfacecolor="white", markersize=5)
        if place and row["paper"] != claims[place - 1]["paper"]:
            axis.axhline(place - 0.5, color="#cccccc", linewidth=0.8)
    axis.axvline(0, color="#888888", linewidth=0.8)
    words = [
        f"{row['paper']}: {textwrap.shorten(row['statement'], 64, placeholder=' …')}  ({row['data']})" for row in claims
    ]
    axis.set_yticks(range(len(claims)), words)
    axis.set_ylim(len(claims) - 0.5, -0.5)
    axis.set_xlabel("difference in points of accuracy")
    marks = [plt.Line2D([], [], color=colour, marker="o", linewidth=2, label=name) for name, colour in VERDICTS.items()]
    paper = plt.Line2D([], [], color="black", marker="D", linestyle="", markerfacecolor="white", label="the paper says")
    figure.legend(handles=[*marks, paper], loc="outside upper center", ncols=4)
    return figure


if __name__ == "__main__":
    drawn = draw()
    plain: dict[str, Any] = {"format": "png", "dpi": 160, "metadata": {"Software": None}}
    write_atomically(root() / "docs" / "claims.png", lambda file: drawn.savefig(file, **plain))
