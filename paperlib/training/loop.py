"""The training loop: the method supplies the loss, and the settings determine everything else."""

import copy
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import Attack, evaluating, graphs
from paperlib.data import ImageSet, Splits, as_float, shareable
from paperlib.data.augment import crop_and_flip
from paperlib.methods import Batch, Measured, Method, Step
from paperlib.models.batchnorm import synchronised
from paperlib.runs import distributed
from paperlib.runs.files import InputError
from paperlib.runs.progress import Bar
from paperlib.runs.settings import TrainingSettings
from paperlib.training import kept
from paperlib.training.devices import backward, computes_in_bf16, draw_from, mix, over_devices
from paperlib.training.optimizer import average, build_optimizer, learning_rate


def fit(
    model: nn.Module,
    method: Method,
    data: Splits,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int,
    attack: Attack | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train `model` and return it in evaluation mode with the weights of the best epoch.

    The settings' `selection` defines the best epoch by accuracies on the validation images. Without an `attack`, clean
    accuracy decides. `folder` receives weights.safetensors and history.json, with one entry per epoch.

    Data order, augmentation and attacks of a step depend on (seed, epoch, step) and process rank alone. The checkpoint
    holds everything else. So a killed run resumes and, on a CPU, gives bit-identical weights. With another number of
    devices, the random numbers differ.

    The recipe is a hash of everything that the weights depend on. Weights of the same recipe, from any run, are reused;
    weights or a checkpoint of another recipe are replaced.

    Raises DivergenceError when the loss is NaN or exceeds `kept.DIVERGED`, or its gradient is not finite. Raises
    InputError when batches are too small for the number of devices.
    """
    recipe = distributed.agreed(kept.recipe_of(model, method, data, settings, seed, attack, device))
    asked = kept.asked_of(method, data, settings, seed, attack)
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    rank, kind = distributed.rank(), torch.device(device).type
    if distributed.agreed(rank == 0 and kept.recalled(folder, recipe, asked, settings.retrain)):
        return models.load_weights(model, folder / kept.WEIGHTS).eval()
    batches = Batches.of(data.train, settings, seed, device)
    averaged = copy.deepcopy(model).requires_grad_(False) if settings.ema else model
    optimizer = build_optimizer(model, settings)
    loss = over_devices(model, graphs.recorded(method) if kind == "cuda" and distributed.world() == 1 else method)
    bf16, averaging_from = settings.bf16 and computes_in_bf16(device), round(settings.ema_start * settings.epochs)
    state = kept.Kept(folder, recipe, asked, model, averaged, optimizer, settings)
    total = settings.epochs * len(batches.starts)
    together = synchronised(model) if settings.sync_batch_norm else nullcontext()
    done = state.epoch * len(batches.starts) + state.index
    with together, Bar(total, folder.name, "step", done) as progress, torch.random.fork_rng(enabled=True):
        for epoch in range(state.epoch, settings.epochs):
            for index, whole, batch in batches.in_epoch(epoch, state.index):
                place = epoch * len(batches.starts) + index
                step = Step(place, total, epoch, averaged if settings.ema else None, settings.epochs)
                draw_from(mix(seed, epoch, index, rank))
                rate = learning_rate(settings, step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                model.train()
                with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                    terms = loss(batch, step)
                optimizer.zero_grad(set_to_none=True)
                backward(terms["total"], len(batch.labels), whole)
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip or float("inf"))
                optimizer.step()
                if not settings.sync_batch_norm:  # synchronised buffers are equal already
                    distributed.broadcast(model.buffers())
                if settings.ema:
                    average(averaged, model, settings.ema if epoch >= averaging_from else 0.0)
                state.record(step, terms, norm, len(batch.labels))
                progress.update(epoch=f"{epoch + 1}/{settings.epochs}", loss=state.loss)
            state.read()
            draw_from(mix(seed, epoch, -2))
            paused = time.monotonic()
            measured = validate(averaged, data.validation, attack, device)
            measured |= method.measure(averaged, data.validation) if isinstance(method, Measured) else {}
            progress.caption(state.end_epoch(measured, time.monotonic() - paused))
    return state.finish()


@dataclass(frozen=True)
class Batches:
    """The training images on their device, and the index at which each batch of an epoch begins."""

    images: Any  # uint8 N×C×H×W: a tensor, or streamed images with the same indexing
    labels: Tensor
    depth: Tensor | None
    starts: list[int]
    settings: TrainingSettings
    seed: int

    @classmethod
    def of(cls, data: ImageSet, settings: TrainingSettings, seed: int, device: torch.device | str) -> "Batches":
        """Build the batches. Raises InputError when a device would get fewer than two images of a batch, for batch norm."""
        world, size, count = distributed.world(), settings.batch_size, len(data)
        starts = [start for start in range(0, count, size) if count - start >= 2 * world]
        if not starts or size < 2 * world:
            raise InputError(f"devices = {world}: batches of {size} of {count} images; each device needs two of a batch")
        return cls(data.images.to(device), data.labels.to(device), data.depth, starts, settings, seed)

    def in_epoch(self, epoch: int, first: int) -> Iterator[tuple[int, int, Batch]]:
        """Yield, from batch `first` on: its index, the image count of the whole batch, and this process's part of it."""
        s, device = self.settings, self.labels.device
        rank, world = distributed.rank(), distributed.world()
        augment = partial(crop_and_flip, padding=s.crop_padding, fill=s.crop_fill, flip=s.flip)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(mix(self.seed, epoch, -1)))
        wholes = [order[start : start + s.batch_size] for start in self.starts]
        there = order.to(device)  # copied once: a copy in each step would synchronise with the GPU
        for index in range(first, len(self.starts)):
            members, start = wholes[index][rank::world], self.starts[index]
            own = there[start : start + s.batch_size][rank::world]
            if not isinstance(self.images, Tensor) and index + 1 < len(self.starts):
                self.images.expect(wholes[index + 1][rank::world])
            images = as_float(self.images[own if isinstance(self.images, Tensor) else members])
            depth = None if self.depth is None else self.depth[members].to(device)
            yield index, len(wholes[index]), Batch(images, self.labels[own], augment, depth)


@torch.no_grad()
def validate(model: nn.Module, data: ImageSet, attack: Attack | None, device: Any) -> dict[str, float]:
    """Return clean accuracy and, if an attack is given, robust accuracy, both in [0,1].

    The attack's seed is the global generator's seed plus the chunk's position. The chunks are divided among processes.
    """
    together = shareable(data.images, 500)
    seed = torch.initial_seed()

    def of_chunk(start: int) -> dict[str, Tensor]:
        draw_from((seed + start) % 2**63)
        images = as_float(data.images[start : start + together].to(device))
        labels = data.labels[start : start + together].to(device)
        found = {"clean_accuracy": model(images).argmax(1) == labels}
        if attack is not None:
            found["robust_accuracy"] = model(attack(model, images, labels)).argmax(1) == labels
        return found

    with evaluating(model), torch.random.fork_rng():
        parts = distributed.shared(range(0, len(data), together), of_chunk)
    return {name: int(sum(part[name].sum() for part in parts)) / len(data) for name in parts[0]}
