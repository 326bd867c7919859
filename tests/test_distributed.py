"""Two processes on one batch find what one process finds; what one began the other number ends; who dies is named.

The work is in `parts.py`. torchrun starts it twice, once for all tests here, and once it runs in this process.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import parts
import pytest
import torch
from torch import Tensor

from paperlib import distributed, models, runs, training
from paperlib.files import InputError, read_tensors

PROGRAM = "import sys; from paperlib.launch import launch; print(launch(sys.argv[1:], 2))"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, sys.executable, str(Path(parts.__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed."""
    place = tmp_path_factory.mktemp("parts")
    done = launched(str(place), "everything")
    assert "(0, '')" in done.stdout, done.stderr
    return place


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Tensor]]:
    return [read_tensors(folder / f"{rank}.safetensors")[0] for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one process computes of the same."""
    drawn = torch.randn_like
    found = parts.everything(tmp_path_factory.mktemp("alone"))
    torch.randn_like = drawn
    return found


CASES = [
    *(("small_cnn", name) for name in parts.METHODS),
    *(("cnn", name) for name in ("pag", "gfa", "raat", "combined")),
    ("vit", "daat"),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_gradients_of_two_processes_are_those_of_one(
    kind: str, name: str, alone: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    keys = [key for key in alone if key.startswith(f"{kind} {name} ")]
    assert any(float(alone[key].abs().max()) > 1e-3 for key in keys)
    for key in keys:
        for found in two:
            torch.testing.assert_close(found[key], alone[key], **EXACT, msg=lambda words, key=key: f"{key}: {words}")


def test_statistics_of_its_own_part_give_another_gradient(alone: dict[str, Tensor], two: list[dict[str, Tensor]]) -> None:
    """So the choice is the user's, and explicit."""
    key = "1.weight"
    together, apart = two[0][f"small_cnn pag {key}"], two[0][f"apart {key}"]
    assert float((together - apart).norm() / together.norm()) > 0.01
    torch.testing.assert_close(apart, two[1][f"apart {key}"], **EXACT)  # averaged all the same
    torch.testing.assert_close(alone[f"apart {key}"], alone[f"small_cnn pag {key}"], **EXACT)


def test_a_training_is_that_of_one_process(alone: dict[str, Tensor], two: list[dict[str, Tensor]]) -> None:
    """Same learning rates, clipping, average of the weights and statistics, over eight epochs in single precision."""
    for key in (key for key in alone if key.startswith("fitted")):
        torch.testing.assert_close(two[0][key], two[1][key], rtol=0, atol=0)
        torch.testing.assert_close(two[0][key], alone[key], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_two_processes_is_gone_on_from_by_one(
    folder: Path, tmp_path: Path, alone: dict[str, Tensor]
) -> None:
    shutil.copytree(folder / "half", tmp_path / "half")
    about = read_tensors(tmp_path / "half" / "checkpoint.safetensors")[1]
    assert (about["epoch"], about["index"]) == (2, 1)
    for key, value in parts.fitted(tmp_path / "half").state_dict().items():
        torch.testing.assert_close(value, alone[f"fitted {key}"], rtol=1e-3, atol=1e-4)


def test_evaluation_and_audit_do_not_depend_on_the_number_of_devices(folder: Path, two: list[dict[str, Tensor]]) -> None:
    model = models.build("small_cnn", classes=parts.CLASSES, channels=3, width=4, seed=0)
    models.load_weights(model, folder / "whole" / "weights.safetensors")
    for key, value in parts.evaluated(model.to(memory_format=torch.channels_last).eval()).items():
        for found in two:
            torch.testing.assert_close(found[f"evaluated {key}"], value, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_streamed_images_are_decoded_by_the_process_that_trains_on_them(two: list[dict[str, Tensor]]) -> None:
    counts = [int(found["streamed files"]) for found in two]
    assert counts == [23, 23]


def test_who_dies_is_named_and_the_others_do_not_wait(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = launched(str(tmp_path), "killed")
    assert "(1, 'process 2 of 2 was ended by SIGKILL, so the others were ended')" in done.stdout, done.stderr
    assert time.monotonic() - begun < 60


def test_what_cannot_be_shared_out_is_refused(home: Path) -> None:
    with pytest.raises(InputError, match=r"devices = 2, but this is 1 process.*paperlib run toy_pag -p devices=2"):
        runs.start("toy_pag", {"devices": 2})
    training._check_parts(100, 32, 1)
    training._check_parts(100, 32, 2)
    with pytest.raises(InputError, match=r"has a batch of 3.*two of it at least"):
        training._check_parts(99, 32, 2)
    with pytest.raises(InputError, match="has a batch of 6"):
        training._check_parts(6, 32, 4)


def test_alone_nothing_is_sent() -> None:
    assert (distributed.world(), distributed.rank()) == (1, 0)
    assert distributed.agreed({"a": 1}) == {"a": 1}
    assert distributed.united([2, 1, 2]) == [2, 1]
    assert distributed.total(3, 4) == [3, 4]
    values = torch.tensor([1.0, 2.0, 0.0])
    assert float(distributed.part_mean(values, 2, 3)) == 1.5
    assert float(distributed.part_mean(values[:0], 0, 3)) == 0
    found = distributed.shared(range(0, 6, 2), lambda start: {"start": torch.tensor([start])})
    assert [int(part["start"]) for part in found] == [0, 2, 4]
