"""The command line.

Exit codes: 0 success, 1 a notebook failed, 2 invalid input, 75 the time of --within is over and the same command resumes,
130 interrupted.
"""

import errno
import io
import os
import re
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import typer
    from tqdm import tqdm

    from paperlib.runs.files import InputError, read_json, root, shipped, temporary, write_text
except KeyboardInterrupt:
    print("paperlib: interrupted before anything started", file=sys.stderr)
    sys.exit(130)

if TYPE_CHECKING:
    from paperlib.runs.settings import Settings

Norm = Literal["linf", "l2"]  # as attacks.Norm, which imports PyTorch

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Preset = Annotated[str, typer.Option("--preset", "-P", help="quick, laptop, gpu or paper")]
Parameters = Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, in place of the preset's")]
CellTimeout = Annotated[int | None, typer.Option(min=1, help="longest time of a cell in seconds")]
VenueOption = Annotated[str | None, typer.Option(help="width of figures: neurips, iclr, icml, cvpr, aaai, wide")]
Within = Annotated[
    str | None, typer.Option(help="stop at a checkpoint before this time, such as 9m or 1h30m; the same command resumes")
]
Pixels = Annotated[int | None, typer.Option(min=1, max=4096, help="size to which a folder's images are resized, in pixels")]
WidthOption = Annotated[
    Literal["text", "column"], typer.Option(help="figures as wide as the text, or as one of two columns")
]


# Settings of glibc's malloc. By default it returns the memory of each large tensor to the system, and page faults slow down
# the next step (docs/results/benchmarks.md). A process reads them when it starts, so they are set for the kernels.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


def main() -> None:
    """Run the command line. Invalid input ends with a message and exit code 2, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's encoding may lack a character
    os.environ["MPLBACKEND"] = "agg"  # overrides a user's matplotlibrc
    try:
        app()
    except InputError as error:
        print(f"paperlib: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a path that cannot be read or written, or a full disk
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = f"{str(error.filename)[:300]}: " if error.filename else ""
        advice = "free some space or correct the path, and repeat the command; computed results are kept"
        print(f"paperlib: {place}{error.strerror or error}; {advice}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130 and sys.argv[1:2] != ["status"]:  # Ctrl-C; it is the normal end of `status --watch`
            resumable = sys.argv[1:2] in (["run"], ["reproduce"], ["grid"], ["run-part"])
            advice = "; computed results are kept, and the same command goes on from there" if resumable else ""
            print(f"paperlib: interrupted{advice}", file=sys.stderr)
        raise


@app.command("list")
def list_() -> None:
    """List the notebooks, their presets, and the data sets."""
    from paperlib import report, studies
    from paperlib.data import DESCRIPTIONS
    from paperlib.runs import run as runs

    print("notebooks")
    for notebook in sorted(studies.known()):
        print(f"  {notebook:16} {report.headline(notebook)}\n  {'':16} presets: {', '.join(runs.read_presets(notebook))}")
    print("data sets")
    for name, description in DESCRIPTIONS.items():
        print(f"  {name:16} {description}")


@app.command()
def run(
    notebook: str,
    preset: Preset = "quick",
    parameter: Parameters = None,
    venue: VenueOption = None,
    width: WidthOption = "text",
    cell_timeout: CellTimeout = None,
    within: Within = None,
    site: Annotated[bool, typer.Option("--report/--no-report", help="build the site of all runs afterwards")] = True,
) -> None:
    """Run one notebook without a browser, and write its results and page into runs/."""
    from paperlib import report
    from paperlib.runs import deadline

    deadline.begin(within)
    code = _execute(notebook, preset, _parse(parameter or [], venue, width), cell_timeout)
    if site and code != deadline.CODE:
        print(f"report: {relpath(report.build())}")
    raise typer.Exit(code)


@app.command()
def reproduce(
    preset: Preset = "quick",
    jobs: Annotated[int, typer.Option(min=1, help="notebooks that run in parallel")] = 1,
    venue: VenueOption = None,
    width: WidthOption = "text",
    cell_timeout: CellTimeout = None,
    within: Within = None,
) -> None:
    """Run every notebook that has claims, and print a table of the claims that held."""
    from paperlib import report, studies
    from paperlib.runs import deadline, overview
    from paperlib.runs import run as runs
    from paperlib.runs.settings import as_options

    given = _parse([], venue, width)
    chosen = sorted(studies.declared("PLANS"))  # every notebook with claims has a plan
    settings = {name: studies.resolve(name, preset, given) for name in chosen}  # all are validated before any starts
    deadline.begin(within)
    if within:  # the notebook that can decide most claims goes first
        chosen.sort(key=lambda name: -_decidable(name, settings[name]))
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    def run_notebook(name: str) -> tuple[int, float, Path]:
        started, reported = time.monotonic(), place / name
        if deadline.near():
            return deadline.CODE, 0.0, runs.folder_of(name, preset, settings[name])
        timeout = [] if cell_timeout is None else ["--cell-timeout", str(cell_timeout)]
        command = [sys.executable, "-m", "paperlib.cli", "run", name, "--preset", preset, *as_options(given), *timeout]
        environment = os.environ if jobs == 1 else {**os.environ, "OMP_NUM_THREADS": threads}
        code = subprocess.run(command, env={**environment, runs.BEGAN: str(reported)}).returncode
        folder = Path(reported.read_text()) if reported.exists() else runs.folder_of(name, preset, settings[name])
        return code, time.monotonic() - started, folder

    with temporary() as place, ThreadPoolExecutor(jobs) as pool:
        ended = dict(zip(chosen, pool.map(run_notebook, chosen), strict=True))
    print(f"\n{'notebook':16} {'time':>7}  {'held':>5} {'not held':>9} {'not tested':>11}  status")
    for name, (_, seconds, folder) in ended.items():
        file = folder / "claims.json"
        claims = read_json(file) if file.exists() else []
        counts = overview.tally(claims) if claims else ("–", "–", "–")
        state = runs.status(folder)["state"]
        scale = ", not all settings are the paper's" if claims and claims[0]["scale"] else ""
        print(f"{name:16} {seconds:6.0f}s  {counts[0]:>5} {counts[1]:>9} {counts[2]:>11}  {state}{scale}")
    codes = {code for code, *_ in ended.values()} - {0}
    if codes == {deadline.CODE}:
        print(f"{deadline.OVER}; paperlib report shows the results so far")
        raise typer.Exit(deadline.CODE)
    print(f"report: {relpath(report.build())}")
    raise typer.Exit(int(bool(codes)))


@app.command()
def doctor() -> None:
    """Describe this machine: processor, GPU, disk, data, speed, and the expected time of each preset."""
    from paperlib.studies import doctor

    for line in doctor.lines():
        print(line, flush=True)


@app.command()
def plan(notebook: str, preset: Preset = "quick", parameter: Parameters = None) -> None:
    """Show which claims a run's images and seeds could decide, before anything is trained."""
    from paperlib import studies
    from paperlib.claims import power

    settings = _settings(notebook, preset, _parse(parameter or []))
    print("\n".join(power.lines(power.table(notebook, settings, studies.plan_of(notebook, settings)))))


@app.command()
def zoo(
    add: Annotated[Path | None, typer.Option(help="add the networks of this finished run")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace networks of another recipe")] = False,
) -> None:
    """Show the trained networks that come with the project."""
    from paperlib import zoo
    from paperlib.report import cards

    for name in cards.add(add, replace) if add else ():
        print(f"added {name}")
    print("Each network's accuracy in percent, with its 95 % interval and number of images n:")
    for name, row in zoo.table().iterrows():  # as text: a column for each attack would be mostly empty
        accuracies = "; ".join(f"{measure} {found}" for measure, found in row.iloc[2:].dropna().items())
        print(f"{name}: {row['network']}, {row['epochs']} epochs")
        print(textwrap.fill(accuracies, 118, initial_indent="    ", subsequent_indent="    "))


@app.command("dry-run")
def dry_run(notebook: str, preset: Preset = "paper", parameter: Parameters = None) -> None:
    """Run a step of each method on random images, to measure a preset's cost without its data and networks."""
    from paperlib import studies
    from paperlib.studies import dry_run

    settings = studies.resolve(notebook, preset, _parse(parameter or []))
    print(dry_run.measure(notebook, settings).to_string(float_format=lambda value: f"{value:.3g}", na_rep=""))


@app.command()
def audit(
    model: Annotated[
        str,
        typer.Option(help="FILE.py:FUNCTION, timm:NAME or torchvision:NAME; a model of images in [0,1]"),
    ],
    data: Annotated[str, typer.Option(help="a data set's name, or folder:PATH with test/<class>/* or val/<class>/*")],
    eps: Annotated[str, typer.Option(help="claimed radius of robustness in units of [0,1], such as 8/255")],
    weights: Annotated[Path | None, typer.Option(help="a safetensors file or a PyTorch checkpoint")] = None,
    norm: Annotated[Norm, typer.Option(help="linf or l2")] = "linf",
    images: Annotated[int, typer.Option(min=10, max=100_000, help="most test images")] = 500,
    size: Pixels = None,
    classes: Annotated[Path | None, typer.Option(help="class names in the order of the outputs, one per line")] = None,
) -> None:
    """Check a model's robustness for signs of masked gradients. Prints a verdict and writes a report."""
    import torch

    from paperlib import audit, report
    from paperlib.data import folder, load_test, named
    from paperlib.models import external
    from paperlib.runs.tensors import digest
    from paperlib.runs.values import read_value

    radius = read_value(eps)
    if not isinstance(radius, float | int):
        raise InputError(f"--eps {eps}: should be a number in units of [0,1], such as 8/255")
    audit.check_radius(radius, norm)
    by_name = model.startswith(("timm:", "torchvision:"))
    network = None if by_name else external.from_file(model, weights)
    test = load_test(data, images, size)
    if classes is not None:
        test = named(test, folder.read_lines(classes))
    network = network or external.from_library(model, weights, len(test.classes))
    begun = time.monotonic()
    found = audit.audit(network.to("cuda" if torch.cuda.is_available() else "cpu"), test, eps=radius, norm=norm)
    about = {
        "model": model, "weights": str(weights or "as built"), "data": data, "images": len(test), "eps": eps, "norm": norm,
        "classes": ", ".join(test.classes[:20]), "seconds": round(time.monotonic() - begun),
    }  # fmt: skip
    stem = re.sub(r"[^\w.-]", "_", Path(model.rpartition(":")[0]).stem)  # part of a folder's name and of links
    name = f"{stem}-{digest(network, test, [radius, norm, model, str(weights)])[:8]}"
    print(found, flush=True)
    print(f"report: {relpath(report.audit_page(found, root() / 'runs' / 'audit' / name, about))}")


@app.command()
def grid(
    file: Annotated[Path, typer.Argument(help="a YAML file, as in grids/")],
    jobs: Annotated[int | None, typer.Option(min=1, help="parallel runs of one thread; by default one per core")] = None,
    profile: Annotated[Path | None, typer.Option(help="folder of a Snakemake profile, as grids/profiles/slurm")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and show the jobs, but start none")] = False,
    cell_timeout: CellTimeout = None,
    within: Within = None,
) -> None:
    """Run many notebooks, presets, parameters and seeds as one plan, here or on a cluster. Needs the extra `grid`."""
    from paperlib import report
    from paperlib.runs import deadline
    from paperlib.runs import run as runs
    from paperlib.studies import grid

    if profile and not (profile / "config.yaml").exists():
        raise InputError(f"--profile {profile}: should be a folder with config.yaml, as in grids/profiles")
    if profile and jobs:
        raise InputError(f"--jobs {jobs}: the profile sets the number of parallel jobs; leave out --jobs or --profile")
    if profile and within:
        raise InputError(f"--within {within}: the profile sets the time limits of a cluster's jobs; leave out --within")
    plan = grid.read(file)
    for name, job in plan.items():  # all are validated before the first starts
        try:
            settings = _settings(job.notebook, job.preset, job.given)
            if not (profile or dry_run or job.finished):
                _check_machine(settings)
        except InputError as error:
            raise InputError(f"{file}: {name}: {error}") from None
    deadline.begin(within)
    code = 0 if dry_run else grid.run(file, jobs, profile, cell_timeout)
    states = {name: runs.status(job.folder) for name, job in plan.items()}
    for name, about in states.items():
        why = about.get("error") or grid.refused(plan[name]) if about["state"] != "finished" else ""
        print(f"{name:24} {plan[name].run:36} {about['state']:12} {why}".rstrip())
    finished = sum(about["state"] == "finished" for about in states.values())
    print(f"{finished} of {len(plan)} runs are finished")
    if code and within and {about["state"] for about in states.values()} <= {"finished", "stopped", "not started"}:
        print(f"{deadline.OVER}; paperlib report shows the results so far")
        raise typer.Exit(deadline.CODE)
    if not dry_run:
        print(f"report: {relpath(report.build())}; each job's output is in grid.log in its run's folder")
    raise typer.Exit(code)


@app.command("run-part", hidden=True)
def run_part(
    notebook: str, preset: Preset = "quick", parameter: Parameters = None, cell_timeout: int | None = None
) -> None:
    """Run one process of a run on several devices; it sees one GPU at most. `launch` starts it."""
    from paperlib import studies
    from paperlib.runs import launch

    given = _parse(parameter or [])
    on_gpu = studies.resolve(notebook, preset, given).device != "cpu"
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(launch.rank() + 1)))).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[launch.rank()] if on_gpu and launch.rank() < len(seen) else ""
    raise typer.Exit(_execute(notebook, preset, given, cell_timeout))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="repeat every two seconds until Ctrl-C")] = False,
) -> None:
    """List every run: preset, changed settings, state, time, disk use, last progress, and how many claims held."""
    from paperlib.runs.overview import damaged_left_out, runs

    while True:
        lines = []
        for entry in runs():
            with damaged_left_out(entry["folder"]):
                lines.append(_line(entry))
        width = max((len(name) for name, _ in lines), default=0)
        text = "\n".join(f"{name:{width}} {rest}" for name, rest in lines) or "no run yet"
        print(("\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else "") + text, flush=True)
        if not watch:
            return
        time.sleep(2)


def _line(entry: dict[str, Any]) -> tuple[str, str]:
    """Return the name and the status line of a run of `overview.runs`."""
    from paperlib.runs import overview, progress
    from paperlib.runs import run as runs
    from paperlib.runs.tidy import size_of

    about, folder = entry["status"], entry["folder"]
    seconds = runs.taken(about) if about["state"] == "running" else about["seconds"]
    differing = ", ".join(f"{name} = {value}" for name, value in entry["changed"].items())
    name = textwrap.shorten(f"{about['notebook']}, {about['preset']}{differing and f': {differing}'}", 60, placeholder=" …")
    line = f"{about['state']:9} {tqdm.format_interval(seconds):>8} {_bytes(size_of(folder)):>8}"
    if about["state"] != "finished" and (news := progress.of_run(folder)):
        line += f"  {news}"
    if entry["claims"]:
        held, missed, untested = overview.tally(entry["claims"])
        line += f"  held {held}, not held {missed}, not tested {untested}"
    return name, f"{line}  {about['error']}" if about.get("error") else line


@app.command()
def clean(
    unfinished: Annotated[bool, typer.Option("--unfinished", help="also runs that failed, stopped or were killed")] = False,
    old: Annotated[bool, typer.Option("--old", help="also runs of other versions, even finished ones")] = False,
    data: Annotated[bool, typer.Option("--data", help="also cached data, which can be computed again")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove half-written files, and what the options name. Lists all of it with sizes, and asks first."""
    from paperlib.runs import tidy

    found = tidy.removable(unfinished=unfinished, old=old, data=data)
    sizes = {path: tidy.size_of(path) for path in found}
    for path, reason in found.items():
        print(f"{_bytes(sizes[path]):>8}  {relpath(path)}: {reason}")
    if not found:
        print("nothing to remove")
    elif yes or typer.confirm(f"Remove these {len(found)}, and free {_bytes(sum(sizes.values()))}?"):
        for path, reason in found.items():
            if not tidy.remove(path, reason):
                print(f"{relpath(path)}: in use or changed since, so it is kept")


@app.command("report")
def report_(
    to: Annotated[Path | None, typer.Option(help="folder for the site; by default runs/report")] = None,
) -> None:
    """Build the site of all runs: a table of claims, a page for each run, and files for your own paper."""
    from paperlib.runs import made

    target = to or root() / "runs" / "report"
    if not made.current(target):
        from paperlib import report

        report.build(target)
    print(f"report: {relpath(target / 'index.html')}")


@app.command()
def data(name: str, size: Pixels = None) -> None:
    """Download, read or render a data set once, so that runs can start at once."""
    from paperlib.data import load

    begun = time.monotonic()
    splits = load(name, image_size=size)
    shape = "×".join(map(str, splits.train.images.shape[1:]))
    print(f"{name}: {len(splits.train)} training and {len(splits.test)} test samples of {shape}, "
          f"{len(splits.train.classes)} classes, in {time.monotonic() - begun:.1f} s")  # fmt: skip


def _parse(parameters: list[str], venue: str | None = None, width: str = "text") -> dict[str, Any]:
    given: dict[str, Any] = {}
    for parameter in parameters:
        name, sign, value = parameter.partition("=")
        if not sign:
            raise InputError(f"-p {parameter}: should be name=value")
        given[name] = value
    if width == "column" and not venue:
        raise InputError("--width column: needs a --venue of two columns: icml, cvpr or aaai")
    return given | ({"venue": f"{venue}-column" if width == "column" else venue} if venue else {})


def _settings(notebook: str, preset: str, given: dict[str, Any]) -> "Settings":
    """Return the settings of `studies.resolve`. Raises InputError also for a missing folder of images."""
    from paperlib import studies
    from paperlib.data.folder import located

    settings = studies.resolve(notebook, preset, given)
    data = str(given.get("data", ""))
    path = data.removeprefix("folder:")
    if data.startswith("folder:") and not located(path).is_dir():
        raise InputError(f"data = {data}: there is no folder {path} here or in {root()}")
    return settings


def _check_machine(settings: "Settings") -> None:
    """Raise InputError if this machine lacks the memory, devices or files of networks that the settings name."""
    import torch

    from paperlib.runs import run as runs
    from paperlib.studies import sizes

    sizes.check_memory(settings)
    gpu, devices = runs.device_of(settings).type == "cuda", settings.devices
    there = torch.cuda.device_count() if gpu else max(2, os.cpu_count() or 1)
    if devices > there:
        raise InputError(
            f"devices = {devices}, but there are {there} {'GPUs' if gpu else 'cores'} here; use {there}"
            f"{', or device = cpu' if gpu else ''}"
        )
    for name in ("teacher_linf", "teacher_l2"):
        if (file := getattr(settings, name, "")) and not Path(file).is_file():
            raise InputError(f"{name} = {file!r}: no such file; it should be a network's weights, or empty for none")


def _execute(notebook: str, preset: str, given: dict[str, Any], cell_timeout: int | None = None) -> int:
    """Run a notebook by papermill, with its output in its run's folder. Return the exit code.

    The kernel reports that folder, because edited parameters in the notebook may lead to another one.
    """
    from paperlib.runs import deadline, distributed, launch
    from paperlib.runs import run as runs

    outermost = distributed.expected() == 1
    settings = _settings(notebook, preset, given)
    if outermost:  # the processes that this one starts see one device each
        _check_machine(settings)
    source = shipped("notebooks") / f"{notebook}.ipynb"
    _check_pair(source.with_suffix(""))
    folder = runs.folder_of(notebook, preset, settings)
    if deadline.near():  # earlier notebooks of `reproduce` or a grid took the time
        print(f"paperlib: {notebook} not started, because the time is over", file=sys.stderr)
        return deadline.CODE
    if outermost:
        if runs.status(folder)["state"] == "running":
            raise InputError(f"{relpath(folder)}: {runs.TAKEN}; wait for it or end it")
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
        os.environ.pop("MPLBACKEND", None)  # the kernel then chooses its own backend
        print(f"{notebook}, preset {preset}", flush=True)
        if settings.devices > 1:
            return _execute_parts(notebook, preset, given, settings, folder, cell_timeout)

    import papermill
    from ipykernel.kernelspec import write_kernel_spec
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbconvert.filters import strip_ansi
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from paperlib.report import notebook_page

    passed: dict[str, Any] = {"preset": preset}
    if given:  # values after validation, since the notebook would otherwise receive texts such as "8/255"
        values = settings.model_dump()
        checked = {name: "null" if values[name] is None else values[name] for name in given}
        passed["settings"] = {**runs.edited(source), **checked}
    part, code, name = launch.rank(), 0, source.name
    # The first process prints here, the others into a log. Papermill does not write atomically, hence a temporary folder.
    if part:
        folder.mkdir(parents=True, exist_ok=True)
    output = (folder / f"device-{part}.log").open("w", encoding="utf-8") if part else nullcontext(sys.stdout)
    with output as log, temporary() as place, runs.heard() as began:
        # Each kernel has its sockets in a folder of its own: TCP ports, and names in a shared folder, could collide.
        sockets = {"transport": "ipc", "ip": f"{place}/kernel", "connection_file": f"{place}/kernel.json"}
        executed = place / name
        write_kernel_spec(f"{place}/kernels/python3")  # of this interpreter, not of an installed kernel with the same name
        os.environ["JUPYTER_PATH"] = str(place)
        try:
            papermill.execute_notebook(
                _literal(source), _literal(executed), passed,
                progress_bar=False, stdout_file=log, stderr_file=log if part else sys.stderr, cwd=root(),
                kernel_name="python3", config=Config({"KernelManager": sockets}), execution_timeout=cell_timeout,
            )  # fmt: skip
        except PapermillExecutionError as error:
            over = error.ename == deadline.OutOfTime.__name__
            reason = f"ended at a checkpoint: {deadline.OVER}" if over else f"failed: {error.ename}: {error.evalue}"
            print(f"paperlib: {notebook} {reason}", file=sys.stderr)
            code = deadline.CODE if over else 1
            if part:
                log.write(strip_ansi("\n".join(error.traceback)))
            if runs.TAKEN in error.evalue:  # another process began it just before; its notebook stays
                return code
            if settings.devices > 1 and launch.LOST.search(error.evalue):
                time.sleep(10)  # another process died; `launch` is about to find out which
        except (CellTimeoutError, DeadKernelError) as error:
            reason = f"the kernel of {notebook} was killed, perhaps for lack of memory"
            if isinstance(error, CellTimeoutError):
                reason = f"a cell of {notebook} took longer than {cell_timeout} s, and was ended"
            print(f"paperlib: {reason}; {_kept(began() or folder)}", file=sys.stderr)
            code = 1
        if part:  # the run keeps the first process's notebook
            return code
        if (begun := began()) is None and (folder / name).exists():
            print(f"paperlib: {notebook} began no run; the page in {relpath(folder)} is unchanged", file=sys.stderr)
            return 1
        folder = begun or folder
        write_text(folder / name, executed.read_text(encoding="utf-8"))
    if code == deadline.CODE:  # no time is left for writing the page
        return code
    page = notebook_page(folder / name)
    state = runs.status(folder)["state"]
    if code == 0 and state != "finished":  # the last cell should have called `run.finish`
        print(f"paperlib: {notebook} ran, but its status is {state}", file=sys.stderr)
        code = 1
    print(f"{notebook}: {state}, {relpath(page)}", flush=True)
    return code


def _execute_parts(
    notebook: str, preset: str, given: dict[str, Any], settings: "Settings", folder: Path, cell_timeout: int | None
) -> int:
    """Run `_execute` in one process per device. Return the exit code."""
    from paperlib.runs import deadline, launch
    from paperlib.runs import run as runs
    from paperlib.runs.settings import as_options

    timeout = [] if cell_timeout is None else ["--cell-timeout", str(cell_timeout)]
    command = [sys.executable, "-m", "paperlib.cli", "run-part", notebook, "--preset", preset, *as_options(given), *timeout]
    with runs.heard() as began:
        code, happened = launch.launch(command, settings.devices)
        folder = began() or folder
    if code == deadline.CODE:
        print(f"paperlib: the time is over; {_kept(folder)}", file=sys.stderr)
    elif code:
        about = runs.status(folder)
        if about["state"] in ("killed", "stopped") or launch.LOST.search(about.get("error", "")):
            runs.note_failure(folder, happened)
        print(f"paperlib: {happened}; {_kept(folder)}", file=sys.stderr)
    return code


def _decidable(notebook: str, settings: "Settings") -> int:
    """Count the claims that a run of these settings could decide."""
    from paperlib import studies
    from paperlib.claims import power

    return int((power.table(notebook, settings, studies.plan_of(notebook, settings))["decides"] == "yes").sum())


def _check_pair(stem: Path) -> None:
    """Raise InputError if a notebook's script is newer and its content differs. In a clone, times alone mean nothing."""
    import jupytext

    script, notebook = stem.with_suffix(".py"), stem.with_suffix(".ipynb")
    if not script.exists() or (notebook.exists() and script.stat().st_mtime_ns <= notebook.stat().st_mtime_ns):
        return
    cells = [[(cell.cell_type, cell.source) for cell in jupytext.read(one).cells] if one.exists() else []
             for one in (script, notebook)]  # fmt: skip
    if cells[0] != cells[1]:
        advice = f"jupytext --sync {relpath(script)} updates it"
        raise InputError(f"{script.name} has been changed since {notebook.name}, which is what runs; {advice}")


def _literal(path: Path) -> str:
    """Escape the braces in a path, since papermill formats paths."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kept(folder: Path) -> str:
    return f"computed results are kept in {folder}, and the same command goes on from there"


def _bytes(size: int) -> str:
    return f"{tqdm.format_sizeof(size, divisor=1024)}B"


if __name__ == "__main__":
    main()
