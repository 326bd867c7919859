"""Take what came back from a rented GPU into docs/results/campaign: `python -m benchmarks.gpu.collect FOLDER`."""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.gpu import records
from paperlib.runs.files import InputError, read_json, write_atomically
from paperlib.runs.tensors import read_tensors


def collect(source: Path, kept: Path = records.KEPT) -> list[str]:
    """Copy the results in `source`, a folder with results.tar, into `kept`: their names.

    All is checked before anything is written. Raises InputError where a file is damaged, or belongs to another protocol
    than what is kept already, and where a training is kept with other outcomes.
    """
    archive = source / "results.tar"
    with tempfile.TemporaryDirectory() as place:
        try:
            with tarfile.open(archive) as opened:
                opened.extractall(place, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{archive}: not an archive of results ({error}); give the folder that holds it") from error
        new = Path(place)
        campaign = new / "campaign"
        came = records.read_state(campaign)
        key = (records.read_state(kept) or came or {"protocol": {"key": ""}})["protocol"]["key"]
        taken: list[Path] = []
        for file in sorted(campaign.glob("*-seed*.safetensors")):
            records.check(file, key)
            other = kept / file.name
            if not other.exists() or _goes_on(other, file):
                taken.append(file)
        for file in (*taken, *(new / name for name in ("checks.json", "throughput.json"))):
            if file.exists():
                target = kept / _target(file, kept)
                write_atomically(target, lambda temporary, file=file: shutil.copy(file, temporary))
        if came:
            old = records.read_state(kept).get("failed", {})
            failed = {
                name: why for name, why in {**old, **came["failed"]}.items() if not (kept / f"{name}.safetensors").exists()
            }
            records.write_state(kept, came["protocol"], failed)
    return [file.stem for file in taken]


def _target(file: Path, kept: Path) -> str:
    """A new name for checks and speeds of a later day: those of the former stay."""
    if file.suffix != ".json":
        return file.name
    count = 1
    while (kept / f"{file.stem}-{count}.json").exists():
        if read_json(kept / f"{file.stem}-{count}.json") == read_json(file):
            break
        count += 1
    return f"{file.stem}-{count}.json"


def _goes_on(old: Path, new: Path) -> bool:
    """Whether `new` has all that `old` has and more images under AutoAttack. Raises InputError where they differ."""
    before, after = (read_tensors(file)[0] for file in (old, new))
    for name, outcome in before.items():
        both = min(len(outcome), len(after.get(name, ())))
        if name not in after or not outcome[:both].equal(after[name][:both]):
            raise InputError(f"{new.name}: {name} differs from what is kept in {old}; move one of them away")
    return len(after.get("autoattack", ())) > len(before.get("autoattack", ()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    names = collect(Path(sys.argv[1]))
    print(f"{records.KEPT}: {', '.join(names) or 'no new training'}")
