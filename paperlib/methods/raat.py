"""RAAT: reduced perturbations for boundary samples, and interpolation consistency (Wang et al., "Robust Alignment:
Harmonizing Clean Accuracy and Adversarial Robustness in Adversarial Training").

The authors' code and text differ. The code produced their tables, so `form="code"` is the default. `form="text"` follows
the printed equations:

|                               | code                                          | text                                     |
|-------------------------------|-----------------------------------------------|------------------------------------------|
| x″                            | x + η (x′ − x), the scaled perturbation       | a fresh attack of radius η ε (Equation 8)|
| boundary samples              | right on x, wrong on x′ and on x″             | right on x, wrong on x″ (Equation 9)     |
| trained on x″                 | boundary samples                              | all images wrong on x″ (Table 4)         |
| DICAR mixes                   | logits, at temperature 0.5                    | probabilities (Equation 15)              |
| DICAR of                      | images right under both augmentations: mean   | images right without augmentation: Σ / n |
| weight of RAAT++'s KL         | 6                                             | λ, as for DICAR                          |

Batch norm sees the same forward passes as in the authors' code, in the same order. DICAR's clean pass is over both views of
*all* images; the right ones are selected afterwards. RAAT#'s pass after each update, for the authors' log, is left out.

Table 4 gives the loss of one image. p: softmax output, h: prediction, ẋ and ẍ: two augmentations, 1[·]: indicator.

    PGD-AT   L_CE(p(x′), y)                                             baselines.AdversarialTraining
    TRADES   L_CE(p(x), y) + λ L_KL(p(x)‖p(x′))                         baselines.TRADES
    MART     L_BCE(p(x′), y) + λ L_KL(p(x)‖p(x′))·(1 − p_y(x))          baselines.MART
    Cons-AT  L_CE(p(x′), y) + λ L_JS(p(ẋ′)‖p(ẍ′))                       baselines.ConsistencyAT
    RAAT     BOUND + λ DICAR                                            RAAT
    RAAT++   BOUND + λ (DICAR + L_KL(p(x)‖p(x′))·(1 − p_y(x)))          RAAT(boosted=True), L_BCE for L_CE in BOUND
    BOUND    L_CE(p(x′), y)·1[h(x″) = y] + L_CE(p(x″), y)·1[h(x″) ≠ y]
    DICAR    L_JS(p(βẋ′ + (1−β)ẍ′)‖βp(ẋ) + (1−β)p(ẍ))·1[h(x) = y]
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, each_image, evaluating
from paperlib.methods import Batch, Step, outputs
from paperlib.methods.baselines import TEMPERATURE, boosted_cross_entropy, jensen_shannon, weighted_kl
from paperlib.runs import distributed
from paperlib.runs.files import InputError

Form = Literal["code", "text"]
ETA = 0.1  # η, radius of x″ as a share of ε
GAMMA = 0.75  # γ of the mix rate's distribution Beta(γ, γ)
MART_WEIGHT = 6.0  # weight of RAAT++'s KL term, from their code


# The boundary partition (Section 2.1, Appendix C.1) ------------------------------------------------------------------


class Partition(NamedTuple):
    """Adversarial images N×… and the model's correctness on them."""

    full: Tensor  # x′
    reduced: Tensor  # x″
    right: Tensor  # bool 3×N: the prediction is correct on x, x′ and x″
    form: Form

    @property
    def misclassified(self) -> Tensor:
        """S⁻, the images misclassified on x: bool N."""
        return ~self.right[0]

    @property
    def boundary(self) -> Tensor:
        """S°, the images right on x and wrong on x″ (Equation 9), in the authors' code also wrong on x′: bool N."""
        clean, strong, weak = self.right
        # RAAT (9): S° = {x ∈ S⁺: f(x″) ≠ y}, S• = {x ∈ S⁺: f(x″) = y}
        found: Tensor = clean & ~weak if self.form == "text" else clean & ~strong & ~weak
        return found

    @property
    def non_boundary(self) -> Tensor:
        """S•, all other images: bool N."""
        return ~self.misclassified & ~self.boundary


def partition(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Attack, eta: float = ETA, form: Form = "code"
) -> Partition:
    """Attack the images N×… and split them into misclassified, boundary and non-boundary samples (Appendix C.1).

    The model is in evaluation mode throughout, and all predictions share one forward pass. `form` "code" scales the
    perturbation by `eta`; "text" attacks a second time, with radius and step size times `eta`.
    """
    with evaluating(model):
        full = attack(model, images, labels)
        if form == "code":
            reduced = images + eta * (full - images)
        else:
            eps, step_size = (eta * attack.keywords[name] for name in ("eps", "step_size"))
            # RAAT (8): x″ = argmax_{‖x″ − x‖ ≤ ηε} 1[f(x″) ≠ y]
            reduced = partial(attack, eps=eps, step_size=step_size)(model, images, labels)
        return Partition(full, reduced, right(model, [images, full, reduced], labels), form)


@torch.no_grad()
def right(model: nn.Module, variants: list[Tensor], labels: Tensor) -> Tensor:
    """Return whether the model, in its current mode, is right on K variants of the images: bool K×N, in one pass."""
    found: Tensor = model(torch.cat(variants)).argmax(1).view(len(variants), -1) == labels
    return found


# DICAR (Section 3.2, Appendix C.2) -----------------------------------------------------------------------------------


def mix_rate(gamma: float) -> float:
    """Draw β ~ Beta(γ, γ) once for the whole batch, from the global generator, and return max(β, 1 − β)."""
    # RAAT, Appendix C.2: β ~ Beta(γ, γ)
    rate = distributed.agreed(float(torch.distributions.Beta(gamma, gamma).sample()))
    return max(rate, 1 - rate)


def dicar(mixed: Tensor, first: Tensor, second: Tensor, rate: float, form: Form = "code") -> Tensor:
    """Return the divergence of the output on an interpolation from the interpolation of the outputs: N (Equation 16).

    The logits N×C are `mixed` on β ẋ′ + (1 − β) ẍ′, `first` on ẋ and `second` on ẍ. Gradients flow through all three.
    """
    if form == "code":
        target = ((rate * first + (1 - rate) * second) / TEMPERATURE).log_softmax(1)
        return jensen_shannon((mixed / TEMPERATURE).log_softmax(1), target)
    scaled = first.log_softmax(1) + torch.tensor(rate).log(), second.log_softmax(1) + torch.tensor(1 - rate).log()
    return jensen_shannon(mixed.log_softmax(1), torch.logaddexp(*scaled))


# The methods ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RAAT:
    """RAAT and RAAT++ (Table 4). Without `bound` and `dicar` the method is PGD-AT on two augmentations.

    The attack maximises the cross-entropy. Its start is uniform for RAAT, and normal of deviation 0.001 for RAAT++.
    """

    attack: Attack
    eta: float = ETA  # η
    weight: float = 1.0  # λ
    gamma: float = GAMMA  # γ
    bound: bool = True
    dicar: bool = True
    boosted: bool = False  # RAAT++
    form: Form = "code"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return Table 4's loss: terms "ce" or "bce", "kl" (RAAT++), "dicar", "total", and the shares of the partition."""
        images = torch.cat([batch.augment(batch.images) for _ in range(2)])
        labels = batch.labels.repeat(2)
        terms: dict[str, Tensor] = {}
        on_clean: Tensor | None = None
        if self.bound:
            parts = partition(model, images, labels, self.attack, self.eta, self.form)
            full, on_clean = parts.full, parts.right[0]
            # RAAT (11): R°(x) = 1[f(x″) ≠ y] + 1[f((ẋ′ + ẍ′)/2) ≠ (f(ẋ) + f(ẍ))/2]; here: who is trained on x″
            softened = parts.boundary if self.form == "code" else ~parts.right[2]
            # RAAT (10): R•(x) = 1[f(x′) ≠ y] + 1[f((ẋ′ + ẍ′)/2) ≠ (f(ẋ) + f(ẍ))/2]; here: x′ for all others
            trained = torch.where(each_image(softened, images), parts.reduced, full)
            terms |= shares(parts)
        else:
            with evaluating(model):
                full = trained = self.attack(model, images, labels)
                on_clean = right(model, [images], labels)[0] if self.dicar else None

        if self.boosted:
            attacked, clean = outputs(model, full), outputs(model, images)
            # RAAT, Table 4 (RAAT++, BCE): L_BCE(p(x′), y)·1[h(x″) = y] + L_BCE(p(x″), y)·1[h(x″) ≠ y]
            terms["bce"] = total = boosted_cross_entropy(outputs(model, trained), labels).mean()
            # RAAT, Table 4 (RAAT++, KL): λ L_KL(p(x)‖p(x′)) · (1 − p_y(x))
            terms["kl"] = weighted_kl(clean, attacked, labels).mean()
            total = total + (MART_WEIGHT if self.form == "code" else self.weight) * terms["kl"]
            if self.dicar and self.form == "code":  # predict again, because these passes updated the running statistics
                with evaluating(model):
                    on_clean = right(model, [images], labels)[0]
        else:
            # RAAT, Table 4 (RAAT, CE): L_CE(p(x′), y)·1[h(x″) = y] + L_CE(p(x″), y)·1[h(x″) ≠ y]
            terms["ce"] = total = F.cross_entropy(outputs(model, trained), labels)
        if self.dicar:
            if self.form == "code":
                assert on_clean is not None
                members = on_clean.view(2, -1).all(0)
            else:
                with evaluating(model):
                    members = right(model, [batch.images], batch.labels)[0]
            consistency = _consistency(model, images.chunk(2), full.chunk(2), members, mix_rate(self.gamma), self.form)
            count = len(consistency) if self.form == "code" else len(members)
            # RAAT, Table 4 (RAAT and RAAT++, JS): λ L_JS(p(βẋ′ + (1−β)ẍ′)‖βp(ẋ) + (1−β)p(ẍ))·1[h(x) = y]
            terms["dicar"] = distributed.part_mean(consistency, count, len(members))
            # RAAT (12): R = Σ_{S•} R•(x) + Σ_{S°} R°(x) + Σ_{S⁻} R⁻(x), a surrogate loss for each indicator
            total = total + self.weight * terms["dicar"]
        return {**terms, "total": total}


def _consistency(
    model: nn.Module,
    views: Sequence[Tensor],
    full: Sequence[Tensor],
    members: Tensor,
    rate: float,
    form: Form = "code",
    together: bool = True,
) -> Tensor:
    """Return DICAR, shape M, of the M images that `members` (bool N) selects, from two clean and two adversarial views N×….

    With `together` the clean views pass as one batch of 2N, as in RAAT and RAAT++; otherwise separately, as in RAAT#.
    """
    if not any(distributed.total(int(members.sum()))):  # all processes must make the same passes, so all counts matter
        return views[0].new_zeros(0)
    # RAAT, Definition 4: ℓ(f(λẋ′ + λ̂ẍ′), λf(ẋ) + λ̂f(ẍ)) with λ̂ = 1 − λ; here: f(λẋ′ + λ̂ẍ′), λ is β
    mixed = outputs(model, rate * full[0][members] + (1 - rate) * full[1][members])
    clean = outputs(model, torch.cat(list(views))).chunk(2) if together else [outputs(model, view) for view in views]
    return dicar(mixed, clean[0][members], clean[1][members], rate, form)


def shares(parts: Partition) -> dict[str, Tensor]:
    """Return the shares of misclassified and of boundary samples, in [0,1], to record over training."""
    return {"misclassified": parts.misclassified.float().mean(), "boundary": parts.boundary.float().mean()}


@dataclass(frozen=True)
class RAATSharp:
    """RAAT# (Section 5.3): RAAT in ReBAT's framework, with averaged weights. Without `bound` and `dicar` it is WA.

    It follows the authors' code; the paper has no equations. The model is attacked in training mode, each augmentation
    separately. The averaged model decides which predictions are right. It stays in training mode until the epoch after the
    average begins, because only the authors' validation sets evaluation mode. The cross-entropy uses the first augmentation
    only. DICAR counts from the share `dicar_from` of the epochs on. Before that, batch norm still sees its passes.
    """

    attack: Attack
    dicar_from: float
    eta: float = ETA  # η
    weight: float = 1.0  # λ
    gamma: float = GAMMA  # γ
    bound: bool = True
    dicar: bool = True

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return "ce", "dicar", "total" and the shares of the partition. Raises InputError without an averaged model."""
        if step.averaged is None:
            raise InputError("ema = 0: RAAT# needs the moving average of the weights; the paper's decay is 0.999")
        begin = round(self.dicar_from * step.epochs)
        views = [batch.augment(batch.images) for _ in range(2 if self.dicar else 1)]
        full = [self._attacked(model, view, batch.labels) for view in views]
        reduced = views[0] + self.eta * (full[0] - views[0])
        terms: dict[str, Tensor] = {}
        trained = full[0]
        if self.bound or self.dicar:
            judge = step.averaged.train()  # a fresh copy of the trained model is in training mode
            with torch.no_grad(), evaluating(judge) if step.epoch > begin else nullcontext():
                # Each variant has its own pass, because in training mode the predictions depend on the whole batch.
                seen = [views[0], full[0], reduced, *views[1:]]
                correct = torch.stack([judge(variant).argmax(1) == batch.labels for variant in seen])
            parts = Partition(full[0], reduced, correct[:3], "code")
            terms |= shares(parts)
            if self.bound:
                trained = torch.where(each_image(parts.boundary, reduced), reduced, full[0])
        terms["ce"] = total = F.cross_entropy(outputs(model, trained), batch.labels)
        terms["dicar"] = torch.zeros_like(total)
        if self.dicar:
            members = correct[0] & correct[3]
            rate = mix_rate(self.gamma)
            with nullcontext() if step.epoch >= begin else torch.no_grad():
                consistency = _consistency(model, views, full, members, rate, together=False)
            if step.epoch >= begin:
                terms["dicar"] = distributed.part_mean(consistency, len(consistency), len(members))
                total = total + self.weight * terms["dicar"]
        with torch.no_grad():  # the authors' code only logs this pass, but it updates batch norm's statistics
            model(full[0])
        return {**terms, "total": total}

    def _attacked(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Attack the images and make one more forward pass, because the authors' attack evaluates its last iterate."""
        adversarial = self.attack(model, images, labels)
        with torch.no_grad():
            model(adversarial)
        return adversarial


@dataclass(frozen=True)
class PartitionedAT:
    """The proof of concept of Section 2.1: PGD-AT with a perturbation scaled by the part that an image belongs to.

    Misclassified images stay clean, as in MMA. Boundary images get `boundary` times their perturbation, other images
    `other` times. Both factors at 1 give the paper's baseline, its dashed line. `control`, not in the paper, applies
    `boundary` to equally many random images among the correctly classified ones.

    With `form` "text", boundary samples are those that the reduced perturbation fools, as in the section. "code" uses the
    rule of the authors' training step.
    """

    attack: Attack
    threshold: float = ETA  # radius of x″ as a share of ε
    boundary: float = 1.0
    other: float = 1.0
    control: bool = False
    form: Form = "code"

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the cross-entropy on the scaled adversarial images as "total", and the shares of the partition."""
        images = batch.augment(batch.images)
        parts = partition(model, images, batch.labels, self.attack, self.threshold, self.form)
        chosen = parts.boundary
        if self.control:
            places = torch.rand(len(chosen), device=chosen.device).masked_fill(parts.misclassified, 2).argsort().argsort()
            chosen = places < chosen.sum()
        scale = self.boundary * chosen + self.other * (~parts.misclassified & ~chosen)
        # RAAT, Section 2.1: perturbation in full, at the threshold or zero, by part; here: x + s (x′ − x)
        seen = images + each_image(scale, images) * (parts.full - images)
        return {**shares(parts), "total": F.cross_entropy(outputs(model, seen), batch.labels)}
