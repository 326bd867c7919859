"""Close-up of one image under attack: a figure of a run, or a picture that a notebook redraws at every change."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from paperlib.attacks import Norm, lengths
from paperlib.figures.style import COLOURS, WIDTHS, new, save, style
from paperlib.geometry.closeup import CloseUp
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

GRID = (2, 4)  # rows and columns of panels
HEIGHT = 0.6  # height of the figure over its width
SCREEN = (8.0, 100)  # width in inches and dots per inch of the redrawn picture
SMALL = 7  # font size in points


def close_up(run: Run[Settings], seen: CloseUp, label: int, classes: Sequence[str], norm: Norm) -> Figure:
    """One image, its adversarial image, the perturbation, the input gradient, attention maps, margin and loss around it."""
    figure, axes = new(run, *GRID, height=WIDTHS[run.settings.venue] * HEIGHT)
    Sheet(axes).show(seen, label, classes, norm)
    return save(run, figure, "close_up", pd.DataFrame({"share": seen.shares.cpu(), "margin": seen.margins.cpu()}))


def on_screen() -> tuple[FigureCanvasAgg, "Sheet"]:
    """Return the canvas that `picture` draws, and its empty sheet. Nothing is displayed yet."""
    width, dots = SCREEN
    fonts = {"font.family": "DejaVu Sans"}  # the print fonts are too fine for a screen
    with plt.style.context(["default", style("wide"), fonts]):
        figure = Figure((width, width * HEIGHT), dpi=dots)
        canvas, sheet = FigureCanvasAgg(figure), Sheet(figure.subplots(*GRID))
    return canvas, sheet


def picture(canvas: FigureCanvasAgg) -> bytes:
    """Return the canvas as PNG. The panels keep their places from the first picture on."""
    canvas.draw()
    canvas.figure.set_layout_engine("none")  # computing the layout takes as long as all the rest
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, format="png", compress_level=1)
    return file.getvalue()


class Sheet:
    """Panels of a close-up, created once; each `show` replaces their content."""

    def __init__(self, axes: Any) -> None:
        *self.images, self.perturbation, self.gradient, looks, looks_attacked, self.path, self.plane = axes.flat
        self.looks = [looks, looks_attacked]
        self.layers = {axis: _layer(axis) for axis in (*self.images, self.perturbation, self.gradient, *self.looks)}
        self.maps = [_layer(axis, cmap="magma", alpha=0.6, interpolation="bilinear") for axis in self.looks]
        for axis, ticks in ((self.path, (0, 0.5, 1)), (self.plane, (-1, 0, 1))):
            axis.set_box_aspect(1)
            axis.tick_params(labelsize=SMALL - 1, pad=1)
            axis.set_xticks(ticks)
        self.path.locator_params(axis="y", nbins=4)
        (self.line,) = self.path.plot([], [], color=COLOURS[1], linewidth=1.2)
        self.path.axhline(0, color="0.6", linewidth=0.8)
        self.path.set_xlim(0, 1)
        self.path.set_xlabel("share of the perturbation", fontsize=SMALL)
        self.losses = self.plane.imshow([[0.0]], origin="lower", interpolation="bilinear", aspect="auto")
        self.plane.plot([0, 1], [0, 0], "o-", color=COLOURS[2], markersize=2.5, linewidth=1)
        self.plane.set_yticks((-1, 0, 1))
        self.plane.yaxis.tick_right()
        self.plane.yaxis.set_label_position("right")
        self.plane.spines[["left", "right"]].set_visible(False)
        self.plane.set_xlabel("along the perturbation", fontsize=SMALL)
        self.plane.set_ylabel("random direction", fontsize=SMALL)
        # Fixed places, since computing them takes a third of the time of a picture.
        self.path.xaxis.set_label_coords(0.5, -0.16)
        self.plane.xaxis.set_label_coords(0.5, -0.16)
        self.plane.yaxis.set_label_coords(1.2, 0.5)
        self.boundary: QuadContourSet | None = None

    def show(self, seen: CloseUp, label: int, classes: Sequence[str], norm: Norm) -> None:
        """Fill the panels. A wrong answer is written in colour."""
        for axis, image, logits, what in zip(
            self.images, seen.images, seen.logits, (f"image: {classes[label]}", "adversarial"), strict=True
        ):
            probability, answer = logits.softmax(0).max(0)
            name = classes[int(answer)] if int(answer) < len(classes) else f"output {int(answer)}"
            self._draw(axis, image, f"{what}\nseen as {name}, {100 * float(probability):.0f} %")
            axis.title.set_color("black" if int(answer) == label else COLOURS[2])
        change = seen.images[1] - seen.images[0]
        size = float(lengths(change[None], norm))
        length = f"ℓ∞ {255 * size:.3g}/255" if norm == "linf" else f"ℓ2 {size:.3g}"
        self._draw(self.perturbation, _on_grey(change), f"perturbation\n{length}")
        self._draw(self.gradient, _on_grey(seen.gradient), f"input gradient\nℓ2 {float(seen.gradient.norm()):.2g}")
        self._show_attention(seen)
        self.line.set_data(seen.shares.cpu().numpy(), seen.margins.cpu().numpy())
        self.path.relim()
        self.path.autoscale_view(scalex=False)
        _set_title(self.path, "margin on the way\nabove zero: wrong")
        self._show_plane(seen)

    def _draw(self, axis: Any, image: Tensor, words: str) -> None:
        height, width = image.shape[-2:]
        self.layers[axis].set_data(image.permute(1, 2, 0).expand(-1, -1, 3).cpu().numpy())
        self.layers[axis].set_extent((0, width, height, 0))
        _set_title(axis, words)

    def _show_attention(self, seen: CloseUp) -> None:
        height, width = seen.images.shape[-2:]
        for number, (axis, layer) in enumerate(zip(self.looks, self.maps, strict=True)):
            what = "no map of places" if seen.saliency is None else seen.looked
            self._draw(
                axis, seen.images[number].mean(0, keepdim=True), f"{what}\nof the {('image', 'adversarial')[number]}"
            )
            layer.set_visible(seen.saliency is not None)
            if seen.saliency is not None:
                layer.set_data(seen.saliency[number].cpu().numpy())
                layer.set_extent((0, width, height, 0))
                layer.set_clim(0, max(float(seen.saliency.max()), 1e-12))

    def _show_plane(self, seen: CloseUp) -> None:
        places, margins = seen.axis.cpu().numpy(), seen.plane_margins.cpu().numpy()
        half = float(places[1] - places[0]) / 2
        edge = (float(places[0]) - half, float(places[-1]) + half)
        low, high = float(seen.losses.min()), float(seen.losses.max())
        self.losses.set_data(seen.losses.cpu().numpy())
        self.losses.set_extent((*edge, *edge))
        self.losses.set_clim(low, high)
        if self.boundary is not None:
            self.boundary.remove()
            self.boundary = None
        if margins.min() < 0 < margins.max():
            self.boundary = self.plane.contour(places, places, margins, levels=[0.0], colors="white", linewidths=1.2)
        self.plane.set(xlim=(places[0], places[-1]), ylim=(places[0], places[-1]))
        _set_title(self.plane, f"loss around\n{low:.2g} (dark) to {high:.2g}")


def _set_title(axis: Any, words: str) -> None:
    axis.set_title(words, fontsize=SMALL, y=1.0, parse_math=False)  # y is fixed to save layout time


def _layer(axis: Any, interpolation: str = "nearest", **how: Any) -> Any:
    """Return an empty image in axes without ticks and frame."""
    axis.set_axis_off()
    return axis.imshow([[0.0]], vmin=0, vmax=1, interpolation=interpolation, **how)


def _on_grey(values: Tensor) -> Tensor:
    """Map signed values to an image in [0,1]: zero is mid-grey, the largest hundredth is black or white."""
    return (0.5 + values / (2 * values.abs().flatten().quantile(0.99).clamp_min(1e-12))).clamp(0, 1)
