"""The copy of a network that attacks are given."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from paperlib import zoo
from paperlib.attacks import folding, pgd, quick
from paperlib.data import as_float, load_test
from paperlib.evaluation import evaluate


def test_attacks_are_given_a_copy_without_batch_norm_and_the_network_judges() -> None:
    network = zoo.load("quick/standard-seed1")
    data = load_test("scenes4", 60)
    x = as_float(data.images)
    copy = quick(network, x[:8])
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in copy.modules())
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    assert torch.allclose(copy(x), network(x), atol=1e-4)
    attack = partial(pgd, eps=1 / 255, norm="linf", steps=5, step_size=0.5 / 255, random_start=False)
    outcomes, _ = evaluate(network, data, {"pgd": attack})
    expected = network(attack(network, x, data.labels)).argmax(1) == data.labels
    assert 0.1 < float(expected.float().mean()) < 0.9
    assert int((outcomes["pgd"] != expected).sum()) <= 1  # rounding


def test_a_copy_with_other_answers_and_a_network_without_batch_norm_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    assert quick(network, x) is network
    normed = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).eval()
    assert quick(normed, x) is not normed
    monkeypatch.setattr(folding, "folded", lambda _: deepcopy(network))
    assert quick(normed, x) is normed
