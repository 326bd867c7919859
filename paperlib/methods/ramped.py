"""Adversarial training with a radius that rises from zero, because small networks learn slowly or not at all otherwise.

This is common practice and not from the four papers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from paperlib.methods import Batch, Step
from paperlib.runs.files import InputError


@dataclass(frozen=True)
class Ramped:
    """A method with an attack whose ε is zero until the share `begin` of the steps, then rises linearly until `end`.

    Raises InputError for shares outside [0,1] or out of order, and for a method whose attack has no `eps` and `step_size`.
    """

    method: Any  # a dataclass with an `attack`
    begin: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= 1:
            raise InputError(
                f"ramp = {[self.begin, self.end]}; it must be two shares of the steps, the first not after the second"
            )
        if not {"eps", "step_size"} <= set(getattr(getattr(self.method, "attack", None), "keywords", {})):
            raise InputError("a ramp needs an attack with eps and step_size, which rise together")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the method's terms at the current ε."""
        share, attack = step.index / step.total, self.method.attack
        if share >= self.end:
            return self.method.loss(model, batch, step)  # type: ignore[no-any-return]
        rise = (share - self.begin) / (self.end - self.begin) if share > self.begin else 0.0
        weaker = {name: rise * attack.keywords[name] for name in ("eps", "step_size")}
        now = partial(attack, **weaker) if rise else partial(unmoved, **{**attack.keywords, **weaker})
        return replace(self.method, attack=now).loss(model, batch, step)  # type: ignore[no-any-return]


def ramped(method: Any, ramp: Sequence[float]) -> Any:
    """Ramp the method's attack over the shares `ramp`. Return a method without attack, or for `ramp[1]` = 0, unchanged."""
    return Ramped(method, *ramp) if ramp[1] and hasattr(method, "attack") else method


def unmoved(model: nn.Module, images: Tensor, labels: Tensor, **_: Any) -> Tensor:
    """Return the images, as an attack of radius zero does, without forward passes."""
    return images
