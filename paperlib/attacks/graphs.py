"""Attacks as CUDA graphs: recorded once, then replayed without launching each kernel from Python.

Ten steps of PGD on a small network are two thousand kernels; launching them takes longer than running them. A replay uses
the current weights. It draws its random start from PyTorch's generator as a direct call does, so a seed gives one start.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperlib.attacks import Attack, pgd

KIND: Literal["eager", "graph", "compiled"] = "graph"  # used by `training.fit` on a GPU; compiled: with torch.compile
WARM_UP = 3  # calls before recording, so that libraries choose algorithms and allocate memory
MOST = 8  # most recordings kept, to bound memory; further inputs are attacked by direct calls


def recorded(value: Any) -> Any:
    """Replace a method's PGD attacks by recorded ones, also in nested methods. Return it unchanged if there are none."""
    if KIND == "eager":
        return value
    if isinstance(value, partial):
        return Recorded(value) if value.func is pgd else value
    if isinstance(value, tuple):
        members = [recorded(one) for one in value]
        if all(one is old for one, old in zip(members, value, strict=True)):
            return value
        return type(value)(*members) if hasattr(value, "_fields") else tuple(members)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    new = {field.name: recorded(getattr(value, field.name)) for field in fields(value)}
    changed = {name: one for name, one in new.items() if one is not getattr(value, name)}
    return replace(value, **changed) if changed else value


class Recorded:
    """An attack that is replayed if possible and called otherwise, with the same result."""

    def __init__(self, attack: Attack) -> None:
        self.attack, self.func, self.args, self.keywords = attack, attack.func, attack.args, attack.keywords
        self.replays: dict[tuple[Any, ...], Callable[[Tensor, Tensor], Tensor]] = {}
        self.possible = (
            not attack.keywords.get("best") and attack.keywords.get("restarts", 1) == 1
        )  # otherwise the kernels depend on the data

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **changes: Any) -> Tensor:
        """Return adversarial images of the same shape. `changes` of settings or a model in training mode prevent replay."""
        if changes or model.training or not self.possible or not recordable(images):
            return self.attack(model, images, labels, **changes)
        kind = images.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (id(model), images.shape, images.stride(), images.dtype, labels.shape, precision)
        if key not in self.replays:
            if len(self.replays) == MOST:
                return self.attack(model, images, labels)
            try:
                compiled = KIND == "compiled" and not self.replays  # compiling takes half a minute, so it is done once
                self.replays[key] = record(self.attack, model, images, labels, compiled)
            except Exception as error:  # synchronisation, allocation and the compiler raise different types
                self.possible = False
                reason = (str(error).splitlines() or [""])[0]
                print(f"no CUDA graph of the attack ({type(error).__name__}: {reason}): it is called instead", flush=True)
                return self.attack(model, images, labels)
        return self.replays[key](images, labels)


def recordable(images: Tensor) -> bool:
    """Return whether a graph can be recorded on the images' device."""
    return images.is_cuda


def record(
    attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, compiled: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """Record the attack. Return a function of images and labels of these shapes that replays it with the current weights.

    Raises the errors of the attack or its recording. The generator's state is restored.
    """
    held = images.clone(), labels.clone()  # the memory that the graph reads; `clone` keeps the memory layout
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(images.device)
    state = torch.cuda.get_rng_state(images.device)
    wanting = [weight for weight in model.parameters() if weight.requires_grad]
    attacked: Any = model
    if compiled:
        attacked = torch.compile(model, dynamic=False)
        for weight in wanting:  # otherwise the compiler also computes the weights' gradients
            weight.requires_grad_(False)
    # Autocast caches cast weights. Entries from before the recording would go stale; entries from the recording hold no
    # values before the first replay.
    torch.clear_autocast_cache()
    try:
        aside.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                attack(attacked, *held)
        torch.cuda.current_stream(images.device).wait_stream(aside)
        torch.clear_autocast_cache()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            found = attack(attacked, *held)
    finally:
        torch.clear_autocast_cache()
        for weight in wanting:
            weight.requires_grad_(True)
        torch.cuda.set_rng_state(state, images.device)

    def replay(images: Tensor, labels: Tensor, model: nn.Module = model) -> Tensor:  # the default keeps `model` alive
        held[0].copy_(images)
        held[1].copy_(labels)
        graph.replay()
        return found.clone()

    return replay
