"""Means with their intervals, and differences between methods, paired by seed and image."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from paperlib.evaluation.intervals import (
    FEWEST,
    between_images,
    binomial_interval,
    image_interval,
    residual_half,
    seeds_half,
)

LEARNT = 0.1  # a network has learnt beyond this share of the way from chance to perfect accuracy

# Measures whose outcomes are real numbers in [0,1].
SHARES = {
    "mean", "nrr", "gradient_on_edges", "gradient_on_contours", "cam_moved", "cam_on_object", "cam_on_object_attacked",
}  # fmt: skip

ANYWHERE = (-math.inf, math.inf)


def limits(measure: str, each: np.ndarray | None) -> tuple[float, float]:
    """Return the bounds of a measure's mean: [0,1] for a share, [−1,1] for a cosine or correlation, else ANYWHERE."""
    if each is None or each.dtype == bool or measure in SHARES:
        return 0.0, 1.0
    return (-1.0, 1.0) if "cosine" in measure or "correlation" in measure else ANYWHERE


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise a table of `evaluate_each`: one row per method and measure, with mean and 95 % interval.

    Columns: mean, deviation (over seeds; NaN for one seed), low, high, seeds, n, sample_low, sample_high, each, by_seed,
    seed_list, limits. `each` has the outcomes S×N by seed and image, or None; `by_seed` has the mean of each seed of
    `seed_list`.

    The model is outcome = mean + seed + image + residual, all independent. The variance of the mean over S seeds and N
    images is then

        s² / S + σ_b² / N.

    s² is the variance of the seeds' means on these images, which includes the residual. σ_b² is that of `between_images`,
    which excludes it, so the residual counts once. The first term gives the half width `seeds_half`. The second gives
    `image_interval`, stored as sample_low … sample_high. The interval adds the squares of both, within the `limits` of the
    measure. With one seed it has the second term alone. Below FEWEST images it is NaN.
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
        low = max(mean - math.hypot(mean - sample[0], half), least)  # this argument order keeps NaN
        high = min(mean + math.hypot(sample[1] - mean, half), most)
        named = tuple(map(int, part["seed"]))
        by_seed = part["value"].to_numpy()
        rows.append((method, measure, mean, deviation, low, high, seeds, count, *sample, each, by_seed, named, bounds))
    columns = ["method", "measure", "mean", "deviation", "low", "high", "seeds", "n", "sample_low", "sample_high", "each"]
    return pd.DataFrame(rows, columns=[*columns, "by_seed", "seed_list", "limits"])


def at_chance(clean: Mapping[str, Any], classes: int) -> bool:
    """Return whether networks have hardly learnt, from their clean row of a `summary`: such networks test nothing.

    True also where too few images leave no interval.
    """
    return not clean["low"] > 1 / classes + LEARNT * (1 - 1 / classes)


class Difference(NamedTuple):
    """Difference of two means in their units, its 95 % interval, number of seeds, and its deviation over seeds."""

    value: float
    low: float
    high: float
    seeds: int
    deviation: float


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> Difference:
    """Return first − second of two rows of a `summary`, with its 95 % interval, paired by seed and image.

    Trainings of one seed share initial weights and the order of the data. Where the rows have seeds in common, only these
    are used. The variance of the difference d is then

        s_d² / S + (σ_1² + σ_2² − 2 σ_12) / N.

    s_d² is the variance of the seeds' mean differences; `seeds_half` gives its half width. σ_12 is the covariance of
    `between_images`. The second term combines the rows' image intervals by Newcombe (1998, paired data, method 10), with
    correlation σ_12 / σ_1 σ_2. Where outcomes are right or wrong, his correction 1 / 2SN lowers a positive covariance.
    Rows without outcomes by image, or with different numbers of images, count as independent.

    Without a common seed Welch's t gives the first term, if both rows have several seeds; it is at least that of the
    residuals. Where one row has a single seed, or one seed is common, the first term is zero. The deviation is that of the
    paired differences, without pairs the larger of both, and NaN of one seed.
    """
    shared = [seed for seed in first.get("seed_list", ()) if seed in second.get("seed_list", ())]
    one, two = (_of_seeds(row, shared) for row in (first, second))
    value, seeds = one["mean"] - two["mean"], len(shared) or min(first["seeds"], second["seeds"])
    (l1, u1), (l2, u2) = ((row["mean"] - row["sample_low"], row["sample_high"] - row["mean"]) for row in (one, two))
    phi = _correlation(one["each"], two["each"], bool(shared))
    low = math.sqrt(max(l1**2 + u2**2 - 2 * phi * l1 * u2, 0.0))  # this argument order keeps NaN
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
        half = max(half, math.hypot(residual_half(one["each"]), residual_half(two["each"])))
    (least, most), (bottom, top) = (row.get("limits", ANYWHERE) for row in (first, second))
    low, high = max(value - math.hypot(low, half), least - top), min(value + math.hypot(high, half), most - bottom)
    return Difference(value, low, high, seeds, deviation)


def _of_seeds(row: Mapping[str, Any], seeds: Sequence[int]) -> Mapping[str, Any]:
    """Restrict a row of a `summary` to `seeds`, in their order; without seeds return it as it is."""
    if not seeds or list(seeds) == list(row["seed_list"]):
        return row
    chosen = [row["seed_list"].index(seed) for seed in seeds]
    by_seed = np.asarray(row["by_seed"])[chosen]
    each, mean = row["each"], float(by_seed.mean())
    if each is not None:
        each = each[chosen]
        low, high = image_interval(each, row["limits"])
    else:  # the interval of all seeds, moved to the new mean
        low, high = (mean + row[end] - row["mean"] for end in ("sample_low", "sample_high"))
    return {**row, "mean": mean, "by_seed": by_seed, "each": each, "sample_low": low, "sample_high": high}


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return a `summary` as a table in percent: one row per method, columns (measure, mean | low | high)."""
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for row in table.to_dict("records"):
        own = {(row["measure"], name): 100 * row[name] for name in ("mean", "low", "high")}
        rows.setdefault(row["method"], {}).update(own)
    return pd.DataFrame(rows).T


def in_percent(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a `summary` for a figure: a column value with the mean, and low and high, in percent."""
    shares = 100 * found[["mean", "low", "high"]]
    return found.assign(value=shares["mean"], low=shares["low"], high=shares["high"])


def against_eps(sweep: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Return accuracy (%) against ε from a table of `evaluation.sweep`, with the 95 % interval of `summary`.

    Columns: line (the method), n, "ε × 255" (in L2: "ε"), value, low, high.
    """
    axis, scale = ("ε × 255", 255) if norm == "linf" else ("ε", 1)
    sizes = sweep.drop_duplicates("measure").set_index("measure")["eps"]
    found = in_percent(summary(sweep)).rename(columns={"method": "line"})
    found[axis] = scale * found["measure"].map(sizes)
    return found[["line", "n", axis, "value", "low", "high"]]


def gaps(table: pd.DataFrame, against: str, measures: Sequence[str]) -> pd.DataFrame:
    """Return the `difference` of each method of a `summary` from `against`, in points: columns (measure, …).

    The columns are difference, low and high of its 95 % interval, seeds (the deviation over seeds) and told. "told" is
    "yes" where the interval excludes zero, else "smaller than the seeds' spread", "no", or that there are too few images.
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
    """Return the correlation over images of two methods' expected outcomes, from S×N of each; 0 where unknown."""
    if first is None or second is None or first.shape[1] != second.shape[1]:
        return 0.0
    one, two = (between_images(values, values, shared=True) for values in (first, second))
    both = between_images(first, second, shared)
    if first.dtype == second.dtype == bool and both > 0:
        both = max(both - 1 / (2 * min(first.size, second.size)), 0.0)
    return max(-1.0, min(1.0, both / math.sqrt(one * two))) if min(one, two) > 1e-12 else 0.0
