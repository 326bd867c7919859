"""Figures that several studies have: accuracies, curves, bars."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from paperlib.data import ImageSet, as_float
from paperlib.figures.names import title
from paperlib.figures.style import COLOURS, LINES, MARKERS, WIDTHS, arms, draw, new, save, style
from paperlib.runs.run import Run


def contact_sheet(run: Run, data: ImageSet, name: str = "images", per_class: int = 10) -> Figure:
    """The first images of each class (at most ten classes), one class a column."""
    labels = range(min(10, len(data.classes)))
    columns = [as_float(data.images[data.labels == label][:per_class]) for label in labels]
    rows = min(map(len, columns))
    figure, axes = new(run, 1, len(columns), height=WIDTHS[run.settings.venue][0] / len(columns) * (rows + 0.6))
    for label, axis in zip(labels, axes, strict=True):
        draw(axis, columns[label][:rows])
        axis.set_title(data.classes[label], fontsize=7)
    return save(run, figure, name)


def per_seed(run: Run, table: pd.DataFrame) -> Figure:
    """Accuracy of every single training, one point a seed."""
    measures, methods = list(dict.fromkeys(table["measure"])), list(dict.fromkeys(table["method"]))
    figure, axes = new(run, 1, len(measures), sharey=True)
    for axis, measure in zip(np.atleast_1d(axes), measures, strict=True):
        for number, method in enumerate(methods):
            part = table[(table["measure"] == measure) & (table["method"] == method)]
            spread = np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else np.zeros(1)
            axis.plot(number + spread, 100 * part["value"], MARKERS[number], markersize=3, color=COLOURS[number + 1])
        axis.set_xticks(range(len(methods)), [title(method) for method in methods])
        axis.set(title=title(measure), xlim=(-0.5, len(methods) - 0.5), ylim=(-2, 102))
    np.atleast_1d(axes)[0].set_ylabel("accuracy (%), a point a seed")
    return save(run, figure, "seeds", table)


def accuracies(run: Run, summary: pd.DataFrame, reported: Mapping[str, Mapping[str, float]]) -> Figure:
    """Mean accuracy of each method under each measure with 95 % intervals; the paper's numbers as open diamonds."""
    measures = list(dict.fromkeys(summary["measure"]))
    methods = list(dict.fromkeys(summary["method"]))
    figure, axis = new(run)
    width = 0.8 / len(measures)
    for number, measure in enumerate(measures):
        part = summary[summary["measure"] == measure].set_index("method")
        places = [methods.index(method) + (number - (len(measures) - 1) / 2) * width for method in part.index]
        axis.bar(places, 100 * part["mean"], width, yerr=arms(part), color=COLOURS[number + 1],
                 error_kw={"linewidth": 0.8}, label=title(measure))  # fmt: skip
        known = [(place, reported[method][measure]) for place, method in zip(places, part.index, strict=True)
                 if measure in reported.get(method, {})]  # fmt: skip
        if known:
            axis.scatter(*zip(*known, strict=True), marker="D", s=12, facecolors="none", edgecolors="black",
                         linewidths=0.8, zorder=3, label="paper" if number == 0 else None)  # fmt: skip
    axis.set_xticks(range(len(methods)), [title(method).replace(" (", "\n(") for method in methods], rotation=20)
    axis.set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return save(run, figure, "accuracies", summary)


def epsilon_curves(run: Run, table: pd.DataFrame) -> Figure:
    """Accuracy against eps, a line a method, mean over seeds."""
    means = table.groupby(["method", "eps"], sort=False, as_index=False)["value"].mean()
    figure, axis = new(run)
    for number, (method, part) in enumerate(means.groupby("method", sort=False)):
        part = part.sort_values("eps")
        axis.plot(part["eps"], 100 * part["value"], marker=MARKERS[number], markersize=4, linewidth=1,
                  color=COLOURS[number], label=title(str(method)))  # fmt: skip
    axis.set(xlabel=f"ε (n = {int(table['n'].iloc[0])} images)", ylabel="accuracy (%)", ylim=(-2, 102))
    axis.legend()
    return save(run, figure, "epsilon", means)


def training_curves(run: Run, histories: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> Figure:
    """A panel a column of the training histories, against the epoch; one line a training."""
    figure, axes = new(run, 1, len(columns))
    frames = []
    for number, (name, history) in enumerate(histories.items()):
        frame = pd.DataFrame(history["epochs"]).assign(training=name)
        frames.append(frame)
        for axis, column in zip(np.atleast_1d(axes), columns, strict=True):
            if column in frame:
                axis.plot(frame["epoch"], frame[column], linewidth=1, color=COLOURS[number % len(COLOURS)],
                          linestyle=LINES[number // len(COLOURS) % len(LINES)], label=name)  # fmt: skip
            axis.set(title=column.replace("_", " "), xlabel="epoch")
    lines, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=6)
    return save(run, figure, "training", pd.concat(frames))


def panels(
    run: Run, data: pd.DataFrame, name: str, *, x: str, rows: str | None = None, label: str = "accuracy (%)"
) -> Figure:
    """Lines of `value` against the column `x`: a panel for each value of the column panel, a line for each of line.

    With `rows`, a row of panels for each value of that column. Columns low and high, where there are any, become error
    bars. Words on the x-axis stand in the order in which they come. Without data the figure says so.
    """
    if data.empty:
        figure, axis = new(run)
        axis.text(0.5, 0.5, "nothing of this was trained", ha="center")
        axis.set_axis_off()
        return save(run, figure, name, data)
    data = data if "panel" in data else data.assign(panel="")
    columns, heights = list(dict.fromkeys(data["panel"])), list(dict.fromkeys(data[rows])) if rows else [None]
    names = list(dict.fromkeys(data["line"]))
    height = WIDTHS[run.settings.venue][0] * 0.42 * (1 if len(heights) == 1 else 0.8 * len(heights))
    figure, axes = new(run, len(heights), len(columns), height=height, squeeze=False)
    for row, value in enumerate(heights):
        for column, panel in enumerate(columns):
            axis = axes[row][column]
            part = data[(data["panel"] == panel) & ((data[rows] == value) if rows else True)]
            words = not pd.api.types.is_numeric_dtype(part[x].infer_objects())
            places = {word: place for place, word in enumerate(dict.fromkeys(part[x]))}
            for number, line in enumerate(names):
                own = part[part["line"] == line]
                if not words:
                    own = own.sort_values(x, kind="stable")
                arms = None
                if {"low", "high"} <= set(own):
                    arms = np.stack([own["value"] - own["low"], own["high"] - own["value"]]).clip(min=0)
                if len(own):
                    axis.errorbar(
                        own[x].map(places) if words else own[x].astype(float), own["value"], arms,
                        marker=MARKERS[number % len(MARKERS)], markersize=3, linewidth=1, elinewidth=0.6,
                        linestyle=LINES[number // len(COLOURS) % len(LINES)], color=COLOURS[number % len(COLOURS)],
                        label=title(str(line)),
                    )  # fmt: skip
            if words:
                axis.set_xticks(range(len(places)), [title(str(word)) for word in places], rotation=30, ha="right")
            axis.set(title=panel if row == 0 else "", xlabel=x if row + 1 == len(heights) and x != "x" else "")
            if column == 0:
                axis.set_ylabel(f"{value} (%)" if value else label)
    found = {name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    room = WIDTHS[run.settings.venue][0] / (0.55 + 0.055 * max(map(len, found)))  # inches an entry takes at 7 points
    columns_of_legend = max(1, min(len(found), int(room)))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns_of_legend, fontsize=7)
    about = ", ".join(str(value) for value in heights if value) or label
    about += f" against {x}" if x != "x" else ""
    about += f" of {', '.join(found)}"
    about += f", a panel each for {', '.join(map(str, columns))}" if len(columns) > 1 else ""
    return save(run, figure, name, data, f"{about}.")


def attack_bars(run: Run, summary: pd.DataFrame) -> Figure:
    """Accuracy of each method under every attack, a group an attack, with 95 % intervals: GFA's bar charts."""
    measures, methods = list(dict.fromkeys(summary["measure"])), list(dict.fromkeys(summary["method"]))
    figure, axis = new(run)
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        part = summary[summary["method"] == method].set_index("measure")
        places = [measures.index(measure) + (number - (len(methods) - 1) / 2) * width for measure in part.index]
        axis.bar(places, 100 * part["mean"], width, yerr=arms(part), color=COLOURS[number % len(COLOURS)],
                 error_kw={"linewidth": 0.6}, label=title(method))  # fmt: skip
    axis.set_xticks(range(len(measures)), [title(measure) for measure in measures], rotation=30, ha="right")
    axis.set(ylabel="accuracy (%)", ylim=(0, 100))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    return save(run, figure, "attacks", summary)


def distance_curves(run: Run, distances: pd.DataFrame) -> Figure:
    """Share of images that an attack needs more than a distance for, a panel an attack: columns attack, method, each."""
    attacks = list(dict.fromkeys(distances["attack"]))
    figure, axes = new(run, 1, len(attacks), sharey=True, squeeze=False)
    frames = []
    for axis, attack in zip(axes[0], attacks, strict=True):
        own = distances[distances["attack"] == attack]
        for number, (method, part) in enumerate(own.groupby("method", sort=False)):
            values = np.sort(np.concatenate(list(part["each"])))
            shares = 100 * (1 - np.arange(1, len(values) + 1) / len(values))
            finite = np.isfinite(values)
            axis.step(np.append(0, values[finite]), np.append(100, shares[finite]), where="post", linewidth=1,
                      color=COLOURS[number % len(COLOURS)], label=title(str(method)))  # fmt: skip
            frames.append(pd.DataFrame({"attack": attack, "method": method, "distance": values}))
        axis.set(title=title(attack), xlabel="L2 distance", ylim=(-2, 102))
    axes[0][0].set_ylabel("images beyond (%)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    return save(run, figure, "distances", pd.concat(frames))


def grid(run: Run, summary: pd.DataFrame) -> Figure:
    """Accuracy in percent of every method (rows) under every attack (columns): a number and a shade in each place."""
    table = 100 * summary.pivot_table(index="method", columns="measure", values="mean", sort=False)
    figure, axis = new(run, height=0.6 + 0.19 * len(table))
    axis.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(table.shape):
        value = table.iat[row, column]
        words, colour = ("–", "black") if np.isnan(value) else (f"{value:.0f}", "white" if value > 60 else "black")
        axis.text(column, row, words, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(table.shape[1]), [title(name) for name in table.columns], rotation=30, ha="right")
    axis.set_yticks(range(len(table)), [title(name) for name in table.index], fontsize=7)
    axis.tick_params(length=0)
    return save(run, figure, "grid", table.reset_index())


def sweep_curve(curve: pd.DataFrame, norm: str, venue: str = "neurips") -> Figure:
    """Accuracy in percent against ε of the norm, in a venue's style, from columns eps and accuracy in [0,1]."""
    scale, label = (255, "ε × 255") if norm == "linf" else (1, "ε (ℓ2)")
    with plt.rc_context(cast(Any, style(venue))):
        figure, axes = plt.subplots(figsize=(WIDTHS[venue][0], 2.2))
        axes.plot(scale * curve["eps"], 100 * curve["accuracy"], marker="o", color=COLOURS[1])
        axes.set(xlabel=label, ylabel="accuracy under PGD-20 (%)", ylim=(-2, 102))
        plt.close(figure)
    return figure
