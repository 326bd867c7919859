"""Grids of runs: what a file says, what is refused, and a small one with a job that fails, through Snakemake."""

import os
import re
import signal
import subprocess
import sys
import threading
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
        ("", "should be groups of jobs by name"),
        ("- 1", "should be groups of jobs by name"),
        ({"a": 1}, "a: should have a notebook"),
        ({"a": {"preset": "quick"}}, "a: notebook: Field required"),
        ({"a": {"notebook": "toy_pag", "overs": {}}}, "overs: Extra inputs"),
        ({"a": {"notebook": "toy_pag", "over": {"epochs": []}}}, "over.epochs: List should have at least 1"),
        ({"a/b": {"notebook": "toy_pag"}}, "name: String should match"),
        ({"a": {"notebook": "toy"}}, "a: no notebook 'toy'"),
        ({"a": {"notebook": "toy_pag", "parameters": {"epoch": 3}}}, "did you mean 'epochs'"),
        ({"a": {"notebook": "toy_pag", "over": {"epochs": [3, -1]}}}, "a_1: epochs = -1"),
        ({"a": {"notebook": "toy_pag", "after": ["b"]}}, "a waits for b; there are a"),
        (
            {"a": {"notebook": "toy_pag", "after": ["b"]}, "b": {"notebook": "toy_pag", "after": ["a"]}},
            "a, b wait for each other in a circle",
        ),
        ({"a": {"notebook": "toy_pag"}, "b": {"notebook": "toy_pag"}}, "b is the same run as a"),
    ],
)
def test_what_could_not_run_is_refused_by_name(content: object, message: str, home: Path) -> None:
    with pytest.raises(InputError, match=message):
        grid.read(write(home, content))


def test_what_is_expected_comes_from_earlier_runs(home: Path) -> None:
    file = write(home, {"a": {"notebook": "toy_pag", "over": {"epochs": [1, 2, 3, 4]}}})
    assert [row["seconds"] for row in grid.table(file, home / "log")] == [None] * 4
    for (_, job), seconds in zip(grid.read(file).items(), (10.0, 30.0, 50.0), strict=False):
        write_json(job.folder / "status.json", {"state": "finished", "started": 0.0, "seconds": seconds})
    damaged = home / "runs" / "toy_pag" / "quick-01234567" / "status.json"
    write_text(damaged, '{"state": "finished", "started": 0, "seconds": 1e999}')  # tells nothing
    last = grid.read(file)["a_3"].folder.name
    write_text(home / "log" / "a_3.log", f"into {last}\npaperlib: an earlier word\npaperlib: too long\nmore\n")
    assert [(row["state"], row["seconds"], row["error"]) for row in grid.table(file, home / "log")] == [
        ("finished", 10.0, ""), ("finished", 30.0, ""), ("finished", 50.0, ""), ("not started", 30.0, "too long"),
    ]  # fmt: skip
    write_text(home / "log" / "a_3.log", "into another-run\npaperlib: too long\n")  # of the job before the file was edited
    assert [row["error"] for row in grid.table(file, home / "log")] == [""] * 4


def test_the_engine_takes_the_plan(home: Path) -> None:
    plan = write(home, {"a": {"notebook": "toy_pag"}, "b": {"notebook": "toy_pag", "preset": "laptop", "after": ["a"]}})
    file = REPOSITORY / "paperlib" / "studies" / "Snakefile"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(file), "--directory", str(home), "--cores", "1", "-n"]
    environment = {**os.environ, "PAPERLIB_GRID": str(plan), "PAPERLIB_ROOT": str(home),
                   grid.CELL_TIMEOUT: ""}  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"^job +2$", said, re.MULTILINE)
    assert f"grid-job {plan} b done/b.json" in said.replace("'", "") or re.search(
        r"input: done/a.json\s+output: done/b.json", said
    )


def test_jobs_on_one_machine_have_gpus_of_their_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(grid.GPUS, "3,7")
    taken: list[list[str]] = []

    def waits() -> None:
        with grid.gpus_of_its_own(2) as both:
            taken.append(both)

    with grid.gpus_of_its_own(1) as first:
        assert first == ["3"]
        third = threading.Thread(target=waits)
        third.start()
        time.sleep(0.5)
        with grid.gpus_of_its_own(1) as second, grid.gpus_of_its_own(0) as none:
            assert (second, none, taken) == (["7"], [], [])
    third.join(timeout=30)
    assert taken == [["3", "7"]]
    with pytest.raises(InputError, match="devices = 3, and this machine has 2"), grid.gpus_of_its_own(3):
        pass
    monkeypatch.delenv(grid.GPUS)
    with grid.gpus_of_its_own(1) as given_by_a_cluster:
        assert given_by_a_cluster == []


def test_a_job_of_more_gpus_than_there_are_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    file = write(home, {"a": {"notebook": "raat_boundary", "parameters": {"devices": 3, "device": "auto"}}})
    with pytest.raises(InputError, match=r"a: devices = 3, and this machine has 2"):
        grid.run(file, cores=1)


def test_marks_in_a_storage_are_a_grids_own_and_stale_ones_go(home: Path) -> None:
    plan = write(home, {"a": {"notebook": "toy_pag"}, "b": {"notebook": "toy_pag", "preset": "laptop"}})
    jobs, place, profile = grid.read(plan), grid.folder_of(plan), home / "profile"
    storage = {"default-storage-provider": "fs", "default-storage-prefix": str(home / "marks")}
    write_text(profile / "config.yaml", yaml.safe_dump(storage))
    own = home / "marks" / place.name
    for name in jobs:
        write_json(own / "done" / f"{name}.json", {})
    write_json(jobs["b"].folder / "status.json", {"state": "finished", "started": 0.0, "seconds": 1.0})
    assert grid._marks_of_its_own(profile, place, jobs) == ["--default-storage-prefix", str(own)]
    assert [file.name for file in (own / "done").iterdir()] == ["b.json"]  # of the run that is finished
    assert grid._marks_of_its_own(REPOSITORY / "grids" / "profiles" / "slurm", place, jobs) == []


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
    command = [sys.executable, "-m", "paperlib.cli", "grid", str(file), "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as begun:
        folder = grid.read(file)["good"].folder
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
    assert "1 of 3 jobs are done" in done.stdout
    rows = {row["job"]: row for row in grid.table(file, grid.folder_of(file) / "log")}
    assert {name: row["state"] for name, row in rows.items()} == {
        "good": "finished",
        "bad": "failed",
        "never": "not started",
    }
    assert read_json(grid.folder_of(file) / "done" / "good.json")["run"].startswith("runs/toy_pag/quick-")
    assert "DivergenceError" in rows["bad"]["error"]
