"""A grid file: many runs as one plan, which Snakemake (the extra `grid`) executes here or on a cluster.

A job is a `paperlib run`. It does not repeat anything that an earlier run has computed, whatever command started it.
"""

import hashlib
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from paperlib import studies
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, root, write_json
from paperlib.runs.settings import Settings, as_options
from paperlib.runs.values import load

Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
MOST = 100_000  # most jobs in a group
DONE = "grid.done"  # file in a run's folder that marks its job as finished


class Group(BaseModel):
    """Jobs that differ in the parameters of `over`: one for every combination of values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    notebook: str
    preset: str = "quick"
    parameters: dict[str, Any] = {}
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    after: list[Word] = []  # groups whose jobs must have finished


@dataclass(frozen=True)
class Job:
    """One run of the plan."""

    notebook: str
    preset: str
    given: dict[str, Any]  # parameters that replace the preset's
    settings: Settings
    after: tuple[str, ...]  # names of jobs that must finish first

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return runs.folder_of(self.notebook, self.preset, self.settings)

    @property
    def run(self) -> str:
        """The run's folder, relative to runs/."""
        return f"{self.notebook}/{self.folder.name}"

    @property
    def finished(self) -> bool:
        """Whether the run has finished and written its page."""
        return runs.status(self.folder)["state"] == "finished" and (self.folder / f"{self.notebook}.html").exists()


def read(file: Path) -> dict[str, Job]:
    """Read the jobs of a grid file by name, each after the jobs that it waits for.

    The file has groups by name, with the fields of `Group`. Raises InputError, naming file and group, for anything that
    could not run.
    """
    try:
        content = load(file.read_text(encoding="utf-8"))
        groups = TypeAdapter(dict[Word, Group]).validate_python(content)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); it should be a grid, as in grids/") from None
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"{file}: {'; '.join(faults)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())[:200]})") from None
    jobs: dict[str, Job] = {}
    members: dict[str, tuple[str, ...]] = {}
    while left := [name for name in groups if name not in members]:
        ready = next((name for name in left if set(groups[name].after) <= set(members)), None)
        if ready is None:
            waiting = "; ".join(f"{name} waits for {', '.join(groups[name].after)}" for name in left)
            raise InputError(f"{file}: {waiting}; a group can wait for one of {', '.join(groups)}, and not in a circle")
        found = _jobs(file, ready, groups[ready], tuple(job for other in groups[ready].after for job in members[other]))
        members[ready] = tuple(found)
        for name, job in found.items():
            if twin := next((other for other in jobs if other == name or jobs[other].run == job.run), None):
                raise InputError(f"{file}: {name} is the same run or name as {twin}; leave one of them out, or rename it")
            jobs[name] = job
    return jobs


def refused(job: Job) -> str:
    """Return the last error message of a job that could not start its run; empty if there is none."""
    log = job.folder / "grid.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if line.startswith("paperlib: ")), "").removeprefix("paperlib: ")


def _jobs(file: Path, name: str, group: Group, after: tuple[str, ...]) -> dict[str, Job]:
    """Return the jobs of a group, numbered if there are several."""
    if (count := math.prod(map(len, group.over.values()))) > MOST:
        raise InputError(f"{file}: {name}: {count:,} combinations; at most {MOST:,}")
    combinations = list(itertools.product(*group.over.values()))
    digits, found = len(str(len(combinations) - 1)), {}
    for number, values in enumerate(combinations):
        called = name if len(combinations) == 1 else f"{name}_{number:0{digits}}"
        given = {**group.parameters, **dict(zip(group.over, values, strict=True))}
        try:
            settings = studies.resolve(group.notebook, group.preset, given)
        except InputError as error:
            raise InputError(f"{file}: {called}: {error}") from None
        found[called] = Job(group.notebook, group.preset, given, settings, after)
    return found


def run(file: Path, cores: int | None, profile: Path | None = None, cell_timeout: int | None = None) -> int:
    """Run all unfinished jobs, as many at a time as there are cores or as the profile allows. Return Snakemake's exit code.

    A failed job stops only the jobs that wait for it. Without a profile, each job has its GPUs of this machine to itself.
    Raises InputError if Snakemake is not installed, and for a job that needs more GPUs than this machine has.
    """
    jobs, place = read(file), root() / "runs"
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed; pip install -e '.[grid]'")
    gpus = [] if profile else _gpus()
    for name, job in jobs.items():
        if gpus and job.settings.device != "cpu" and job.settings.devices > len(gpus) and not job.finished:
            raise InputError(f"{file}: {name}: devices = {job.settings.devices}, and this machine has {len(gpus)} GPUs")
    for job in jobs.values():
        if job.finished:
            (job.folder / DONE).touch()
        else:
            (job.folder / DONE).unlink(missing_ok=True)
    content = {"jobs": _plan(jobs, gpus, cell_timeout), "gpus": len(gpus)}
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]  # cluster jobs read the plan only when they start
    plan = place / "grid" / f"{file.stem}-{key}.json"
    write_json(plan, content)
    limits = ["--resources", *(f"gpu{number}=1" for number in range(len(gpus)))] if gpus else []
    options = ["--profile", str(profile.resolve())] if profile else ["--cores", str(cores or os.cpu_count() or 1), *limits]
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile")),
        "--configfile", str(plan), "--directory", str(place), "--keep-going", "--rerun-incomplete",
        "--rerun-triggers", "input", "--nolock", "--quiet", "rules", *options,
    ]  # fmt: skip
    with subprocess.Popen(command, env={**os.environ, "PAPERLIB_ROOT": str(root())}) as engine:
        while True:
            try:
                return engine.wait()
            except KeyboardInterrupt:  # Snakemake receives the interrupt too, and ends its jobs
                continue


def _plan(jobs: Mapping[str, Job], gpus: list[str], cell_timeout: int | None) -> dict[str, dict[str, Any]]:
    """Return the Snakefile's input: each job by its run. Unfinished jobs take the GPUs in turn."""
    found: dict[str, dict[str, Any]] = {}
    given_out = 0
    for job in jobs.values():
        s = job.settings
        taken: list[int] = []
        if gpus and s.device != "cpu" and not job.finished:
            taken = [(given_out + number) % len(gpus) for number in range(s.devices)]
            given_out += s.devices
        command = [sys.executable, "-m", "paperlib.cli", "run", job.notebook, "--preset", job.preset, "--no-report"]
        command += as_options(job.given) + ([] if cell_timeout is None else ["--cell-timeout", str(cell_timeout)])
        seen = ["env", f"CUDA_VISIBLE_DEVICES={','.join(gpus[number] for number in taken)}"] if taken else []
        asks = s.device == "cuda" or (s.device == "auto" and job.preset in ("gpu", "paper"))
        found[job.run] = {
            "command": seen + command, "after": [jobs[other].run for other in job.after], "devices": s.devices,
            "gpu": s.devices * asks, "taken": taken,
        }  # fmt: skip
    return found


def _gpus() -> list[str]:
    """Return this machine's usable GPUs, as CUDA_VISIBLE_DEVICES names them."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else list(map(str, range(count)))
