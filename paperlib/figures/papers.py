"""Figures that stand beside one of a paper's own."""

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from paperlib.data import ImageSet, as_float
from paperlib.data.toy import wave_height
from paperlib.figures.names import title
from paperlib.figures.style import COLOURS, MARKERS, WIDTHS, arms, draw, new, save
from paperlib.models.trained import Trained, first_models
from paperlib.runs.run import Run


def decision_boundaries(run: Run, trained: Trained, data: ImageSet) -> Figure:
    """The paper's Figure 3: test points over the predicted class of the plane, one panel a method, its first seed."""
    figure, axes = new(run, 1, len(trained), sharey=True)
    reach = data.images.abs().amax(0) * 1.25
    grids = [torch.linspace(-float(half), float(half), 400) for half in reach]
    plane = torch.cartesian_prod(*grids)
    for axis, (method, model) in zip(np.atleast_1d(axes), first_models(trained).items(), strict=True):
        with torch.no_grad():
            predicted = model(plane).argmax(1).view(400, 400).T
        colours = mpl.colors.ListedColormap(["#BFD9EA", "#F6D5C0"])
        axis.pcolormesh(*grids, predicted, cmap=colours, vmin=0, vmax=1, rasterized=True)
        for label, (colour, marker) in enumerate(zip(COLOURS[1:3], "ox", strict=True)):
            points = data.images[data.labels == label]
            axis.scatter(*points.T, s=5, c=colour, marker=marker, linewidths=0.6, label=data.classes[label])
        axis.set(title=title(method), xlabel="$x_1$")
    np.atleast_1d(axes)[0].set_ylabel("$x_2$")
    np.atleast_1d(axes)[-1].legend(loc="lower right")
    return save(run, figure, "decision_boundaries")


def margins(run: Run, distances: pd.DataFrame) -> Figure:
    """How far samples lie from the decision boundary: columns method, direction, distance; all seeds together."""
    directions = list(dict.fromkeys(distances["direction"]))
    figure, axes = new(run, 1, len(directions), sharey=True)
    for axis, direction in zip(axes, directions, strict=True):
        for method, part in distances[distances["direction"] == direction].groupby("method", sort=False):
            values = np.sort(part["distance"])
            axis.step(values, 1 - np.arange(len(values)) / len(values), where="post", label=title(str(method)))
        axis.axvline(run.settings.eps, color="0.6", linestyle=":", linewidth=1)
        axis.set(title=f"{direction} the manifold", xlabel="distance to the boundary (dotted: ε of the attack)")
    axes[0].set_ylabel("share of samples beyond")
    axes[0].legend()
    return save(run, figure, "margins", distances)


def targets(run: Run, example: ImageSet, sources: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> Figure:
    """The paper's Figure 2: where the image of a set of one is pointed to, g(x, t) of each class, a row a source."""
    image, classes = as_float(example.images).to(run.device), example.classes[:10]
    figure, axes = new(run, len(sources), len(classes) + 1, height=0.56 * len(sources) + 0.2, squeeze=False)
    for row, (source, target) in enumerate(sources.items()):
        (directions,) = target(image, torch.arange(len(classes), device=image.device)[None])
        largest = float(directions.abs().max())  # becomes black or white on mid-grey
        panels = [image, *(0.5 + direction[None] / (2 * largest) for direction in directions)]
        names = [f"x: {example.classes[int(example.labels)]}", *classes]
        for axis, panel, name in zip(axes[row], panels, names, strict=True):
            draw(axis, panel)
            axis.set_title(name if row == 0 else "", fontsize=6)
        axes[row][0].set_ylabel(title(source), rotation=0, ha="right", va="center", fontsize=7)
    return save(run, figure, "targets")


def targeted(
    run: Run, original: Tensor, changed: Mapping[str, Tensor], classes: Sequence[str], name: str = "targeted_images"
) -> Figure:
    """PAG's Figures 4 and 5: images changed toward each class, N×C×… a method in order of the target class."""
    figure, axes = new(run, 1 + len(changed), len(classes), height=0.58 * (1 + len(changed)) + 0.2)
    for row, (method, images) in enumerate({"original": original, **changed}.items()):
        for column, axis in enumerate(axes[row]):
            draw(axis, images[column : column + 1])
            if row == 0:
                axis.set_title(classes[column], fontsize=7)
        axes[row][0].set_ylabel(title(method), rotation=0, ha="right", va="center", fontsize=7)
    return save(run, figure, name)


def tradeoff(run: Run, summary: pd.DataFrame, reported: Mapping[str, Mapping[str, float]]) -> Figure:
    """The paper's Figure 5: accuracy against λ, measured (solid, with 95 % intervals) and as the paper has it (dashed)."""
    measured = summary["measure"].isin(["clean", "pgd_linf", "pgd_l2"])
    rows = summary[summary["method"].str.startswith("lambda_") & measured].copy()
    rows["weight"] = rows["method"].str.removeprefix("lambda_").astype(float)
    paper = {float(name.removeprefix("lambda_")): row for name, row in reported.items()}
    figure, axis = new(run)
    for number, (measure, part) in enumerate(rows.groupby("measure", sort=False)):
        part, colour = part.sort_values("weight"), COLOURS[number + 1]
        axis.errorbar(part["weight"], 100 * part["mean"], arms(part), marker=MARKERS[number],
                      markersize=4, linewidth=1, capsize=2, color=colour, label=title(str(measure)))  # fmt: skip
        axis.plot(list(paper), [row[str(measure)] for row in paper.values()], "--", color=colour, linewidth=0.8,
                  marker=MARKERS[number], markersize=3, markerfacecolor="none")  # fmt: skip
    axis.set(xscale="log", xlabel="λ (dashed: the paper, at its own scale)", ylabel="accuracy (%)", ylim=(-2, 102))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return save(run, figure, "tradeoff", rows)


def planes(run: Run, values: Mapping[str, np.ndarray], data: ImageSet, eps: float) -> Figure:
    """RAAT's Figures 1 and 3 on points in [0,1]²: prediction, its boundary, and the training points in their ε-boxes.

    `values` are z_1 − z_0 on a square grid, by method; the dashed line is the true boundary.
    """
    figure, axes = new(run, 1, len(values), sharey=True, height=WIDTHS[run.settings.venue][0] * 0.38)
    axis_values = np.linspace(0, 1, len(next(iter(values.values()))))
    for axis, (method, plane) in zip(np.atleast_1d(axes), values.items(), strict=True):
        colours = mpl.colors.ListedColormap(["#BFD9EA", "#F6D5C0"])
        axis.pcolormesh(axis_values, axis_values, plane > 0, cmap=colours, vmin=0, vmax=1, rasterized=True)
        axis.contour(axis_values, axis_values, plane, levels=[0.0], colors="#B00000", linewidths=1)
        axis.plot(axis_values, wave_height(axis_values), color="0.3", linestyle="--", linewidth=0.8)
        for label, (colour, marker) in enumerate(zip(COLOURS[1:3], "ox", strict=True)):
            points = data.images[data.labels == label].numpy()
            axis.scatter(*points.T, s=6, c=colour, marker=marker, linewidths=0.6)
            boxes = [mpl.patches.Rectangle((x - eps, y - eps), 2 * eps, 2 * eps) for x, y in points]
            axis.add_collection(
                mpl.collections.PatchCollection(boxes, facecolor="none", edgecolor=colour, linewidth=0.2, alpha=0.6)
            )
        axis.set(title=title(method), xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 1], yticks=[0, 1])
    return save(run, figure, "planes")


def gaussian(run: Run, gaps: pd.DataFrame, needed: pd.DataFrame) -> Figure:
    """RAAT's Theorem 1: errors by dimension with and without consistency, and the samples needed beside c √d."""
    figure, (left, right) = new(run, 1, 2)
    for number, ((estimator, error), part) in enumerate(gaps.groupby(["estimator", "error"], sort=False)):
        left.plot(part["dimension"], 100 * part["value"], marker=MARKERS[number], markersize=3, linewidth=1,
                  color=COLOURS[1 + number // 2], linestyle="-" if error == "robust" else ":",
                  label=f"{estimator}, {error}")  # fmt: skip
    left.set(xscale="log", xlabel="dimension d", ylabel="error (%)", ylim=(-2, 102))
    left.legend(fontsize=6)
    enough, dimensions = needed[np.isfinite(needed["count"])], needed["dimension"].unique()
    for number, (kind, part) in enumerate(enough.groupby("samples", sort=False)):
        right.plot(part["dimension"], part["count"], marker=MARKERS[number], markersize=3, linewidth=1,
                   color=COLOURS[1 + number], label=f"{kind} samples")  # fmt: skip
    right.set(xscale="log", xlabel="dimension d", ylabel="samples for 1 % robust error")
    if enough.empty:
        right.text(0.5, 0.5, "more than were tried", ha="center", transform=right.transAxes)
        return save(run, figure, "gaussian", needed)
    last = enough.iloc[-1]
    right.plot(dimensions, last["count"] * np.sqrt(dimensions / last["dimension"]), color="0.5", linestyle="--",
               linewidth=0.8, label="∝ √d")  # fmt: skip
    right.set(yscale="log")
    right.legend(fontsize=6)
    return save(run, figure, "gaussian", needed)


def landscapes(run: Run, values: Mapping[str, np.ndarray], reach: float) -> Figure:
    """The loss over the radial × tangential plane, surface above contours, a column a method, all on one colour scale.

    `values` are square grids over ± `reach` in L2, rows along the tangential direction.
    """
    figure, axes = new(run, 2, len(values), sharey="row", squeeze=False, height=WIDTHS[run.settings.venue][0] * 0.42)
    low, high = (float(edge(list(values.values()))) for edge in (np.min, np.max))
    levels = np.linspace(low, high, 13)
    axis_values = np.linspace(-reach, reach, len(next(iter(values.values()))))
    across, along = np.meshgrid(axis_values, axis_values)
    for place, (above, axis, (method, grid)) in enumerate(zip(*axes, values.items(), strict=True)):
        above.remove()
        surface = figure.add_subplot(2, len(values), place + 1, projection="3d")
        surface.plot_surface(across, along, grid, cmap="viridis", vmin=low, vmax=high, rasterized=True)
        surface.set_box_aspect(None, zoom=1.5)
        surface.set(title=title(method), zlim=(low, high), xticks=[], yticks=[], zticks=[])
        drawn = axis.contourf(axis_values, axis_values, grid, levels, cmap="viridis")
        axis.contour(axis_values, axis_values, grid, levels, colors="white", linewidths=0.3)
        axis.plot(0, 0, "+", color="white", markersize=5)
        axis.set(xlabel="radial (L2)", aspect="equal")
    axes[1][0].set_ylabel("tangential (L2)")
    figure.colorbar(drawn, ax=axes[1].tolist(), label="loss", shrink=0.8, format="%.2g")
    rows = [
        (method, a, b, grid[j, i])
        for method, grid in values.items()
        for j, b in enumerate(axis_values)
        for i, a in enumerate(axis_values)
    ]
    return save(run, figure, "landscapes", pd.DataFrame(rows, columns=["method", "radial", "tangential", "loss"]))


def depth_sheet(run: Run, images: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """Images N×C×H×W in [0,1] above maps N×H×W by name, each map on its own scale from black to white."""
    figure, axes = new(run, 1 + len(maps), 1, height=WIDTHS[run.settings.venue][0] / len(images) * (1 + len(maps)) * 1.15)
    axes[0].imshow(np.concatenate(list(images.cpu().permute(0, 2, 3, 1).numpy()), axis=1))
    for axis, values in zip(axes[1:], maps.values(), strict=True):
        axis.imshow(_strip(values), cmap="gray")
    for axis, name in zip(axes, ["image", *maps], strict=True):
        axis.set_title(", ".join(map(title, name.split(", "))), fontsize=7)
        axis.set_axis_off()
    return save(run, figure, "depth")


def _strip(maps: Tensor) -> np.ndarray:
    """Maps N×H×W side by side, each stretched to [0,1]."""
    low, high = maps.flatten(1).amin(1)[:, None, None], maps.flatten(1).amax(1)[:, None, None]
    return np.concatenate(list(((maps - low) / (high - low).clamp_min(1e-12)).cpu().numpy()), axis=1)


def changes(run: Run, name: str, images: Tensor, pairs: Mapping[str, tuple[Tensor, Tensor]], what: str) -> Figure:
    """Maps N×h×w before and after an attack, and their signed difference with contours where it is large, by method.

    A row for each image of N×C×H×W, the first of those that the maps are of: the image, then for each method its two maps
    and the difference, red where the map rose and blue where it fell, on one scale for all. Contours are at half of the
    largest change of the figure.
    """
    count, side = len(images), images.shape[-1]
    pairs = {method: (before[:count], after[:count]) for method, (before, after) in pairs.items()}
    width = WIDTHS[run.settings.venue][0]
    columns = 1 + 3 * len(pairs)
    figure, axes = new(run, count, columns, height=width / columns * count * 1.1 + 0.3, squeeze=False)
    large = max(float((after - before).abs().max()) for before, after in pairs.values()) or 1.0
    extent = (0, side, side, 0)
    for row in range(count):
        axes[row][0].imshow(images[row].cpu().permute(1, 2, 0).numpy())
        for number, (method, maps) in enumerate(pairs.items()):
            before, after = (part[row].cpu().numpy() for part in maps)
            high = max(float(before.max()), float(after.max()))
            place = axes[row][1 + 3 * number :]
            for axis, values in zip(place, (before, after), strict=False):
                axis.imshow(values, cmap="magma", vmin=min(0.0, float(before.min())), vmax=high, extent=extent)
            drawn = place[2].imshow(after - before, cmap="RdBu_r", vmin=-large, vmax=large, extent=extent)
            if float(np.abs(after - before).max()) > large / 2:
                place[2].contour(
                    np.abs(after - before), [large / 2], colors="black", linewidths=0.6, extent=extent, origin="upper"
                )
            if row == 0:
                heading = f"{textwrap.fill(title(method), 14)}:\n{what}"
                for axis, words in zip(place, (heading, "under\nattack", "change"), strict=False):
                    axis.set_title(words, fontsize=6)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[:, -1].tolist(), shrink=0.6).ax.tick_params(labelsize=5)
    return save(run, figure, name)


def correlations(run: Run, found: pd.DataFrame, robust: str) -> Figure:
    """Rank correlation of each measure with robust accuracy, alone and beside the gradient's size, with 95 % intervals."""
    figure, axis = new(run, height=0.7 + 0.28 * len(found))
    for number, (part, label) in enumerate((("ρ", "alone"), ("beside the gradient", "beside the gradient's size"))):
        own = found[part].astype(float)
        places = np.arange(len(own))[::-1] + 0.14 - 0.28 * number
        arms = np.array([own["value"] - own["low"], own["high"] - own["value"]]).clip(min=0)
        axis.errorbar(own["value"], places, xerr=arms, fmt=MARKERS[number], color=COLOURS[1 + number],
                      markersize=4, linewidth=1, label=label)  # fmt: skip
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_yticks(np.arange(len(found))[::-1], [title(name) for name in found.index])
    axis.set(xlim=(-1.05, 1.05), xlabel=f"Spearman's ρ with accuracy under {title(robust)}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return save(run, figure, "correlations", found.rename_axis("measure").reset_index())


def against(run: Run, parts: Mapping[str, pd.DataFrame], measures: Sequence[str], robust: str) -> Figure:
    """Every measure of each model against its robust accuracy: one panel a measure, one mark a model.

    `parts` has the rows of `measures.by_model` of each kind of model, whose marks differ; the first are filled.
    """
    columns = min(5, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = new(run, rows, columns, height=0.4 + 1.45 * rows, sharey=True, squeeze=False)
    for axis, name in itertools.zip_longest(axes.flat, measures):
        if name is None:
            axis.set_axis_off()
            continue
        for number, (kind, part) in enumerate(parts.items()):
            axis.scatter(part[name], 100 * part[robust], s=9, linewidths=0.7, marker=MARKERS[number], label=kind,
                         facecolor="none" if number else COLOURS[1], edgecolor=COLOURS[1 + number])  # fmt: skip
        axis.set_title(textwrap.fill(title(name), 20), fontsize=7)
        axis.tick_params(labelsize=6)
        axis.locator_params(axis="x", nbins=3)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{title(robust)} (%)", fontsize=7)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts), fontsize=7)
    drawn = pd.concat(parts, names=["kind"])[[*measures, robust]]
    return save(run, figure, "measures", drawn.reset_index())


def front(run: Run, found: pd.DataFrame, robust: str) -> Figure:
    """Clean and robust accuracy and cost side by side, the most robust method first; filled where nothing is better in all.

    `found` is of `measures.front`.
    """
    rows = found.sort_values(robust, ascending=False)
    places = np.arange(len(rows))[::-1]
    labels = {"clean": "no attack (%)", robust: f"{title(robust)} (%)", "cost": "cost of a step (plain steps)"}
    figure, axes = new(run, 1, len(labels), height=0.8 + 0.17 * len(rows), sharey=True)
    for axis, (name, label), colour in zip(axes, labels.items(), COLOURS[1:], strict=False):
        if name != "cost":
            axis.hlines(places, rows[f"{name} low"], rows[f"{name} high"], color=colour, linewidth=1)
        faces = np.where(rows["front"], colour, "white")
        axis.scatter(rows[name], places, s=18, color=faces, edgecolor=colour, linewidths=0.8, zorder=3)
        axis.set_xlabel(label)
        axis.grid(axis="y", linewidth=0.3)
    axes[0].set_yticks(places, [title(str(name)) for name in rows.index])
    for axis in axes[:2]:
        axis.set_xlim(-3, 103)
    axes[2].set_xscale("log", base=2)
    axes[2].xaxis.set_major_formatter("{x:g}")
    return save(run, figure, "front", found.rename_axis("method").reset_index())
