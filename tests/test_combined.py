from functools import partial

import pytest
import torch
from torch import Tensor, nn

from paperlib import models
from paperlib.attacks import pgd
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import AdversarialTraining, GradientPenalty, Standard
from paperlib.methods.combined import Added, Combined
from paperlib.methods.gfa import GFA
from paperlib.methods.raat import RAAT
from paperlib.runs.files import InputError
from paperlib.training import cost

STEP = Step(0, 10, 0)


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 3, lambda images: images)


def test_plain_training_with_a_penalty_added_is_the_penalised_method() -> None:
    model = models.small_cnn(3, width=4).double()
    given = batch()
    given = Batch(given.images.double(), given.labels, given.augment)
    whole = GradientPenalty(0.7).loss(model, given, STEP)["total"]
    parts = Combined(Standard(), (Added("size", GradientPenalty(99.0), "penalty", 0.7),)).loss(model, given, STEP)
    torch.testing.assert_close(parts["total"], whole)
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(parts["total"], weights), torch.autograd.grad(whole, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_several_terms_add_up_and_an_unknown_one_is_refused() -> None:
    attack = partial(pgd, eps=0.03, norm="linf", steps=1, step_size=0.03, random_start=False)
    model = models.small_cnn(3, width=4).eval()
    adding = (Added("raat", RAAT(attack), "dicar", 2.0), Added("gfa", GFA(("1",), (1.0,), task="ce"), "misalignment", 0.5))
    torch.manual_seed(0)
    found = Combined(AdversarialTraining(attack), adding).loss(model, batch(), STEP)
    base = AdversarialTraining(attack).loss(model, batch(), STEP)["total"]
    total = base + 2 * found["added raat"] + 0.5 * found["added gfa"]
    torch.testing.assert_close(found["total"], total)
    for name in ("absent", "total"):
        with pytest.raises(InputError, match=f"GradientPenalty has no term '{name}'; it has task, penalty"):
            Combined(Standard(), (Added("size", GradientPenalty(1.0), name, 1.0),)).loss(model, batch(), STEP)


def test_terms_of_one_name_are_recorded_apart() -> None:
    adding = (Added("small", GradientPenalty(1.0), "penalty", 0.1), Added("twice", GradientPenalty(1.0), "penalty", 0.2))
    found = Combined(Standard(), adding).loss(models.small_cnn(3, width=4).eval(), batch(), STEP)
    torch.testing.assert_close(found["added small"], found["added twice"])
    assert float(found["added small"]) > 0


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


def test_a_combination_costs_what_its_parts_cost() -> None:
    """Though the base's pass moves batch norm's statistics, by which the other would find other images right."""
    torch.manual_seed(0)
    model, images = models.small_cnn(3, width=4), batch(16).images
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(15):  # else it has one answer for all, whatever its statistics
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(16) % 3).backward()
        optimizer.step()
    own = Batch(images, model.eval()(images).argmax(1), lambda images: images)
    attack = partial(pgd, eps=0.5, norm="linf", steps=2, step_size=0.5)
    raat = RAAT(attack, bound=False)

    class Dicar:
        def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
            return {"total": raat.loss(model, batch, step)["dicar"]}

    both = Combined(AdversarialTraining(attack), (Added("raat", raat, "dicar", 1.0),))
    alone = [cost.relative(one, model, own) for one in (AdversarialTraining(attack), Dicar())]
    assert alone[1] > 5
    assert cost.relative(both, model, own) == pytest.approx(sum(alone))
