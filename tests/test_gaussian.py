"""The Gaussian model against plain sampling of it."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from paperlib.geometry import gaussian

D, SIGMA, EPS = 40, 1.3, 0.4
MEAN = np.ones(D)


def test_errors_are_those_of_sampled_points_under_the_worst_perturbation() -> None:
    random = np.random.default_rng(0)
    w = random.standard_normal(D) + 0.4
    y = random.choice((-1, 1), 200_000)
    scores = y * ((y[:, None] * MEAN + SIGMA * random.standard_normal((200_000, D))) @ w)
    standard, robust = gaussian.errors(w, MEAN, SIGMA, EPS)
    assert standard == pytest.approx(float((scores < 0).mean()), abs=0.004)
    # Against a linear classifier the worst perturbation is ε against the sign of each weight.
    worst = w @ (EPS * np.sign(w))
    assert robust == pytest.approx(float((scores - worst < 0).mean()), abs=0.004)
    assert gaussian.errors(w, MEAN, SIGMA, 0.0)[1] == standard


def test_estimators_have_the_moments_of_estimators_from_sampled_points() -> None:
    """Means and covariances of both estimators, drawn here point by point."""
    random, n, m, draws = np.random.default_rng(1), 3, 5, 4000
    w = MEAN + 0.8 * random.standard_normal(D)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = random.choice((-1, 1), (draws, count))
        return y, y[..., None] * MEAN + 3 * SIGMA * random.standard_normal((draws, count, D))

    y, x = points(n)
    plain = (y[..., None] * x).mean(1)
    _, x = points(m)
    guessed = (np.sign(x @ w)[..., None] * x).mean(1)
    ours = np.stack([gaussian.supervised(MEAN, 3 * SIGMA, n, random) for _ in range(draws)])
    ours_consistent = np.stack([gaussian.consistent(w, MEAN, 3 * SIGMA, m, random) for _ in range(draws)])
    unit = w / np.linalg.norm(w)
    across = MEAN - (MEAN @ unit) * unit
    across /= np.linalg.norm(across)
    other = np.linalg.qr(np.stack([unit, across, random.standard_normal(D)], 1))[0][:, 2]
    for theirs, mine in ((plain, ours), (guessed, ours_consistent)):
        for direction in (unit, across, other):
            first, second = theirs @ direction, mine @ direction
            standard_error = first.std() / math.sqrt(draws)
            assert abs(first.mean() - second.mean()) < 5 * standard_error
            assert second.std() == pytest.approx(first.std(), rel=0.06)


def test_the_gap_opens_with_the_dimension_and_consistency_closes_it() -> None:
    table = gaussian.gaps([64, 1024, 16384], 0.5, 0.5, 1.0, 10).set_index(["estimator", "error", "dimension"])["value"]
    alone = [table["one labelled sample", "robust", d] for d in (64, 1024, 16384)]
    assert alone == sorted(alone)
    assert alone[-1] > 0.99
    assert table["one labelled sample", "standard", 16384] < 0.01
    assert table["with consistency", "robust", 16384] < 0.01


def test_samples_needed_are_those_of_the_closed_form() -> None:
    """Where the noise is large, θ has ‖θ‖₁ ≈ d E|1 + s z| and ⟨θ, θ*⟩ ≈ d with s = σ/√n: solved for n here."""
    d, spread, eps = 16384, 1.0, 0.5
    sigma = spread * d**0.25

    def robust(n: int) -> float:
        s = sigma / math.sqrt(n)
        absolute = s * math.sqrt(2 / math.pi) * math.exp(-1 / (2 * s**2)) + 1 - 2 * norm.cdf(-1 / s)  # E|1 + s z|
        return float(norm.cdf(-math.sqrt(d) * (1 - eps * absolute) / (sigma * math.sqrt(1 + s**2))))

    expected = next(n for n in range(1, 1000) if robust(n) <= 0.01)
    found = gaussian.samples_needed([d], spread, eps, 10).set_index("samples")["count"]
    assert found["labelled"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("eps", [0.25, 0.5])
def test_the_onset_is_where_one_sample_is_fooled_half_of_the_time(eps: float) -> None:
    d = round(gaussian.onset(0.5, eps))
    table = gaussian.gaps([d], 0.5, eps, 1.0, 1000).set_index(["estimator", "error"])["value"]
    assert table["one labelled sample", "robust"] == pytest.approx(0.5, abs=0.05)
