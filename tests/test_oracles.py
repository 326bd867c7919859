"""Depth oracles: exact ones do not see the pixels, learned ones do and are right on scenes they never saw."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from paperlib import depth, oracles
from paperlib.data import as_float, scenes
from paperlib.files import InputError


def test_the_exact_oracle_is_the_renderers_and_needs_it() -> None:
    images, distance = torch.rand(2, 3, 8, 8), 1 + torch.rand(2, 8, 8)
    torch.testing.assert_close(oracles.exact(images, distance), 1 / distance)
    assert torch.equal(oracles.exact(images, distance), oracles.exact(0 * images, distance))
    with pytest.raises(InputError, match="no depth of their own"):
        oracles.exact(images, None)


def test_the_controls_say_what_they_are_for() -> None:
    images, distance = torch.rand(4, 3, 8, 8), 1 + torch.rand(4, 8, 8)
    grey = torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8)
    torch.testing.assert_close(oracles.luminance(grey, None), grey[:, 0])
    assert torch.equal(oracles.another(oracles.exact)(images, distance)[0], oracles.exact(images, distance)[1])
    given = oracles.uniform_target(images, distance, (4, 4))
    torch.testing.assert_close(given, torch.full((4, 4, 4), 1 / 16))
    found = oracles.target(oracles.exact, "laplacian")(images, distance, (4, 4))
    torch.testing.assert_close(found, depth.saliency(1 / distance, (4, 4), "laplacian"))


def test_depth_is_learned_once_and_is_right_on_other_scenes(home: Path) -> None:
    network = oracles.learned(32, images=320, epochs=6)
    (file,) = (home / "data" / "oracles").glob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = oracles.learned(32, images=320, epochs=6)
    assert file.stat().st_mtime_ns == written
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), again.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in network.parameters())
    assert not network.training
    other = scenes.load(40, 32, seed=5)
    truth = depth.saliency(oracles.exact(as_float(other.images), other.depth), (8, 8)).flatten(1)
    found = depth.saliency(oracles.by_network(network)(as_float(other.images), None), (8, 8)).flatten(1)
    grey = depth.saliency(oracles.luminance(as_float(other.images), None), (8, 8)).flatten(1)
    agreement = [float(F.cosine_similarity(maps, truth).mean()) for maps in (found, grey, truth.roll(1, 0))]
    assert agreement[0] > 0.9  # with the true depth; edges of the image and another scene's depth are far below
    assert max(agreement[1:]) < 0.8


def test_too_few_images_to_learn_from_are_refused() -> None:
    with pytest.raises(InputError, match="images = 8: depth is learned from 32 or more"):
        oracles.learned(32, images=8)


def test_a_learned_oracle_sees_the_perturbation() -> None:
    torch.manual_seed(0)
    network, images = oracles.DepthNet().eval(), torch.rand(2, 3, 16, 16)
    oracle = oracles.by_network(network)
    assert oracle(images, None).shape == (2, 16, 16)
    assert not torch.allclose(oracle(images, None), oracle(images + 0.1 * torch.rand_like(images), None), atol=1e-6)
