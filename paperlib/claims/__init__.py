"""What the papers report, as data, and the verdict on what was measured."""

import math
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import yaml

from paperlib.files import InputError, write_json
from paperlib.runs import Run, read_presets

Outcome = Literal["reproduced", "direction only", "not reproduced", "not tested here"]
HELD = ("reproduced", "direction only")
SIZE = 0.5  # of the claimed difference that a reproduction must be able to reach


def load(paper: str) -> dict[str, Any]:
    """The paper's tables and claims from claims/<paper>.yaml. Raises InputError when there is no such file."""
    file = Path(__file__).parent / f"{paper}.yaml"
    if not file.exists():
        known = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise InputError(f"no claims of paper {paper!r}; there are {', '.join(known)}")
    return cast(dict[str, Any], yaml.safe_load(file.read_text(encoding="utf-8")))


def reported(paper: str, claim: dict[str, Any], data: str) -> float | None:
    """The difference in points that the paper reports for a claim on this data set, None where it gives none.

    Data sets that the paper has not used are held against its first table.
    """
    tables = claim.get("claimed")
    if tables is None:
        return None
    name = tables if isinstance(tables, str) else tables.get(data, next(iter(tables.values())))
    known = rows(paper, name)
    return float(known[claim["method"]][claim["measure"]] - known[claim["than"]][claim["measure"]])


def rows(paper: str, table: str) -> dict[str, dict[str, float]]:
    """A table of the paper: its numbers by method and measure."""
    return cast(dict[str, dict[str, float]], load(paper)["tables"][table]["rows"])


def judge(paper: str, run: Run, measured: pd.DataFrame) -> pd.DataFrame:
    """The verdict on each of the paper's claims about this notebook, one row a claim; also saved as claims.json.

    `measured` is an `evaluation.summary`: means and 95 % uncertainties in [0,1] by method and measure. Columns: id,
    place, statement, claimed and measured difference and its uncertainty in points, outcome, reason, and `scale`: where the
    run differs from the paper's settings. No verdict stands without it.
    """
    ledger = load(paper)
    scale = "; ".join(differences(run, ledger["scale"][run.notebook]))
    columns = measured[["method", "measure", "mean", "uncertainty"]].itertuples(index=False)
    values = {(method, measure): (100 * mean, 100 * spread) for method, measure, mean, spread in columns}
    judged = []
    for claim in ledger["claims"]:
        if claim["notebook"] != run.notebook:
            continue
        claimed = reported(paper, claim, getattr(run.settings, "data", ""))
        pair = [values.get((claim[side], claim["measure"])) for side in ("method", "than")]
        difference = uncertainty = None
        if pair[0] is None or pair[1] is None:
            absent = claim["method"] if pair[0] is None else claim["than"]
            outcome, reason = "not tested here", f"this run has no {claim['measure']} of {absent}"
        else:
            difference = pair[0][0] - pair[1][0]
            uncertainty = math.hypot(pair[0][1], pair[1][1])
            outcome, reason = verdict(claim["kind"], difference, uncertainty, claimed, claim.get("floor", 0.0))
        judged.append(
            {
                "id": claim["id"], "place": claim["place"], "statement": claim["statement"], "claimed": claimed,
                "measured": difference, "uncertainty": uncertainty, "outcome": outcome, "reason": reason, "scale": scale,
            }
        )  # fmt: skip
    write_json(run.folder / "claims.json", judged)
    return pd.DataFrame(judged)


def verdict(
    kind: Literal["gain", "keep"], difference: float, uncertainty: float, claimed: float | None, floor: float = 0.0
) -> tuple[Outcome, str]:
    """The outcome for a measured difference in points and the reason in words.

    gain: not reproduced unless the difference is above zero by more than its 95 % uncertainty; reproduced if it then may be
    half of what is claimed, or nothing is; direction only otherwise. keep: reproduced if the difference is not below
    `floor` by more than its uncertainty.
    """
    found = f"measured {difference:+.1f} ± {uncertainty:.1f} points"
    if kind == "keep":
        if difference + uncertainty >= floor:
            return "reproduced", f"{found}, not below {floor:+g}"
        return "not reproduced", f"{found}, below {floor:+g}"
    if difference - uncertainty <= 0:
        side = "below zero" if difference + uncertainty < 0 else "not told from zero"
        return "not reproduced", f"{found}, {side}"
    if claimed is None:
        return "reproduced", f"{found}; the paper gives no number"
    if difference + uncertainty >= SIZE * claimed:
        return "reproduced", f"{found}, the paper {claimed:+.1f}"
    return "direction only", f"{found}, less than half of the paper's {claimed:+.1f}"


def differences(run: Run, names: list[str]) -> list[str]:
    """Where the run's settings differ from those of the preset `paper`, in words; empty where they do not."""
    paper = read_presets(run.notebook)["paper"]
    return [
        f"{name} {_words(getattr(run.settings, name))} (paper: {_words(paper[name])})"
        for name in names
        if getattr(run.settings, name) != paper[name]
    ]


def _words(value: Any) -> str:
    return "all" if value is None else str(value)


def beside(paper: str, table: str, measured: pd.DataFrame) -> pd.DataFrame:
    """A table of the paper beside what was measured, in percent: one row a method, columns (measure, paper | here | ±)."""
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
        columns[measure, "here"] = [math.nan if row is None else 100 * row["mean"] for row in found]
        columns[measure, "±"] = [math.nan if row is None else 100 * row["uncertainty"] for row in found]
    return pd.DataFrame(columns, index=pd.Index(methods + extra, name="method"))


def show(verdicts: pd.DataFrame) -> Any:
    """The verdicts as a notebook shows them, the scale they hold for in the caption."""
    scale = next(iter(verdicts["scale"]), "")
    caption = f"Not at the paper's scale: {scale}." if scale else "At the paper's settings."
    shown = verdicts[["statement", "place", "claimed", "measured", "uncertainty", "outcome", "reason"]]
    numbers = dict.fromkeys(("claimed", "measured"), "{:+.1f}") | {"uncertainty": "{:.1f}"}
    return shown.style.format(numbers, na_rep="–").hide(axis="index").set_caption(caption)
