"""The files in a training's folder: checkpoint, history, weights, and the recipe that produced them."""

import hashlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib import __version__, models, zoo
from paperlib.attacks import Attack
from paperlib.data import Splits
from paperlib.methods import Method, Step
from paperlib.runs import deadline, distributed
from paperlib.runs.code import code_of
from paperlib.runs.files import InputError, read_json, root, write_atomically, write_json
from paperlib.runs.progress import live
from paperlib.runs.run import environment, recall
from paperlib.runs.settings import ANY_RUN, TrainingSettings
from paperlib.runs.tensors import described, digest, read_about, read_tensors, write_tensors

CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch; each epoch also ends with one
DIVERGED = 1e6  # a larger loss does not recover
READ_EVERY = 20  # steps between two readings of the losses, since each synchronises with the GPU
RECIPE = "settings, data, method, code or version"
LOOP = "paperlib.training.loop"  # the module that trains every method
WEIGHTS, HISTORY, CHECKPOINT = "weights.safetensors", "history.json", "checkpoint.safetensors"


class DivergenceError(RuntimeError):
    """The loss is NaN or larger than DIVERGED, or its gradient is not finite."""


def recipe_of(
    model: nn.Module,
    method: Method,
    data: Splits,
    settings: TrainingSettings,
    seed: int,
    attack: Attack | None,
    device: torch.device | str,
) -> str | None:
    """Return a hash of everything that the weights depend on: network, method, data, settings, seed, code.

    Returns None for a method without a description by content; the folder's name alone then identifies its training.
    """
    skipped = {"seeds", "retrain", "sync_batch_norm", *ANY_RUN}
    chosen = {name: getattr(settings, name) for name in TrainingSettings.model_fields if name not in skipped}
    if distributed.world() > 1 and not settings.sync_batch_norm:
        chosen["devices"] = settings.devices  # batch statistics then depend on how the batch is split
    try:
        parts = [chosen, seed, torch.device(device).type, __version__, code_of(LOOP), described(attack), described(method)]
    except TypeError:
        return None
    return digest(model, data.train, [parts, digest(nn.Module(), data.validation, None)])


def asked_of(
    method: Method, data: Splits, settings: TrainingSettings, seed: int, attack: Attack | None
) -> dict[str, Any] | None:
    """Describe a training in JSON, as the key of a network in the zoo; "code" is a hash of the code that trains it.

    Returns None for a folder of images, points, or a method without a description: the zoo has no networks for them.
    """
    network = {name: getattr(settings, name, None) for name in ("model", "width", "normalisation", "stem_stride")}
    name = str(getattr(settings, "data", "folder:"))
    if None in network.values() or name.startswith("folder:") or data.train.images.ndim != 4:
        return None
    skipped = {"seeds", "retrain", "device", "sync_batch_norm", "channels_last", *ANY_RUN}
    try:
        method_in_words, validation = described(method, source=False), described(attack, source=False)
    except TypeError:
        return None
    shape = data.train.images.shape[1:]
    code = hashlib.sha256(repr([code_of(LOOP), described(method)]).encode()).hexdigest()
    return {
        "data": name, "train_images": len(data.train), "validation_images": len(data.validation), "seed": seed,
        "network": {**network, "classes": len(data.train.classes), "channels": shape[0], "size": shape[-1]},
        "training": {one: getattr(settings, one) for one in TrainingSettings.model_fields if one not in skipped},
        "method": method_in_words, "validation": None if settings.selection == "last" else validation,
        "code": code,
    }  # fmt: skip


def recalled(folder: Path, recipe: str | None, asked: dict[str, Any] | None, retrain: bool) -> bool:
    """Return whether `folder` holds weights of this recipe, copying them from another run or the zoo if needed.

    With `retrain`, weights that came from the zoo are not used.
    """

    def read(weights: Path) -> tuple[Path, dict[str, Any]]:
        if weights.parent != folder:
            read_tensors(weights)  # raises for a damaged file; `fit` itself reads the weights in `folder`
        known = read_json(weights.with_name(HISTORY))
        if retrain and "zoo" in known:
            raise InputError(f"{weights} came from the zoo")
        return weights, known

    if not (found := recall(recipe, folder / WEIGHTS, f"training/*/{WEIGHTS}", read)):
        if not retrain and asked is not None and _from_zoo(folder, recipe, asked):
            return True
        if (folder / WEIGHTS).exists():
            print(f"{folder.name}: its weights are of another recipe ({RECIPE}); trained anew", flush=True)
        return False
    weights, known = found
    if weights.parent != folder:
        write_json(folder / HISTORY, {**known, "from": str(weights.parent.relative_to(root()))})
        write_atomically(folder / WEIGHTS, lambda file: shutil.copy(weights, file))
    return True


def _from_zoo(folder: Path, recipe: str | None, asked: dict[str, Any]) -> bool:
    """Copy the matching network of the zoo into `folder` under this recipe. Return whether there was one."""
    if (name := zoo.find(asked)) is None:
        return False
    if zoo.card(name)["asked"]["code"] != asked["code"]:
        print(f"{folder.name}: {name} of the zoo was trained by other code; trained anew", flush=True)
        return False
    print(f"{folder.name}: {name} of the zoo; retrain = true trains it anew", flush=True)
    write_json(folder / HISTORY, {**zoo.card(name), "recipe": recipe, "zoo": name})
    write_tensors(folder / WEIGHTS, read_tensors(zoo.weights(name))[0], {"recipe": recipe})
    return True


class Kept:
    """The state of a training beyond the networks and the optimiser, and its files.

    `epoch` and `index` belong to the next step. A checkpoint of the same recipe is restored. For one of another recipe, a
    message is printed and the training starts from scratch. Only the first process writes.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str | None,
        asked: dict[str, Any] | None,
        model: nn.Module,
        averaged: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainingSettings,
    ) -> None:
        self.folder, self.recipe, self.asked, self.settings = folder, recipe, asked, settings
        self.networks = {"model": model} | ({"averaged": averaged} if averaged is not model else {})
        self.averaged, self.optimizer = averaged, optimizer
        self.epoch, self.index, self.validation_seconds = 0, 0, 0.0
        self.sums: dict[str, float] = {}  # each loss term, summed over the steps of this epoch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.unread: list[tuple[Step, list[str], Tensor]] = []  # steps since the last reading: terms, gradient norm
        self.loss = "–"  # total loss of the last step that was read, as text
        self.begun = self.saved = time.monotonic()
        self.printed = 0.0
        checkpoint = folder / CHECKPOINT
        begun_before = distributed.rank() == 0 and checkpoint.exists()
        if distributed.agreed(begun_before and read_about(checkpoint).get("recipe", recipe) == recipe):
            self._restore(*read_tensors(checkpoint))
            distributed.agreed(None)  # the first process must not remove it before all have read it
        elif begun_before:
            print(f"{folder.name}: its checkpoint is of another recipe ({RECIPE}); begun anew", flush=True)

    def record(self, step: Step, terms: dict[str, Tensor], norm: Tensor, size: int) -> None:
        """Record the loss terms and gradient norm of a step on `size` images; read and save at intervals.

        Raises DivergenceError naming the step, the terms and the last good checkpoint.
        """
        values = distributed.overall(torch.stack([term.detach().float() for term in terms.values()]), size)
        self.unread.append((step, list(terms), torch.cat([values, norm.detach().float()[None]])))
        self.index += 1
        if len(self.unread) == READ_EVERY:
            self.read()
        over = deadline.near() and distributed.world() == 1  # several processes would end at different steps
        if over or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.save()
        if over:
            deadline.check()

    def read(self) -> None:
        """Add the recorded steps to the sums, in one transfer. Raises DivergenceError naming the first diverged step."""
        flat = iter(torch.cat([row for *_, row in self.unread]).tolist() if self.unread else [])
        for step, terms, _ in self.unread:
            values = {term: next(flat) for term in terms}
            norm = next(flat)
            if not abs(values["total"]) < DIVERGED:  # written so that NaN raises too
                raise DivergenceError(self._divergence(step, values))
            if not math.isfinite(norm):
                raise DivergenceError(self._divergence(step, {**values, "gradient's norm": norm}))
            for term, value in values.items():
                self.sums[term] = self.sums.get(term, 0.0) + value
            self.loss = f"{values['total']:.4g}"
        self.unread.clear()

    def end_epoch(self, measured: dict[str, float], validated: float) -> str:
        """Add an epoch, with the values `measured` in `validated` seconds, to the history. Return its line of text.

        The weights become the best if no earlier epoch scored higher.
        """
        self.read()
        averages = {term: value / self.index for term, value in self.sums.items()}
        self.history.append({"epoch": self.epoch + 1, **averages, **measured})
        scores = [_score(past, self.settings) for past in self.history]
        if scores[-1] >= max(scores[:-1], default=-1.0):
            self.best = {key: value.detach().clone() for key, value in self.averaged.state_dict().items()}
        self.epoch, self.index, self.sums = self.epoch + 1, 0, {}
        self.validation_seconds += validated
        line = "  ".join(f"{key} {value:.4g}" for key, value in self.history[-1].items())
        now, last = time.monotonic(), self.epoch == self.settings.epochs
        if last or now - self.saved > 1:  # writing a checkpoint takes longer than an epoch of the toy data
            self.save()
        if not live() and (last or now - self.printed > 1):
            left = (now - self.begun) / self.epoch * (self.settings.epochs - self.epoch)
            print(f"{self.folder.name}: {line}  ({left:.0f} s left)", flush=True)
            self.printed = now
        return line

    def save(self) -> None:
        """Write the checkpoint."""
        self.saved = time.monotonic()
        if distributed.rank():
            return
        self.read()  # raises before a diverged step is saved
        tensors = {f"best.{key}": value for key, value in self.best.items()}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for position, weight in enumerate(self.optimizer.param_groups[0]["params"]):
            state = self.optimizer.state[weight].items()
            tensors |= {f"optimizer.{position}.{key}": value for key, value in state if value is not None}
        about = {
            "recipe": self.recipe, "epoch": self.epoch, "index": self.index, "sums": self.sums, "history": self.history,
            "seconds": time.monotonic() - self.begun, "validation_seconds": self.validation_seconds,
        }  # fmt: skip
        write_tensors(self.folder / CHECKPOINT, tensors, about)

    def finish(self) -> nn.Module:
        """Write weights and history. Return the network in evaluation mode with the weights of the best epoch."""
        self.averaged.load_state_dict(self.best)
        if distributed.rank() == 0:
            seconds = time.monotonic() - self.begun - self.validation_seconds
            about = {"seconds": seconds, "validation_seconds": self.validation_seconds, "environment": environment()}
            known = {**about, "recipe": self.recipe, "asked": self.asked, "epochs": self.history}
            write_json(self.folder / HISTORY, known)
            models.save_weights(self.averaged, self.folder / WEIGHTS, {"recipe": self.recipe})
            (self.folder / CHECKPOINT).unlink()
        distributed.agreed(None)  # all processes may read the files from here on
        return self.averaged.eval()

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

        for name, network in self.networks.items():
            network.load_state_dict(part(f"{name}."))
        weights = self.optimizer.param_groups[0]["params"]
        for key, value in part("optimizer.").items():
            position, name = key.split(".")
            weight = weights[int(position)]
            # With the weight's memory layout, the optimiser takes the same code path as before the interruption.
            same = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.to(weight.device)
            self.optimizer.state[weight][name] = same
        self.best = part("best.")
        for name in ("epoch", "index", "sums", "history", "validation_seconds"):
            setattr(self, name, about[name])
        self.begun -= about["seconds"]

    def _divergence(self, step: Step, values: dict[str, float]) -> str:
        terms = ", ".join(f"{term} = {value:g}" for term, value in values.items())
        checkpoint = self.folder / CHECKPOINT
        good = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
        return (
            f"{self.folder.name} diverged in step {step.index} (epoch {step.epoch + 1}): {terms}; {good}. "
            "Try a lower learning_rate, or clip"
        )


def _score(epoch: dict[str, float], settings: TrainingSettings) -> float:
    """Return the score by which the best epoch is selected."""
    if settings.selection == "last":
        return epoch["epoch"]
    clean = epoch["clean_accuracy"]
    robust = epoch.get("robust_accuracy", clean)
    return robust if settings.selection == "robust" else (clean + robust) / 2
