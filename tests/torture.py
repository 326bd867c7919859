"""Kills a run at random moments, again and again, and holds what it ends with against an undisturbed run: `make torture`.

    python tests/torture.py [--kills 100] [--seed 0] [--home FOLDER]

The run renders scenes, trains, attacks (AutoAttack as well), audits, draws, and builds the site. Once it has ended, a file
of each kind is emptied, halved, and filled with noise. Then `status`, `report` and `run` must end in words, none in a
traceback.
Then, from an empty folder, SIGKILL ends each start of it at a random moment: all its processes, the notebook's kernel or
the command alone. Every other one ends while a file of some kind is being written. The next start goes on.
After each kill every file must be whole and the status true, and no training that is done may be done again. A run that
ends must have the weights, outcomes, verdicts, tables, figures and exports of the undisturbed one, bit for bit. The next
begins in an empty folder. Ends with a summary, and exit code 1 where something was wrong. Linux only: processes are found
in /proc.
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
from collections.abc import Callable
from pathlib import Path

from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json
from paperlib.runs.tensors import checksum, read_tensors

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
WRITTEN = [*ENDS, ".json", ".safetensors"]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "halved": lambda content: content[: len(content) // 2],
    "noise": lambda content: random.Random(0).randbytes(len(content)),
}
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


def wait(begun: "subprocess.Popen[str]", home: Path, seconds: float, kind: str | None) -> None:
    """Until the command ends. Raises TimeoutExpired after so many seconds, or once a file of this kind is being written."""
    until = time.monotonic() + seconds
    while kind is not None and begun.poll() is None and time.monotonic() < until:
        for place, _, names in os.walk(home / "runs"):
            if any(name.startswith(".") and f"{kind}." in name and name.endswith(".tmp") for name in names):
                raise subprocess.TimeoutExpired(place, seconds)
        time.sleep(0.0005)
    begun.wait(timeout=max(0.0, until - time.monotonic()))


def damaged(home: Path) -> list[str]:
    """The finished run's files damaged, a file of each kind in each way, and what then does not end in words."""
    kinds: dict[str, Path] = {}
    for file in sorted((home / "runs" / NOTEBOOK).rglob("*.*")):
        if file.is_file() and not file.name.startswith("."):
            kinds.setdefault(f"{file.parent.name if file.suffix == '.safetensors' else file.stem}{file.suffix}", file)
    found, environment = [], {**os.environ, "PAPERLIB_ROOT": str(home), "PYTHONPATH": str(REPOSITORY)}
    for file in kinds.values():
        whole = file.read_bytes()
        for how, damage in DAMAGES.items():
            file.write_bytes(damage(whole))
            for words in (["status"], ["report"], command()[3:]):
                done = subprocess.run([*command()[:3], *words], cwd=home, env=environment, capture_output=True, check=False)
                said = (done.stdout + done.stderr).decode(errors="replace")
                refused = done.returncode and "paperlib: " not in said
                if done.returncode not in (0, 1, 2) or refused or "Traceback (most" in done.stderr.decode(errors="replace"):
                    found.append(f"{file.name} {how}: {words[0]} ended with {done.returncode}: {said[-300:]}")
            print(f"{file.name} {how}: {'ended in words' if not found else found[-1]}", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(whole)
    return found


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
    files += [file for name in ("*.tex", "*.bib", "robustbench/*") for file in sorted(site.glob(name))]
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
    faults = damaged(home)

    fresh(home)
    kills, finished = 0, 0
    while kills < asked.kills or (home / "runs").exists():  # the last kill's run is brought to its end
        before, whom, since = trained(home), chance.choice(WHOM), time.time()
        running = start(home)
        try:
            moment, kind = chance.uniform(0.0, whole), WRITTEN[kills // 2 % len(WRITTEN)] if kills % 2 else None
            wait(running, home, LONGEST if kills >= asked.kills else moment if kind is None else 2 * whole,
                 None if kills >= asked.kills else kind)  # fmt: skip
        except subprocess.TimeoutExpired:
            try:
                kill(running, whom)
            except subprocess.TimeoutExpired as error:
                faults.append(f"{whom}, and {error.cmd} did not end")
                break
            kills += 1
            new = faults_of(home) + [f"{file} was made again" for file, at in before.items() if trained(home)[file] != at]
            print(f"kill {kills} after {time.time() - since:.1f} s, {whom}: {new or 'whole'}", flush=True)
            faults += new
            continue
        if running.returncode:
            said = (home / SAID).read_text()[-500:]
            faults.append(f"after {kills} kills a start ended with code {running.returncode}: {said}")
        else:
            finished, found = finished + 1, outcome(home)
            differing = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
            faults += [f"after {kills} kills {name} is not as undisturbed" for name in differing]
            print(f"finished after {kills} kills: {differing or 'as undisturbed'}", flush=True)
        fresh(home)
    passed = time.monotonic() - begun
    print(f"\n{kills} kills, {finished} runs finished, {len(faults)} faults, {passed / 60:.0f} min, seed {asked.seed}")
    print("\n".join(faults))
    if asked.home is None and not faults:
        shutil.rmtree(home)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
