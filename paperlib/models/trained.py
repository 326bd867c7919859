"""Trained networks by method and seed, as all studies pass them around."""

from collections.abc import Iterator, Mapping

from torch import nn

Trained = Mapping[str, Mapping[int, nn.Module]]  # networks by method, then by seed


def each_model(trained: Trained) -> Iterator[tuple[str, int, nn.Module]]:
    """Yield every network with its method and seed, in order."""
    for method, members in trained.items():
        for seed, model in members.items():
            yield method, seed, model


def first_models(trained: Trained) -> dict[str, nn.Module]:
    """Return the network of each method's first seed."""
    return {method: next(iter(members.values())) for method, members in trained.items()}
