"""What ends a run early is said in words, keeps what was computed, and does not keep the run from going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_notebooks import PAPERS, tiny
from torture import descendants

from paperlib.runs import run as runs
from paperlib.runs.files import read_json

pytestmark = pytest.mark.torture  # minutes: `make torture`
TOY = ["-p", "seeds=[0]", "-p", "epochs=2", "-p", "neighbors=2"]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "paperlib.cli", "run", "toy_pag", *TOY, *options]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PAPERLIB_ROOT": str(home), "OMP_NUM_THREADS": "1"}


def kernel_of(process: int) -> int:
    """The notebook's kernel among the children of a command, once it is at work."""
    for _ in range(600):
        for child in descendants(process):
            with suppress(OSError):  # it has ended
                if b"ipykernel" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
        time.sleep(0.1)
    raise AssertionError("no kernel was started")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A project's folder on a file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    (place / "notebooks").symlink_to(REPOSITORY / "notebooks")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_and_with_room_the_run_goes_on(small_disk: Path) -> None:
    full = subprocess.run(command(), env=environment(small_disk), capture_output=True, text=True)
    assert full.returncode in (1, 2)
    assert "disk is full" in full.stderr or "No space left" in full.stderr
    assert full.stderr.rstrip().splitlines()[-1].startswith("paperlib:")
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    done = subprocess.run(command(), env=environment(small_disk), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (small_disk / "runs" / "toy_pag").iterdir()
    assert runs.status(folder)["state"] == "finished"


def test_a_read_only_folder_is_said(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = subprocess.run(command(), env=environment(small_disk), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_kernel_and_a_hanging_cell_end_in_words_and_ctrl_c_as_well(home: Path) -> None:
    """A kernel killed as for lack of memory, one that stands still, Ctrl-C; then the run is finished all the same."""
    for ending, said in (("kill", "was killed, perhaps for lack of memory"), ("hang", "took longer than 30 s")):
        options = ["--cell-timeout", "30"] if ending == "hang" else []
        with subprocess.Popen(command(*options), env=environment(home), stderr=subprocess.PIPE, text=True) as begun:
            kernel = kernel_of(begun.pid)
            for _ in range(300):
                if any(runs.status(file.parent)["state"] == "running" for file in home.glob("runs/toy_pag/*/status.json")):
                    break
                time.sleep(0.1)
            os.kill(kernel, signal.SIGKILL if ending == "kill" else signal.SIGSTOP)
            words = begun.communicate(timeout=120)[1]
        assert begun.returncode == 1, words
        assert said in words
        assert "the same command goes on from there" in words
        (folder,) = (home / "runs" / "toy_pag").iterdir()
        assert runs.status(folder)["state"] in ("killed", "stopped", "failed")
    with subprocess.Popen(
        command(), env=environment(home), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as begun:
        kernel_of(begun.pid)
        time.sleep(1)
        os.killpg(begun.pid, signal.SIGINT)
        words = begun.communicate(timeout=120)[1]
    assert begun.returncode == 130, words
    assert "interrupted" in words
    done = subprocess.run(command(), env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_machine_is_like_changes_nothing(tmp_path: Path) -> None:
    """Braces and accents in the project's path, a long TMPDIR, another python3 kernel, a matplotlibrc, Latin-1."""
    home, other, long = tmp_path / "a {0}{preset} é", tmp_path / "other", tmp_path / ("x" * 120) / "{a}"
    for place in (home, other / "kernels" / "python3", long):
        place.mkdir(parents=True)
    (home / "notebooks").symlink_to(REPOSITORY / "notebooks")
    wrong = {"argv": ["/bin/false"], "display_name": "other", "language": "python"}
    (other / "kernels" / "python3" / "kernel.json").write_text(json.dumps(wrong))
    (other / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nlines.linewidth: 9\nsavefig.dpi: 10\n")
    odd = {"TMPDIR": str(long), "JUPYTER_PATH": str(other), "MPLCONFIGDIR": str(other), "PYTHONIOENCODING": "latin-1"}
    figures = []
    for more in ({}, odd):
        done = subprocess.run(command(), env={**environment(home), **more}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        (folder,) = (home / "runs" / "toy_pag").iterdir()
        figures.append({file.name: file.read_bytes() for file in folder.glob("figures/*.*")})
        shutil.rmtree(home / "runs")
    assert len(figures[0]) > 3
    assert figures[0] == figures[1]
    assert not list(long.glob("paperlib-*"))


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_ctrl_c_before_anything_began_is_no_traceback(home: Path, seconds: float) -> None:
    with subprocess.Popen(
        command(), env=environment(home), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as begun:
        time.sleep(seconds)
        os.killpg(begun.pid, signal.SIGINT)
        words = begun.communicate(timeout=120)[1]
    assert "interrupted" in words
    assert "Traceback" not in words


def test_on_two_devices_the_death_of_one_ends_the_run_in_seconds_and_one_goes_on(home: Path) -> None:
    """Its command killed, its kernel killed, Ctrl-C; then on one device."""
    long = command("-p", "devices=2", "-p", "epochs=150")
    for ending, code, said in (
        ("command", 1, "process 2 of 2 was ended by SIGKILL"),
        ("kernel", 1, "process 2 of 2 failed"),
        ("Ctrl-C", 130, "interrupted"),
    ):
        with subprocess.Popen(
            long, env=environment(home), stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as begun:
            for _ in range(900):
                if any("epoch" in file.read_text() for file in home.glob("runs/toy_pag/*/progress.json")):
                    break
                time.sleep(0.1)
            parts = [one for one in descendants(begun.pid) if "run-part" in said_by(one)]
            second = next(one for one in parts if "\0LOCAL_RANK=1\0" in f"\0{Path(f'/proc/{one}/environ').read_text()}")
            killed = time.monotonic()
            if ending == "Ctrl-C":
                os.killpg(begun.pid, signal.SIGINT)
            else:
                os.kill(second if ending == "command" else kernel_of(second), signal.SIGKILL)
            words = begun.communicate(timeout=120)[1]
            assert time.monotonic() - killed < 30
        assert begun.returncode == code, words
        assert said in words
        assert "goes on from there" in words
        (folder,) = (home / "runs" / "toy_pag").iterdir()
        assert runs.status(folder)["state"] in ("killed", "stopped", "failed")
        for news in folder.glob("progress.json"):
            news.unlink()
    done = subprocess.run([*command(), "-p", "epochs=150"], env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vanilla-seed0: epoch 1 " not in done.stdout  # the first training went on
    assert runs.status(folder)["state"] == "finished"


@pytest.mark.parametrize("notebook", sorted(PAPERS))
def test_every_notebook_runs_on_two_devices(notebook: str, home: Path) -> None:
    """Each process takes the same way through it, so that none waits for the other; its books are kept once."""
    options = [part for name, value in {**tiny(notebook), "devices": "2"}.items() for part in ("-p", f"{name}={value}")]
    whole = [sys.executable, "-m", "paperlib.cli", "run", notebook, *options]
    done = subprocess.run(whole, env=environment(home), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = (home / "runs" / notebook).iterdir()
    assert runs.status(folder)["state"] == "finished"
    assert len(read_json(folder / "environment.json")) == 1
    assert read_json(folder / "environment.json")[0]["devices"] == 2


def said_by(process: int) -> str:
    """The command line of a process, empty where it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    return ""


LEAK = """
import resource, torch
from paperlib.runs import run as runs
from paperlib import training
from paperlib.data import Splits, toy
from paperlib.methods.baselines import Standard

class Counting(Standard):
    def loss(self, model, batch, step):
        if step.epoch in (50, 199):
            with open("/proc/self/statm") as file:
                sizes[step.epoch] = int(file.read().split()[1]) * resource.getpagesize()
        return super().loss(model, batch, step)

sizes = {}
points = toy.line(4, 0)
settings = studies.resolve("toy_pag", "quick", {"epochs": 200, "batch_size": 8})
run = studies.start("toy_pag", {"epochs": 200, "batch_size": 8})
data = Splits(points, points, points)
training.fit(torch.nn.Linear(2, 2), Counting(), data, settings, run.folder / "training" / "a-seed0", seed=0)
run.finish()
print((sizes[199] - sizes[50]) / 2**20)
"""


def test_memory_does_not_grow_over_two_hundred_epochs(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAK], env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 5  # MB


SIXTY = """
import resource, torch
from paperlib import evaluation, training
from paperlib.runs import run as runs
from paperlib.attacks import pgd
from paperlib.data import ImageSet, Splits
from functools import partial
from paperlib.methods.baselines import Standard
from paperlib.models import build

images = torch.zeros(60_000, 3, 32, 32, dtype=torch.uint8)
images.random_()
labels = torch.arange(60_000) % 10
data = ImageSet(images, labels, tuple("abcdefghij"))
few = data[:100]
settings = studies.resolve("cifar_pag", "quick", {"epochs": 1, "batch_size": 500})
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
model = build("small_cnn", classes=10, channels=3, width=2, seed=0, stem_stride=2)
before = peak()
run = studies.start("cifar_pag", {"epochs": 1, "batch_size": 500})
training.fit(model, Standard(), Splits(data, few, few), settings, run.folder / "training" / "a-seed0", seed=0)
evaluation.evaluate(model, data, {}, run.folder / "a.safetensors")
run.finish()
print(peak() - before)
"""


def test_sixty_thousand_images_take_less_than_a_gigabyte_besides_themselves(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SIXTY], env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1000  # MB
