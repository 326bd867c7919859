"""Where a network's attention, Grad-CAM and gradient lie, image by image, compared with depth edges and the object.

Each measure takes a model in evaluation mode and a set of images on its device, floats in [0,1], and returns one number per
image, by name. `by_image` turns them into the rows that `evaluation.summary` and the claims read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import evaluation
from paperlib.attacks import Attack, Norm, each_image, lengths
from paperlib.data import ImageSet, as_float, chunk_size
from paperlib.evaluation import measuring
from paperlib.geometry import depth
from paperlib.geometry.oracles import Oracle, Target, luminance
from paperlib.geometry.saliency import Attention, grad_cam
from paperlib.models.trained import Trained, each_model
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

Measure = Callable[..., dict[str, Tensor]]  # a function of a model, an `ImageSet` and keyword arguments

CHUNK = 100  # most images measured together
EDGES = 0.1  # share of an image's pixels that count as its depth edges


def on(device: torch.device | str, data: ImageSet) -> ImageSet:
    """Move the set to a device, with its images as floats in [0,1]."""
    others = {name: value.to(device) for name in ("labels", "depth", "mask") if (value := getattr(data, name)) is not None}
    return replace(data, images=as_float(data.images).to(device), **others)


def by_image(run: Run[Settings], trained: Trained, data: ImageSet, measure: Measure, **given: Any) -> pd.DataFrame:
    """Measure every image, method and seed: columns method, seed, measure, n, value (the mean), each (an array N).

    `given` is passed to the measure, whose random numbers depend on the seed.
    """
    rows: list[tuple[Any, ...]] = []
    together = chunk_size(data.images, CHUNK)
    for method, seed, model in each_model(trained):
        found: dict[str, list[Tensor]] = {}
        with measuring(run, seed, model):
            for start in range(0, len(data), together):
                for name, values in measure(model, on(run.device, data[start : start + together]), **given).items():
                    found.setdefault(name, []).append(values.detach().cpu())
        rows += [(method, seed, name, torch.cat(parts).double().numpy()) for name, parts in found.items()]
    return evaluation.by_image(rows)


# Attention and the edges of depth ----------------------------------------------------------------------------------


def edge_cosines(
    model: nn.Module, data: ImageSet, *, attack: Attack, attentions: Mapping[str, Attention], target: Target
) -> dict[str, Tensor]:
    """Return the cosine of attention and depth saliency G: "<name>, clean" and "<name>, under attack", each N in [0,1].

    "uniform, …" is the cosine of uniform attention, because any two maps of unit mass agree to some degree. The cosine is
    zero if an image's depth has no edges.
    """
    found: dict[str, Tensor] = {}
    for place, images in (("clean", data.images), ("under attack", attack(model, data.images, data.labels))):
        with torch.no_grad():
            maps = {name: attention(model, images)[1] for name, attention in attentions.items()}
            grid = next((seen.shape[1], seen.shape[2]) for seen in maps.values())  # all maps have one network's grid
            maps["uniform"] = depth.uniform(len(images), grid, images)
            wanted = target(images, data.depth, grid).flatten(1)
            found |= {f"{name}, {place}": F.cosine_similarity(seen.flatten(1), wanted) for name, seen in maps.items()}
    return found


# The input gradient and the edges of depth -------------------------------------------------------------------------


def gradient_place(
    model: nn.Module, data: ImageSet, *, oracle: Oracle, operator: depth.Operator, eps: float, norm: Norm
) -> dict[str, Tensor]:
    """Measure the place and size of ∇ₓL of cross-entropy (DAAT, Section 4), each N.

    "gradient_on_edges" is the share of ‖∇ₓL‖₁ on the tenth of the pixels with the strongest depth edges: 0.1 if spread
    evenly. "gradient_on_contours" is the share on the tenth with the image's own strongest edges, which a gradient may
    follow without any depth. "first_order_rise" is ε times the dual norm: an attack's first-order gain in nats.
    """
    with torch.enable_grad():
        leaf = data.images.detach().requires_grad_(True)
        loss = F.cross_entropy(model(leaf), data.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    strength = gradient.abs().sum(1).flatten(1)
    size = strength.sum(1)
    found = {"first_order_rise": eps * (size if norm == "linf" else gradient.flatten(1).norm(dim=1))}
    with torch.no_grad():
        maps = {"gradient_on_edges": oracle(data.images, data.depth), "gradient_on_contours": luminance(data.images, None)}
    for name, seen in maps.items():
        lines = depth.outlines(seen, operator).flatten(1)
        strongest = lines.topk(round(EDGES * lines.shape[1]), dim=1).indices
        found[name] = strength.gather(1, strongest).sum(1) / size.clamp_min(torch.finfo(size.dtype).tiny)
    return found


# Grad-CAM ----------------------------------------------------------------------------------------------------------


def cams(model: nn.Module, data: ImageSet, *, attack: Attack, layer: str) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM of the true class before its ReLU, clean and under attack: N×h×w, absolute values sum to 1."""
    moved = attack(model, data.images, data.labels)
    clean, adversarial = (grad_cam(model, images, data.labels, layer, signed=True) for images in (data.images, moved))
    return _scaled(clean), _scaled(adversarial)


def _scaled(maps: Tensor) -> Tensor:
    return maps / each_image(maps.abs().flatten(1).sum(1).clamp_min(torch.finfo(maps.dtype).tiny), maps)


def first_cams(
    run: Run[Settings], members: Mapping[int, nn.Module], data: ImageSet, *, attack: Attack, layer: str
) -> tuple[Tensor, Tensor]:
    """Return `cams` of the first seed's model, for a figure."""
    with measuring(run, *next(iter(members.items()))) as model:
        return cams(model, on(run.device, data), attack=attack, layer=layer)


def cam_stability(model: nn.Module, data: ImageSet, *, attack: Attack, layer: str) -> dict[str, Tensor]:
    """Measure how far Grad-CAM moves under attack, and its share on the object if the data have masks; each N.

    "cam_correlation" of the clean and adversarial map is in [-1,1]; "cam_moved", half their L1 distance, is in [0,1]. Both
    use the maps before the ReLU, which are never empty. "cam_on_object" and "cam_on_object_attacked" are shares of the
    positive evidence; a map without positive evidence counts as uniform.
    """
    clean, adversarial = cams(model, data, attack=attack, layer=layer)
    one, two = (map_.flatten(1) - map_.flatten(1).mean(1, keepdim=True) for map_ in (clean, adversarial))
    found = {
        "cam_correlation": F.cosine_similarity(one, two, eps=torch.finfo(one.dtype).tiny),
        "cam_moved": (clean - adversarial).abs().flatten(1).sum(1) / 2,
    }
    if data.mask is not None:
        object_ = depth.pooled(data.mask.to(clean), (clean.shape[1], clean.shape[2]))
        for name, maps in (("cam_on_object", clean), ("cam_on_object_attacked", adversarial)):
            shares = depth.unit_mass(maps.clamp_min(0))
            empty = shares.flatten(1).sum(1) == 0
            on_it = (shares * object_).flatten(1).sum(1)
            found[name] = torch.where(empty, object_.flatten(1).mean(1), on_it)
    return found


def cams_by_eps(
    run: Run[Settings], trained: Trained, data: ImageSet, *, attack: Attack, layer: str, factors: Sequence[float]
) -> pd.DataFrame:
    """Measure how far Grad-CAM moves (DAAT, Figures 2 and 4) under `attack` at each factor of its ε.

    Rows as from `by_image`, measure "cam_correlation_<factor>".
    """
    parts = []
    for factor in factors:
        size = {name: factor * attack.keywords[name] for name in ("eps", "step_size")}
        found = by_image(run, trained, data, cam_stability, attack=partial(attack, **size), layer=layer)
        parts.append(found[found["measure"] == "cam_correlation"].assign(measure=f"cam_correlation_{factor:g}"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["method", "seed", "measure"])


# Depth under attack ------------------------------------------------------------------------------------------------


def depth_moved(model: nn.Module, data: ImageSet, *, attack: Attack, oracle: Oracle) -> dict[str, Tensor]:
    """Return the mean change of the oracle's disparity in standard deviations of the clean map, each N (DAAT, Figure 1a).

    "attacked" is the change by the attack. Two kinds of noise do not depend on the model: "shuffled" permutes the
    perturbation over the pixels, "random signs" has its size. Before the clamp to [0,1] all have the same norm.
    """
    change = attack(model, data.images, data.labels) - data.images
    places = torch.rand(len(change), change[0, 0].numel(), device=change.device).argsort(1)
    shuffled = change.flatten(2).gather(2, places[:, None].expand(-1, change.shape[1], -1)).view_as(change)
    signs, norm = torch.randn_like(change).sign(), attack.keywords["norm"]
    signs = signs * each_image(lengths(change, norm) / lengths(signs, norm), signs)
    with torch.no_grad():
        before = oracle(data.images, data.depth)
        spread = before.flatten(1).std(1).clamp_min(1e-12)
        return {
            name: (oracle((data.images + noise).clamp(0, 1), data.depth) - before).abs().flatten(1).mean(1) / spread
            for name, noise in (("attacked", change), ("shuffled", shuffled), ("random signs", signs))
        }


def first_depths(
    run: Run[Settings], members: Mapping[int, nn.Module], data: ImageSet, *, attack: Attack, oracle: Oracle
) -> tuple[Tensor, Tensor]:
    """Return the oracle's disparities N×H×W of images and of the first seed's adversarial images, for a figure."""
    with measuring(run, *next(iter(members.items()))) as model:
        held = on(run.device, data)
        moved = attack(model, held.images, held.labels)
    with torch.no_grad():
        return oracle(held.images, held.depth), oracle(moved, held.depth)


# Rows for tables and figures ---------------------------------------------------------------------------------------


def renamed(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Move the measure of `by_image`'s rows into the method, "<method> on <measure>", under one new measure.

    So claims can compare two measures of the same models.
    """
    names = found["method"] + " on " + found["measure"]
    return found.assign(method=names, measure=measure)


def points(summary: pd.DataFrame) -> pd.DataFrame:
    """Return cosines of attention and edges for `figures.panels`: columns panel, line, block, value, low, high.

    "uniform" has its own line, the mean over methods, because it does not depend on a model.
    """
    parts = [str(measure).rsplit(", ", 1) for measure in summary["measure"]]
    frame = summary.rename(columns={"method": "line", "mean": "value"}).assign(
        block=[name for name, _ in parts], panel=[place for _, place in parts]
    )[["panel", "line", "block", "value", "low", "high"]]
    flat = frame["block"] == "uniform"
    blocks = pd.DataFrame({"block": list(dict.fromkeys(frame.loc[~flat, "block"]))})
    even = (
        frame[flat].groupby("panel", sort=False)[["value", "low", "high"]].mean().reset_index().merge(blocks, how="cross")
    )
    return pd.concat([frame[~flat], even.assign(line="uniform")], ignore_index=True)
