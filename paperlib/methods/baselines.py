"""The baselines: plain training, gradient penalty, PGD-AT, TRADES, MART and Cons-AT. The last four are in RAAT's Table 4.

The attack is a parameter: `functools.partial(pgd, …)` with the loss and the random start of the method. Batch norm uses its
running statistics during the attack, and the batch's statistics in each forward pass of the training step.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, evaluating, squared_error
from paperlib.methods import Batch, Step, outputs

START = 0.001  # standard deviation of TRADES's and MART's normal start, from their code
TEMPERATURE = 0.5  # T of Cons-AT's and RAAT's Jensen–Shannon terms, from their code


# Terms, each of shape N: one value per image --------------------------------------------------------------------------


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p‖q), shape N, from log-probabilities N×C."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ½ KL(p‖m) + ½ KL(q‖m), shape N, m = ½ (p + q) ≥ 1e-8, from log-probabilities N×C (RAAT, Equation 16)."""
    # RAAT (15): q = ½ (p(βẋ′ + (1−β)ẍ′) + (βp(ẋ) + (1−β)p(ẍ))); here: named m
    log_m = ((log_p.exp() + log_q.exp()) / 2).clamp_min(1e-8).log()
    # RAAT (16): L_JS(p₁‖p₂) = ½ (L_KL(p₁‖q) + L_KL(p₂‖q)), p₁ = p(βẋ′ + (1−β)ẍ′), p₂ = βp(ẋ) + (1−β)p(ẍ)
    return (kl_divergence(log_p, log_m) + kl_divergence(log_q, log_m)) / 2


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log p_y − log(1 − max_{k≠y} p_k), shape N, from logits N×C (RAAT, Equation 14; constants of MART's code)."""
    probabilities = logits.softmax(1)
    strongest = probabilities.scatter(1, labels[:, None], 0).amax(1)
    # RAAT (14): L_BCE(p, y) = L_CE(p, y) − log(1 − max_{k≠y} p_k)
    return F.cross_entropy(logits, labels, reduction="none") - (1.0001 - strongest + 1e-12).log()


def weighted_kl(clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """Return KL(p(x)‖p(x′))·(1 − p_y(x)), shape N, from logits N×C (MART). It is larger for misclassified images."""
    log_p = clean.log_softmax(1)
    own = log_p.exp().gather(1, labels[:, None]).squeeze(1)
    return kl_divergence(log_p, adversarial.log_softmax(1)) * (1.0000001 - own)


Task = Literal["ce", "mse", "mse_softmax"]


def task_loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Return the loss of each image, shape N, from logits N×C: cross-entropy, or the squared error to the one-hot label.

    "mse" compares the logits with the label, "mse_softmax" their softmax. Both are means over the classes.
    """
    if task == "ce":
        # RAAT (13): L_CE(p, y) = −log p_y
        return F.cross_entropy(logits, labels, reduction="none")
    return squared_error(logits if task == "mse" else logits.softmax(1), labels)


# Methods -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standard:
    """Plain training ("vanilla"): cross-entropy or another task loss on augmented images."""

    task: Task = "ce"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return CE(f(aug(x)), y) as "total"."""
        return {"total": task_loss(outputs(model, batch.augment(batch.images)), batch.labels, self.task).mean()}


@dataclass(frozen=True)
class AdversarialTraining:
    """PGD-AT (Madry et al. 2018): cross-entropy or another task loss on adversarial images only."""

    attack: Attack
    task: Task = "ce"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return max_δ CE(f(aug(x) + δ), y) as "total", where the attack approximates the maximum."""
        images = batch.augment(batch.images)
        with evaluating(model):
            # PAG (5): max_{δ∈Δ} L(f(x + δ), y); here: δ of the attack
            adversarial = self.attack(model, images, batch.labels)
        # RAAT, Table 4 (PGD-AT): L_CE(p(x′), y)
        return {"total": task_loss(outputs(model, adversarial), batch.labels, self.task).mean()}


@dataclass(frozen=True)
class GradientPenalty:
    """Input-gradient regularisation (Ross & Doshi-Velez 2018): a penalty on the gradient's norm, not its direction."""

    weight: float  # λ
    task: Task = "ce"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return L + λ ‖∇ₓ L‖₂², means over the images; terms "task", "penalty" and "total"."""
        images = batch.augment(batch.images).detach().requires_grad_(True)
        each = task_loss(outputs(model, images), batch.labels, self.task)
        (gradient,) = torch.autograd.grad(each.sum(), images, create_graph=True)
        # Ross & Doshi-Velez 2018 (5): ‖∇ₓL‖₂²
        penalty = gradient.flatten(1).square().sum(1).mean()
        return {"task": each.mean(), "penalty": penalty, "total": each.mean() + self.weight * penalty}


@dataclass(frozen=True)
class TRADES:
    """TRADES (Zhang et al. 2019): cross-entropy on clean images and consistency with adversarial images.

    The attack maximises the KL divergence from the clean output (`loss="kl"`), from a normal start of deviation 0.001.
    """

    attack: Attack
    weight: float = 6.0  # λ

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return CE(f(x), y) + λ KL(p(x)‖p(x′)); terms "ce", "kl" and "total"."""
        images = batch.augment(batch.images)
        with evaluating(model):
            adversarial = self.attack(model, images, batch.labels)
        clean, attacked = outputs(model, images), outputs(model, adversarial)
        with torch.no_grad():  # the authors' code makes a second clean pass, which updates the batch-norm statistics
            model(images)
        ce = F.cross_entropy(clean, batch.labels)
        kl = kl_divergence(clean.log_softmax(1), attacked.log_softmax(1)).mean()
        # RAAT, Table 4 (TRADES): L_CE(p(x), y) + λ L_KL(p(x)‖p(x′))
        return {"ce": ce, "kl": kl, "total": ce + self.weight * kl}


@dataclass(frozen=True)
class MART:
    """MART (Wang et al. 2020): boosted cross-entropy, and a KL term that weights misclassified images more.

    The attack maximises the cross-entropy, from a normal start of deviation 0.001.
    """

    attack: Attack
    weight: float = 6.0  # λ

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return BCE(p(x′), y) + λ KL(p(x)‖p(x′))·(1 − p_y(x)); terms "bce", "kl" and "total"."""
        images = batch.augment(batch.images)
        with evaluating(model):
            adversarial = self.attack(model, images, batch.labels)
        clean, attacked = outputs(model, images), outputs(model, adversarial)
        bce = boosted_cross_entropy(attacked, batch.labels).mean()
        kl = weighted_kl(clean, attacked, batch.labels).mean()
        # RAAT, Table 4 (MART): L_BCE(p(x′), y) + λ L_KL(p(x)‖p(x′)) · (1 − p_y(x))
        return {"bce": bce, "kl": kl, "total": bce + self.weight * kl}


@dataclass(frozen=True)
class ConsistencyAT:
    """Cons-AT (Tack et al. 2022): PGD-AT on two augmentations of each image, with consistent adversarial outputs."""

    attack: Attack
    weight: float = 1.0  # λ
    temperature: float = TEMPERATURE  # T

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return CE on both adversarial images + λ JS(p(ẋ′)‖p(ẍ′)) at temperature T; terms "ce", "js" and "total"."""
        images = torch.cat([batch.augment(batch.images) for _ in range(2)])
        labels = batch.labels.repeat(2)
        with evaluating(model):
            adversarial = self.attack(model, images, labels)
        logits = outputs(model, adversarial)
        ce = F.cross_entropy(logits, labels)
        first, second = (logits / self.temperature).log_softmax(1).chunk(2)
        js = jensen_shannon(first, second).mean()
        # RAAT, Table 4 (Cons-AT): L_CE(p(x′), y) + λ L_JS(p(ẋ′)‖p(ẍ′))
        return {"ce": ce, "js": js, "total": ce + self.weight * js}
