from functools import partial

import pytest
import torch
from torch import nn

from paperlib import cost, models
from paperlib.attacks import pgd
from paperlib.files import InputError
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import AdversarialTraining, GradientPenalty, Standard
from paperlib.methods.combined import Added, Combined
from paperlib.methods.gfa import GFA
from paperlib.methods.raat import RAAT

STEP = Step(0, 10, 0)


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 3, lambda images: images)


def test_plain_training_with_a_penalty_added_is_the_penalised_method() -> None:
    model = models.small_cnn(3, width=4).double()
    given = batch()
    given = Batch(given.images.double(), given.labels, given.augment)
    whole = GradientPenalty(0.7).loss(model, given, STEP)["total"]
    parts = Combined(Standard(), (Added(GradientPenalty(99.0), "penalty", 0.7),)).loss(model, given, STEP)
    torch.testing.assert_close(parts["total"], whole)
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(parts["total"], weights), torch.autograd.grad(whole, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_several_terms_add_up_and_an_unknown_one_is_refused() -> None:
    attack = partial(pgd, eps=0.03, norm="linf", steps=1, step_size=0.03, random_start=False)
    model = models.small_cnn(3, width=4).eval()
    adding = (Added(RAAT(attack), "dicar", 2.0), Added(GFA(("1",), (1.0,), task="ce"), "misalignment", 0.5))
    torch.manual_seed(0)
    found = Combined(AdversarialTraining(attack), adding).loss(model, batch(), STEP)
    base = AdversarialTraining(attack).loss(model, batch(), STEP)["total"]
    total = base + 2 * found["added dicar"] + 0.5 * found["added misalignment"]
    torch.testing.assert_close(found["total"], total)
    for name in ("absent", "total"):
        with pytest.raises(InputError, match=f"GradientPenalty has no term '{name}'; it has task, penalty"):
            Combined(Standard(), (Added(GradientPenalty(1.0), name, 1.0),)).loss(model, batch(), STEP)


@pytest.mark.parametrize("steps", [1, 4])
def test_adversarial_training_of_k_steps_costs_k_plus_one_on_a_linear_model(steps: int) -> None:
    """A step is a product forward and one for the image's gradient; plain training one forward and one for the weights'."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    before = [weight.clone() for weight in model.parameters()]
    attack = partial(pgd, eps=0.03, norm="linf", steps=steps, step_size=0.03)
    assert cost.relative(Standard(), model, batch()) == 1
    assert cost.relative(AdversarialTraining(attack), model, batch()) == steps + 1
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


def test_second_derivatives_are_counted() -> None:
    assert cost.relative(GradientPenalty(1.0), models.small_cnn(3, width=4), batch()) > 1.5
