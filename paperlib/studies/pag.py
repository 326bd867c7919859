"""The studies `toy_pag` and `cifar_pag`: settings, trainings, attacks and measures of their notebooks."""

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
    """Settings of Appendix C.1."""

    device: Literal["cpu"]  # the toy is too small for a GPU
    weight: Radius  # λ; not published
    neighbors: Annotated[int, Field(ge=2)]  # sample size of Nearest Neighbor, per class; not published
    gradient: Literal["log_softmax", "logit"]
    eps: Radius  # radius of the L2 attack
    attack_steps: Count
    attack_step_size: Positive


class CifarSettings(ImageSettings):
    """Settings of Section 5.2 and Appendices C.2 and D."""

    attack_steps: Count  # steps of the reported PGD
    autoattack_norms: list[Norm]  # norms under which AutoAttack runs; [] for none
    sources: Annotated[list[Source], Field(min_length=1)]
    weights: dict[Source, Radius] | None  # λ of each source; None: as in Table 3 for this data set
    controls: list[Control]  # not in the paper; wrong_class is Class Mean with the previous class's targets
    penalty: Radius  # λ of the gradient penalty, which has no direction
    classes_per_step: Count | None  # K of the C classes; None: all, as in the paper
    class_draw: Draw  # whether each image draws its own K classes, or the batch one set
    passes: Literal[1, 2]  # 2, as in the authors' code: the gradient term has its own pass and augmentation
    early_weight: Share  # factor on λ in the first half of the training; 1: none, 2/3: an option of the authors' code
    gradient: Literal["log_softmax", "logit"]
    published_targets: str  # folder of target gradients in the authors' layout, for the source "published"; "" for none
    class_mean_constant: Positive
    neighbors: Annotated[int, Field(ge=2)]  # at least two, because an image is not its own neighbour
    clusters: Count
    teacher_epochs: Count  # epochs of the robust teachers that RIGD distils
    teacher_steps: Count  # steps of the teachers' PGD
    teacher_learning_rate: Positive
    teacher_linf: str  # file of a published robust ResNet-50 to use instead of training one; "" for none
    teacher_l2: str
    sweep_weights: list[Radius]  # λ of Figure 5's Class Mean models; [] for no sweep
    sweep_epsilons: list[Radius]  # radii of the sweep, as factors of ε
    score_images: Count  # images for the PAG score
    score_eps: Positive  # radius of the score's targeted L2 attack
    score_steps: Count

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.weights is not None and (missing := set(self.sources) - set(self.weights)):
            raise ValueError(f"weights has no λ for {', '.join(sorted(missing))}")
        needing = {"sweep_weights": self.sweep_weights, "controls = [wrong_class]": "wrong_class" in self.controls}
        if "class_mean" not in self.sources and (asked := [name for name, given in needing.items() if given]):
            raise ValueError(f"{asked[0]} needs class_mean among the sources")
        if ("published" in self.sources) != bool(self.published_targets):
            raise ValueError("source published and published_targets, a folder, go together; give both or neither")
        return self


# λ of Table 3. K-means, not in the paper, takes Class Mean's λ; λ of "published" is from the authors' code.
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
    """Return vanilla training and PAG with Nearest Neighbor (Section 5.1)."""
    pool = sample(train, settings.neighbors, settings.seeds[0])
    return {"vanilla": Standard(), "pag": PAG(partial(toward, pool), settings.weight, None, settings.gradient)}


def toy_attacks(settings: ToySettings) -> dict[str, Attack]:
    """Return L2 PGD from the clean sample (Appendix C.1), in steps of one length; Algorithm 1 prints the bare gradient."""
    steps, size = settings.attack_steps, settings.attack_step_size
    attack = partial(pgd, eps=settings.eps, norm="l2", steps=steps, step_size=size, random_start=False, box=None)
    return {"pgd_l2": attack}


def toy_margins(run: Run[ToySettings], trained: Trained, data: ImageSet) -> pd.DataFrame:
    """Measure distances, up to 60, to the boundary along and across x₂ = 2 x₁: method, seed, direction, distance."""
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
    """Add to the table of `evaluate_each` the share of samples whose margin is above `eps`, by direction."""
    rows = distances.assign(hit=distances["distance"] > eps, measure="margin_" + distances["direction"])
    counted = rows.groupby(["method", "seed", "measure"], sort=False)["hit"].agg(n="size", correct="sum")
    return pd.concat([table, counted.assign(value=counted["correct"] / counted["n"]).reset_index()])


def teachers(settings: CifarSettings) -> dict[str, Method]:
    """Return the adversarial trainings of RIGD's teachers, for sources without a published model."""
    published = {"linf": settings.teacher_linf, "l2": settings.teacher_l2}
    return {
        f"teacher_{norm}": AdversarialTraining(attack)
        for norm, attack in _attacks(settings, settings.teacher_steps, 2.5).items()
        if f"rigd_{norm}" in settings.sources and not published[norm]
    }


def published_teachers(settings: CifarSettings) -> dict[str, dict[int, nn.Module]]:
    """Load the robust models whose files the settings name, in the form that `training.train_each` returns."""
    files = {"teacher_linf": settings.teacher_linf, "teacher_l2": settings.teacher_l2}
    return {name: {0: load_robust_resnet50(Path(file))} for name, file in files.items() if file}


def target_sources(settings: CifarSettings, train: ImageSet, teachers: Trained, device: torch.device) -> dict[str, Targets]:
    """Return the target gradients g(x, y_t) of each source in the settings, and of the control wrong_class."""
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
    """Return vanilla training, PAG with each source, and the controls."""
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
    """Return PAG with Class Mean at each λ of the sweep (Figure 5), except the λ that `methods` trains."""
    return {name: _pag(settings, targets["class_mean"], weight) for name, weight in _swept(settings).items()}


def _swept(settings: CifarSettings) -> dict[str, float]:
    return {f"lambda_{one:g}": one for one in settings.sweep_weights if one != _weights(settings)["class_mean"]}


def with_sweep(settings: CifarSettings, summary: pd.DataFrame) -> pd.DataFrame:
    """Add Class Mean's rows to the summary again under the name of its λ, like the other points of the sweep."""
    own = summary[summary["method"] == "class_mean"]
    named = own.assign(method=f"lambda_{_weights(settings).get('class_mean', 0):g}")
    return pd.concat([summary, named], ignore_index=True)


def _weights(settings: CifarSettings) -> dict[Source, float]:
    return settings.weights or WEIGHTS.get(settings.data, WEIGHTS["cifar10"])


def attacks(settings: CifarSettings) -> dict[str, Attack]:
    """Return PGD with a random start and steps of 2ε/k, under both norms (Appendix C.2)."""
    return {f"pgd_{norm}": attack for norm, attack in _attacks(settings, settings.attack_steps, 2.0).items()}


def validation_attack(settings: CifarSettings) -> Attack:
    """Return the attack that selects checkpoints: PGD-10 in L2, the norm in which PAG works best."""
    return _attacks(settings, 10, 2.0)["l2"]


def strong_attacks(settings: CifarSettings) -> dict[str, Attack]:
    """Return AutoAttack, which the paper does not report."""
    eps = {"linf": settings.eps_linf, "l2": settings.eps_l2}
    return {f"autoattack_{norm}": partial(autoattack, eps=eps[norm], norm=norm) for norm in settings.autoattack_norms}


def _attacks(settings: CifarSettings, steps: int, total: float) -> dict[Norm, Attack]:
    """Return PGD under both norms, with steps that sum to `total` · ε."""
    radii: dict[Norm, float] = {"linf": settings.eps_linf, "l2": settings.eps_l2}
    return {
        norm: partial(pgd, eps=eps, norm=norm, steps=steps, step_size=total * eps / steps) for norm, eps in radii.items()
    }


def plan(settings: CifarSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method; the sweep over λ has one seed."""
    swept, own = _swept(settings), f"lambda_{_weights(settings).get('class_mean', 0):g}"
    fewer = dict.fromkeys(strong_attacks(settings), settings.autoattack_images)
    fewer |= {"pag_score": settings.score_images, "alignment": settings.score_images if swept else 0}
    images = planned(settings, ["clean", *attacks(settings), "pgd"], fewer)
    trained = ["vanilla", *settings.sources, *settings.controls, *[own] * ("class_mean" in settings.sources)]
    return Plan(images, {**dict.fromkeys(trained, len(settings.seeds)), **dict.fromkeys(swept, 1)}, settings.data)


def toy_plan(settings: ToySettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method of the toy."""
    images = dict.fromkeys(["clean", *toy_attacks(settings), "margin_along", "margin_across"], EXTENTS["toy"][0])
    return Plan({**images}, dict.fromkeys(["vanilla", "pag"], len(settings.seeds)), "")


PLANS = {"toy_pag": toy_plan, "cifar_pag": plan}


def toward_every_class(
    run: Run[CifarSettings], trained: Trained, image: Tensor, classes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return copies of one image C×H×W, and each method's copies changed toward the first classes (Figure 4)."""
    repeated = as_float(image).to(run.device).expand(classes, *image.shape)
    aims = torch.arange(classes, device=run.device)
    settings = run.settings
    changed = {
        method: targeted_images(model.to(run.device), repeated, aims, eps=settings.score_eps, steps=settings.score_steps)
        for method, model in first_models(trained).items()
    }
    return repeated, changed


def scores_each(run: Run[CifarSettings], trained: Trained, judge: nn.Module, data: ImageSet) -> pd.DataFrame:
    """Compute the PAG score of every model: rows as from `evaluate_each`, with measure "pag_score"."""
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
    """Compute each model's cosine with one source's targets in evaluation mode: rows as from `evaluate_each`.

    The measure is "alignment"; `each` is the mean over classes by image, an array N.
    """
    return by_image(
        (method, seed, "alignment", alignment(model.to(run.device), data, target, run.settings.gradient).mean(1).numpy())
        for method, seed, model in each_model(trained)
    )


def norm_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rename PGD under both norms to one measure "pgd" of "<method> on L2" and "<method> on L∞", to compare them."""
    names = {"pgd_l2": "L2", "pgd_linf": "L∞"}
    rows = table[table["measure"].isin(names)]
    return rows.assign(method=rows["method"] + " on " + rows["measure"].map(names), measure="pgd")


def alignment_each(run: Run[CifarSettings], trained: Trained, targets: Mapping[str, Targets], data: Splits) -> pd.DataFrame:
    """Compute the mean cosine of class gradients with each source's targets over seeds: one row per source.

    Columns: vanilla's on test images; the trained model's on test images and on as many training images; on test images
    with batch statistics, as in the loss of all classes (see `alignment`); and the highest mean cosine that a single
    direction for all classes can have with the targets of each image. The targets of the source published exist for
    training images alone, so all its columns are of these.
    """
    settings, device = run.settings, run.device
    train, test = (subset(part, settings.score_images, 0) for part in (data.train, data.test))
    rows = {}
    for source, target in targets.items():
        part = train if source == "published" else test

        def mean(method: str, images: ImageSet, target: Targets = target, batch_statistics: bool = False) -> float:
            cosines = [
                alignment(model.to(device), images, target, settings.gradient, batch_statistics=batch_statistics).mean()
                for model in trained[method].values()
            ]
            return float(torch.stack(cosines).mean())

        rows[source] = {
            "vanilla": mean("vanilla", part),
            "trained on them": mean(source, part),
            "on training images": mean(source, train),
            "through batch statistics": mean(source, part, batch_statistics=True),
            "one direction for all": _one_direction(target, part, device),
        }
    return pd.DataFrame(rows).T


def _one_direction(targets: Targets, data: ImageSet, device: torch.device, chunk: int = 250) -> float:
    """Return the mean over images of the highest mean cosine that a single direction has with all classes' targets.

    It is the length of the mean of the unit targets, and the direction is that mean.
    """
    lengths = []
    for start in range(0, len(data), chunk):
        images = as_float(data.images[start : start + chunk]).to(device)
        units = F.normalize(targets(images, all_classes(images, len(data.classes))).flatten(2), dim=2)
        lengths.append(units.mean(1).norm(dim=1))
    return float(torch.cat(lengths).mean())
