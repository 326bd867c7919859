"""A summary of a network as a table."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn


def summary(model: nn.Module, shape: Sequence[int]) -> pd.DataFrame:
    """List the parts of a network in the order in which an image of this shape passes through them, and the total.

    Columns: part, kind, output (its shape for one image) and weights (their number). Parts without weights that keep the
    shape, such as activations, are left out. The network is not changed.
    """
    parts = _parts(model)
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(name: str) -> Any:
        return lambda part, given, out: shapes.__setitem__(name, tuple(out.shape[1:]))

    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    rows: list[tuple[str, str, str, int]] = []
    before = tuple(shape)
    for name, after in shapes.items():
        if (count := weights(parts[name])) or after != before or not rows:
            rows.append((name, type(parts[name]).__name__, "×".join(map(str, after)), count))
        before = after
    rows.append(("in all", type(model).__name__, rows[-1][2], weights(model)))
    return pd.DataFrame(rows, columns=["part", "kind", "output", "weights"]).set_index("part")


def weights(model: nn.Module) -> int:
    """Return the number of trainable weights."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _parts(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Return the children of a module; a child that holds all the weights is replaced by its own children."""
    found: dict[str, nn.Module] = {}
    for name, part in model.named_children():
        whole = weights(part) == weights(model) and any(True for _ in part.children())
        found |= _parts(part, f"{prefix}{name}.") if whole else {prefix + name: part}
    return found
