"""What a campaign has done: one file a training, and the protocol that they share."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from paperlib.runs.files import InputError, read_json, write_json
from paperlib.runs.tensors import read_about, read_tensors
from paperlib.runs.values import read_value

KEPT = Path(__file__).resolve().parents[2] / "docs/results/campaign"
STATE = "state.json"


def read_plan(file: Path | None = None) -> dict[str, Any]:
    """The campaign as its YAML file says, fractions read."""
    plan: dict[str, Any] = read_value(
        yaml.safe_load((file or Path(__file__).with_name("campaign.yaml")).read_text("utf-8"))
    )
    return plan


def protocol(plan: dict[str, Any], epochs: int, train: int, test: int) -> dict[str, Any]:
    """What all trainings of a campaign have in common, and its key: SHA-256."""
    shared = {name: value for name, value in plan.items() if name not in ("trainings", "seeds")}
    shared |= {"epochs": epochs, "train_images": train, "test_images": test}
    key = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    return {**shared, "key": key}


def in_order(plan: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, description and seed of each training: all with the first seed, then all with the next."""
    for seed in plan["seeds"]:
        for training in plan["trainings"]:
            yield f"{training['name']}-seed{seed}", training, seed


def done(folder: Path) -> dict[str, dict[str, Any]]:
    """The descriptions of the finished trainings in `folder`, by name. Raises InputError naming a damaged file."""
    return {file.stem: read_about(file) for file in sorted(folder.glob("*-seed*.safetensors"))}


def check(file: Path, key: str) -> None:
    """Raise InputError where `file` is no whole result under the protocol of this key."""
    outcomes, about = read_tensors(file)
    if about.get("protocol") != key:
        raise InputError(f"{file}: its protocol is {str(about.get('protocol'))[:12]}, the campaign's is {key[:12]}")
    if about.get("name") != file.stem:
        raise InputError(f"{file}: it holds {about.get('name')!r}; a result stands under its training's name")
    lengths = {name: len(one) for name, one in outcomes.items() if name != "autoattack"}
    if not lengths or len(set(lengths.values())) != 1:
        raise InputError(f"{file}: outcomes of {lengths} images; every attack but AutoAttack sees all of them")


def read_state(folder: Path) -> dict[str, Any]:
    """The campaign's protocol as it was begun; {} where none was."""
    return read_json(folder / STATE) if (folder / STATE).exists() else {}


def write_state(folder: Path, protocol: dict[str, Any], failed: dict[str, str]) -> None:
    """The protocol, what is finished, and why others failed."""
    finished = {
        name: {"epochs": about["epochs"], "seconds": about["seconds"], "accuracy": about["accuracy"]}
        for name, about in done(folder).items()
    }
    write_json(folder / STATE, {"protocol": protocol, "done": finished, "failed": failed})
