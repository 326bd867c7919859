"""Damaged input of every kind that is read: each must be accepted, or refused by an InputError.

    python tests/fuzz.py [--count 10000] [--seed 0]

Valid settings, presets, grids, claims files, checkpoints, caches, images, weights, run files and commands are damaged at
random. An error of another kind is a fault. So is a file outside the project's runs/ and data/, and an input that takes a
minute.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from paperlib import cli, report, studies, training
from paperlib.claims import ledger
from paperlib.data import Splits, folder, imagenet100, scenes, tiny_imagenet, toy
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import Standard
from paperlib.models import external
from paperlib.runs.files import InputError
from paperlib.runs.tensors import read_about, read_tensors, write_tensors
from paperlib.studies import grid
from paperlib.training import kept

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = [
    "null", "~", "[]", "{}", "[", "}", ": ", "- ", "8/255", "0/0", "1.2.3/4", "1/0", "-1", "1e999", "1e-3", ".nan", ".inf",
    "0x1F", "007", "1_0", "2001-13-45", "2001-01-01", "true", "yes", "''", '"', "&a ", "*a", "<<: *a",
    "!!python/object/apply:os.system [touch x]", "!!binary a", "../../x", "/etc/passwd", "folder:", "folder:..", "\x00",
    "\n", "\t", "é", "\U0001f600", "\ud800", "9" * 400, "a" * 5000, "[[[[", "{{a: b}}", "? ", "| ", "> ", "%YAML 9",
    "---\n", "#", "@", "`",
]  # fmt: skip


def damaged_text(chance: random.Random, text: str) -> str:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 1, 5, 50]))
        text = text[:start] + chance.choice([*WORDS, "", text[start:end] * 2]) + text[end:]
    return text


def damaged_bytes(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(changed) + 1), chance.choice([1, 2, 8, 100])
        kind = chance.randrange(5)
        if kind == 0:
            changed[place : place + length] = chance.randbytes(length)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = bytes(length)
        elif place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))


# Each target: a folder and chance to a function that tries one input -------------------------------------------------

Target = Callable[[random.Random, Path], object]
NOTEBOOKS = sorted(studies.known())
ORIGINAL = {name: (REPOSITORY / "notebooks" / "presets" / f"{name}.yaml").read_text(encoding="utf-8") for name in NOTEBOOKS}
LEDGERS = [file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "paperlib" / "claims").glob("*.yaml"))]
GRID = (REPOSITORY / "grids" / "toy_seeds.yaml").read_text(encoding="utf-8")


def parameters(chance: random.Random, home: Path) -> object:
    """As `-p name=value` hands them over."""
    notebook = chance.choice(NOTEBOOKS)
    presets = yaml.safe_load(ORIGINAL[notebook])
    names = list(studies.known()[notebook].model_fields)
    given = {}
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(names)
        value = str(presets[chance.choice([one for one in ("quick", "paper") if one in presets])][name])
        if chance.random() < 0.6:
            value = chance.choice([damaged_text(chance, value), chance.choice(WORDS)])
        given[damaged_text(chance, name) if chance.random() < 0.1 else name] = value
    return studies.resolve(notebook, chance.choice(["quick", "laptop", "gpu", "paper", "tiny"]), given)


def presets(chance: random.Random, home: Path) -> object:
    notebook = chance.choice(NOTEBOOKS)
    write_text(home / "notebooks" / "presets" / f"{notebook}.yaml", damaged_text(chance, ORIGINAL[notebook]))
    try:
        return studies.resolve(notebook, "quick", {})
    finally:
        write_text(home / "notebooks" / "presets" / f"{notebook}.yaml", ORIGINAL[notebook])


def grids(chance: random.Random, home: Path) -> object:
    write_text(home / "plan.yaml", damaged_text(chance, GRID))
    return grid.read(home / "plan.yaml")


def ledgers(chance: random.Random, home: Path) -> object:
    write_text(home / "claims.yaml", damaged_text(chance, chance.choice(LEDGERS)))
    return ledger.read(home / "claims.yaml")


def tensors(chance: random.Random, home: Path) -> object:
    file = home / "a.safetensors"
    write_tensors(file, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}, {"epoch": 3, "recipe": "x"})
    file.write_bytes(damaged_bytes(chance, file.read_bytes()))
    return chance.choice([read_tensors, read_about])(file)


class Stopped(Exception):
    """In the middle of a training."""


class Stopping(Standard):
    """Plain training that can be stopped after an epoch."""

    stop = False

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, torch.Tensor]:
        if Stopping.stop and step.epoch == 1:
            raise Stopped
        return super().loss(model, batch, step)


def checkpoint(chance: random.Random, home: Path) -> object:
    """A training that goes on from a damaged checkpoint."""
    place = home / "runs" / "toy_pag" / "fuzzed" / "training" / "standard-seed0"
    shutil.rmtree(place, ignore_errors=True)
    points, settings = toy.line(4, 0), studies.resolve("toy_pag", "quick", {"epochs": 2, "batch_size": 8})
    fit = partial(
        training.fit, method=Stopping(), data=Splits(points, points, points), settings=settings, folder=place, seed=0
    )
    with contextlib.redirect_stdout(io.StringIO()):
        Stopping.stop = True
        with contextlib.suppress(Stopped):
            fit(nn.Linear(2, 2))
        Stopping.stop = False
        file = place / "checkpoint.safetensors"
        file.write_bytes(damaged_bytes(chance, file.read_bytes()))
        return fit(nn.Linear(2, 2))


def cache(chance: random.Random, home: Path) -> object:
    """Rendered scenes that are read back."""
    scenes.load(10, 32, 0)
    (file,) = (home / "data" / "scenes").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damaged_bytes(chance, whole))
    try:
        return scenes.load(10, 32, 0)
    finally:
        file.write_bytes(whole)


def image(chance: random.Random, home: Path) -> object:
    kind = chance.choice(["png", "jpeg", "gif", "bmp", "webp", "tiff"])
    content = io.BytesIO()
    Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(192)).save(content, kind)
    (home / "image").write_bytes(damaged_bytes(chance, content.getvalue()))
    return folder.read_image(home / "image", chance.choice([None, 4]))


def tree(chance: random.Random, home: Path) -> object:
    """Folders and files of odd names, links that go round or outside, and what is no image."""
    place = home / "tree"
    shutil.rmtree(place, ignore_errors=True)
    names = ["a", "b", "é", " ", "...", "a\nb", "-rf", "%s", "$(touch x)", "{}", "con", "x" * 200]
    usual, classes = chance.random() < 0.5, chance.sample(names, 2)
    for split in ("train", "test" if usual else chance.choice(["test", "val", "tset"])):
        for name in classes if usual or chance.random() < 0.7 else ["a", "b"]:
            (place / split / name).mkdir(parents=True)
            if chance.random() < 0.05 and not (place / split / "link").is_symlink():
                (place / split / "link").symlink_to(chance.choice(["link", "..", "/etc", "nowhere"]))
            for one in chance.sample(names, 2 if usual else chance.randint(0, 2)):
                file = place / split / name / one
                kind = chance.randrange(12 if usual else 5)
                if kind == 0:
                    file.symlink_to(chance.choice(["..", "/etc/passwd", one, "nowhere"]))
                elif kind == 1:
                    file.write_text(chance.choice(WORDS), errors="ignore")
                else:
                    Image.new("RGB", chance.choice([(8, 8), (8, 8), (4, 9), (1, 1)])).save(file, "png")
    return folder.load(place, chance.choice([None, 4]))


class Payload:
    """What runs when it is unpickled, if anything does."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(payload()),)


def payload() -> Path:
    """What it makes."""
    return Path(tempfile.gettempdir()) / f"fuzz-payload-{os.getpid()}"


def weights(chance: random.Random, home: Path) -> object:
    held = {"a": torch.ones(2), "b": torch.zeros(1)}
    if chance.random() < 0.3:
        file = home / "w.safetensors"
        save_file(held, file)
    else:
        file = home / "w.pt"
        kind = chance.randrange(5)
        if kind == 0:
            file.write_bytes(pickle.dumps(Payload()))
            return external.read_weights(file)
        torch.save([None, {"x": Payload()}, {"state_dict": held}, {"model": held, "epoch": 3}, held][kind], file)
        if kind == 1:
            return external.read_weights(file)
    file.write_bytes(damaged_bytes(chance, file.read_bytes()))
    return external.read_weights(file)


CLAIM = {
    "id": "a", "place": "Table 1", "statement": "x", "kind": "gain", "claimed": 1.0, "measured": 2.0, "low": 1.0,
    "high": 3.0, "outcome": "reproduced", "reason": "", "scale": "", "n": 3, "seeds": 1, "spread": None,
}  # fmt: skip
MEASURE = {"method": "a", "measure": "clean", "mean": 0.5, "deviation": "nan", "low": 0.4, "high": 0.6, "seeds": 1, "n": 90}
STATUS = {"state": "finished", "notebook": "toy_pag", "preset": "quick", "started": 1.0, "seconds": 2.0, "process": 3}
SETTINGS = {"preset": "quick", "data": "scenes", "model": "cnn", "width": 8, "eps_linf": 0.1, "eps_l2": 0.5, "norm": "linf"}
RUN = {
    "status.json": STATUS, "claims.json": [CLAIM], "measures.json": [MEASURE, {**MEASURE, "measure": "autoattack"}],
    "environment.json": [{"paperlib": "0.3.0", "torch": "2.11"}], "settings.yaml": SETTINGS,
    "audit/a.json": {"verdict": "masked", "checks": [{"check": "x", "figure": 1.0, "sign": True}]},
    "tables/t.json": {"caption": "c", "heads": ["a"], "rows": [["b"]]},
    "plan.json": [{"id": "toy-robust", "decides": "no"}],
}  # fmt: skip


def annotations(chance: random.Random, home: Path) -> object:
    """The lists of Tiny-ImageNet and ImageNet-100 that say which image is of which class."""
    lines = [f"{name}.JPEG\tn{number:08}\t0\t0\t7\t7" for number, name in enumerate("ab")]
    if chance.random() < 0.5:
        place = home / "data" / "tiny_imagenet"
        shutil.rmtree(place, ignore_errors=True)
        for number, name in enumerate("ab"):
            for file in (
                place / "train" / f"n{number:08}" / "images" / "x.JPEG",
                place / "val" / "images" / f"{name}.JPEG",
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(file, "jpeg")
        write_text(place / "val" / "val_annotations.txt", damaged_text(chance, "\n".join(lines)))
        write_text(place / "words.txt", damaged_text(chance, "n00000000\tcat\nn00000001\tdog"))
        return tiny_imagenet.load()
    place = home / "data" / "imagenet100"
    if not (place / "train").exists():
        for name in imagenet100.CLASSES:
            (place / "train" / name).mkdir(parents=True)
            (place / "train" / name / "x.JPEG").write_bytes(b"x")
            (place / "val").mkdir(exist_ok=True)
            (place / "val" / f"{name}.JPEG").write_bytes(b"x")
    rows = [f"{name},{name} 1 2 3 4" for name in imagenet100.CLASSES]
    write_text(place / imagenet100.SOLUTION, damaged_text(chance, "\n".join(["ImageId,PredictionString", *rows])))
    return imagenet100.load()


def archive(chance: random.Random, home: Path) -> object:
    """Tiny-ImageNet's zip, taken for the published one, with members that would lie elsewhere, or damaged."""
    place = home / "data" / "tiny_imagenet"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "jpeg")
    file = place / f"{tiny_imagenet.NAME}.zip"
    with zipfile.ZipFile(file, "w") as packed:
        for split in ("train", "val"):
            packed.writestr(f"{tiny_imagenet.NAME}/{split}/n00000000/images/x.JPEG", picture.getvalue())
        for name in chance.sample(
            ["../x", "../../../../x", "/x", f"{home.parent}/x", "a/../../x", "C:x", "x\x00y", "."], 3
        ):
            packed.writestr(name, b"x")
        link = zipfile.ZipInfo(f"{tiny_imagenet.NAME}/link")
        link.external_attr = 0o120777 << 16  # as Unix says that it is a link
        packed.writestr(link, "/etc")
    if chance.random() < 0.7:
        file.write_bytes(damaged_bytes(chance, file.read_bytes()))
    published, tiny_imagenet.MD5 = tiny_imagenet.MD5, hashlib.md5(file.read_bytes()).hexdigest()
    try:
        return tiny_imagenet.load()
    finally:
        tiny_imagenet.MD5 = published


def command(chance: random.Random, home: Path) -> object:
    """Whole commands, which end with a message and code 0 or 2; the last value makes sure that nothing is trained."""

    def word(text: str) -> str:
        return damaged_text(chance, text).replace("\x00", "") or "x"

    write_text(home / "plan.yaml", damaged_text(chance, GRID))
    arguments = chance.choice(
        [
            ["run", word("toy_pag"), "-p", "epochs=-1"],
            ["run", "cifar_pag", "-p", f"data={word('folder:data/x')}", "-p", "epochs=-1"],
            ["run", "cifar_pag", "--preset", word("quick"), "-p", word("width=3"), "-p", "epochs=-1"],
            ["data", word("folder:data/x")],
            ["audit", "--model", word("x.py:y"), "--data", word("folder:data/x"), "--eps", word("8/255")],
            ["grid", str(home / "plan.yaml"), "--dry-run"],
            ["grid", word("plan.yaml"), "--dry-run"],
            ["status"],
        ]
    )
    if arguments[:1] == ["status"]:
        write_text(home / "runs" / "toy_pag" / "quick-01234567" / "status.json", damaged_text(chance, json.dumps(STATUS)))
    given, sys.argv = sys.argv, ["paperlib", *(part.encode("utf-8", "replace").decode() for part in arguments)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as ended:
        if ended.code in (0, None):
            return None
        if ended.code == 2 and said.getvalue().strip():
            raise InputError(said.getvalue()) from None
        raise RuntimeError(f"{arguments} ended with {ended.code}: {said.getvalue()[-200:]}") from None
    finally:
        sys.argv = given
        shutil.rmtree(home / "runs" / "toy_pag" / "quick-01234567", ignore_errors=True)
    return None


def run_folder(chance: random.Random, home: Path) -> object:
    """The site over runs one of whose files is damaged: that run may be left out, nothing else."""
    place = home / "runs" / "toy_pag" / "quick-01234567"
    for name, content in RUN.items():
        write_text(place / name, json.dumps(content))
    name = chance.choice(list(RUN))
    if chance.random() < 0.5:
        write_text(place / name, damaged_text(chance, json.dumps(RUN[name])))
    else:
        (place / name).write_bytes(damaged_bytes(chance, json.dumps(RUN[name]).encode()))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return report.build()
    finally:
        shutil.rmtree(home / "runs" / "toy_pag" / "quick-01234567")


TARGETS: list[Target] = [
    parameters, presets, grids, ledgers, tensors, checkpoint, cache, image, tree, annotations, archive, weights, command,
    run_folder,
]  # fmt: skip


LONGEST = 60.0  # seconds that one input may take
OURS = {"notebooks", "runs", "data", "plan.yaml", "claims.yaml", "a.safetensors", "image", "tree", "w.safetensors", "w.pt"}


class Hang(BaseException):
    """An input takes too long. No Exception, which what is tried would take for one of its own."""


def hangs(*_: object) -> None:
    """What the alarm does."""
    raise Hang(f"took more than {LONGEST:.0f} s")


def fuzz(count: int, seed: int, home: Path, targets: list[Target] = TARGETS) -> tuple[dict[str, list[int]], list[str]]:
    """Taken and refused by target, and the faults; `home` is filled."""
    outside = home.parent / "outside"
    outside.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "notebooks").exists():
        shutil.copytree(REPOSITORY / "notebooks", home / "notebooks")
    counts: dict[str, list[int]] = {target.__name__: [0, 0] for target in targets}
    faults = []
    before = os.environ.get("PAPERLIB_ROOT")
    os.environ["PAPERLIB_ROOT"] = str(home)
    seconds, kept.CHECKPOINT_SECONDS = kept.CHECKPOINT_SECONDS, -1  # a checkpoint after every step
    here, alarm = Path.cwd(), signal.signal(signal.SIGALRM, hangs)
    os.chdir(outside)  # what is written without a folder shows there
    try:
        for number in range(count):
            target = targets[number % len(targets)]
            chance = random.Random(f"{seed} {number}")
            try:
                signal.setitimer(signal.ITIMER_REAL, LONGEST)
                target(chance, home)
                counts[target.__name__][0] += 1
            except InputError:
                counts[target.__name__][1] += 1
            except (Exception, Hang) as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__}: {str(error)[:200]!r} at {where.filename}:{where.lineno}"
                faults.append(f"{target.__name__} {number}: {what}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            strays = [*outside.iterdir(), *(one for one in home.parent.iterdir() if one not in (home, outside))]
            strays += [one for one in home.iterdir() if one.name not in OURS]
            if strays:
                faults.append(f"{target.__name__} {number}: wrote {strays}")
                break
            if payload().exists():
                faults.append(f"{target.__name__} {number}: ran code from a file")
                payload().rmdir()
    finally:
        os.chdir(here)
        signal.signal(signal.SIGALRM, alarm)
        kept.CHECKPOINT_SECONDS = seconds
        if before is None:
            del os.environ["PAPERLIB_ROOT"]
        else:
            os.environ["PAPERLIB_ROOT"] = before
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun = time.monotonic()
    warnings.simplefilter("ignore")  # decoders and unpicklers warn of what is broken
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        counts, faults = fuzz(asked.count, asked.seed, Path(place) / "home")
    print("\n".join(faults))
    for name, (taken, refused) in counts.items():
        print(f"{name:12} {taken:6} taken {refused:6} refused")
    print(f"{asked.count} inputs, {len(faults)} faults, {time.monotonic() - begun:.0f} s, seed {asked.seed}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
