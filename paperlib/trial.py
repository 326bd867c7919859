"""Is it real? A defence on trial: the attacks that a paper reports against the strongest of all, image by image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from paperlib.evaluation import difference, summary

REPORTED = "apgd_ce"  # the strongest attack that the paper reports accuracy under
SHOWN = ("fgsm", "pgd_task", REPORTED)  # beside the best of all attacks
GAP = 0.05  # accuracy by which that may overstate the best of all attacks, and a gain that counts


def judge(tables: Sequence[pd.DataFrame], signs: Mapping[str, Sequence[str]], against: str = "standard") -> pd.DataFrame:
    """For each method: accuracy under FGSM, PGD on the task loss and APGD, and by image under the best of all attacks.

    `tables` are of `evaluate_each` on the same images and in the same ball. The outcome: *real* if the worst case is
    surely above that of `against`, APGD does not surely overstate it by more than 5 points, and the audit has no sign;
    *partly real* if it is surely above, but one of these fails. Not surely above, it is *masked* if APGD overstates it, or
    if it is surely above under APGD and the audit has a sign; else no robustness could be *told*.
    """
    table = pd.concat(tables, ignore_index=True)
    rows = []
    for (method, seed), part in table.groupby(["method", "seed"], sort=False):
        survived = np.logical_and.reduce(list(part["each"]))
        rows.append((method, seed, "worst", len(survived), float(survived.mean()), survived))
    worst = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "accuracy", "each"])
    summarised = summary(pd.concat([table, worst], ignore_index=True))
    known = {(row["method"], row["measure"]): row for row in summarised.to_dict("records")}
    found = {}
    for method in dict.fromkeys(table["method"]):
        least, reported = known[method, "worst"], known[method, REPORTED]
        gain, low, high = difference(least, known[against, "worst"])
        gap = reported["mean"] - least["mean"]
        doubts = list(signs.get(method, []))
        overstated = gap > GAP and difference(reported, least)[1] > 0
        if low > 0:
            outcome = "partly real" if overstated or doubts else "real"
        else:
            apparent = difference(reported, known[against, REPORTED])[1] > 0
            outcome = "masked" if overstated or (doubts and apparent) else "none told"
        found[method] = {
            **{name: 100 * known[method, name]["mean"] for name in SHOWN if (method, name) in known},
            "best of all": 100 * least["mean"], "overstated by": 100 * gap, "gain": 100 * gain, "low": 100 * low,
            "high": 100 * high, "signs": "; ".join(doubts), "outcome": "–" if method == against else outcome,
        }  # fmt: skip
    return pd.DataFrame(found).T.rename_axis("method")


def points(trials: pd.DataFrame, curve: pd.DataFrame) -> pd.DataFrame:
    """The evidence in one figure: accuracy against ε, and what each attack leaves; the outcome beside the name.

    Columns panel, line, x, value.
    """
    outcomes = trials["outcome"].to_dict()
    lines = {method: method if outcome == "–" else f"{method}: {outcome}" for method, outcome in outcomes.items()}
    means = curve.groupby(["method", "eps"], sort=False, as_index=False)["accuracy"].mean()
    rows: list[tuple[str, str, Any, float]] = [
        ("PGD (margin) against ε", lines[row.method], f"{row.eps:.3g}", 100 * row.accuracy)
        for row in means.itertuples(index=False)
    ]
    for name in [name for name in (*SHOWN, "best of all") if name in trials]:
        rows += [("who attacks", lines[method], name, float(value)) for method, value in trials[name].items()]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "value"])
