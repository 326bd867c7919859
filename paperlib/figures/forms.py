"""Parts of figures: panels side by side, dots with intervals, sheets of images, a common legend."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.figures.names import LOOKS, title
from paperlib.figures.style import COLOURS, MARKERS, WIDTHS, new, save
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings


def looks(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line style of each of `lines`: those of `names.LOOKS`, or free ones for unknown methods.

    Words after a comma ("raat, training") or a colon do not change a method's colour. Lines with other words after the
    comma than the first line are open and dashed, like variants of a method.
    """
    bases = {line: re.split("[,:] ", line)[0].removesuffix("_equal") for line in lines}
    known = {base: LOOKS[base] for base in bases.values() if base in LOOKS}
    taken = {colour for colour, _ in known.values()}
    free = cycle([place for place in range(len(COLOURS)) if place not in taken] or range(len(COLOURS)))
    for base in bases.values():
        known.setdefault(base, (next(free), False))
    said = list(dict.fromkeys(line.partition(", ")[2] for line in lines))
    found = {}
    for line, base in bases.items():
        colour, variant = known[base]
        open_ = variant or line.endswith("_equal") or said.index(line.partition(", ")[2]) > 0
        found[line] = {"color": COLOURS[colour], "marker": MARKERS[colour], "linestyle": "--" if open_ else "-",
                       "markerfacecolor": "white" if open_ else COLOURS[colour]}  # fmt: skip
    return found


def tiles(
    run: Run[Settings], titles: Sequence[str], least: float = 1.55, ratio: float = 0.75, **more: Any
) -> tuple[Figure, list[Any]]:
    """Return a figure of panels with `titles`, each at least `least` inches wide, and their axes.

    As many panels as fit stand side by side. `ratio` is a panel's height over its width.
    """
    width = WIDTHS[run.settings.venue]
    rows = -(-len(titles) // max(1, int(width / least)))
    columns = -(-len(titles) // rows)
    height = rows * min(2.2, max(1.5, ratio * width / columns)) + 0.4
    figure, axes = new(run, rows, columns, height=height, squeeze=False, **more)
    for axis, words in zip_longest(axes.flat, titles):
        if words is None:
            axis.remove()
        else:
            axis.set_title("\n".join(textwrap.fill(part, int(width / columns / 0.064)) for part in words.splitlines()))
    return figure, list(axes.flat[: len(titles)])


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """Add one legend below all axes, with as many columns as fit; the figure grows by the legend's height."""
    found = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if found:
        width, height = figure.get_size_inches()
        most = max(1, int(width / (0.42 + 0.052 * max(map(len, found)))))  # width of an entry at 7 points, in inches
        lines = -(-len(found) // most)
        figure.set_size_inches(width, height + 0.14 * (lines - 1))
        figure.legend(list(found.values()), list(found), loc=cast(Any, "outside lower center"), fontsize=7,
                      ncols=-(-len(found) // lines), columnspacing=1.2)  # fmt: skip


def nothing(run: Run[Settings], name: str, data: pd.DataFrame, words: str = "nothing of this was trained") -> Figure:
    """Save a figure that states why there are no data."""
    figure, axis = new(run, height=0.5)
    axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=8)
    axis.set_axis_off()
    return save(run, figure, name, data, words)


def arms(data: pd.DataFrame) -> np.ndarray | None:
    """Return the lengths of the error bars below and above the values, 2×N; None without columns low and high."""
    if not {"low", "high"} <= set(data):
        return None
    return np.stack([data["value"] - data["low"], data["high"] - data["value"]]).astype(float).clip(min=0)


def dots(axis: Any, data: pd.DataFrame, drawn: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw dots with intervals, one text row per value of column row: columns row, line, value, low, high.

    Lines of a row stand one below the other, in the styles `drawn` of `looks`. Optional columns: `seeds` (lists) become
    faint dots, `paper` becomes upright strokes.
    """
    rows = list(dict.fromkeys(data["row"]))
    lines = [line for line in drawn if (data["line"] == line).any()]
    shared = data.groupby("row").size().max() > 1
    for number, line in enumerate(lines):
        own = data[data["line"] == line]
        places = own["row"].map(rows.index) + ((number - (len(lines) - 1) / 2) * 0.76 / len(lines) if shared else 0)
        axis.errorbar(own["value"], places, xerr=arms(own), markersize=3.5, elinewidth=0.8, label=title(line),
                      **{**drawn[line], "linestyle": "none"})  # fmt: skip
        for place, values in zip(places, own.get("seeds", []), strict=False):
            axis.plot(values, [place] * len(values), ".", color=drawn[line]["color"], markersize=3, alpha=0.4)
        if "paper" in own and own["paper"].notna().any():
            axis.plot(own["paper"], places, "|", color=drawn[line]["color"], markersize=7, markeredgewidth=1.4)
    for row in range(0, len(rows), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="0.95", linewidth=0, zorder=-1)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)


def coloured(values: Tensor, colours: str = "gray", low: float | None = None, high: float | None = None) -> Tensor:
    """Return a map H×W as a colour image 3×H×W; the scale goes from `low` to `high`, by default its extremes."""
    array = values.detach().cpu().double().numpy()
    low, high = array.min() if low is None else low, array.max() if high is None else high
    shares = (array - low) / max(high - low, 1e-12)
    return torch.from_numpy(plt.get_cmap(colours)(shares)[..., :3]).permute(2, 0, 1)


def stamps(run: Run[Settings], rows: Mapping[str, Sequence[Tensor]], heads: Sequence[str] = ()) -> Figure:
    """Return a sheet of images C×H×W in [0,1]: a row for each name, columns under `heads`, as wide as the venue's text.

    Rows and columns are swapped where a row would be too long for the width and a column is not.
    """
    cells, names, heads = [list(row) for row in rows.values()], [title(row) for row in rows], [*heads]
    width, least = WIDTHS[run.settings.venue], 0.42
    heads = heads or [""] * len(cells[0])
    if len(heads) * least > width - 0.7 and len(cells) < len(heads):
        cells, names, heads = [list(row) for row in zip(*cells, strict=True)], heads, names
    left = min(1.1, 0.1 + 0.06 * max(len(part) for row in names for part in textwrap.wrap(row, 18) or [""]))
    side = min((width - left) / len(heads), 0.85)
    wrapped = [textwrap.fill(head, max(10, int(side / 0.058))) for head in heads]
    top = 0.05 + 0.12 * max(head.count("\n") + bool(head) for head in wrapped)
    height = top + side * len(names)
    left += (width - left - side * len(heads)) / 2  # centred
    figure, axis = new(run, height=height)
    axis.remove()
    figure.set_layout_engine("none")  # places are computed below
    for number, (row, label) in enumerate(zip(cells, names, strict=True)):
        for column, image in enumerate(row):
            place = ((left + side * column) / width, 1 - (top + side * (number + 1)) / height)
            axis = figure.add_axes((*place, 0.95 * side / width, 0.95 * side / height))
            axis.imshow(image.detach().cpu().permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if number == 0:
                axis.set_title(wrapped[column], fontsize=7, pad=2, parse_math=False)  # a class name may contain $
            if column == 0:
                axis.text(-0.06, 0.5, textwrap.fill(label, 18), fontsize=7, ha="right", va="center",
                          transform=axis.transAxes, parse_math=False)  # fmt: skip
    return figure
