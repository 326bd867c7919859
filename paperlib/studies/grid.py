"""Many runs as one plan: a grid file says which notebooks, presets, parameters and seeds, and what waits for what.

Snakemake (the extra `grid`) runs it, here or on a cluster, through the Snakefile beside this module. A job is a run like
any other: what a notebook has computed, with whatever command, is not computed again.
"""

import hashlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import pandas as pd
import torch
import yaml
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from paperlib import studies
from paperlib.figures.names import in_points
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, root, write_text
from paperlib.runs.settings import Settings

Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
CELL_TIMEOUT = "PAPERLIB_CELL_TIMEOUT"  # tells jobs after how many seconds a cell counts as hanging; empty for never
GPUS = "PAPERLIB_GPUS"  # tells jobs which GPUs those on this machine share; not set where a cluster gives them out
GPU_PRESETS = ("gpu", "paper")  # for which device auto asks a cluster for a GPU


class Group(BaseModel):
    """Jobs that differ in what `over` lists: one for every combination."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    notebook: str
    preset: str = "quick"
    parameters: dict[str, Any] = {}
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    after: list[Word] = []  # groups whose jobs must have finished


@dataclass(frozen=True)
class Job:
    """One run of the plan."""

    name: str  # its group, and a number where the group has several
    notebook: str
    preset: str
    given: dict[str, Any]  # parameters in place of the preset's
    settings: Settings
    after: tuple[str, ...]  # names of jobs

    @property
    def folder(self) -> Path:
        """Of its run."""
        return runs.folder_of(self.notebook, self.preset, self.settings)

    @property
    def gpus(self) -> int:
        """How many it is given by a cluster, one a device: where its settings ask for one, or leave it to the preset."""
        asks = self.settings.device == "cuda" or (self.settings.device == "auto" and self.preset in GPU_PRESETS)
        return self.settings.devices * int(asks)

    @property
    def local_gpus(self) -> int:
        """How many it takes of a machine that has some."""
        return self.settings.devices * int(self.settings.device != "cpu")


def read(file: Path) -> dict[str, Job]:
    """The jobs of a grid file by name, each after those it waits for.

    The file has groups by name, each with `notebook`, and perhaps `preset`, `parameters`, `over` (lists of values) and
    `after` (groups). Raises InputError, naming file and group, for anything that could not run.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); it should be a grid, as in grids/") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: should be groups of jobs by name")
    groups = {str(name): _group(file, str(name), value) for name, value in content.items()}
    jobs: dict[str, Job] = {}
    places: dict[Path, str] = {}
    members: dict[str, list[str]] = {}
    for name in _in_order(file, groups):
        group = groups[name]
        waits = tuple(job for other in group.after for job in members[other])
        members[name] = []
        combinations = list(_combinations(group))
        for number, given in enumerate(combinations):
            called = name if len(combinations) == 1 else f"{name}_{number:0{len(str(len(combinations) - 1))}}"
            try:
                settings = studies.resolve(group.notebook, group.preset, given)
            except InputError as error:
                raise InputError(f"{file}: {called}: {error}") from None
            job = Job(called, group.notebook, group.preset, given, settings, waits)
            if (twin := places.setdefault(job.folder, called)) != called:
                raise InputError(f"{file}: {called} is the same run as {twin}; leave one of them out")
            if called in jobs:
                raise InputError(f"{file}: {called} is the name of two jobs; rename a group")
            jobs[called] = job
            members[name].append(called)
    return jobs


def _group(file: Path, name: str, value: Any) -> Group:
    if not isinstance(value, dict):
        raise InputError(f"{file}: {name}: should have a notebook, and perhaps preset, parameters, over and after")
    try:
        return TypeAdapter(dict[Word, Group]).validate_python({name: value})[name]
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'][1:])).replace('[key]', 'name')}: {fault['msg']}" for fault in error.errors()
        ]
        raise InputError(f"{file}: {name}: {'; '.join(faults)}") from None


def _combinations(group: Group) -> Iterator[dict[str, Any]]:
    """The parameters of each job of a group."""
    for values in itertools.product(*group.over.values()):
        yield {**group.parameters, **dict(zip(group.over, values, strict=True))}


def _in_order(file: Path, groups: Mapping[str, Group]) -> list[str]:
    """The groups, each after those it waits for."""
    for name, group in groups.items():
        if unknown := set(group.after) - set(groups):
            raise InputError(f"{file}: {name} waits for {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    done: list[str] = []
    while left := [name for name in groups if name not in done]:
        ready = [name for name in left if set(groups[name].after) <= set(done)]
        if not ready:
            raise InputError(f"{file}: {', '.join(left)} wait for each other in a circle")
        done += ready
    return done


# At work -----------------------------------------------------------------------------------------------------------


def folder_of(file: Path) -> Path:
    """Where a grid keeps a copy of its plan, its logs and its marks of what is done."""
    return root() / "runs" / "grid" / f"{file.stem}-{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"


def run(file: Path, cores: int | None, profile: Path | None = None, cell_timeout: int | None = None) -> int:
    """Run all jobs that are not done, as many at a time as there are cores, or as the profile says. Returns an exit code.

    A job that fails does not stop those that do not wait for it. Without a profile a job has GPUs of this machine to
    itself. Raises InputError when Snakemake is not installed, a process is at work on the grid, or a job needs more GPUs
    than there are.
    """
    jobs, place = read(file), folder_of(file)
    if importlib.util.find_spec("snakemake") is None:
        raise InputError("Snakemake is not installed; pip install -e '.[grid]'")
    gpus = [] if profile else _gpus()
    for name, job in jobs.items():
        if gpus and job.local_gpus > len(gpus) and runs.status(job.folder)["state"] != "finished":
            raise InputError(f"{file}: {name}: devices = {job.local_gpus}, and this machine has {len(gpus)}")
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{file}: another process is at work on this grid; wait for it or end it") from None
    with lock:
        plan = place / "plan.yaml"  # jobs read a copy: what is changed while they wait is for the next time
        write_text(plan, file.read_text(encoding="utf-8"))
        for name, job in jobs.items():  # a mark is worth what its run is
            if runs.status(job.folder)["state"] != "finished":
                (place / "done" / f"{name}.json").unlink(missing_ok=True)
        environment = {
            **os.environ, "PAPERLIB_ROOT": str(root().resolve()), "PAPERLIB_GRID": str(plan.resolve()),
            CELL_TIMEOUT: str(cell_timeout or ""),
        }  # fmt: skip
        if profile:
            options = ["--profile", str(profile.resolve()), *_marks_of_its_own(profile, place, jobs)]
        else:
            options = ["--cores", str(cores or os.cpu_count() or 1)]
            if gpus:
                options += ["--resources", f"local_gpu={len(gpus)}"]
                environment[GPUS] = ",".join(gpus)
            environment.setdefault("OMP_NUM_THREADS", "1")
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(Path(__file__).with_name("Snakefile")),
            "--directory", str(place), "--keep-going", "--rerun-incomplete", "--rerun-triggers", "input", "--nolock",
            "--quiet", "rules", *options,
        ]  # fmt: skip
        # The engine holds the lock as well, so that it is held for as long as the engine lives.
        engine = subprocess.Popen(command, env=environment, pass_fds=[cast(int, lock._context.lock_file_fd)])
        while True:
            try:
                return engine.wait()
            except KeyboardInterrupt:  # the engine has had it too, and calls its jobs back
                continue


def results(file: Path) -> pd.DataFrame:
    """What finished jobs measured, side by side: a row a job, method and measure, in percent; empty where none is finished.

    Columns job, the settings that the grid names and that differ between jobs, method, measure, mean, low, high, number of
    seeds, n.
    """
    jobs, rows = read(file), []
    named = dict.fromkeys(name for job in jobs.values() for name in job.given)
    about = {
        name: {"notebook": job.notebook, "preset": job.preset}
        | {key: str(getattr(job.settings, key, "")) for key in named}
        for name, job in jobs.items()
    }  # fmt: skip
    varied = [key for key in ("notebook", "preset", *named) if len({one[key] for one in about.values()}) > 1]
    for name, job in jobs.items():
        stored = job.folder / "measures.json"
        if runs.status(job.folder)["state"] != "finished" or not stored.exists():
            continue
        for row in read_json(stored):
            numbers = {key: in_points(str(row["measure"]), float(row[key])) for key in ("mean", "low", "high")}
            own = {key: about[name][key] for key in varied}
            sizes = {"number of seeds": row["seeds"], "n": row["n"]}
            rows.append({"job": name, **own, "method": row["method"], "measure": row["measure"], **numbers, **sizes})
    return pd.DataFrame(rows)


def _gpus() -> list[str]:
    """This machine's GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else list(map(str, range(count)))


@contextmanager
def gpus_of_its_own(count: int) -> Iterator[list[str]]:
    """Hold so many of the GPUs that jobs here share, once no other job of the project's grids holds them; [] of none.

    All of them or none, so that two jobs never wait for each other. Raises InputError where there are not so many.
    """
    shared = [name for name in os.environ.get(GPUS, "").split(",") if name]
    if shared and count > len(shared):
        raise InputError(f"devices = {count}, and this machine has {len(shared)}")
    place = root() / "runs" / "grid"
    while shared and count:
        with ExitStack() as held:
            mine: list[str] = []
            for name in shared:
                with suppress(Timeout):
                    held.enter_context(FileLock(place / f".gpu-{name.replace('/', '-')}.lock", timeout=0))
                    mine.append(name)
                if len(mine) == count:
                    yield mine
                    return
        time.sleep(1)
    yield []


def _marks_of_its_own(profile: Path, place: Path, jobs: Mapping[str, Job]) -> list[str]:
    """Options that keep the marks of a profile with a storage apart from other grids' marks; stale ones are removed."""
    content = yaml.safe_load((profile / "config.yaml").read_text(encoding="utf-8")) or {}
    if not (prefix := content.get("default-storage-prefix")):
        return []
    own = f"{str(prefix).rstrip('/')}/{place.name}"
    for name, job in jobs.items():
        if content.get("default-storage-provider") == "fs" and runs.status(job.folder)["state"] != "finished":
            Path(own, "done", f"{name}.json").unlink(missing_ok=True)
    return ["--default-storage-prefix", own]


def table(file: Path, logs: Path) -> list[dict[str, Any]]:
    """One row a job: its name, its run, how it stands, seconds it took or is expected to take (None: unknown), error.

    The error is the run's own, else the last words of its job in `logs`: of a run that did not come so far.
    """
    rows = []
    for name, job in read(file).items():
        about = runs.status(job.folder)
        done = about["state"] == "finished"
        ended = about["state"] not in ("finished", "running")
        error = about.get("error") or _last_words(logs / f"{name}.log", job.folder) if ended else ""
        rows.append(
            {
                "job": name, "run": f"{job.notebook}/{job.folder.name}", "state": about["state"],
                "seconds": runs.seconds_of(about) if done else expected(job), "error": error,
            }
        )  # fmt: skip
    return rows


def _last_words(log: Path, folder: Path) -> str:
    """What a job on this run said last, as it says why it ends; empty where the log is of another, or says nothing."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = text.splitlines() if folder.name in text else []
    return next((line.removeprefix("paperlib: ") for line in reversed(lines) if line.startswith("paperlib: ")), "")


def expected(job: Job) -> float | None:
    """Seconds that finished runs of the same notebook and preset took, the median; None where there are none."""
    found = []
    for file in (root() / "runs" / job.notebook).glob(f"{job.preset}-*/status.json"):
        with suppress(InputError):  # a damaged run tells nothing
            if (about := runs.status(file.parent))["state"] == "finished":
                found.append(runs.seconds_of(about))
    return statistics.median(found) if found else None
