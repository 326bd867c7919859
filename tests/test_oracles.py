"""Depth oracles: exact ones do not see the pixels, learned ones do and are right on scenes they never saw."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from paperlib.data import as_float, scenes
from paperlib.geometry import depth, oracles
from paperlib.runs.files import InputError


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has them, of a small network with random weights: patches of 14, images padded to a multiple."""
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("dpt")
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=[f"stage{number}" for number in (1, 2, 3, 4)], reshape_hidden_states=False,
    )  # fmt: skip
    transformers.DPTForDepthEstimation(
        transformers.DPTConfig(
            backbone_config=backbone, hidden_size=32, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16,
            neck_ignore_stages=[], reassemble_factors=[4, 2, 1, 0.5],
        )
    ).save_pretrained(folder)  # fmt: skip
    transformers.DPTImageProcessor(
        do_resize=False, do_rescale=False, do_pad=True, size_divisor=14, image_mean=[123.675, 116.28, 103.53],
        image_std=[58.395, 57.12, 57.375],
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("size", [56, 32])
def test_a_published_network_sees_what_its_own_pipeline_gives_it(published: Path, size: int) -> None:
    """Step by step as its documentation has it: 8-bit images, the processor, the network, resized to what was padded."""
    from transformers import DPTForDepthEstimation, DPTImageProcessor

    network, processor = DPTForDepthEstimation.from_pretrained(published), DPTImageProcessor.from_pretrained(published)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = -(-size // 14) * 14
    with torch.no_grad():
        inputs = processor([image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")
        assert inputs.pixel_values.shape[-1] == whole
        raw = network(**inputs).predicted_depth
    resized = F.interpolate(raw[:, None], (whole, whole), mode="bilinear")[:, 0]
    edge = (whole - size) // 2
    expected = resized[:, edge : edge + size, edge : edge + size]
    found = oracles.by_network(oracles.pretrained(str(published), "disparity"))(as_float(images), None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    metres = oracles.by_network(oracles.pretrained(str(published), "distance"))(as_float(images), None)
    torch.testing.assert_close(metres, 1 / expected.clamp_min(oracles.NEAREST), rtol=1e-3, atol=1e-4)


def test_a_folder_without_a_network_says_what_it_should_hold(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no config\.json there; it should hold"):
        oracles.pretrained(str(tmp_path / "nowhere"), "distance")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="no depth network could be read"):
        oracles.pretrained(str(tmp_path), "distance")
    from safetensors.torch import load_file, save_file

    weights = load_file(published / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("head")}, tmp_path / "model.safetensors"
    )
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    with pytest.raises(InputError, match=r"of its weights are missing, head"):
        oracles.pretrained(str(tmp_path), "distance")
    oracles.pretrained.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[depth\]'"):
        oracles.pretrained(str(published), "distance")
