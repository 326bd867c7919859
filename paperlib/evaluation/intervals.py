"""95 % intervals of a share, of a mean over images and seeds, of a ratio of medians, of a rank correlation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta, norm, rankdata, t

from paperlib.runs.files import InputError

FEWEST = 20  # fewer images give no interval and no decision


def binomial_interval(hits: float, count: float) -> tuple[float, float]:
    """Return the exact interval of Clopper & Pearson (1934) for a share of `hits` among `count`, whole numbers or not."""
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def mean_interval(each: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of N values and its 95 % interval, ± 1.96 standard errors: mean, low, high; NaN below FEWEST."""
    mean, half = float(each.mean()), 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5 if len(each) >= FEWEST else math.nan
    return mean, mean - half, mean + half


def between_images(first: np.ndarray, second: np.ndarray, shared: bool) -> float:
    """Estimate the covariance over images of two methods' expected outcomes, from S×N and T×N of the same images.

    With `shared` seeds, row by row, it is the mean covariance over pairs of different seeds, which excludes the residual.
    Otherwise it is the covariance of the means over seeds. With one seed it is that of the outcomes. A method with itself,
    `shared`, gives the variance σ_b² of images in outcome = mean + seed + image + residual.
    """
    one, two = (values - values.mean(1, keepdims=True) for values in (first.astype(float), second.astype(float)))
    together, (seeds, count) = float(one.mean(0) @ two.mean(0)) / one.shape[1], one.shape
    if not shared or seeds == 1:
        return float(together)
    return float((seeds**2 * together - (one * two).sum() / count) / (seeds * (seeds - 1)))


def image_interval(each: np.ndarray, limits: tuple[float, float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of outcomes S×N over the choice of images: low, high; NaN below FEWEST.

    Within finite `limits` it is Clopper and Pearson's, for an effective number n* of images (Korn & Graubard 1998). n*
    solves p (1 − p) / n* = σ_b² / N, with σ_b² of `between_images`. Right or wrong outcomes are at most S N independent
    ones, so there n* ≤ S N; it is N for one seed. Where all outcomes are at one limit, n* is N. With infinite limits, or
    where no outcome differs, the interval is the mean ± 1.96 σ_b / √N.
    """
    seeds, count = each.shape
    mean, variance = float(each.mean()), max(between_images(each, each, shared=True), 0.0)
    if count < FEWEST:
        return math.nan, math.nan
    half = float(norm.ppf(0.975)) * math.sqrt(variance / (count - 1))
    least, size = limits[0], limits[1] - limits[0]
    if math.isinf(size):
        return mean - half, mean + half
    share = (mean - least) / size
    most = share * (1 - share) * size**2  # the largest variance that outcomes within the limits can have
    if most <= 0:
        effective = float(count)
    elif each.dtype == bool:
        effective = count * min(most / variance if variance > 0 else math.inf, seeds)
    elif variance > 0:
        effective = (count - 1) * most / variance
    else:
        return mean - half, mean + half
    low, high = binomial_interval(share * effective, effective)
    return least + size * low, least + size * high


def seeds_half(by_seed: Sequence[float] | np.ndarray, each: np.ndarray | None = None) -> float:
    """Return the half width of the 95 % interval of the mean over seeds, for fixed images; zero for one seed.

    It is Student's t of the S means. Few means may agree by chance, though the residual σ of outcomes S×N = mean + seed +
    image + residual makes them vary. So with `each` the half width is at least 1.96 σ / √(S N).
    """
    values = np.asarray(by_seed, dtype=float)
    if (count := len(values)) < 2:
        return 0.0
    half = float(t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / math.sqrt(count)
    return max(half, residual_half(each))


def residual_half(each: np.ndarray | None) -> float:
    """Return 1.96 σ / √(S N) for the residual σ of outcomes S×N; zero for one seed, one image, or without outcomes."""
    if each is None or min(each.shape) < 2:
        return 0.0
    outcomes = each.astype(float)
    rest = outcomes - outcomes.mean(0) - outcomes.mean(1, keepdims=True) + outcomes.mean()
    variance = float((rest**2).sum()) / ((len(each) - 1) * (each.shape[1] - 1))
    return 1.96 * math.sqrt(variance / each.size)


def median_ratio(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of the medians of distances S×N, S seeds on the same N images, and its 95 % interval.

    Images with a distance of zero on either side are left out, so that clean accuracy does not decide. The interval is a
    bootstrap over images, which keeps all seeds of an image together. With several seeds Student's t of the log ratios by
    seed is added: the squares of both half widths, in logarithms. Infinite distances rank above all others. Where a draw's
    ratio is undefined, or a seed's is zero, infinite or undefined, the interval widens to the possible side. NaN where
    the ratio itself is undefined. Raises InputError for different shapes.
    """
    if first.shape != second.shape:
        raise InputError(f"distances of shapes {first.shape} and {second.shape}: they should be equal, seeds × images")
    both = (first > 0) & (second > 0)
    one, two = (np.where(both, values, np.nan) for values in (first, second))
    value = float(_over(_median(one[:, None]), _median(two[:, None]))[0])
    if math.isnan(value):
        return math.nan, math.nan, math.nan
    chosen = np.random.default_rng(0).integers(0, first.shape[1], (2000, first.shape[1]))
    ratios = _over(_median(one[:, chosen]), _median(two[:, chosen]))
    low = np.quantile(np.nan_to_num(ratios, nan=0.0, posinf=np.inf), 0.025, method="closest_observation")
    high = np.quantile(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf), 0.975, method="closest_observation")
    if len(first) > 1:
        own = _over(_median(one[None]), _median(two[None]))  # by seed
        if np.isfinite(own).all() and (own > 0).all():
            half = float(t.ppf(0.975, len(own) - 1)) * float(np.log(own).std(ddof=1)) / math.sqrt(len(own))
            with np.errstate(divide="ignore"):
                arms = np.abs(np.log(np.array([low, high]) / value))
            low, high = value * np.exp(np.hypot(arms, half) * [-1, 1])
        else:
            low, high = min(low, float(np.nanmin(own, initial=low))), math.inf
    return value, float(low), float(high)


def distance_table(found: pd.DataFrame, against: str) -> pd.DataFrame:
    """Return by attack and method the median distance of correct images, the share of failed attacks, and a ratio.

    `found` is of `evaluation.distances_each`. The ratio is the `median_ratio` to `against` on common seeds, with its 95 %
    interval. It is NaN without a common seed; its interval also below FEWEST images.
    """
    each = {key: part.set_index("seed")["each"] for key, part in found.groupby(["attack", "method"], sort=False)}
    rows = []
    for (attack, method), own in each.items():
        values, theirs = np.stack(list(own)), each[attack, against]
        correct = np.sort(values[values > 0])
        row: dict[str, Any] = {"attack": attack, "method": method, "correct (%)": 100 * float((values > 0).mean())}
        row["median"] = float(correct[(len(correct) - 1) // 2]) if len(correct) else math.nan
        row["failed (%)"] = 100 * float(np.isinf(values).mean())
        row["ratio"] = row["low"] = row["high"] = math.nan
        if seeds := [seed for seed in own.index if seed in theirs.index]:
            first, second = (np.stack([part[seed] for seed in seeds]) for part in (own, theirs))
            row["ratio"], *ends = median_ratio(first, second)
            row["low"], row["high"] = ends if first.shape[1] >= FEWEST else (math.nan, math.nan)
        rows.append(row)
    return pd.DataFrame(rows).set_index(["attack", "method"])


def _median(values: np.ndarray) -> np.ndarray:
    """Return the lower median of S×D×N over seeds and images, without NaN: D. It averages no two infinities."""
    flat = np.sort(np.moveaxis(values, 0, 1).reshape(values.shape[1], -1), axis=1)  # NaN last
    counts = (~np.isnan(flat)).sum(1)
    found = flat[np.arange(len(flat)), np.maximum(counts - 1, 0) // 2]
    return np.where(counts > 0, found, np.nan)


def _over(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.divide(first, second)
        return found


def rank_correlation(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, control: np.ndarray | None = None, draws: int = 1000
) -> tuple[float, float, float]:
    """Return Spearman's ρ of N pairs and its 95 % interval by resampling `groups`, of which each is kept whole.

    With a `control`, ρ is the partial correlation given the control's ranks. A bootstrap of few groups is too narrow. So
    the interval also covers that of Fisher's z for as many pairs as there are groups (Bonett & Wright 2000). NaN where x,
    y or the control is constant, or with fewer than five groups.
    """
    names, members = np.unique(groups, return_inverse=True)
    every = np.stack([x, y] if control is None else [x, y, control])

    def of(chosen: np.ndarray) -> float:
        ranks = rankdata(every[:, chosen], axis=1)
        if (np.ptp(ranks, axis=1) == 0).any():
            return math.nan
        found = np.corrcoef(ranks)
        if control is None:
            return float(found[0, 1])
        left = (1 - found[0, 2] ** 2) * (1 - found[1, 2] ** 2)  # variances that the control leaves unexplained
        return float((found[0, 1] - found[0, 2] * found[1, 2]) / math.sqrt(left)) if left > 1e-9 else math.nan

    if (count := len(names)) < 5 or math.isnan(value := of(np.arange(len(x)))):
        return math.nan, math.nan, math.nan
    generator = np.random.default_rng(0)
    places = [np.flatnonzero(members == index) for index in range(count)]
    found = [of(np.concatenate([places[index] for index in generator.integers(0, count, count)])) for _ in range(draws)]
    kept = np.array([one for one in found if not math.isnan(one)])
    low, high = np.quantile(kept, [0.025, 0.975]) if len(kept) else (1.0, -1.0)
    bounded = max(-1 + 1 / count**2, min(1 - 1 / count**2, value))  # z is infinite at ±1, which few groups do not show
    half = 1.96 * math.sqrt((1 + bounded**2 / 2) / (count - (3 if control is None else 4)))
    low, high = min(low, math.tanh(math.atanh(bounded) - half)), max(high, math.tanh(math.atanh(bounded) + half))
    return value, float(low), float(high)
