"""A comparison of our AutoAttack with the original: the images that stay robust, and the time of both.

    python -m benchmarks.outcomes            # attacks all missing batches, a line of JSON each, then writes the table
    python -m benchmarks.outcomes table      # writes the table of the batches that exist

Three networks for rendered scenes (plain, PGD-AT and TRADES) are attacked on 1,000 test images each, ε = 4/255 in L∞. The
original attacks images with different outcomes again with five other seeds. If one outcome differs, the image depends on
the original's seed. Batches are kept in runs/outcomes/batches.jsonl. Results: docs/results/autoattack.md.
"""

import json
import sys
import time
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib import studies, training, zoo
from paperlib.attacks import autoattack
from paperlib.data import ImageSet, as_float, load, load_test, subset
from paperlib.methods.baselines import Standard
from paperlib.runs.files import read_json, root, write_json, write_text
from paperlib.runs.run import environment

FOLDER = root() / "runs" / "outcomes"
RESULT = root() / "docs" / "results" / "autoattack"
NETWORKS = {"plain": None, "PGD-AT": "scenes/pgd_at-seed0", "TRADES": "scenes/trades-seed0"}
IMAGES, BATCH, EPS = 1000, 500, 4 / 255
SEEDS = range(1, 6)  # further seeds of the original, for images with different outcomes
Engine = Literal["own", "original"]


def network(name: str | None) -> nn.Module:
    """Load a network of the zoo, or train one plainly under the same protocol."""
    if name is not None:
        return zoo.load(name)
    settings = studies.resolve("raat_boundary", "laptop")
    images = load("scenes", train_images=6000, validation_images=300, test_images=20)
    return training.fit(
        training.build(settings, images, 0), Standard(), images, settings, FOLDER / "plain", seed=0, device="cpu"
    )  # fmt: skip


def robust(model: nn.Module, images: Tensor, labels: Tensor, engine: Engine, seed: int = 0) -> Tensor:
    """Return which images are classified correctly without and under attack: bool N."""
    torch.manual_seed(seed)
    found = autoattack(model, images, labels, eps=EPS, norm="linf", engine=engine)
    with torch.no_grad():
        right: Tensor = (model(images).argmax(1) == labels) & (model(found).argmax(1) == labels)
    return right


def batch(model: nn.Module, data: ImageSet, turn: int) -> dict[str, Any]:
    """Attack one batch by both engines in alternating order, and where they differ by the original with other seeds."""
    images, labels = as_float(data.images), data.labels
    left, seconds = {}, {}
    engines: list[Engine] = ["own", "original"]
    for engine in engines[:: 1 if turn % 2 else -1]:
        begun = time.perf_counter()
        left[engine] = robust(model, images, labels, engine)
        seconds[engine] = time.perf_counter() - begun
    differ = (left["own"] != left["original"]).nonzero().squeeze(1)
    again = {
        int(index): [bool(robust(model, images[index, None], labels[index, None], "original", seed)) for seed in SEEDS]
        for index in differ
    }
    with torch.no_grad():
        clean = int((model(images).argmax(1) == labels).sum())
    return {
        "n": len(labels), "clean": clean, "seconds": seconds,
        **{engine: left[engine].int().tolist() for engine in engines}, "again": again,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per network: images, clean and robust by each engine, differences, seconds and their ratio."""
    found = []
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        pairs = [pair for row in mine for pair in zip(row["own"], row["original"], strict=True)]
        changes = [
            any(answer != bool(row["original"][int(index)]) for answer in answers)
            for row in mine for index, answers in row["again"].items()
        ]  # fmt: skip
        own, original = (sum(row["seconds"][engine] for row in mine) for engine in ("own", "original"))
        found.append({
            "network": name, "images": len(pairs), "right": sum(row["clean"] for row in mine),
            "robust, ours": sum(a for a, _ in pairs), "robust, original": sum(b for _, b in pairs),
            "only ours fools": sum(b > a for a, b in pairs), "only the original fools": sum(a > b for a, b in pairs),
            "of these the original changes": sum(changes),
            "seconds, ours": round(own), "seconds, original": round(original), "ratio": round(own / original, 2),
        })  # fmt: skip
    return pd.DataFrame(found)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "batches.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if sys.argv[1:] != ["table"]:
        write_json(FOLDER / "environment.json", environment())
        data = subset(load_test("scenes", 2000), IMAGES, 0)
        for name, of in NETWORKS.items():
            model = network(of).eval().requires_grad_(False)
            for start in range(0, IMAGES, BATCH):
                if any(row["network"] == name and row["start"] == start for row in rows):
                    continue
                part = data[torch.arange(start, start + BATCH)]
                rows.append({"network": name, "start": start, **batch(model, part, len(rows))})
                with file.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
                print(table(rows).iloc[-1].to_dict(), flush=True)
    write_text(RESULT / "outcomes.csv", table(rows).to_csv(index=False))
    write_json(RESULT / "environment.json", read_json(FOLDER / "environment.json"))


if __name__ == "__main__":
    main()
