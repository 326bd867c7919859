"""Is the robustness real? Signs that gradients are masked, on any classifier of images in [0,1].

Each check has a figure with the lower end of its 95 % interval, which is a sign beyond a threshold, and a source. Some
signs are evidence that attacks fail where adversarial images exist: with one of them the verdict is "masked". The others
say that gradients are not to be trusted here: "suspicious". What is found is attacked through: gradients averaged over
noise, passed through what stops them, or replaced by those of a copy, and Square. The lowest accuracy of all is the bound.
The thresholds were set on honest models and planted defences (benchmarks/calibration.py, docs/results/audit.md). No sign
is no proof: an attack made for the defence (Tramèr et al. 2020) may still break it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.attacks import Logarithm, Norm, evaluating, masking_flags, pgd, quick
from paperlib.audit import probes
from paperlib.audit.probes import Found
from paperlib.data import ImageSet, as_float, balanced, chunk_size
from paperlib.evaluation import at_chance
from paperlib.evaluation.intervals import FEWEST, binomial_interval, mean_interval
from paperlib.models.trained import Trained, first_models
from paperlib.runs import distributed
from paperlib.runs.files import InputError, read_json, write_json
from paperlib.runs.progress import Bar
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings
from paperlib.runs.tensors import digest

Verdict = Literal["no sign of masking", "suspicious", "masked", "not told"]
MEANINGS: dict[Verdict, str] = {
    "no sign of masking": "No check found a sign that gradients are masked. That is no proof of robustness, but nothing "
    "speaks against the accuracy under the best of all attacks.",
    "suspicious": "Gradients are not to be trusted on this model as they are, and accuracy under attacks that follow them "
    "may be too high. But no attack here surely found images that such attacks miss.",
    "masked": "Attacks that follow the gradient fail where adversarial images exist: accuracy under them is no measure of "
    "this model's robustness.",
    "not told": f"Without attack the model's accuracy is close to chance, so its robustness tells nothing; or there are "
    f"fewer than {FEWEST} images. Perhaps it should normalise its images itself, or has the classes in another order.",
}
RIGHT = 30  # images that a model close to chance must have right to be attacked
CHUNK = 60  # images at a time, which devices share: enough to keep a small network busy; AutoAttack's are one device's
SOME, FEW = 120, 40  # images of the probes that cost hundreds of passes, and of AutoAttack
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of ε, in the sweep


class Check(NamedTuple):
    """When a figure is a sign, and what it says."""

    threshold: float
    evidence: bool  # that attacks fail where adversarial images exist
    meaning: str
    source: str
    next: str  # what to try
    beside: bool = False  # a sign only where there is another one


CHECKS = {
    "answers differ between calls": Check(
        probes.RANDOM, False, "the model answers at random: a gradient is of one answer only", "Athalye et al. 2018",
        "average each gradient over many calls (expectation over transformation)",
    ),
    "answers depend on the other images": Check(
        0.01, False, "an image's answer changes with the images beside it: no image has an accuracy of its own",
        "Ioffe & Szegedy 2015",
        "put batch norm into evaluation mode; trace or export the network in that mode",
    ),
    "outputs are probabilities": Check(
        0.5, False, "attacks take outputs as logits, and find little on probabilities; here their logarithm was attacked",
        "Carlini & Wagner 2017",
        "return logits, and evaluate anew",
    ),
    "outputs that are no numbers": Check(
        0.0, False, "attacked images end at outputs that are NaN, and count as not fooled", "Carlini et al. 2019",
        "find the division or the logarithm that fails there",
    ),
    "images without gradient": Check(
        0.03, False, "gradient attacks are blind where the gradient is zero or no number", "Athalye et al. 2018",
        "put something smooth in the backward pass of what has no derivative (BPDA)",
    ),
    "saturated outputs": Check(
        0.5, False, "cross-entropy is zero in single precision, and so is its gradient", "Carlini & Wagner 2017",
        "attack the margin or the DLR loss, which no scaling of the outputs changes",
    ),
    "gradient not of the function": Check(
        0.2, False, "along the gradient the outputs do not change as it says", "Athalye et al. 2018",
        "look for detached, rounded or random parts; attack a differentiable copy",
    ),
    "gradient unlike finite differences": Check(
        0.1, False, "in random directions the outputs do not change as the gradient says", "Athalye et al. 2018",
        "look for a backward pass of another function; attack with the true gradient or with queries",
    ),
    "gradient turns within the ball": Check(
        0.5, False, "the gradient at the image says little about the ball around it", "Moosavi-Dezfooli et al. 2019",
        "average gradients over noise; more and smaller steps, restarts", beside=True,
    ),
    "gradient turns along the path": Check(
        0.5, False, "from one step of the attack to the next the gradient points elsewhere", "Moosavi-Dezfooli et al. 2019",
        "average gradients over noise; more and smaller steps, restarts", beside=True,
    ),
    "doubling the steps gains": Check(
        0.03, False, "50 steps have not converged", "Carlini et al. 2019",
        "more steps until nothing changes, and report those",
    ),
    "fooled on the way, not at the end": Check(
        0.05, False, "PGD found adversarial images and left them again", "Carlini et al. 2019",
        "keep the best iterate, not the last",
    ),
    "loss still rises at the end": Check(
        0.05, False, "100 steps have not converged", "Carlini et al. 2019",
        "more steps until nothing changes, and report those",
    ),
    "margin loss gains over cross-entropy": Check(
        0.08, False, "cross-entropy is the wrong loss to attack this model with", "Carlini & Wagner 2017",
        "report the margin loss or AutoAttack",
    ),
    "AutoAttack's flags": Check(  # how many, without Square's, which is counted by image below
        0.0, False, "AutoAttack itself warns of this model", "Croce & Hein 2020",
        "read its warnings below",
    ),
    "accuracy rises with eps": Check(
        0.02, False, "a larger ball holds the smaller one: attacks fail in it", "Carlini et al. 2019",
        "look at the loss against eps; tune the step size",
    ),
    "FGSM fools, PGD does not": Check(
        0.03, True, "many small steps should find whatever one large step finds", "Athalye et al. 2018",
        "look at the loss along PGD's path; tune its step size",
    ),
    "only attacks without gradient fool": Check(
        0.03, True, "noise, Square or transferred images find what gradients miss", "Athalye et al. 2018",
        "report the best of all attacks; get around what hides the gradient (BPDA)",
    ),
    "only averaged gradients fool": Check(
        0.05, True, "averaged over noise, gradients find what single ones miss", "Athalye et al. 2018",
        "average each gradient over many draws, and report that",
    ),
    "AutoAttack, short, misses what others find": Check(
        0.05, False, "a strong evaluation, if shortened, does worse than simpler attacks", "Carlini et al. 2019",
        "run AutoAttack whole; report the best of all attacks",
    ),
    "PGD-20 overstates the best attack": Check(
        0.06, True, "PGD-20, on cross-entropy and on the margin, leaves what other attacks fool", "Croce & Hein 2020",
        "report AutoAttack, or the best of all attacks",
    ),
    "accuracy above chance at ℓ∞ 0.5": Check(
        0.05, True, "any image can become mid-grey there: attacks fail, the model does not hold", "Carlini et al. 2019",
        "an attack without gradients, and one made for the defence",
    ),
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Audit:
    """The verdict and what it stands on."""

    verdict: Verdict
    # index check; figure, low (of its interval), threshold, n (images), sign, evidence, meaning, source, next, beside
    checks: pd.DataFrame
    accuracies: pd.DataFrame  # index attack; accuracy with its 95 % interval low … high, n
    curve: pd.DataFrame  # eps and accuracy, of PGD-20 on cross-entropy
    flags: tuple[str, ...]  # AutoAttack's
    eps: float
    norm: Norm

    @property
    def meaning(self) -> str:
        """What the verdict says, in a sentence or two."""
        return MEANINGS[self.verdict]

    @property
    def bound(self) -> str:
        """The accuracy that is left, in a sentence; nothing of a model that was not attacked."""
        if "best of all" not in self.accuracies.index:
            return ""
        row = self.accuracies.loc["best of all"]
        return (
            f"Robust accuracy is at most {row['accuracy']:.1%} (interval {row['low']:.1%} to {row['high']:.1%}) on these "
            f"{row['n']:.0f} images: what the best of all attacks leaves."
        )

    def signs(self) -> pd.DataFrame:
        """The checks whose figure is a sign."""
        return self.checks[self.checks["sign"]]

    def __str__(self) -> str:
        named = [name for name in ("no attack", "PGD-20", "best of all") if name in self.accuracies.index]
        rows = ((name, self.accuracies.loc[name]) for name in named)
        parts = [
            f"{name} {row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%}, n = {row['n']:.0f})"
            for name, row in rows
        ]
        bound = [f"  {self.bound}"] if self.bound else []
        lines = [f"{self.verdict}: {self.meaning}", *bound, f"  {', '.join(parts)}"]
        for name, row in self.signs().iterrows():
            lines += [
                f"  {name}: {row['figure']:.3g} (from {row['low']:.3g}), above {row['threshold']:g}: {row['meaning']}"
            ]
            lines += [f"    next: {row['next']}"]
        return "\n".join([*lines, *(f"  AutoAttack says: {flag}" for flag in self.flags)])

    __repr__ = __str__  # what a notebook shows


def audit(
    model: nn.Module, data: ImageSet, *, eps: float, norm: Norm, transfer_from: nn.Module | None = None, seed: int = 0
) -> Audit:
    """Every check of CHECKS on a classifier that maps images N×C×H×W in [0,1] to logits N×K.

    `eps` is the radius, in units of [0,1], within which robustness is claimed. Adversarial images of `transfer_from`,
    another model, are tried on this one; without it, where the gradient is not to be trusted, those of a small network that
    learns this model's answers. The costliest probes take the first SOME or FEW images in an order of which every beginning
    is class-balanced. A figure is a sign where its interval is above the threshold. Where most of CALLS answers decide, the
    model answers at random. A network close to chance is "not told" unless RIGHT images are right and there is a sign.

    Raises InputError where the model does not answer as a classifier of these images, or eps is not positive.
    """
    check_radius(eps, norm)
    if transfer_from is model:
        raise InputError("transfer_from is the audited model itself; it should be another one, or None")
    found, curve, flags = _measure(probes.Connected(model), data, eps, norm, transfer_from, seed)
    accuracies = _accuracies(found)
    if "white" not in found:  # not attacked
        rows = {
            name: {"figure": math.nan, "low": math.nan, "n": 0, "sign": False, **check._asdict()}
            for name, check in CHECKS.items()
        }
        checks = pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")
        return Audit("not told", checks, accuracies, curve, flags, eps, norm)
    checks = signs_of(figures(found, curve, flags, len(data.classes)))
    told = checks["sign"].any() or not at_chance(accuracies.loc["no attack"].to_dict(), len(data.classes))
    return Audit(verdict_of(checks) if told else "not told", checks, accuracies, curve, flags, eps, norm)


def check_radius(eps: float, norm: Norm) -> None:
    """Raise InputError where `eps` is no radius in units of [0,1]."""
    if not 0 < eps <= (1 if norm == "linf" else math.inf):
        raise InputError(f"eps = {eps:g}: should be a radius above 0 in units of [0,1], say 8/255")


# What is measured --------------------------------------------------------------------------------------------------


def _measure(
    whole: probes.Connected, data: ImageSet, eps: float, norm: Norm, transfer_from: nn.Module | None, seed: int
) -> tuple[Found, pd.DataFrame, tuple[str, ...]]:
    """What the probes find, by name, of all images or the first SOME or FEW; accuracy against eps; AutoAttack's flags.

    A network at chance is not attacked: only its answers are found.
    """
    device = next((one.device for one in (*whole.parameters(), *whole.buffers())), torch.device("cpu"))
    data = data[balanced(data, seed)]
    some, by_chunk = data[:SOME], partial(_by_chunk, device=device, seed=seed)
    if transfer_from is not None:  # what does not fit is refused before anything takes long
        with evaluating(transfer_from.to(device)), torch.random.fork_rng():
            by_chunk(data[:1], partial(probes.answers, probes.Connected(transfer_from), classes=len(data.classes)))
    with (
        _as_it_came(whole),
        evaluating(whole),
        torch.random.fork_rng(),
        masking_flags() as flags,
        Bar(6, "audit", "part") as progress,
    ):
        found = by_chunk(data, partial(probes.answers, whole, classes=len(data.classes)))
        clean, one = _accuracies(found).loc["no attack"].to_dict(), bool((found["answer"] == found["answer"][0]).all())
        if at_chance(clean, len(data.classes)) and (one or int((~found["no attack"]).sum()) < RIGHT):
            return found, pd.DataFrame({"eps": [0.0], "accuracy": [clean["accuracy"]]}), ()
        if share(found["probabilities"]) > CHECKS["outputs are probabilities"].threshold:
            model: nn.Module = Logarithm(whole)
        else:
            model = quick(whole.model, as_float(data.images[:FEWEST]).to(device), probes.Connected)
        random = bool((found["difference"] > probes.RANDOM).any())
        settings: dict[str, Any] = {"eps": eps, "norm": norm, "calls": probes.CALLS if random else 1}
        found |= by_chunk(data, partial(probes.gradients, model, eps=eps, norm=norm))
        progress.update()
        found |= by_chunk(data, partial(probes.attacks, model, **settings))
        progress.update()
        found |= by_chunk(some, partial(probes.path, model, **settings))
        progress.update()
        found["white"] = _any(found, "FGSM", "margin", "PGD-100")
        blind, source = random or _blind(found), transfer_from
        if blind and source is None:
            torch.manual_seed(seed)
            source = probes.substitute(model, data, device, seed, eps, norm)
        around = partial(probes.around, model, source=source, blind=blind, **settings)
        found |= by_chunk(some, around, found["white"])
        progress.update()
        found |= by_chunk(some, partial(probes.anything, model, calls=settings["calls"]))
        curve = _sweep(model, some, by_chunk, settings, found)
        progress.update()
        found |= by_chunk(data[:FEW], partial(probes.standard, model, **settings))
        progress.update()
    return found, curve, tuple(flag.partition(". ")[0] for flag in distributed.united(flags))


@contextmanager
def _as_it_came(model: nn.Module) -> Iterator[None]:
    """Restore the buffers afterwards: some networks change their running statistics in evaluation mode, too."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])


def _by_chunk(data: ImageSet, probe: Callable[..., Found], *more: Tensor, device: torch.device, seed: int) -> Found:
    """What `probe(images, labels, *more)` finds of all images: a chunk at a time, each with its own random numbers."""
    together = chunk_size(data.images, CHUNK)

    def of_chunk(start: int) -> Found:
        torch.manual_seed(seed * 1_000_003 + start)
        images = as_float(data.images[start : start + together]).to(device)
        labels, *others = (values[start : start + together].to(device) for values in (data.labels, *more))
        return probe(images, labels, *others)

    parts = distributed.shared(range(0, len(data), together), of_chunk)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _blind(found: Found) -> bool:
    """Whether the gradient is so unlike the function that attacks without it get more time."""
    names = {"images without gradient": "flat", "gradient not of the function": "wrong slope"}
    names |= {"gradient unlike finite differences": "unlike"}
    return any(float(found[own].float().mean()) > CHECKS[name].threshold for name, own in names.items())


def _sweep(
    model: nn.Module, data: ImageSet, by_chunk: Callable[..., Found], settings: Mapping[str, Any], found: Found
) -> pd.DataFrame:
    """Accuracy against eps under PGD-20 on cross-entropy; at zero and at eps as it was found."""

    def attacked(images: Tensor, labels: Tensor, radius: float) -> Found:
        attack = partial(
            pgd, eps=radius, norm=settings["norm"], steps=20, step_size=radius / 8, best=settings["calls"] == 1
        )
        return {"fooled": probes.falls(model, attack(model, images, labels), labels, settings["calls"])}

    known = {0.0: found["no attack"][: len(data)], 1.0: found["PGD-20"][: len(data)]}
    fallen = {
        factor: known[factor]
        if factor in known
        else by_chunk(data, partial(attacked, radius=factor * settings["eps"]))["fooled"]
        for factor in (0.0, *FACTORS)
    }
    return pd.DataFrame(
        {"eps": [factor * settings["eps"] for factor in fallen], "accuracy": [1 - share(one) for one in fallen.values()]}
    )


def _any(found: Found, *names: str) -> Tensor:
    """Whether an image falls to any of the attacks, over the images that all of them tried: bool N."""
    count = min(len(found[name]) for name in names)
    return torch.stack([found[name][:count] for name in names]).any(0)


def share(members: Tensor) -> float:
    """The share of images that are members."""
    return int(members.sum()) / len(members)


# What it says ------------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A check's figure, the lower end of its 95 % interval, and of how many images it is."""

    figure: float
    low: float
    n: int


def _of_all(members: Tensor | int, count: int | None = None) -> Figure:
    """The share of `count` images that are members."""
    hits, count = int(members.sum()) if isinstance(members, Tensor) else members, count or len(members)  # type: ignore[arg-type]
    return Figure(hits / count, binomial_interval(hits, count)[0], count)


def mean_figure(values: Tensor) -> Figure:
    """The mean of the images' values that are numbers."""
    numbers = values[~values.isnan()].double().cpu().numpy()
    if not len(numbers):
        return Figure(math.nan, math.nan, 0)
    mean, low, _ = mean_interval(numbers)
    return Figure(mean, low, len(numbers))


def _certain(value: float, count: int) -> Figure:
    """A figure that is not of a sample."""
    return Figure(value, value, count)


def figures(found: Found, curve: pd.DataFrame, flags: Sequence[str], classes: int) -> dict[str, Figure]:
    """Each check's figure. What attacks find and others miss is a share of the images that are right without attack."""
    count, some, few = len(found["no attack"]), len(found["white"]), len(found["AutoAttack"])
    right = ~found["no attack"]

    def missed(by_attack: Tensor) -> Figure:
        """Of the right ones among the first images, as many as were tried, those that an attack alone fools."""
        own = right[: len(by_attack)]
        return _of_all(by_attack & own, int(own.sum())) if own.any() else Figure(math.nan, math.nan, 0)

    unseen = _any(found, "transfer", "Square") & ~found["white"]
    lucky = found["noise"] & ~found["margin"]
    best = _best(found)
    rise = (found["loss"] - found["loss, 10 steps before"]) / found["loss"].mean().clamp_min(1e-12)
    others = 0.0 if (found["difference"] > probes.RANDOM).any() else float(found["others"].mean())
    climbs = curve["accuracy"].diff().max() * some
    return {
        "answers differ between calls": _certain(float(found["difference"].max()), count),
        "answers depend on the other images": _certain(others, count),
        "outputs are probabilities": _of_all(found["probabilities"]),
        "outputs that are no numbers": _of_all(found["undefined"]),
        "images without gradient": _of_all(found["flat"]),
        "saturated outputs": _of_all(found["saturated"]),
        "gradient not of the function": mean_figure(found["wrong slope"]),
        "gradient unlike finite differences": mean_figure(found["unlike"]),
        "gradient turns within the ball": mean_figure(found["turned"]),
        "gradient turns along the path": mean_figure(found["roughness"]),
        "doubling the steps gains": missed(found["PGD-100"] & ~found["PGD-50"]),
        "fooled on the way, not at the end": missed(found["lost"]),
        "loss still rises at the end": mean_figure(rise),
        "margin loss gains over cross-entropy": missed(found["margin"] & ~found["PGD-20"]),
        "AutoAttack's flags": _certain(float(sum(not flag.startswith("Square") for flag in flags)), few),
        "accuracy rises with eps": _of_all(max(0, round(climbs)), some),
        "FGSM fools, PGD does not": missed(found["FGSM"] & ~found["margin"]),
        "only attacks without gradient fool": max(missed(unseen), missed(lucky), key=lambda one: one.low),
        "only averaged gradients fool": missed(found["averaged"] & ~found["white"]),
        "AutoAttack, short, misses what others find": missed(best[:few] & ~found["AutoAttack"]),
        "PGD-20 overstates the best attack": missed(best & ~found["margin"][:some]),
        "accuracy above chance at ℓ∞ 0.5": _above_chance(found["right"], classes),
    }


def _above_chance(right: Tensor, classes: int) -> Figure:
    figure, low, count = _of_all(right)
    return Figure(max(0.0, figure - 1 / classes), max(0.0, low - 1 / classes), count)


def signs_of(figures: Mapping[str, Figure]) -> pd.DataFrame:
    """Each check with its figure and whether it is a sign: its interval is above the threshold.

    A turning gradient is one only beside another: it turns on honest networks, too, in balls larger than those of their
    training.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, figure in figures.items():
        check = CHECKS[name]
        rows[name] = {**figure._asdict(), "sign": round(figure.low, 9) > check.threshold, **check._asdict()}
    others = any(row["sign"] for row in rows.values() if not row["beside"])
    for row in rows.values():
        row["sign"] = bool(row["sign"] and (others or not row["beside"]))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")


def verdict_of(checks: pd.DataFrame) -> Verdict:
    """What the signs come to, of a model that is not at chance.

    Fewer than FEWEST images without a sign tell nothing. Where answers depend on the other images it is "suspicious": an
    image that an attack fools is right in another batch, which looks like masking.
    """
    if not checks["sign"].any():
        return "no sign of masking" if checks["n"].max() >= FEWEST else "not told"
    if checks["sign"].get("answers depend on the other images", False):
        return "suspicious"
    return "masked" if checks.loc[checks["sign"], "evidence"].any() else "suspicious"


def _best(found: Found) -> Tensor:
    """Who falls to any attack at all, of the first SOME images: bool."""
    best = _any(found, "white", "transfer", "Square", "averaged", "through")
    few = len(found["AutoAttack"])
    return torch.cat([best[:few] | found["AutoAttack"], best[few:]])


def _accuracies(found: Found) -> pd.DataFrame:
    """Accuracy under each attack that was run on its own, and under the best of all, image by image.

    All are of the images that the best of all is of. AutoAttack is of fewer, on which PGD-20 stands once more.
    """
    if "white" not in found:  # not attacked
        fooled = {"no attack": found["no attack"]}
    else:
        best, few = _best(found), len(found["AutoAttack"])
        names = ("no attack", "noise", "FGSM", "PGD-20", "PGD-100")
        fooled = {name: found[name][: len(best)] for name in names} | {"best of all": best}
        fooled |= {f"PGD-20, n = {few}": found["PGD-20"][:few]} if few < len(best) else {}
        fooled["AutoAttack"] = found["AutoAttack"]
    table = {}
    for name, wrong in fooled.items():
        right, count = int((~wrong).sum()), len(wrong)
        low, high = binomial_interval(right, count)
        table[name] = {"accuracy": right / count, "low": low, "high": high, "n": count}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("attack")


# In a study --------------------------------------------------------------------------------------------------------


def audit_each(
    run: Run[Settings],
    trained: Trained,
    data: ImageSet,
    *,
    eps: float,
    norm: Norm,
    transfer_from: nn.Module,
) -> pd.DataFrame:
    """The audit of each method's first seed: verdicts and figures by check and method; a ! marks a sign of masking."""
    columns = {}
    for method, model in first_models(trained).items():
        file = run.folder / "audit" / f"{method}.json"
        model.to(run.device)
        recipe = digest(model, data, [eps, norm, digest(transfer_from, data, None), *map(list, CHECKS.values())])
        if distributed.agreed(not file.exists() or read_json(file)["recipe"] != recipe):
            found = audit(model, data, eps=eps, norm=norm, transfer_from=transfer_from)
            if distributed.rank() == 0:
                write_json(file, {"recipe": recipe, **as_json(found)})
            distributed.agreed(None)
        stored = read_json(file)
        figures = {row["check"]: _in_words(row) for row in stored["checks"]}
        columns[method] = [stored["verdict"], *(figures[name] for name in CHECKS)]
    thresholds = ["", *(str(check.threshold) for check in CHECKS.values())]
    return pd.DataFrame({"threshold": thresholds, **columns}, index=pd.Index(["verdict", *CHECKS], name="check"))


def _in_words(row: Mapping[str, Any]) -> str:
    """A stored check's figure, marked where it is a sign; – where the check could not be made."""
    figure = float(row["figure"])
    return "–" if math.isnan(figure) else f"{figure:.3g}{' !' if row['sign'] else ''}"


def as_json(found: Audit) -> dict[str, Any]:
    """An audit as JSON holds it."""
    return {
        "verdict": found.verdict,
        "checks": found.checks.reset_index().to_dict("records"),
        "accuracies": found.accuracies.reset_index().to_dict("records"),
        "curve": found.curve.to_dict("records"),
        "flags": list(found.flags),
    }


def signs(run: Run[Settings]) -> dict[str, list[str]]:
    """The checks of the run's audit that speak against each method; none for most."""
    return {
        file.stem: [row["check"] for row in read_json(file)["checks"] if row["sign"]]
        for file in sorted((run.folder / "audit").glob("*.json"))
    }
