"""The Gaussian model of RAAT's Theorem 1 (Definitions 2 and 3, after Schmidt et al. 2018), with exact errors.

Labels y = ±1 are random, x ~ N(y θ*, σ² I) in d dimensions, and classifiers are sign⟨w, x⟩. Given w, standard and robust
error have closed forms. Only the training samples are simulated.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import foldnorm, norm


def errors(w: np.ndarray, mean: np.ndarray, sigma: float, eps: float) -> tuple[float, float]:
    """Return the standard error of sign⟨w, x⟩, and its error under L∞ perturbations of at most `eps`; both in [0,1].

    Φ(−⟨w, θ*⟩ / σ‖w‖₂) and Φ(−(⟨w, θ*⟩ − ε‖w‖₁) / σ‖w‖₂): the worst perturbation changes ⟨w, x⟩ by ε‖w‖₁.
    """
    scale = sigma * float(np.linalg.norm(w))
    agreement = float(w @ mean)
    return float(norm.cdf(-agreement / scale)), float(norm.cdf(-(agreement - eps * np.abs(w).sum()) / scale))


def supervised(mean: np.ndarray, sigma: float, labelled: int, random: np.random.Generator) -> np.ndarray:
    """Draw θ = (1/n) Σ y_i x_i of n = `labelled` samples, as θ* + σ/√n times a normal vector (Definition 3)."""
    # RAAT, Definition 3 (labelled samples): θ = Σ yᵢxᵢ; here: divided by n
    return mean + sigma / math.sqrt(labelled) * random.standard_normal(len(mean))


def consistent(w: np.ndarray, mean: np.ndarray, sigma: float, unlabelled: int, random: np.random.Generator) -> np.ndarray:
    """Draw θ̃ = (1/m) Σ ỹ_i x_i of m = `unlabelled` samples, which the classifier `w` labels ỹ_i (Definition 3).

    ỹ_i depends on the noise of x_i only along w. That part is drawn for each sample, the rest as one sum.
    """
    unit = w / np.linalg.norm(w)
    labels = random.choice((-1.0, 1.0), unlabelled)
    along = random.standard_normal(unlabelled)
    given = np.sign(labels * float(unit @ mean) + sigma * along)  # ỹ_i
    rest = random.standard_normal(len(mean))
    rest -= (unit @ rest) * unit
    noise = float((given * along).sum()) * unit + math.sqrt(unlabelled) * rest
    # RAAT, Definition 3: θ̃ = Σ ỹᵢxᵢ with ỹᵢ = f_θ(xᵢ); here: divided by m
    found: np.ndarray = (float((given * labels).sum()) * mean + sigma * noise) / unlabelled
    return found


def gaps(dimensions: Sequence[int], spread: float, eps: float, unlabelled_factor: float, trials: int) -> pd.DataFrame:
    """Return errors by dimension d with one labelled sample, without and with ⌈k √d⌉ unlabelled samples.

    k is `unlabelled_factor`, θ* = (1, …, 1), so ‖θ*‖₂ = √d, and σ = `spread` · d^¼ (Theorem 1: `spread` at most 1/32).
    Columns: dimension, estimator, error (standard or robust), value (mean over `trials`).
    """
    rows = []
    for d in dimensions:
        random = np.random.default_rng(d)
        # RAAT, Theorem 1: ‖θ*‖₂ = √d, σ ≤ d^¼ / 32
        mean, sigma = np.ones(d), spread * d**0.25
        count = math.ceil(unlabelled_factor * math.sqrt(d))
        found = []
        for _ in range(trials):
            w = supervised(mean, sigma, 1, random)
            found.append([errors(w, mean, sigma, eps), errors(consistent(w, mean, sigma, count, random), mean, sigma, eps)])
        values = np.mean(found, axis=0)
        for row, estimator in enumerate(("one labelled sample", "with consistency")):
            for column, kind in enumerate(("standard", "robust")):
                rows.append((d, estimator, kind, values[row, column]))
    return pd.DataFrame(rows, columns=["dimension", "estimator", "error", "value"])


def samples_needed(
    dimensions: Sequence[int], spread: float, eps: float, trials: int, target: float = 0.01, most: int = 100_000
) -> pd.DataFrame:
    """Find the fewest samples, to within 10 %, with a mean robust error of at most `target`, by dimension.

    Either all samples are labelled, or the counted ones are unlabelled beside one labelled sample. Columns: dimension,
    samples (labelled or unlabelled), count (infinite beyond `most`).
    """
    counts = np.unique(np.round(np.geomspace(1, most, math.ceil(math.log(most) / math.log(1.1)))).astype(int)).tolist()
    rows = []
    for d, kind in itertools.product(dimensions, ("labelled", "unlabelled")):
        error = partial(_robust_error, d, spread, eps, trials, kind)  # falls with the count, so bisection finds the place
        place = bisect_left(counts, True, key=lambda count, error=error: error(count) <= target)  # type: ignore[misc]
        rows.append((d, kind, float(counts[place]) if place < len(counts) else math.inf))
    return pd.DataFrame(rows, columns=["dimension", "samples", "count"])


def _robust_error(d: int, spread: float, eps: float, trials: int, kind: str, count: int) -> float:
    """Return the mean robust error with `count` samples that are labelled, or unlabelled beside one labelled sample."""
    random, mean, sigma = np.random.default_rng([d, count]), np.ones(d), spread * d**0.25
    found = []
    for _ in range(trials):
        w = supervised(mean, sigma, count if kind == "labelled" else 1, random)
        if kind == "unlabelled":
            w = consistent(w, mean, sigma, count, random)
        found.append(errors(w, mean, sigma, eps)[1])
    return float(np.mean(found))


def onset(spread: float, eps: float) -> float:
    """Return the dimension d above which the robust error with one labelled sample exceeds ½, for σ = spread · d^¼.

    There ε‖w‖₁ ≈ ε d E|1 + σz|, z standard normal, equals ⟨w, θ*⟩ ≈ d: a folded normal distribution has the mean 1/ε.
    Zero for eps ≥ 1, where the error exceeds ½ in every dimension.
    """
    if eps >= 1:
        return 0.0
    sigma: float = brentq(lambda s: s * foldnorm.mean(1 / s) - 1 / eps, 1e-3, 2 / eps)
    return (sigma / spread) ** 4
