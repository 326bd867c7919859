"""The study `gfa_landscape`: settings, trainings, attacks and measures of GFA's notebook."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import (
    Attack,
    apgd,
    autoattack,
    each_image,
    evaluating,
    fgsm,
    margin,
    pgd,
    square,
    training_pgd,
    transfer,
)
from paperlib.attacks.minimum_norm import l2_attacks, pixel_attacks
from paperlib.data import ImageSet, Splits, as_float
from paperlib.evaluation import by_image, evaluate_each, in_percent
from paperlib.evaluation.intervals import distance_table
from paperlib.evaluation.settings import ImageSettings, Plan, check_changes, planned
from paperlib.geometry import weighted_layers
from paperlib.geometry.radial import pgd_in_cone, radial
from paperlib.methods import Method, outputs
from paperlib.methods.baselines import AdversarialTraining, GradientPenalty, Standard, Task
from paperlib.methods.gfa import GFA, RadialTwin, Watched, check_differentiable_twice, cosines
from paperlib.models.trained import Trained, each_model
from paperlib.runs.run import Run
from paperlib.runs.settings import Count, Images, Positive, Radius, Share
from paperlib.training import train_each

ARMS = {"first": 1, "deep": 3}  # number of aligned layers
Name = Literal["standard", "pgd_at", "gradient_penalty", "first", "deep"]


class GfaSettings(ImageSettings):
    """Settings of GFA. Almost nothing is published, so every value is a choice."""

    methods: Annotated[list[Name], Field(min_length=2)]
    task: Task  # the paper uses mse
    alpha: Positive  # α
    betas: dict[Literal["first", "deep"], list[Radius]]  # β of each layer
    aim: Share | None  # target of the mean cosine; the paper reports 0.93
    ramp: Share  # share of the steps over which β rises
    penalty: Radius  # λ of the gradient penalty
    train_steps: Count  # steps of PGD-AT's attack
    sweep: list[Radius]  # factors of β, for FIRST and DEEP
    literal: bool  # whether to train FIRST also with the printed sign, −β (1 − cos); one seed
    tasks: dict[Task, Radius]  # other task losses and FIRST's β for each, because losses differ in scale
    architectures: dict[str, dict[str, Any]]  # changed settings by name, for FIRST and standard training
    mlp: dict[str, Any]  # changed settings for section 1; {} for no MLP
    mlp_betas: dict[Literal["first", "deep"], list[Radius]]  # β of each layer of the MLP
    mlp_data: str | None  # data set of the MLP; None: the same data
    restarts: Count  # restarts of PGD and of the adaptive attack
    queries: Count  # queries of Square
    minimum_images: Count  # images for the minimum-norm attacks
    minimum_steps: Count  # steps of C&W, EAD (in each search) and DDN
    pixel_images: Images  # images for the one-pixel attack
    pixel_generations: Count
    landscape_images: Count
    landscape_reach: Positive  # largest L2 distance at which losses are drawn
    cone_angles: list[Annotated[float, Field(ge=0, le=90)]]  # degrees
    epsilons: list[Positive]  # radii ε of the sweep in L∞

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, layers in ARMS.items():
            for field, betas in {"betas": self.betas, "mlp_betas": self.mlp_betas if self.mlp else self.betas}.items():
                if name in self.methods and len(betas.get(name, [])) != layers:  # type: ignore[arg-type]
                    raise ValueError(f"{field} needs {layers} β for {name}")
        for name, changes in {"mlp": self.mlp, **self.architectures}.items():
            check_changes(self, name, changes)
        if missing := {"standard", "first"} - set(self.methods):
            raise ValueError(f"methods needs {' and '.join(sorted(missing))}: everything is held against them")
        return self


STUDIES = {"gfa_landscape": GfaSettings}


# Trainings ---------------------------------------------------------------------------------------------------------


def layers(settings: Any, data: Splits, count: int = 3) -> list[str]:
    """Return the first `count` layers of the settings' network. Raises InputError if it is not differentiable twice."""
    images = as_float(data.train.images[:2])
    classes, channels, size = len(data.train.classes), images.shape[1], images.shape[-1]
    model = models.of_settings(settings, classes=classes, channels=channels, size=size, seed=0)
    found = weighted_layers(model, images)[:count]
    check_differentiable_twice(model, images, found, getattr(settings, "task", "mse"))
    return found


def training_attack(settings: GfaSettings) -> Attack:
    """Return PGD-AT's attack on the task loss, with steps that sum to 2.5 ε."""
    return training_pgd(eps=settings.eps_linf, norm="linf", steps=settings.train_steps, loss=settings.task)


def methods(settings: GfaSettings, names: Sequence[str]) -> dict[str, Method]:
    """Return the methods of the settings for a network whose first layers have these names."""
    everything: dict[str, Method] = {
        "standard": Standard(settings.task),
        "pgd_at": AdversarialTraining(training_attack(settings), settings.task),
        "gradient_penalty": GradientPenalty(settings.penalty, settings.task),
    }
    for name, count in ARMS.items():
        if name in settings.methods:
            everything[name] = _gfa(settings, names[:count], settings.betas[name])  # type: ignore[index]
    return {name: everything[name] for name in settings.methods}


def _gfa(settings: GfaSettings, names: Sequence[str], betas: Sequence[float], **changes: Any) -> GFA:
    fixed = {"alpha": settings.alpha, "task": settings.task, "aim": settings.aim, "ramp": settings.ramp}
    return GFA(tuple(names), tuple(betas), **{**fixed, **changes})


def mlp_methods(settings: GfaSettings, names: Sequence[str]) -> dict[str, Method]:
    """Return standard training, FIRST and DEEP of the MLP, as "mlp_…"; empty if `mlp` is empty."""
    if not settings.mlp:
        return {}
    built = methods(settings.model_copy(update={"betas": settings.mlp_betas}), names)
    watched: dict[str, Method] = {"mlp_standard": Watched(built["standard"], tuple(names), settings.task)}
    return watched | {f"mlp_{name}": built[name] for name in ("first", "deep") if name in built}


def sweep_methods(settings: GfaSettings, names: Sequence[str]) -> dict[str, Method]:
    """Return FIRST and DEEP at each factor of β, as "<method>_x<factor>", and "first_literal" with the printed sign."""
    literal: dict[str, Method] = (
        {"first_literal": _gfa(settings, names[:1], settings.betas["first"], literal=True)} if settings.literal else {}
    )
    return literal | {
        f"{name}_x{factor:g}": _gfa(settings, names[:count], [factor * beta for beta in settings.betas[name]])  # type: ignore[index]
        for name, count in ARMS.items()
        if name in settings.methods
        for factor in settings.sweep
    }


def task_methods(settings: GfaSettings, names: Sequence[str]) -> dict[str, Method]:
    """Return standard training, adversarial training and FIRST under each other task loss."""
    found: dict[str, Method] = {}
    for task, beta in settings.tasks.items():
        found[f"standard_{task}"] = Standard(task)
        if "pgd_at" in settings.methods:
            attack = training_attack(settings.model_copy(update={"task": task}))
            found[f"pgd_at_{task}"] = AdversarialTraining(attack, task)
        found[f"first_{task}"] = _gfa(settings, names[:1], [beta], task=task)
    return found


def architecture_methods(settings: GfaSettings, name: str, names: Sequence[str]) -> dict[str, Method]:
    """Return standard training and FIRST of another architecture."""
    first = _gfa(settings, names[:1], settings.betas["first"])
    return {f"standard_{name}": Standard(settings.task), f"first_{name}": first}


def train_architectures(
    run: Run[GfaSettings], settings: GfaSettings, data: Splits, attack: Attack
) -> dict[str, dict[int, nn.Module]]:
    """Train every other architecture plainly and with FIRST, with the first seed."""
    trained: dict[str, dict[int, nn.Module]] = {}
    for name, changes in settings.architectures.items():
        names = layers(settings.model_copy(update=changes), data, 1)
        built = architecture_methods(settings, name, names)
        trained |= train_each(run, built, data, attack, seeds=settings.seeds[:1], **changes)
    return trained


def twins(members: Mapping[int, nn.Module], layer: str) -> dict[int, nn.Module]:
    """Return the `RadialTwin` of each model, by seed, at the input of a layer."""
    return {seed: RadialTwin(model, layer) for seed, model in members.items()}


# Attacks -----------------------------------------------------------------------------------------------------------


def selection_attack(settings: GfaSettings) -> Attack:
    """Return the attack on validation images: PGD-10 on the margin, whose gradient does not vanish near the targets."""
    return partial(pgd, eps=settings.eps_linf, norm="linf", steps=10, step_size=settings.eps_linf / 4, loss="margin")


def attacks(settings: GfaSettings, task: Task) -> dict[str, Attack]:
    """Return FGSM, which the paper reports, and PGD on cross-entropy, as in libraries, on the task loss and the margin."""
    eps = settings.eps_linf
    strong = partial(pgd, eps=eps, norm="linf", steps=40, step_size=eps / 8)
    return {
        "fgsm": partial(fgsm, eps=eps, norm="linf"),
        "pgd_task": partial(strong, loss=task),
        "pgd_ce": strong,
        "pgd_margin": partial(strong, loss="margin"),
    }


def strong_attacks(settings: GfaSettings, source: nn.Module) -> dict[str, Attack]:
    """Return the strong attacks, all in L∞: APGD, Square, transfer, restarts, the adaptive attack, AutoAttack."""
    eps, restarts = settings.eps_linf, settings.restarts
    steps = partial(pgd, steps=40, step_size=eps / 8)
    found: dict[str, Attack] = {
        "apgd_ce": partial(apgd, eps=eps, norm="linf"),
        "apgd_dlr": partial(apgd, eps=eps, norm="linf", loss="dlr"),
        "square": partial(square, eps=eps, norm="linf", queries=settings.queries),
        "transfer": partial(transfer, source=source, attack=steps, eps=eps, norm="linf"),
        "restarts": partial(steps, eps=eps, norm="linf", restarts=restarts),
        "adaptive": partial(adaptive, eps=eps, norm="linf", steps=100, restarts=restarts),
    }
    if settings.autoattack_images:  # the paper lists the parts one by one
        whole = partial(autoattack, eps=eps, norm="linf")
        found |= {"apgd_t": partial(whole, only="apgd-t"), "fab_t": partial(whole, only="fab-t"), "autoattack": whole}
    return found


def adaptive(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Literal["linf"], steps: int, restarts: int
) -> Tensor:
    """Run an adaptive attack on GFA in L∞: it follows the logit margin and starts orthogonally to the radial direction.

    An aligned gradient of the task loss points along the image, so an attack on that loss begins with a change of contrast.
    Also, the squared error of outputs near their targets has hardly any gradient. Here the loss is the margin. The start is
    a corner of the ball less its radial part. Step sizes decay from ε/2 to ε/50. Each image keeps its strongest iterate.
    """
    best = images.clone()
    with torch.no_grad():
        reached = margin(outputs(model, best), labels)
    unit = radial(model, images)
    for _ in range(restarts):
        corner = eps * torch.randn_like(images).sign()
        along = each_image((corner * unit).flatten(1).sum(1), images)
        current = (images + (corner - along * unit).clamp(-eps, eps)).clamp(0, 1)
        for step in range(steps + 1):
            current = current.detach().requires_grad_(True)
            with torch.enable_grad():
                strength = margin(outputs(model, current), labels)
                (gradient,) = torch.autograd.grad(strength.sum(), current)
            better = strength.detach() > reached
            best = torch.where(each_image(better, images), current.detach(), best)
            reached = reached.maximum(strength.detach())
            size = eps * 0.5 * 0.04 ** (step / max(1, steps - 1))
            change = current.detach() - images + size * gradient.nan_to_num(0, 0, 0).sign()
            current = (images + change.clamp(-eps, eps)).clamp(0, 1)
    return best


def sweep_attack() -> Attack:
    """Return PGD on the margin within ε = 1, which `evaluation.sweep` rescales to every ε of the settings."""
    return partial(pgd, eps=1.0, norm="linf", steps=40, step_size=1 / 8, loss="margin", best=True)


def plan(settings: GfaSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method.

    For "…_joint" measures it is an upper bound, since the images that all models classify correctly are not known yet.
    """
    weak, strong = attacks(settings, settings.task), strong_attacks(settings, nn.Identity())
    few, nearest = settings.autoattack_images or settings.audit_images, l2_attacks(settings.minimum_steps)
    fewer = dict.fromkeys([*strong, "worst", *(f"{name}_joint" for name in [*weak, *strong, "worst"])], few)
    fewer |= dict.fromkeys([f"{name}_{kind}" for name in nearest for kind in ("ratio", "l2")], settings.minimum_images)
    fewer |= dict.fromkeys(pixel_attacks(settings.pixel_generations), settings.pixel_images)
    fewer |= dict.fromkeys(["flatness", "cosine"], settings.landscape_images)
    names = ["", "", ""]  # placeholders: the layers' names need a network, and the counts do not depend on them
    others = [architecture_methods(settings, name, names) for name in settings.architectures]
    once = [name for built in (sweep_methods(settings, names), task_methods(settings, names), *others) for name in built]
    seeds = dict.fromkeys([*methods(settings, names), *mlp_methods(settings, names)], len(settings.seeds))
    return Plan(planned(settings, ["clean", *weak], fewer), {**seeds, **dict.fromkeys(once, 1)}, settings.data)


PLANS = {"gfa_landscape": plan}


# Measures ----------------------------------------------------------------------------------------------------------


def distance_rows(found: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Return accuracy under each minimum-norm attack within L2 `eps`: rows as `evaluate_each`, measure "<attack>_l2"."""
    return by_image((row.method, row.seed, f"{row.attack}_l2", row.each > eps) for row in found.itertuples(index=False))


JOINT = ("standard", "pgd_at", "first", "deep")  # the paper's models, as far as reviews name them


def jointly_correct(table: pd.DataFrame) -> pd.DataFrame:
    """Restrict every attack's rows to the images that all of the paper's models, of all seeds, classify correctly.

    The paper counts these images, according to its reviews. `table` has attacks on the same images, with `each`. Rows as
    from `evaluate_each`, measure "<attack>_joint"; empty if no image is right under all models.
    """
    own = table[table["method"].isin(JOINT)]
    kept = np.logical_and.reduce(list(own.loc[own["measure"] == "clean", "each"]))
    if not kept.any():
        return own[:0]
    attacked = own[own["measure"] != "clean"].itertuples(index=False)
    return by_image((row.method, row.seed, f"{row.measure}_joint", row.each[kept]) for row in attacked)


def ratio_rows(found: pd.DataFrame, against: str) -> pd.DataFrame:
    """Return the ratios of `distance_table` as rows for the claims: measure "<attack>_ratio", mean, low, high."""
    seeds, count = found.groupby("method")["seed"].nunique(), len(found["each"].iloc[0])
    rows = [
        _row(one.method, f"{one.attack}_ratio", one.ratio, one.low, one.high, int(seeds[one.method]), count)
        for one in distance_table(found, against).reset_index().itertuples(index=False)
    ]
    return pd.DataFrame(rows)


def cosine_table(
    run: Run[GfaSettings], trained: Trained, parts: Mapping[str, ImageSet], names: Sequence[str]
) -> pd.DataFrame:
    """Return the mean cosine of loss gradient and layer input: one row per method, columns (set of images, layer)."""
    rows = {}
    for method, members in trained.items():
        row: dict[tuple[str, str], float] = {}
        for part, data in parts.items():
            found = [cosines(model.to(run.device), data, names, run.settings.task) for model in members.values()]
            row |= {(part, name): float(value) for name, value in zip(names, torch.stack(found).mean((0, 2)), strict=True)}
        rows[method] = row
    return pd.DataFrame(rows).T


def cosine_curves(histories: pd.DataFrame) -> pd.DataFrame:
    """Return the cosines over training: columns panel (the layer), line (method and set of images), epoch, value.

    Training values are means over the epoch, as seen by the loss; validation values are from evaluation mode after it.
    """
    keys = [key for key in histories if key.startswith(("cosine ", "validation cosine "))]
    rows = histories.melt(["method", "epoch"], keys, "key").dropna(subset="value")
    on = rows["key"].str.startswith("validation").map({True: "validation", False: "training"})
    rows = rows.assign(panel=rows["key"].str.replace(".*cosine ", "input of ", regex=True), line=rows["method"] + ", " + on)
    return rows.groupby(["panel", "line", "epoch"], sort=False, as_index=False)["value"].mean()


def _row(method: str, measure: str, value: float, low: float, high: float, seeds: int, n: int) -> dict[str, Any]:
    """Return a row as in `evaluation.summary`, for a measure that brings its own interval."""
    return {"method": method, "measure": measure, "mean": value, "deviation": math.nan, "low": low, "high": high,
            "seeds": seeds, "n": n, "sample_low": low, "sample_high": high, "each": None}  # fmt: skip


def cosine_rows(run: Run[GfaSettings], trained: Trained, parts: Mapping[str, ImageSet], name: str) -> pd.DataFrame:
    """Measure the cosine at one layer by image, on each set as method "<method> on <set>": rows as from `evaluate_each`.

    Clean accuracy is added, because the cosine of a model at chance is meaningless.
    """
    rows = []
    for method, seed, model in each_model(trained):
        for part, data in parts.items():
            each = cosines(model.to(run.device), data, [name], run.settings.task)[0].double().numpy()
            with evaluating(model), torch.no_grad():
                right = model(as_float(data.images).to(run.device)).argmax(1).cpu() == data.labels
            rows += [(f"{method} on {part}", seed, "cosine", each), (f"{method} on {part}", seed, "clean", right.numpy())]
    return by_image(rows)


def cones(settings: GfaSettings) -> dict[str, Attack]:
    """Return PGD within each angle of the radial line and the tangential plane, as "<around>_<angle>"; may leave [0,1]."""
    attack = partial(pgd_in_cone, eps=settings.eps_l2, norm="l2", steps=20, step_size=settings.eps_l2 / 5)
    return {
        f"{around}_{angle:g}": partial(attack, around=around, angle=angle)
        for around in ("radial", "tangential")
        for angle in settings.cone_angles
    }


def cone_points(summary: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy (%) against the angle: columns panel, line, "angle (degrees)", value, low, high."""
    found = in_percent(summary[summary["measure"] != "clean"])
    places = found["measure"].str.split("_", expand=True)  # names from `cones`: "<around>_<angle>"
    panels = places[0].map({"radial": "around the radial line", "tangential": "around the tangential plane"})
    found = found.assign(panel=panels, line=found["method"], **{"angle (degrees)": places[1].astype(float)})
    return found[["panel", "line", "angle (degrees)", "value", "low", "high"]]


def sweep_points(settings: GfaSettings, summaries: Sequence[pd.DataFrame], table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return clean and robust accuracy (%) and the cosine on test images against β; standard training is β = 0.

    Columns: panel (method and quantity), line, "β of the first layer", value, low, high.
    """
    found = in_percent(pd.concat(summaries, ignore_index=True))
    found = found[found["measure"].isin(["clean", "pgd_margin"])]
    cosine = table["test images", name].rename("value").rename_axis("method").reset_index()
    cosine = cosine.assign(measure="cosine", low=cosine["value"], high=cosine["value"])
    parts = []
    for arm in (arm for arm in ARMS if arm in settings.methods):
        beta = settings.betas[arm][0]  # type: ignore[index]
        places = {"standard": 0.0, arm: beta} | {f"{arm}_x{factor:g}": factor * beta for factor in settings.sweep}
        for of, rows in (("accuracy (%)", found), ("cosine", cosine)):
            own = rows[rows["method"].isin(places)].rename(columns={"measure": "line"})
            parts.append(own.assign(panel=f"{arm.upper()}, {of}", **{"β of the first layer": own["method"].map(places)}))
    frame = pd.concat(parts)[["panel", "line", "β of the first layer", "value", "low", "high"]]
    return frame.sort_values("β of the first layer", kind="stable")


def others_each(run: Run[GfaSettings], groups: Mapping[str, Trained], data: ImageSet) -> pd.DataFrame:
    """Run `evaluate_each` on the models of each task loss, with the attacks for that loss."""
    tables = [evaluate_each(run, models, data, attacks(run.settings, task)) for task, models in groups.items()]  # type: ignore[arg-type]
    return pd.concat(tables, ignore_index=True)


def by_task(settings: GfaSettings, tasked: Trained, *others: Trained) -> dict[str, dict[str, Mapping[int, nn.Module]]]:
    """Group models by their task loss: `tasked` have it in their names, `others` were trained with the settings' loss."""
    groups: dict[str, dict[str, Mapping[int, nn.Module]]] = {settings.task: {}}
    for members in others:
        groups[settings.task] |= members
    for task in settings.tasks:
        groups.setdefault(task, {}).update({name: one for name, one in tasked.items() if name.endswith(f"_{task}")})
    return groups


def first_cosines(run: Run[GfaSettings], groups: Mapping[str, Trained], data: ImageSet) -> pd.Series:
    """Return the mean cosine over seeds, by method, at each model's first layer under its own task loss."""
    found = {}
    for task, members in groups.items():
        for method, one in members.items():
            each = []
            for model in one.values():
                names = weighted_layers(model.to(run.device), as_float(data.images[:2]).to(run.device))[:1]
                each.append(float(cosines(model, data, names, task).mean()))  # type: ignore[arg-type]
            found[method] = float(np.mean(each))
    return pd.Series(found, name=("cosine", "here"))


def measured(summaries: Sequence[pd.DataFrame], aligned: pd.DataFrame) -> pd.DataFrame:
    """Return all rows that claims are compared with, as `evaluation.summary`; `aligned` is from `cosine_rows`."""
    each = aligned["each"].where(aligned["method"].str.endswith("on test images"), None)  # other images cannot be paired
    return pd.concat([*summaries, aligned.assign(each=each)], ignore_index=True)
