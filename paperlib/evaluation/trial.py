"""Is a defence real? Compare the attacks that a paper reports with the best of all attacks, image by image."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from paperlib.evaluation import against_eps, at_chance, by_image, combine, difference, in_percent, summary
from paperlib.runs.files import InputError

REPORTED = "apgd_ce"  # the strongest attack in the paper
SHOWN = ("fgsm", "pgd_task", REPORTED)  # attacks shown beside the best of all
GAP = 0.05  # tolerated excess of accuracy under REPORTED over the best of all attacks


def worst(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join tables of `evaluate_each` on the same images, and add measure "worst": the best of all attacks by image.

    Raises InputError where the clean outcomes differ, so that the images cannot be the same.
    """
    rows = []
    for (method, seed), part in pd.concat(tables, ignore_index=True).groupby(["method", "seed"], sort=False):
        clean = list(part.loc[part["measure"] == "clean", "each"])
        if any(not np.array_equal(clean[0], other) for other in clean[1:]):
            raise InputError(
                f"the tables of {method}, seed {seed}, are not of the same images: their clean outcomes differ"
            )
        rows.append((method, seed, "worst", np.logical_and.reduce(list(part["each"]))))
    return combine(*tables, by_image(rows))


def judge(table: pd.DataFrame, signs: Mapping[str, Sequence[str]], classes: int, against: str = "standard") -> pd.DataFrame:
    """Return for each method its accuracies (%) under FGSM, PGD, APGD and the best of all attacks, and an outcome.

    `table` is of `worst`; "surely" means that the 95 % interval says so. A method is doubtful where accuracy under
    APGD is surely more than 5 points above the best of all attacks, or the audit has a sign that `against` has not.

    - *real*: accuracy under the best of all attacks is surely above that of `against`, and nothing is doubtful;
    - *partly real*: it is surely above, but doubtful;
    - *masked*: it is not surely above, though under APGD it surely is, and it is doubtful;
    - *none told*: everything else.

    A network at chance is *not tested*. Raises InputError where `table` lacks clean accuracy, APGD or `against`.
    """
    summarised = summary(table)
    known = {(row["method"], row["measure"]): row for row in summarised.to_dict("records")}
    methods = list(dict.fromkeys(table["method"]))
    needed = [(method, measure) for method in (against, *methods) for measure in ("clean", REPORTED, "worst")]
    if absent := [pair for pair in needed if pair not in known]:
        raise InputError(f"the trial needs {absent[0][1]} of {absent[0][0]}")
    found = {}
    for method in methods:
        least, reported = known[method, "worst"], known[method, REPORTED]
        gain, low, high, *_ = difference(least, known[against, "worst"])
        gap, gap_low, *_ = difference(reported, least)
        overstated = gap_low > GAP
        doubts = [sign for sign in signs.get(method, []) if sign not in signs.get(against, [])]
        apparent = difference(reported, known[against, REPORTED]).low > 0
        if method == against:
            outcome = "–"
        elif at_chance(known[method, "clean"], classes):
            outcome = "not tested"
        elif low > 0:
            outcome = "partly real" if overstated or doubts else "real"
        else:
            outcome = "masked" if apparent and (overstated or doubts) else "none told"
        found[method] = {
            **{name: 100 * known[method, name]["mean"] for name in SHOWN if (method, name) in known},
            "best of all": 100 * least["mean"], "overstated by": 100 * gap, "gain": 100 * gain, "low": 100 * low,
            "high": 100 * high, "signs": "; ".join(signs.get(method, [])), "outcome": outcome,
        }  # fmt: skip
    return pd.DataFrame(found).T.rename_axis("method")


def points(trials: pd.DataFrame, table: pd.DataFrame, curve: pd.DataFrame, norm: str) -> pd.DataFrame:
    """Return the points of one figure: accuracy against ε, and accuracy under each attack; outcomes are in the names.

    `table` is of `worst`. Columns: panel, line, x, value, low, high, the last three in percent.
    """
    lines = {method: method if outcome == "–" else f"{method}: {outcome}" for method, outcome in trials["outcome"].items()}
    swept = against_eps(curve, norm)
    (axis,) = [name for name in swept if str(name).startswith("ε")]
    found = in_percent(summary(table))
    order = [*SHOWN, "worst"]
    who = found[found["measure"].isin(order) & found["method"].isin(lines)]
    who = who.sort_values("measure", key=lambda column: column.map(order.index), kind="stable")
    who = who.assign(panel="who attacks", line=who["method"], x=who["measure"].replace({"worst": "best of all"}))
    both = pd.concat(
        [swept.rename(columns={axis: "x"}).assign(panel=f"PGD (margin) against {axis}"), who], ignore_index=True
    )
    return both.assign(line=both["line"].map(lines))[["panel", "line", "x", "value", "low", "high"]]
