"""Means with their intervals, and differences between methods: seed by seed and image by image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from paperlib.evaluation.intervals import FEWEST, between_images, binomial_interval, image_interval, seeds_half

LEARNT = 0.1  # of the way from chance to perfect that a network must have gone to be held against anything

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
    the squares of `seeds_half` of the first and of `image_interval` of the second, which stands apart as sample_low …
    sample_high; it is cut at the `limits` of the measure. One seed has the second alone: its luck is
    left out. Below FEWEST images there is no interval (NaN). `each` are the outcomes by seed and image, S×N, None where
    the table has none by image; `by_seed` the mean of each seed, in the order of `seed_list`.
    """
    rows = []
    for (method, measure), part in table.groupby(["method", "measure"], sort=False):
        mean, seeds, count = float(part["value"].mean()), len(part), int(part["n"].iloc[0])
        by_image = "each" in part and isinstance(part["each"].iloc[0], np.ndarray)
        each = np.stack(list(part["each"])) if by_image else None
        least, most = bounds = limits(str(measure), each)
        if each is not None:
            sample = image_interval(each, bounds)
        else:
            sample = binomial_interval(round(mean * count), count) if count >= FEWEST else (math.nan, math.nan)
        deviation = float(part["value"].std(ddof=1)) if seeds > 1 else math.nan
        half = seeds_half(part["value"], each)
        low = max(mean - math.hypot(mean - sample[0], half), least)  # in this order what is not a number stays so
        high = min(mean + math.hypot(sample[1] - mean, half), most)
        named = tuple(map(int, part["seed"]))
        by_seed = part["value"].to_numpy()
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

    s_d² of the seeds' mean differences, and σ_12 the covariance of `between_images`. `seeds_half` is of the first. The
    second is of the rows' own image intervals and their correlation σ_12 / σ_1 σ_2, put together as Newcombe (1998, paired
    data, method 10) does, so that arms are unlike near 0 and 1; with his correction 1 / 2SN of a positive covariance where
    outcomes are right or wrong. Images count as independent where the rows have outcomes of other numbers of images, or
    none by image. Without a common seed, Welch's t stands for the first where both
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
        (a, b), differences = (one["each"], two["each"]), None
        if a is not None and b is not None and a.shape == b.shape:
            differences = a.astype(float) - b.astype(float)
        half, deviation = seeds_half(apart, differences), float(apart.std(ddof=1))
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


def in_percent(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `summary` for a figure: the mean also as value, × 100, and so are low and high."""
    shares = 100 * found[["mean", "low", "high"]]
    return found.assign(value=shares["mean"], low=shares["low"], high=shares["high"])


def against_eps(sweep: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Accuracy against ε, of `evaluation.sweep`: columns line (the method), n, "ε × 255" (in L2: "ε"), value, low, high.

    In percent, with the 95 % interval of `summary`.
    """
    axis, scale = ("ε × 255", 255) if norm == "linf" else ("ε", 1)
    sizes = sweep.drop_duplicates("measure").set_index("measure")["eps"]
    found = in_percent(summary(sweep)).rename(columns={"method": "line"})
    found[axis] = scale * found["measure"].map(sizes)
    return found[["line", "n", axis, "value", "low", "high"]]


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
