"""The study `daat_imagenet100`: settings, trainings, attacks and measures of DAAT's notebook."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import Attack, autoattack, evaluating, pgd, training_pgd
from paperlib.data import EXTENTS, ImageSet, Splits, as_float, scenes
from paperlib.evaluation import in_percent
from paperlib.evaluation.settings import DepthSettings, Plan, planned
from paperlib.geometry import oracles
from paperlib.geometry.depth import Distance, Operator, edges
from paperlib.geometry.oracles import Kind, Oracle, Target
from paperlib.geometry.saliency import Attention, activated, attended, grad_cam, name_in, rollout, tokens, transformer
from paperlib.methods import Method
from paperlib.methods.baselines import Standard
from paperlib.methods.daat import DAAT, Schedule, Seen, feature_misalignment
from paperlib.methods.ramped import ramped
from paperlib.models import external
from paperlib.models.trained import Trained
from paperlib.runs.files import InputError, root
from paperlib.runs.run import Run
from paperlib.runs.settings import Count, Positive, Radius, Ramp
from paperlib.studies.measures import training_time
from paperlib.training import train_each

Name = Literal["standard", "pgd_at", "without_align", "daat"]
Source = Literal["exact", "learned", "pretrained", "rgb_edges", "shuffled", "uniform"]


class DaatSettings(DepthSettings):
    """Settings of Sections 3 and 5 and Appendix B."""

    methods: list[Name]
    ramp: Ramp  # shares of the steps between which ε rises
    weight: Radius  # λ
    distance: Distance  # between attention and depth saliency; cosine: Equation (2)
    align_schedule: Schedule  # s(t)
    edges_of: Seen  # image of which G is computed: x + δ (Equation 2) or x (B.1)
    operator: Operator  # ℰ
    oracle: Literal["exact", "learned", "pretrained"]  # source of depth
    depth_weights: str | None  # folder or hub name of a pretrained oracle
    depth_kind: Kind  # quantity that a pretrained oracle predicts
    blocks: list[int] | None  # blocks whose attention is aligned; None for all
    heads: list[int] | None  # heads whose attention is aligned; None for all
    rollout: bool  # whether attention is rolled out over all blocks instead of averaged
    teacher: (
        Literal["stand_in", "dinov2"] | None
    )  # teacher of the feature alignment; stand_in is the same network after plain training
    teacher_weights: str | None  # timm's weights file of DINOv2
    teacher_epochs: Count  # epochs of a stand-in
    feature: Radius  # γ₀
    controls: list[Source]  # other sources of G, as controls
    weights: list[Radius]  # values of λ in the sweep
    seeds_of: dict[Name | Source | Literal["sweep"], Count]  # number of seeds, if fewer than all
    focus_images: Annotated[int, Field(ge=2)]  # test images whose attention, Grad-CAM and gradients are measured
    epsilons: Annotated[list[Positive], Field(min_length=1)]  # radii of the sweep, as factors of ε
    cam_epsilons: list[Positive]  # further factors of ε, beside 1, at which Grad-CAM is compared with PGD-AT's
    linear_classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]  # for Proposition 1

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := {"pgd_at", "daat"} - set(self.methods):
            raise ValueError(f"methods needs {' and '.join(sorted(missing))}, which are compared with each other")
        if "exact" in (self.oracle, *self.controls) and self.data not in scenes.SETS:
            raise ValueError(f"oracle exact needs data with depth of their own, scenes; for {self.data} use learned")
        if "pretrained" in (self.oracle, *self.controls) and self.depth_weights is None:
            raise ValueError("a pretrained oracle needs depth_weights: a folder, or a name on the hub")
        if self.teacher == "dinov2" and self.teacher_weights is None:
            raise ValueError("teacher dinov2 needs teacher_weights, a file of timm's weights")
        if "without_align" in self.methods and self.teacher is None:
            raise ValueError("without_align is PGD-AT if teacher is null; remove without_align, or name a teacher")
        if self.teacher and self.model not in models.TRANSFORMERS:
            raise ValueError(f"teacher = {self.teacher!r} needs a transformer's tokens; for {self.model} it must be null")
        if self.rollout and self.blocks is not None:
            raise ValueError(f"blocks = {self.blocks}: rollout goes over all blocks; set only one of the two")
        if self.layer is not None and (self.rollout or self.blocks is not None or self.heads is not None):
            raise ValueError(f"layer = {self.layer!r}: blocks, heads and rollout are for transformers only")
        if self.linear_classes[0] == self.linear_classes[1]:
            raise ValueError(f"linear_classes = {self.linear_classes}: should be two different classes, counted from 0")
        return self


STUDIES = {"daat_imagenet100": DaatSettings}


# Inputs of the method ----------------------------------------------------------------------------------------------


def oracle(settings: DaatSettings, size: int, source: Source | None = None) -> Oracle:
    """Return the depth oracle for images of `size` pixels: that of the settings, or another source."""
    source = source or settings.oracle
    if source == "exact":
        return oracles.exact
    if source == "learned":
        return oracles.by_learned(size, settings.depth_images, settings.depth_epochs)
    if source == "pretrained":
        assert settings.depth_weights is not None
        folder = root() / Path(settings.depth_weights).expanduser()
        name = str(folder) if folder.is_dir() else settings.depth_weights
        return oracles.by_network(oracles.pretrained(name, settings.depth_kind))
    if source == "rgb_edges":
        return oracles.luminance
    if source == "shuffled":
        return oracles.another(oracle(settings, size))
    raise InputError(f"{source} has no depth")


def target(settings: DaatSettings, size: int, source: Source | None = None) -> Target:
    """Return G from the settings' oracle, or from another source."""
    if source == "uniform":
        return oracles.uniform_target
    return oracles.target(oracle(settings, size, source), settings.operator)


def attention(settings: DaatSettings) -> Attention:
    """Return the function that computes logits and attention A of the settings' network."""
    if settings.layer is not None:
        return partial(activated, layer=settings.layer)
    if settings.rollout:
        return partial(rollout, heads=settings.heads)
    return partial(attended, blocks=settings.blocks, heads=settings.heads)


def attentions(settings: DaatSettings, model: nn.Module) -> dict[str, Attention]:
    """Return the attention maps to compare with depth edges: "aligned", and each block's by its number from 1."""
    found = {"aligned": attention(settings)}
    if settings.layer is not None:
        return found
    count = len(transformer(model).blocks)  # type: ignore[arg-type]
    blocks: dict[str, Attention] = {f"{index + 1}": partial(attended, blocks=[index]) for index in range(count)}
    return blocks | found


def cam_layer(settings: DaatSettings, model: nn.Module) -> str:
    """Return the layer of Grad-CAM: that of the settings, or the first norm of a transformer's last block."""
    if settings.layer is not None:
        return settings.layer
    return name_in(model, list(transformer(model).blocks)[-1].norm1)  # type: ignore[arg-type]


def stand_in(settings: DaatSettings) -> dict[str, Method]:
    """Return the training of a stand-in teacher; empty if the teacher is DINOv2 or None."""
    return {"teacher": Standard()} if settings.teacher == "stand_in" else {}


def teacher(settings: DaatSettings, size: int, trained: Trained) -> nn.Module | None:
    """Return the frozen teacher of the feature alignment: the trained stand-in, DINOv2, or None."""
    if settings.teacher == "dinov2":
        assert settings.teacher_weights is not None
        path = root() / Path(settings.teacher_weights).expanduser()  # `/` keeps an absolute path
        return external.load_dinov2(path, settings.width, size).eval().requires_grad_(False)
    members = trained.get("teacher", {})
    return next(iter(members.values())).eval().requires_grad_(False) if members else None


# Trainings ---------------------------------------------------------------------------------------------------------


def training_attack(settings: DaatSettings) -> Attack:
    """Return PGD on cross-entropy with a random start and steps that sum to 2.5 ε: the paper's 10 × 1/255 at 4/255."""
    return training_pgd(eps=settings.eps, norm=settings.norm, steps=settings.train_steps)


def daat(settings: DaatSettings, size: int, teacher: nn.Module | None, source: Source | None, weight: float) -> Method:
    """Return DAAT with or without a teacher, aligned with G of a source, or without alignment if the source is None."""
    return _daat(settings, None if source is None else target(settings, size, source), teacher, weight)


def _daat(settings: DaatSettings, wanted: Target | None, teacher: nn.Module | None, weight: float) -> Method:
    method = DAAT(
        training_attack(settings), None if wanted is None else attention(settings), wanted, weight=weight,
        distance=settings.distance, schedule=settings.align_schedule, teacher=teacher, feature=settings.feature,
        edges_of=settings.edges_of,
    )  # fmt: skip
    return ramped(method, settings.ramp)  # type: ignore[no-any-return]


def methods(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """Return the methods of Table 1. PGD-AT is Equation (5) with neither term, so that attack and ramp are the same."""
    built: dict[Name, Callable[[], Method]] = {
        "standard": Standard,
        "pgd_at": partial(daat, settings, size, None, None, 0.0),
        "without_align": partial(daat, settings, size, teacher, None, 0.0),
        "daat": partial(daat, settings, size, teacher, settings.oracle, settings.weight),
    }
    return {name: built[name]() for name in settings.methods}


def controls(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """Return DAAT aligned with the settings' controls, as "daat_<source>"."""
    return {f"daat_{source}": daat(settings, size, teacher, source, settings.weight) for source in settings.controls}


def weights(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """Return DAAT at each λ of the sweep, as "daat_lambda_<λ>"."""
    found = {weight: daat(settings, size, teacher, settings.oracle, weight) for weight in settings.weights}
    return {f"daat_lambda_{weight:g}": method for weight, method in found.items()}


def train(
    run: Run[DaatSettings], settings: DaatSettings, named: Mapping[str, Method], data: Splits
) -> dict[str, dict[int, nn.Module]]:
    """Train the methods with each seed, or with the number of seeds in `seeds_of`."""
    counts = {name: len(_seeds(settings, name)) for name in named}
    return train_each(run, named, data, selection_attack(settings), counts)


def _seeds(settings: DaatSettings, name: str) -> list[int]:
    kind = "sweep" if "lambda" in name else name.removeprefix("daat_")
    return list(settings.seeds[: settings.seeds_of.get(kind)])  # type: ignore[call-overload]


# Attacks -----------------------------------------------------------------------------------------------------------


def selection_attack(settings: DaatSettings) -> Attack:
    """Return the attack on validation images after each epoch: PGD-10."""
    return attacks(settings)["pgd_10"]


def attacks(settings: DaatSettings) -> dict[str, Attack]:
    """Return the attacks on all test images: PGD-10 of Table 1, and PGD-20 on the margin, which is nearer to AutoAttack."""
    at = partial(pgd, eps=settings.eps, norm=settings.norm)
    return {
        "pgd_10": partial(at, steps=10, step_size=settings.eps / 4),
        "pgd_margin": partial(at, steps=20, step_size=settings.eps / 5, loss="margin"),
    }


def strong_attacks(settings: DaatSettings) -> dict[str, Attack]:
    """Return AutoAttack, which runs on fewer images; empty if `autoattack_images` is 0."""
    if not settings.autoattack_images:
        return {}
    return {"autoattack": partial(autoattack, eps=settings.eps, norm=settings.norm)}


def sweep_attack(settings: DaatSettings) -> Attack:
    """Return PGD-100 of Figure 3 (c) with steps of ε / 10. It keeps the first iterate that fools; the paper's may not."""
    return partial(pgd, eps=settings.eps, norm=settings.norm, steps=100, step_size=settings.eps / 10, best=True)


def plan(settings: DaatSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method; linear classifiers have one seed."""
    focused = ["edge_cosine", "gradient_on_edges", "gradient_on_contours", "first_order_rise", "depth_moved"]
    focused += ["cam_correlation", "cam_moved", *(f"cam_correlation_{factor:g}" for factor in settings.cam_epsilons)]
    focused += ["cam_on_object", "cam_on_object_attacked"] if settings.data in scenes.SETS else []  # scenes have masks
    fewer = dict.fromkeys(strong_attacks(settings), settings.autoattack_images)
    fewer |= dict.fromkeys(
        ["largest_budget", *(f"budget_{factor:g}" for factor in settings.epsilons)], settings.sweep_images
    )
    images = planned(settings, ["clean", *attacks(settings)], {**fewer, **dict.fromkeys(focused, settings.focus_images)})
    tested, classes = images["clean"], EXTENTS.get(settings.data, (None, None))[1]
    images["robust"] = 2 * tested // classes if tested and classes else None  # the images of two classes
    images |= dict.fromkeys(["early_clean", "early_pgd"], settings.validation_images)
    images["bound"] = 120  # training images that `linear.smallest_bounds` uses
    names = [*settings.methods, *(f"daat_{one}" for one in settings.controls)]
    names += [f"daat_lambda_{weight:g}" for weight in settings.weights]
    seeds = {**{name: len(_seeds(settings, name)) for name in names}, "uniform": len(_seeds(settings, "daat"))}
    supports = ("all pixels", "edges", "off the edges", "random pixels")  # names from `linear.supports`
    once = [f"{kind}: {part}" for kind in ("plain", "robust", "smallest") for part in supports]
    return Plan(images, {**seeds, **dict.fromkeys(once, 1)}, settings.data)


PLANS = {"daat_imagenet100": plan}


# Measures ----------------------------------------------------------------------------------------------------------


def tried(run: Run[DaatSettings], model: nn.Module, data: ImageSet) -> tuple[int, int]:
    """Return the grid of attention maps, after passing two images through everything that is aligned and measured.

    Raises InputError, before anything is trained, if a setting does not fit the network or the data.
    """
    settings, few = run.settings, data[:2]
    images = as_float(few.images)
    if images.shape[1] != 3:
        raise InputError(f"data = {settings.data}: images of {images.shape[1]} channel; depth oracles need colour images")
    if max(settings.linear_classes) >= len(data.classes):
        raise InputError(f"linear_classes = {settings.linear_classes}: {settings.data} has {len(data.classes)} classes")
    size = int(images.shape[-1])
    if settings.teacher == "dinov2":
        guide = teacher(settings, size, {})
        assert guide is not None
        with evaluating(model), torch.no_grad():
            feature_misalignment(tokens(model, images), tokens(guide, images))
    with evaluating(model), torch.no_grad():
        seen = attention(settings)(model, images)[1]
    grid = (int(seen.shape[1]), int(seen.shape[2]))
    for source in (settings.oracle, *settings.controls):
        target(settings, size, source)(images, few.depth, grid)
    grad_cam(model, images, few.labels, cam_layer(settings, model))
    return grid


def agreement(run: Run[DaatSettings], data: ImageSet, size: int, grid: tuple[int, int]) -> pd.DataFrame:
    """Measure how well each source's G agrees with the best source, exact depth if the data have it, on the given grid.

    One row per source: mean and 5th percentile of the cosine between the two over images with edges.
    """
    settings = run.settings
    best: Source = "exact" if data.depth is not None else settings.oracle
    sources = dict.fromkeys([best, moving(settings), *settings.controls, "rgb_edges", "shuffled", "uniform"])
    images = as_float(data.images).to(run.device)
    distance = None if data.depth is None else data.depth.to(run.device)
    maps = {source: target(settings, size, source)(images, distance, grid).flatten(1) for source in sources}
    edged = maps[best].sum(1) > 0
    each = {source: torch.cosine_similarity(one, maps[best], dim=1)[edged].cpu().numpy() for source, one in maps.items()}
    rows = {
        source: {"mean cosine": cosine.mean(), "5th percentile": np.quantile(cosine, 0.05)} if len(cosine) else {}
        for source, cosine in each.items()
    }
    return pd.DataFrame(rows).T


EARLY = 0.2  # share of the training that counts as early: DAAT aligns features in it


def early_rows(histories: pd.DataFrame, validation: int) -> pd.DataFrame:
    """Return the accuracy on `validation` images after the first fifth of the epochs (Figure 3 (a) and (b)).

    Rows as from `evaluate_each`, measures "early_clean" and "early_pgd".
    """
    last = histories.groupby(["method", "seed"])["epoch"].transform("max")
    early = histories[histories["epoch"] == (EARLY * last).round().clip(lower=1)]
    early = early.rename(columns={"clean_accuracy": "early_clean", "robust_accuracy": "early_pgd"}).assign(n=validation)
    return early.melt(["method", "seed", "n"], ["early_clean", "early_pgd"], "measure")


def costs(histories: pd.DataFrame) -> pd.DataFrame:
    """Return each method's training time from `training_time`, beside B.1's figure for DAAT."""
    return training_time(histories)[["minutes", "× PGD-AT"]].assign(paper=pd.Series({"daat": 2.0}))


def budget_rows(settings: DaatSettings, curve: pd.DataFrame) -> pd.DataFrame:
    """Rename the sweep over ε to the claims' measures: "budget_<factor>", and the largest also as "largest_budget"."""
    factors = {f"eps={factor:g}x": f"budget_{factor:g}" for factor in settings.epsilons}
    every = curve[curve["measure"].isin(factors)]
    largest = curve[curve["measure"] == f"eps={max(settings.epsilons):g}x"].assign(measure="largest_budget")
    return pd.concat([every.assign(measure=every["measure"].map(factors)), largest], ignore_index=True)


def weight_points(settings: DaatSettings, summary: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy (%) against λ, with DAAT without alignment at zero (Figure 3 (d)): line, λ, value, low, high."""
    places = {"without_align": 0.0, "daat": settings.weight}
    places |= {f"daat_lambda_{weight:g}": weight for weight in settings.weights}
    found = in_percent(summary[summary["method"].isin(places)]).rename(columns={"measure": "line"})
    found["λ"] = found["method"].map(places)
    return found[["line", "λ", "value", "low", "high"]].sort_values("λ", kind="stable")


def moving(settings: DaatSettings) -> Source:
    """Return the oracle that reacts to perturbations: that of the settings, but "learned" instead of "exact"."""
    return "learned" if settings.oracle == "exact" else settings.oracle


def depth_of(settings: DaatSettings, data: ImageSet, size: int) -> dict[str, Tensor]:
    """Return the oracles' disparities and edges, maps N×H×W by name, for the figure; exact depth if the data have it."""
    images = as_float(data.images)
    sources: list[Source] = ["exact", "learned"] if data.depth is not None else [settings.oracle]
    found = {}
    for source in dict.fromkeys((*sources, settings.oracle)):
        found[f"disparity, {source}"] = oracle(settings, size, source)(images, data.depth)
        found[f"edges, {source}"] = edges(found[f"disparity, {source}"], settings.operator)
    return found | {"edges of the image": edges(oracles.luminance(images, None), settings.operator)}


def edge_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Convert rows of `focus.edge_cosines` for the claims: aligned attention under attack as measure "edge_cosine".

    Uniform attention on DAAT's images is added as method "uniform".
    """
    aligned = found[found["measure"] == "aligned, under attack"].assign(measure="edge_cosine")
    flat = found[(found["measure"] == "uniform, under attack") & (found["method"] == "daat")]
    return pd.concat([aligned, flat.assign(method="uniform", measure="edge_cosine")], ignore_index=True)


def rehearsal(settings: DaatSettings, size: int, classes: int) -> dict[str, Method]:
    """Return standard training, PGD-AT and DAAT for a dry run, with untrained oracle and teacher of the real cost."""
    untrained = models.of_settings(settings, classes=classes, channels=3, size=size, seed=0)
    frozen = untrained.eval().requires_grad_(False) if settings.teacher else None
    network = (
        oracles.untrained_dpt() if settings.oracle == "pretrained" else oracles.DepthNet().eval().requires_grad_(False)
    )
    seen = oracles.target(oracles.by_network(network), settings.operator)
    plain = methods(settings.model_copy(update={"methods": ["standard", "pgd_at"]}), size, None)
    return {**plain, "daat": _daat(settings, seen, frozen, settings.weight)}


REHEARSALS = {"daat_imagenet100": rehearsal}
