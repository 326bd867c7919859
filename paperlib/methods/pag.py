"""PAG: input gradients that point toward class representatives (Ganz, Kawar & Elad, "Do Perceptually Aligned Gradients
Imply Adversarial Robustness?").

Where the text is open, this follows the authors' code:

- The gradient is that of the log-softmax. Equation (1) as printed, with the gradient of the logit, is `of="logit"`.
- With K of the C classes a step, each image draws its own K classes. One draw for the whole batch (`draw="per_batch"`) is a
  different loss: through batch norm, every image's score enters every other image's gradient.
- The target r − x uses the stored image, so the gradient is taken back through the augmentation.
- Batch norm uses batch statistics in every forward pass.

Differences from the authors' code:

- Both terms share one forward pass. The authors' second pass, over K copies with a new augmentation, is `passes=2`.
- Crop and flip are drawn for each image; the authors draw one crop and one flip for a batch.
- The L2 attack starts inside the ball; the authors' attack starts outside.
- `early=2/3` multiplies λ by ⅔ in the first half of the training. It is off by default, and an option in their code too.

Not published, so chosen here:

- the images of One Image and Nearest Neighbor: drawn once, by the first seed, for all trainings;
- the constant of Class Mean and the sample size of Nearest Neighbor;
- the gradient that RIGD distils: the same kind as the trained gradient.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from paperlib.attacks import evaluating, pgd
from paperlib.data import ImageSet, as_float
from paperlib.geometry import Output, all_classes, class_gradients, cosine, input_gradients, scores
from paperlib.methods import Batch, Step, outputs
from paperlib.runs import distributed
from paperlib.runs.files import InputError

Targets = Callable[[Tensor, Tensor], Tensor]  # g(x, y_t) of images N×… for each image's classes N×K: N×K×…
Draw = Literal["per_image", "per_batch"]


# Sources of target gradients (Section 4) -----------------------------------------------------------------------------


def one_image(train: ImageSet, seed: int) -> Tensor:
    """Return one training image of each class, drawn by `seed`: C×1×… (Section 4.2, One Image)."""
    return sample(train, 1, seed)


def class_mean(train: ImageSet, constant: float) -> Tensor:
    """Return the mean of each class's training images, times a constant: C×1×… (Section 4.2, Class Mean)."""
    means = [as_float(train.images[train.labels == label]).mean(0) for label in range(len(train.classes))]
    # PAG, Section 4.2 (Class Mean): r = constant · mean of the training images of class y_t
    return constant * torch.stack(means).unsqueeze(1)


def sample(train: ImageSet, count: int, seed: int) -> Tensor:
    """Return D_y, `count` training images of each class drawn by `seed`: C×count×… (Section 4.2, Nearest Neighbor).

    Raises InputError if a class has fewer images.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    smallest = int(train.labels.bincount(minlength=len(train.classes)).min())
    if count > smallest:
        raise InputError(f"neighbors = {count}, but the smallest class has {smallest} training images")
    return torch.stack(
        [as_float(train.images[order[train.labels[order] == label][:count]]) for label in range(len(train.classes))]
    )


def centroids(train: ImageSet, count: int, seed: int) -> Tensor:
    """Return `count` k-means centroids of each class: C×count×… (Section 4.2, proposed as future work)."""
    shape = train.images.shape[1:]
    clusters = []
    for label in range(len(train.classes)):
        members = as_float(train.images[train.labels == label]).flatten(1).numpy().astype(np.float64)
        means, _ = kmeans2(members, count, iter=10, minit="++", seed=seed, missing="warn")
        clusters.append(torch.from_numpy(means).float().view(count, *shape))
    return torch.stack(clusters)


def toward(pool: Tensor, images: Tensor, classes: Tensor) -> Tensor:
    """Return g(x, y_t) = r − x for images N×… and classes N×K: N×K×… (Equation 3).

    r is the image of class y_t in the pool C×n×… that is nearest to x and not equal to x.
    """
    if pool.shape[1] == 1:
        return pool[:, 0][classes] - images[:, None]
    exact = "donot_use_mm_for_euclid_dist"  # the matrix product does not give exactly zero for equal images
    nearest = torch.empty(*classes.shape, *images.shape[1:], dtype=pool.dtype, device=images.device)
    for label in classes.unique().tolist():
        rows, columns = (classes == label).nonzero(as_tuple=True)
        distances = torch.cdist(images[rows].flatten(1), pool[label].flatten(1), compute_mode=exact)
        # PAG (3): r(x, y_t) = argmin_{x̂ ∈ D_{y_t}, x̂ ≠ x} ‖x̂ − x‖₂
        nearest[rows, columns] = pool[label][distances.masked_fill(distances == 0, torch.inf).argmin(1)]
    # PAG, Section 4.2: g(x, y_t) = r − x
    return nearest - images[:, None]


def distilled(teacher: nn.Module, of: Output, images: Tensor, classes: Tensor) -> Tensor:
    """Return g(x, y_t) = ∇ₓ f*(x)_t of a robust teacher in evaluation mode: N×K×… for classes N×K (Section 4.1, RIGD)."""
    with evaluating(teacher):
        # PAG, Section 4.1: g(x, y_t) = ∇ₓ f*(x)_{y_t}
        return input_gradients(teacher, images, classes, of)


def tabulated(known: Tensor, gradients: Tensor) -> Targets:
    """Return g(x, y_t) as a function that looks up the `gradients` M×C×… of the images `known`, bytes M×….

    The function raises InputError for an image that is not in the table.
    """
    draws = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (known[0].numel(),), generator=draws)  # weights of a hash sum of the pixels

    def keys(images: Tensor) -> Tensor:
        return (images.flatten(1).to("cpu", torch.int64) * factors).sum(1)

    order = keys(known).sort()

    def targets(images: Tensor, classes: Tensor) -> Tensor:
        found = keys((images * 255).round())
        places = torch.searchsorted(order.values, found).clamp_max(len(known) - 1)
        if not torch.equal(order.values[places], found):
            missing = int((order.values[places] != found).sum())
            raise InputError(
                f"published target gradients: {missing} of {len(images)} images are not among the {len(known)}"
            )
        return gradients[order.indices[places][:, None], classes.cpu()].to(images)

    return targets


# The loss (Section 3) ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PAG:
    """Cross-entropy plus the misalignment of class gradients and their targets."""

    targets: Targets  # g(x, y_t)
    weight: float  # λ
    classes_per_step: int | None = None  # K of the C classes, drawn anew each step; None: all classes, as in the paper
    of: Output = "log_softmax"
    draw: Draw = "per_image"  # whether each image draws its own K classes, or the batch draws one set
    passes: Literal[1, 2] = 1  # 2: a separate forward pass and augmentation for the gradient term
    early: float = 1.0  # factor on λ in the first half of the training

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return Equation (1), means over the batch: terms "ce", "misalignment" (the sum over classes) and "total".

        With K classes a step, their sum is scaled by C/K, an unbiased estimate of the sum over all classes.
        """
        images = batch.images.detach().requires_grad_(True)
        logits = outputs(model, batch.augment(images))
        count = logits.shape[1]
        classes = self.drawn(images, count)
        if self.passes == 2:
            copies = batch.images.repeat_interleave(classes.shape[1], 0).requires_grad_(True)
            second = scores(outputs(model, batch.augment(copies)), self.of)
            found = class_gradients(second, copies, classes.reshape(-1, 1), create_graph=True)
            gradients = found.view(*classes.shape, *images.shape[1:])
        else:
            gradients = class_gradients(scores(logits, self.of), images, classes, create_graph=True)

        # PAG (4): L_CE(z, y) = −log(exp z_y / Σᵢ exp zᵢ)
        ce = F.cross_entropy(logits, batch.labels)
        targets = self.targets(batch.images, classes)
        # PAG (2): L_cos(v, u) = 1 − vᵀu / max(‖v‖₂ ‖u‖₂, ε); here: summed over the classes
        misalignment = count * (1 - cosine(gradients.flatten(0, 1), targets.flatten(0, 1))).mean()
        weight = self.weight * (self.early if 2 * step.index < step.total else 1.0)
        # PAG (1): L_total(x, y) = L_CE(f(x), y) + λ Σ_{y_t} L_cos(∇ₓ f(x)_{y_t}, g(x, y_t))
        return {"ce": ce, "misalignment": misalignment, "total": ce + weight * misalignment}

    def drawn(self, images: Tensor, count: int) -> Tensor:
        """Draw the classes of this step for images N×…: int64 N×K out of `count`, distinct; all in order if K is None."""
        if self.classes_per_step is None or self.classes_per_step >= count:
            return all_classes(images, count)
        if self.draw == "per_image":
            return torch.rand(len(images), count, device=images.device).argsort(1)[:, : self.classes_per_step]
        shared = distributed.agreed(torch.randperm(count)[: self.classes_per_step].tolist())
        return torch.tensor(shared, device=images.device).expand(len(images), -1)


# Measures of alignment -----------------------------------------------------------------------------------------------


def alignment(
    model: nn.Module,
    data: ImageSet,
    targets: Targets,
    of: Output = "log_softmax",
    *,
    batch_statistics: bool = False,
    chunk: int = 64,
) -> Tensor:
    """Return the cosine between each image's class gradients and their targets: N×C, the model in evaluation mode.

    With `batch_statistics` the model is in training mode, as in the loss over all classes or with one class a batch, on
    batches of `chunk` images. Gradients then also pass through the batch's statistics.
    """
    device = next(model.parameters()).device
    probe = copy.deepcopy(model).train(batch_statistics)  # a copy, since its running statistics change
    rows = []
    for start in range(0, len(data), chunk):
        images = as_float(data.images[start : start + chunk]).to(device)
        classes = all_classes(images, len(data.classes))
        gradients = input_gradients(probe, images, classes, of)
        cosines = cosine(gradients.flatten(0, 1), targets(images, classes).flatten(0, 1))
        rows.append(cosines.view(classes.shape).cpu())
    return torch.cat(rows)


def targeted_images(
    model: nn.Module, images: Tensor, targets: Tensor, *, eps: float, steps: int, chunk: int = 250
) -> Tensor:
    """Change images N×C×H×W in [0,1] within the L2 radius `eps` to raise p(target) (Figures 1 and 4)."""
    step_size = 2.5 * eps / steps
    attack = partial(pgd, eps=eps, norm="l2", steps=steps, step_size=step_size, random_start=False)
    with evaluating(model):
        parts = [
            attack(model, part, aims, targets=aims)
            for part, aims in zip(images.split(chunk), targets.split(chunk), strict=True)
        ]
    return torch.cat(parts)


def pag_score(model: nn.Module, judge: nn.Module, data: ImageSet, *, eps: float, steps: int, seed: int = 0) -> Tensor:
    """Return whether `judge`, a second model with plain training, predicts the target of each targeted image: bool N.

    `seed` draws the targets among the other classes. Targeted images of a plain model fool that model only. Aligned
    gradients add features of the class, which a second model recognises too.
    """
    device = next(model.parameters()).device
    images, labels = as_float(data.images).to(device), data.labels.to(device)
    offsets = torch.randint(1, len(data.classes), (len(data),), generator=torch.Generator().manual_seed(seed))
    targets = (labels + offsets.to(device)) % len(data.classes)
    changed = targeted_images(model, images, targets, eps=eps, steps=steps)
    with evaluating(judge), torch.no_grad():
        found: Tensor = (judge(changed).argmax(1) == targets).cpu()
        return found
