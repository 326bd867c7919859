"""Edges of depth against closed forms, and distances between maps against SciPy and finite differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance_nd
from torch import Tensor

from paperlib.data import load
from paperlib.geometry import depth
from paperlib.runs.files import InputError


def ramp(slope: float = 0.5) -> Tensor:
    """A plane: the map rises to the right by `slope` a pixel."""
    return (torch.arange(8.0) * slope).expand(1, 8, 8).contiguous()


def random_maps(count: int = 5, side: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        depth.unit_mass(torch.rand(count, side, side, generator=generator, dtype=torch.float64) ** 4) for _ in "ab"
    )  # type: ignore[return-value]


def test_edges_of_a_plane_and_of_a_step() -> None:
    torch.testing.assert_close(depth.edges(ramp(), "sobel"), torch.full((1, 8, 8), 0.5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(depth.edges(ramp(), "sobel_squared"), torch.full((1, 8, 8), 0.25))
    torch.testing.assert_close(depth.edges(ramp(), "laplacian"), torch.zeros(1, 8, 8))
    assert depth.saliency(ramp(0.1), (4, 4), "laplacian").abs().sum() == 0  # a plane has no edge, at the frame neither
    flat_everywhere = [
        bool(depth.saliency(1 + 1e-4 * ramp(), (4, 4), name).sum() == 0) for name in ("sobel", "sobel_squared")
    ]
    assert flat_everywhere == [False, False]  # both know the same images as flat
    step = torch.zeros(1, 8, 8)
    step[:, :, 4:] = 1
    for operator in ("sobel", "sobel_squared", "laplacian"):
        found = depth.edges(step, operator)
        assert (found[:, :, 3:5] > 0.2).all()
        assert (found[:, :, [0, 1, 2, 5, 6, 7]] < 1e-5).all()  # the frame is no edge
    with pytest.raises(InputError, match="canny"):
        depth.edges(step, "canny")  # type: ignore[arg-type]


@given(scale=st.floats(0.01, 100), turned=st.booleans())
def test_saliency_is_of_unit_mass_and_knows_neither_scale_nor_orientation(scale: float, turned: bool) -> None:
    maps = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    for operator in ("sobel", "sobel_squared", "laplacian"):
        found = depth.saliency(maps, (4, 4), operator)
        torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(3, dtype=torch.float64))
        other = depth.saliency((scale * maps).mT if turned else scale * maps, (4, 4), operator)
        torch.testing.assert_close(other.mT if turned else other, found)


def test_a_flat_map_is_left_out_and_its_neighbours_are_not() -> None:
    maps = torch.stack([torch.full((8, 8), 3.0), ramp()[0].where(torch.arange(8) < 5, 9.0)])
    found = depth.saliency(maps, (4, 4))
    assert found[0].abs().sum() == 0
    assert float(found[1].sum()) == pytest.approx(1)
    attention = depth.uniform(2, (4, 4), maps).requires_grad_(True)
    for distance in ("cosine", "jensen_shannon", "l1", "earth_mover"):
        apart = depth.misalignment(attention, found, distance)
        assert float(apart[0].detach()) == 0
        assert float(apart[1].detach()) > 0
        (gradient,) = torch.autograd.grad(apart.sum(), attention)
        assert torch.isfinite(gradient).all()


def test_a_target_is_the_same_under_autocast() -> None:
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(1)
    for operator in ("sobel", "sobel_squared", "laplacian"):
        with torch.autocast("cpu", torch.bfloat16):
            found = depth.saliency(maps, (8, 8), operator)
        assert torch.equal(found, depth.saliency(maps, (8, 8), operator))


def test_a_distance_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="oracle gave a disparity that is not a finite number"):
        depth.saliency(torch.tensor([[[1.0, 2, 3], [1, math.nan, 3], [1, 2, 3]]]), (1, 1))
    torch.testing.assert_close(depth.disparity(torch.full((1, 2, 2), 4.0)), torch.full((1, 2, 2), 0.25))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="not positive and finite"):
            depth.disparity(torch.tensor([[[1.0, bad]]]))


def test_the_edges_of_rendered_scenes_lie_around_the_solids(home: Path) -> None:
    data = load("scenes", train_images=20, validation_images=10, test_images=10, seed=0).train
    assert data.depth is not None
    assert data.mask is not None
    found = depth.edges(depth.disparity(data.depth), "sobel")
    silhouette = depth.edges(data.mask.float(), "sobel") > 0
    share = (found * silhouette).flatten(1).sum(1) / found.flatten(1).sum(1)
    assert float(share.mean()) > 2 * float(silhouette.float().mean())  # where the silhouette is, edges are denser


def test_distances_are_scipys() -> None:
    one, two = random_maps()
    found = {name: depth.misalignment(one, two, name) for name in ("cosine", "jensen_shannon", "l1", "earth_mover")}
    places = np.argwhere(np.ones((6, 6))) / math.hypot(5, 5)
    for index, (p, q) in enumerate(zip(one.flatten(1).numpy(), two.flatten(1).numpy(), strict=True)):
        assert float(found["cosine"][index]) == pytest.approx(1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q))
        assert float(found["jensen_shannon"][index]) == pytest.approx(jensenshannon(p, q) ** 2)
        assert float(found["l1"][index]) == pytest.approx(np.abs(p - q).sum())
        assert float(found["earth_mover"][index]) == pytest.approx(wasserstein_distance_nd(places, places, p, q), rel=0.07)
    with pytest.raises(InputError, match="hellinger"):
        depth.misalignment(one, two, "hellinger")  # type: ignore[arg-type]


def test_the_earth_movers_distance_orders_diffuse_and_near_maps_as_scipy_does() -> None:
    """At the rounds that training has: below the distance, but by less than half where maps differ, and in its order."""
    one, two = random_maps(3, 8)
    flat = one**0.1 / (one**0.1).sum((1, 2), keepdim=True)
    places = np.argwhere(np.ones((8, 8))) / math.hypot(7, 7)
    for first, second, least in ((one, two, 0.85), (flat, two, 0.8), (0.9 * one + 0.1 * two, one, 0.5)):
        found = depth.earth_mover(first, second)
        for index, (p, q) in enumerate(zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)):
            exact = wasserstein_distance_nd(places, places, p, q)
            assert least * exact < float(found[index]) < 1.01 * exact


def test_a_map_with_empty_places_has_a_gradient() -> None:
    one = torch.tensor([[[0.0, 0.5], [0.25, 0.25]]], requires_grad=True)
    two = torch.tensor([[[0.0, 0.5], [0.0, 0.5]]])
    for name in ("cosine", "jensen_shannon", "l1", "earth_mover"):
        (gradient,) = torch.autograd.grad(depth.misalignment(one, two, name).sum(), one)
        assert torch.isfinite(gradient).all()


def test_equal_maps_are_nothing_apart_and_farther_ones_farther() -> None:
    one, two = random_maps()
    for name in ("cosine", "jensen_shannon", "l1", "earth_mover"):
        assert float(depth.misalignment(one, one, name).abs().max()) < 1e-6
        assert float(depth.misalignment(one, two, name).min()) > 0
    corner, near, far = (torch.zeros(1, 6, 6, dtype=torch.float64) for _ in range(3))
    corner[0, 0, 0] = near[0, 0, 1] = far[0, 5, 5] = 1
    assert float(depth.earth_mover(corner, far)) == pytest.approx(1, abs=0.01)
    assert float(depth.earth_mover(corner, near)) == pytest.approx(1 / math.hypot(5, 5), abs=0.02)


@pytest.mark.parametrize("name", ["cosine", "jensen_shannon", "l1", "earth_mover"])
def test_the_gradient_of_each_distance_is_that_of_finite_differences(
    name: depth.Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "ROUNDS", 400)  # finite differences are of the optimum, not of the way to it
    one, two = random_maps(1, 3)
    raw = one.log().requires_grad_(True)  # through a softmax, as attention comes

    def apart(values: Tensor) -> Tensor:
        return depth.misalignment(values.flatten(1).softmax(1).view_as(values), two, name)

    assert torch.autograd.gradcheck(apart, (raw,), eps=1e-5, atol=1e-5 if name == "earth_mover" else 1e-6)
