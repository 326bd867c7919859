"""One training step as `training.fit` takes it, to be timed; and the methods that the GPU measures and trains."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.common import seconds_of
from paperlib import models, training
from paperlib.attacks import Attack, graphs, pgd
from paperlib.data.augment import crop_and_flip
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import START, TRADES, AdversarialTraining, GradientPenalty, Standard
from paperlib.methods.pag import PAG, toward
from paperlib.methods.raat import RAAT


def method_of(name: str, attack: Attack, means: Tensor) -> Any:
    """A method of the campaign by its name; `means` C×1×… are PAG's targets."""
    made: dict[str, Callable[[], Any]] = {
        "standard": Standard,
        "pgd_at": lambda: AdversarialTraining(attack),
        "trades": lambda: TRADES(partial(attack, loss="kl", start_deviation=START)),
        "raat": lambda: RAAT(attack),
        "two_views": lambda: RAAT(attack, bound=False, dicar=False),
        "pag": lambda: PAG(partial(toward, means), 0.4, 1),
        "pag_per_batch": lambda: PAG(partial(toward, means), 0.4, 1, draw="per_batch"),
        "pag_two_passes": lambda: PAG(partial(toward, means), 0.4, 1, passes=2),
        "gradient_penalty": lambda: GradientPenalty(1.0),
    }
    return made[name]()


def training_attack(eps: float = 8 / 255, steps: int = 10, step_size: float = 2 / 255, norm: str = "linf") -> Attack:
    return partial(pgd, eps=eps, norm=norm, steps=steps, step_size=step_size)


class Stepper:
    """Steps of a method on a batch of noise. The labels are the network's own answers, so that every term has work.

    With `vary` one label more is wrong in each step: RAAT's consistency then sees another number of images each time.
    """

    def __init__(
        self, method: Any, device: str, *, width: int, batch: int, bf16: bool, channels_last: bool, kind: str,
        size: int = 32, vary: bool = False, network: str = "resnet18",
    ) -> None:  # fmt: skip
        graphs.KIND = kind  # type: ignore[assignment]
        self.device, self.bf16, self.index = device, bf16 and training.computes_in_bf16(device), 0
        self.model = models.build(network, classes=10, channels=3, width=width, seed=0, normalisation="none").to(device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain = method
        self.method = graphs.recorded(method) if device == "cuda" else method
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-5, 0.9, weight_decay=5e-4, fused=True)
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            labels = self.model.eval()(images).argmax(1)
        self.vary = vary
        self.batch = Batch(images, labels, partial(crop_and_flip, padding=4, fill=0.0, flip=True))

    def __call__(self) -> None:
        training.draw_from(self.index)
        self.index += 1
        self.model.train()
        batch = self.batch
        if self.vary:
            kept = torch.arange(len(batch.labels), device=self.device) >= 1 + self.index
            batch = replace(batch, labels=torch.where(kept, batch.labels, (batch.labels + 1) % 10))
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            total = self.method.loss(self.model, batch, Step(self.index, 1000, 0))["total"]
        self.optimizer.zero_grad(set_to_none=True)
        training.backward(total, len(self.batch.labels), len(self.batch.labels))
        nn.utils.clip_grad_norm_(self.model.parameters(), torch.inf)
        self.optimizer.step()

    def seconds(self, repeats: int) -> float:
        """The median of a step. What was to be recorded and was not is an error: its time would stand for another's."""
        found = seconds_of(self, self.device, repeats)
        attack = getattr(self.method, "attack", None)
        if isinstance(attack, graphs.Recorded) and not attack.replays:
            raise RuntimeError("the attack was not recorded")
        return found
