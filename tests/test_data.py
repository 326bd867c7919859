import dataclasses
import os
import pickle
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paperlib import attacks, data
from paperlib.data import cache, images, scenes, toy
from paperlib.data.augment import crop_and_flip
from paperlib.data.folder import load as load_folder
from paperlib.data.folder import load_test, read_image
from paperlib.runs.files import InputError


def make_tree(root: Path, size: Callable[[int], int] = lambda index: 8, other: str = "test") -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 5), (other, 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (size(index), size(index), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


# The toy ---------------------------------------------------------------------


def test_toy_is_the_line_of_appendix_c1() -> None:
    splits = toy.load(0)
    points, labels = splits.train.images, splits.train.labels
    assert points.shape == (6000, 2)
    assert len(splits.test) == 600
    assert torch.equal(points[:, 1], 2 * points[:, 0])
    for label, centres in enumerate(((-50, -10, 30), (-30, 10, 50))):
        first = points[labels == label, 0]
        assert len(first) == 3000
        for centre in centres:
            mode = first[(first - centre).abs() < 10]
            assert len(mode) == 1000
            assert abs(float(mode.mean()) - centre) < 0.15  # five standard errors
            assert abs(float(mode.std()) - 1) < 0.12


# Scenes ----------------------------------------------------------------------


def test_scenes_do_not_depend_on_batch_or_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = scenes.render(7, np.arange(20), 32)
        torch.set_num_threads(1)
        alone = [scenes.render(7, np.array([index]), 32) for index in range(20)]
    finally:
        torch.set_num_threads(threads)
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_scenes_differ_by_seed_and_index() -> None:
    one, two = scenes.render(0, np.array([0, 10]), 32)[0], scenes.render(1, np.array([0, 10]), 32)[0]
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, two)


def test_depth_of_floor_pixels_is_the_planes_own() -> None:
    """A pixel at the bottom edge sees the floor; its depth follows from camera geometry alone."""
    _, depth, mask = scenes.render(3, np.arange(10), 32)
    eye, target = np.array(scenes.EYE), np.array(scenes.TARGET)
    axis = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(axis, (0, 1, 0)) / np.linalg.norm(np.cross(axis, (0, 1, 0)))
    up = np.cross(right, axis)
    half = np.tan(scenes.FIELD_OF_VIEW / 2)
    # The nearest of the four rays of the bottom-left pixel is the lowest.
    ray = axis + half * ((-1 + 1 / 64) * right + (-1 + 1 / 64) * up)
    along = -eye[1] / ray[1]  # z-depth is the multiple of the axis, whose part in the ray is one
    assert not mask[:, -1, 0].any()
    np.testing.assert_allclose(depth[:, -1, 0].numpy(), along, rtol=1e-5)


def test_a_sphere_is_a_disc_of_its_size() -> None:
    """Signed distance, camera and mask together: the silhouette's area is that of the cone around the sphere."""
    _, depth, mask = scenes.render(5, np.array([0, 10, 20]), 64)  # class 0 is the sphere
    draws = scenes.uniforms(5, np.array([0, 10, 20]), 7)
    scale = 0.75 + 0.23 * draws[:, 3]
    height = scale * (0.8 + 0.2 * draws[:, 5])
    place = np.stack([-0.25 + 0.5 * draws[:, 4], height, -0.25 + 0.5 * draws[:, 6]], 1)
    distance = np.linalg.norm(place - np.array(scenes.EYE), axis=1)
    radius = 0.8 * scale
    pixel = 2 * np.tan(scenes.FIELD_OF_VIEW / 2) / 64
    area = np.pi * radius**2 / (distance**2 - radius**2) / pixel**2
    np.testing.assert_allclose(mask.sum((1, 2)).numpy(), area, rtol=0.08)
    nearest = depth.flatten(1).amin(1)[mask.flatten(1).any(1)].numpy()
    assert (np.abs(nearest - (distance - radius)) < 0.25).all()


def test_every_solid_lies_within_its_bound_and_no_ray_can_step_through_it() -> None:
    points = torch.randn(3, 20000)
    points = points / points.norm(dim=0)
    for name, distance in scenes.SOLIDS.items():
        assert (distance(*(points * scenes.BOUND)) > 0).all(), name
        # Never more than the true distance: moving by it must not cross the surface.
        outside = points * (1.2 + torch.rand(20000))
        gap = distance(*outside)
        steps = torch.randn(3, 20000)
        moved = outside + 0.999 * gap * steps / steps.norm(dim=0)
        assert (distance(*moved) > -1e-5).all(), name


def test_scenes_are_cached_and_rendered_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scenes.load(20, 32, 0)
    monkeypatch.setattr(scenes, "render", lambda *_: pytest.fail("rendered again"))
    again = scenes.load(20, 32, 0)
    assert torch.equal(first.images, again.images)
    assert first.depth is not None
    assert torch.equal(first.depth, again.depth)
    assert first.labels.bincount().tolist() == [2] * 10
    with pytest.raises(InputError, match="size = 48"):
        scenes.load(20, 48, 0)


# Folders ---------------------------------------------------------------------


def test_a_folder_is_read_as_it_is(home: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "pets")
    splits = data.load(f"folder:{tree}", validation_images=2)
    assert splits.train.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (8, 2, 6)
    expected = np.asarray(Image.open(tree / "test" / "dog" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(splits.test.images[4].numpy(), expected)
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_cache_notices_a_changed_tree(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paperlib.data import folder

    tree = make_tree(tmp_path / "pets", other="val")
    folder.load(tree)
    decode = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda *_: pytest.fail("decoded again"))
    folder.load(tree)
    monkeypatch.setattr(folder, "_decode", decode)
    (tree / "train" / "cat" / "4.png").unlink()
    assert len(folder.load(tree)[0]) == 9


def test_a_size_brings_mixed_images_together(home: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "pets", size=lambda index: 8 + index)
    with pytest.raises(InputError, match=r"1\.png is 9×9 pixels.*8×8.*image_size=32"):
        data.load(f"folder:{tree}")
    assert data.load(f"folder:{tree}", image_size=16).train.images.shape == (10, 3, 16, 16)


def test_accents_are_the_same_in_either_form_and_names_that_are_no_text_are_refused(home: Path, tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    tree = make_tree(tmp_path / "tree")
    (tree / "train" / "cat").rename(tree / "train" / composed)
    (tree / "test" / "cat").rename(tree / "test" / apart)
    (tree / "train" / "dog" / "0.png").rename(tree / "train" / "dog" / os.fsdecode(b"\xff.png"))
    train, test = load_folder(tree)
    assert train.classes == test.classes == load_test(tree).classes == (composed, "dog")
    assert test.labels.tolist() == [0] * 3 + [1] * 3
    assert images.named(test, ["dog", apart]).classes == ("dog", composed)
    (tree / "test" / composed).mkdir()
    with pytest.raises(InputError, match="two folders are called"):
        load_folder(tree)
    (tree / "test" / composed).rename(tree / "test" / os.fsdecode(b"\xff\n"))
    with pytest.raises(InputError, match="has a name that is not UTF-8; rename it"):
        load_folder(tree)


def test_folders_below_a_class_are_read_in_the_order_of_torchvision(home: Path, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    tree = make_tree(tmp_path / "x")
    for below in ("b", "a/c", "a-b"):
        (tree / "test" / "cat" / below).mkdir(parents=True)
        for name in ("2.png", "1.png"):
            shutil.copy(tree / "train" / "dog" / name, tree / "test" / "cat" / below / f"{below[0]}{name}")
    os.symlink(tree / "train" / "dog", tree / "test" / "dog" / "linked")
    theirs = ImageFolder(tree / "test")
    test = load_folder(tree)[1]
    assert test.labels.tolist() == theirs.targets
    assert len(test) == 3 + 6 + 3 + 5
    for ours, (image, _) in zip(test.images, theirs, strict=True):
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(image))
    os.symlink(tree / "test" / "cat", tree / "test" / "cat" / "a" / "round")
    with pytest.raises(InputError, match="leads back to where it is"):
        load_folder(tree)


def test_no_more_test_images_are_read_than_asked_for(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(tmp_path / "x")
    whole, read = load_test(tree), []
    monkeypatch.setattr("paperlib.data.folder.read_image", lambda *given: (read.append(given), read_image(*given))[1])
    found = [load_test(tree, count=count) for count in (2, 4)]
    assert [one.labels.tolist() for one in found] == [[0, 1], [0, 0, 1, 1]]
    assert all(any(torch.equal(image, other) for other in whole.images) for one in found for image in one.images)
    assert len(read) == 6
    shutil.rmtree(tree / "train")
    assert len(load_test(tree, count=2)) == 2


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    file = tmp_path / f"x.{suffix}"
    Image.fromarray(values).save(file)
    expected = np.round(values / 65535 * 255)
    assert np.array_equal(read_image(file, None), np.stack([expected] * 3, 2).astype(np.uint8))
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "y.tiff")
    with pytest.raises(InputError, match=r"y\.tiff: its pixels are floating-point"):
        read_image(tmp_path / "y.tiff", None)
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "z.tiff")
    with pytest.raises(InputError, match=r"z\.tiff: pixels from 70000 to 70000"):
        read_image(tmp_path / "z.tiff", None)


def test_images_that_attacks_would_leave_are_refused() -> None:
    labels, fair = torch.tensor([0, 1]), torch.rand(2, 3, 4, 4)
    for odd, words in (
        (2 * fair - 1, r"should be in \[0,1\].*normalise inside the model"),
        (255 * fair, r"should be in \[0,1\].*divide them by 255"),
        (fair.where(fair > 0.5, torch.nan), "images from nan"),
        ((255 * fair).int(), "images of type torch.int32"),
    ):
        with pytest.raises(InputError, match=words):
            images.ImageSet(odd, labels, ("a", "b"))
    for attack in (
        partial(attacks.pgd, eps=0.1, norm="linf", steps=1, step_size=0.1),
        partial(attacks.fgsm, eps=0.1, norm="linf"),
        partial(attacks.autoattack, eps=0.1, norm="linf"),
        partial(attacks.square, eps=0.1, norm="linf"),
        partial(attacks.apgd, eps=0.1, norm="linf"),
    ):
        with pytest.raises(InputError, match=r"images from -?[\d.]+ to [\d.]+: should be in \[0,1\]"):
            attack(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), 2 * fair - 1, labels)


def test_labels_become_indices_or_are_refused() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for good in (torch.tensor([0, 1], dtype=torch.int32), np.array([0, 1]), torch.tensor([0, 1], dtype=torch.uint8)):
        found = images.ImageSet(pixels, good, ("a", "b")).labels  # type: ignore[arg-type]
        assert found.dtype == torch.int64
        assert found.tolist() == [0, 1]
    for odd, words in (
        (torch.eye(2), "labels of shape 2×2.*one-hot"),
        (torch.tensor([0.0, 1.0]), "labels of type torch.float32"),
        (torch.tensor([0, -1]), "label -1: should be an index of the 2 classes, from 0 to 1"),
        (torch.tensor([0, 2]), "label 2: should be an index"),
    ):
        with pytest.raises(InputError, match=words):
            images.ImageSet(pixels, odd, ("a", "b"))


def test_a_list_of_classes_says_which_output_is_which() -> None:
    some = images.ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("cat", "dog"))
    found = data.named(some, ["dog", "horse", "cat", ""])
    assert found.labels.tolist() == [2, 0]
    assert found.classes == ("dog", "horse", "cat")
    with pytest.raises(InputError, match="list of 2 classes has 'cat' 0 times"):
        data.named(some, ["dog", "horse"])
    with pytest.raises(InputError, match="list of 3 classes has 'dog' 2 times"):
        data.named(some, ["dog", "cat", "dog"])


def test_what_is_wrong_with_a_folder_is_named(home: Path, tmp_path: Path) -> None:
    def message(change: Callable[[Path], object]) -> str:
        tree = make_tree(tmp_path / str(len(list(tmp_path.iterdir()))))
        change(tree)
        with pytest.raises(InputError) as caught:
            data.load(f"folder:{tree}")
        assert not list((home / "data").rglob("*.safetensors"))  # no half cache
        return str(caught.value)

    def truncate(tree: Path) -> None:
        file = tree / "train" / "dog" / "2.png"
        file.write_bytes(file.read_bytes()[:60])

    def empty(tree: Path) -> None:
        for file in (tree / "test" / "cat").iterdir():
            file.unlink()

    assert "dog/2.png is not a whole image" in message(truncate)
    assert "notes.txt is not a whole image" in message(lambda tree: (tree / "train/cat/notes.txt").write_text("hello"))
    assert "test/cat is empty" in message(empty)
    assert "class 'owl' is missing from test" in message(lambda tree: (tree / "train" / "owl").mkdir())

    def flat(tree: Path) -> None:
        for place in ("train", "test"):
            for member in (tree / place).iterdir():
                shutil.rmtree(member)
            (tree / place / "image.png").write_bytes(b"")

    assert "there are no class folders in train" in message(flat)
    assert "there is no folder train" in message(lambda tree: (tree / "train").rename(tree / "training"))
    assert "there is no folder test or val" in message(lambda tree: (tree / "test").rename(tree / "testing"))


# Tiny-ImageNet ---------------------------------------------------------------


def make_tiny(root: Path, layout: str) -> Path:
    """Tiny-ImageNet with two classes of 64 px: three training images each, two of validation."""
    random = np.random.default_rng(0)

    def draw(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")

    lines = []
    for number in ("n01443537", "n01629819"):
        for index in range(3):
            draw(root / "train" / number / "images" / f"{number}_{index}.JPEG")
    for index, number in enumerate(("n01629819", "n01443537", "n01443537", "n01629819")):
        name = f"val_{index}.JPEG"
        places = {"raw": "images", "restructured": number, "nested": f"{number}/images"}
        draw(root / "val" / places[layout] / name)
        lines.append(f"{name}\t{number}\t0\t0\t63\t63\n")
    if layout == "raw":
        (root / "val" / "val_annotations.txt").write_text("".join(lines))
        (root / "test" / "images").mkdir(parents=True)
        draw(root / "test" / "images" / "test_0.JPEG")
        (root / "words.txt").write_text(
            "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn01629819\tsalamander\n"
        )
    return root


@pytest.mark.parametrize("layout", ["raw", "restructured", "nested"])
@pytest.mark.parametrize("place", ["tiny_imagenet", "tiny_imagenet/tiny-imagenet-200", "tiny-imagenet-200", "elsewhere"])
def test_tiny_imagenet_is_read_where_it_lies_in_either_layout(home: Path, layout: str, place: str) -> None:
    tree = make_tiny(home / "data" / place, layout)
    before = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    splits = data.load(f"folder:{tree}" if place == "elsewhere" else "tiny_imagenet")
    assert splits.train.images.shape == (6, 3, 64, 64)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.train.classes == (("goldfish", "salamander") if layout == "raw" else ("n01443537", "n01629819"))
    # Whatever the layout, the same four images have the same labels.
    found = {}
    for path in sorted((tree / "val").rglob("*.JPEG")):
        pixels = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())
        match = [bool(torch.equal(image, pixels)) for image in splits.test.images]
        found[path.name] = int(splits.test.labels[match.index(True)])
    assert found == {"val_0.JPEG": 1, "val_1.JPEG": 0, "val_2.JPEG": 0, "val_3.JPEG": 1}
    assert sorted(path.relative_to(tree) for path in tree.rglob("*")) == before  # nothing moved, nothing added


def test_what_is_wrong_with_tiny_imagenet_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    with pytest.raises(InputError, match=r"'tiny_imagenet' is not in .*tiny-imagenet-200\.zip.*http://cs231n.*folder:PATH"):
        data.load("tiny_imagenet")
    tree = make_tiny(home / "data" / "tiny_imagenet", "raw")
    annotations = tree / "val" / "val_annotations.txt"
    good = annotations.read_text()
    for text, message in (
        (good + "val_9.JPEG\tn01443537\t0\n", r"line 5: there is no image 'val_9\.JPEG'"),
        (good + "../../train/n01443537/images/n01443537_0.JPEG\tn01443537\n", "line 5: there is no image"),
        (good.replace("n01629819", "n09999999"), "line 1: class 'n09999999' is not among"),
        ("", "is empty"),
    ):
        annotations.write_text(text)
        with pytest.raises(InputError, match=message):
            data.load("tiny_imagenet")
    annotations.write_text(good)
    (tree / "train").rename(tree / "training")
    with pytest.raises(InputError, match=r"there is no folder train in it"):
        data.load(f"folder:{tree}")


def test_tiny_imagenet_may_keep_what_restructuring_left_empty(home: Path) -> None:
    """The usual script moves the validation images into class folders and leaves val/images and the annotations."""
    tree = make_tiny(home / "tiny", "nested")
    (tree / "val" / "images").mkdir()
    (tree / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01629819\t0\t0\t63\t63\n")
    assert data.load(f"folder:{tree}").test.labels.tolist() == [0, 0, 1, 1]


def test_two_sets_become_one(home: Path) -> None:
    splits = data.load("scenes", train_images=20, validation_images=10, test_images=10, seed=3)
    both = data.joined(splits.train, splits.validation)
    assert len(both) == 30
    assert torch.equal(both.images[20:], splits.validation.images)
    assert torch.equal(both.depth[:20], splits.train.depth)  # type: ignore[index, arg-type]
    mixed = data.joined(splits.train, dataclasses.replace(splits.validation, depth=None))
    assert mixed.depth is None
    assert torch.equal(mixed.mask[20:], splits.validation.mask)  # type: ignore[index, arg-type]


# Caches and splits -----------------------------------------------------------


def test_a_cache_of_another_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.safetensors"
    cache.cached(file, {}, lambda: ({"a": torch.ones(3)}, {}))
    monkeypatch.setattr(cache, "VERSION", 99)
    with pytest.raises(InputError, match=r"c\.safetensors: written in cache version 1, this is 99; delete"):
        cache.cached(file, {}, lambda: pytest.fail("built over it"))


def test_an_interrupted_build_leaves_no_cache(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"

    def interrupted() -> cache.Built:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached(file, {}, interrupted)
    assert not file.exists()
    assert cache.cached(file, {}, lambda: ({"a": torch.ones(3)}, {}))[0]["a"].sum() == 3


def test_validation_is_held_out_by_seed_and_class() -> None:
    labels = torch.arange(100) % 5
    whole = images.ImageSet(torch.arange(100).view(-1, 1, 1, 1).to(torch.uint8), labels, tuple("abcde"))
    splits = images.hold_out(whole, whole, 20, seed=1)
    train, held = (set(part.images.flatten().tolist()) for part in (splits.train, splits.validation))
    assert not train & held
    assert train | held == set(range(100))
    assert splits.validation.labels.bincount().tolist() == [4] * 5
    assert torch.equal(splits.validation.images, images.hold_out(whole, whole, 20, seed=1).validation.images)
    assert not torch.equal(splits.validation.images, images.hold_out(whole, whole, 20, seed=2).validation.images)
    with pytest.raises(InputError, match="validation_images = 3: there are 5 classes"):
        images.hold_out(whole, whole, 3, seed=0)
    with pytest.raises(InputError, match="has only 20"):
        images.hold_out(whole, whole, 100, seed=0)


def test_subsets_are_balanced_and_nested() -> None:
    labels = torch.arange(100) % 5
    whole = images.ImageSet(torch.arange(100).view(-1, 1, 1, 1).to(torch.uint8), labels, tuple("abcde"))
    small, large = (set(images.subset(whole, count, 0).images.flatten().tolist()) for count in (10, 43))
    assert small < large
    assert images.subset(whole, 43, 0).labels.bincount().sort().values.tolist() == [8, 8, 9, 9, 9]


def test_unknown_sets_and_missing_downloads_are_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'cifar' is not a data set; choose one of toy, scenes"):
        data.load("cifar")

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    with pytest.raises(InputError) as caught:
        data.load("cifar10")
    assert "cifar-10-python.tar.gz" in str(caught.value)
    assert str(home / "data" / "cifar10") in str(caught.value)
    assert "https://" in str(caught.value)


def test_torchvision_sets_are_read_from_their_own_files(home: Path) -> None:
    """Fashion-MNIST's idx files, made here: 2 images of 28×28, grey."""
    folder = home / "data" / "fashion_mnist" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        header = b"\x00\x00\x08\x03" + b"".join(number.to_bytes(4, "big") for number in (2, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x02\x09\x00")
    train, test = data.vision.load("fashion_mnist")
    assert train.images.shape == (2, 1, 28, 28)
    assert np.array_equal(test.images[:, 0].numpy(), pixels)
    assert train.labels.tolist() == [9, 0]
    for content in (b"", header + pixels.tobytes()[:100]):  # unpacking it was interrupted
        (folder / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(InputError, match=r"fashion_mnist.* damaged there, .* remove what was unpacked of it"):
            data.vision.load("fashion_mnist")


def test_cifar_and_stl_are_read_from_their_own_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layouts with a few images in them; only the published checksums are passed over."""
    random = np.random.default_rng(0)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for name, folder, batches, key, classes in (
        ("cifar10", "cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"], "labels", 10),
        ("cifar100", "cifar-100-python", ["train", "test"], "fine_labels", 100),
    ):
        place = home / "data" / name / folder
        place.mkdir(parents=True)
        for batch in batches:
            rows = random.integers(0, 256, (2, 3072), dtype=np.uint8)
            (place / batch).write_bytes(pickle.dumps({"data": rows, key: [3, 7]}))
        names = {"label_names": ["x"] * classes, "fine_label_names": ["x"] * classes}
        (place / ("batches.meta" if classes == 10 else "meta")).write_bytes(pickle.dumps(names))
        train, test = data.vision.load(name)
        assert train.images.shape == (2 * (len(batches) - 1), 3, 32, 32)
        assert len(train.classes) == classes
        assert np.array_equal(test.images.flatten(1).numpy(), rows)  # the last batch written is the test set
        assert test.labels.tolist() == [3, 7]

    monkeypatch.setattr("torchvision.datasets.STL10._check_integrity", lambda _: True)
    place = home / "data" / "stl10" / "stl10_binary"
    place.mkdir(parents=True)
    (place / "class_names.txt").write_text("\n".join("abcdefghij"))
    for part in ("train", "test"):
        columns = random.integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)  # stored column by column
        (place / f"{part}_X.bin").write_bytes(columns.tobytes())
        (place / f"{part}_y.bin").write_bytes(bytes([1, 10, 2]))
    train, test = data.vision.load("stl10")
    assert np.array_equal(test.images.numpy(), columns.transpose(0, 1, 3, 2))
    assert train.labels.tolist() == [0, 9, 1]


# The wave --------------------------------------------------------------------


def test_points_lie_on_the_side_of_the_wave_that_their_label_says() -> None:
    splits = data.toy.load_wave(400, 0.1, seed=0)
    for part, share in ((splits.train, 0.1), (splits.validation, 0.0), (splits.test, 0.0)):
        above = part.images[:, 1].numpy() > 0.5 + 0.2 * np.sin(2 * np.pi * part.images[:, 0].numpy())
        assert abs(float((above != part.labels.numpy()).mean()) - share) < (0.04 if share else 1e-9)
        assert float(part.images.min()) >= 0
        assert float(part.images.max()) <= 1
    assert not torch.equal(splits.train.images[:400], splits.test.images[:400])
    assert torch.equal(data.toy.load_wave(400, 0.1, seed=0).train.images, splits.train.images)


# Augmentation ----------------------------------------------------------------


def test_reflected_padding_mirrors_the_image() -> None:
    batch = torch.rand(30, 3, 6, 6)
    out = crop_and_flip(batch, 2, "reflect", False)
    padded = torch.nn.functional.pad(batch, (2,) * 4, mode="reflect")
    for image, source in zip(out, padded, strict=True):
        windows = source.unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 6, 6)
        assert (windows == image).flatten(1).all(1).any()


def test_crops_and_flips_are_windows_of_the_padded_image() -> None:
    batch = torch.rand(50, 3, 6, 6)
    out = crop_and_flip(batch, 2, 0.5, True)
    padded = torch.nn.functional.pad(batch, (2,) * 4, value=0.5)
    for image, source in zip(out, padded, strict=True):
        windows = source.unfold(1, 6, 1).unfold(2, 6, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 6, 6)
        both = torch.cat([windows, windows.flip(3)])
        assert (both == image).flatten(1).all(1).any()
    assert (
        len({tuple(image.flatten().tolist()) for image in crop_and_flip(batch[:1].expand(50, -1, -1, -1), 2, 0, True)}) > 10
    )


def test_a_gradient_goes_back_through_the_augmentation_to_the_stored_image() -> None:
    batch = torch.rand(4, 1, 5, 5, dtype=torch.float64, requires_grad=True)

    def augmented(images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return crop_and_flip(images, 1, 0.5, True)

    assert torch.autograd.gradcheck(augmented, batch)


def _png_that_claims(width: int, height: int) -> bytes:
    """The first bytes of a PNG of that size, and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_file_that_would_run_a_program_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS that is named .png: Pillow would hand it to Ghostscript, which reads and writes files."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"  # so Pillow knows it
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(InputError, match=r"a\.png is not a whole image of the formats BMP, GIF"):
        read_image(tmp_path / "a.png", None)


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(_png_that_claims(60_000, 60_000))
    with pytest.raises(InputError, match=r"large\.png: .*3600000000 pixels.* an image may have 67,108,864"):
        read_image(tmp_path / "large.png", None)
    (tmp_path / "medium.png").write_bytes(_png_that_claims(9_000, 9_000))  # of which Pillow only warns
    with pytest.raises(InputError, match="9000×9000 pixels"):
        read_image(tmp_path / "medium.png", None)


@pytest.mark.parametrize("kind", ["pipe", "device", "broken link"])
def test_what_is_no_file_is_named_and_never_read(tmp_path: Path, kind: str) -> None:
    """A pipe or an endless device would hang whoever opens it."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    odd = tmp_path / "train/dog/1.png"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else "nowhere.png")
    with pytest.raises(InputError, match=r"dog/1\.png: neither a file nor a link to one"):
        load_folder(tmp_path)
    with pytest.raises(InputError, match=r"dog/1\.png: neither a file nor a link to one"):
        read_image(odd, None)
