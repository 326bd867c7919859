"""Accuracy under every attack, image by image, with the checks that an honest evaluation passes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import t
from torch import Tensor, nn

from paperlib import distributed
from paperlib.attacks import BOX, Attack, evaluating, lengths, masking_flags
from paperlib.data import ImageSet, as_float, shareable
from paperlib.data.images import places
from paperlib.files import described, digest, read_tensors, root, write_tensors
from paperlib.minimum_norm import distances
from paperlib.progress import Bar, live
from paperlib.runs import Run, recall
from paperlib.statistics import FEWEST, between_images, binomial_interval, image_interval, seeds_half

CHUNK = 250  # images attacked together at most, and lost when the process is killed
LEARNT = 0.1  # of the way from chance to perfect that a network must have gone to be held against anything
MONOTONE = 0.02  # a rise of accuracy with eps beyond this is more than an attack's luck


class AttackError(RuntimeError):
    """An attack returned what it must not."""


def evaluate(
    model: nn.Module,
    data: ImageSet,
    attacks: Mapping[str, Attack],
    file: Path | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    box: tuple[float, float] | None = BOX,
) -> tuple[dict[str, Tensor], list[str]]:
    """Which images the model classifies correctly, clean and under each attack: bool N by name, and masking flags.

    Each attack is a `functools.partial` whose `eps` and `norm` are asserted: AttackError is raised when a perturbation
    leaves the ball or the box, or when an attack with eps = 0 changes an accuracy. That accuracy under attack is not above
    clean accuracy is not asserted but flagged: it is a sign of masked gradients, not of broken code. With a `file`
    outcomes are saved after each chunk, and what it holds, or another run's file of that name, is not computed again.
    Several devices take a chunk each; the outcomes do not depend on how many they are.
    """
    recipe = _recipe(model, data, attacks, seed)
    outcomes: dict[str, Tensor] = {name: torch.empty(0, dtype=torch.bool) for name in ("clean", *attacks)}
    flags: list[str] = []
    keeps = None if distributed.rank() else file  # the first process does
    if keeps and (kept := recall(recipe, keeps, f"{keeps.parent.name}/{keeps.name}", _outcomes)):
        source, stored, flags = kept
        outcomes = {name: stored[name] for name in outcomes}  # in the attacks' order
        if source != keeps:
            write_tensors(keeps, outcomes, {"recipe": recipe, "flags": flags, "from": str(source.relative_to(root()))})
    known = distributed.handed_out(outcomes)
    outcomes = {name: known[name] for name in outcomes}
    flags, together = distributed.agreed(flags), shareable(data.images, CHUNK)
    model.to(device)

    def of_chunk(start: int) -> dict[str, Tensor]:
        images = as_float(data.images[start : start + together].to(device))
        labels = data.labels[start : start + together].to(device)
        found = {"clean": correct(model, images, labels)}
        for name, attack in attacks.items():
            torch.manual_seed(seed * 1_000_003 + start)
            with masking_flags() as warnings:
                adversarial = attack(model, images, labels).detach()
            flags.extend(f"{name}: {warning}" for warning in warnings)
            found[name] = correct(model, adversarial, labels)
            _assert_allowed(name, attack, images, adversarial, found, box)
        return found

    stage = "evaluating" if file is None else file.stem
    starts = range(len(outcomes["clean"]), len(data), together)
    with evaluating(model), Bar(len(data), stage, "img", starts.start) as progress, torch.random.fork_rng():
        for known in _in_rounds(outcomes, starts, of_chunk):
            outcomes, flags = known, distributed.united(flags)
            if keeps:
                write_tensors(keeps, outcomes, {"recipe": recipe, "flags": flags})
            progress.update(len(outcomes["clean"]) - progress.done)
    clean = float(outcomes["clean"].float().mean())
    for name in attacks:
        if (accuracy := float(outcomes[name].float().mean())) > clean:
            flags = [*flags, f"{name}: accuracy under attack ({accuracy:.1%}) is above clean accuracy ({clean:.1%})"]
    return outcomes, flags


def _in_rounds(
    known: dict[str, Tensor], starts: Sequence[int], of_chunk: Callable[[int], dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """`known` and what `of_chunk` finds from each of `starts` on, after each round: a chunk a device."""
    for first in range(0, len(starts), distributed.world()):
        for found in distributed.shared(starts[first : first + distributed.world()], of_chunk):
            known = {name: torch.cat([known[name], found[name]]) for name in known}
        yield known


def evaluate_each(
    run: Run,
    trained: Mapping[str, Mapping[int, nn.Module]],
    data: ImageSet,
    attacks: Mapping[str, Attack],
    label: str = "test",
    *,
    box: tuple[float, float] | None = BOX,
) -> pd.DataFrame:
    """Evaluate the models of each method and seed: one row a method, seed and measure: clean or the attack.

    Columns: method, seed, measure, n, correct, accuracy and its binomial interval low … high, all in [0,1], flags, and
    `each`: image by image whether it was right, a bool array N.
    """
    rows = []
    for method, members in trained.items():
        for seed, model in members.items():
            file = run.folder / "evaluation" / f"{label}-{method}-seed{seed}.safetensors"
            outcomes, flags = evaluate(model, data, attacks, file, seed=seed, device=run.device, box=box)
            for attack, correct in outcomes.items():
                hits, count = int(correct.sum()), len(correct)
                low, high = binomial_interval(hits, count)
                own = "; ".join(flag for flag in flags if flag.startswith(f"{attack}:"))
                rows.append((method, seed, attack, count, hits, hits / count, low, high, own, correct.numpy()))
            if not live():
                accuracies = "  ".join(f"{row[2]} {row[5]:.1%}" for row in rows[-len(outcomes) :])
                print(f"{label} {method} seed {seed}: {accuracies}", flush=True)
    columns = ["method", "seed", "measure", "n", "correct", "accuracy", "low", "high", "flags", "each"]
    return pd.DataFrame(rows, columns=columns)


def distances_each(
    run: Run,
    trained: Mapping[str, Mapping[int, nn.Module]],
    data: ImageSet,
    attacks: Mapping[str, Attack],
    chunk: int = 50,  # images attacked together
) -> pd.DataFrame:
    """The L2 distance to the adversarial image of every image, model and attack: columns method, seed, attack, each.

    `each` is an array N: zero where the model is wrong anyway, infinite where the attack failed. Kept by chunk.
    """
    rows = []
    for method, members in trained.items():
        for seed, model in members.items():
            for name, attack in attacks.items():
                file = run.folder / "distances" / f"{name}-{method}-seed{seed}.safetensors"
                recipe = digest(model, data, [name, described(attack), chunk])
                of_chunk = partial(_distances, model.to(run.device), data, attack, run.device, chunk, seed)
                known = {"distance": torch.empty(0)}
                if file.exists() and (stored := read_tensors(file))[1]["recipe"] == recipe:
                    known = stored[0]
                found = known = distributed.handed_out(known)
                starts = range(len(known["distance"]), len(data), chunk)
                with evaluating(model), torch.random.fork_rng():
                    for found in _in_rounds(known, starts, of_chunk):
                        if distributed.rank() == 0:
                            write_tensors(file, found, {"recipe": recipe})
                rows.append((method, seed, name, found["distance"].numpy()))
    return pd.DataFrame(rows, columns=["method", "seed", "attack", "each"])


def _distances(
    model: nn.Module, data: ImageSet, attack: Attack, device: torch.device, chunk: int, seed: int, start: int
) -> dict[str, Tensor]:
    """Of the `chunk` images from `start` on."""
    torch.manual_seed(seed * 1_000_003 + start)
    images = as_float(data.images[start : start + chunk]).to(device)
    labels = data.labels[start : start + chunk].to(device)
    return {"distance": distances(model, images, labels, attack(model, images, labels), "l2")}


def sweep(
    run: Run, trained: Mapping[str, Mapping[int, nn.Module]], data: ImageSet, attack: Attack, factors: Sequence[float]
) -> pd.DataFrame:
    """Accuracy against eps: `attack` at its own eps times each factor, its step size scaled alike.

    Columns as of `evaluate_each`, and eps. A rise of accuracy with eps is flagged.
    """
    settings = attack.keywords
    scaled = {
        f"eps={factor:g}x": partial(attack, eps=settings["eps"] * factor, step_size=settings["step_size"] * factor)
        for factor in factors
    }
    table = evaluate_each(run, trained, data, scaled, f"sweep_{settings['norm']}")
    table["eps"] = table["measure"].map({"clean": 0.0} | {name: one.keywords["eps"] for name, one in scaled.items()})
    for (_, _), rows in table.groupby(["method", "seed"]):
        ordered = rows.sort_values("eps")
        rises = ordered["accuracy"].diff() > MONOTONE
        table.loc[ordered.index[rises], "flags"] += "accuracy rises with eps"
    return table


def combine(table: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Several tables as one; clean accuracy is that of the first, which has the most images."""
    return pd.concat([table, *(other[other["measure"] != "clean"] for other in others)], ignore_index=True)


def same_images(table: pd.DataFrame, measures: Sequence[str], data: ImageSet, count: int) -> pd.DataFrame:
    """The rows of an `evaluate_each` on all of `data` once more, of the images of `subset(data, count, 0)` alone.

    They stand beside an attack that was run on these images alone, and are named "<measure>, n = <count>". Empty where
    the subset is all of `data`, or has no image.
    """
    rows = table[table["measure"].isin(measures if 0 < count < len(data) else [])]
    chosen = places(data, count, 0).numpy()
    each = [outcomes[chosen] for outcomes in rows["each"]]
    return rows.assign(
        measure=[f"{name}, n = {count}" for name in rows["measure"]], n=count, each=each,
        correct=[int(one.sum()) for one in each], accuracy=[float(one.mean()) for one in each], flags="",
    )  # fmt: skip


@contextmanager
def measuring(run: Run, seed: int, model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode on the run's device, and within everything random drawn from the seed."""
    with evaluating(model.to(run.device)), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield model


def flags(*tables: pd.DataFrame) -> pd.DataFrame:
    """What was odd about an attack's outcome: one row a method, seed, measure and flag; empty is good."""
    rows = pd.concat(tables, ignore_index=True)
    return rows.loc[rows["flags"] != "", ["method", "seed", "measure", "flags"]]


# Outcomes that are neither right nor wrong and yet lie in [0,1].
SHARES = {
    "mean", "nrr", "gradient_on_edges", "gradient_on_contours", "cam_moved", "cam_on_object", "cam_on_object_attacked",
}  # fmt: skip


ANYWHERE = (-math.inf, math.inf)


def limits(measure: str, each: np.ndarray | None) -> tuple[float, float]:
    """Between what the mean of a measure must lie: a share in [0,1], a cosine or correlation in [−1,1], else ANYWHERE."""
    if each is None or each.dtype == bool or measure in SHARES:
        return 0.0, 1.0
    return (-1.0, 1.0) if "cosine" in measure or "correlation" in measure else ANYWHERE


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a method and measure: mean and deviation over seeds, and the 95 % interval of the mean.

    Columns mean, deviation (of seeds; NaN for one), low, high, seeds, n, sample_low, sample_high, each, by_seed, seed_list,
    limits. Outcomes are taken as mean + seed + image + rest, each drawn on its own, so the variance of the mean over S
    seeds and N images is

        s² / S + σ_b² / N,

    with s² the variance of the seeds' means on these images, which has the seeds' and the rest's share, and σ_b² that of
    `between_images`: what the rest adds to the images' means is not counted again. The interval's arms are the root of
    the squares of Student's t of the first (S − 1 degrees of freedom) and of `image_interval` of the second, which stands
    apart as sample_low … sample_high; it is cut at the `limits` of the measure. One seed has the second alone: its luck is
    left out. Below FEWEST images there is no interval (NaN). `each` are the outcomes by seed and image, S×N, None where
    the table has none by image; `by_seed` the mean of each seed, in the order of `seed_list`.
    """
    rows = []
    for (method, measure), part in table.groupby(["method", "measure"], sort=False):
        mean, seeds, count = float(part["accuracy"].mean()), len(part), int(part["n"].iloc[0])
        by_image = "each" in part and isinstance(part["each"].iloc[0], np.ndarray)
        each = np.stack(list(part["each"])) if by_image else None
        least, most = bounds = limits(str(measure), each)
        if each is not None:
            sample = image_interval(each, bounds)
        else:
            sample = binomial_interval(round(mean * count), count) if count >= FEWEST else (math.nan, math.nan)
        deviation = float(part["accuracy"].std(ddof=1)) if seeds > 1 else math.nan
        half = seeds_half(part["accuracy"])
        low = max(mean - math.hypot(mean - sample[0], half), least)  # in this order what is not a number stays so
        high = min(mean + math.hypot(sample[1] - mean, half), most)
        named = tuple(map(int, part["seed"]))
        by_seed = part["accuracy"].to_numpy()
        rows.append((method, measure, mean, deviation, low, high, seeds, count, *sample, each, by_seed, named, bounds))
    columns = ["method", "measure", "mean", "deviation", "low", "high", "seeds", "n", "sample_low", "sample_high", "each"]
    return pd.DataFrame(rows, columns=[*columns, "by_seed", "seed_list", "limits"])


def at_chance(clean: Mapping[str, Any], classes: int) -> bool:
    """Whether a row of a `summary`, of clean accuracy, is of networks that have hardly learnt: they test nothing.

    Nor is it known of those that have learnt on too few images for an interval.
    """
    return not clean["low"] > 1 / classes + LEARNT * (1 - 1 / classes)


class Difference(NamedTuple):
    """Of two means, in their units: the value and its 95 % interval, of how many seeds, and their deviation."""

    value: float
    low: float
    high: float
    seeds: int
    deviation: float


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    """first − second of two rows of a `summary`, with its 95 % interval, seed by seed and image by image.

    Trainings of one seed share initial weights and the order of the data. So where the two have seeds in common, value and
    interval are of these alone: with d the differences by seed and image, the variance is that of `summary`,

        s_d² / S + (σ_1² + σ_2² − 2 σ_12) / N,

    s_d² of the seeds' mean differences, and σ_12 the covariance of `between_images`. Student's t with S − 1 degrees of
    freedom is of the first. The second is of the rows' own image intervals and their correlation σ_12 / σ_1 σ_2, put
    together as Newcombe (1998, paired data, method 10) does, so that arms are unlike near 0 and 1; with his correction
    1 / 2SN of a positive covariance where outcomes are right or wrong. Images count as independent where the rows have
    outcomes of other numbers of images, or none by image. Without a common seed, Welch's t stands for the first where both
    sides have several. Where one has a single seed, or one seed is common, the interval is of the images alone. The
    deviation is of the paired differences, else the larger of the two, NaN of one seed.
    """
    shared = [seed for seed in first.get("seed_list", ()) if seed in second.get("seed_list", ())]
    one, two = (_of_seeds(row, shared) for row in (first, second))
    value, seeds = one["mean"] - two["mean"], len(shared) or min(first["seeds"], second["seeds"])
    (l1, u1), (l2, u2) = ((row["mean"] - row["sample_low"], row["sample_high"] - row["mean"]) for row in (one, two))
    phi = _correlation(one["each"], two["each"], bool(shared))
    low = math.sqrt(max(l1**2 + u2**2 - 2 * phi * l1 * u2, 0.0))  # in this order what is not a number stays so
    high = math.sqrt(max(u1**2 + l2**2 - 2 * phi * u1 * l2, 0.0))
    half, deviation = 0.0, math.nan
    if len(shared) > 1:
        apart = np.asarray(one["by_seed"]) - np.asarray(two["by_seed"])
        half, deviation = seeds_half(apart), float(apart.std(ddof=1))
    elif seeds > 1:
        (s1, k), (s2, m) = ((row["deviation"] ** 2 / row["seeds"], row["seeds"] - 1) for row in (first, second))
        deviation = max(first["deviation"], second["deviation"])
        if s1 + s2 > 0:
            half = float(t.ppf(0.975, (s1 + s2) ** 2 / (s1**2 / k + s2**2 / m))) * math.sqrt(s1 + s2)
    (least, most), (bottom, top) = (row.get("limits", ANYWHERE) for row in (first, second))
    low, high = max(value - math.hypot(low, half), least - top), min(value + math.hypot(high, half), most - bottom)
    return Difference(value, low, high, seeds, deviation)


def _of_seeds(row: Mapping[str, Any], seeds: Sequence[int]) -> Mapping[str, Any]:
    """A row of a `summary` with these of its seeds alone, in their order; as it is where there are none."""
    if not seeds or list(seeds) == list(row["seed_list"]):
        return row
    chosen = [row["seed_list"].index(seed) for seed in seeds]
    by_seed = np.asarray(row["by_seed"])[chosen]
    each, mean = row["each"], float(by_seed.mean())
    if each is not None:
        each = each[chosen]
        low, high = image_interval(each, row["limits"])
    else:  # as far from its mean as that of all seeds
        low, high = (mean + row[end] - row["mean"] for end in ("sample_low", "sample_high"))
    return {**row, "mean": mean, "by_seed": by_seed, "each": each, "sample_low": low, "sample_high": high}


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """A `summary` as a table to read: a row a method, columns (measure, mean | low | high), all × 100."""
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for row in table.to_dict("records"):
        own = {(row["measure"], name): 100 * row[name] for name in ("mean", "low", "high")}
        rows.setdefault(row["method"], {}).update(own)
    return pd.DataFrame(rows).T


def gaps(table: pd.DataFrame, against: str, measures: Sequence[str]) -> pd.DataFrame:
    """Each method's measures less those of `against`, of a `summary`, in points: index method, columns (measure, …).

    difference, its 95 % interval low … high, "seeds" (the deviation over seeds, see `difference`) and "told": "yes" where
    the interval leaves out zero, "smaller than the seeds' spread", "no", or that there are too few images.
    """
    known = {(row["method"], row["measure"]): row for row in table.to_dict("records")}
    rows: dict[str, dict[tuple[str, str], Any]] = {}
    for method in [name for name in dict.fromkeys(table["method"]) if name != against]:
        for measure in [name for name in measures if (method, name) in known and (against, name) in known]:
            first, second = known[method, measure], known[against, measure]
            apart = difference(first, second)
            value, low, high, spread = (100 * number for number in (*apart[:3], np.nan_to_num(apart.deviation)))
            told = "yes" if low > 0 or high < 0 else "smaller than the seeds' spread" if abs(value) < spread else "no"
            told = f"fewer than {FEWEST} images" if math.isnan(low) else told
            found = {"difference": value, "low": low, "high": high, "seeds": spread, "told": told}
            rows.setdefault(method, {}).update({(measure, name): one for name, one in found.items()})
    return pd.DataFrame(rows).T


def _correlation(first: np.ndarray | None, second: np.ndarray | None, shared: bool) -> float:
    """Of what two methods' trainings expect of an image, from outcomes S×N of each; 0 where it is not known."""
    if first is None or second is None or first.shape[1] != second.shape[1]:
        return 0.0
    one, two = (between_images(values, values, shared=True) for values in (first, second))
    both = between_images(first, second, shared)
    if first.dtype == second.dtype == bool and both > 0:
        both = max(both - 1 / (2 * min(first.size, second.size)), 0.0)
    return max(-1.0, min(1.0, both / math.sqrt(one * two))) if min(one, two) > 1e-12 else 0.0


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images the model has right: bool N, of the model in the mode it is in."""
    logits = model(images)
    # Outputs that are not numbers are no correct prediction, whatever argmax makes of them.
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def _assert_allowed(
    name: str,
    attack: Attack,
    images: Tensor,
    adversarial: Tensor,
    found: dict[str, Tensor],
    box: tuple[float, float] | None,
) -> None:
    settings = attack.keywords
    eps, kind = settings["eps"], settings["norm"]
    size = float(lengths((adversarial - images).double(), kind).max())
    if not size <= eps * (1 + 1e-4) + 1e-6:  # single precision; also where it is not a number
        raise AttackError(f"{name}: a perturbation of {kind} size {size:g} leaves the ball of radius {eps:g}")
    if box is not None and not (box[0] <= float(adversarial.min()) and float(adversarial.max()) <= box[1]):
        low, high = float(adversarial.min()), float(adversarial.max())
        raise AttackError(f"{name}: adversarial images reach from {low:g} to {high:g}, outside {box}")
    if eps == 0 and not torch.equal(found[name], found["clean"]):
        raise AttackError(f"{name}: eps = 0 changes the accuracy; the model gives different answers to one input")


def _outcomes(file: Path) -> tuple[Path, dict[str, Tensor], list[str]]:
    outcomes, about = read_tensors(file)
    return file, outcomes, about["flags"]


def _recipe(model: nn.Module, data: ImageSet, attacks: Mapping[str, Attack], seed: int) -> str:
    return digest(
        model, data, [[[name, *described(one)] for name, one in attacks.items()], seed, shareable(data.images, CHUNK)]
    )
