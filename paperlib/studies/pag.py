"""The studies `toy_pag` and `cifar_pag`: what their notebooks can be told, and what they train, attack and measure."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from paperlib.attacks import Attack, Norm, autoattack, pgd
from paperlib.data import EXTENTS, ImageSet, Splits, as_float, subset
from paperlib.evaluation import by_image
from paperlib.evaluation.settings import ImageSettings, Plan, planned
from paperlib.geometry import all_classes, distance_to_boundary
from paperlib.methods import Method
from paperlib.methods.baselines import AdversarialTraining, GradientPenalty, Standard
from paperlib.methods.pag import (
    PAG,
    Draw,
    Targets,
    alignment,
    centroids,
    class_mean,
    distilled,
    one_image,
    pag_score,
    sample,
    tabulated,
    targeted_images,
    toward,
)
from paperlib.models.external import load_robust_resnet50, load_target_gradients
from paperlib.models.trained import Trained, each_model, first_models
from paperlib.runs.files import root
from paperlib.runs.run import Run
from paperlib.runs.settings import Count, Positive, Radius, Share, TrainingSettings
from paperlib.runs.tensors import digest, read_tensors, write_tensors

Source = Literal["one_image", "class_mean", "nearest_neighbor", "kmeans", "rigd_linf", "rigd_l2", "published"]
Control = Literal["wrong_class", "gradient_penalty"]


class ToySettings(TrainingSettings):
    """Appendix C.1."""

    device: Literal["cpu"]  # too small for anything else
    weight: Radius  # λ; not published
    neighbors: Annotated[int, Field(ge=2)]  # sample size of Nearest Neighbor, per class; not published
    gradient: Literal["log_softmax", "logit"]
    eps: Radius  # of the L2 attack
    attack_steps: Count
    attack_step_size: Positive


class CifarSettings(ImageSettings):
    """Section 5.2 and Appendices C.2 and D."""

    attack_steps: Count  # of the PGD that is reported
    autoattack_norms: list[Norm]  # [] where AutoAttack is not run
    sources: Annotated[list[Source], Field(min_length=1)]
    weights: dict[Source, Radius] | None  # λ of each source; None: as in Table 3 for this data set
    controls: list[Control]  # wrong_class: Class Mean's targets, each class with the next one's; no paper's
    penalty: Radius  # λ of the gradient penalty, which has no direction
    classes_per_step: Count | None  # None: all, as in the paper
    class_draw: Draw  # who draws the K classes: each image its own, or the batch the same for all
    passes: Literal[1, 2]  # 2, the authors' code: the gradient term has a pass and an augmentation of its own
    early_weight: Share  # factor on λ in the first half of the training; 1: none, 2/3: an option of the authors' code
    gradient: Literal["log_softmax", "logit"]
    published_targets: str  # folder of target gradients in the authors' layout, for the source "published"; "" for none
    class_mean_constant: Positive
    neighbors: Annotated[int, Field(ge=2)]  # two at least: an image's own class must have another
    clusters: Count
    teacher_epochs: Count  # of the robust teachers that RIGD distils
    teacher_steps: Count  # of their PGD
    teacher_learning_rate: Positive
    teacher_linf: str  # file of a published robust ResNet-50 to use instead of training one; "" for none
    teacher_l2: str
    sweep_weights: list[Radius]  # λ of Figure 5's Class Mean models; [] for no sweep
    sweep_epsilons: list[Radius]  # factors of eps
    score_images: Count  # of the PAG score
    score_eps: Positive  # of its targeted L2 attack
    score_steps: Count

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.weights is not None and (missing := set(self.sources) - set(self.weights)):
            raise ValueError(f"weights has no λ for {', '.join(sorted(missing))}")
        needing = {"sweep_weights": self.sweep_weights, "controls = [wrong_class]": "wrong_class" in self.controls}
        if "class_mean" not in self.sources and (asked := [name for name, given in needing.items() if given]):
            raise ValueError(f"{asked[0]} needs class_mean among the sources")
        if ("published" in self.sources) != bool(self.published_targets):
            raise ValueError("source published and published_targets, a folder, go together")
        return self


# Table 3. K-means is not in the paper and takes Class Mean's; that of published gradients is their code's.
WEIGHTS: dict[str, dict[Source, float]] = {
    "cifar10": {
        "one_image": 0.5, "class_mean": 0.4, "kmeans": 0.4, "nearest_neighbor": 0.4, "rigd_linf": 0.4, "rigd_l2": 0.4,
        "published": 1.5,
    },
    "stl10": {
        "one_image": 0.25, "class_mean": 0.2, "kmeans": 0.2, "nearest_neighbor": 0.4, "rigd_linf": 0.4, "rigd_l2": 0.4,
        "published": 1.5,
    },
}  # fmt: skip


STUDIES = {"toy_pag": ToySettings, "cifar_pag": CifarSettings}


def toy_methods(settings: ToySettings, train: ImageSet) -> dict[str, Method]:
    """Section 5.1: vanilla training and PAG with Nearest Neighbor."""
    pool = sample(train, settings.neighbors, settings.seeds[0])
    return {"vanilla": Standard(), "pag": PAG(partial(toward, pool), settings.weight, None, settings.gradient)}


def toy_attacks(settings: ToySettings) -> dict[str, Attack]:
    """Appendix C.1: L2 PGD from the sample itself, in steps of one length; Algorithm 1 as printed has the bare gradient."""
    steps, size = settings.attack_steps, settings.attack_step_size
    attack = partial(pgd, eps=settings.eps, norm="l2", steps=steps, step_size=size, random_start=False, box=None)
    return {"pgd_l2": attack}


def toy_margins(run: Run[ToySettings], trained: Trained, data: ImageSet) -> pd.DataFrame:
    """Distances of test samples to the boundary along and across x₂ = 2 x₁, to 60: method, seed, direction, distance."""
    directions = {"along": torch.tensor([1.0, 2.0]) / 5**0.5, "across": torch.tensor([-2.0, 1.0]) / 5**0.5}
    parts = [
        pd.DataFrame(
            {
                "method": method, "seed": seed, "direction": name,
                "distance": distance_to_boundary(model, data.images, direction, reach=60.0, step=0.1),
            }
        )
        for method, seed, model in each_model(trained)
        for name, direction in directions.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def with_margins(table: pd.DataFrame, distances: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The table of `evaluate_each` with the share of samples whose margin is above `eps`, by direction, added."""
    rows = distances.assign(hit=distances["distance"] > eps, measure="margin_" + distances["direction"])
    counted = rows.groupby(["method", "seed", "measure"], sort=False)["hit"].agg(n="size", correct="sum")
    return pd.concat([table, counted.assign(value=counted["correct"] / counted["n"]).reset_index()])


def teachers(settings: CifarSettings) -> dict[str, Method]:
    """The adversarial trainings whose models RIGD needs: those of the sources that have no published model."""
    published = {"linf": settings.teacher_linf, "l2": settings.teacher_l2}
    return {
        f"teacher_{norm}": AdversarialTraining(attack)
        for norm, attack in _attacks(settings, settings.teacher_steps, 2.5).items()
        if f"rigd_{norm}" in settings.sources and not published[norm]
    }


def published_teachers(settings: CifarSettings) -> dict[str, dict[int, nn.Module]]:
    """The robust models that the settings name by file, as `training.train_each` would return them."""
    files = {"teacher_linf": settings.teacher_linf, "teacher_l2": settings.teacher_l2}
    return {name: {0: load_robust_resnet50(Path(file))} for name, file in files.items() if file}


def target_sources(settings: CifarSettings, train: ImageSet, teachers: Trained, device: torch.device) -> dict[str, Targets]:
    """The target gradients g(x, y_t) of each source in the settings, and of the control that has some."""
    seed = settings.seeds[0]
    pools = {
        "one_image": partial(one_image, train, seed),
        "class_mean": partial(class_mean, train, settings.class_mean_constant),
        "nearest_neighbor": partial(sample, train, settings.neighbors, seed),
        "kmeans": partial(centroids, train, settings.clusters, seed),
    }
    targets: dict[str, Targets] = {}
    for source in settings.sources:
        if source == "published":
            own, gradients = load_target_gradients(root() / Path(settings.published_targets).expanduser())
            targets[source] = tabulated(own.images, gradients)
        elif source in pools:
            targets[source] = partial(toward, pools[source]().to(device))
        else:
            teacher = first_models(teachers)[source.replace("rigd", "teacher")].to(device)
            targets[source] = partial(distilled, teacher, settings.gradient)
    if "wrong_class" in settings.controls:
        targets["wrong_class"] = partial(toward, pools["class_mean"]().roll(1, 0).to(device))
    return targets


def methods(settings: CifarSettings, targets: Mapping[str, Targets]) -> dict[str, Method]:
    """Vanilla training, PAG with each source, and the controls."""
    weights = _weights(settings)
    named: dict[str, Method] = {"vanilla": Standard()}
    named |= {source: _pag(settings, targets[source], weights[source]) for source in settings.sources}
    if "wrong_class" in settings.controls:
        named["wrong_class"] = _pag(settings, targets["wrong_class"], weights["class_mean"])
    if "gradient_penalty" in settings.controls:
        named["gradient_penalty"] = GradientPenalty(settings.penalty)
    return named


def _pag(settings: CifarSettings, targets: Targets, weight: float) -> PAG:
    return PAG(
        targets, weight, settings.classes_per_step, settings.gradient,
        draw=settings.class_draw, passes=settings.passes, early=settings.early_weight,
    )  # fmt: skip


def sweep_methods(settings: CifarSettings, targets: Mapping[str, Targets]) -> dict[str, Method]:
    """Figure 5: PAG with Class Mean at each λ of the sweep but the one that `methods` trains anyway."""
    return {name: _pag(settings, targets["class_mean"], weight) for name, weight in _swept(settings).items()}


def _swept(settings: CifarSettings) -> dict[str, float]:
    return {f"lambda_{one:g}": one for one in settings.sweep_weights if one != _weights(settings)["class_mean"]}


def with_sweep(settings: CifarSettings, summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with Class Mean's own rows once more under the name of its λ, as the sweep's other points have."""
    own = summary[summary["method"] == "class_mean"]
    named = own.assign(method=f"lambda_{_weights(settings).get('class_mean', 0):g}")
    return pd.concat([summary, named], ignore_index=True)


def _weights(settings: CifarSettings) -> dict[Source, float]:
    return settings.weights or WEIGHTS.get(settings.data, WEIGHTS["cifar10"])


def attacks(settings: CifarSettings) -> dict[str, Attack]:
    """Appendix C.2: PGD with a random start and steps of 2ε/k, under both norms."""
    return {f"pgd_{norm}": attack for norm, attack in _attacks(settings, settings.attack_steps, 2.0).items()}


def validation_attack(settings: CifarSettings) -> Attack:
    """What checkpoints are selected under: PGD-10 in L2, where PAG is at its best."""
    return _attacks(settings, 10, 2.0)["l2"]


def strong_attacks(settings: CifarSettings) -> dict[str, Attack]:
    """AutoAttack, which the paper does not report."""
    eps = {"linf": settings.eps_linf, "l2": settings.eps_l2}
    return {f"autoattack_{norm}": partial(autoattack, eps=eps[norm], norm=norm) for norm in settings.autoattack_norms}


def _attacks(settings: CifarSettings, steps: int, total: float) -> dict[Norm, Attack]:
    """PGD under both norms; its steps add up to `total` times eps."""
    radii: dict[Norm, float] = {"linf": settings.eps_linf, "l2": settings.eps_l2}
    return {
        norm: partial(pgd, eps=eps, norm=norm, steps=steps, step_size=total * eps / steps) for norm, eps in radii.items()
    }


def plan(settings: CifarSettings) -> Plan:
    """How many images each measure has, and how many seeds each method; the sweep over λ has one."""
    swept, own = _swept(settings), f"lambda_{_weights(settings).get('class_mean', 0):g}"
    fewer = dict.fromkeys(strong_attacks(settings), settings.autoattack_images)
    fewer |= {"pag_score": settings.score_images, "alignment": settings.score_images if swept else 0}
    images = planned(settings, ["clean", *attacks(settings), "pgd"], fewer)
    trained = ["vanilla", *settings.sources, *settings.controls, *[own] * ("class_mean" in settings.sources)]
    return Plan(images, {**dict.fromkeys(trained, len(settings.seeds)), **dict.fromkeys(swept, 1)}, settings.data)


def toy_plan(settings: ToySettings) -> Plan:
    """The same of the toy."""
    images = dict.fromkeys(["clean", *toy_attacks(settings), "margin_along", "margin_across"], EXTENTS["toy"][0])
    return Plan({**images}, dict.fromkeys(["vanilla", "pag"], len(settings.seeds)), "")


PLANS = {"toy_pag": toy_plan, "cifar_pag": plan}


def toward_every_class(
    run: Run[CifarSettings], trained: Trained, image: Tensor, classes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Figure 4: one image C×H×W, and what each method's first model makes of it on the way to the first classes."""
    repeated = as_float(image).to(run.device).expand(classes, *image.shape)
    aims = torch.arange(classes, device=run.device)
    settings = run.settings
    changed = {
        method: targeted_images(model.to(run.device), repeated, aims, eps=settings.score_eps, steps=settings.score_steps)
        for method, model in first_models(trained).items()
    }
    return repeated, changed


def scores_each(run: Run[CifarSettings], trained: Trained, judge: nn.Module, data: ImageSet) -> pd.DataFrame:
    """The PAG score of every model: rows with method, seed, measure, n, correct and value, as `evaluate_each` has."""
    settings = run.settings
    rows = []
    for method, seed, model in each_model(trained):
        file = run.folder / "scores" / f"{method}-seed{seed}.safetensors"
        recipe = digest(model, data, [settings.score_eps, settings.score_steps, digest(judge, data, None)])
        if not file.exists() or read_tensors(file)[1].get("recipe") != recipe:
            seen = pag_score(model.to(run.device), judge, data, eps=settings.score_eps, steps=settings.score_steps)
            write_tensors(file, {"seen": seen}, {"recipe": recipe})
        seen = read_tensors(file)[0]["seen"]
        rows.append((method, seed, "pag_score", len(seen), int(seen.sum()), float(seen.float().mean())))
    return pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "correct", "value"])


def alignment_rows(run: Run[CifarSettings], trained: Trained, target: Targets, data: ImageSet) -> pd.DataFrame:
    """Each model's cosine with one source's targets in evaluation mode: measure "alignment", rows as `evaluate_each` has.

    `each` is the mean over classes by image, an array N.
    """
    return by_image(
        (method, seed, "alignment", alignment(model.to(run.device), data, target, run.settings.gradient).mean(1).numpy())
        for method, seed, model in each_model(trained)
    )


def norm_rows(table: pd.DataFrame) -> pd.DataFrame:
    """PGD under both norms as one measure "pgd" of "<method> on L2" and "<method> on L∞", to be held against each other."""
    names = {"pgd_l2": "L2", "pgd_linf": "L∞"}
    rows = table[table["measure"].isin(names)]
    return rows.assign(method=rows["method"] + " on " + rows["measure"].map(names), measure="pgd")


def alignment_each(run: Run[CifarSettings], trained: Trained, targets: Mapping[str, Targets], data: Splits) -> pd.DataFrame:
    """Mean cosine of class gradients with each source's targets, mean over seeds: one row a source.

    Columns: vanilla's on test images; the trained model's on test and on as many training images; on test images through
    the statistics of the batch, as the loss sees it (see `alignment`); and what a cosine has to be read against, the
    highest mean cosine that one direction for all classes could reach at each image.
    """
    settings, device = run.settings, run.device
    train, test = (subset(part, settings.score_images, 0) for part in (data.train, data.test))
    rows = {}
    for source, target in targets.items():

        def mean(method: str, images: ImageSet, target: Targets = target, batch_statistics: bool = False) -> float:
            cosines = [
                alignment(model.to(device), images, target, settings.gradient, batch_statistics=batch_statistics).mean()
                for model in trained[method].values()
            ]
            return float(torch.stack(cosines).mean())

        rows[source] = {
            "vanilla": mean("vanilla", test),
            "trained on them": mean(source, test),
            "on training images": mean(source, train),
            "through batch statistics": mean(source, test, batch_statistics=True),
            "one direction for all": _one_direction(target, test, device),
        }
    return pd.DataFrame(rows).T


def _one_direction(targets: Targets, data: ImageSet, device: torch.device, chunk: int = 250) -> float:
    """The mean over images of the best mean cosine with all classes' targets that a single direction can have.

    That is the length of the mean of the unit targets, and the direction is that mean.
    """
    lengths = []
    for start in range(0, len(data), chunk):
        images = as_float(data.images[start : start + chunk]).to(device)
        units = F.normalize(targets(images, all_classes(images, len(data.classes))).flatten(2), dim=2)
        lengths.append(units.mean(1).norm(dim=1))
    return float(torch.cat(lengths).mean())
