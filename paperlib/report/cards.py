"""Cards of the zoo: a run's networks, filed with what is known of them."""

from pathlib import Path
from typing import Any

from paperlib import zoo
from paperlib.evaluation.intervals import binomial_interval
from paperlib.runs.files import InputError, read_json, read_tensors, write_json, write_tensors
from paperlib.runs.run import method_of


def add(run: Path) -> list[str]:
    """File every network of a run whose training the zoo can answer, with its accuracies: the names, in order.

    A network of the same name is replaced. Raises InputError for a folder without trainings.
    """
    if not (histories := sorted(run.glob("training/*/history.json"))):
        raise InputError(
            f"{run}: no trainings there; name the folder of a finished run, such as runs/<notebook>/<preset>-…"
        )
    filed = []
    for file in histories:
        known, training = read_json(file), file.parent.name
        if known.get("asked") is None or "zoo" in known:
            continue
        name = f"{known['asked']['data']}/{training}"
        tensors, _ = read_tensors(file.with_name("weights.safetensors"))
        write_tensors(zoo.weights(name), tensors, {"name": name})
        kept = {key: known[key] for key in ("asked", "seconds", "environment", "epochs")}
        card = {"name": name, "method": method_of(training), **kept, "accuracies": _accuracies(run, training)}
        write_json(zoo.folder() / f"{name}{zoo.CARD}", card)
        filed.append(name)
    return filed


def _accuracies(run: Path, training: str) -> dict[str, dict[str, Any]]:
    """By measure, of all evaluations of the run: images, accuracy and its 95 % interval in [0,1]."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(run.glob(f"evaluation/*-{training}.safetensors"), reverse=True):  # "test" before "strong"
        if file.name.startswith("sweep"):
            continue
        for measure, right in read_tensors(file)[0].items():
            hits, count = int(right.sum()), len(right)
            low, high = binomial_interval(hits, count)
            if count > found.get(measure, {"n": 0})["n"]:
                found[measure] = {"n": count, "value": hits / count, "low": low, "high": high}
    return found
