"""Trained networks as every study has them: by method and seed."""

from collections.abc import Iterator, Mapping

from torch import nn

Trained = Mapping[str, Mapping[int, nn.Module]]  # the networks of each method, by seed


def each_model(trained: Trained) -> Iterator[tuple[str, int, nn.Module]]:
    """Every network with its method and seed, in order."""
    for method, members in trained.items():
        for seed, model in members.items():
            yield method, seed, model


def first_models(trained: Trained) -> dict[str, nn.Module]:
    """The network of each method's first seed."""
    return {method: next(iter(members.values())) for method, members in trained.items()}
