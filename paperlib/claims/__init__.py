"""The papers' numbers and claims as data, and verdicts on them from measurements."""

import functools
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from paperlib import evaluation
from paperlib.claims import ledger
from paperlib.evaluation.intervals import FEWEST
from paperlib.runs.files import InputError, write_json
from paperlib.runs.run import Run, read_presets
from paperlib.runs.settings import Settings

Outcome = Literal["reproduced", "direction only", "not reproduced", "not tested here"]
MARKS: dict[Outcome, str] = {"reproduced": "✓", "direction only": "↗", "not reproduced": "✗", "not tested here": "?"}
ROOM = 10  # points below 100 % that a gain needs as room
SIZE = 0.5  # share of the claimed difference that a reproduction must reach
LEAST = 1.0  # difference in points that counts as a gain where the paper gives no number


@functools.cache
def load(paper: str) -> dict[str, Any]:
    """Load a paper's tables and claims from claims/<paper>.yaml, in the form of `ledger.Ledger`.

    Raises InputError when the file is missing or has another form.
    """
    file = Path(__file__).parent / f"{paper}.yaml"
    if not file.exists():
        raise InputError(f"no claims of paper {paper!r}; there are {', '.join(papers())}")
    return ledger.read(file)


def papers() -> list[str]:
    """Return the papers that have claims, as names of their files."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.yaml"))


def paper_of(notebook: str) -> str | None:
    """Return the paper whose claims the notebook judges, None if it judges none."""
    return next((paper for paper in papers() if notebook in load(paper)["scale"]), None)


def reported(paper: str, claim: dict[str, Any], case: str) -> float | None:
    """Return the difference in points that the paper reports for a claim in this case, None without one.

    `claimed` is that number, or names the table with both numbers, or such tables by case. A case is a data set, or
    another name that distinguishes tables of a paper. An unknown case uses the first table.
    """
    if isinstance(number := claim.get("claimed"), float | int):
        return number
    if (name := table_of(claim, case)) is None:
        return None
    known = rows(paper, name)
    return float(known[claim["method"]][claim["measure"]] - known[claim["than"]][claim["measure"]])


def table_of(claim: Mapping[str, Any], case: str) -> str | None:
    """Return the table with both numbers of a claim in this case, None without one."""
    tables = claim.get("claimed")
    if isinstance(tables, dict):
        return cast(str | None, tables.get(case, next(iter(tables.values()))))
    return tables if isinstance(tables, str) else None


def rows(paper: str, table: str) -> dict[str, dict[str, float]]:
    """Return the numbers of a paper's table by method and measure."""
    return cast(dict[str, dict[str, float]], load(paper)["tables"][table]["rows"])


def judge(
    paper: str, run: Run[Settings], measured: pd.DataFrame, classes: int, doubts: Mapping[str, Sequence[str]] | None = None,
    case: str | None = None, excluded: Mapping[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Judge each of the paper's claims about this notebook: one row per claim, also saved as claims.json.

    `measured` is an `evaluation.summary` with means and 95 % intervals in [0,1]; it is saved as measures.json. From the
    number of `classes` follows chance: a network close to it tests nothing. `doubts` are signs of masked gradients by
    method, added to the reason. `case` chooses the paper's table; its default is the data set. `excluded` has methods that
    cannot be compared, with the reason.

    Columns: id, place, statement, kind; claimed and measured difference in points (or ratio), its interval low … high;
    outcome, reason; `scale`: how the run differs from the paper; case; n test images and seeds, of the side with fewer or
    in common; `spread`: the deviation of the difference over seeds, in points (or of the ratio), None for one seed. Below
    FEWEST images no claim is tested.
    """
    about = load(paper)
    case = case or str(getattr(run.settings, "data", ""))
    scale = "; ".join([*differences(run, about["scale"][run.notebook], case), *about["scale"][run.notebook]["always"]])
    values = {(row["method"], row["measure"]): row for row in measured.to_dict("records")}
    judged = []
    for claim in about["claims"]:
        if claim["notebook"] != run.notebook:
            continue
        claimed = reported(paper, claim, case)
        ratio, sides = claim["kind"] == "ratio", [claim["method"], claim["than"]]
        needed = sides[:1] if ratio else sides  # a ratio involves both sides, and is stored with the method
        absent = [side for side in needed if (side, claim["measure"]) not in values]
        chance = [
            name
            for name in dict.fromkeys(part for side in sides for part in (side, side.partition(" on ")[0]))
            if (name, "clean") in values and evaluation.at_chance(values[name, "clean"], classes)
        ]
        difference = low = high = None
        both = [] if absent else [values[side, claim["measure"]] for side in needed]
        apart = evaluation.difference(*both) if len(both) == 2 else None
        seeds, n, spread = _sizes([values.get((side, claim["measure"])) for side in needed], apart, 1 if ratio else 100)
        if absent:
            outcome, reason = "not tested here", f"this run has no {claim['measure']} of {absent[0]}"
        elif barred := [side for side in sides if side in (excluded or {})]:
            outcome, reason = "not tested here", f"{barred[0]} {(excluded or {})[barred[0]]}"
        elif n is not None and n < FEWEST:
            outcome, reason = "not tested here", f"{n} images, fewer than {FEWEST}"
        elif seeds is not None and seeds < claim.get("seeds", 1):
            outcome, reason = "not tested here", f"needs {claim['seeds']} seeds or more, this run has {seeds}"
        elif (
            claim["kind"] == "gain"
            and claim.get("ceiling", True)
            and (apart is None or apart[2] >= 0)  # a loss shows without room
            and (ceiling := 100 * values[sides[1], claim["measure"]]["mean"]) > 100 - ROOM
        ):
            outcome, reason = "not tested here", f"{sides[1]} already has {ceiling:.1f} %, which leaves no room for a gain"
        elif chance:
            outcome, reason = "not tested here", f"the clean accuracy of {chance[0]} is close to chance"
        else:
            if apart:
                difference, low, high = (100 * number for number in apart[:3])
            else:
                difference, low, high = (both[0][name] for name in ("mean", "low", "high"))
            floor = claim.get("floor", 0.0)
            least = floor if floor != "reported" else cast(float, claimed)
            outcome, reason = verdict(claim["kind"], difference, low, high, claimed, least)
            if seeds == 1:
                reason += "; one seed: the interval leaves out chance between seeds"
            if claim["kind"] != "keep" and (signs := (doubts or {}).get(claim["method"])):
                reason += f"; signs of masked gradients: {', '.join(signs)}"
        judged.append(
            {
                "id": claim["id"], "place": claim["place"], "statement": claim["statement"], "kind": claim["kind"],
                "claimed": claimed, "measured": difference, "low": low, "high": high, "outcome": outcome,
                "reason": reason, "scale": scale, "case": case, "n": n, "seeds": seeds, "spread": spread,
            }
        )  # fmt: skip
    write_json(run.folder / "claims.json", judged)
    kept = ["method", "measure", "mean", "deviation", "low", "high", "seeds", "n"]
    rows_kept = [{name: row[name] for name in kept} | _by_seed(row) for row in values.values()]
    write_json(run.folder / "measures.json", rows_kept)
    return pd.DataFrame(judged)


def _by_seed(row: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the means by seed and the seeds; nothing for a ratio, which pools all seeds."""
    means = row.get("by_seed", math.nan)
    return {"by_seed": list(map(float, means)), "seed_list": list(row["seed_list"])} if np.ndim(means) else {}


def _sizes(
    sides: Sequence[Mapping[str, Any] | None], apart: evaluation.Difference | None, scale: int
) -> tuple[int | None, int | None, float | None]:
    """Return the number of seeds and of test images behind a verdict, and the spread over seeds."""
    known = [side for side in sides if side is not None]
    if not known:
        return None, None, None
    deviation = apart.deviation if apart else known[0]["deviation"]
    seeds = apart.seeds if apart else min(int(side["seeds"]) for side in known)
    return seeds, min(int(side["n"]) for side in known), None if math.isnan(deviation) else scale * float(deviation)


def verdict(
    kind: Literal["gain", "keep", "ratio"], difference: float, low: float, high: float, claimed: float | None,
    floor: float = 0.0,
) -> tuple[Outcome, str]:  # fmt: skip
    """Return the outcome for a measured difference in points, or a ratio, with its 95 % interval, and the reason.

    gain: the target is half of the claimed number, or `LEAST` without one. With the interval above zero the claim is
    reproduced if the difference reaches the target, else "direction only". An interval with zero and the target tests
    nothing; one with zero, or below it, and short of the target is not reproduced. A claimed number without gain tests
    nothing.
    keep: reproduced with the whole interval at or above `floor`, not reproduced with all of it below, else not tested.
    ratio: as a gain, with one in place of zero. Without a claimed ratio, any interval above one reproduces it. An infinite
    ratio, of an attack that fails, tests nothing.
    """
    if kind == "ratio":
        found = f"measured {difference:.2g} ({low:.2g} to {high:.2g}) times"
        if math.isnan(difference):
            return "not tested here", f"{found}: the ratio is undefined"
        if math.isinf(difference):
            return "not tested here", f"{found}: the attack fails on more than half of the images"
        if low > 1:
            told = "" if claimed is None else f", the paper {claimed:g}"
            if claimed is None or difference >= SIZE * claimed:
                return "reproduced", f"{found}{told}"
            return "direction only", f"{found}, less than half of the paper's {claimed:g}"
        if high >= (1 + LEAST / 100 if claimed is None else SIZE * claimed):
            size = "a gain" if claimed is None else f"half of the paper's {claimed:g}"
            return "not tested here", f"{found}, which cannot tell {size} from one"
        return "not reproduced", f"{found}, {'below one' if high < 1 else 'not told from one'}"
    found = f"measured {difference:+.1f} ({low:+.1f} to {high:+.1f}) points"
    if not all(map(math.isfinite, (difference, low, high))):
        return "not tested here", f"{found}: not a number"
    if kind == "keep":
        if low >= floor:
            return "reproduced", f"{found}, not below {floor:+g}"
        if high >= floor:
            return "not tested here", f"{found}, which cannot tell whether it is below {floor:+g}"
        return "not reproduced", f"{found}, below {floor:+g}"
    if claimed is not None and claimed <= 0:
        return "not tested here", f"{found}; the paper's own table has {claimed:+.1f} in this case, which is no gain"
    if low <= 0 and high >= (LEAST if claimed is None else SIZE * claimed):
        size = f"a gain of {LEAST:g} point" if claimed is None else f"half of the paper's {claimed:+.1f}"
        return "not tested here", f"{found}, which cannot tell {size} from zero"
    if low <= 0:
        return "not reproduced", f"{found}, {'below zero' if high < 0 else 'not told from zero'}"
    if claimed is None:
        if difference < LEAST:
            return "direction only", f"{found}, less than {LEAST:g} point; the paper gives no number"
        return "reproduced", f"{found}; the paper gives no number"
    if difference >= SIZE * claimed:
        return "reproduced", f"{found}, the paper {claimed:+.1f}"
    return "direction only", f"{found}, less than half of the paper's {claimed:+.1f}"


def differences(run: Run[Settings], scale: Mapping[str, Any], case: str) -> list[str]:
    """Return where the run's settings differ from the paper's, in words.

    The paper's settings are those of the preset `paper`, with changes by `scale`: `instead` where the preset differs from
    the paper, `by_case` for another case than the preset's. Settings in `besides` are ignored.
    """
    paper = read_presets(run.notebook)["paper"]
    paper |= scale.get("instead", {}) | scale["by_case"].get(case, {})
    settings = run.settings.model_dump()
    wanted = type(run.settings).model_validate(paper).model_dump()  # validated like the run's, so that 1 equals 1.0
    return [
        f"{name} {_words(name, value)} (paper: {_words(name, wanted[name])})"
        for name, value in settings.items()
        if name not in scale["besides"] and value != wanted[name]
    ]


def _words(name: str, value: Any) -> str:
    every = name.endswith("_images") or name in ("classes_per_step", "blocks", "heads")  # None chooses all of these
    return str(value) if value is not None else "all" if every else "none"


def beside(paper: str, table: str, measured: pd.DataFrame) -> pd.DataFrame:
    """Compare a paper's table with measurements (%): a row per method, columns (measure, paper | here | low | high)."""
    known = rows(paper, table)
    here = measured.set_index(["method", "measure"])
    methods = [method for method in known if (method, "clean") in here.index]
    extra = [method for method in dict.fromkeys(measured["method"]) if method not in known]
    columns: dict[tuple[str, str], list[float]] = {}
    for measure in dict.fromkeys(measured["measure"]):
        pairs = [(method, measure) for method in methods + extra]
        found = [here.loc[pair] if pair in here.index else None for pair in pairs]
        if any(measure in row for row in known.values()):
            columns[measure, "paper"] = [known.get(method, {}).get(measure, math.nan) for method, _ in pairs]
        for name, key in (("here", "mean"), ("low", "low"), ("high", "high")):
            columns[measure, name] = [math.nan if row is None else 100 * row[key] for row in found]
    return pd.DataFrame(columns, index=pd.Index(methods + extra, name="method"))


def quoted(paper: str, table: str, measured: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Extend a table of quoted numbers by `methods` of this run: a row per method, in percent.

    The column "from" is "reported" for the paper's rows and "measured here" for the run's.
    """
    known = rows(paper, table)
    measures = list(dict.fromkeys(measure for row in known.values() for measure in row))
    lines = [{"method": method, "from": "reported", **row} for method, row in known.items()]
    here = measured[measured["measure"].isin(measures) & measured["method"].isin(methods)]
    for method, part in here.groupby("method", sort=False):
        means = 100 * part.set_index("measure")["mean"]
        lines.append({"method": method, "from": "measured here", **means})
    return pd.DataFrame(lines, columns=["method", "from", *measures]).set_index("method")


def error_bars(paper: str, table: str, measured: pd.DataFrame) -> pd.DataFrame:
    """Compare a table's means and deviations over seeds with measurements (%): a row per method and measure."""
    known = load(paper)["tables"][table]
    here = measured.set_index(["method", "measure"])
    lines = {}
    for method, row in known["rows"].items():
        for measure in row:
            found = here.loc[(method, measure)] if (method, measure) in here.index else {}
            lines[f"{method}, {measure}"] = {
                ("paper", "mean"): row[measure],
                ("paper", "deviation"): known["deviation"][method][measure],
                ("here", "mean"): 100 * found.get("mean", math.nan),
                ("here", "deviation"): 100 * found.get("deviation", math.nan),
                ("here", "seeds"): found.get("seeds", 0),
            }
    return pd.DataFrame(lines).T


def improvements(paper: str, table: str, own: Sequence[str], measured: pd.DataFrame) -> pd.DataFrame:
    """Compare the printed gains of a table's best own method over the best other with those that follow from its rows.

    One row per measure, in percent of the best other method: printed, from the table, whether they agree to within 0.01,
    and here, from `measured`, if it has methods of both kinds. `own` are the paper's methods.
    """
    known, printed = rows(paper, table), load(paper)["tables"][table]["improvement"]
    means = measured.set_index(["method", "measure"])["mean"]

    def gain(values: Mapping[str, float]) -> float:
        kinds = [[value for method, value in values.items() if (method in own) is mine] for mine in (True, False)]
        return 100 * (max(kinds[0]) / max(kinds[1]) - 1) if all(kinds) and max(kinds[1]) else math.nan

    lines = {}
    for measure, value in printed.items():
        follows = gain({method: row[measure] for method, row in known.items()})
        here = gain({method: float(means[method, measure]) for method in known if (method, measure) in means.index})
        agree = "yes" if abs(follows - value) < 0.01 else "no"
        lines[measure] = {"printed": value, "from the table": follows, "agree": agree, "here": here}
    return pd.DataFrame(lines).T


def show(verdicts: pd.DataFrame) -> Any:
    """Return the verdicts for display in a notebook, each with its mark; the caption names the scale."""
    scale = next(iter(verdicts["scale"]), "")
    caption = f"Not as the paper: {scale}." if scale else "At the paper's settings."
    shown = verdicts[["statement", "place", "claimed", "measured", "low", "high", "outcome", "reason"]].copy()
    columns = ["claimed", "measured", "low", "high"]
    for column in columns:
        shown[column] = [number(value, kind) for value, kind in zip(shown[column], verdicts["kind"], strict=True)]
    shown.insert(0, "", shown["outcome"].map(MARKS))
    left = [{"selector": "th, td, caption", "props": "text-align: left"}]
    return shown.style.hide(axis="index").format(escape="html").set_caption(html.escape(caption)).set_table_styles(left)


def number(value: float | str | None, kind: str) -> str:
    """Format a claimed or measured number: a difference with its sign, a ratio with ×, – for none."""
    if value is None or math.isnan(value := float(value)):
        return "–"
    return f"× {value:.3g}" if kind == "ratio" else f"{value:+.1f}"
