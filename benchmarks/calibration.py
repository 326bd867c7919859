"""How often the audit errs: honest models and planted defects, on some of which its thresholds were set, others held out.

    python -m benchmarks.calibration [DATA]

DATA is a set of real images of ten classes for the held-out models, `cifar10` where it is left out. It takes hours on
two cores; what is trained and audited is kept under runs/calibration/ and not done again. Writes docs/results/audit/.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg

from paperlib import audit, models, training
from paperlib.attacks import pgd
from paperlib.audit import planted, probes
from paperlib.data import Splits, load, subset
from paperlib.evaluation.intervals import binomial_interval
from paperlib.methods import Method
from paperlib.methods.baselines import TRADES, AdversarialTraining, GradientPenalty, Standard
from paperlib.methods.ramped import ramped
from paperlib.runs.files import described, digest, read_json, root, write_json, write_text
from paperlib.runs.settings import TrainingSettings

FOLDER = root() / "runs" / "calibration"
IMAGES = 200  # test images of each audit
ACCURACIES = ("no attack", "PGD-20", "AutoAttack", "best of all")  # that the table shows
# What an audit's figures depend on; its thresholds may change, and the figures stand.
CODE = (probes, planted, audit._measure, audit._by_chunk, audit._sweep, audit.figures)
SIZES = (audit.CHUNK, audit.SOME, audit.FEW, *audit.FACTORS)


@dataclass(frozen=True)
class Case:
    """An honest model: what it is, how it is trained, and whether the thresholds were set on it."""

    held_out: bool
    data: str
    model: str
    width: int
    method: str
    epochs: int = 8

    @property
    def name(self) -> str:
        return f"{self.data.rpartition('/')[2]}-{self.model}{self.width}-{self.method}"

    @property
    def eps(self) -> float:
        return (4 if self.data == "scenes" else 8) / 255


def cases(real: str) -> list[Case]:
    """The honest models."""
    tuning = partial(Case, False, "scenes")
    return [
        *(tuning("small_cnn", 16, method) for method in ("standard", "pgd_at", "trades")),
        tuning("small_cnn", 32, "pgd_at"),
        *(tuning("resnet18", 8, method) for method in ("standard", "pgd_at")),
        *(Case(True, real, "resnet18", 16, method) for method in ("standard", "pgd_at", "trades")),
        *(Case(True, real, "cnn", 32, method) for method in ("standard", "standard_mse", "pgd_at", "gradient_penalty")),
        *(Case(True, "scenes", "vit_conv", 64, method, 16) for method in ("standard", "pgd_at")),
        Case(True, "scenes", "resnet18", 16, "standard_long", 30),  # confident, as plain training ends
    ]


def method(case: Case) -> Method:
    """How a case is trained; the attack takes five steps."""
    attack = partial(pgd, eps=case.eps, norm="linf", steps=5, step_size=case.eps / 2)
    built: dict[str, Callable[[], Any]] = {
        "standard": Standard,
        "standard_mse": partial(Standard, "mse"),
        "standard_long": Standard,
        "pgd_at": partial(AdversarialTraining, attack),
        "trades": partial(TRADES, partial(attack, loss="kl", start_deviation=0.001)),
        "gradient_penalty": partial(GradientPenalty, 1.0),
    }
    return ramped(built[case.method](), (0.1, 0.6))  # small networks learn little without


def reencoded(model: nn.Module, quality: int = 60) -> nn.Module:
    """The image as JPEG and back, outside of the graph."""

    def through(x: Tensor) -> Tensor:
        bytes_ = (255 * x.detach().clamp(0, 1)).round().to(torch.uint8).cpu()
        return torch.stack([decode_jpeg(encode_jpeg(one, quality)) for one in bytes_]).to(x) / 255

    return planted.Planted(model, before=through)


# Held-out defects are of other strengths than those that the thresholds saw, or of another make.
HELD_OUT = {
    "scaled logits": partial(planted.scaled_logits, factor=100.0),
    "quantised input": partial(planted.quantised_input, levels=16),
    "shattered gradient": partial(planted.shattered_gradient, height=0.02, frequency=700.0),
    "randomised input": partial(planted.random_input, deviation=0.03),
    "non-differentiable preprocessing": reencoded,
    "detached gradient": partial(planted.decoy_gradient, size=0.1),
}


def honest(model: nn.Module) -> nn.Module:
    return model


def settings(case: Case) -> TrainingSettings:
    adam = case.model == "vit_conv"
    return TrainingSettings(
        seeds=[0], device="cpu", devices=1, sync_batch_norm=True, venue="neurips", retrain=False,
        epochs=case.epochs, batch_size=64,
        optimizer="adamw", learning_rate=2e-3 if adam else 3e-3, momentum=0.9, weight_decay=0.05 if adam else 5e-4,
        schedule="one_cycle", milestones=[], decay=1.0, clip=1.0, ema=0.0, ema_start=0.0, bf16=False, channels_last=True,
        crop_padding=0, crop_fill="reflect", flip=True, selection="last",
    )  # fmt: skip


def trained(case: Case, data: Splits) -> nn.Module:
    model = models.build(
        case.model, classes=len(data.train.classes), channels=3, width=case.width, seed=0, size=32,
        stem_stride=2 if case.model == "resnet18" else 1,
    )  # fmt: skip
    return training.fit(model, method(case), data, settings(case), FOLDER / case.name, seed=0)


def audits(real: str) -> Iterator[dict[str, object]]:
    """Each case as it is and with each defect: what the audit finds."""
    for case in cases(real):
        data = load(case.data, train_images=6000, validation_images=100, test_images=IMAGES)
        model = trained(case, data)
        defects = HELD_OUT if case.held_out else planted.DEFECTS
        for defect, plant in {"none": honest, **defects}.items():
            file = FOLDER / case.name / f"{defect.replace(' ', '_')}.json"
            code = [inspect.getsource(one) for one in CODE]
            recipe = digest(plant(model), data.test, [defect, described(plant), case.eps, *SIZES, code])
            if not file.exists() or read_json(file)["recipe"] != recipe:
                found = audit.audit(plant(model), subset(data.test, IMAGES, 0), eps=case.eps, norm="linf")
                write_json(file, {"recipe": recipe, **audit.as_json(found)})
            stored = read_json(file)
            print(case.name, defect, stored["verdict"], flush=True)
            yield {
                "held out": case.held_out, "model": case.name, "defect": defect, "verdict": verdict(stored),
                **{row["attack"]: row["accuracy"] for row in stored["accuracies"] if row["attack"] in ACCURACIES},
                **{row["check"]: float(row["figure"]) for row in stored["checks"]},
            }  # fmt: skip


def verdict(stored: dict[str, list[dict[str, float]]]) -> str:
    """By the thresholds of today, on figures that may have been found under others."""
    if stored["verdict"] == "not told":
        return "not told"
    checks = audit.signs_of({str(row["check"]): (row["figure"], int(row["n"])) for row in stored["checks"]})
    return audit.verdict_of(checks)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """How often the audit saw something, of models it was set on and of others, by defect: shares with 95 % intervals.

    The intervals take the models as independent; defects planted on one and the same model are not quite.
    """
    rows = []
    told = table[table["verdict"] != "not told"]
    told = told.assign(kind=np.where(told["defect"] == "none", "honest", told["defect"]))
    groups = [*told.groupby(["held out", "kind"], sort=False)]
    groups += [((held, "any defect"), part[part["kind"] != "honest"]) for held, part in told.groupby("held out")]
    for (held, kind), part in groups:
        seen, masked = int((part["verdict"] != "no sign of masking").sum()), int((part["verdict"] == "masked").sum())
        low, high = binomial_interval(seen, len(part))
        rows.append(("held out" if held else "set on", kind, len(part), seen, masked, seen / len(part), low, high))
    return pd.DataFrame(rows, columns=["models", "kind", "n", "seen", "masked", "share seen", "low", "high"])


def main() -> None:
    table = pd.DataFrame(list(audits(sys.argv[1] if len(sys.argv) > 1 else "cifar10")))
    folder = root() / "docs" / "results" / "audit"
    write_text(folder / "models.csv", table.to_csv(index=False, float_format="%.4g"))
    found = rates(table)
    write_text(folder / "rates.csv", found.to_csv(index=False, float_format="%.3g"))
    print(found.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


if __name__ == "__main__":
    main()
