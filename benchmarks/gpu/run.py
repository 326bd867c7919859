"""All that is done on a rented GPU, within a number of seconds: `python -m benchmarks.gpu.run --within 540 --out FOLDER`.

Each stage is a process of its own, with a time limit. What it finds is in FOLDER/results.tar at once, and where one breaks
the next goes on.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from pathlib import Path

from benchmarks.gpu.common import CARRIED, HERE, RESULTS, SCRATCH, pack, use_carried_packages

STAGES = ("checks", "throughput", "campaign")
GRACE = 5.0  # seconds kept for packing


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--within", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default=",".join(STAGES), help="of checks, throughput and campaign")
    parser.add_argument("--checks", type=float, default=60, help="seconds for the checks")
    parser.add_argument("--throughput", type=float, default=75, help="seconds for the table of speeds")
    parser.add_argument("--compiled", action="store_true", help="torch.compile is in the table too")
    parser.add_argument("--epochs", type=int, default=10, help="0: as many as let the first three trainings end in time")
    parser.add_argument("--trainings", type=int, default=0, help="the first so many of the list alone; 0: all")
    parser.add_argument("--attack", choices=("auto", "eager", "graph", "compiled"), default="auto")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", type=int, default=0, help="training images of a trial run; 0: all of them")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # the process of one stage
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    given.out = given.out.absolute()
    if given.stage:
        one(given)
        return
    begun = time.time()
    end = begun + given.within - GRACE
    given.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(RESULTS, ignore_errors=True)
    use_carried_packages()  # unpacked before two processes could do that at once
    print(f"stages {given.stages}, {given.within:.0f} s", flush=True)
    background = start(given, "images", end) if "campaign" in given.stages else None
    for stage in given.stages.split(","):
        limit = {"checks": given.checks, "throughput": given.throughput}.get(stage, given.within)
        until = min(end, time.time() + limit)
        print(f"== {stage}: {until - time.time():.0f} s", flush=True)
        process = start(given, stage, until)
        code = ended(process, until + GRACE / 2 if stage == "campaign" else min(end, until + 20))
        if code and stage == "campaign" and end - time.time() > 60:
            print(f"{stage} ended with {code}; once more, its attack without a graph", flush=True)
            process = start(given, stage, end, "--attack", "eager")
            code = ended(process, end + GRACE / 2)
        print(f"== {stage} ended with {code} after {time.time() - begun:.0f} s in all", flush=True)
    if background:
        stop(background)
    pack(RESULTS, given.out / "results.tar")
    size = sum(file.stat().st_size for file in given.out.glob("*") if file.is_file())
    print(f"{given.out}: {size / 2**20:.1f} MiB", flush=True)


def start(given: argparse.Namespace, stage: str, until: float, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.run", *sys.argv[1:], *more, "--stage", stage, "--until", str(until)],
        cwd=HERE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[bytes], until: float) -> int | None:
    """The exit code; a process that is not done in time is stopped, with its children."""
    try:
        return process.wait(max(0.1, until - time.time()))
    except subprocess.TimeoutExpired:
        print("out of time: stopped", flush=True)
        stop(process)
        return process.returncode


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def one(given: argparse.Namespace) -> None:
    """A stage, in its own process."""
    use_carried_packages()
    try:
        if given.stage == "images":
            unpack(CARRIED / "data.tar.xz")
        elif given.stage == "checks":
            from benchmarks.gpu import checks

            checks.run(given.out, given.device, given.until)
        elif given.stage == "throughput":
            from benchmarks.gpu import throughput

            throughput.measure(given.out, given.device, given.until, tiny=given.device == "cpu", compiled=given.compiled)
        else:
            from benchmarks.gpu import campaign

            images = campaign.images_there(given.until - time.time() - 10)
            campaign.Campaign(
                given.out,
                given.device,
                given.until,
                epochs=given.epochs,
                tiny=given.tiny,
                kind=kind(given),
                images=images,
                most=given.trainings,
            ).run()
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def kind(given: argparse.Namespace) -> str:
    """How training attacks: by a graph, but where the checks of this call found one that is not right."""
    if given.attack != "auto":
        return str(given.attack)

    file = RESULTS / "checks.json"
    rows = json.loads(file.read_text()).get("rows", []) if file.exists() else []
    bad = [row["what"] for row in rows if row["what"].startswith("graph") and row["outcome"] == "FAILED"]
    if bad:
        print(f"{', '.join(bad)}: the attack is called, not replayed", flush=True)
    return "eager" if bad else "graph"


def unpack(archive: Path) -> None:
    """The images, and their decoded cache."""
    from paperlib.data import load

    ready = SCRATCH / "images.ready"
    if not ready.exists():
        with tarfile.open(archive, "r:xz") as opened:
            opened.extractall(SCRATCH / "images", filter="data")
        load(f"folder:{SCRATCH / 'images'}")
        ready.touch()


if __name__ == "__main__":
    main()
