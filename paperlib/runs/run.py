"""A run's folder: settings, environment, checkpoints, metrics, figures, and a status that is correct even after a kill.

The folder is `runs/<notebook>/<preset>-<hash of the settings>/`. The same settings lead to the same folder, so finished
results are not computed again. A process holds the folder's lock while it works. The operating system releases the lock
when the process dies, so a run with state "running" and no lock was killed.

PyTorch takes seconds to import, so only functions that need it import it: `paperlib status` does not.
"""

import ast
import atexit
import hashlib
import html
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml
from filelock import FileLock, Timeout

from paperlib import __version__
from paperlib.runs import deadline, progress
from paperlib.runs.files import InputError, locked, read_json, read_yaml, root, shipped, temporary, write_json, write_text
from paperlib.runs.settings import ANY_RUN, Settings
from paperlib.runs.values import read_value

if TYPE_CHECKING:
    import torch

AGES = 1e11  # seconds; larger times mean a damaged file
TAKEN = "another process is at work on this run"
FINISHED = "finished"  # a state; also the key of the earlier status when a finished run is started again
BEGAN = "PAPERLIB_BEGAN"  # environment variable: a file into which `begin` writes the run's folder
PRESETS = ("quick", "laptop", "gpu", "paper")
BOLD = " style='font-weight: bold'"
Found = TypeVar("Found")


# Presets -----------------------------------------------------------------------------------------------------------


def read_presets(notebook: str) -> dict[str, dict[str, Any]]:
    """Return the presets of `notebook` as written, without hidden keys such as `.shared`, which presets merge.

    Raises InputError for an unknown notebook or a damaged file.
    """
    folder = shipped("notebooks") / "presets"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if known and notebook not in known:
        raise InputError(f"no notebook {notebook!r}; there are {', '.join(known)}")
    file = folder / f"{notebook}.yaml"
    try:
        presets = read_yaml(file)
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); the project's folder, or PAPERLIB_ROOT, should hold notebooks/"
        ) from None
    if not isinstance(presets, dict) or not all(isinstance(one, dict) for one in presets.values()):
        raise InputError(f"{file}: should be presets by name, each with settings by name")
    return {name: values for name, values in presets.items() if not str(name).startswith(".")}


def changed(usual: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `values` that differ from a preset as written, without settings that the preset does not have."""

    def same(written: Any, value: Any) -> bool:  # a text such as "007" may read as a number
        return value == written or value == (read := read_value(written)) or str(value) == str(read)

    return {name: value for name, value in values.items() if name in usual and not same(usual[name], value)}


def folder_of(notebook: str, preset: str, settings: Settings) -> Path:
    """Return the folder of the run with these settings, named by a hash of settings and version."""
    values = {"version": __version__, **settings.model_dump(exclude=ANY_RUN)}
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return root() / "runs" / notebook / f"{preset}-{key}"


# A run -------------------------------------------------------------------------------------------------------------


def device_of(settings: Settings) -> "torch.device":
    """Return the device of the settings; `auto` prefers a GPU. Raises InputError if a requested GPU is missing."""
    import torch

    here = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.device == "cuda" != here:
        raise InputError("device = 'cuda', but PyTorch finds no GPU here; use auto or cpu")
    return torch.device(here if settings.device == "auto" else settings.device)


S_co = TypeVar("S_co", bound=Settings, covariant=True)


@dataclass(frozen=True)
class Run(Generic[S_co]):
    """A notebook that runs with the settings of its study in its folder."""

    notebook: str
    preset: str
    settings: S_co
    folder: Path
    started: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)  # start by the monotonic clock, which is never adjusted

    @property
    def device(self) -> "torch.device":
        """The device of `device_of`."""
        return device_of(self.settings)

    def _repr_html_(self) -> str:
        """Show folder and changed settings of the run in a notebook, and all settings folded."""
        differing = changed(read_presets(self.notebook)[self.preset], self.settings.model_dump())
        texts = {name: html.escape(str(value)) for name, value in self.settings}
        bold = ", ".join(f"<b>{name} = {texts[name]}</b>" for name in differing)
        rows = "".join(
            f"<tr{BOLD if name in differing else ''}><td>{name}</td><td>{text}</td></tr>" for name, text in texts.items()
        )
        return (
            f"<p>{self.notebook}, preset {self.preset}, in {html.escape(str(self.folder.relative_to(root())))}"
            f"{f'; not as in the preset: {bold}' if bold else ''}</p>"
            f"<details><summary>All {len(texts)} settings</summary><table>{rows}</table></details>"
        )

    def finish(self) -> None:
        """Wait for all processes, mark the run as finished, and release its folder.

        Raises InputError if the folder was removed since the run began.
        """
        from paperlib.runs import distributed

        distributed.agreed(None)
        if distributed.rank():
            return
        deadline.disarm()
        if not _is_current(self):
            raise InputError(f"{self.folder}: was removed while the run was at work; start the run again")
        _write_status(self, "finished", peak_memory_bytes=peak_memory())
        progress.keep_in(None)
        release(self.folder)


def given(quick: Mapping[str, Any], namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a notebook's `namespace` overrides; `quick` is the preset quick.

    The parameters cell shows quick's values. So a parameter with quick's value is no override of another preset, and None
    never is. Entries of the dict `settings` and assignments in papermill's own cell are overrides. Raises InputError if
    `settings` is not a dict.
    """
    found = {}
    for name, shown in quick.items():
        value = namespace.get(name)
        unchanged = shown is not None and shown in (value, read_value(value))
        if value is not None and (not unchanged or namespace.get("preset", "quick") == "quick"):
            found[name] = value
    settings = namespace.get("settings") or {}
    settings = read_value(settings) if isinstance(settings, str) else settings  # `papermill -p` passes a dict as text
    if not isinstance(settings, dict):
        raise InputError(f"settings = {settings!r}: should be a dict of settings by name, such as {{'epochs': 3}}")
    found |= settings
    for source in namespace.get("In", []):
        if isinstance(source, str) and source.startswith("# Parameters"):  # papermill's cell begins so
            assigned = {name: value for name, value in _assignments(source) if value is not None}
            found |= {name: value for name, value in assigned.items() if name not in ("preset", "settings")}
    return found


def edited(notebook: Path) -> dict[str, Any]:
    """Return the dict `settings` of the notebook's parameters cell, since papermill's own cell replaces it."""
    for cell in read_json(notebook)["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            source = "".join(cell["source"])
            return dict(next((value for _, value in _assignments(source, "settings")), None) or {})
    return {}


def begin(notebook: str, preset: str, settings: Settings) -> Run[Settings]:
    """Begin or resume the run of these settings.

    Raises InputError when another process works in the same folder, or `devices` is not the number of processes.
    """
    from paperlib.runs import distributed

    folder = folder_of(notebook, preset, settings)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.devices != distributed.expected():
        raise InputError(
            f"devices = {settings.devices}: a notebook that runs interactively uses one device. "
            f"`paperlib run {notebook} -p devices={settings.devices}` starts a process for each device"
        )
    distributed.join()
    if distributed.rank():  # the first process writes the run's files
        return Run(notebook, preset, settings, folder)
    for other in [other for other in _locks if other != folder]:  # runs of this kernel with other parameters
        _leave(other)
    hold(folder)
    run = Run(notebook, preset, settings, folder)
    write_text(run.folder / "settings.yaml", yaml.safe_dump({"preset": preset, **settings.model_dump()}))
    sessions = run.folder / "environment.json"  # one entry per session, that is each time the run begins or resumes
    write_json(sessions, [*(read_json(sessions) if sessions.exists() else []), environment()])
    if place := os.environ.get(BEGAN):
        write_text(Path(place), str(folder))
    _write_status(run, "running")
    progress.keep_in(run.folder)
    _watch(run)
    deadline.arm()
    return run


@contextmanager
def heard() -> Iterator[Callable[[], Path | None]]:
    """Have kernels report their run's folder. Yield a function that returns the folder, or None before `begin`."""
    outer = os.environ.get(BEGAN)
    with temporary() as place:
        file = Path(outer or place / "began")
        os.environ[BEGAN] = str(file)
        try:
            yield lambda: Path(file.read_text(encoding="utf-8")) if file.exists() else None
        finally:
            if outer is None:
                del os.environ[BEGAN]


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def recall(recipe: str | None, file: Path, elsewhere: str, read: Callable[[Path], Found]) -> Found | None:
    """Apply `read` to the safetensors file with this recipe: `file`, or one that matches `elsewhere` in another run.

    Returns None if no run has it. Raises InputError if `file` is damaged; damaged files of other runs are skipped.
    """
    from paperlib.runs.tensors import read_about

    for other in (file, *(sorted(root().glob(f"runs/*/*/{elsewhere}")) if recipe else ())):
        try:
            if read_about(other).get("recipe") == recipe:
                return read(other)
        except FileNotFoundError:
            continue
        except InputError:
            if other == file:
                raise
    return None


def _assignments(source: str, only: str | None = None) -> Iterator[tuple[str, Any]]:
    for statement in ast.parse(source).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and statement.value:
            if only not in (None, name := target.id):
                continue
            try:
                yield name, ast.literal_eval(statement.value)
            except ValueError:  # for example float('nan'), which papermill writes
                raise InputError(f"{name} = {ast.unparse(statement.value)}: should be a plain value") from None


# Status ------------------------------------------------------------------------------------------------------------

_locks: dict[Path, FileLock] = {}  # held by this process


def hold(folder: Path) -> None:
    """Take the lock of a run's folder. Raises InputError when another process has it."""
    if folder in _locks:
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1)  # `locked` in another process holds it for a moment
    except Timeout:
        raise InputError(f"{folder}: {TAKEN}; wait for it or end it") from None
    _locks[folder] = lock


def release(folder: Path) -> None:
    """Release the lock that `hold` took."""
    if lock := _locks.pop(folder, None):
        lock.release()


def _leave(folder: Path) -> None:
    """Release a run that this process began, and mark it as stopped unless it is finished."""
    if (folder / "status.json").exists() and status(folder)["state"] == "running":
        _stop(folder)
    release(folder)


def _stop(folder: Path, **more: Any) -> None:
    """Mark a run as stopped; a run that was finished before this session stays finished."""
    about = _read_status(folder / "status.json")
    stopped = {**about, "state": "stopped", "seconds": taken(about), **more}
    write_json(folder / "status.json", about.get(FINISHED) or stopped)


def taken(about: Mapping[str, Any], now: float | None = None) -> float:
    """Return the seconds of a run on this machine, by its status, until now or until `now` of `time.monotonic`."""
    now, clock = time.monotonic() if now is None else now, about.get("clock")
    passed = now - clock if isinstance(clock, float) else 0.0
    return max(passed, float(about["seconds"])) if passed < AGES else float(about["seconds"])


def _write_status(run: Run[Settings], state: str, **more: Any) -> None:
    content = {"state": state, "notebook": run.notebook, "preset": run.preset, "started": run.started, "clock": run.clock}
    place = {"process": os.getpid(), "host": platform.node()}
    seconds = time.monotonic() - run.clock  # of this session; trainings record their own
    if state == "running" and (earlier := _finished(run.folder)):
        more[FINISHED] = earlier
    write_json(run.folder / "status.json", {**content, "seconds": seconds, **place, **more})


def _is_current(run: Run[Settings]) -> bool:
    """Return whether this process wrote the status in the folder; it did not if the folder was removed meanwhile."""
    with suppress(FileNotFoundError):
        return bool(read_json(run.folder / "status.json").get("process") == os.getpid())
    return False


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the status with which a run finished, even if it was started again since; None if it never finished."""
    try:
        about = _read_status(folder / "status.json")
    except (FileNotFoundError, InputError):
        return None
    return about if about["state"] == "finished" else about.get(FINISHED)


def note_failure(folder: Path, error: str) -> None:
    """Mark the run in `folder` as failed, on behalf of its dead process."""
    write_json(folder / "status.json", {**status(folder), "state": "failed", "error": error})


def _watch(run: Run[Settings]) -> None:
    """Record the error of a failed cell, and a kernel that ends before the run is finished."""
    atexit.register(lambda: _leave(run.folder) if run.folder in _locks else None)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return

    def before_cell(_: Any) -> None:
        if run.folder not in _locks:
            shell.events.unregister("pre_run_cell", before_cell)
        elif _is_current(run) and read_json(run.folder / "status.json")["state"] != "running":  # it resumes after an error
            _write_status(run, "running")

    def after_cell(result: Any) -> None:
        if run.folder not in _locks:
            shell.events.unregister("post_run_cell", after_cell)
        elif error := result.error_before_exec or result.error_in_exec:
            message = f"{type(error).__name__}: {error}"
            if isinstance(error, KeyboardInterrupt | deadline.OutOfTime) and _is_current(run):
                _stop(run.folder, error=message)
            else:
                _write_status(run, "failed", error=message)

    shell.events.register("pre_run_cell", before_cell)
    shell.events.register("post_run_cell", after_cell)


def status(folder: Path) -> dict[str, Any]:
    """Return the status of a run. Its state is finished, running, failed, stopped, killed, unknown or not started.

    Unknown means that it ran on another machine, whose locks may be invisible here. A killed run's seconds end with its
    last progress. Raises InputError if the file is damaged.
    """
    file = folder / "status.json"
    if not file.exists():
        return {"state": "not started"}
    if _read_status(file)["state"] != "running" or _locked(folder):
        return _read_status(file)
    about = _read_status(file)  # the run may have finished since the first reading
    if about["state"] != "running":
        return about
    killed = {**about, "state": "killed", "seconds": taken(about, progress.clock(folder) or 0.0)}
    if (host := about.get("host", platform.node())) != platform.node():
        return {**killed, "state": "unknown", "error": f"on {host}, cannot tell from here"}
    return about.get(FINISHED) or killed


def _read_status(file: Path) -> dict[str, Any]:
    about: dict[str, Any] = read_json(file)
    if not _is_status(about) or (FINISHED in about and not _is_status(about[FINISHED])):
        raise InputError(f"{file}: not the status of a run; delete it and start the run again")
    return about


def _is_status(about: Any) -> bool:
    if not isinstance(about, dict) or "state" not in about:
        return False
    return all(isinstance(about.get(one), float | int) and abs(about[one]) < AGES for one in ("started", "seconds"))


def _locked(folder: Path) -> bool:
    return folder in _locks or locked(folder)


# Environment -------------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    import torch

    from paperlib.runs import distributed

    return {
        "paperlib": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "devices": distributed.world(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _commit() -> str | None:
    here = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here:  # inside another project's repository
            return None
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
