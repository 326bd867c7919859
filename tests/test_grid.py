"""Grids of runs: what a file says, what is refused, and a small one with a job that fails, through Snakemake."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY

from paperlib import studies
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, write_json, write_text
from paperlib.studies import grid


def write(home: Path, content: object) -> Path:
    file = home / "plan.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_group_is_a_job_for_every_combination_after_those_it_waits_for(home: Path) -> None:
    file = write(home, {
        "tables": {"notebook": "toy_pag", "parameters": {"seeds": [0, 1]}, "after": ["each"]},
        "each": {"notebook": "toy_pag", "preset": "paper", "parameters": {"epochs": 3}, "over": {
            "seeds": [[0], [1]], "learning_rate": ["1/100", 0.1]}},
    })  # fmt: skip
    jobs = grid.read(file)
    assert list(jobs) == ["each_0", "each_1", "each_2", "each_3", "tables"]
    assert [(job.settings.seeds, job.settings.learning_rate) for job in jobs.values()][:4] == [  # type: ignore[attr-defined]
        ([0], 0.01), ([0], 0.1), ([1], 0.01), ([1], 0.1),
    ]  # fmt: skip
    assert jobs["tables"].after == ("each_0", "each_1", "each_2", "each_3")
    assert jobs["each_0"].folder == runs.folder_of("toy_pag", "paper", studies.resolve(
        "toy_pag", "paper", {"epochs": 3, "seeds": [0], "learning_rate": 0.01}))  # fmt: skip
    assert len(grid.read(REPOSITORY / "grids" / "toy_seeds.yaml")) == 28


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not YAML"),
        ("a: [" + "[" * 5000, "not YAML"),
        ("a: &x {notebook: toy_pag}\nb: *x", "aliases .* are not read"),
        (
            {
                "a": {
                    "notebook": "toy_pag",
                    "over": {name: list(range(1, 101)) for name in ("epochs", "batch_size", "weight")},
                }
            },
            "a: 1,000,000 combinations; at most 100,000",
        ),
        ("", "the file: Input should be a valid dictionary"),
        ("- 1", "the file: Input should be a valid dictionary"),
        ({"a": 1}, "a: Input should be a valid dictionary or instance of Group"),
        ({"a": {"preset": "quick"}}, r"a\.notebook: Field required"),
        ({"a": {"notebook": "toy_pag", "overs": {}}}, "overs: Extra inputs"),
        ({"a": {"notebook": "toy_pag", "over": {"epochs": []}}}, "over.epochs: List should have at least 1"),
        ({"a/b": {"notebook": "toy_pag"}}, "a/b.*: String should match"),
        ({"a": {"notebook": "toy"}}, "a: no notebook 'toy'"),
        ({"a": {"notebook": "toy_pag", "parameters": {"epoch": 3}}}, "did you mean 'epochs'"),
        ({"a": {"notebook": "toy_pag", "over": {"epochs": [3, -1]}}}, "a_1: epochs = -1"),
        ({"a": {"notebook": "toy_pag", "after": ["b"]}}, "a waits for b; a group can wait for one of a,"),
        (
            {"a": {"notebook": "toy_pag", "after": ["b"]}, "b": {"notebook": "toy_pag", "after": ["a"]}},
            "a waits for b; b waits for a; .* not in a circle",
        ),
        ({"a": {"notebook": "toy_pag"}, "b": {"notebook": "toy_pag"}}, "b is the same run or name as a"),
    ],
)
def test_what_could_not_run_is_refused_by_name(content: object, message: str, home: Path) -> None:
    with pytest.raises(InputError, match=message):
        grid.read(write(home, content))


def test_a_plan_has_each_runs_command_and_gpus_of_its_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs, one of which has finished, on a machine of three GPUs of which two may be used."""
    one = {"notebook": "jacobian_norm", "parameters": {"learning_rate": "1/2"}, "over": {"epochs": [1, 2, 3]}}
    both = {"notebook": "raat_boundary", "parameters": {"devices": 2}, "after": ["one"]}
    file = write(home, {"one": one, "both": both, "cluster": {"notebook": "cifar_pag", "preset": "gpu"}})
    jobs = grid.read(file)
    write_json(jobs["one_1"].folder / "status.json", {"state": "finished", "started": 0.0, "seconds": 1.0})
    write_text(jobs["one_1"].folder / "jacobian_norm.html", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    plan = grid._plan(jobs, grid._gpus(), 60)
    found = [plan[jobs[name].run] for name in ("one_0", "one_1", "one_2", "both")]
    assert [one["taken"] for one in found] == [[0], [], [1], [0, 1]]
    assert found[2]["command"][:2] == ["env", "CUDA_VISIBLE_DEVICES=7"]
    assert found[0]["command"][-6:] == ["-p", "learning_rate=1/2", "-p", "epochs=1", "--cell-timeout", "60"]
    assert found[3]["after"] == [jobs[f"one_{number}"].run for number in range(3)]
    assert [plan[jobs[name].run]["gpu"] for name in ("one_0", "both", "cluster")] == [0, 0, 1]  # of a cluster
    file = write(home, {"a": {"notebook": "raat_boundary", "parameters": {"devices": 3, "device": "auto"}}})
    with pytest.raises(InputError, match=r"a: devices = 3, and this machine has 2"):
        grid.run(file, cores=1)


def engine(home: Path, jobs: dict[str, dict[str, object]], gpus: int, *options: str) -> str:
    """What Snakemake says of a plan of `jobs` by run."""
    write_json(home / "plan.json", {"jobs": jobs, "gpus": gpus})
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "paperlib" / "studies" / "Snakefile"),
               "--configfile", str(home / "plan.json"), "--directory", str(home / "runs"), *options]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "PAPERLIB_ROOT": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_jobs_wait_for_others_and_never_share_a_gpu(home: Path) -> None:
    """Four jobs on two GPUs write down when they began and ended; two of them are on the first GPU, and one waits."""
    line = "import time, sys; begun = time.time(); time.sleep(1); print(begun, time.time(), sys.argv[1])"
    base = {"devices": 1, "gpu": 0, "after": []}
    command = [sys.executable, "-c", line, "a $HOME '; b"]  # a word that a shell would take apart
    jobs = {f"toy/{name}": {**base, "taken": [gpu], "command": command} for name, gpu in (("a", 0), ("b", 0), ("c", 1))}
    jobs["toy/d"] = {**base, "taken": [], "command": command, "after": ["toy/a", "toy/b"]}
    engine(home, jobs, 2, "--cores", "4", "--resources", "gpu0=1", "gpu1=1")
    said = {name: (home / "runs" / "toy" / name / "grid.log").read_text().split(maxsplit=2) for name in "abcd"}
    assert {words[2] for words in said.values()} == {"a $HOME '; b\n"}
    times = {name: (float(words[0]), float(words[1])) for name, words in said.items()}
    assert times["a"][1] <= times["b"][0] or times["b"][1] <= times["a"][0]
    assert times["d"][0] >= max(times["a"][1], times["b"][1])
    assert "Nothing to be done" in engine(home, jobs, 2, "--cores", "4", "--rerun-triggers", "input")


SMALL = {"epochs": 1, "neighbors": 2}


@pytest.mark.torture
def test_a_grid_goes_on_after_a_kill_and_past_a_job_that_fails(home: Path) -> None:
    """Two toys, of which one diverges, and a third that waits for it: killed with all processes, then run again."""
    place = home / "a place" / "$HOME; #1"  # a path that a shell would take apart
    place.mkdir(parents=True)
    file = write(place, {
        "good": {"notebook": "toy_pag", "parameters": {**SMALL, "seeds": [0]}},
        "bad": {"notebook": "toy_pag", "parameters": {**SMALL, "seeds": [0], "learning_rate": 1e30}},
        "never": {"notebook": "toy_pag", "parameters": {**SMALL, "seeds": [1]}, "after": ["bad"]},
    })  # fmt: skip
    jobs = grid.read(file)
    command = [sys.executable, "-m", "paperlib.cli", "grid", str(file), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as begun:
        folder = jobs["good"].folder
        for _ in range(600):
            if (folder / "status.json").exists():
                break
            time.sleep(0.1)
        os.killpg(begun.pid, signal.SIGKILL)
    assert runs.status(folder)["state"] in ("running", "killed")  # its kernel is of its own session and notices by itself
    for _ in range(300):
        if runs.status(folder)["state"] != "running":
            break
        time.sleep(0.1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 3 runs are finished" in done.stdout
    found = {name: runs.status(job.folder) for name, job in jobs.items()}
    assert [found[name]["state"] for name in ("good", "bad", "never")] == ["finished", "failed", "not started"]
    assert "DivergenceError" in found["bad"]["error"]
    assert [(job.folder / grid.DONE).exists() for job in jobs.values()] == [True, False, False]
    began = read_json(jobs["good"].folder / "environment.json")
    subprocess.run(command, capture_output=True, text=True)
    assert read_json(jobs["good"].folder / "environment.json") == began  # it was not begun again
