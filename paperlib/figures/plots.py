"""Figures of several studies: accuracies, lines, distances, a heat map."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paperlib.data import ImageSet, as_float
from paperlib.figures.forms import arms, dots, legend, looks, nothing, stamps, tiles
from paperlib.figures.names import CURVES, SCORES, title
from paperlib.figures.style import COLOURS, WIDTHS, new, save, style
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

MANY = 12  # a line with more points has no marks, and a band as interval


def contact_sheet(run: Run[Settings], data: ImageSet) -> Figure:
    """The first images of each class, one class per row: at most ten classes, and ten images of each."""
    per_class = min(10, int(WIDTHS[run.settings.venue] / 0.5))
    chosen = {
        data.classes[label]: list(as_float(data.images[data.labels == label][:per_class]))
        for label in range(min(10, len(data.classes)))
    }
    count = min(map(len, chosen.values()))
    return save(run, stamps(run, {label: images[:count] for label, images in chosen.items()}), "images")


def accuracies(
    run: Run[Settings], summary: pd.DataFrame, reported: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """Accuracy of each method under each attack with 95 % intervals; seeds are faint dots, the paper's numbers strokes.

    `summary` is of `evaluation.summary`. Rows with too few images for an interval are left out. Scores that are no accuracy
    have an axis of their own below.
    """
    kept = summary[summary["low"].notna()]
    if kept.empty:
        return nothing(run, "accuracies", summary, "too few images for an interval")
    pairs = zip(kept["method"], kept["measure"], strict=True)
    known = [(reported or {}).get(method, {}).get(measure) for method, measure in pairs]
    counts = kept.groupby("measure")["n"].min()
    data = pd.DataFrame(
        {
            "panel": kept["measure"].map(SCORES).fillna("accuracy (%)"), "line": kept["method"],
            "row": [f"{title(name.partition(', n =')[0])}, n = {counts[name]:,}" for name in kept["measure"]],
            "value": 100 * kept["mean"], "low": 100 * kept["low"], "high": 100 * kept["high"],
            "paper": pd.Series(known, kept.index, dtype=float),
            "seeds": [100 * np.asarray(own) if np.size(own) > 1 else [] for own in kept["by_seed"]],
        }
    )  # fmt: skip
    drawn, parts = looks(list(dict.fromkeys(data["line"]))), dict(iter(data.groupby("panel", sort=False)))
    sizes = [part["row"].nunique() for part in parts.values()]
    tall = [0.3 + size * max(0.2, 0.06 + 0.062 * len(drawn)) for size in sizes]
    figure, axes = new(run, len(parts), 1, sum(tall) + 0.35, squeeze=False, height_ratios=sizes)
    for axis, (label, part) in zip(axes[:, 0], parts.items(), strict=True):
        dots(axis, part, drawn)
        axis.set(xlabel=label, xlim=(-3, 103))
    if data["paper"].notna().any():
        axes[0, 0].errorbar([], [], fmt="|", color="0.3", markersize=7, markeredgewidth=1.4, label="as reported")
    legend(figure, axes[:, 0])
    return save(run, figure, "accuracies", data.drop(columns="seeds"))


def training_curves(run: Run[Settings], histories: pd.DataFrame, columns: Sequence[str]) -> Figure:
    """Training curves against the epoch, a panel for each quantity: mean and range over each method's seeds.

    `columns` are columns of `training.histories`.
    """
    rows = histories.rename(columns={"method": "line"}).reindex(columns=["line", "epoch", *columns])
    data = rows.melt(["line", "epoch"], var_name="panel").dropna(subset="value")
    data["value"] *= np.where(data["panel"].str.endswith("_accuracy"), 100, 1)
    found = data.groupby(["panel", "line", "epoch"], sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    found = found.rename(columns={"mean": "value", "min": "low", "max": "high"})
    found["panel"] = found["panel"].map(lambda column: CURVES.get(column, title(column)))
    return panels(run, found, "training", x="epoch", label="")


def panels(run: Run[Settings], data: pd.DataFrame, name: str, *, x: str, label: str = "accuracy (%)") -> Figure:
    """Lines of `value` against the column `x`: a panel for each value of column panel, a line for each of column line.

    Columns low and high, if present, become error bars, or bands for more than MANY points. If x holds words, they keep
    their order, and no line joins the points. The text below the figure names x, lines and panels.
    """
    if data.empty:
        return nothing(run, name, data)
    data = data if "panel" in data else data.assign(panel="")
    titles, drawn = list(dict.fromkeys(data["panel"])), looks(list(map(str, dict.fromkeys(data["line"]))))
    figure, axes = tiles(run, titles)
    for axis, panel in zip(axes, titles, strict=True):
        part = data[data["panel"] == panel]
        places = part[x].infer_objects()
        words = [] if pd.api.types.is_numeric_dtype(places) else list(dict.fromkeys(places))
        present = [line for line in drawn if (part["line"] == line).any()]
        for number, line in enumerate(present):
            own = part[part["line"] == line]
            look = {**drawn[line], "linewidth": 1, "markersize": 3.5, "label": title(line)}
            if words:
                at = own[x].map(words.index) + (number - (len(present) - 1) / 2) * 0.7 / len(present)
                look["linestyle"] = "none"
            else:
                own = own.sort_values(x, kind="stable")
                at = own[x].astype(float)
            if len(own) > MANY and not words:
                axis.plot(at, own["value"], **{**look, "marker": None})
                if "low" in own:
                    low, high = own["low"].astype(float), own["high"].astype(float)
                    axis.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
            else:
                axis.errorbar(at, own["value"], arms(own), elinewidth=0.7, **look)
        if words:
            axis.set_xticks(range(len(words)), [title(str(word)) for word in words], rotation=30, ha="right")
            axis.set_xlim(-0.5, len(words) - 0.5)
        elif (places == places.round()).all():
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if x != "x":
            axis.set_xlabel(x)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(textwrap.fill(label, 20))
    legend(figure, axes)
    about = f"{label} against {x}" if x != "x" else label
    about += f" of {', '.join(map(title, drawn))}"
    about += f", a panel each for {', '.join(map(str, titles))}" if len(titles) > 1 else ""
    return save(run, figure, name, data, f"{about.strip()}.")


def beyond(
    run: Run[Settings], distances: pd.DataFrame, name: str, label: str, limit: float = np.inf, eps: float | None = None
) -> Figure:
    """Share of images that are farther from the boundary than a distance, a panel for each part, a line for each method.

    `distances` has a row per image: columns panel, line, distance. Distances were searched up to `limit`; images beyond it,
    or with infinite distance, count as farther everywhere. The axis ends at the 98 % quantile of the known distances. The
    dotted line is ε.
    """
    parts, drawn = list(dict.fromkeys(distances["panel"])), looks(list(dict.fromkeys(distances["line"])))
    figure, axes = tiles(run, list(map(title, parts)), sharey=True)
    known = distances["distance"][distances["distance"] < limit]
    end = min(limit, 1.05 * float(known[np.isfinite(known)].quantile(0.98)) or 1.0)
    rows = []
    for axis, panel in zip(axes, parts, strict=True):
        for line, part in distances[distances["panel"] == panel].groupby("line", sort=False):
            values = np.sort(part["distance"])
            places = np.append(0, values[values < min(limit, end)])
            shares = 100 * (values[None] > places[:, None]).mean(1)
            shares[0] = 100
            look = {name: drawn[str(line)][name] for name in ("color", "linestyle")} | {"label": title(str(line))}
            axis.step(np.append(places, end), np.append(shares, shares[-1]), where="post", linewidth=1, **look)
            rows.append(pd.DataFrame({"panel": panel, "line": line, "distance": places, "value": shares}))
        if eps is not None:
            axis.axvline(eps, color="0.6", linestyle=":", linewidth=1)
        axis.set(xlabel=label, xlim=(0, end), ylim=(-2, 102))
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("farther away (%)")
    legend(figure, axes)
    return save(run, figure, name, pd.concat(rows))


def grid(run: Run[Settings], summary: pd.DataFrame) -> Figure:
    """Heat map of the accuracy in percent of every method (rows) under every attack (columns), with n images each."""
    table = 100 * summary.pivot_table(index="method", columns="measure", values="mean", sort=False)
    counts = summary.groupby("measure")["n"].min()
    width, left = WIDTHS[run.settings.venue], 0.15 + 0.062 * max(len(title(name)) for name in table.index)
    strips = -(-table.shape[1] // int((width - left) / 0.27))  # stacked where the width is too small
    each = -(-table.shape[1] // strips)
    tall = 0.45 + 0.03 * max(len(title(name)) for name in table.columns)  # height of the heads above and the numbers below
    figure, axes = new(run, strips, 1, strips * (tall + 0.17 * len(table)), squeeze=False)
    for strip, axis in enumerate(axes[:, 0]):
        part = table.iloc[:, each * strip : each * (strip + 1)]
        names = [name.partition(", n =")[0] for name in part.columns]
        axis.imshow(part, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(part.shape):
            value = part.iat[row, column]
            words, colour = ("–", "black") if np.isnan(value) else (f"{value:.0f}", "white" if value > 60 else "black")
            axis.text(column, row, words, ha="center", va="center", color=colour, fontsize=7)
        axis.set_xlim(-0.5, each - 0.5)
        axis.set_xticks(range(len(names)), [f"{counts[name]:,}" for name in part.columns], fontsize=6)
        axis.set_xlabel("n", fontsize=6, ha="right", va="top")
        axis.xaxis.set_label_coords(-0.02, -0.02)
        above = axis.secondary_xaxis("top")
        above.set_xticks(range(len(names)), list(map(title, names)), rotation=30, ha="left", fontsize=7)
        axis.set_yticks(range(len(part)), list(map(title, part.index)), fontsize=7)
        for one in (axis, above):
            one.tick_params(length=0, pad=2)
            one.spines[:].set_visible(False)
    return save(run, figure, "grid", table.reset_index())


def sweep_curve(curve: pd.DataFrame, norm: str, venue: str = "neurips") -> Figure:
    """Draw accuracy in percent against ε, in a venue's style, from columns eps and accuracy in [0,1]."""
    scale, label = (255, "ε × 255") if norm == "linf" else (1, "ε (ℓ2)")
    with plt.style.context(["default", style(venue)]):
        figure, axes = plt.subplots(figsize=(WIDTHS[venue], 2.2))
        axes.plot(scale * curve["eps"], 100 * curve["accuracy"], marker="o", color=COLOURS[1])
        axes.set(xlabel=label, ylabel="accuracy under PGD-20 (%)", ylim=(-2, 102))
        plt.close(figure)
    return figure
