"""Statistical power: which differences a run's images and seeds can tell from zero, computed before any training.

The test is that of `evaluation.difference`. With N images and S shared seeds, a measured difference has variance σ² / N +
s² / S around the true one. σ² is the variance of the two methods' difference over images; s² is that over seeds, on fixed
images. The test tells a difference from zero above

    √(z² σ² / N + t² ŝ² / S) + 1 / (N S).

z is 1.96, and t is Student's with S − 1 degrees of freedom. ŝ² is the estimate of s² from S seeds, s² χ² / (S − 1). With
one seed there is no second term, as in the test. `EXACT` scales the last term.

Conservative assumptions: σ² is that of `variance`, all of it between images. If s comes from n > N images, it is too small
for N. s² then grows by σ² (1 / N − 1 / n), as if each seed drew new images. All networks have learnt.
"""

import functools
import html
import math
import textwrap
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2, norm, t

from paperlib.claims import LEAST, load, number, paper_of, reported, rows, table_of
from paperlib.data import EXTENTS, scenes
from paperlib.evaluation.intervals import FEWEST
from paperlib.evaluation.settings import Plan
from paperlib.runs.files import InputError, read_json, root, write_json
from paperlib.runs.run import Run
from paperlib.runs.settings import Settings

POWER = 0.8
# Correlation of two methods' outcomes over images, with one seed. For PGD-AT and another method it is 0.60 to 0.98 where
# their accuracies are within 10 points of each other, else 0.02 to 0.58 (clean and under PGD on the margin, 1,000 images:
# docs/results/matrix/cifar10, from the intervals in gaps.csv). 0.5 is below the first range, which is conservative.
CORRELATION = 0.5
EXACT = 1.0  # outcomes lost to exact intervals and whole images, by simulations as in tests/test_power.py
SPREAD = 1.0  # deviation of a paired difference over seeds, in points, where no run and no paper gives it
MOST_SEEDS, MOST_IMAGES = 100, 100_000  # largest numbers that are tried; a known data set has its own images
NO_SHARES = (  # beginnings of measures with unbounded variance over images
    "alignment", "bound", "cam_correlation", "cosine", "defect", "depth_moved", "edge_cosine", "first_order", "flatness",
)  # fmt: skip
WIDTH = 140  # characters of a line for the terminal
UNTOLD = "not run at this preset"
NO_NUMBER = "no number"  # the paper gives none
UNSAID = "not said"


class Spread(NamedTuple):
    """Deviation of a paired difference over seeds, in [0,1], its number of test images, and its source."""

    value: float
    images: float
    source: str


@functools.cache
def _half_width(seeds: int) -> float:
    """Return the half width of a 95 % interval in standard errors: Student's for several seeds, normal for one."""
    return float(t.ppf(0.975, seeds - 1) if seeds > 1 else norm.ppf(0.975))


@functools.cache
def _quantiles(seeds: int) -> np.ndarray:
    """Return 400 equally likely values of χ² / (S − 1)."""
    found: np.ndarray = chi2.ppf((np.arange(400) + 0.5) / 400, seeds - 1) / (seeds - 1)
    return found


def power(difference: float, variance: float, spread: Spread, images: int, seeds: int) -> float:
    """Return the probability that a true difference in [0,1] is told from zero; `variance` is σ²."""
    if images < FEWEST:
        return 0.0
    by_image, z, difference = variance / images, _half_width(1), difference - EXACT / (images * seeds)
    if seeds == 1:
        return float(ndtr(difference / max(math.sqrt(by_image), 1e-12) - z))
    by_seed = (spread.value**2 + variance * max(0.0, 1 / images - 1 / spread.images)) / seeds
    arms = np.sqrt(z**2 * by_image + _half_width(seeds) ** 2 * by_seed * _quantiles(seeds))
    return float(ndtr((difference - arms) / max(math.sqrt(by_image + by_seed), 1e-12)).mean())


@functools.cache
def smallest(variance: float, spread: Spread, images: int, seeds: int) -> float:
    """Return the smallest true difference in [0,1] that is told from zero with power 0.8; infinite if even 1 is not."""

    def missing(difference: float) -> float:
        return power(difference, variance, spread, images, seeds) - POWER

    return float(brentq(missing, 0.0, 1.0, xtol=1e-6)) if missing(1.0) > 0 else math.inf


def variance(first: float, second: float, images: int) -> float:
    """Return σ² of the difference of two methods with these accuracies in [0,1], at `CORRELATION` or the largest possible.

    Two correct and two wrong images are added (Agresti & Coull 1998), since an accuracy of 1 may be chance.
    """
    p, q = sorted((share * images + 2) / (images + 4) for share in (first, second))
    a, b = p * (1 - p), q * (1 - q)
    return a + b - 2 * min(CORRELATION * math.sqrt(a * b), p * (1 - q))


def enough(difference: float, variance: float, spread: Spread, images: int, seeds: int, most: int, fewest: int = 1) -> str:
    """Return in words how many more seeds, else more images, else both, would tell a difference from zero.

    Tries at most `most` images, and at least `fewest` seeds.
    """

    def does(images: int, seeds: int) -> bool:
        return seeds >= fewest and power(difference, variance, spread, images, seeds) >= POWER

    def least_seeds(images: int) -> int:  # power grows with seeds from two on
        return _first(lambda count: does(images, count), max(seeds, 1), MOST_SEEDS)

    def least_images(seeds: int) -> int:
        return _first(lambda count: does(count, seeds), images, most)

    if count := least_seeds(images):
        return f"{count} seeds"
    if count := least_images(seeds):
        return f"{count:,} images"
    if count := least_seeds(most):
        return f"{count} seeds and {least_images(count):,} images"
    return f"more than {MOST_SEEDS} seeds and {most:,} images"


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the first integer above `low` for which `holds`, a monotone condition, is True; 0 if none up to `high`."""
    if high <= low or not holds(high):
        return 0
    return low + 1 + bisect_left(range(low + 1, high), True, key=holds)


def table(notebook: str, settings: Settings, plan: Plan, own: Path | None = None) -> pd.DataFrame:
    """Return what a run with these settings can decide, one row per claim of the notebook, without data or training.

    `plan` is the study's plan for the settings; `own` is the run's folder, which is not searched for spreads. Columns: id,
    statement, place, kind; `claimed`: the paper's difference in points, or None; `asked`: the difference to be told, which
    is `claimed` or, for kind keep, the distance from the floor (`claims.LEAST` if that is the paper's difference); n
    images and seeds of both sides; `smallest`: the smallest difference that can be told, in points; `spread`: source of
    the spread over seeds; `decides`: "yes", "no", "no number" (the paper gives none), "not run at this preset" or "not
    said"; why; `enough`: images and seeds that would suffice. Raises InputError for a notebook without claims.
    """
    if (paper := paper_of(notebook)) is None:
        raise InputError(f"{notebook} judges no claims")
    known, data = _earlier(notebook, plan.case, own), getattr(settings, "data", "toy")
    most = EXTENTS[data][0] if data in EXTENTS and data not in scenes.SETS else MOST_IMAGES
    found = []
    for claim in (one for one in load(paper)["claims"] if one["notebook"] == notebook):
        claimed, floor, ratio = reported(paper, claim, plan.case), claim.get("floor", 0.0), claim["kind"] == "ratio"
        asked = claimed
        if claim["kind"] == "keep":
            asked = LEAST if floor == "reported" else abs((claimed or 0.0) - floor)
        sides = [claim["method"], claim["than"]][: 1 if ratio else 2]
        counts = [plan.seeds.get(side, plan.seeds.get(side.partition(" on ")[0], 0)) for side in sides]
        n, seeds = plan.images.get(claim["measure"]), min(counts)
        row = {**{name: claim[name] for name in ("id", "statement", "place", "kind")}, "claimed": claimed}
        row |= {"asked": None if ratio else asked, "n": n, "seeds": seeds or None, "smallest": None, "spread": ""}
        decides, why, does = UNSAID, "", ""
        if not seeds:
            decides, why = UNTOLD, f"{sides[counts.index(0)]} is not trained"
        elif claim["measure"] not in plan.images:
            decides, why = UNTOLD, f"{claim['measure']} is not measured"
        elif ratio:
            why = "a ratio, not a difference"
        elif claim["measure"].startswith(NO_SHARES):
            why = f"{claim['measure']} is no share, so its variance over images has no bound"
        elif n is None:
            why = "the number of test images is known when the folder is read"
        elif asked is not None and asked <= 0:
            decides, why = "no", f"the paper's own table has {asked:+.1f} here, which is no gain"
        else:
            around = variance(*_accuracies(paper, claim, plan.case), n)
            spread = _spread(paper, claim, plan.case, known)
            least = smallest(around, spread, n, seeds)
            row |= {"smallest": 100 * least if least <= 1 else None}
            row["spread"] = spread.source if seeds > 1 else "left out: one seed"
            able = n >= FEWEST and seeds >= claim.get("seeds", 1)
            decides = "no" if not able or asked is None or 100 * least > asked else "yes"
            if able and asked is None and least <= 1:
                decides, why = NO_NUMBER, f"told from {100 * least:.1f} points on"
            elif n < FEWEST:
                why = f"{n} images, fewer than {FEWEST}"
            elif seeds < claim.get("seeds", 1):
                why = f"needs {claim['seeds']} seeds"
            if decides == "no" and asked is not None:
                does = enough(asked / 100, around, spread, n, seeds, most, claim.get("seeds", 1))
        found.append(row | {"decides": decides, "why": why, "enough": does})
    return pd.DataFrame(found, dtype=object)


def _accuracies(paper: str, claim: Mapping[str, Any], case: str) -> tuple[float, float]:
    """Return the paper's accuracies of a claim's two sides, in [0,1]; without them 0.5, where outcomes vary most."""
    if (name := table_of(claim, case)) is None:
        return 0.5, 0.5
    known = rows(paper, name)
    return known[claim["method"]][claim["measure"]] / 100, known[claim["than"]][claim["measure"]] / 100


def _spread(paper: str, claim: Mapping[str, Any], case: str, known: Mapping[str, Spread]) -> Spread:
    """Return the spread of an earlier run, else that of both sides' ± in the paper, else `SPREAD`."""
    if claim["id"] in known:
        return known[claim["id"]]
    about = load(paper)["tables"].get(table_of(claim, case), {})
    each = [about.get("deviation", {}).get(claim[side], {}).get(claim["measure"]) for side in ("method", "than")]
    if None not in each:
        value = math.hypot(*each)
        return Spread(value / 100, about["images"], f"{value:.2g}, the paper's ±")
    return Spread(SPREAD / 100, math.inf, f"{SPREAD:g}, a default")


def _earlier(notebook: str, case: str, own: Path | None) -> dict[str, Spread]:
    """Return by claim the spread of an earlier run with several seeds: prefer this case, most seeds, most images."""
    found: dict[str, tuple[tuple[bool, int, int], Spread]] = {}
    for file in sorted(root().glob(f"runs/{notebook}/*/claims.json")):
        with suppress(InputError, OSError, TypeError, KeyError, AttributeError):  # other runs may be damaged
            for row in read_json(file) if file.parent != own else ():
                if row["kind"] == "ratio" or row.get("spread") is None or row["seeds"] < 2:
                    continue
                rank = (row["case"] == case, row["seeds"], row["n"])
                words = f"{row['spread']:.2g}, {file.parent.name}: {row['seeds']} seeds, {row['n']} images"
                if row["id"] not in found or rank > found[row["id"]][0]:
                    found[row["id"]] = rank, Spread(row["spread"] / 100, row["n"], words)
    return {name: spread for name, (_, spread) in found.items()}


def told(plan: pd.DataFrame) -> str:
    """State in a sentence how many of the claims can be decided."""
    words = ("yes", "no", NO_NUMBER, UNTOLD, UNSAID)
    yes, no, bare, out, unsaid = (int((plan["decides"] == word).sum()) for word in words)
    return (
        f"{yes} of {len(plan)} claims can be decided at this preset; {no} cannot; {bare} give no number; {out} not run; "
        f"for {unsaid} the power is unknown"
    )


def shown(plan: pd.DataFrame) -> pd.DataFrame:
    """Return the plan as text: numbers in points, – for none; "would do" has why, and what would suffice."""
    words = plan.drop(columns=["kind", "why", "enough"])
    for name in ("claimed", "asked", "smallest"):
        words[name] = [number(value, kind) for value, kind in zip(plan[name], plan["kind"], strict=True)]
    for name in ("n", "seeds"):
        words[name] = [f"{value:,}" if value else "–" for value in plan[name]]
    pairs = zip(plan["why"], plan["enough"], strict=True)
    return words.assign(**{"would do": ["; ".join(filter(None, pair)) for pair in pairs]})


def lines(plan: pd.DataFrame) -> list[str]:
    """Return the plan for a terminal: each claim's statement, its numbers below, and `told` at the end."""
    columns = {"claimed": 8, "asked": 8, "n": 8, "seeds": 7, "smallest": 10}
    heads = "".join(f"{name:>{size}}" for name, size in columns.items())
    found = [f"    {heads}  decides   would do; spread over seeds (all in points)"]
    for row in shown(plan).to_dict("records"):
        numbers = "".join(f"{row[name]:>{size}}" for name, size in columns.items())
        rest = "; ".join(filter(None, (row["would do"], row["spread"])))
        found.append(textwrap.shorten(f"{row['id']}: {row['statement']} ({row['place']})", WIDTH, placeholder=" …"))
        found.append(f"    {numbers}  {row['decides'].removesuffix(' at this preset'):10}{rest}"[:WIDTH].rstrip())
    return [*found, told(plan)]


def show(run: Run[Settings], plan: Plan) -> Any:
    """Save the plan of a run as plan.json, and return it for display in a notebook."""
    found = table(run.notebook, run.settings, plan, run.folder)
    write_json(run.folder / "plan.json", found.to_dict("records"))
    caption = (
        f"The smallest true difference, in points, that these images and seeds tell from zero {POWER:.0%} of the time, "
        f"beside what is asked: the paper's difference, where it gives one. {told(found)}."
    )
    return shown(found).style.hide(axis="index").format(escape="html").set_caption(html.escape(caption))
