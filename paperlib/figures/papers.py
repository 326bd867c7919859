"""Figures to compare with figures of the papers."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from paperlib.data import ImageSet, as_float
from paperlib.data.toy import wave_height
from paperlib.figures.forms import coloured, dots, legend, looks, nothing, stamps, tiles
from paperlib.figures.names import title
from paperlib.figures.plots import beyond, panels
from paperlib.figures.style import COLOURS, MARKERS, WIDTHS, new, save
from paperlib.models.trained import Trained, first_models
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

TWO_CLASSES = mpl.colors.ListedColormap(["#BFD9EA", "#F6D5C0"])


def decision_boundaries(run: Run[Settings], trained: Trained, data: ImageSet) -> Figure:
    """PAG's Figure 3: test points over the predicted class of the plane, one panel for each method, its first seed."""
    figure, axes = tiles(run, [title(method) for method in trained], sharey=True)
    reach = data.images.abs().amax(0) * 1.25
    grids = [torch.linspace(-float(half), float(half), 400) for half in reach]
    plane = torch.cartesian_prod(*grids)
    for axis, model in zip(axes, first_models(trained).values(), strict=True):
        with torch.no_grad():
            predicted = model(plane).argmax(1).view(400, 400).T
        axis.pcolormesh(*grids, predicted, cmap=TWO_CLASSES, vmin=0, vmax=1, rasterized=True)
        for label, (colour, marker) in enumerate(zip(COLOURS[1:3], "ox", strict=True)):
            points = data.images[data.labels == label]
            axis.scatter(*points.T, s=5, c=colour, marker=marker, linewidths=0.6, label=data.classes[label])
        axis.set(xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
    legend(figure, axes)
    return save(run, figure, "decision_boundaries")


def margins(run: Run[Settings], distances: pd.DataFrame, eps: float) -> Figure:
    """Share of samples farther from the decision boundary than a distance, up to 60, across and along the manifold.

    `distances` of all seeds: columns method, direction, distance.
    """
    named = pd.DataFrame({"panel": distances["direction"] + " the manifold", "line": distances["method"],
                          "distance": distances["distance"]})  # fmt: skip
    return beyond(run, named, "margins", "distance (dotted: ε)", 60.0, eps)


def distance_curves(run: Run[Settings], distances: pd.DataFrame) -> Figure:
    """Share of images that an attack needs more than a distance for, a panel for each attack.

    `distances` has columns attack, method, each.
    """
    named = distances.rename(columns={"attack": "panel", "method": "line", "each": "distance"}).explode("distance")
    return beyond(run, named.astype({"distance": float}), "distances", "L2 distance")


def targets(run: Run[Settings], example: ImageSet, sources: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> Figure:
    """PAG's Figure 2: one image x and its target gradients g(x, t) for each class t, a row for each source."""
    image, classes = as_float(example.images).to(run.device), example.classes[:10]
    rows = {}
    for source, target in sources.items():
        (directions,) = target(image, torch.arange(len(classes), device=image.device)[None])
        rows[source] = [image[0], *(0.5 + directions / (2 * directions.abs().max()))]  # the largest value is black or white
    return save(run, stamps(run, rows, [f"x: {example.classes[int(example.labels)]}", *classes]), "targets")


def targeted(
    run: Run[Settings],
    original: Tensor,
    changed: Mapping[str, Tensor],
    classes: Sequence[str],
    name: str = "targeted_images",
) -> Figure:
    """PAG's Figures 4 and 5: images, and below them the same images changed toward each class, a row for each method.

    `changed` has N×C×H×W by method, in the order of the target class.
    """
    rows = {"original": list(original), **{key: list(own) for key, own in changed.items()}}
    return save(run, stamps(run, rows, classes), name)


def tradeoff(run: Run[Settings], summary: pd.DataFrame, reported: Mapping[str, Mapping[str, float]]) -> Figure:
    """PAG's Figure 5: accuracy against λ, measured (solid, with 95 % intervals) and as the paper reports it (dashed)."""
    measured = summary["measure"].isin(["clean", "pgd_linf", "pgd_l2"]) & summary["method"].str.startswith("lambda_")
    rows = [
        (row.measure, float(row.method.removeprefix("lambda_")), 100 * row.mean, 100 * row.low, 100 * row.high)
        for row in summary[measured].itertuples(index=False)
    ]
    rows += [
        (f"{measure}, as reported", float(name.removeprefix("lambda_")), value, value, value)
        for name, row in reported.items()
        for measure, value in row.items()
    ]
    return panels(run, pd.DataFrame(rows, columns=["line", "λ", "value", "low", "high"]), "tradeoff", x="λ")


def planes(run: Run[Settings], values: Mapping[str, np.ndarray], data: ImageSet, eps: float) -> Figure:
    """RAAT's Figures 1 and 3 on points in [0,1]²: prediction, its boundary, and the training points in their ε-boxes.

    The dashed line is the true boundary. `values` are z_1 − z_0 on a square grid, by method.
    """
    figure, axes = tiles(run, [title(method) for method in values], ratio=1.0, sharey=True)
    axis_values = np.linspace(0, 1, len(next(iter(values.values()))))
    for axis, plane in zip(axes, values.values(), strict=True):
        axis.pcolormesh(axis_values, axis_values, plane > 0, cmap=TWO_CLASSES, vmin=0, vmax=1, rasterized=True)
        axis.contour(axis_values, axis_values, plane, levels=[0.0], colors="#B00000", linewidths=1)
        axis.plot(axis_values, wave_height(axis_values), color="0.3", linestyle="--", linewidth=0.8)
        for label, (colour, marker) in enumerate(zip(COLOURS[1:3], "ox", strict=True)):
            points = data.images[data.labels == label].numpy()
            axis.scatter(*points.T, s=6, c=colour, marker=marker, linewidths=0.6)
            boxes = [mpl.patches.Rectangle((x - eps, y - eps), 2 * eps, 2 * eps) for x, y in points]
            axis.add_collection(
                mpl.collections.PatchCollection(boxes, facecolor="none", edgecolor=colour, linewidth=0.2, alpha=0.6)
            )
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 1], yticks=[0, 1])
    return save(run, figure, "planes")


def gaussian(run: Run[Settings], gaps: pd.DataFrame, needed: pd.DataFrame) -> Figure:
    """RAAT's Theorem 1: errors against dimension, with and without consistency, and the samples needed beside c √d."""
    figure, (left, right) = tiles(run, ["error (%)", "samples for 1 % robust error"])
    for (estimator, error), part in gaps.groupby(["estimator", "error"], sort=False):
        place = list(gaps["estimator"].unique()).index(estimator)
        left.plot(part["dimension"], 100 * part["value"], marker=MARKERS[place], markersize=3, linewidth=1,
                  color=COLOURS[1 + place], linestyle="-" if error == "robust" else ":",
                  label=f"{estimator}, {error}")  # fmt: skip
    left.set(xscale="log", xlabel="dimension d", ylim=(-2, 102))
    enough, dimensions = needed[np.isfinite(needed["count"])], needed["dimension"].unique()
    for number, (kind, part) in enumerate(enough.groupby("samples", sort=False), 3):
        right.plot(part["dimension"], part["count"], marker=MARKERS[number], markersize=3, linewidth=1,
                   color=COLOURS[number], label=f"{kind} samples")  # fmt: skip
    right.set(xscale="log", xlabel="dimension d")
    if enough.empty:
        right.text(0.5, 0.5, "more than were tried", ha="center", transform=right.transAxes)
    else:
        last = enough.iloc[-1]
        right.plot(dimensions, last["count"] * np.sqrt(dimensions / last["dimension"]), color="0.5", linestyle="--",
                   linewidth=0.8, label="∝ √d")  # fmt: skip
        right.set(yscale="log")
    legend(figure, [left, right])
    return save(run, figure, "gaussian", needed)


def landscapes(run: Run[Settings], values: Mapping[str, np.ndarray], reach: float) -> Figure:
    """The loss over the radial × tangential plane, a panel for each method, on one colour scale; the cross is the image.

    `values` are square grids over ± `reach` in L2, rows along the tangential direction.
    """
    figure, axes = tiles(run, [title(method) for method in values], least=1.3, ratio=1.2)
    levels = np.linspace(min(map(np.min, values.values())), max(map(np.max, values.values())), 13)
    places = np.linspace(-reach, reach, len(next(iter(values.values()))))
    for axis, grid in zip(axes, values.values(), strict=True):
        drawn = axis.contourf(places, places, grid, levels, cmap="viridis")
        axis.contour(places, places, grid, levels, colors="white", linewidths=0.3)
        axis.plot(0, 0, "+", color="white", markersize=5)
        axis.set(xlabel="radial (L2)", aspect="equal")
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("tangential (L2)")
    figure.colorbar(drawn, ax=axes, label="task loss", ticks=MaxNLocator(5), location="bottom", aspect=40, shrink=0.6)
    frames = [
        pd.DataFrame(grid, places, places)
        .rename_axis("tangential")
        .melt(ignore_index=False, var_name="radial", value_name="loss")
        for grid in values.values()
    ]
    return save(run, figure, "landscapes", pd.concat(frames, keys=values, names=["method"]).reset_index())


def depth_sheet(run: Run[Settings], images: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Images N×C×H×W in [0,1] above maps N×H×W by name, each map on its own scale from black to white."""
    rows = {"image": list(images), **{name: [coloured(one) for one in own] for name, own in maps.items()}}
    return save(run, stamps(run, rows), "depth")


def changes(run: Run[Settings], name: str, images: Tensor, pairs: Mapping[str, tuple[Tensor, Tensor]], what: str) -> Figure:
    """Maps before and after an attack and their difference by method: red where the map rose, blue where it fell.

    A column for each image N×C×H×W; maps N×h×w of further images are left out. Each map has its own colour scale; all
    differences have one, which is named. If all methods share the map before the attack, it is shown once. The maps under
    attack are then left out, since the differences determine them.
    """
    pairs = {method: (before[: len(images)], after[: len(images)]) for method, (before, after) in pairs.items()}
    large = max(float((after - before).abs().max()) for before, after in pairs.values()) or 1.0
    first = next(iter(pairs.values()))[0]
    shared = all(torch.equal(before, first) for before, _ in pairs.values())
    rows = {"image": list(images)} | ({what: [coloured(one, "magma") for one in first]} if shared else {})
    for method, (before, after) in pairs.items():
        if not shared:
            rows[f"{title(method)}: {what}"] = [coloured(one, "magma") for one in before]
            rows[f"{title(method)}: under attack"] = [coloured(one, "magma") for one in after]
        rows[f"{title(method)}: change (±{large:.2g})"] = [coloured(one, "RdBu_r", -large, large) for one in after - before]
    return save(run, stamps(run, rows), name)


def correlations(run: Run[Settings], found: pd.DataFrame, robust: str) -> Figure:
    """Rank correlation of each measure with robust accuracy, alone and given the gradient's size, with 95 % intervals."""
    parts = {"ρ": "alone", "beside the gradient": "beside the gradient's size"}
    data = pd.concat(
        [found[part].astype(float).assign(line=label, row=list(map(title, found.index))) for part, label in parts.items()]
    ).dropna(subset="value")
    table = found.rename_axis("measure").reset_index()
    if data.empty:
        return nothing(run, "correlations", table, "fewer than five methods have learnt: there is no rank correlation")
    figure, axis = new(run, height=0.8 + 0.24 * data["row"].nunique())
    dots(axis, data, looks(list(parts.values())))
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(xlim=(-1.05, 1.05), xlabel=f"Spearman's ρ with {title(robust)}")
    legend(figure, [axis])
    return save(run, figure, "correlations", table)


def against(run: Run[Settings], parts: Mapping[str, pd.DataFrame], measures: Sequence[str], robust: str) -> Figure:
    """Robust accuracy of each model against each of its measures: one panel per measure, one mark per model.

    `parts` has the rows of `measures.by_model` for each kind of model; kinds have different marks. A value beyond three
    interquartile ranges from the quartiles is an arrow at the edge of its panel.
    """
    drawn = pd.concat(parts, names=["kind"])[[*measures, robust]]
    if drawn.empty:
        return nothing(run, "measures", drawn, "no model has learnt")
    figure, axes = tiles(run, [title(name) for name in measures], least=1.0, ratio=1.0, sharey=True)
    kinds = {kind: part for kind, part in parts.items() if len(part)}
    for axis, name in zip(axes, measures, strict=True):
        low, high = drawn[name].quantile([0.25, 0.75])
        low, high = low - 3 * (high - low), high + 3 * (high - low)
        for kind, look in looks(list(kinds)).items():
            part = kinds[kind]
            for marker, chosen in {
                look["marker"]: part[name].between(low, high), "<": part[name] < low, ">": part[name] > high,
            }.items():  # fmt: skip
                axis.scatter(part.loc[chosen, name].clip(low, high), 100 * part.loc[chosen, robust], s=10, linewidths=0.7,
                             marker=marker, facecolor="none", edgecolor=look["color"],
                             label=kind if marker == look["marker"] else None)  # fmt: skip
        axis.title.set_fontsize(7)
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(f"{title(robust)} (%)", fontsize=8)
    legend(figure, axes)
    return save(run, figure, "measures", drawn.reset_index())


def front(run: Run[Settings], found: pd.DataFrame, robust: str) -> Figure:
    """Clean accuracy, robust accuracy and cost of each method side by side, the most robust first; filled: Pareto front.

    `found` is of `measures.front`. On the front no other method is at least as good in all three, and better in one.
    """
    rows = found.sort_values(robust, ascending=False)
    labels = {"clean": "no attack (%)", robust: f"{title(robust)} (%)", "cost": "cost (plain steps)"}
    kinds = {True: "on the Pareto front of the three", False: "not on it"}
    shape = (1, 3) if WIDTHS[run.settings.venue] > 5 else (3, 1)
    figure, axes = new(run, *shape, height=0.4 + shape[0] * (0.5 + 0.17 * len(rows)), sharey=True)
    filled = {"color": COLOURS[1], "marker": "o"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        ends = [rows.get(f"{name} {end}", rows[name]) for end in ("low", "high")]
        data = pd.DataFrame({"row": list(map(title, rows.index)), "line": rows["front"].map(kinds), "value": rows[name],
                             "low": ends[0], "high": ends[1]})  # fmt: skip
        dots(axis, data, {kinds[True]: filled, kinds[False]: filled | {"markerfacecolor": "white"}})
        axis.set_xlabel(label)
    for axis in axes[:2]:
        axis.set_xlim(-3, 103)
    axes[2].set_xscale("log", base=2)
    axes[2].xaxis.set_major_formatter("{x:g}")
    legend(figure, axes)
    return save(run, figure, "front", found.rename_axis("method").reset_index())
