"""ImageNet-100 in each layout it comes in, small, and what reads like a tensor but stays in its files."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paperlib import data, models, studies, training
from paperlib.data import folder, imagenet100
from paperlib.data.streamed import Streamed
from paperlib.evaluation import evaluate
from paperlib.methods.baselines import Standard
from paperlib.runs.files import InputError
from paperlib.runs.tensors import digest

CLASSES = ("n01558993", "n01692333", "n01729322")
ODD = "n00000001"  # a class of the thousand that is not among the hundred


@pytest.fixture(autouse=True)
def three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(CLASSES) <= set(imagenet100.CLASSES)
    monkeypatch.setattr(imagenet100, "CLASSES", CLASSES)


def draw(file: Path, level: int) -> None:
    """A grey image of 12 × 9 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), level, np.uint8)).save(file)


def tree(home: Path, layout: str) -> Path:
    """Two training images and one validation image of each class, grey levels 10 × class + number."""
    place = home / "data" / "imagenet100"
    base = place / "ILSVRC/Data/CLS-LOC" if layout.startswith("ilsvrc") else place
    names = [*CLASSES, ODD] if layout.startswith("ilsvrc") else CLASSES
    rows = ["ImageId,PredictionString"]
    for label, name in enumerate(names):
        for number in range(2):
            split = f"train.X{1 + label % 2}" if layout == "split" else "train"
            draw(base / split / name / f"{name}_{number}.JPEG", 10 * label + number)
        if layout == "ilsvrc flat":
            draw(base / "val" / f"ILSVRC2012_val_{label}.JPEG", 100 + label)
            rows.append(f"ILSVRC2012_val_{label},{name} 1 2 3 4")
        else:
            draw(base / ("val.X" if layout == "split" else "val") / name / "0.JPEG", 100 + label)
    if layout == "ilsvrc flat":
        (place / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return place


def load(**more: Any) -> data.Splits:
    return data.load("imagenet100", image_size=8, **more)


@pytest.mark.parametrize("layout", ["ilsvrc", "ilsvrc flat", "split", "folders"])
def test_every_layout_gives_the_same_labels(home: Path, layout: str) -> None:
    tree(home, layout)
    splits = load()
    assert splits.train.classes == CLASSES
    assert splits.train.images.shape == (6, 3, 8, 8)
    levels = splits.train.images[:].float().mean((1, 2, 3))
    torch.testing.assert_close(levels, 10 * splits.train.labels + torch.tensor([0.0, 1.0]).repeat(3), atol=1.5, rtol=0)
    torch.testing.assert_close(splits.test.images[:].float().mean((1, 2, 3)), 100.0 + splits.test.labels, atol=1.5, rtol=0)


def test_a_part_is_held_out_and_chosen_without_reading_a_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(home, "folders")
    monkeypatch.setattr("paperlib.data.streamed.read_image", lambda *arguments: pytest.fail("a file was read"))
    splits = load(validation_images=3, train_images=3)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [3, 3, 3]
    assert sorted(splits.validation.labels.tolist()) == [0, 1, 2]
    assert isinstance(splits.train.images, Streamed)
    assert not set(splits.train.images.files) & set(splits.validation.images.files)  # type: ignore[attr-defined]


def test_it_reads_like_a_tensor(home: Path) -> None:
    tree(home, "folders")
    images = load().train.images
    whole = images[:]
    assert whole.dtype == torch.uint8
    assert torch.equal(images[torch.tensor([4, 0])], whole[[4, 0]])
    assert torch.equal(images[whole.float().mean((1, 2, 3)) > 9], whole[2:])
    assert torch.equal(images[2:5], whole[2:5])
    part = images.part(slice(2, 5))  # type: ignore[attr-defined]
    assert torch.equal(part[torch.tensor([1])], whole[3:4])
    assert torch.equal(images.to("cpu")[:1], whole[:1])
    assert len({images.fingerprint, part.fingerprint}) == 2  # type: ignore[attr-defined]
    images.expect(torch.tensor([1, 2]))  # type: ignore[attr-defined]
    assert torch.equal(images[torch.tensor([1, 2])], whole[1:3])
    assert not images._ahead  # type: ignore[attr-defined]


def test_files_are_decoded_by_several_threads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(home, "folders")
    meeting = threading.Barrier(2, timeout=20)  # two files must be in work at once, or it breaks

    def read(file: Path, size: int | None) -> np.ndarray:
        meeting.wait()
        return folder.read_image(file, size)

    monkeypatch.setattr("paperlib.data.streamed.read_image", read)
    monkeypatch.setattr("paperlib.data.streamed.WORKERS", 2)
    assert load().train.images[:4].shape == (4, 3, 8, 8)


def test_training_and_evaluation_take_it_and_give_what_tensors_give(home: Path) -> None:
    tree(home, "folders")
    streamed = load(validation_images=3)
    tensors = data.Splits(*(data.ImageSet(part.images[:], part.labels, part.classes)
                            for part in (streamed.train, streamed.validation, streamed.test)))  # fmt: skip
    settings = studies.resolve("gfa_landscape", "quick", {"epochs": 2, "batch_size": 2})
    found = []
    for name, splits in (("streamed", streamed), ("tensors", tensors)):
        model = models.build("small_cnn", classes=3, channels=3, width=4, seed=0)
        trained = training.fit(model, Standard(), splits, settings, home / name, seed=0)
        found.append([trained.state_dict(), evaluate(trained, splits.test, {})[0]["clean"]])
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())
    assert torch.equal(found[0][1], found[1][1])


def test_a_changed_file_changes_what_outcomes_depend_on(home: Path) -> None:
    place = tree(home, "folders")
    model = models.build("small_cnn", classes=3, channels=3, width=4, seed=0)
    before = [digest(model, part, "") for part in (load().train, load().train[:3], load().train)]
    assert before[0] == before[2] != before[1]
    draw(place / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG", 77)
    assert digest(model, load().train, "") != before[0]


def test_what_is_missing_is_said(home: Path) -> None:
    with pytest.raises(InputError, match=r"Put there, or link there, ILSVRC's tree .*train.X1/<class>.*n01558993"):
        load()
    place = tree(home, "folders")
    shutil.rmtree(place / "train" / CLASSES[1])
    with pytest.raises(InputError, match=f"class {CLASSES[1]} is in none of train"):
        load()
    shutil.rmtree(place)
    place = tree(home, "folders")
    shutil.rmtree(place / "val" / CLASSES[2])
    with pytest.raises(InputError, match=f"class {CLASSES[2]} is missing"):
        load()
    shutil.rmtree(place / "val")
    with pytest.raises(InputError, match=r"no folder val or val.X"):
        load()
    shutil.rmtree(place)
    place = tree(home, "ilsvrc flat")
    solution = place / "LOC_val_solution.csv"
    text = solution.read_text()
    for bad, message in (
        (text.replace("ILSVRC2012_val_1", "../elsewhere"), "line 3: should be an image's name"),
        (text.replace("ILSVRC2012_val_1", "ILSVRC2012_val_9"), "line 3: there is no image ILSVRC2012_val_9.JPEG"),
        ("\n".join(text.splitlines()[:2]), f"names no image of class {CLASSES[1]}"),
    ):
        solution.write_text(bad)
        with pytest.raises(InputError, match=message):
            load()
    solution.unlink()
    with pytest.raises(InputError, match=r"no LOC_val_solution\.csv"):
        load()
    shutil.rmtree(place)
    place = tree(home, "folders")
    broken = place / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=f"{broken.name} is not a whole image"):
        load().train.images[:]
