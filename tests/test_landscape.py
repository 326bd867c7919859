"""The loss around an image, against closed forms of models whose loss is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paperlib import studies
from paperlib.data import ImageSet
from paperlib.runs import run as runs
from paperlib.studies import landscape

N, SIDE = 24, 4


@pytest.fixture
def run(home: Path) -> runs.Run:
    settings = studies.resolve("gfa_landscape", "quick", {"landscape_reach": 1.0, "device": "cpu"})
    return runs.Run("gfa_landscape", "quick", settings, home / "runs" / "x")


@pytest.fixture
def data() -> ImageSet:
    images = torch.randint(60, 200, (N, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(images, torch.arange(N) % 2, ("a", "b"))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval()


class Round(nn.Module):
    """Outputs that depend on the length of the image alone: flat across it, steep along it."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.flatten(1).norm(dim=1)
        return torch.stack([size, -size], 1)


class Affine(nn.Module):
    """The same decisions from other outputs."""

    def __init__(self, offset: float, scale: float) -> None:
        super().__init__()
        self.offset, self.scale = offset, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.offset + self.scale * x


@torch.no_grad()
def squared_error(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return (model(images) - torch.eye(2)[labels]).square().mean(1)


def test_directions_are_of_length_one_along_across_and_make_up_the_adversarial(data: ImageSet) -> None:
    images = data.images.float() / 255
    ways = landscape.directions(linear(), images, data.labels, 0.5, "mse")
    flat = {name: way.flatten(1) for name, way in ways.items()}
    for way in flat.values():
        torch.testing.assert_close(way.norm(dim=1), torch.ones(N))
    unit = images.flatten(1) / images.flatten(1).norm(dim=1, keepdim=True)
    torch.testing.assert_close(flat["radial"], unit)
    for name in ("random tangential", "its tangential part"):
        assert float((flat[name] * unit).sum(1).abs().max()) < 1e-5
    torch.testing.assert_close((flat["its radial part"] * unit).sum(1).abs(), torch.ones(N))
    parts = [(flat["adversarial"] * flat[name]).sum(1) for name in ("its radial part", "its tangential part")]
    torch.testing.assert_close(parts[0] ** 2 + parts[1] ** 2, torch.ones(N))
    # Of a linear model the attack on the squared error follows its one gradient, which is the steepest of all directions.
    model = linear()
    rise = {name: squared_error(model, images + 0.01 * way, data.labels).sum() for name, way in ways.items()}
    assert max(rise, key=lambda name: float(rise[name])) == "adversarial"


def test_profiles_are_the_loss_of_a_linear_model(run: runs.Run, data: ImageSet) -> None:
    model = linear()
    found = landscape.profiles(run, {"linear": {0: model}}, data, points=3).rename(columns={"distance (L2)": "distance"})
    assert set(found["distance"]) == {0, 0.5, 1}
    images = data.images.float() / 255
    unit = images / images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for row in found[found["panel"] == "radial"].itertuples():
        moved = squared_error(model, images + row.distance * unit, data.labels)
        each = moved - squared_error(model, images, data.labels)
        assert row.value == pytest.approx(float(each.mean()), abs=1e-6)
        assert row.high - row.value == pytest.approx(1.96 * float(each.std()) / N**0.5, abs=1e-6)


def test_a_surface_has_the_tangential_direction_down_its_rows(run: runs.Run, data: ImageSet) -> None:
    grid = landscape.surfaces(run, {"round": {0: Round()}}, data, resolution=5)["round"]
    images = data.images.float() / 255
    sizes = images.flatten(1).norm(dim=1)
    for column, distance in enumerate(np.linspace(-1, 1, 5)):  # along the middle row the length changes by the distance
        length = sizes + distance
        outputs = torch.stack([length, -length], 1)
        expected = (outputs - torch.eye(2)[data.labels]).square().mean()
        assert grid[2, column] == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(grid[0], grid[4], rtol=1e-4)  # across, both ways are alike
    assert np.ptp(grid[:, 2]) < np.ptp(grid[2])


@pytest.mark.parametrize("together", [250, 3])
def test_flatness_is_minus_the_rise_across(
    run: runs.Run, data: ImageSet, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape, "CHUNK", together)
    rows = landscape.flatness(run, {"round": {0: Round()}}, data).set_index("method")
    sizes = (data.images.float() / 255).flatten(1).norm(dim=1)
    moved = (sizes**2 + 0.25).sqrt()  # half the reach, at a right angle
    sign = torch.where(data.labels == 0, 1.0, -1.0)  # the margin is −2‖x‖ of class 0, 2‖x‖ of the other
    expected = 2 * sign * (moved - sizes) / (2 * sizes / 2**0.5).median()
    np.testing.assert_allclose(rows.loc["round", "each"], expected.numpy(), atol=1e-5)
    model = linear()
    smaller = nn.Sequential(model, Affine(0.1, 0.1)).eval()  # the same decisions
    pair = landscape.flatness(run, {"as it is": {0: model, 1: model}, "smaller": {0: smaller}}, data).set_index("method")
    np.testing.assert_allclose(pair.loc["as it is", "each"].iloc[0], pair.loc["smaller", "each"], rtol=1e-3)
    weight = (model[1].weight[1] - model[1].weight[0]).detach()  # type: ignore[index, operator]
    images = (data.images.float() / 255).flatten(1)
    unit = images / images.norm(dim=1, keepdim=True)
    across = weight - (unit @ weight)[:, None] * unit  # the margin's gradient, less its radial part
    spread = model(data.images.float() / 255).detach().std(1).median()
    expected = -0.5 * across.norm(dim=1) / spread
    np.testing.assert_allclose(pair.loc["as it is", "each"].iloc[0], expected.numpy(), rtol=0.01)


def test_sizes_of_gradients_and_their_zeros(run: runs.Run, data: ImageSet) -> None:
    class Fitted(nn.Module):
        """Exactly the one-hot targets of these images, whatever their pixels: no gradient of the squared error."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(2)[data.labels] + 0 * x.flatten(1).sum(1, keepdim=True)

    model = linear()
    table = landscape.gradient_sizes(run, {"linear": {0: model}, "fitted": {0: Fitted()}}, data, "mse")
    images = data.images.float() / 255
    weight = model[1].weight  # type: ignore[index]
    gradient = ((model(images) - torch.eye(2)[data.labels]) @ weight).detach()  # 2/C Σ (z − y) w, of two classes
    assert table.loc["linear", ("task loss", "median")] == pytest.approx(float(gradient.norm(dim=1).median()), rel=1e-5)
    assert table.loc["linear", ("task loss", "zeros (%)")] == 0
    assert table.loc["fitted", ("task loss", "zeros (%)")] == 100


def test_amplification_is_the_relative_change_of_each_input(run: runs.Run, data: ImageSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, SIDE * SIDE, bias=False), nn.Linear(SIDE * SIDE, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(3 * torch.eye(SIDE * SIDE))  # a multiple changes no ratio
    found = landscape.amplification(run, {"net": {0: model}}, data, lambda model, images, labels: 1.1 * images)
    assert found["layer"].tolist() == [1, 2]
    np.testing.assert_allclose(found["value"], 0.1, rtol=1e-4)
