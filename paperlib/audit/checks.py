"""Is the robustness real? Signs that gradients are masked, on any classifier of images in [0,1].

Each check has a source and a figure, which is a sign where the lower end of its 95 % interval exceeds a threshold. Some
signs are evidence that attacks fail where adversarial images exist; with one of them the verdict is "masked". With other
signs alone it is "suspicious": gradients cannot be trusted. Further attacks then get around the defence: Square, a copy of
the model, and gradients averaged over noise or passed through rounding. Accuracy under the best of all attacks is an upper
bound. The thresholds were set on honest models and planted defences (benchmarks/calibration.py, docs/results/audit.md).
An audit without signs is no proof: an adaptive attack (Tramèr et al. 2020) may still break the defence.
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
    "no sign of masking": "No check found a sign that gradients are masked. That is no proof of robustness, but no "
    "evidence against the accuracy under the best of all attacks was found.",
    "suspicious": "The gradients of this model cannot be trusted, and accuracy under attacks that follow them may be too "
    "high. But no attack here surely found images that such attacks miss.",
    "masked": "Attacks that follow the gradient fail where adversarial images exist: accuracy under them does not "
    "measure this model's robustness.",
    "not told": f"There are fewer than {FEWEST} images; or accuracy without attack is close to chance, so that robustness "
    "means nothing. Perhaps the model should normalise its images itself, or has the classes in another order.",
}
RIGHT = 30  # correct images that a model close to chance needs to be attacked
CHUNK = 60  # images per chunk; each device takes a chunk at a time
SOME, FEW = 120, 40  # images of the probes that cost hundreds of passes, and of AutoAttack
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)  # multiples of ε in the sweep


class Check(NamedTuple):
    """Threshold of a check, meaning of its sign, source, and what to do next."""

    threshold: float
    evidence: bool  # whether its sign shows that attacks fail where adversarial images exist
    meaning: str
    source: str
    next: str  # what to try next
    beside: bool = False  # whether it is a sign only together with another one


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
    "AutoAttack's flags": Check(  # their number, without the flag about Square: another check counts its images
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
    """Verdict of an audit, and the measurements behind it."""

    verdict: Verdict
    # index check; figure, low (of its interval), threshold, n (images), sign, evidence, meaning, source, next, beside
    checks: pd.DataFrame
    accuracies: pd.DataFrame  # index attack; accuracy with its 95 % interval low … high, n
    curve: pd.DataFrame  # eps and accuracy under PGD-20 on cross-entropy
    flags: tuple[str, ...]  # AutoAttack's warnings
    eps: float
    norm: Norm

    @property
    def meaning(self) -> str:
        """Meaning of the verdict, in a sentence or two."""
        return MEANINGS[self.verdict]

    @property
    def bound(self) -> str:
        """Upper bound of robust accuracy, in a sentence; empty for a model that was not attacked."""
        if "best of all" not in self.accuracies.index:
            return ""
        row = self.accuracies.loc["best of all"]
        return (
            f"Robust accuracy is at most {row['accuracy']:.1%} (interval {row['low']:.1%} to {row['high']:.1%}) on these "
            f"{row['n']:.0f} images, under the best of all attacks."
        )

    def signs(self) -> pd.DataFrame:
        """Return the checks whose figure is a sign."""
        return self.checks[self.checks["sign"]]

    def __str__(self) -> str:
        rows = self.accuracies[self.accuracies.index.isin(["no attack", "PGD-20", "best of all"])]
        parts = [
            f"{name} {row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%}, n = {row['n']:.0f})"
            for name, row in rows.iterrows()
        ]
        bound = [f"  {self.bound}"] if self.bound else []
        lines = [f"{self.verdict}: {self.meaning}", *bound, f"  {', '.join(parts)}"]
        for name, row in self.signs().iterrows():
            lines += [
                f"  {name}: {row['figure']:.3g} (from {row['low']:.3g}), above {row['threshold']:g}: {row['meaning']}",
                f"    next: {row['next']}",
            ]
        return "\n".join([*lines, *(f"  AutoAttack says: {flag}" for flag in self.flags)])

    __repr__ = __str__  # what a notebook shows


def audit(
    model: nn.Module, data: ImageSet, *, eps: float, norm: Norm, transfer_from: nn.Module | None = None, seed: int = 0
) -> Audit:
    """Run every check of CHECKS on a classifier that maps images N×C×H×W in [0,1] to logits N×K.

    `eps` is the radius, in units of [0,1], within which robustness is claimed. Adversarial images of another model
    `transfer_from` are tried, too. Without one, and where the gradient cannot be trusted, a small network is trained on
    this model's answers instead. The costliest probes use the first SOME or FEW images of a class-balanced order. Where
    the model answers at random, the majority of CALLS answers decides. The verdict on a network close to chance is "not
    told", unless RIGHT images are correct and there is a sign.

    Raises InputError where the model does not answer as a classifier of these images, or eps is not positive.
    """
    check_radius(eps, norm)
    if transfer_from is model:
        raise InputError("transfer_from is the audited model itself; it should be another model, or None")
    found, curve, flags = _measure(probes.Connected(model), data, eps, norm, transfer_from, seed)
    accuracies = _accuracies(found)
    unknown = dict.fromkeys(CHECKS, Figure(math.nan, math.nan, 0))  # for a network at chance, which is not attacked
    checks = signs_of(figures(found, curve, flags, len(data.classes)) if "white" in found else unknown)
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
    """Return the probes' values by name, for all images or the first SOME or FEW, accuracy by eps, AutoAttack's flags.

    A network at chance is not attacked: only the values of `answers` are returned.
    """
    device = next((one.device for one in (*whole.parameters(), *whole.buffers())), torch.device("cpu"))
    data = data[balanced(data, seed)]
    some, by_chunk = data[:SOME], partial(_by_chunk, device=device, seed=seed)
    if transfer_from is not None:  # a model that does not fit is refused before the long work
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
    """Restore the model's buffers afterwards: some networks change running statistics in evaluation mode, too."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])


def _by_chunk(data: ImageSet, probe: Callable[..., Found], *more: Tensor, device: torch.device, seed: int) -> Found:
    """Return `probe(images, labels, *more)` for all images, chunk by chunk, each with random numbers of its own."""
    together = chunk_size(data.images, CHUNK)

    def of_chunk(start: int) -> Found:
        torch.manual_seed(seed * 1_000_003 + start)
        images = as_float(data.images[start : start + together]).to(device)
        labels, *others = (values[start : start + together].to(device) for values in (data.labels, *more))
        return probe(images, labels, *others)

    parts = distributed.shared(range(0, len(data), together), of_chunk)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _blind(found: Found) -> bool:
    """Return whether the gradient cannot be trusted, so that attacks without it get more queries."""
    names = {"images without gradient": "flat", "gradient not of the function": "wrong slope"}
    names |= {"gradient unlike finite differences": "unlike"}
    return any(float(found[own].float().mean()) > CHECKS[name].threshold for name, own in names.items())


def _sweep(
    model: nn.Module, data: ImageSet, by_chunk: Callable[..., Found], settings: Mapping[str, Any], found: Found
) -> pd.DataFrame:
    """Return accuracy against eps under PGD-20 on cross-entropy; at zero and eps it is known already."""

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
    """Return which images any of the attacks fools, among the images that all of them tried: bool N."""
    count = min(len(found[name]) for name in names)
    return torch.stack([found[name][:count] for name in names]).any(0)


def share(members: Tensor) -> float:
    """Return the share of images for which `members` is True."""
    return int(members.sum()) / len(members)


# Figures and verdict -------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A check's figure, the lower end of its 95 % interval, and the number of images."""

    figure: float
    low: float
    n: int


def _of_all(members: Tensor | int, count: int | None = None) -> Figure:
    """Return the share of members, given as bool N or as their number, among `count` images."""
    hits, count = int(members.sum()) if isinstance(members, Tensor) else members, count or len(members)  # type: ignore[arg-type]
    return Figure(hits / count, binomial_interval(hits, count)[0], count)


def mean_figure(values: Tensor) -> Figure:
    """Return the mean of the images' values, without NaN."""
    numbers = values[~values.isnan()].double().cpu().numpy()
    if not len(numbers):
        return Figure(math.nan, math.nan, 0)
    mean, low, _ = mean_interval(numbers)
    return Figure(mean, low, len(numbers))


def _certain(value: float, count: int) -> Figure:
    """Return a figure without sampling error."""
    return Figure(value, value, count)


def figures(found: Found, curve: pd.DataFrame, flags: Sequence[str], classes: int) -> dict[str, Figure]:
    """Return each check's figure. Shares of fooled images are among those that are correct without attack."""
    count, some, few = len(found["no attack"]), len(found["white"]), len(found["AutoAttack"])
    right = ~found["no attack"]

    def missed(by_attack: Tensor) -> Figure:
        """Return the share of fooled ones among the correct images that the attack tried."""
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
    """Return the checks with their figures, and whether each is a sign: its interval is above the threshold.

    A turning gradient is a sign only together with another one. It also turns on honest networks, in balls larger than
    those of their training.
    """
    rows = {
        name: {**figure._asdict(), "sign": round(figure.low, 9) > CHECKS[name].threshold, **CHECKS[name]._asdict()}
        for name, figure in figures.items()
    }
    checks = pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")
    others = bool((checks["sign"] & ~checks["beside"]).any())
    checks["sign"] &= ~checks["beside"] | others
    return checks


def verdict_of(checks: pd.DataFrame) -> Verdict:
    """Return the verdict on a model that is not at chance.

    Without a sign it is "not told" below FEWEST images. Where answers depend on the other images it is "suspicious", even
    with evidence: an image that an attack fools may be correct in another batch, which looks like masking.
    """
    if not checks["sign"].any():
        return "no sign of masking" if checks["n"].max() >= FEWEST else "not told"
    if checks["sign"].get("answers depend on the other images", False):
        return "suspicious"
    return "masked" if checks.loc[checks["sign"], "evidence"].any() else "suspicious"


def _best(found: Found) -> Tensor:
    """Return which of the first SOME images any attack fools: bool."""
    best = _any(found, "white", "transfer", "Square", "averaged", "through")
    few = len(found["AutoAttack"])
    return torch.cat([best[:few] | found["AutoAttack"], best[few:]])


def _accuracies(found: Found) -> pd.DataFrame:
    """Return accuracy under each attack that was run on its own, and under the best of all, image by image.

    All use the first SOME images, but AutoAttack uses FEW; PGD-20 is repeated on these for comparison.
    """
    if "white" not in found:  # a network at chance was not attacked
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
    """Audit each method's first seed: return verdicts and figures by check and method; a ! marks a sign."""
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
    """Return a stored figure as text: with ! where it is a sign, – where the check was not possible."""
    figure = float(row["figure"])
    return "–" if math.isnan(figure) else f"{figure:.3g}{' !' if row['sign'] else ''}"


def as_json(found: Audit) -> dict[str, Any]:
    """Return an audit as data for JSON."""
    return {
        "verdict": found.verdict,
        "checks": found.checks.reset_index().to_dict("records"),
        "accuracies": found.accuracies.reset_index().to_dict("records"),
        "curve": found.curve.to_dict("records"),
        "flags": list(found.flags),
    }


def signs(run: Run[Settings]) -> dict[str, list[str]]:
    """Return the signs that the run's audit found, by method."""
    return {
        file.stem: [row["check"] for row in read_json(file)["checks"] if row["sign"]]
        for file in sorted((run.folder / "audit").glob("*.json"))
    }
