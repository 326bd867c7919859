"""The loss around an image in radial and tangential directions, and the growth of a perturbation inside the network."""

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.attacks import Attack, Loss, ascent, attack_loss, each_image, margin, pgd
from paperlib.data import ImageSet, as_float, chunk_size
from paperlib.evaluation import by_image, measuring
from paperlib.evaluation.intervals import mean_interval
from paperlib.geometry import layer_inputs, weighted_layers
from paperlib.geometry.radial import radial
from paperlib.methods import outputs
from paperlib.methods.baselines import Task, task_loss
from paperlib.models.trained import Trained, each_model
from paperlib.runs.run import Run

if TYPE_CHECKING:
    from paperlib.studies.gfa import GfaSettings
    from paperlib.studies.matrix import MatrixSettings

LandscapeRun: TypeAlias = "Run[GfaSettings | MatrixSettings]"

CHUNK = 250  # most images measured together


def directions(model: nn.Module, images: Tensor, labels: Tensor, eps: float, loss: Loss) -> dict[str, Tensor]:
    """Return unit directions N×…: radial (see `radial`), random tangential, adversarial, and the latter's two parts."""
    unit = radial(model, images)

    def across(change: Tensor) -> Tensor:
        return change - each_image((change * unit).flatten(1).sum(1), images) * unit

    attacked = pgd(model, images, labels, eps=eps, norm="l2", steps=20, step_size=eps / 5, loss=loss)
    adversarial = attacked - images
    return {
        "radial": unit,
        "random tangential": ascent(across(torch.randn_like(images)), "l2"),
        "adversarial": ascent(adversarial, "l2"),
        "its tangential part": ascent(across(adversarial), "l2"),
        "its radial part": ascent(adversarial - across(adversarial), "l2"),
    }


def _on(run: LandscapeRun, data: ImageSet) -> tuple[Tensor, Tensor]:
    return as_float(data.images).to(run.device), data.labels.to(run.device)


def profiles(run: LandscapeRun, trained: Trained, data: ImageSet, points: int = 21) -> pd.DataFrame:
    """Measure the change of the task loss from the image along each of `directions`.

    Columns: panel, line, "distance (L2)", value, low, high. Values are means over images and seeds, with the interval
    ± 1.96 standard errors. Points may leave [0,1].
    """
    settings, rows = run.settings, []
    steps = np.linspace(0, settings.landscape_reach, points)
    for method, members in trained.items():
        found: dict[tuple[str, float], list[Tensor]] = {}
        for seed, member in members.items():
            with measuring(run, seed, member) as model:
                images, labels = _on(run, data)
                ways = directions(model, images, labels, settings.landscape_reach / 2, settings.task)
                with torch.no_grad():
                    start = task_loss(model(images), labels, settings.task)
                    for name, way in ways.items():
                        for distance in steps:
                            change = task_loss(model(images + float(distance) * way), labels, settings.task) - start
                            found.setdefault((name, float(distance)), []).append(change.cpu())
        for (name, distance), parts in found.items():
            each = torch.stack(parts).mean(0).numpy()
            rows.append((name, method, distance, *mean_interval(each)))
    return pd.DataFrame(rows, columns=["panel", "line", "distance (L2)", "value", "low", "high"])


def surfaces(run: LandscapeRun, trained: Trained, data: ImageSet, resolution: int = 21) -> dict[str, np.ndarray]:
    """Measure each first model's mean task loss over the plane of the radial and the adversarial-tangential direction.

    The grid resolution×resolution covers ± `landscape_reach` in L2, rows along the tangential direction.
    """
    settings, found = run.settings, {}
    axis = np.linspace(-settings.landscape_reach, settings.landscape_reach, resolution)
    for method, members in trained.items():
        seed, member = next(iter(members.items()))
        with measuring(run, seed, member) as model:
            images, labels = _on(run, data)
            ways = directions(model, images, labels, settings.landscape_reach / 2, settings.task)
            along, across = ways["radial"], ways["its tangential part"]
            with torch.no_grad():
                points = [[images + float(a) * along + float(b) * across for a in axis] for b in axis]
                grid = [[float(task_loss(model(x), labels, settings.task).mean()) for x in row] for row in points]
        found[method] = np.array(grid)
    return found


def flatness(run: LandscapeRun, trained: Trained, data: ImageSet) -> pd.DataFrame:
    """Measure minus the rise of the margin loss at half of `landscape_reach` from each image: rows as from `evaluate_each`.

    The unit is the clean outputs' spread over classes, so that smaller outputs do not count as flatter. The direction is
    the tangential part of PGD's perturbation on the margin, whose gradient does not vanish for outputs near their targets.
    """
    settings, rows = run.settings, []
    size, together = settings.landscape_reach / 2, chunk_size(data.images, CHUNK)
    for method, seed, member in each_model(trained):
        found: list[tuple[Tensor, ...]] = []
        with measuring(run, seed, member) as model:
            for start in range(0, len(data), together):
                images, labels = _on(run, data[start : start + together])
                way = directions(model, images, labels, size, "margin")["its tangential part"]
                with torch.no_grad():
                    clean, moved = outputs(model, images), outputs(model, images + size * way)
                found.append((clean.std(1).cpu(), (margin(clean, labels) - margin(moved, labels)).cpu()))
        spread, fall = (torch.cat(parts) for parts in zip(*found, strict=True))
        each = (fall / spread.median().clamp_min(torch.finfo(spread.dtype).tiny)).double().numpy()
        rows.append((method, seed, "flatness", each))
    return by_image(rows)


def gradient_sizes(run: LandscapeRun, trained: Trained, data: ImageSet, task: Task) -> pd.DataFrame:
    """Measure the input gradients of each method's first model: median ‖∇ₓL‖₂ and share of exact zeros (%), by loss.

    The losses are the task loss, cross-entropy and the margin in units of the outputs' spread. Outputs near their targets
    have hardly any gradient of a squared error, and attacks along it fail.
    """
    rows = {}
    losses: dict[str, Loss] = {"task loss": task, "cross-entropy": "ce", "margin": "margin"}
    for method, members in trained.items():
        with measuring(run, *next(iter(members.items()))) as model:
            images, labels = _on(run, data)
            row: dict[tuple[str, str], float] = {}
            for name, loss in losses.items():
                leaf = images.detach().requires_grad_(True)
                logits = outputs(model, leaf)
                scale = float(logits.detach().std(1).median()) if loss == "margin" else 1.0
                (gradient,) = torch.autograd.grad((attack_loss(logits, labels, loss) / scale).sum(), leaf)
                sizes = gradient.flatten(1).norm(dim=1)
                row[name, "median"] = float(sizes.median())
                row[name, "zeros (%)"] = 100 * float((sizes == 0).float().mean())
        rows[method] = row
    return pd.DataFrame(rows).T


@torch.no_grad()
def amplification(run: LandscapeRun, trained: Trained, data: ImageSet, attack: Attack) -> pd.DataFrame:
    """Measure ‖Δh‖ / ‖h‖ at the input of every weighted layer under attack: line, layer (from 1), value, low, high.

    Values are means over images and seeds, with the interval ± 1.96 standard errors.
    """
    rows = []
    for method, members in trained.items():
        found = []
        for seed, member in members.items():
            with measuring(run, seed, member) as model:
                images, labels = _on(run, data)
                names = weighted_layers(model, images[:2])
                moved = attack(model, images, labels)
                with layer_inputs(model, names) as clean:
                    model(images)
                with layer_inputs(model, names) as full:
                    model(moved)
            sizes = [
                (full[name] - clean[name]).flatten(1).norm(dim=1) / clean[name].flatten(1).norm(dim=1).clamp_min(1e-12)
                for name in names
            ]
            found.append(torch.stack(sizes).cpu())
        for depth, each in enumerate(torch.stack(found).mean(0).numpy(), 1):
            rows.append((method, depth, *mean_interval(each)))
    return pd.DataFrame(rows, columns=["line", "layer", "value", "low", "high"])
