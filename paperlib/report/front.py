"""Plots of the first page. Positions are in percent of the width, so that plots fit any screen."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paperlib.evaluation.intervals import FEWEST
from paperlib.figures.names import title

EDGE = 5.0  # free margin on either side, in percent of the width
ATTACK = re.compile(r"(pgd|apgd|autoattack|cw|fgsm|square)(?!\w*_(joint|ratio)$)(_\w+)?")


def place(value: float, low: float, high: float) -> float:
    """Return the position of a value on an axis from `low` to `high`, in percent of the width, clipped to the axis."""
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return round(EDGE + (100 - 2 * EDGE) * share, 2)


def forests(claims: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return forest plots of decided claims: one for each paper, and a separate one for its ratios.

    A plot has the position of no effect (0, for ratios 1), its ticks with their labels, and its rows. A row is a claim
    with the positions of the measured value, the interval's ends, and the paper's number if there is one. Claims with the
    same id are adjacent.
    """
    groups: dict[tuple[str, bool], dict[str, list[Mapping[str, Any]]]] = {}
    for claim in claims:
        groups.setdefault((claim["paper"], claim["kind"] == "ratio"), {}).setdefault(claim["id"], []).append(claim)
    return [_forest(paper, ratio, [claim for one in group.values() for claim in one])
            for (paper, ratio), group in groups.items()]  # fmt: skip


def _forest(paper: str, ratio: bool, claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names, none = ("measured", "low", "high", "claimed"), float(ratio)
    numbers = [{name: float(claim[name]) for name in names if claim[name] is not None} for claim in claims]
    known = [none, *(value for row in numbers for value in row.values() if math.isfinite(value))]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - 1, high + 1
    rows = [{**claim, "at": {name: place(value, low, high) for name, value in row.items() if not math.isnan(value)}}
            for claim, row in zip(claims, numbers, strict=True)]  # fmt: skip
    texts = [(place(value, low, high), f"× {value:g}" if ratio else f"{value:+g}" if value else "0")
             for value in ticks(low, high)]  # fmt: skip
    return {"paper": paper, "ratio": ratio, "none": place(none, low, high), "ticks": texts, "rows": rows}


def ticks(low: float, high: float) -> list[float]:
    """Return at most six round, evenly spaced numbers from `low` to `high`."""
    unit = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * times for times in (1, 2, 5, 10) if (high - low) / (unit * times) <= 5)
    return [round(step * number, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def accuracies(measures: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return clean and robust accuracy by method, from a run's measures.json; None if either is missing.

    Only the methods with the most attacks on at least `FEWEST` images are shown. Of the attacks that all of them share,
    the one with the lowest mean accuracy gives the robust accuracy.
    """
    values = {(row["method"], row["measure"]): row for row in measures if row["n"] >= FEWEST}
    tried = {method: {one for of, one in values if of == method and ATTACK.fullmatch(one)}
             for method, measure in values if measure == "clean"}  # fmt: skip
    most = max(map(len, tried.values()), default=0)
    main = [method for method, attacks in tried.items() if attacks and len(attacks) == most]
    if not (shared := set.intersection(*(tried[method] for method in main)) if main else set()):
        return None
    robust = min(sorted(shared), key=lambda one: sum(values[method, one]["mean"] for method in main))
    rows = [{"method": title(method), "clean": _dot(values[method, "clean"]), "robust": _dot(values[method, robust])}
            for method in main]  # fmt: skip
    sizes = [max(values[method, one]["n"] for method in main) for one in ("clean", robust)]
    return {"attack": title(robust), "rows": rows, "sizes": sizes, "ends": (place(0, 0, 1), place(1, 0, 1))}


def _dot(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the positions of an accuracy and its interval, and their text in percent."""
    numbers = {name: float(row[name]) for name in ("mean", "low", "high")}
    mean, low, high = (f"{100 * value:.1f}" for value in numbers.values())
    return {**{name: place(value, 0, 1) for name, value in numbers.items()}, "text": mean, "interval": f"{low} to {high}"}
