"""The command line.

Exit codes: 0 all went well, 1 a notebook failed, 2 the input was refused, 75 the time of --within is over and the same
command goes on, 130 interrupted.
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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import typer
    from tqdm import tqdm

    from paperlib.runs.files import InputError, read_json, root, shipped, temporary, write_text
except KeyboardInterrupt:
    print("paperlib: interrupted before anything began", file=sys.stderr)
    sys.exit(130)

if TYPE_CHECKING:
    from paperlib.runs.settings import Settings

Norm = Literal["linf", "l2"]  # attacks.Norm, without waiting for PyTorch

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Preset = Annotated[str, typer.Option("--preset", "-P", help="quick, laptop, gpu or paper")]
Parameters = Annotated[list[str] | None, typer.Option("--parameter", "-p", help="name=value, in place of the preset's")]
CellTimeout = Annotated[int | None, typer.Option(min=1, help="seconds after which a cell counts as hanging")]
VenueOption = Annotated[
    str | None, typer.Option(help="whose width the figures have: neurips, iclr, icml, cvpr, aaai, wide")
]
Within = Annotated[
    str | None, typer.Option(help="end at a checkpoint before that time is over, say 9m or 1h30m; the same command goes on")
]
Pixels = Annotated[int | None, typer.Option(min=1, max=4096, help="to bring a folder's images to")]
WidthOption = Annotated[
    Literal["text", "column"], typer.Option(help="width of the text, or of one of the venue's two columns")
]


# For glibc's malloc, which otherwise hands the memory of every large tensor back to the system and asks for it again, page
# by page, in the next step (docs/results/benchmarks.md). Read when a process starts, so set for the notebooks' kernels.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


def main() -> None:
    """The entry point. Invalid input ends with a message and exit code 2, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of an encoding that lacks a dash or a letter of somebody's name
    os.environ["MPLBACKEND"] = "agg"  # whatever a user's matplotlibrc says
    try:
        app()
    except InputError as error:
        print(f"paperlib: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a path that cannot be read or written, or a full disk
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = f"{str(error.filename)[:300]}: " if error.filename else ""
        advice = "make room there or repair the path, and give the same command again; what was computed is kept"
        print(f"paperlib: {place}{error.strerror or error}; {advice}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code == 130 and sys.argv[1:2] != ["status"]:  # Ctrl-C, which is how `status --watch` ends
            kept = "; what was computed is kept, and the same command goes on from there"
            told = kept if sys.argv[1:2] in (["run"], ["reproduce"], ["grid"], ["run-part"]) else ""
            print(f"paperlib: interrupted{told}", file=sys.stderr)
        raise


@app.command("list")
def list_() -> None:
    """The notebooks, their presets and the data sets."""
    from paperlib import report, studies
    from paperlib.data import DESCRIPTIONS
    from paperlib.runs import run as runs

    print("notebooks")
    for notebook in sorted(studies.known()):
        print(f"  {notebook:16} {report.headline(notebook)}\n  {'':16} presets: {', '.join(runs.read_presets(notebook))}")
    print("data sets")
    for name, words in DESCRIPTIONS.items():
        print(f"  {name:16} {words}")


@app.command()
def run(
    notebook: str,
    preset: Preset = "quick",
    parameter: Parameters = None,
    venue: VenueOption = None,
    width: WidthOption = "text",
    cell_timeout: CellTimeout = None,
    within: Within = None,
    site: Annotated[bool, typer.Option("--report/--no-report", help="build the site over all runs afterwards")] = True,
) -> None:
    """Run one notebook headless, into runs/, with its page beside it."""
    from paperlib import report
    from paperlib.runs import deadline

    deadline.begin(within)
    code = _execute(notebook, preset, _parse(parameter or [], venue, width), cell_timeout)
    if site and code != deadline.CODE:
        print(f"report: {_relative(report.build())}")
    raise typer.Exit(code)


@app.command()
def reproduce(
    preset: Preset = "quick",
    jobs: Annotated[int, typer.Option(min=1, help="notebooks at a time")] = 1,
    venue: VenueOption = None,
    width: WidthOption = "text",
    cell_timeout: CellTimeout = None,
    within: Within = None,
) -> None:
    """Run every notebook that has claims at a preset and end with a table of what held."""
    from paperlib import report, studies
    from paperlib.runs import deadline, overview
    from paperlib.runs import run as runs
    from paperlib.runs.settings import as_options

    given = _parse([], venue, width)
    chosen = sorted(studies.declared("PLANS"))  # who claims something says what decides it
    plans = {name: studies.resolve(name, preset, given) for name in chosen}  # all are checked before any starts
    deadline.begin(within)
    if within:  # what decides most comes first
        chosen.sort(key=lambda name: -_decidable(name, plans[name]))
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    def one(name: str) -> tuple[int, float, Path]:
        begun, began = time.monotonic(), place / name
        if deadline.near():
            return deadline.CODE, 0.0, runs.folder_of(name, preset, plans[name])
        timeout = [] if cell_timeout is None else ["--cell-timeout", str(cell_timeout)]
        command = [sys.executable, "-m", "paperlib.cli", "run", name, "--preset", preset, *as_options(given), *timeout]
        environment = os.environ if jobs == 1 else {**os.environ, "OMP_NUM_THREADS": threads}
        code = subprocess.run(command, env={**environment, runs.BEGAN: str(began)}).returncode
        folder = Path(began.read_text()) if began.exists() else runs.folder_of(name, preset, plans[name])
        return code, time.monotonic() - begun, folder

    with temporary() as place, ThreadPoolExecutor(jobs) as pool:
        ended = dict(zip(chosen, pool.map(one, chosen), strict=True))
    print(f"\n{'notebook':16} {'time':>7}  {'held':>5} {'not held':>9} {'not tested':>11}  status")
    for name, (_, seconds, folder) in ended.items():
        file = folder / "claims.json"
        counts = overview.tally(read_json(file)) if file.exists() else ("–", "–", "–")
        state = runs.status(folder)["state"]
        scale = "" if file.exists() and not read_json(file)[0]["scale"] else ", not as the paper in all settings"
        print(f"{name:16} {seconds:6.0f}s  {counts[0]:>5} {counts[1]:>9} {counts[2]:>11}  {state}{scale}")
    codes = {code for code, *_ in ended.values()} - {0}
    if codes == {deadline.CODE}:
        print(f"{deadline.OVER}, and paperlib report shows what is there")
        raise typer.Exit(deadline.CODE)
    print(f"report: {_relative(report.build())}")
    raise typer.Exit(int(bool(codes)))


@app.command()
def doctor() -> None:
    """This machine: processor, GPU, disk, data, speed, and how long the presets take here."""
    from paperlib.studies import doctor

    for line in doctor.lines():
        print(line, flush=True)


@app.command()
def plan(notebook: str, preset: Preset = "quick", parameter: Parameters = None) -> None:
    """Which claims a run's images and seeds could decide, before anything is trained."""
    from paperlib import studies
    from paperlib.claims import power

    settings = _settings(notebook, preset, _parse(parameter or [], None))
    print("\n".join(power.lines(power.table(notebook, settings, studies.plan_of(notebook, settings)))))


@app.command()
def zoo(
    add: Annotated[Path | None, typer.Option(help="file the networks of this finished run")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="also in place of networks by another recipe")] = False,
) -> None:
    """The trained networks that come with the project: a table."""
    from paperlib import zoo
    from paperlib.report import cards

    for name in cards.add(add, replace) if add else ():
        print(f"filed {name}")
    print(zoo.table().to_string(na_rep="–"))


@app.command("dry-run")
def dry_run(notebook: str, preset: Preset = "paper", parameter: Parameters = None) -> None:
    """A step of each method on random images: what a preset costs here, before its data and networks are there."""
    from paperlib import studies
    from paperlib.studies import dry_run

    settings = studies.resolve(notebook, preset, _parse(parameter or [], None))
    print(dry_run.measure(notebook, settings).to_string(float_format=lambda value: f"{value:.3g}", na_rep=""))


@app.command()
def audit(
    model: Annotated[
        str,
        typer.Option(
            help="FILE.py:FUNCTION, run to get a torch.nn.Module for images in [0,1]; timm:NAME or torchvision:NAME"
        ),
    ],
    data: Annotated[str, typer.Option(help="a data set's name, or folder:PATH with test/<class>/* or val/<class>/* in it")],
    eps: Annotated[str, typer.Option(help="radius for which robustness is claimed, in units of [0,1], say 8/255")],
    weights: Annotated[Path | None, typer.Option(help="safetensors, or a checkpoint of PyTorch's")] = None,
    norm: Annotated[Norm, typer.Option(help="linf or l2")] = "linf",
    images: Annotated[int, typer.Option(min=10, max=100_000, help="test images at most")] = 500,
    size: Pixels = None,
    classes: Annotated[Path | None, typer.Option(help="the classes of the model's outputs in order, a name a line")] = None,
) -> None:
    """Is a model's robustness real? Signs of masked gradients, a verdict, and a report."""
    import torch

    from paperlib import audit, report
    from paperlib.data import folder, load_test, named
    from paperlib.models import external
    from paperlib.runs.tensors import digest
    from paperlib.runs.values import read_value

    radius = read_value(eps)
    if not isinstance(radius, float | int):
        raise InputError(f"--eps {eps}: should be a number in units of [0,1], say 8/255")
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
    called = re.sub(r"[^\w.-]", "_", Path(model.rpartition(":")[0]).stem)  # a folder's name, and a part of links
    name = f"{called}-{digest(network, test, [radius, norm, model, str(weights)])[:8]}"
    print(found, flush=True)
    print(f"report: {_relative(report.audit_page(found, root() / 'runs' / 'audit' / name, about))}")


@app.command()
def grid(
    file: Annotated[Path, typer.Argument(help="a YAML file, as in grids/")],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="runs at a time, of one thread each; as many as cores where left out")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="folder of a Snakemake profile, say grids/profiles/slurm")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and show the jobs, and start none")] = False,
    cell_timeout: CellTimeout = None,
    within: Within = None,
) -> None:
    """Run many notebooks, presets, parameters and seeds as one plan, here or on a cluster (extra `grid`)."""
    from paperlib import report
    from paperlib.runs import deadline
    from paperlib.runs import run as runs
    from paperlib.studies import grid

    if profile and not (profile / "config.yaml").exists():
        raise InputError(f"--profile {profile}: should be a folder with config.yaml, as in grids/profiles")
    if profile and jobs:
        raise InputError(f"--jobs {jobs}: a profile says itself how many jobs it runs at a time; leave one of the two out")
    if profile and within:
        raise InputError(f"--within {within}: a cluster's jobs have limits of their own, in the profile; leave it out")
    plan = grid.read(file)
    for name, job in plan.items():  # all, before the first starts
        try:
            _settings(job.notebook, job.preset, job.given, here=not (profile or dry_run or job.finished))
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
        print(f"{deadline.OVER}, and paperlib report shows what is there")
        raise typer.Exit(deadline.CODE)
    if not dry_run:
        print(f"report: {_relative(report.build())}; what a job said: grid.log in its run's folder")
    raise typer.Exit(code)


@app.command("run-part", hidden=True)
def run_part(
    notebook: str, preset: Preset = "quick", parameter: Parameters = None, cell_timeout: int | None = None
) -> None:
    """One process of a run on several devices, which sees one GPU only. Started by `launch`."""
    from paperlib import studies
    from paperlib.runs import launch

    on_gpu = studies.resolve(notebook, preset, _parse(parameter or [], None)).device != "cpu"
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(launch.rank() + 1)))).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[launch.rank()] if on_gpu and launch.rank() < len(seen) else ""
    raise typer.Exit(_execute(notebook, preset, _parse(parameter or [], None), cell_timeout))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="again every two seconds, until Ctrl-C")] = False,
) -> None:
    """Every run: its preset and what differs from it, state, time, disk use, last progress, and how many claims held."""
    from paperlib.runs.overview import damaged_left_out, runs

    while True:
        lines = []
        for entry in runs():
            with damaged_left_out(entry["folder"]):
                lines.append(_line(entry))
        width = max((len(name) for name, _ in lines), default=0)
        told = "\n".join(f"{name:{width}} {rest}" for name, rest in lines) or "no run yet"
        print(("\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else "") + told, flush=True)
        if not watch:
            return
        time.sleep(2)


def _line(entry: dict[str, Any]) -> tuple[str, str]:
    """What a run of `overview.runs` is, and how it stands."""
    from paperlib.runs import overview, progress
    from paperlib.runs import run as runs
    from paperlib.runs.tidy import size_of

    about, folder = entry["status"], entry["folder"]
    seconds = runs.taken(about) if about["state"] == "running" else about["seconds"]
    own = ", ".join(f"{name} = {value}" for name, value in entry["changed"].items())
    name = textwrap.shorten(f"{about['notebook']}, {about['preset']}{own and f': {own}'}", 60, placeholder=" …")
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
    old: Annotated[bool, typer.Option("--old", help="also runs of other versions, finished ones too")] = False,
    data: Annotated[
        bool, typer.Option("--data", help="also what was rendered, decoded and learned, and can be again")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove half-written files, and what the options name. Lists everything with its size, and asks first."""
    from paperlib.runs import tidy

    found = tidy.removable(unfinished=unfinished, old=old, data=data)
    sizes = {path: tidy.size_of(path) for path in found}
    for path, reason in found.items():
        print(f"{_bytes(sizes[path]):>8}  {_relative(path)}: {reason}")
    if not found:
        print("nothing to remove")
    elif yes or typer.confirm(f"Remove these {len(found)}, and free {_bytes(sum(sizes.values()))}?"):
        for path, reason in found.items():
            if not tidy.remove(path, reason):
                print(f"{_relative(path)}: in use or changed since, left as it is")


@app.command("report")
def report_(
    to: Annotated[Path | None, typer.Option(help="folder for the site; runs/report where left out")] = None,
) -> None:
    """Build the site over all runs: the ledger of claims, a page a run, and files for your own paper."""
    from paperlib.runs import made

    target = to or root() / "runs" / "report"
    if not made.current(target):
        from paperlib import report

        report.build(target)
    print(f"report: {_relative(target / 'index.html')}")


@app.command()
def data(
    name: str,
    size: Pixels = None,
) -> None:
    """Fetch, read or render a data set once, so that runs find it ready."""
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


def _settings(notebook: str, preset: str, given: dict[str, Any], here: bool = False) -> "Settings":
    """As `studies.resolve`. Raises InputError also where there is no such folder of images.

    With `here` also where this machine has not the devices, or not the files of networks, that the settings name.
    """
    from paperlib import studies
    from paperlib.data.folder import located

    settings = studies.resolve(notebook, preset, given)
    data = str(given.get("data", ""))
    path = data.removeprefix("folder:")
    if data.startswith("folder:") and not located(path).is_dir():
        raise InputError(f"data = {data}: there is no folder {path} here or in {root()}")
    if here:
        _check_machine(settings)
    return settings


def _check_machine(settings: "Settings") -> None:
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
    """Run a notebook through papermill into its run's folder. Returns the exit code.

    That is the folder which the kernel says it works in: somebody may have edited the notebook's parameters.
    """
    from paperlib.runs import deadline, distributed, launch
    from paperlib.runs import run as runs

    first = distributed.expected() == 1  # what this starts sees one device each
    settings = _settings(notebook, preset, given, here=first)  # refused here, before anything starts
    source = shipped("notebooks") / f"{notebook}.ipynb"
    _check_pair(source.with_suffix(""))
    folder = runs.folder_of(notebook, preset, settings)
    if deadline.near():  # of a `reproduce` or a grid, after what came before
        print(f"paperlib: {notebook} not started: the time is over", file=sys.stderr)
        return deadline.CODE
    if first:
        if runs.status(folder)["state"] == "running":
            raise InputError(f"{_relative(folder)}: {runs.TAKEN}; wait for it or end it")
        for name, value in KEEP_MEMORY.items():
            os.environ.setdefault(name, value)
        os.environ.pop("MPLBACKEND", None)  # then a kernel takes its own, whatever a user's matplotlibrc says
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

    # As read and checked: a notebook's own cell would see the text "8/255".
    values = settings.model_dump()
    checked = {name: "null" if values[name] is None else values[name] for name in given}
    edited = runs.edited(source) if checked else {}
    passed = {"preset": preset, **({"settings": {**edited, **checked}} if checked else {})}
    part, code, name = launch.rank(), 0, source.name
    # The first process's output is shown here. Papermill saves as it goes, not atomically, so not into the run's folder.
    if part:
        folder.mkdir(parents=True, exist_ok=True)
    output = (folder / f"device-{part}.log").open("w", encoding="utf-8") if part else nullcontext(sys.stdout)
    with output as log, temporary() as place, runs.heard() as began:
        # Sockets in a folder of this kernel alone: TCP ports, and names in a shared folder, collide between kernels.
        own = {"transport": "ipc", "ip": f"{place}/kernel", "connection_file": f"{place}/kernel.json"}
        executed = place / name
        write_kernel_spec(f"{place}/kernels/python3")  # this interpreter, whatever other kernels have that name
        os.environ["JUPYTER_PATH"] = str(place)
        try:
            papermill.execute_notebook(
                _literal(source), _literal(executed), passed,
                progress_bar=False, stdout_file=log, stderr_file=log if part else sys.stderr, cwd=root(),
                kernel_name="python3", config=Config({"KernelManager": own}), execution_timeout=cell_timeout,
            )  # fmt: skip
        except PapermillExecutionError as error:
            over = error.ename == deadline.OutOfTime.__name__
            told = f"ended at a checkpoint: {deadline.OVER}" if over else f"failed: {error.ename}: {error.evalue}"
            print(f"paperlib: {notebook} {told}", file=sys.stderr)
            code = deadline.CODE if over else 1
            if part:
                log.write(strip_ansi("\n".join(error.traceback)))
            if runs.TAKEN in error.evalue:  # by another start in the same second, whose notebook stays
                return code
            if settings.devices > 1 and launch.LOST.search(error.evalue):
                time.sleep(10)  # another process is gone; `launch` is about to notice which
        except (CellTimeoutError, DeadKernelError) as error:
            slow = f"a cell of {notebook} took longer than {cell_timeout} s, and was ended"
            killed = f"the kernel of {notebook} was killed, perhaps for lack of memory"
            what = slow if isinstance(error, CellTimeoutError) else killed
            print(f"paperlib: {what}; {_kept(began() or folder)}", file=sys.stderr)
            code = 1
        if part:  # the first process's notebook is the run's
            return code
        if (begun := began()) is None and (folder / name).exists():
            print(f"paperlib: {notebook} began no run, and {_relative(folder)} keeps its page", file=sys.stderr)
            return 1
        folder = begun or folder
        write_text(folder / name, executed.read_text(encoding="utf-8"))
    if code == deadline.CODE:  # a page takes seconds that it may not have
        return code
    page = notebook_page(folder / name)
    state = runs.status(folder)["state"]
    if code == 0 and state != "finished":  # all cells ran, so the last one must have said so
        print(f"paperlib: {notebook} ran, but its status is {state}", file=sys.stderr)
        code = 1
    print(f"{notebook}: {state}, {_relative(page)}", flush=True)
    return code


def _execute_parts(
    notebook: str, preset: str, given: dict[str, Any], settings: "Settings", folder: Path, cell_timeout: int | None
) -> int:
    """`_execute` in a process for each device."""
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
    """How many claims a run of these settings could decide."""
    from paperlib import studies
    from paperlib.claims import power

    return int((power.table(notebook, settings, studies.plan_of(notebook, settings))["decides"] == "yes").sum())


def _check_pair(stem: Path) -> None:
    """Raise InputError where a notebook's script was changed since, by content: a clone gives the two any times."""
    import jupytext

    script, notebook = stem.with_suffix(".py"), stem.with_suffix(".ipynb")
    if not script.exists() or (notebook.exists() and script.stat().st_mtime_ns <= notebook.stat().st_mtime_ns):
        return
    cells = [[(cell.cell_type, cell.source) for cell in jupytext.read(one).cells] if one.exists() else []
             for one in (script, notebook)]  # fmt: skip
    if cells[0] != cells[1]:
        advice = f"jupytext --sync {_relative(script)} brings them together"
        raise InputError(f"{script.name} has been changed since {notebook.name}, which is what runs; {advice}")


def _literal(path: Path) -> str:
    """A path as papermill takes it, which would fill in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _kept(folder: Path) -> str:
    return f"what was computed is kept in {folder}, and the same command goes on from there"


def _bytes(size: int) -> str:
    return f"{tqdm.format_sizeof(size, divisor=1024)}B"


def _relative(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    main()
