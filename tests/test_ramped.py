"""The radius that rises: nothing before, whole after, linear between, and the method itself left as it is."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from paperlib.attacks import fgsm
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import TRADES, AdversarialTraining, Standard
from paperlib.methods.combined import Added, Combined
from paperlib.methods.ramped import Ramped
from paperlib.runs.files import InputError

BATCH = Batch(torch.rand(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2]), lambda x: x)


def moved(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_size: float) -> Tensor:
    assert step_size == pytest.approx(eps / 4)
    return images + eps


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("index", "eps"), [(0, 0.0), (19, 0.0), (20, 0.0), (40, 0.02), (59, 0.039), (60, 0.04), (99, 0.04)]
)
def test_the_radius_of_a_step(index: int, eps: float) -> None:
    model = network()
    whole = AdversarialTraining(partial(moved, eps=0.04, step_size=0.01))
    expected = nn.functional.cross_entropy(model(BATCH.images + eps), BATCH.labels)
    found = Ramped(whole, 0.2, 0.6).loss(model, BATCH, Step(index, 100, 0))["total"]
    torch.testing.assert_close(found, expected)
    assert whole.attack.keywords["eps"] == 0.04


def test_without_a_ramp_and_as_part_of_a_combination() -> None:
    model, attack = network(), partial(moved, eps=0.04, step_size=0.01)
    for step in (Step(0, 10, 0), Step(9, 10, 0)):  # whole at once
        plain, ramped = (one.loss(model, BATCH, step)["total"] for one in (TRADES(attack), Ramped(TRADES(attack), 0, 0)))
        torch.testing.assert_close(ramped, plain, rtol=0, atol=0)
    jump = Ramped(TRADES(attack), 0.5, 0.5)
    before, after = (float(jump.loss(model, BATCH, Step(index, 10, 0))["kl"].detach()) for index in (4, 5))
    assert before == 0 < after
    both = Combined(Ramped(AdversarialTraining(attack), 0, 1), (Added("trades", Ramped(TRADES(attack), 0, 1), "kl", 2.0),))
    terms = both.loss(model, BATCH, Step(0, 10, 0))
    torch.testing.assert_close(terms["total"], nn.functional.cross_entropy(model(BATCH.images), BATCH.labels))


def test_what_is_no_ramp_is_refused() -> None:
    for shares in ((0.6, 0.2), (-0.1, 0.5), (0.0, 1.5)):
        with pytest.raises(InputError, match="two shares of the steps"):
            Ramped(AdversarialTraining(partial(moved, eps=0.04, step_size=0.01)), *shares)
    for method in (AdversarialTraining(partial(fgsm, eps=0.1, norm="linf")), Standard()):
        with pytest.raises(InputError, match="needs an attack with eps and step_size"):
            Ramped(method, 0.0, 0.5)
