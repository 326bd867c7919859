"""The only training loop. It knows no paper: a method gives it a loss, `Settings` say the rest."""

import copy
import math
import shutil
import time
import warnings
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from paperlib import __version__, distributed, graphs, models
from paperlib.attacks import Attack, evaluating
from paperlib.batchnorm import synchronised
from paperlib.data import ImageSet, Splits, as_float, shareable
from paperlib.data.augment import crop_and_flip
from paperlib.files import (
    InputError,
    described,
    digest,
    read_about,
    read_json,
    read_tensors,
    root,
    write_atomically,
    write_json,
    write_tensors,
)  # fmt: skip
from paperlib.methods import Batch, Measured, Method, Step
from paperlib.methods.baselines import Standard
from paperlib.progress import Bar, live
from paperlib.runs import Run, environment, recall
from paperlib.settings import ANY_RUN, TrainingSettings

CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch; every epoch ends with one
DIVERGED = 1e6  # a loss beyond this will not come back
READ_EVERY = 20  # steps between two readings of the losses, each of which makes a GPU wait for the processor
History = list[dict[str, float]]


def computes_in_bf16(device: torch.device | str) -> bool:
    """Whether the device has instructions for bfloat16: a processor without them takes twenty times as long in it."""
    if torch.device(device).type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class DivergenceError(RuntimeError):
    """The loss is no longer a number, or beyond all bounds."""


def train_each(
    run: Run,
    methods: Mapping[str, Method],
    data: Splits,
    attack: Attack | None = None,
    one_seed: Collection[str] = (),
    **changes: Any,
) -> dict[str, dict[int, nn.Module]]:
    """Train a model with each method for each seed of the run: the models by method and seed.

    Methods named in `one_seed` are trained with the first seed alone. The network is the one in the settings; `changes`
    replace settings for these trainings, say `epochs`. `attack` is for validation. What was trained before is read back.
    See `fit` for the rest.
    """
    settings = run.settings.model_copy(update=changes)
    trained: dict[str, dict[int, nn.Module]] = {name: {} for name in methods}
    for name, method in methods.items():
        for seed in settings.seeds[:1] if name in one_seed else settings.seeds:
            folder = run.folder / "training" / f"{name}-seed{seed}"
            model = build(settings, data, seed)
            trained[name][seed] = fit(model, method, data, settings, folder, seed=seed, attack=attack, device=run.device)
    return trained


def judge(run: Run, data: Splits, method: Method | None = None) -> nn.Module:
    """A model of a seed that none of the run's has, trained plainly, or by `method`.

    It says what targeted images look like to a stranger, and its own adversarial images are transferred.
    """
    seed = run.settings.seeds[0] + 1000
    return train_each(run, {"judge": method or Standard()}, data, seeds=[seed])["judge"][seed]


def build(settings: Any, data: Splits, seed: int) -> nn.Module:
    """The untrained network that the settings name, for these images; points get a toy's network."""
    if data.train.images.ndim == 2:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return models.toy_net(*getattr(settings, "toy_hidden", (32,)))
    channels, size = data.train.images.shape[1], data.train.images.shape[-1]
    return models.of_settings(settings, classes=len(data.train.classes), channels=channels, size=size, seed=seed)


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

    The best epoch has the highest score on the validation images: their clean accuracy or, with an `attack`, their robust
    accuracy or its mean with clean accuracy, as the settings say; they may also ask for the last epoch. `folder` gets
    weights.safetensors and history.json, one entry an epoch. Order, augmentation and attacks of a step follow from (seed,
    epoch, step) and the device's rank alone, and a checkpoint holds everything else: a run that was killed at any moment
    goes on and, on a CPU, ends with the same bits; on another number of devices it goes on with other draws. What was
    trained by the same recipe, here or in another run, is read back: the recipe is all that the weights depend on. A
    training of the same name by another recipe is made anew. Raises DivergenceError when the loss is not a number or beyond
    all bounds, or its gradient not finite, naming the step, the terms and the last good checkpoint, and InputError where
    batches are too small for the devices.
    """
    name = folder.name
    recipe = distributed.agreed(_recipe(model, method, data, settings, seed, attack, device))
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    rank, world = distributed.rank(), distributed.world()
    if distributed.agreed(rank == 0 and _trained(folder, recipe)):
        return models.load_weights(model, folder / "weights.safetensors").eval()
    count, least = len(data.train), 2 * world  # images of a batch: batch norm needs two in each process
    starts = [start for start in range(0, count, settings.batch_size) if count - start >= least]
    if not starts or settings.batch_size < least:
        raise InputError(
            f"devices = {world}: batches of {settings.batch_size} of {count} images; each device needs two of a batch"
        )
    averaged = copy.deepcopy(model).requires_grad_(False) if settings.ema else model
    optimizer = _optimizer(model, settings)
    if torch.device(device).type == "cuda" and world == 1:
        method = graphs.recorded(method)
    take = over_devices(model, method)
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    augment = partial(crop_and_flip, padding=settings.crop_padding, fill=settings.crop_fill, flip=settings.flip)
    bf16 = settings.bf16 and computes_in_bf16(device)
    averaging_from = round(settings.ema_start * settings.epochs)
    total = settings.epochs * len(starts)

    checkpoint = folder / "checkpoint.safetensors"
    about: dict[str, Any] = {"epoch": 0, "index": 0, "sums": {}, "history": [], "seconds": 0.0, "validation_seconds": 0.0,
                             "recipe": recipe}  # fmt: skip
    best: dict[str, Tensor] = {}
    begun_before = rank == 0 and checkpoint.exists()
    if distributed.agreed(begun_before and read_about(checkpoint).get("recipe", recipe) == recipe):
        about, best = _restore(read_tensors(checkpoint), model, averaged, optimizer)
        distributed.agreed(None)  # nobody removes it before all have read it
    elif begun_before:
        print(f"{name}: its checkpoint is of another recipe (settings, data, method or version); begun anew", flush=True)
    begun, saved, printed = time.monotonic() - about["seconds"], time.monotonic(), 0.0

    unread: list[tuple[Step, list[str], Tensor]] = []  # of steps since the last reading: terms and the gradient's norm
    latest: dict[str, Any] = {}  # what the bar shows

    def read() -> None:
        """Add what the steps recorded to the sums: one transfer. Raises DivergenceError naming the first bad step."""
        flat = iter(torch.cat([row for *_, row in unread]).tolist() if unread else [])
        for step, terms, _ in unread:
            values = {term: next(flat) for term in terms}
            norm = next(flat)
            if not abs(values["total"]) < DIVERGED:  # also where it is not a number
                raise DivergenceError(_divergence(name, step, values, checkpoint))
            if not math.isfinite(norm):
                raise DivergenceError(_divergence(name, step, {**values, "gradient's norm": norm}, checkpoint))
            for term, value in values.items():
                about["sums"][term] = about["sums"].get(term, 0.0) + value
            latest["loss"] = f"{values['total']:.4g}"
        unread.clear()

    def save() -> None:
        nonlocal saved
        if rank:
            return
        read()  # nothing of a step that diverged is kept
        about["seconds"] = time.monotonic() - begun
        _store(checkpoint, model, averaged, optimizer, best, about)
        saved = time.monotonic()

    history: History = about["history"]
    done = about["epoch"] * len(starts) + about["index"]
    together = synchronised(model) if settings.sync_batch_norm else nullcontext()
    with together, Bar(total, name, "step", done) as progress, torch.random.fork_rng(enabled=True):
        for epoch in range(about["epoch"], settings.epochs):
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_mix(seed, epoch, -1)))
            there = order.to(device)  # all at once: a copy in each step would wait for the GPU
            for index in range(about["index"], len(starts)):
                whole = order[starts[index] : starts[index] + settings.batch_size]
                members = whole[rank::world]
                depth = None if data.train.depth is None else data.train.depth[members].to(device)
                if not isinstance(images, Tensor) and index + 1 < len(starts):
                    images.expect(order[starts[index + 1] : starts[index + 1] + settings.batch_size][rank::world])
                own = there[starts[index] : starts[index] + settings.batch_size][rank::world]
                batch = Batch(as_float(images[own if isinstance(images, Tensor) else members]), labels[own], augment, depth)
                step = Step(epoch * len(starts) + index, total, epoch, averaged if settings.ema else None, settings.epochs)
                _draw_from(_mix(seed, epoch, index, rank))
                rate = learning_rate(settings, step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                model.train()
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                    terms = take(batch, step)
                recorded = distributed.overall(
                    torch.stack([term.detach().float() for term in terms.values()]), len(members)
                )
                optimizer.zero_grad(set_to_none=True)
                backward(terms["total"], len(members), len(whole))
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
                unread.append((step, list(terms), torch.cat([recorded, norm.float()[None]])))
                optimizer.step()
                if not settings.sync_batch_norm:  # else they are the same
                    distributed.broadcast(model.buffers())
                if settings.ema:
                    _average(averaged, model, settings.ema if epoch >= averaging_from else 0.0)
                about["index"] = index + 1
                if len(unread) == READ_EVERY:
                    read()
                progress.update(epoch=f"{epoch + 1}/{settings.epochs}", loss=latest.get("loss", "–"))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save()
            read()
            averages = {term: value / len(starts) for term, value in about["sums"].items()}
            _draw_from(_mix(seed, epoch, -2))
            paused = time.monotonic()
            accuracies = validate(averaged, data.validation, attack, device)
            measured = method.measure(averaged, data.validation) if isinstance(method, Measured) else {}
            about["validation_seconds"] += time.monotonic() - paused
            history.append({"epoch": epoch + 1, **averages, **accuracies, **measured})
            if _score(history[-1], settings) >= max((_score(past, settings) for past in history[:-1]), default=-1.0):
                best = {key: value.detach().clone() for key, value in averaged.state_dict().items()}
            about |= {"epoch": epoch + 1, "index": 0, "sums": {}}
            line = "  ".join(f"{key} {value:.4g}" for key, value in history[-1].items())
            progress.caption(line)
            last = epoch + 1 == settings.epochs
            if last or time.monotonic() - saved > 1:  # an epoch of the toy takes less than writing it down
                save()
            if not live() and (last or time.monotonic() - printed > 1):
                left = (time.monotonic() - begun) / (epoch + 1) * (settings.epochs - epoch - 1)
                print(f"{name}: {line}  ({left:.0f} s left)", flush=True)
                printed = time.monotonic()
    averaged.load_state_dict(best)
    if rank == 0:
        validated = about["validation_seconds"]
        seconds = {"seconds": time.monotonic() - begun - validated, "validation_seconds": validated}
        write_json(folder / "history.json", {**seconds, "recipe": recipe, "environment": environment(), "epochs": history})
        models.save_weights(averaged, folder / "weights.safetensors", {"recipe": recipe})
        checkpoint.unlink()
    distributed.agreed(None)  # who reads these files finds them
    return averaged.eval()


def over_devices(model: nn.Module, method: Method) -> nn.Module:
    """The method's loss as a module of batch and step, whose gradients are the mean over all processes.

    Batch norm's buffers stay each process's own until `distributed.broadcast` brings them together.
    """
    objective = _Objective(model, method)
    if distributed.world() == 1:
        return objective
    with warnings.catch_warnings():  # newer versions have another name for the same
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(objective, broadcast_buffers=False)


def backward(total: Tensor, size: int, whole: int) -> None:
    """Back from the mean loss of `size` images, this process's part of a batch of `whole`, to the batch's mean gradient."""
    (total * (size * distributed.world() / whole)).backward()


class _Objective(nn.Module):
    """A method's loss as the forward pass that DistributedDataParallel wraps; the method sees the network itself."""

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        return self.method.loss(self.model, batch, step)


def _recipe(
    model: nn.Module,
    method: Method,
    data: Splits,
    settings: TrainingSettings,
    seed: int,
    attack: Attack | None,
    device: torch.device | str,
) -> str | None:
    """Everything that the trained weights depend on, as one number: network, method, data, settings, seed, version.

    None for a method that cannot be described by content; then its training goes by its name alone.
    """
    skipped = {"seeds", "sync_batch_norm", *ANY_RUN}
    chosen = {name: getattr(settings, name) for name in TrainingSettings.model_fields if name not in skipped}
    if distributed.world() > 1 and not settings.sync_batch_norm:
        chosen["devices"] = settings.devices  # each normalises its own part of a batch
    try:
        parts = [chosen, seed, torch.device(device).type, __version__, described(attack), described(method)]
    except TypeError:
        return None
    return digest(model, data.train, [parts, digest(nn.Module(), data.validation, None)])


def _trained(folder: Path, recipe: str | None) -> bool:
    """Whether `folder` holds what a recipe gave; what it gave in another run is copied here."""

    def read(weights: Path) -> tuple[Path, dict[str, Any]]:
        if weights.parent != folder:
            read_tensors(weights)  # whole, or it is not taken; its own are read, and so tried, by who asks
        return weights, read_json(weights.with_name("history.json"))

    if not (found := recall(recipe, folder / "weights.safetensors", "training/*/weights.safetensors", read)):
        return False
    weights, known = found
    if weights.parent != folder:
        write_json(folder / "history.json", {**known, "from": str(weights.parent.relative_to(root()))})
        write_atomically(folder / "weights.safetensors", lambda file: shutil.copy(weights, file))
    return True


def histories(run: Run) -> dict[str, dict[str, Any]]:
    """The history of every finished training of a run, by its name.

    seconds (of training alone), validation_seconds, and epochs with losses and accuracies.
    """
    return {file.parent.name: read_json(file) for file in sorted(run.folder.glob("training/*/history.json"))}


@torch.no_grad()
def validate(model: nn.Module, data: ImageSet, attack: Attack | None, device: Any) -> dict[str, float]:
    """Clean accuracy, and robust accuracy under the attack if there is one, both in [0,1].

    The attack draws from the global generator's seed and a chunk's place; devices share the chunks.
    """
    together = shareable(data.images, 500)
    seed = torch.initial_seed()

    def of_chunk(start: int) -> dict[str, Tensor]:
        _draw_from((seed + start) % 2**63)
        images = as_float(data.images[start : start + together].to(device))
        labels = data.labels[start : start + together].to(device)
        found = {"clean_accuracy": model(images).argmax(1) == labels}
        if attack is not None:
            found["robust_accuracy"] = model(attack(model, images, labels)).argmax(1) == labels
        return found

    with evaluating(model), torch.random.fork_rng():
        parts = distributed.shared(range(0, len(data), together), of_chunk)
    return {name: int(sum(part[name].sum() for part in parts)) / len(data) for name in parts[0]}


def _score(epoch: dict[str, float], settings: TrainingSettings) -> float:
    """What the epoch is chosen by."""
    if settings.selection == "last":
        return epoch["epoch"]
    clean = epoch["clean_accuracy"]
    robust = epoch.get("robust_accuracy", clean)
    return robust if settings.selection == "robust" else (clean + robust) / 2


def learning_rate(settings: TrainingSettings, step: Step) -> float:
    """The learning rate of a step under the settings' schedule.

    step: × decay after each milestone, a share of the epochs. cosine: from the full rate to zero. one_cycle: linearly up
    over the first 30 % of the steps, then as the cosine down to zero.
    """
    full = settings.learning_rate
    if settings.schedule == "constant":
        return full
    if settings.schedule == "step":
        passed = sum(step.epoch >= round(milestone * settings.epochs) for milestone in settings.milestones)
        return full * settings.decay**passed
    share = (step.index + 0.5) / step.total
    if settings.schedule == "cosine":
        return full * (1 + math.cos(math.pi * share)) / 2
    return full * (share / 0.3 if share < 0.3 else (1 + math.cos(math.pi * (share - 0.3) / 0.7)) / 2)


def _mix(seed: int, epoch: int, index: int, rank: int = 0) -> int:
    """A seed of 63 bits for one process's step of one epoch: large odd factors keep the four apart."""
    mixed = seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9 + (index + 3) * 0x94D049BB133111EB
    return (mixed + rank * 0xD6E8FEB86659FD93) % 2**63


def _draw_from(seed: int) -> None:
    """Seed the global generators; `torch.manual_seed` formats a stack trace each time where CUDA is not in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    weights = list(model.parameters())
    decay, rate = settings.weight_decay, settings.learning_rate
    if settings.optimizer == "sgd":
        return torch.optim.SGD(weights, rate, settings.momentum, weight_decay=decay, fused=True)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[settings.optimizer](weights, rate, weight_decay=decay, fused=True)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """averaged ← decay · averaged + (1 − decay) · model, batch-norm statistics too; counters are copied."""
    for mean, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _divergence(name: str, step: Step, values: dict[str, float], checkpoint: Path) -> str:
    terms = ", ".join(f"{term} = {value:g}" for term, value in values.items())
    good = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return (
        f"{name} diverged in step {step.index} (epoch {step.epoch + 1}): {terms}; {good}. "
        "Try a lower learning_rate, or clip"
    )


def _store(
    path: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    about: dict[str, Any],
) -> None:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    if averaged is not model:
        tensors |= {f"averaged.{key}": value for key, value in averaged.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in best.items()}
    for position, weight in enumerate(optimizer.param_groups[0]["params"]):
        for key, value in optimizer.state[weight].items():
            if value is not None:
                tensors[f"optimizer.{position}.{key}"] = value
    write_tensors(path, tensors, about)


def _restore(
    kept: tuple[dict[str, Tensor], dict[str, Any]],
    model: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors, about = kept

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    model.load_state_dict(part("model."))
    if averaged is not model:
        averaged.load_state_dict(part("averaged."))
    weights = optimizer.param_groups[0]["params"]
    for key, value in part("optimizer.").items():
        position, name = key.split(".")
        weight = weights[int(position)]
        # Laid out in memory as the weight is, so that the optimizer takes the same path as before the kill.
        same = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.to(weight.device)
        optimizer.state[weight][name] = same
    return about, part("best.")
