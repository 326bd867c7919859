"""Power before work: which differences a run's images and seeds will tell from zero, before anything is trained.

The rule is that of `evaluation.difference`. With N images and S shared seeds, a measured difference lies around the true
one with variance σ² / N + s² / S. σ² is that of the two methods' outcomes over images, s² that of the seeds' means, on
these images. It is told from zero above

    √(z² σ² / N + t² ŝ² / S) + 1 / (N S),

with z = 1.96, Student's t of S − 1 degrees of freedom, and ŝ² as S seeds show it, s² χ² / (S − 1). One seed has no second
term: its luck is left out, here as there. The last is `EXACT`.

Assumed, and rather too much than too little: σ² is as `variance` has it, wholly the images' own. Where N is below the
images n that s is known of, s² grows by σ² (1 / N − 1 / n), as if each seed drew all of it anew. Networks have learnt.
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
# Of two methods' outcomes over images, in one seed. PGD-AT's and another's have 0.60 to 0.98 where their accuracies are
# within 10 points of each other, and 0.02 to 0.58 where not (clean and under PGD on the margin, 1,000 images:
# docs/results/matrix/cifar10, from the intervals in gaps.csv). Half is below the first, so it asks for more, not for less.
CORRELATION = 0.5
EXACT = 1.0  # outcome that exact intervals and whole images cost, by simulations as those of tests/test_power.py
SPREAD = 1.0  # points, of a paired difference over seeds, where no run and no paper says
MOST_SEEDS, MOST_IMAGES = 100, 100_000  # that are looked at; of a known data set its own images
NO_SHARES = (  # measures that begin so: nothing bounds how they vary over images
    "alignment", "bound", "cam_correlation", "cosine", "defect", "depth_moved", "edge_cosine", "first_order", "flatness",
)  # fmt: skip
UNTOLD = "not run at this preset"


class Spread(NamedTuple):
    """Deviation over seeds of a paired difference, in [0,1], the test images that it is of, and where it is from."""

    value: float
    images: float
    source: str


@functools.cache
def _half_width(seeds: int) -> float:
    """Of a 95 % interval, in standard errors: Student's over seeds, the normal's of one."""
    return float(t.ppf(0.975, seeds - 1) if seeds > 1 else norm.ppf(0.975))


@functools.cache
def _quantiles(seeds: int) -> np.ndarray:
    """χ² / (S − 1) at 400 equally likely places."""
    found: np.ndarray = chi2.ppf((np.arange(400) + 0.5) / 400, seeds - 1) / (seeds - 1)
    return found


def power(difference: float, variance: float, spread: Spread, images: int, seeds: int) -> float:
    """How often a true difference above zero, in [0,1], is told from zero; `variance` is σ², by image."""
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
    """The smallest true difference that is told from zero in 80 % of runs, in [0,1]; infinite where even 1 is not."""

    def missing(difference: float) -> float:
        return power(difference, variance, spread, images, seeds) - POWER

    return float(brentq(missing, 0.0, 1.0, xtol=1e-6)) if missing(1.0) > 0 else math.inf


def variance(first: float, second: float, images: int) -> float:
    """σ² of right less wrong of two methods with these accuracies in [0,1], from `CORRELATION` as far as they allow it.

    Two images right and two wrong are added (Agresti & Coull 1998): an accuracy of 1 may be luck.
    """
    p, q = sorted((share * images + 2) / (images + 4) for share in (first, second))
    a, b = p * (1 - p), q * (1 - q)
    return a + b - 2 * min(CORRELATION * math.sqrt(a * b), p * (1 - q))


def enough(difference: float, variance: float, spread: Spread, images: int, seeds: int, most: int, fewest: int = 1) -> str:
    """The seeds that tell a difference on as many images, else the images with as many seeds, else both, in words.

    More than now, of `most` images at most and `fewest` seeds at least.
    """

    def does(images: int, seeds: int) -> bool:
        return seeds >= fewest and power(difference, variance, spread, images, seeds) >= POWER

    def least_seeds(images: int) -> int:  # from two on, the more the better
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
    """The first whole number above `low` for which it holds, as it then does up to `high`; zero where it never does."""
    if high <= low or not holds(high):
        return 0
    return low + 1 + bisect_left(range(low + 1, high), True, key=holds)


def table(notebook: str, settings: Settings, plan: Plan, own: Path | None = None) -> pd.DataFrame:
    """What a run with these settings can tell, one row a claim of the notebook; no data is loaded, nothing trained.

    `plan` is what the settings come to, by the study; `own` is the folder of a run that is no earlier one. Columns: id,
    statement, place, kind; `claimed`, the paper's difference in points, None where it gives none; `asked`, what is to be
    told: that or, of kind keep, the distance from the floor, `claims.LEAST` where the floor is the paper's own difference;
    n images and seeds, which both sides will have; `smallest` (see there), in points; `spread`, where that of the seeds is
    from; `decides`: "yes", "no", "no number" (the paper gives none), "not run at this preset" or "not said"; why; `enough`:
    what would do. Raises InputError for a notebook without claims.
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
        decides, why, does = "not said", "", ""
        if not seeds:
            decides, why = UNTOLD, f"{sides[counts.index(0)]} is not trained"
        elif claim["measure"] not in plan.images:
            decides, why = UNTOLD, f"{claim['measure']} is not measured"
        elif ratio:
            why = "a ratio, not a difference"
        elif claim["measure"].startswith(NO_SHARES):
            why = f"{claim['measure']} is no share, and may vary over images by any amount"
        elif n is None:
            why = "how many test images the folder has shows when it is read"
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
                decides, why = "no number", f"told from {100 * least:.1f} points on"
            elif n < FEWEST:
                why = f"{n} images, fewer than {FEWEST}"
            elif seeds < claim.get("seeds", 1):
                why = f"needs {claim['seeds']} seeds"
            if decides == "no" and asked is not None:
                does = enough(asked / 100, around, spread, n, seeds, most, claim.get("seeds", 1))
        found.append(row | {"decides": decides, "why": why, "enough": does})
    return pd.DataFrame(found, dtype=object)


def _accuracies(paper: str, claim: Mapping[str, Any], case: str) -> tuple[float, float]:
    """Those of a claim's two sides as the paper has them, in [0,1]; 0.5, where outcomes vary most, where it has none."""
    if (name := table_of(dict(claim), case)) is None:
        return 0.5, 0.5
    known = rows(paper, name)
    return known[claim["method"]][claim["measure"]] / 100, known[claim["than"]][claim["measure"]] / 100


def _spread(paper: str, claim: Mapping[str, Any], case: str, known: Mapping[str, Spread]) -> Spread:
    """Of an earlier run; else of the paper, the root of the squares of both sides' ±; else `SPREAD`, of all images."""
    if claim["id"] in known:
        return known[claim["id"]]
    about = load(paper)["tables"].get(table_of(dict(claim), case), {})
    each = [about.get("deviation", {}).get(claim[side], {}).get(claim["measure"]) for side in ("method", "than")]
    if None not in each:
        value = math.hypot(*each)
        return Spread(value / 100, about["images"], f"{value:.2g}, the paper's ±")
    return Spread(SPREAD / 100, math.inf, f"{SPREAD:g}, a default")


def _earlier(notebook: str, case: str, own: Path | None) -> dict[str, Spread]:
    """By claim, the spread that a run of several seeds measured: of this case, else of the most seeds, then images."""
    found: dict[str, tuple[tuple[bool, int, int], Spread]] = {}
    for file in sorted(root().glob(f"runs/{notebook}/*/claims.json")):
        with suppress(InputError, OSError, TypeError, KeyError, AttributeError):  # another run's damage is not this one's
            for row in read_json(file) if file.parent != own else ():
                if row["kind"] == "ratio" or row.get("spread") is None or row["seeds"] < 2:
                    continue
                rank = (row["case"] == case, row["seeds"], row["n"])
                words = f"{row['spread']:.2g}, {file.parent.name}: {row['seeds']} seeds, {row['n']} images"
                if row["id"] not in found or rank > found[row["id"]][0]:
                    found[row["id"]] = rank, Spread(row["spread"] / 100, row["n"], words)
    return {name: spread for name, (_, spread) in found.items()}


def told(plan: pd.DataFrame) -> str:
    """How many of the claims can be decided, in a sentence."""
    words = ("yes", "no", "no number", UNTOLD, "not said")
    yes, no, bare, out, unsaid = (int((plan["decides"] == word).sum()) for word in words)
    return (
        f"{yes} of {len(plan)} claims can be decided at this preset; {no} cannot; {bare} give no number; {out} not run; "
        f"of {unsaid} it cannot be told"
    )


def shown(plan: pd.DataFrame) -> pd.DataFrame:
    """The plan in words: numbers in points, – for none; "would do" has what would, or why nothing can be said."""
    words = plan.drop(columns=["kind", "why", "enough"])
    for name in ("claimed", "asked", "smallest"):
        words[name] = [number(value, kind) for value, kind in zip(plan[name], plan["kind"], strict=True)]
    for name in ("n", "seeds"):
        words[name] = [f"{value:,}" if value else "–" for value in plan[name]]
    pairs = zip(plan["why"], plan["enough"], strict=True)
    return words.assign(**{"would do": ["; ".join(filter(None, pair)) for pair in pairs]})


def lines(plan: pd.DataFrame, width: int = 140) -> list[str]:
    """The plan for a terminal: under each claim's statement its numbers, and `told` at the end."""
    columns = {"claimed": 8, "asked": 8, "n": 8, "seeds": 7, "smallest": 10}
    heads = "".join(f"{name:>{size}}" for name, size in columns.items())
    found = [f"    {heads}  decides   would do; spread over seeds (all in points)"]
    for row in shown(plan).to_dict("records"):
        numbers = "".join(f"{row[name]:>{size}}" for name, size in columns.items())
        rest = "; ".join(filter(None, (row["would do"], row["spread"])))
        found.append(textwrap.shorten(f"{row['id']}: {row['statement']} ({row['place']})", width, placeholder=" …"))
        found.append(f"    {numbers}  {row['decides'].removesuffix(' at this preset'):10}{rest}"[:width].rstrip())
    return [*found, told(plan)]


def show(run: Run[Settings], plan: Plan) -> Any:
    """The plan of a run as a notebook shows it; kept as plan.json in its folder."""
    found = table(run.notebook, run.settings, plan, run.folder)
    write_json(run.folder / "plan.json", found.to_dict("records"))
    caption = (
        f"The smallest true difference, in points, that these images and seeds tell from zero {POWER:.0%} of the time, "
        f"beside what is asked: the paper's difference, where it gives one. {told(found)}."
    )
    return shown(found).style.hide(axis="index").format(escape="html").set_caption(html.escape(caption))
