"""Kills a run at random moments, again and again, and holds what it ends with against an undisturbed run: `make torture`.

    python tests/torture.py [--kills 100] [--seed 0] [--home FOLDER]

The run renders scenes, trains, attacks (AutoAttack as well), audits, draws, and builds the site. Each start of it ends
with SIGKILL, of all its processes, of the notebook's kernel or of the command alone: at a random time, of ten one from its
start and four from when it is at work, or within seconds of entering a stage drawn at random, so that the short ones have
their share. The next start goes on.
After each kill every file must be whole and the status true, and no training that is done may be done again; whenever a
run ends, weights, outcomes, verdicts, tables, figures and exports must be bit for bit those of the undisturbed one, and the
next begins in an empty folder. The last kill's run is brought to its end. Ends with a summary, how many kills met which
stage, and exit code 1 where something was wrong. Linux only: processes are found in /proc.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from paperlib.runs import run as runs
from paperlib.runs.files import InputError, checksum, read_json, read_tensors

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = "jacobian_norm"
PARAMETERS = {
    "epochs": 3, "train_images": 300, "validation_images": 20, "test_images": 40, "width": 8, "autoattack_images": 4,
    "sweep_images": 10, "audit_images": 20,
}  # fmt: skip
MINE = ".torture"  # in a folder that may be emptied
SAID = "said.log"  # in the same, what the last start said
LONGEST = 600  # seconds that one start may take
ENDS = {
    ".html": b"</html>",
    ".ipynb": b"}",
    ".pdf": b"%%EOF",
    ".svg": b"</svg>",
    ".png": b"IEND\xaeB`\x82",
    **dict.fromkeys([".csv", ".tex", ".bib", ".yaml"], b"\n"),
}  # of whole files
STAGES = ("data", "training", "attacks", "audit", "figures", "pages")
# Of a bar's name, and the stage that it is part of; any other is a training.
STARTS = {"audit": "audit", "test-": "attacks", "strong-": "attacks", "autoattack": "attacks", "rendering": "data"}
WHOM = ("all processes", "the kernel alone", "the command alone")
ORPHANED = 60  # seconds in which a kernel must have noticed that its command is gone


def command() -> list[str]:
    options = [part for name, value in PARAMETERS.items() for part in ("-p", f"{name}={value}")]
    return [sys.executable, "-m", "paperlib.cli", "run", NOTEBOOK, *options]


def start(home: Path) -> "subprocess.Popen[str]":
    """The command, its words in a file: nobody reads them while it runs."""
    environment = {**os.environ, "PAPERLIB_ROOT": str(home), "PYTHONPATH": str(REPOSITORY)}
    with (home / SAID).open("w", encoding="utf-8") as said:
        return subprocess.Popen(
            command(), cwd=home, env=environment, stdout=said, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )


def fresh(home: Path) -> None:
    for name in ("runs", "data"):
        shutil.rmtree(home / name, ignore_errors=True)


def descendants(process: int) -> list[int]:
    """Of a process, the nearest first."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def stage_of(home: Path, since: float) -> str:
    """One of STAGES that a run begun then is at, as far as its files tell; empty before it has begun.

    What lies between two stages that count is "figures": drawing, tables, and what is not counted.
    """
    for file in (home / "runs").glob(f"{NOTEBOOK}/*/status.json"):
        if file.stat().st_mtime > since and read_json(file)["state"] == "finished":
            return "pages"
    for file in (home / "runs").glob(f"{NOTEBOOK}/*/progress.json"):
        if file.stat().st_mtime <= since:
            continue
        about = read_json(file)
        if about.get("ended"):
            return "figures"
        stage = str(about["stage"])
        return next((name for start, name in STARTS.items() if stage.startswith(start)), "training")
    return ""


def wait_for(
    begun: "subprocess.Popen[str]", home: Path, stages: Collection[str], more: float, longest: float = LONGEST
) -> bool:
    """Until so many seconds after the run came to one of the stages, and at most for the longest: whether it is alive."""
    until, since = time.monotonic() + longest, time.time()
    while begun.poll() is None and time.monotonic() < until:
        if stages and stage_of(home, since) in stages:
            until = min(until, time.monotonic() + more)
            stages = ()
        time.sleep(0.02)
    return begun.poll() is None


def kill(begun: "subprocess.Popen[str]", whom: str) -> None:
    """Kill one of WHOM. Raises TimeoutExpired where the command outlives its kernel, or the kernel its command."""
    kernels = descendants(begun.pid)
    if whom == "the kernel alone" and not kernels:
        whom = "all processes"
    victims = {"all processes": [begun.pid, *kernels], "the kernel alone": kernels, "the command alone": [begun.pid]}[whom]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    begun.wait(timeout=LONGEST)  # after its kernel alone was killed, the command says so and ends
    for _ in range(10 * ORPHANED):
        if not (left := [kernel for kernel in kernels if lives(kernel)]):
            return
        time.sleep(0.1)
    for kernel in left:
        os.kill(kernel, signal.SIGKILL)
    raise subprocess.TimeoutExpired("the kernel", ORPHANED)


def lives(process: int) -> bool:
    """Whether any thread of it is there: what is left of one that ended is its first thread, which waits for its parent.

    That thread ends first when a process is killed, and another that is still giving back memory holds its locks.
    """
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{process}/task")) > 1
    except OSError:
        return False


def trained(home: Path) -> dict[Path, int]:
    """When the weights of each training that is done were written, in nanoseconds."""
    return {file: file.stat().st_mtime_ns for file in (home / "runs").glob("*/*/training/*/weights.safetensors")}


def faults_of(home: Path) -> list[str]:
    """Files that are not whole, and a status that is not true, in a folder that nobody is at work in."""
    found = []
    for file in (file for place in ("runs", "data") for file in (home / place).rglob("*") if file.is_file()):
        if file.name.startswith("."):  # temporary files may be left behind; nothing reads them
            continue
        try:
            if file.suffix == ".json":
                read_json(file)
            elif file.suffix == ".safetensors":
                read_tensors(file)
            elif file.suffix in ENDS:
                whole = ENDS[file.suffix]
                content = file.read_bytes() if whole == b"\n" else file.read_bytes().rstrip()
                if not content.endswith(whole):
                    found.append(f"{file}: cut short")
        except (InputError, ValueError) as error:
            found.append(str(error))
    for file in (home / "runs").glob("*/*/status.json"):
        if (state := runs.status(file.parent)["state"]) == "running":
            found.append(f"{file.parent}: says {state}, and nobody is at work")
        if state == "finished" and not all((file.parent / name).exists() for name in ("claims.json", "measures.json")):
            found.append(f"{file.parent}: says {state}, and has no verdicts")
    return found


def outcome(home: Path) -> dict[str, bytes | str]:
    """What must not depend on how often a run was killed: weights, outcomes by image, verdicts, measures, tables.

    Of tensors their checksum: safetensors writes the entries of a header in any order.
    """
    (folder,) = (file.parent for file in (home / "runs").glob(f"{NOTEBOOK}/*/status.json"))
    names = ["training/*/weights.safetensors", "evaluation/*.safetensors", "audit/*.json", "claims.json", "measures.json",
             "tables/*", "figures/*"]  # fmt: skip
    files = [file for name in names for file in sorted(folder.glob(name))]
    site = home / "runs" / "report"
    files += [file for name in ("*.tex", "*.bib", "tables/*", "robustbench/*") for file in sorted(site.glob(name))]
    files = [file for file in files if not file.name.startswith(".")]  # what a killed process had begun to write
    return {
        str(file.relative_to(home / "runs")): checksum(read_tensors(file)[0])
        if file.suffix == ".safetensors"
        else file.read_bytes()
        for file in files
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, default=None, help="a folder to work in, kept; else a temporary one")
    asked = parser.parse_args()
    home = asked.home or Path(tempfile.mkdtemp(prefix="torture-"))
    if home.exists() and any(home.iterdir()) and not (home / MINE).exists():
        parser.error(f"{home} is not empty, and runs/ and data/ in it would be removed; name another folder")
    home.mkdir(parents=True, exist_ok=True)
    (home / MINE).touch()
    if not (home / "notebooks").exists():
        (home / "notebooks").symlink_to(REPOSITORY / "notebooks")
    os.environ["PAPERLIB_ROOT"] = str(home)  # for runs.status here
    chance = random.Random(asked.seed)

    fresh(home)
    begun = time.monotonic()
    undisturbed = start(home)
    if undisturbed.wait(timeout=LONGEST):
        print((home / SAID).read_text())
        return 1
    whole, wanted = time.monotonic() - begun, outcome(home)
    print(f"undisturbed: {whole:.0f} s, {len(wanted)} files to compare", flush=True)

    fresh(home)
    kills, finished, brought_to_its_end, faults = 0, 0, True, []
    met: Counter[str] = Counter()
    while kills < asked.kills or not brought_to_its_end:
        last, before, whom, since = kills == asked.kills, trained(home), chance.choice(WHOM), time.time()
        running = start(home)
        if last:
            alive = wait_for(running, home, (), 0.0)
        elif (drawn := chance.random()) < 0.1:
            alive = wait_for(running, home, (), 0.0, chance.uniform(0.0, whole))
        elif drawn < 0.5:
            alive = wait_for(running, home, STAGES, chance.uniform(0.0, whole))
        else:
            alive = wait_for(running, home, [chance.choice(STAGES)], chance.uniform(0.0, 2.0))
        if alive:
            stage, hangs = stage_of(home, since) or "before anything", last
            try:
                kill(running, whom)
            except subprocess.TimeoutExpired as error:
                hangs, whom = True, f"{whom}, and {error.cmd} did not end"
                if running.poll() is None:
                    kill(running, "all processes")
            kills, brought_to_its_end = kills + 1, False
            met[stage] += 1
            new = faults_of(home) + [
                f"{file} was made again" for file, made in before.items() if trained(home)[file] != made
            ]
            if hangs:
                new.append(f"a start hangs: {whom}, {time.time() - since:.0f} s after it began")
            print(f"kill {kills} after {time.time() - since:.1f} s, at {stage}, {whom}: {new or 'whole'}", flush=True)
            faults += new
            if hangs:
                break
            continue
        said, brought_to_its_end = (home / SAID).read_text(), True
        if running.returncode:
            faults.append(f"after {kills} kills a start ended with code {running.returncode}: {said[-500:]}")
            fresh(home)
            continue
        finished += 1
        found = outcome(home)
        differing = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
        faults += [f"after {kills} kills {name} is not as undisturbed" for name in differing]
        print(f"finished after {kills} kills: {differing or 'as undisturbed'}", flush=True)
        fresh(home)
    passed = time.monotonic() - begun
    print(f"\n{kills} kills, {finished} runs finished, {len(faults)} faults, {passed / 60:.0f} min, seed {asked.seed}")
    print("kills at: " + ", ".join(f"{stage} {count}" for stage, count in met.most_common()))
    print("\n".join(faults))
    if asked.home is None and not faults:
        shutil.rmtree(home)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
