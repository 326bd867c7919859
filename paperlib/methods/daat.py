"""DAAT: align attention with depth edges ("Depth-Aware Adversarial Training for Robust Image Classification").

No code is public. Where the text is open or contradicts itself:

- λ is 0.1 in Section 5.1 and 0.05, "placeholder", in B.1. The alignment is a cosine in Equation (2) and L1 in Appendix C.
  The defaults are 0.1 and the cosine; the others are options.
- t in γ(t) and s(t) counts steps, not epochs, so both functions are smooth for any epoch length.
- s(t) is "e.g., linear warm-start followed by annealing", without numbers. `schedule="warm_up"` rises over the first tenth
  and falls linearly to zero at the end. "constant", the default, is one throughout.
- A is "aggregated across layers": `saliency.attended` averages the class token's row over all blocks and heads. Edges are
  averaged over each patch.
- φ is "intermediate": here the class and patch tokens after the last norm.
- G is computed from the adversarial image, G(x + δ), as in Equation (2). `edges_of="clean"` is B.1's alternative G(x). No
  attack changes exact depth, so with exact depth the two are equal.
- Clipping of the gradient norm and bfloat16 are settings; the paper names neither.
- The attention comes from the forward pass of the cross-entropy, on the final adversarial images. The alignment's mean
  leaves out images whose depth has no edges.
- Teacher and student see the same augmented clean image for L_feat.
- With `ramp`, ε is zero over a first share of the steps and then rises, because small transformers do not learn under
  attack otherwise. While ε is zero, no attack runs and x + δ is x.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, evaluating
from paperlib.geometry.depth import Distance, misalignment
from paperlib.geometry.oracles import Target
from paperlib.geometry.saliency import Attention, tokens
from paperlib.methods import Batch, Step, outputs
from paperlib.runs import distributed
from paperlib.runs.files import InputError

Schedule = Literal["constant", "warm_up"]
Seen = Literal["adversarial", "clean"]

EARLY = 0.2  # share of the training in which features are aligned (Equation 4)
WARM_UP = 0.1  # share of the training in which s(t) rises; not published
MARKER = 2.0  # marks real pixels; no image or padding has this value


def feature_weight(share: float, start: float) -> float:
    """Return γ(t) at the share t/T of the training, in [0,1). It falls from γ₀ = `start` to zero over the first fifth."""
    # DAAT (4): γ(t) = γ₀ max(0, 1 − t / (0.2 T))
    return start * max(0.0, 1 - share / EARLY)


def alignment_schedule(share: float, schedule: Schedule) -> float:
    """Return s(t) at the share t/T of the training, in [0,1)."""
    if schedule == "constant":
        return 1.0
    # DAAT, Section 3.5: s(t) ∈ [0, 1], linear warm-start followed by annealing
    return share / WARM_UP if share < WARM_UP else (1 - share) / (1 - WARM_UP)


def feature_misalignment(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 − cos between the flattened tokens N×T×D of student and teacher: shape N (Equation 3).

    Raises InputError if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"the student has {tuple(student.shape[1:])} tokens × width, the teacher {tuple(teacher.shape[1:])}: "
            "they must agree"
        )
    # DAAT (3): L_feat(x) = 1 − ⟨φ_θ(x), φ_T(x)⟩ / (‖φ_θ(x)‖₂ ‖φ_T(x)‖₂)
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1), dim=1)


@dataclass(frozen=True)
class DAAT:
    """Equation (5): cross-entropy and depth–attention alignment on adversarial images, and early feature alignment."""

    attack: Attack
    attention: Attention | None = None  # None: without L_align
    target: Target | None = None
    weight: float = 0.1  # λ
    distance: Distance = "cosine"
    schedule: Schedule = "constant"  # s(t)
    teacher: nn.Module | None = None  # frozen; None: without L_feat
    feature: float = 1.0  # γ₀, not published
    edges_of: Seen = "adversarial"  # the image that depth and its edges G are computed from

    def __post_init__(self) -> None:
        if (self.attention is None) != (self.target is None):
            raise InputError(
                "attention and target go together: one says where the network looks, the other where it should"
            )
        for name, allowed in (("schedule", get_args(Schedule)), ("edges_of", get_args(Seen))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} = {getattr(self, name)!r}; choose from {', '.join(allowed)}")
        for name in ("weight", "feature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} = {getattr(self, name):g}; it must be zero or more")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return L_ce(x + δ) + λ s(t) L_align(x + δ) + γ(t) L_feat(x), means over images.

        Terms: "task", "align" and "feature", without their weights; "edged", the share of images whose depth has edges;
        "total". Raises InputError if a crop would pad the depth with a constant.
        """
        images, depth = _augmented(batch)
        share = step.index / step.total
        with evaluating(model):
            adversarial = self.attack(model, images, batch.labels)
        zero = images.new_zeros(())
        align = features = edged = zero
        if self.attention is not None and self.target is not None:
            logits, attention = self.attention(model, adversarial)
            with torch.autocast(images.device.type, enabled=False):
                with torch.no_grad():
                    seen = images if self.edges_of == "clean" else adversarial
                    wanted = self.target(seen, depth, (attention.shape[1], attention.shape[2]))
                edges = wanted.flatten(1).sum(1) > 0
                each = misalignment(attention, wanted, self.distance)
                align = distributed.part_mean(each, int(edges.sum()), len(edges))
            edged = edges.float().mean()
        else:
            logits = outputs(model, adversarial)
        task = F.cross_entropy(logits, batch.labels)
        gamma = feature_weight(share, self.feature)
        if self.teacher is not None and gamma > 0:
            with torch.no_grad(), evaluating(self.teacher.to(images.device)):
                wanted = tokens(self.teacher, images)
            features = feature_misalignment(tokens(model, images), wanted).mean()
        # DAAT (5): L_ce(f(x + δ), y) + λ s(t) L_align(x + δ) + γ(t) L_feat(x)
        total = task + self.weight * alignment_schedule(share, self.schedule) * align + gamma * features
        return {"task": task, "align": align, "feature": features, "edged": edged, "total": total}


def _augmented(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return the images and their depth, if any, with the same crop and flip."""
    if batch.depth is None:
        return batch.augment(batch.images), None
    depth = batch.depth[:, None].to(batch.images)
    all_of_it = batch.augment(torch.cat([batch.images, depth, torch.full_like(depth, MARKER)], 1))
    if bool((all_of_it[:, -1] != MARKER).any()):
        raise InputError(
            "a crop's padding has no depth: crop_fill must be reflect, or crop_padding 0, where depth is exact"
        )
    return all_of_it[:, :-2].contiguous(memory_format=torch.channels_last), all_of_it[:, -2]
