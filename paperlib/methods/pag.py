"""PAG: input gradients that point toward class representatives (Ganz, Kawar & Elad, "Do Perceptually Aligned Gradients
Imply Adversarial Robustness?").

What the text leaves open, and what is done here, after the authors' code where it exists:

- The gradient is that of the log-softmax (their code); Equation 1 as printed, of the logit, is `of="logit"`.
- The target r − x stays in the frame of the image as it is stored: the gradient is taken back through the augmentation.
- Batch norm uses batch statistics in the forward pass that both loss terms share.
- Not published, so chosen here: the images of One Image and of Nearest Neighbor (drawn by seed), the constant of Class Mean
  and the sample size of Nearest Neighbor (settings), and that RIGD distils the same kind of gradient as it trains.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from paperlib import distributed
from paperlib.attacks import Attack, Norm, autoattack, evaluating, pgd
from paperlib.data import ImageSet, Splits, as_float, subset
from paperlib.external import load_robust_resnet50
from paperlib.files import InputError, digest, read_tensors, write_tensors
from paperlib.geometry import Output, class_gradients, cosine, distance_to_boundary, input_gradients, scores
from paperlib.methods import Batch, Method, Step, outputs
from paperlib.methods.baselines import AdversarialTraining, Standard
from paperlib.runs import Run
from paperlib.settings import Count, ImageSettings, Positive, Radius, TrainingSettings

Source = Literal["one_image", "class_mean", "nearest_neighbor", "kmeans", "rigd_linf", "rigd_l2"]
Targets = Callable[[Tensor, Sequence[int]], list[Tensor]]  # g(x, y_t) of images N×… for each of some classes: N×… each


# Section 4: where the target gradients come from -------------------------------------------------------------------


def one_image(train: ImageSet, seed: int) -> Tensor:
    """Section 4.2, One Image: an arbitrary training image of each class, C×1×…."""
    return sample(train, 1, seed)


def class_mean(train: ImageSet, constant: float) -> Tensor:
    """Section 4.2, Class Mean: the mean of each class's training images times a constant, C×1×…."""
    means = [as_float(train.images[train.labels == label]).mean(0) for label in range(len(train.classes))]
    return constant * torch.stack(means).unsqueeze(1)


def sample(train: ImageSet, count: int, seed: int) -> Tensor:
    """Section 4.2, Nearest Neighbor: D_y, `count` training images of each class drawn by `seed`, C×count×…."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    smallest = int(train.labels.bincount(minlength=len(train.classes)).min())
    if count > smallest:
        raise InputError(f"neighbors = {count}, but the smallest class has {smallest} training images")
    return torch.stack(
        [as_float(train.images[order[train.labels[order] == label][:count]]) for label in range(len(train.classes))]
    )


def centroids(train: ImageSet, count: int, seed: int) -> Tensor:
    """Section 4.2, the future work it proposes: `count` k-means centroids of each class, C×count×…."""
    shape = train.images.shape[1:]
    clusters = []
    for label in range(len(train.classes)):
        members = as_float(train.images[train.labels == label]).flatten(1).numpy().astype(np.float64)
        means, _ = kmeans2(members, count, iter=10, minit="++", seed=seed, missing="warn")
        clusters.append(torch.from_numpy(means).float().view(count, *shape))
    return torch.stack(clusters)


def toward(pool: Tensor, images: Tensor, classes: Sequence[int]) -> list[Tensor]:
    """g(x, y_t) = r − x with r the nearest to x in the pool C×n×… of class y_t, x itself excepted (Equation 3)."""
    exact = "donot_use_mm_for_euclid_dist"  # the fast way does not give zero for equal images
    directions = []
    for label in classes:
        nearest = pool[label][0]
        if pool.shape[1] > 1:
            distances = torch.cdist(images.flatten(1), pool[label].flatten(1), compute_mode=exact)
            nearest = pool[label][distances.masked_fill(distances == 0, torch.inf).argmin(1)]
        directions.append(nearest - images)
    return directions


def distilled(teacher: nn.Module, of: Output, images: Tensor, classes: Sequence[int]) -> list[Tensor]:
    """Section 4.1, RIGD: g(x, y_t) = ∇ₓ f*(x)_t of a robust teacher in evaluation mode."""
    with evaluating(teacher):
        return input_gradients(teacher, images, classes, of)


# Equation 1 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PAG:
    """Cross-entropy plus the misalignment of the class gradients with their targets."""

    targets: Targets  # g(x, y_t)
    weight: float  # λ
    classes_per_step: int | None = None  # K of the C classes, drawn anew each step; None: all, as in the paper
    of: Output = "log_softmax"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Equation 1, means over the batch: terms "ce", "misalignment" (the sum over classes) and "total".

        With K classes a step their sum is scaled by C/K: in expectation it is the sum over all classes.
        """
        images = batch.images.detach().requires_grad_(True)
        logits = outputs(model, batch.augment(images))
        count = logits.shape[1]
        classes = distributed.agreed(torch.randperm(count)[: self.classes_per_step].tolist())
        gradients = class_gradients(scores(logits, self.of), images, classes, create_graph=True)

        # L_CE(f(x), y)
        ce = F.cross_entropy(logits, batch.labels)
        # Σ_t L_cos(∇ₓ f(x)_t, g(x, t)), with L_cos = 1 − cosine (Equation 2)
        targets = self.targets(batch.images, classes)
        each = [(1 - cosine(gradient, target)).mean() for gradient, target in zip(gradients, targets, strict=True)]
        misalignment = torch.stack(each).sum() * (count / len(classes))
        # L_total = L_CE + λ Σ_t L_cos
        return {"ce": ce, "misalignment": misalignment, "total": ce + self.weight * misalignment}


# What is measured about it -----------------------------------------------------------------------------------------


def alignment(
    model: nn.Module,
    data: ImageSet,
    targets: Targets,
    of: Output = "log_softmax",
    *,
    batch_statistics: bool = False,
    chunk: int = 64,
) -> Tensor:
    """The cosine of each image's class gradients with their targets, N×C; the model in evaluation mode.

    With `batch_statistics` batch norm is in training mode, as the loss sees it, on batches of `chunk` images: a gradient
    then also goes through the statistics of the batch. An attack meets the model in evaluation mode.
    """
    device = next(model.parameters()).device
    probe = copy.deepcopy(model).train(batch_statistics)  # whose running statistics may change
    labels = list(range(len(data.classes)))
    rows = []
    for start in range(0, len(data), chunk):
        images = as_float(data.images[start : start + chunk]).to(device)
        gradients = input_gradients(probe, images, labels, of)
        pairs = [cosine(gradient, target) for gradient, target in zip(gradients, targets(images, labels), strict=True)]
        rows.append(torch.stack(pairs, 1).cpu())
    return torch.cat(rows)


def targeted_images(
    model: nn.Module, images: Tensor, targets: Tensor, *, eps: float, steps: int, chunk: int = 250
) -> Tensor:
    """The visual test of Figures 1 and 4: images N×C×H×W in [0,1] changed to raise p(target) as far as L2 `eps` allows."""
    step_size = 2.5 * eps / steps
    attack = partial(pgd, eps=eps, norm="l2", steps=steps, step_size=step_size, random_start=False)
    with evaluating(model):
        parts = [
            attack(model, part, aims, targets=aims)
            for part, aims in zip(images.split(chunk), targets.split(chunk), strict=True)
        ]
    return torch.cat(parts)


def pag_score(model: nn.Module, judge: nn.Module, data: ImageSet, *, eps: float, steps: int, seed: int = 0) -> Tensor:
    """Whether `judge`, another model and plainly trained, sees the target class in each targeted image: bool N.

    The targets are drawn by `seed` among the other classes. A plain model's targeted images change only what that model
    sees; aligned gradients put features of the class into the image, which another model sees too.
    """
    device = next(model.parameters()).device
    images, labels = as_float(data.images).to(device), data.labels.to(device)
    offsets = torch.randint(1, len(data.classes), (len(data),), generator=torch.Generator().manual_seed(seed))
    targets = (labels + offsets.to(device)) % len(data.classes)
    changed = targeted_images(model, images, targets, eps=eps, steps=steps)
    with evaluating(judge), torch.no_grad():
        return (judge(changed).argmax(1) == targets).cpu()


# The studies -------------------------------------------------------------------------------------------------------


class ToySettings(TrainingSettings):
    """Appendix C.1."""

    device: Literal["cpu"]  # too small for anything else
    weight: Radius  # λ; not published
    neighbors: Count  # sample size of Nearest Neighbor, per class; not published
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
    classes_per_step: Count | None  # None: all, as in the paper
    gradient: Literal["log_softmax", "logit"]
    class_mean_constant: Positive
    neighbors: Count
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
        if self.sweep_weights and "class_mean" not in self.sources:
            raise ValueError("sweep_weights needs class_mean among the sources")
        return self


# Table 3; k-means is not in the paper and takes Class Mean's.
WEIGHTS: dict[str, dict[Source, float]] = {
    "cifar10": {
        "one_image": 0.5, "class_mean": 0.4, "kmeans": 0.4, "nearest_neighbor": 0.4, "rigd_linf": 0.4, "rigd_l2": 0.4,
    },
    "stl10": {
        "one_image": 0.25, "class_mean": 0.2, "kmeans": 0.2, "nearest_neighbor": 0.4, "rigd_linf": 0.4, "rigd_l2": 0.4,
    },
}  # fmt: skip


STUDIES = {"toy_pag": ToySettings, "cifar_pag": CifarSettings}


def toy_methods(settings: ToySettings, train: ImageSet) -> dict[str, Method]:
    """Section 5.1: vanilla training and PAG with Nearest Neighbor."""
    pool = sample(train, settings.neighbors, settings.seeds[0])
    return {"vanilla": Standard(), "pag": PAG(partial(toward, pool), settings.weight, None, settings.gradient)}


def toy_attacks(settings: ToySettings) -> dict[str, Attack]:
    """Appendix C.1: L2 PGD from the sample itself (Algorithm 1)."""
    steps, size = settings.attack_steps, settings.attack_step_size
    attack = partial(pgd, eps=settings.eps, norm="l2", steps=steps, step_size=size, random_start=False, box=None)
    return {"pgd_l2": attack}


def toy_margins(run: Run, trained: Mapping[str, Mapping[int, nn.Module]], data: ImageSet) -> pd.DataFrame:
    """Distance of every test sample to the boundary along and across the line x₂ = 2 x₁, up to 60.

    Columns method, seed, direction, distance.
    """
    directions = {"along": torch.tensor([1.0, 2.0]) / 5**0.5, "across": torch.tensor([-2.0, 1.0]) / 5**0.5}
    parts = [
        pd.DataFrame(
            {
                "method": method, "seed": seed, "direction": name,
                "distance": distance_to_boundary(model, data.images, direction, reach=60.0, step=0.1),
            }
        )
        for method, members in trained.items()
        for seed, model in members.items()
        for name, direction in directions.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def with_margins(table: pd.DataFrame, distances: pd.DataFrame, eps: float) -> pd.DataFrame:
    """The table of `evaluate_each` with the share of samples whose margin is above `eps`, by direction, added."""
    rows = distances.assign(hit=distances["distance"] > eps, measure="margin_" + distances["direction"])
    counted = rows.groupby(["method", "seed", "measure"], sort=False)["hit"].agg(n="size", correct="sum")
    return pd.concat([table, counted.assign(accuracy=counted["correct"] / counted["n"]).reset_index()])


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


def target_sources(
    settings: CifarSettings, train: ImageSet, teachers: Mapping[str, Mapping[int, nn.Module]], device: torch.device
) -> dict[str, Targets]:
    """The target gradients g(x, y_t) of each source in the settings."""
    seed = settings.seeds[0]
    pools = {
        "one_image": partial(one_image, train, seed),
        "class_mean": partial(class_mean, train, settings.class_mean_constant),
        "nearest_neighbor": partial(sample, train, settings.neighbors, seed),
        "kmeans": partial(centroids, train, settings.clusters, seed),
    }
    targets: dict[str, Targets] = {}
    for source in settings.sources:
        if source in pools:
            targets[source] = partial(toward, pools[source]().to(device))
        else:
            teacher = next(iter(teachers[source.replace("rigd", "teacher")].values())).to(device)
            targets[source] = partial(distilled, teacher, settings.gradient)
    return targets


def methods(settings: CifarSettings, targets: Mapping[str, Targets]) -> dict[str, Method]:
    """Vanilla training and PAG with each source."""
    weights = _weights(settings)
    aligned: dict[str, Method] = {
        source: PAG(targets[source], weights[source], settings.classes_per_step, settings.gradient)
        for source in settings.sources
    }
    return {"vanilla": Standard(), **aligned}


def sweep_methods(settings: CifarSettings, targets: Mapping[str, Targets]) -> dict[str, Method]:
    """Figure 5: PAG with Class Mean at each λ of the sweep but the one that `methods` trains anyway."""
    return {
        f"lambda_{weight:g}": PAG(targets["class_mean"], weight, settings.classes_per_step, settings.gradient)
        for weight in settings.sweep_weights
        if weight != _weights(settings)["class_mean"]
    }


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


def toward_every_class(
    run: Run, trained: Mapping[str, Mapping[int, nn.Module]], image: Tensor, classes: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Figure 4: one image C×H×W, and what each method's first model makes of it on the way to the first classes."""
    repeated = as_float(image).to(run.device).expand(classes, *image.shape)
    aims = torch.arange(classes, device=run.device)
    settings = run.settings
    changed = {
        method: targeted_images(
            next(iter(members.values())).to(run.device),
            repeated,
            aims,
            eps=settings.score_eps,
            steps=settings.score_steps,
        )
        for method, members in trained.items()
    }
    return repeated, changed


def scores_each(run: Run, trained: Mapping[str, Mapping[int, nn.Module]], judge: nn.Module, data: ImageSet) -> pd.DataFrame:
    """The PAG score of every model: rows with method, seed, measure, n, correct and accuracy, as `evaluate_each` has."""
    settings = run.settings
    rows = []
    for method, members in trained.items():
        for seed, model in members.items():
            file = run.folder / "scores" / f"{method}-seed{seed}.safetensors"
            recipe = digest(model, data, [settings.score_eps, settings.score_steps, digest(judge, data, None)])
            if not file.exists() or read_tensors(file)[1].get("recipe") != recipe:
                seen = pag_score(model.to(run.device), judge, data, eps=settings.score_eps, steps=settings.score_steps)
                write_tensors(file, {"seen": seen}, {"recipe": recipe})
            seen = read_tensors(file)[0]["seen"]
            rows.append((method, seed, "pag_score", len(seen), int(seen.sum()), float(seen.float().mean())))
    return pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "correct", "accuracy"])


def alignment_each(
    run: Run, trained: Mapping[str, Mapping[int, nn.Module]], targets: Mapping[str, Targets], data: Splits
) -> pd.DataFrame:
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
        units = [F.normalize(target.flatten(1), dim=1) for target in targets(images, range(len(data.classes)))]
        lengths.append(torch.stack(units).mean(0).norm(dim=1))
    return float(torch.cat(lengths).mean())
