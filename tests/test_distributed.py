"""Two processes on one batch find what one process finds; what one began the other number ends; who dies is named.

The work is in `parts.py`. `launch` starts it twice, once for all tests here, and once it runs in this process.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import parts
import pytest
import torch
from torch import Tensor

from paperlib import cli, models, studies, training
from paperlib.methods.baselines import Standard
from paperlib.runs import distributed, launch
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, write_json
from paperlib.runs.settings import TrainingSettings
from paperlib.runs.tensors import read_tensors

PROGRAM = "import sys; from paperlib.runs.launch import launch; print(launch(sys.argv[1:], 2))"
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, sys.executable, str(Path(parts.__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed."""
    place = tmp_path_factory.mktemp("parts")
    parts.half(place / "of one")
    done = launched(str(place), "everything")
    assert "(0, '')" in done.stdout, done.stderr
    return place


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Tensor]]:
    return [read_tensors(folder / f"{rank}.safetensors")[0] for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one process computes of the same."""
    return parts.everything(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("kind", "name"), parts.CASES)
def test_the_gradients_of_two_processes_are_those_of_one(
    kind: str, name: str, alone: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    keys = [key for key in alone if key.startswith(f"{kind} {name} ")]
    assert any(float(alone[key].abs().max()) > 1e-3 for key in keys if "buffer " not in key and not key.endswith(" total"))
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


def test_a_checkpoint_of_two_processes_is_gone_on_from_by_two(two: list[dict[str, Tensor]]) -> None:
    for key in (key for key in two[0] if key.startswith("again")):
        torch.testing.assert_close(two[0][key], two[1][key], rtol=0, atol=0)
        torch.testing.assert_close(two[0][key], two[0][key.replace("again", "fitted")], rtol=0, atol=0)
    assert [found["steps"].tolist() for found in two] == [[32, 32 - 9]] * 2


def test_a_process_without_an_image_for_a_term_takes_part_all_the_same(
    alone: dict[str, Tensor], two: list[dict[str, Tensor]]
) -> None:
    """DICAR of images of which one process has none right, with its own statistics of batch norm and with all."""
    for key in (key for key in alone if key.startswith("one-sided")):
        assert all(found[key].isfinite().all() for found in two)
    for key in (key for key in alone if key.startswith("one-sided together") and "members" not in key):
        torch.testing.assert_close(two[0][key], alone[key], **EXACT)
    assert bool(alone["one-sided together members"].any())
    assert [bool(found["one-sided together members"].any()) for found in two] == [True, False]


def test_a_checkpoint_of_two_processes_is_gone_on_from_by_one(
    folder: Path, tmp_path: Path, alone: dict[str, Tensor]
) -> None:
    shutil.copytree(folder / "half", tmp_path / "half")
    about = read_tensors(tmp_path / "half" / "checkpoint.safetensors")[1]
    assert (about["epoch"], about["index"]) == (2, 1)
    model, steps = parts.fitted(tmp_path / "half")
    assert steps == 32 - 9
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, alone[f"fitted {key}"], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_one_process_is_gone_on_from_by_two(alone: dict[str, Tensor], two: list[dict[str, Tensor]]) -> None:
    for found in two:
        assert int(found["steps of one"]) == 32 - 9
        for key in (key for key in found if key.startswith("of one")):
            torch.testing.assert_close(found[key], two[0][key], rtol=0, atol=0)
            torch.testing.assert_close(found[key], alone[key.replace("of one", "fitted")], rtol=1e-3, atol=1e-4)


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


def listening(processes: set[int]) -> dict[str, str]:
    """Addresses that processes listen on, hexadecimal as Linux has them, by the inode of the socket."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[fields[9]] = fields[1].split(":")[0]
    own = set()
    for process in processes:
        for one in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                own.add(os.readlink(one).removeprefix("socket:[").removesuffix("]"))
    return {inode: address for inode, address in found.items() if inode in own}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc here")
def test_nothing_listens_where_another_machine_could_reach_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, sys.executable, str(Path(parts.__file__)), str(tmp_path), "waiting"]
    starter = subprocess.Popen(command)
    try:
        for _ in range(600):
            if len(joined := [int(file.name) for file in tmp_path.glob("joined/*")]) == 2:
                break
            assert starter.poll() is None
            time.sleep(0.1)
        found = listening({starter.pid, *joined})
        assert found  # gloo's
        assert set(found.values()) <= {"0100007F", "0" * 24 + "01000000"}  # 127.0.0.1 and ::1
    finally:
        starter.terminate()
        assert starter.wait(30) == -signal.SIGINT  # as after Ctrl-C
    assert not any(Path(f"/proc/{process}").exists() for process in joined)


def test_what_cannot_be_shared_out_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"devices = 2: a notebook.*paperlib run toy_pag -p devices=2"):
        studies.start("toy_pag", {"devices": 2})
    settings = TrainingSettings(**{**parts.SETTINGS, "batch_size": 2})
    model = models.build("small_cnn", classes=3, channels=3, width=4, seed=0)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "agreed", lambda value: value)
    with pytest.raises(InputError, match="devices = 2: batches of 2 of 46 images; each device needs two"):
        training.fit(model, Standard(), parts.splits(), settings, home / "fit", seed=0)


def test_fewer_gpus_than_devices_are_refused_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("started"))
    with pytest.raises(InputError, match="devices = 2, but there are 1 GPUs here"):
        cli._execute("jacobian_norm", "quick", {"devices": 2})
    monkeypatch.setattr(launch, "launch", lambda command, devices: (0, print(*command)) and (0, ""))
    cli._execute("jacobian_norm", "quick", {"devices": 2, "device": "cpu", "train_images": 100, "milestones": [0.5]})
    assert "-p devices=2 -p device=cpu -p train_images=100 -p milestones=[0.5]" in capsys.readouterr().out


def test_why_a_run_failed_stays_what_its_own_process_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"devices": 2, "seeds": [0]}
    folder = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag", "quick", given))
    for own, state, expected in (
        ("DivergenceError: lower the learning rate", "failed", "DivergenceError: lower the learning rate"),
        ("RuntimeError: Connection closed by peer", "failed", "process 2 of 2"),
        ("", "stopped", "process 2 of 2"),
    ):

        def ended(*_: object, own: str = own, state: str = state) -> tuple[int, str]:
            about = {"state": state, "notebook": "toy_pag", "preset": "quick", "started": 0.0, "seconds": 1.0}
            write_json(folder / "status.json", {**about, **({"error": own} if own else {})})
            return 1, "process 2 of 2 failed"

        monkeypatch.setattr(launch, "launch", ended)
        assert cli._execute("toy_pag", "quick", given) == 1
        about = runs.status(folder)
        assert about["state"] == "failed"
        assert expected in about["error"]


def test_alone_nothing_is_sent() -> None:
    assert (distributed.world(), distributed.rank()) == (1, 0)
    assert distributed.agreed({"a": 1}) == {"a": 1}
    assert distributed.united([2, 1, 2]) == [2, 1]
    assert distributed.total(3, 4) == [3, 4]
    values = torch.tensor([1.0, 2.0, 0.0])
    assert float(distributed.part_mean(values, 2, 3)) == 1.5
    assert float(distributed.part_mean(values[:0], 0, 3)) == 0
    assert distributed.summed(values) is values
    found = distributed.shared(range(0, 6, 2), lambda start: {"start": torch.tensor([start])})
    assert [int(part["start"]) for part in found] == [0, 2, 4]
