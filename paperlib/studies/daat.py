"""The study `daat_imagenet100`: what DAAT's notebook can be told, and what it trains, attacks and measures."""

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
    """Sections 3 and 5 and Appendix B."""

    methods: list[Name]
    ramp: Ramp  # of ε
    weight: Radius  # λ
    distance: Distance  # of attention and depth saliency; cosine: Equation (2)
    align_schedule: Schedule  # s(t)
    edges_of: Seen  # whether G is of x + δ (Equation 2) or of x (B.1)
    operator: Operator  # ℰ
    oracle: Literal["exact", "learned", "pretrained"]  # where depth comes from
    depth_weights: str | None  # of a pretrained oracle: a folder, or its name on the hub
    depth_kind: Kind  # what a pretrained oracle puts out
    blocks: list[int] | None  # whose attention is aligned; all when None
    heads: list[int] | None
    rollout: bool  # attention rolled out over all blocks, in place of their mean
    teacher: (
        Literal["stand_in", "dinov2"] | None
    )  # of the feature alignment; a stand-in is the same network, trained plainly
    teacher_weights: str | None  # of DINOv2: a file of timm's
    teacher_epochs: Count  # of a stand-in
    feature: Radius  # γ₀
    controls: list[Source]  # what else stands in for G
    weights: list[Radius]  # λ of the sweep
    seeds_of: dict[Name | Source | Literal["sweep"], Count]  # the first so many alone
    focus_images: Annotated[int, Field(ge=2)]  # test images whose attention, Grad-CAM and gradients are measured
    epsilons: Annotated[list[Positive], Field(min_length=1)]  # of the sweep, as factors of ε
    cam_epsilons: list[Positive]  # factors of ε at which Grad-CAM is held against PGD-AT's, beside 1
    linear_classes: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]  # of Proposition 1's

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := {"pgd_at", "daat"} - set(self.methods):
            raise ValueError(f"methods needs {' and '.join(sorted(missing))}: they are held against each other")
        if "exact" in (self.oracle, *self.controls) and self.data not in scenes.SETS:
            raise ValueError(
                f"oracle exact needs data with depth of their own, scenes; {self.data} has none: learned is one"
            )
        if "pretrained" in (self.oracle, *self.controls) and self.depth_weights is None:
            raise ValueError("a pretrained oracle needs depth_weights: a folder, or a name on the hub")
        if self.teacher == "dinov2" and self.teacher_weights is None:
            raise ValueError("teacher dinov2 needs teacher_weights, a file of timm's weights")
        if "without_align" in self.methods and self.teacher is None:
            raise ValueError("without_align is PGD-AT where there is no teacher; leave it out, or name a teacher")
        if self.teacher and self.model not in models.TRANSFORMERS:
            raise ValueError(f"teacher = {self.teacher!r}: tokens are a transformer's; for {self.model} it must be null")
        if self.rollout and self.blocks is not None:
            raise ValueError(f"blocks = {self.blocks}: rollout goes over all blocks; leave one of the two out")
        if self.layer is not None and (self.rollout or self.blocks is not None or self.heads is not None):
            raise ValueError(f"layer = {self.layer!r}: blocks, heads and rollout are a transformer's")
        if self.linear_classes[0] == self.linear_classes[1]:
            raise ValueError(f"linear_classes = {self.linear_classes}: two different classes, counted from 0")
        return self


STUDIES = {"daat_imagenet100": DaatSettings}


# What the method is given ------------------------------------------------------------------------------------------


def oracle(settings: DaatSettings, size: int, source: Source | None = None) -> Oracle:
    """Where the depth of images of `size` pixels comes from: the settings' oracle, or another source of edges."""
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
    """G by the settings' oracle, or by another source."""
    if source == "uniform":
        return oracles.uniform_target
    return oracles.target(oracle(settings, size, source), settings.operator)


def attention(settings: DaatSettings) -> Attention:
    """A of the network in the settings, with its logits."""
    if settings.layer is not None:
        return partial(activated, layer=settings.layer)
    if settings.rollout:
        return partial(rollout, heads=settings.heads)
    return partial(attended, blocks=settings.blocks, heads=settings.heads)


def attentions(settings: DaatSettings, model: nn.Module) -> dict[str, Attention]:
    """What is held against the edges of depth: the aligned attention as "aligned", and each block's by its number."""
    found = {"aligned": attention(settings)}
    if settings.layer is not None:
        return found
    count = len(transformer(model).blocks)  # type: ignore[arg-type]
    blocks: dict[str, Attention] = {f"{index + 1}": partial(attended, blocks=[index]) for index in range(count)}
    return blocks | found


def cam_layer(settings: DaatSettings, model: nn.Module) -> str:
    """Where Grad-CAM looks: the layer of the settings, or the first norm of a transformer's last block."""
    if settings.layer is not None:
        return settings.layer
    return name_in(model, list(transformer(model).blocks)[-1].norm1)  # type: ignore[arg-type]


def stand_in(settings: DaatSettings) -> dict[str, Method]:
    """The teacher that is trained here; empty where it is DINOv2 or there is none."""
    return {"teacher": Standard()} if settings.teacher == "stand_in" else {}


def teacher(settings: DaatSettings, size: int, trained: Trained) -> nn.Module | None:
    """The frozen network whose features are aligned with: the stand-in among the trained, or DINOv2; None for none."""
    if settings.teacher == "dinov2":
        assert settings.teacher_weights is not None
        path = root() / Path(settings.teacher_weights).expanduser()  # an absolute path stays what it is
        return external.load_dinov2(path, settings.width, size).eval().requires_grad_(False)
    members = trained.get("teacher", {})
    return next(iter(members.values())).eval().requires_grad_(False) if members else None


# What is trained ---------------------------------------------------------------------------------------------------


def training_attack(settings: DaatSettings) -> Attack:
    """PGD on cross-entropy with a random start, steps that add up to 2.5 ε: the paper's 10 × 1/255 at 4/255."""
    return training_pgd(eps=settings.eps, norm=settings.norm, steps=settings.train_steps)


def daat(settings: DaatSettings, size: int, teacher: nn.Module | None, source: Source | None, weight: float) -> Method:
    """DAAT with a teacher or without, aligned with G of a source, or with none."""
    return _daat(settings, None if source is None else target(settings, size, source), teacher, weight)


def _daat(settings: DaatSettings, wanted: Target | None, teacher: nn.Module | None, weight: float) -> Method:
    method = DAAT(
        training_attack(settings), None if wanted is None else attention(settings), wanted, weight=weight,
        distance=settings.distance, schedule=settings.align_schedule, teacher=teacher, feature=settings.feature,
        edges_of=settings.edges_of,
    )  # fmt: skip
    return ramped(method, settings.ramp)  # type: ignore[no-any-return]


def methods(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """Table 1's rows. PGD-AT is Equation (5) with neither term, so that attack and ramp are the same."""
    built: dict[Name, Callable[[], Method]] = {
        "standard": Standard,
        "pgd_at": partial(daat, settings, size, None, None, 0.0),
        "without_align": partial(daat, settings, size, teacher, None, 0.0),
        "daat": partial(daat, settings, size, teacher, settings.oracle, settings.weight),
    }
    return {name: built[name]() for name in settings.methods}


def controls(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """DAAT aligned with something else, as "daat_<source>"."""
    return {f"daat_{source}": daat(settings, size, teacher, source, settings.weight) for source in settings.controls}


def weights(settings: DaatSettings, size: int, teacher: nn.Module | None) -> dict[str, Method]:
    """DAAT at each λ of the sweep, as "daat_lambda_<λ>"."""
    found = {weight: daat(settings, size, teacher, settings.oracle, weight) for weight in settings.weights}
    return {f"daat_lambda_{weight:g}": method for weight, method in found.items()}


def train(
    run: Run[DaatSettings], settings: DaatSettings, named: Mapping[str, Method], data: Splits
) -> dict[str, dict[int, nn.Module]]:
    """Train the methods with each seed, or with as many as `seeds_of` says."""
    counts = {name: len(_seeds(settings, name)) for name in named}
    return train_each(run, named, data, selection_attack(settings), counts)


def _seeds(settings: DaatSettings, name: str) -> list[int]:
    kind = "sweep" if "lambda" in name else name.removeprefix("daat_")
    return list(settings.seeds[: settings.seeds_of.get(kind)])  # type: ignore[call-overload]


# Attacks -----------------------------------------------------------------------------------------------------------


def selection_attack(settings: DaatSettings) -> Attack:
    """What validation images are attacked with after each epoch: PGD-10."""
    return attacks(settings)["pgd_10"]


def attacks(settings: DaatSettings) -> dict[str, Attack]:
    """PGD-10 of Table 1, and PGD-20 on the margin, which is closer to AutoAttack, on all test images."""
    at = partial(pgd, eps=settings.eps, norm=settings.norm)
    return {
        "pgd_10": partial(at, steps=10, step_size=settings.eps / 4),
        "pgd_margin": partial(at, steps=20, step_size=settings.eps / 5, loss="margin"),
    }


def strong_attacks(settings: DaatSettings) -> dict[str, Attack]:
    """AutoAttack, on fewer images; none where the settings have none."""
    if not settings.autoattack_images:
        return {}
    return {"autoattack": partial(autoattack, eps=settings.eps, norm=settings.norm)}


def sweep_attack(settings: DaatSettings) -> Attack:
    """PGD-100 of Figure 3 (c), at steps of ε / 10; it keeps the first iterate that fools, as the paper's may not."""
    return partial(pgd, eps=settings.eps, norm=settings.norm, steps=100, step_size=settings.eps / 10, best=True)


def plan(settings: DaatSettings) -> Plan:
    """How many images each measure has, and how many seeds each method; linear classifiers have one."""
    focused = ["edge_cosine", "gradient_on_edges", "gradient_on_contours", "first_order_rise", "depth_moved"]
    focused += ["cam_correlation", "cam_moved", *(f"cam_correlation_{factor:g}" for factor in settings.cam_epsilons)]
    focused += ["cam_on_object", "cam_on_object_attacked"] if settings.data in scenes.SETS else []  # which have masks
    fewer = dict.fromkeys(strong_attacks(settings), settings.autoattack_images)
    fewer |= dict.fromkeys(
        ["largest_budget", *(f"budget_{factor:g}" for factor in settings.epsilons)], settings.sweep_images
    )
    images = planned(settings, ["clean", *attacks(settings)], {**fewer, **dict.fromkeys(focused, settings.focus_images)})
    tested, classes = images["clean"], EXTENTS.get(settings.data, (None, None))[1]
    images["robust"] = 2 * tested // classes if tested and classes else None  # of two classes
    images |= dict.fromkeys(["early_clean", "early_pgd"], settings.validation_images)
    images["bound"] = 120  # of training images, as `linear.smallest_bounds` takes them
    names = [*settings.methods, *(f"daat_{one}" for one in settings.controls)]
    names += [f"daat_lambda_{weight:g}" for weight in settings.weights]
    seeds = {**{name: len(_seeds(settings, name)) for name in names}, "uniform": len(_seeds(settings, "daat"))}
    supports = ("all pixels", "edges", "off the edges", "random pixels")  # of `linear.supports`
    once = [f"{kind}: {part}" for kind in ("plain", "robust", "smallest") for part in supports]
    return Plan(images, {**seeds, **dict.fromkeys(once, 1)}, settings.data)


PLANS = {"daat_imagenet100": plan}


# What is measured --------------------------------------------------------------------------------------------------


def tried(run: Run[DaatSettings], model: nn.Module, data: ImageSet) -> tuple[int, int]:
    """The grid of attention maps, found by putting two images through everything that is aligned and measured.

    So what does not fit the network or the data is refused before anything is trained. Raises InputError.
    """
    settings, few = run.settings, data[:2]
    images = as_float(few.images)
    if images.shape[1] != 3:
        raise InputError(f"data = {settings.data}: images of {images.shape[1]} channel; depth is told from colour images")
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
    """How well each source's G agrees with the best one at hand, exact where the data have depth, on the attention's grid.

    Rows by source; mean and 5th percentile of the cosine of the two over the images that have edges.
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


EARLY = 0.2  # share of the training that "early" means: that in which features are aligned


def early_rows(histories: pd.DataFrame, validation: int) -> pd.DataFrame:
    """Figure 3 (a) and (b) early on: validation accuracy after the first fifth of the epochs, of `validation` images.

    Rows as `evaluate_each` has, measures "early_clean" and "early_pgd".
    """
    last = histories.groupby(["method", "seed"])["epoch"].transform("max")
    early = histories[histories["epoch"] == (EARLY * last).round().clip(lower=1)]
    early = early.rename(columns={"clean_accuracy": "early_clean", "robust_accuracy": "early_pgd"}).assign(n=validation)
    return early.melt(["method", "seed", "n"], ["early_clean", "early_pgd"], "measure")


def costs(histories: pd.DataFrame) -> pd.DataFrame:
    """Training time by method, of `training_time`, beside what B.1 states for DAAT."""
    return training_time(histories)[["minutes", "× PGD-AT"]].assign(paper=pd.Series({"daat": 2.0}))


def budget_rows(settings: DaatSettings, curve: pd.DataFrame) -> pd.DataFrame:
    """The sweep over ε as measures that claims name: "budget_<factor>", and the largest once more as "largest_budget"."""
    factors = {f"eps={factor:g}x": f"budget_{factor:g}" for factor in settings.epsilons}
    every = curve[curve["measure"].isin(factors)]
    largest = curve[curve["measure"] == f"eps={max(settings.epsilons):g}x"].assign(measure="largest_budget")
    return pd.concat([every.assign(measure=every["measure"].map(factors)), largest], ignore_index=True)


def weight_points(settings: DaatSettings, summary: pd.DataFrame) -> pd.DataFrame:
    """Figure 3 (d): accuracy in percent against λ, DAAT without alignment at zero: columns line, λ, value, low, high."""
    places = {"without_align": 0.0, "daat": settings.weight}
    places |= {f"daat_lambda_{weight:g}": weight for weight in settings.weights}
    found = in_percent(summary[summary["method"].isin(places)]).rename(columns={"measure": "line"})
    found["λ"] = found["method"].map(places)
    return found[["line", "λ", "value", "low", "high"]].sort_values("λ", kind="stable")


def moving(settings: DaatSettings) -> Source:
    """The oracle that sees a perturbation: the settings', but a learned one in place of the exact, which cannot react."""
    return "learned" if settings.oracle == "exact" else settings.oracle


def depth_of(settings: DaatSettings, data: ImageSet, size: int) -> dict[str, Tensor]:
    """What the oracles see, for the figure: maps N×H×W by name. Exact depth only where the data have it."""
    images = as_float(data.images)
    sources: list[Source] = ["exact", "learned"] if data.depth is not None else [settings.oracle]
    found = {}
    for source in dict.fromkeys((*sources, settings.oracle)):
        found[f"disparity, {source}"] = oracle(settings, size, source)(images, data.depth)
        found[f"edges, {source}"] = edges(found[f"disparity, {source}"], settings.operator)
    return found | {"edges of the image": edges(oracles.luminance(images, None), settings.operator)}


def edge_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of `focus.edge_cosines` as claims read them: the aligned attention under attack as measure "edge_cosine".

    And DAAT's images with attention that is the same everywhere, as method "uniform".
    """
    aligned = found[found["measure"] == "aligned, under attack"].assign(measure="edge_cosine")
    flat = found[(found["measure"] == "uniform, under attack") & (found["method"] == "daat")]
    return pd.concat([aligned, flat.assign(method="uniform", measure="edge_cosine")], ignore_index=True)


def rehearsal(settings: DaatSettings, size: int, classes: int) -> dict[str, Method]:
    """Standard training, PGD-AT and DAAT for a dry run: oracle and teacher untrained, of the real ones' shapes and cost."""
    untrained = models.of_settings(settings, classes=classes, channels=3, size=size, seed=0)
    frozen = untrained.eval().requires_grad_(False) if settings.teacher else None
    network = (
        oracles.untrained_dpt() if settings.oracle == "pretrained" else oracles.DepthNet().eval().requires_grad_(False)
    )
    seen = oracles.target(oracles.by_network(network), settings.operator)
    plain = methods(settings.model_copy(update={"methods": ["standard", "pgd_at"]}), size, None)
    return {**plain, "daat": _daat(settings, seen, frozen, settings.weight)}


REHEARSALS = {"daat_imagenet100": rehearsal}
