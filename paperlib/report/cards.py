"""Addition of a run's networks to the zoo, each with a card of its recipe and accuracies."""

from pathlib import Path
from typing import Any

from paperlib import zoo
from paperlib.evaluation.intervals import binomial_interval
from paperlib.runs.files import InputError, read_json, write_json
from paperlib.runs.tensors import read_tensors, write_tensors


def add(run: Path, replace: bool = False) -> list[str]:
    """Add a run's networks with their accuracies to the zoo. Return their names in order.

    Networks that came from the zoo, or that it cannot identify, are skipped. A name begins with the data set, or with
    "quick" for the preset quick. Raises InputError for a folder without trainings. Also raises it, unless `replace` is
    set, if the zoo has a network of the same name and another recipe. In both cases nothing is added.
    """
    if not (histories := sorted(run.glob("training/*/history.json"))):
        raise InputError(
            f"{run}: no trainings there; should be the folder of a finished run, such as runs/<notebook>/<preset>-…"
        )
    found = {file: read_json(file) for file in histories}
    found = {file: known for file, known in found.items() if known.get("asked") is not None and "zoo" not in known}
    quick = run.name.startswith("quick-")
    names = {file: f"{'quick' if quick else known['asked']['data']}/{file.parent.name}" for file, known in found.items()}
    there = set(zoo.names())
    for file, name in names.items():
        if not replace and name in there and zoo.card(name)["asked"] != found[file]["asked"]:
            raise InputError(f"{name} is in the zoo, by another recipe; --replace replaces it by this run's")
    for file, known in found.items():
        name, training = names[file], file.parent.name
        tensors, _ = read_tensors(file.with_name("weights.safetensors"))
        write_tensors(zoo.weights(name), tensors, {"name": name})
        kept = {key: known[key] for key in ("asked", "seconds", "environment", "epochs")}
        card = {"name": name, "method": training.rpartition("-seed")[0], **kept, "accuracies": _accuracies(run, training)}
        write_json(zoo.folder() / f"{name}{zoo.CARD}", card)
    return list(names.values())


def _accuracies(run: Path, training: str) -> dict[str, dict[str, Any]]:
    """Return, by measure: number of images, accuracy and its 95 % interval in [0,1]; the evaluation with most images."""
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
