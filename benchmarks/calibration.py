"""The audit's error rates on planted defences and honest networks, half of which set its thresholds.

    python -m benchmarks.calibration            # audits all missing cases, a line of JSON each, then writes the tables
    python -m benchmarks.calibration tables     # writes the tables of the cases that exist

The truth of a case is the lowest known accuracy, by an adaptive attack on a stand-in with a useful gradient (`defences`) or
by the audit. A case is "masked" if PGD-20 leaves at least MASKED more. A seed splits defences by kind and honest networks
individually into two halves; only the first half set the thresholds. Cases are kept in runs/calibration/cases.jsonl and not
repeated; delete the file after a change of the probes. A whole run takes an hour of one idle core.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.defences import DEFENCES, Several
from paperlib import audit, models, zoo
from paperlib.attacks import Norm, each_image, pgd
from paperlib.audit import probes
from paperlib.audit.checks import Figure
from paperlib.data import ImageSet, as_float, balanced, load, load_test
from paperlib.evaluation.intervals import binomial_interval
from paperlib.runs.files import root, write_text

FILE = root() / "runs" / "calibration" / "cases.jsonl"
IMAGES = 120
MASKED = 0.1  # least excess of PGD-20's accuracy over the truth that counts as masked
EPS = 4 / 255  # training ε of the zoo's networks
SEED = 0
Build = Callable[[], tuple[nn.Module, nn.Module | None]]  # the network and its stand-in
Case = tuple[str, str, str, Norm, float, Build]  # kind, base, data, norm, ε

PLAIN = ["quick/standard-seed1", "scenes/study_other_0-seed0"]
ROBUST = ["quick/jacobian-seed1", "scenes/pgd_at-seed0", "quick/gradient_penalty-seed1", "scenes/trades-seed0"]
OTHERS = {"scenes4": "quick/jacobian-seed1", "scenes": "scenes/raat-seed1"}


def frozen(name: str) -> nn.Module:
    return zoo.load(name).requires_grad_(False)


def data_of(name: str) -> str:
    return str(zoo.card(name)["asked"]["data"])


# Quickly trained networks --------------------------------------------------------------------------------------------


@cache
def train_set() -> ImageSet:
    return load("scenes4", train_images=3000, test_images=40).train


def trained(
    model: nn.Module,
    *,
    steps: int = 300,
    attack: float = 0.0,
    single: bool = False,
    smoothing: float = 0.0,
    mse: bool = False,
) -> nn.Module:
    """Train with Adam on batches of 64 scenes of four classes, attacked at radius `attack` by two-step PGD or by FGSM."""
    torch.manual_seed(SEED)
    data, optimizer = train_set(), torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(data), (64,))
        images, labels = as_float(data.images[chosen]), data.labels[chosen]
        images = torch.where(each_image(torch.rand(64) < 0.5, images), images.flip(-1), images)
        if attack:
            how: dict[str, Any] = {"steps": 1, "step_size": 1.25 * attack} if single else {"steps": 2, "step_size": attack}
            images = pgd(model, images, labels, eps=attack, norm="linf", **how)
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        loss = F.mse_loss(logits, F.one_hot(labels, 4).float()) if mse else loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


class Winners(nn.Module):
    """k-winners-take-all (Xiao et al. 2020): keeps the largest tenth of a layer's values and sets the others to zero."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(flat.shape[1] // 10, dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view_as(x)


def convolutions(
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    pool: Callable[[], nn.Module] = lambda: nn.AdaptiveAvgPool2d(1),
) -> nn.Sequential:
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 2), (8, 16, 1), (16, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), norm(outputs), activation()]
    return nn.Sequential(*layers, pool(), nn.Flatten(), nn.LazyLinear(4)).train()


class Half(nn.Module):
    """A network in half precision."""

    def __init__(self, model: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(kind)

    def forward(self, x: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        answer: Tensor = self.model(x.to(weight.dtype))
        return answer.float()


# Cases ---------------------------------------------------------------------------------------------------------------


def planted() -> Iterator[Case]:
    """Yield each defence on a plain and on a robust network, and networks that training itself makes masked."""
    for number, (kind, defend) in enumerate(DEFENCES.items()):
        bases = [PLAIN[number % 2], ROBUST[number % 4]]
        for base in bases:
            data = data_of(base)
            if "another" in kind or "at random" in kind:
                base = base if base != OTHERS[data] else "quick/standard-seed1"
            other = frozen(OTHERS[data])
            yield kind, base, data, "linf", EPS, lambda defend=defend, base=base, other=other: defend(frozen(base), other)  # type: ignore[misc]
    for attack in (0.0, EPS):
        built = partial(lambda attack: (trained(convolutions(Winners), attack=attack), None), attack)
        yield "winners take all", "plain" if not attack else "PGD-AT", "scenes4", "linf", EPS, built
    for attack in (8 / 255, 16 / 255):
        built = partial(lambda attack: (trained(convolutions(), attack=attack, single=True, steps=500), None), attack)
        yield "FGSM training", f"{255 * attack:.0f}/255", "scenes4", "linf", attack, built


def honest() -> Iterator[Case]:
    def alone(model: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, None]]:
        return lambda: (model(), None)

    names = [
        *(f"scenes/{name}-seed{seed}" for name in ("cons_at", "mart", "raat_plus_plus", "two_views") for seed in (0, 1)),
        *(f"scenes/{name}-seed2" for name in ("pgd_at", "trades", "raat")),
        *(f"scenes/study_{name}-seed0" for name in ("boundary_0.1", "full", "other_0.1", "threshold_0.3")),
        *(f"quick/{name}-seed0" for name in ("daat", "pgd_at", "standard")),
        *(f"quick/{name}-seed1" for name in ("gradient_penalty", "jacobian", "standard")),
    ]  # fmt: skip
    for name in names:
        yield "as trained", name, data_of(name), "linf", EPS, alone(partial(frozen, name))
    for name, norm, eps in (
        ("scenes/pgd_at-seed1", "linf", 8 / 255), ("scenes/pgd_at-seed1", "linf", 1 / 255),
        ("scenes/trades-seed1", "l2", 0.5), ("quick/standard-seed1", "linf", 8 / 255),
        ("quick/standard-seed1", "linf", 16 / 255),
        ("scenes/study_other_0-seed0", "linf", 8 / 255), ("quick/jacobian-seed1", "linf", 8 / 255),
        ("quick/standard-seed1", "l2", 0.5), ("scenes/mart-seed2", "linf", 8 / 255),
    ):  # fmt: skip
        yield f"claimed at {eps:.3g} in {norm}", name, data_of(name), norm, eps, alone(partial(frozen, name))  # type: ignore[misc]
    for name, kind in (("scenes/raat-seed0", torch.float16), ("scenes/trades-seed0", torch.bfloat16)):
        made = alone(lambda name=name, kind=kind: Half(frozen(name), kind))  # type: ignore[misc]
        yield f"in {str(kind)[6:]}", name, "scenes", "linf", EPS, made
    averaged = alone(lambda: Several(frozen("scenes/pgd_at-seed0"), frozen("scenes/trades-seed1"), mean=True))
    yield "mean of two networks", "scenes/pgd_at and trades", "scenes", "linf", EPS, averaged
    group = partial(nn.GroupNorm, 4)
    maximum = lambda: nn.AdaptiveMaxPool2d(1)  # noqa: E731
    quick: dict[str, tuple[float, Callable[[], nn.Module]]] = {
        "GELU": (EPS, lambda: trained(convolutions(nn.GELU))),
        "SiLU, PGD-AT": (EPS, lambda: trained(convolutions(nn.SiLU), attack=EPS)),
        "tanh": (EPS, lambda: trained(convolutions(nn.Tanh))),
        "ELU, no norm": (EPS, lambda: trained(convolutions(nn.ELU, nn.Identity))),  # type: ignore[arg-type]
        "group norm, PGD-AT": (EPS, lambda: trained(convolutions(norm=group), attack=EPS)),
        "maximum pooling": (EPS, lambda: trained(convolutions(pool=maximum))),
        "hard swish": (EPS, lambda: trained(convolutions(nn.Hardswish))),
        "label smoothing": (EPS, lambda: trained(convolutions(), smoothing=0.2)),
        "label smoothing, PGD-AT": (EPS, lambda: trained(convolutions(), smoothing=0.3, attack=EPS)),
        "squared error": (EPS, lambda: trained(convolutions(), mse=True)),
        "40 steps": (EPS, lambda: trained(convolutions(), steps=40)),
        "PGD-AT at 1/255, claimed at 8/255": (8 / 255, lambda: trained(convolutions(), attack=1 / 255)),
        "perceptron": (EPS, lambda: trained(models.build("mlp", classes=4, channels=3, width=64, seed=0, size=32))),
        "FGSM training at 2/255": (2 / 255, lambda: trained(convolutions(), attack=2 / 255, single=True)),
    }
    for name, (eps, build) in quick.items():
        yield name, "quickly trained", "scenes4", "linf", eps, alone(build)


def truth(model: nn.Module, stand_in: nn.Module | None, data: ImageSet, eps: float, norm: Norm, calls: int) -> Tensor:
    """Return which images an adaptive attack fools: 40 steps on the stand-in with two losses.

    Without a stand-in, it follows averaged gradients and adds Square.
    """
    images, labels = as_float(data.images), data.labels
    model = probes.Connected(model)
    followed = stand_in or probes.Averaged(model, eps / 4, norm)
    with torch.no_grad():
        random = not torch.equal(followed(images[:2]), followed(images[:2]))
    followed = probes.Averaged(followed, 0.0, norm) if random and stand_in else followed
    fallen = probes.falls(model, images, labels, calls)
    for loss in ("margin", "ce"):
        ends = pgd(followed, images, labels, eps=eps, norm=norm, steps=40, step_size=eps / 10, loss=loss)  # type: ignore[arg-type]
        fallen |= probes.falls(model, ends, labels, calls)
    if stand_in is None:
        ends = probes.searched(model, images, labels, eps=eps, norm=norm, queries=1000, calls=calls)
        fallen |= probes.falls(model, ends, labels, calls)
    return fallen


def measured(case: Case, hidden: bool) -> dict[str, Any]:
    kind, base, place, norm, eps, build = case
    torch.manual_seed(SEED)
    model, stand_in = build()
    data = load_test(place, IMAGES)
    data = data[balanced(data, 0)]
    begun = time.process_time()
    found = audit.audit(model, data, eps=eps, norm=norm)
    seconds = time.process_time() - begun
    row: dict[str, Any] = {
        "kind": kind,
        "base": base,
        "planted": hidden,
        "eps": eps,
        "norm": norm,
        "verdict": found.verdict,
    }
    row |= {"seconds": seconds, "clean": float(found.accuracies.loc["no attack", "accuracy"])}
    if "best of all" in found.accuracies.index:
        random = found.checks.loc["answers differ between calls", "sign"]
        torch.manual_seed(SEED)
        calls = probes.CALLS if random else 1
        fallen = truth(model, stand_in, data, eps, norm, calls) if hidden else torch.zeros(0)
        pgd_20, bound = (float(found.accuracies.loc[name, "accuracy"]) for name in ("PGD-20", "best of all"))
        adaptive = 1 - audit.share(fallen) if hidden else bound
        row |= {"PGD-20": pgd_20, "bound": bound, "adaptive": adaptive, "truth": min(bound, adaptive)}
        row["figures"] = {
            name: [float(one["figure"]), float(one["low"]), int(one["n"])] for name, one in found.checks.iterrows()
        }
    return row


def everything() -> list[tuple[Case, bool]]:
    """Return all cases in a random order, so that the first cases are of all kinds."""
    cases = [*((case, True) for case in planted()), *((case, False) for case in honest())]
    return [cases[number] for number in np.random.default_rng(SEED).permutation(len(cases))]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["kind"], row["base"], row["planted"], row["eps"], row["norm"]


# Tables --------------------------------------------------------------------------------------------------------------


def sort(row: pd.Series) -> str:
    """Return the true kind of a case."""
    if row["verdict"] == "not told" and np.isnan(row["PGD-20"]):
        return "at chance"
    if row["PGD-20"] - row["truth"] >= MASKED:
        return "masked"
    return "harmless defence" if row["planted"] else "honest"


def verdict(row: dict[str, Any]) -> str:
    """Return the verdict by the current thresholds on stored figures."""
    if "figures" not in row:
        return str(row["verdict"])
    checks = audit.signs_of({name: Figure(*figure) for name, figure in row["figures"].items()})
    return audit.verdict_of(checks) if checks["sign"].any() else str(row["verdict"])


def signs(row: dict[str, Any]) -> str:
    checks = audit.signs_of({name: Figure(*figure) for name, figure in row.get("figures", {}).items()})
    return "; ".join(checks.index[checks["sign"]]) if len(checks) else ""


def set_on() -> set[Any]:
    """Return the half that set the thresholds: kinds of defences, and kind and base of honest networks."""
    cases, draw = everything(), np.random.default_rng(SEED)
    kinds = sorted({case[0] for case, hidden in cases if hidden})
    alone = sorted({case[:2] for case, hidden in cases if not hidden})
    first: set[Any] = {kinds[i] for i in draw.permutation(len(kinds))[: len(kinds) // 2]}
    return first | {alone[i] for i in draw.permutation(len(alone))[: len(alone) // 2]}


def table() -> pd.DataFrame:
    found, first = rows(), set_on()
    lines = []
    for row in found:
        half = "set on" if (row["kind"] if row["planted"] else key(row)[:2]) in first else "held out"
        figures = {name: figure[0] for name, figure in row.get("figures", {}).items()}
        rest = {name: row.get(name, np.nan) for name in ("clean", "PGD-20", "truth", "bound", "seconds")}
        own = {name: row[name] for name in ("kind", "base", "planted", "eps", "norm")}
        lines.append({"half": half, **own, **rest, "verdict": verdict(row), "signs": signs(row), **figures})
    answer = pd.DataFrame(lines)
    answer.insert(1, "truly", [sort(row) for _, row in answer.iterrows()])
    return answer


def rates(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the share of cases that the audit flags, by half and truth, with 95 % intervals for independent cases."""
    lines = []
    for (half, truly), part in cases.groupby(["half", "truly"], sort=True):
        told = int(part["verdict"].isin(["masked", "suspicious"]).sum())
        low, high = binomial_interval(told, len(part))
        masked, gap = int((part["verdict"] == "masked").sum()), (part["bound"] - part["truth"]).median()
        lines.append((half, truly, len(part), told, masked, told / len(part), low, high, gap, part["seconds"].median()))
    names = ["half", "truly", "n", "told", "masked", "share told", "low", "high", "bound above truth", "seconds"]
    return pd.DataFrame(lines, columns=names)


def main() -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    done = {key(row) for row in rows()}
    for case, hidden in [] if sys.argv[1:] == ["tables"] else everything():
        kind, base, _, norm, eps, _ = case
        if (kind, base, hidden, eps, norm) in done:
            continue
        row = measured(case, hidden)
        with FILE.open("a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {name: round(value, 3) for name, value in row.items() if isinstance(value, float)}
        print(time.strftime("%H:%M:%S"), kind, "|", base, "|", row["verdict"], numbers, flush=True)
    cases = table()
    folder = root() / "docs" / "results" / "audit"
    write_text(folder / "cases.csv", cases.to_csv(index=False, float_format="%.4g"))
    write_text(folder / "rates.csv", rates(cases).to_csv(index=False, float_format="%.3g"))
    print(rates(cases).to_string(index=False, float_format=lambda value: f"{value:.2f}"))


if __name__ == "__main__":
    main()
