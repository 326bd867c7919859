"""How layers respond, and the shape of decision regions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib import models
from paperlib.geometry import alignment_defect, decision_plane, fragmentation, layer_outputs, nonlinear_layers
from paperlib.runs.files import InputError

RATES = (0.25, 0.5, 0.75)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


def test_the_defect_of_a_linear_layer_is_zero_and_that_of_a_square_is_known() -> None:
    """h(x) = x²: h(x + μΔ) − h(x) − μ(h(x + Δ) − h(x)) = (μ² − μ) Δ² (RAAT, Definition 1)."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), Square()).double()
    nn.init.eye_(model[0].weight)
    x, delta = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    (linear, square), moved = alignment_defect(model, x, x + delta, ["0", "1"], RATES)
    assert float(linear.abs().max()) < 1e-12
    torch.testing.assert_close(square, sum(rate - rate**2 for rate in RATES) / len(RATES) * (delta**2).norm(dim=1))
    torch.testing.assert_close(moved, torch.stack([delta.norm(dim=1), ((x + delta) ** 2 - x**2).norm(dim=1)]))
    defect, moved = alignment_defect(model, x, x, ["1"], RATES)  # no perturbation, no defect
    assert float(defect.max()) == float(moved.max()) == 0


def test_layers_are_read_without_changing_the_model() -> None:
    model = models.build("resnet18", classes=3, channels=1, width=4, seed=0).eval()
    names = nonlinear_layers(model)
    assert names == ["relu", "layer1", "layer2", "layer3", "layer4", "linear"]
    images = torch.rand(2, 1, 8, 8)
    with layer_outputs(model, names) as outputs:
        logits = model(images)
    assert torch.equal(outputs["linear"], logits)
    assert torch.equal(outputs["layer1"], model.layer1(outputs["relu"]))
    assert not any(module._forward_hooks for module in model.modules())
    with (
        pytest.raises(InputError, match=r"no layer 'layer9' in the model; there are .*layer4"),
        layer_outputs(model, ["layer9"]),
    ):
        model(images)
    with pytest.raises(InputError, match="'linear' took no part"), layer_outputs(model, ["linear"]):
        model.layer1(outputs["relu"])


def test_regions_and_length_of_known_planes() -> None:
    axis = np.linspace(0, 1, 401)
    x1, x2 = np.meshgrid(axis, axis)
    regions, length = fragmentation(x2 - 0.5 - 1e-9)
    assert (regions, length) == (2, pytest.approx(1.0, abs=1e-6))
    circle = 0.3 - np.hypot(x1 - 0.5, x2 - 0.5)
    assert fragmentation(circle)[0] == 2
    assert fragmentation(circle)[1] == pytest.approx(2 * math.pi * 0.3, rel=1e-3)
    stripes = np.sin(2 * math.pi * 3 * x1 + 0.1)
    assert fragmentation(stripes)[0] == 7
    assert fragmentation(np.ones((50, 50))) == (1, 0.0)


def test_the_plane_is_the_models_own_difference() -> None:
    model = models.toy_net(8, 8)
    plane = decision_plane(model, 11)
    with torch.no_grad():
        logits = model(torch.tensor([[0.3, 0.8]]))[0]
    assert plane[8, 3] == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)  # rows along x₂
