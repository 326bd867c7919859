import torch
from torch import Tensor, nn

from paperlib.methods import Batch, Step
from paperlib.methods.jacobian import JacobianRegularisation, squared_norm

STEP = Step(0, 1, 0)


def test_the_estimate_is_the_norm_of_a_linear_map_on_average() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    images = torch.rand(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    estimate = squared_norm(model(images), images, 4_000)
    exact = model[1].weight.square().sum().detach()
    torch.testing.assert_close(estimate.detach(), exact.expand(3), rtol=0.06, atol=0)


def test_with_two_outputs_that_mirror_each_other_one_projection_is_the_jacobians() -> None:
    """z and −z: J = (g, −g), and any v·z = (v₁ − v₂) g; over the sphere E (v₁ − v₂)² = 1 = ‖J‖² / (2 ‖g‖²)."""
    torch.manual_seed(0)

    class Mirror(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = x.flatten(1).square().sum(1)
            return torch.stack([score, -score], 1)

    images = torch.rand(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    estimate = squared_norm(Mirror()(images), images, 4_000).detach()
    exact = 2 * (2 * images).flatten(1).square().sum(1).detach()
    torch.testing.assert_close(estimate, exact, rtol=0.1, atol=0)


def test_the_penalty_has_the_right_derivative() -> None:
    """Of a linear model λ/2 ‖W‖² has the derivative λ W."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False)).double()
    images, labels = torch.rand(2, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1])
    terms = JacobianRegularisation(0.3, projections=5000).loss(model, Batch(images, labels, lambda x: x), STEP)
    (penalty,) = torch.autograd.grad(0.15 * terms["jacobian"], model[1].weight, retain_graph=True)
    expected = 0.3 * model[1].weight.detach()
    assert float((penalty - expected).norm() / expected.norm()) < 0.1
    torch.testing.assert_close(terms["total"], terms["ce"] + 0.15 * terms["jacobian"])
