import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paperlib import claims, evaluation, studies
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json
from paperlib.studies import raat as raat_study


def test_the_papers_numbers_are_where_they_should_be() -> None:
    """A few numbers typed in again from the paper's tables."""
    table1, figure5 = claims.rows("pag", "table1"), claims.rows("pag", "figure5")
    assert table1["one_image"] == {"clean": 79.46, "pgd_linf": 16.57, "pgd_l2": 49.68}
    assert table1["rigd_l2"]["pgd_l2"] == 65.04
    assert claims.rows("pag", "table2")["nearest_neighbor"]["pgd_l2"] == 41.94
    assert claims.rows("pag", "table4")["one_image"]["clean"] == 79.13
    assert figure5["lambda_0.4"] == table1["class_mean"]  # the same models, as printed
    assert claims.rows("pag", "toy")["pag"]["pgd_l2"] == 75.5


def test_raats_numbers_are_where_they_should_be() -> None:
    linf, l2 = claims.rows("raat", "cifar10_resnet18_linf"), claims.rows("raat", "cifar10_resnet18_l2")
    assert linf["raat"] == {"clean": 83.69, "pgd_10": 54.55, "pgd_100": 53.50, "cw": 51.07, "autoattack": 47.94}
    assert claims.rows("raat", "tiny_imagenet_wide_linf")["raat_plus_plus"]["autoattack"] == 22.12
    assert claims.rows("raat", "cifar100_wide_linf")["trades"]["clean"] == 59.51
    assert l2["cons_at"]["pgd_100"] == 69.16
    assert claims.load("raat")["tables"]["cifar10_resnet18_linf"]["deviation"]["mart"]["autoattack"] == 0.33
    # Mean and NRR of Tables 2 and 3 follow from their own clean and AutoAttack columns.
    for table in ("table2", "table3", "table3_cifar100"):
        for method, row in claims.rows("raat", table).items():
            assert row["mean"] == pytest.approx((row["clean"] + row["autoattack"]) / 2, abs=0.006), method
            if "nrr" in row:
                product, total = row["clean"] * row["autoattack"], row["clean"] + row["autoattack"]
                assert row["nrr"] == pytest.approx(2 * product / total, abs=0.01), method


def test_quoted_rows_say_where_they_come_from() -> None:
    measured = summary({("raat_sharp", "clean"): 0.5, ("raat_sharp", "pgd_10"): 0.3, ("raat", "clean"): 0.6})
    table = claims.quoted("raat", "table3", measured, ["raat_sharp"])
    assert "raat" not in table.index
    assert set(table["from"]) == {"reported", "measured here"}
    assert table.loc["raat_sharp", "clean"] == pytest.approx(50)
    assert math.isnan(table.loc["raat_sharp", "autoattack"])
    assert table.loc["ReBAT", "from"] == "reported"
    assert "pgd_10" not in table


@pytest.mark.parametrize("paper", ["pag", "raat", "gfa", "daat"])
def test_every_claim_is_complete_and_points_at_numbers_that_exist(paper: str) -> None:
    ledger = claims.load(paper)
    identifiers = [claim["id"] for claim in ledger["claims"]]
    assert len(set(identifiers)) == len(identifiers)
    for claim in ledger["claims"]:
        assert claim["notebook"] in studies.known()
        assert claim["kind"] in ("gain", "keep", "ratio")
        assert claim["statement"].endswith((".", ")."))
        cases = claim.get("claimed", {})
        for case in ["scenes", *cases] if isinstance(cases, dict) else ["scenes"]:
            number = claims.reported(paper, claim, case)
            named = cases.get(case, True) if isinstance(cases, dict) else True
            assert (number is None) == ("claimed" not in claim or named is None)
            if number is not None and claim["kind"] == "gain" and case in ("scenes", "cifar10", "cifar10_resnet18_linf"):
                assert number > 0, claim["id"]  # the paper does say so
    for notebook, scale in ledger["scale"].items():
        known = set(studies.known()[notebook].model_fields)
        assert set(scale["besides"]) <= known
        assert all(set(changes) <= known for changes in [scale.get("instead", {}), *scale["by_case"].values()])


def test_reported_differences_follow_the_data_set() -> None:
    claim = next(claim for claim in claims.load("pag")["claims"] if claim["id"] == "l2-one-image")
    assert claims.reported("pag", claim, "cifar10") == 49.68
    assert claims.reported("pag", claim, "stl10") == 36.65
    assert claims.reported("pag", claim, "folder:somewhere") == 49.68
    with pytest.raises(InputError, match=f"no claims of paper 'page'; there are {', '.join(claims.papers())}"):
        claims.load("page")


@pytest.mark.parametrize(
    ("kind", "difference", "low", "high", "claimed", "floor", "outcome"),
    [
        ("gain", 48, 45, 51, 50, 0, "reproduced"),
        ("gain", 25, 2, 48, 50, 0, "reproduced"),
        ("gain", 24, 20, 30, 50, 0, "direction only"),  # less than half, whatever the interval
        ("gain", 3, -1, 7, 50, 0, "not reproduced"),  # not told from zero
        ("gain", 3, -1, 7, 5, 0, "not tested here"),  # nor from what is claimed
        ("gain", 3, -1, 7, 13, 0, "not tested here"),  # nor from what would be enough
        ("gain", 0.2, -0.3, 0.7, None, 0, "not reproduced"),
        ("gain", 0.2, -1.3, 1.7, None, 0, "not tested here"),  # not even a point can be told
        ("gain", 4, 3, 5, -0.5, 0, "not tested here"),  # no gain in the paper's own table
        ("gain", -4, -5, -3, 0, 0, "not tested here"),
        ("gain", -9, -13, -5, 50, 0, "not reproduced"),
        ("gain", 9, 5, 13, None, 0, "reproduced"),
        ("gain", 0.4, 0.2, 0.6, None, 0, "direction only"),  # told from zero, but less than a point
        ("gain", math.nan, math.nan, math.nan, None, 0, "not tested here"),
        ("gain", 5, math.nan, math.nan, 3, 0, "not tested here"),
        ("keep", 5, math.nan, math.nan, 3, -2, "not tested here"),
        ("keep", -12, -15, -9, -14, -20, "reproduced"),
        ("keep", -18, -22, -14, -14, -20, "not tested here"),
        ("keep", -22, -25, -19, -14, -20, "not tested here"),  # it may be above
        ("keep", -22, -23, -21, -14, -20, "not reproduced"),
    ],
)
def test_verdicts(
    kind: Any, difference: float, low: float, high: float, claimed: float | None, floor: float, outcome: str
) -> None:
    found, reason = claims.verdict(kind, difference, low, high, claimed, floor)
    assert found == outcome
    assert f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" in reason


@pytest.mark.parametrize(
    ("ratio", "low", "high", "claimed", "outcome"),
    [
        (25, 21, 30, 20, "reproduced"),
        (10, 3, 18, 20, "reproduced"),
        (9, 3, 18, 20, "direction only"),
        (1.1, 0.9, 1.4, 20, "not reproduced"),
        (0.5, 0.4, 0.6, 20, "not reproduced"),
        (5, 0.9, 40, 20, "not tested here"),
        (3, 0.9, 11, 20, "not tested here"),
        (1.5, 1.2, 1.9, None, "reproduced"),
        (1.5, 0.8, 1.9, None, "not tested here"),
        (math.nan, math.nan, math.nan, 20, "not tested here"),
        (math.inf, 3, math.inf, 20, "not tested here"),
    ],
)
def test_ratios_are_judged_against_one(ratio: float, low: float, high: float, claimed: float | None, outcome: str) -> None:
    found, reason = claims.verdict("ratio", ratio, low, high, claimed)
    assert found == outcome
    assert "times" in reason


def test_verdicts_are_shown_with_a_mark_first_flush_left_and_escaped() -> None:
    shared = {"place": "Table 1", "claimed": 1.0, "measured": 2.0, "low": 1.5, "high": 2.5, "kind": "gain",
              "reason": "a <b> & c", "scale": "data folder:<i> (paper: cifar10)"}  # fmt: skip
    outcomes = ["reproduced", "direction only", "not reproduced", "not tested here"]
    shown = claims.show(pd.DataFrame([{"statement": "It holds.", "outcome": one, **shared} for one in outcomes])).to_html()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", shown, re.DOTALL)[1:]]
    assert [row[0] for row in rows] == ["✓", "↗", "✗", "?"]
    assert [row[-2] for row in rows] == outcomes
    assert {row[-1] for row in rows} == {"a &lt;b&gt; &amp; c"}
    assert "folder:&lt;i&gt;" in shown
    assert re.findall(r"(th|td|caption) \{\s*text-align: left;", shown) == ["th", "td", "caption"]


def test_numbers_are_shown_by_their_kind() -> None:
    assert [claims.number(*pair) for pair in ((3.14, "gain"), (-0.04, "keep"), (25.0, "ratio"), (None, "ratio"))] == [
        "+3.1", "-0.0", "× 25", "–",
    ]  # fmt: skip
    assert claims.number(math.inf, "ratio") == "× inf"


RANK = {"not reproduced": 0, "not tested here": 1, "direction only": 2, "reproduced": 3}
POINTS = st.floats(0, 50)


@given(st.sampled_from(["gain", "keep"]), st.floats(-100, 100), POINTS, POINTS, POINTS, st.floats(0.1, 100))
def test_a_larger_difference_or_less_doubt_never_makes_a_verdict_worse(
    kind: Any, difference: float, arm: float, more: float, doubt: float, claimed: float
) -> None:
    def rank(value: float, half: float) -> int:
        return RANK[claims.verdict(kind, value, value - half, value + half, claimed, -20)[0]]

    assert rank(difference + more, arm) >= rank(difference, arm)
    if rank(difference, arm + doubt) > 1:  # what holds in spite of a doubt holds without it
        assert rank(difference, arm) >= rank(difference, arm + doubt)


@given(st.floats(-100, 100), POINTS, st.floats(0.1, 100))
def test_only_an_interval_that_leaves_out_zero_or_the_claim_decides(difference: float, arm: float, claimed: float) -> None:
    low, high = difference - arm, difference + arm
    outcome, reason = claims.verdict("gain", difference, low, high, claimed)
    assert (outcome == "not tested here") == (low <= 0 and high >= claims.SIZE * claimed)
    if outcome == "not tested here":
        assert "cannot tell" in reason


def summary(values: dict[tuple[str, str], float]) -> pd.DataFrame:
    rows = [
        {"method": method, "measure": measure, "mean": value, "low": value - 0.02, "high": value + 0.02, "seeds": 1,
         "deviation": math.nan, "n": 500, "sample_low": value - 0.02, "sample_high": value + 0.02, "each": None}
        for (method, measure), value in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("clean", "outcome"), [(0.85, "reproduced"), (0.79, "not tested here"), (0.70, "not reproduced")])
def test_clean_accuracy_may_fall_as_far_as_in_the_paper_and_no_further(home: Path, clean: float, outcome: str) -> None:
    """One Image loses 93.61 − 79.46 = 14.15 points in Table 1."""
    run = runs.Run("cifar_pag", "quick", studies.resolve("cifar_pag", "quick"), home / "runs" / "x")
    measured = summary({("vanilla", "clean"): 0.93, ("one_image", "clean"): clean})
    verdicts = claims.judge("pag", run, measured, 10, case="cifar10").set_index("id")
    assert verdicts.loc["clean-one-image", "outcome"] == outcome
    assert "below -14.15" in verdicts.loc["clean-one-image", "reason"]


def test_judging_says_what_was_not_tested_and_at_which_scale(home: Path) -> None:
    settings = studies.resolve("cifar_pag", "quick")
    run = runs.Run("cifar_pag", "quick", settings, home / "runs" / "x")
    measured = summary({("vanilla", "pgd_l2"): 0.01, ("one_image", "pgd_l2"): 0.4})
    verdicts = claims.judge("pag", run, measured, 10, {"one_image": ["FGSM fools, PGD does not"]}).set_index("id")
    assert verdicts.loc["l2-one-image", "outcome"] == "reproduced"
    assert verdicts.loc["l2-one-image", "measured"] == pytest.approx(39)
    assert verdicts.loc["l2-one-image", "high"] == pytest.approx(39 + 2 * math.sqrt(2))
    assert "signs of masked gradients: FGSM fools" in verdicts.loc["l2-one-image", "reason"]
    assert verdicts.loc["l2-class-mean", "outcome"] == "not tested here"
    assert "no pgd_l2 of class_mean" in verdicts.loc["l2-class-mean", "reason"]
    for scale in verdicts["scale"]:
        assert "data scenes4 (paper: cifar10)" in scale
        assert "epochs" in scale
    assert len(read_json(home / "runs" / "x" / "claims.json")) == len(verdicts)

    paper = runs.Run("cifar_pag", "paper", studies.resolve("cifar_pag", "paper"), home / "runs" / "y")
    for scale in claims.judge("pag", paper, measured, 10)["scale"]:
        assert "(paper:" not in scale
        assert "held-out" in scale  # what is never as in the paper
    other = runs.Run("cifar_pag", "paper", studies.resolve("cifar_pag", "paper", {"attack_steps": 1}), home / "runs" / "z")
    assert claims.judge("pag", other, measured, 10)["scale"][0].startswith("attack_steps 1 (paper: 20)")
    stl = {"data": "stl10", "batch_size": 32}
    stl10 = runs.Run("cifar_pag", "paper", studies.resolve("cifar_pag", "paper", stl), home / "runs" / "stl")
    assert claims.judge("pag", stl10, measured, 10)["scale"][0].startswith("eps_l2 0.5 (paper: 1.5)")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"select_on": "test"}, []),
        ({}, ["select_on validation (paper: test)"]),
        ({"select_on": "test", "norm": "l2"}, []),
        ({"select_on": "test", "data": "cifar100", "model": "wide_resnet28", "width": 160}, []),
        ({"select_on": "test", "data": "tiny_imagenet"}, ["stem_stride 1 (paper: 2)"]),
        ({"select_on": "test", "model": "wide_resnet28"}, ["width 64 (paper: 160)"]),
        (
            {"select_on": "test", "data": "scenes", "seeds": [0]},
            ["data scenes (paper: cifar10)", "seeds [0] (paper: [0, 1, 2])"],
        ),
    ],
)
def test_raats_cases_are_held_against_their_own_settings(changes: dict[str, Any], expected: list[str], home: Path) -> None:
    settings = studies.resolve("raat_boundary", "paper", changes)
    run = runs.Run("raat_boundary", "paper", settings, home)
    found = claims.differences(run, claims.load("raat")["scale"]["raat_boundary"], raat_study.case(settings))
    assert sorted(found) == sorted(expected)


def test_what_is_excluded_is_not_tested(home: Path) -> None:
    run = runs.Run("raat_boundary", "quick", studies.resolve("raat_boundary", "quick"), home / "runs" / "x")
    values = {(method, measure): 0.5 + 0.2 * (method == "raat") for method in ("raat", "pgd_at", "pgd_at_long")
              for measure in ("clean", "pgd_10")}  # fmt: skip
    verdicts = claims.judge("raat", run, summary(values), 10, excluded={"pgd_at_long": "took too long"}).set_index("id")
    assert verdicts.loc["equal-time-clean", "outcome"] == "not tested here"
    assert verdicts.loc["equal-time-clean", "reason"] == "pgd_at_long took too long"
    assert verdicts.loc["raat-clean", "outcome"] == "reproduced"
    assert "one seed" in verdicts.loc["raat-clean", "reason"]
    assert verdicts.loc["raat-clean", "spread"] is None


def test_the_spread_is_that_of_the_differences_where_seeds_are_shared(home: Path) -> None:
    run = runs.Run("raat_boundary", "quick", studies.resolve("raat_boundary", "quick"), home / "runs" / "x")
    measured = summary({("raat", "clean"): 0.7, ("pgd_at", "clean"): 0.5})
    measured["seeds"], measured["deviation"] = 3, [0.01, 0.03]
    measured["by_seed"], measured["seed_list"] = [[0.71, 0.7, 0.69], [0.53, 0.5, 0.47]], [(0, 1, 2), (0, 1, 2)]
    verdicts = claims.judge("raat", run, measured, 10).set_index("id")
    assert verdicts.loc["raat-clean", "spread"] == pytest.approx(2)
    assert verdicts.loc["raat-clean", "seeds"] == 3
    stored = read_json(run.folder / "measures.json")
    assert stored[0]["seed_list"] == [0, 1, 2]
    measured["seed_list"] = [(0, 1, 2), (3, 4, 5)]
    assert claims.judge("raat", run, measured, 10).set_index("id").loc["raat-clean", "spread"] == pytest.approx(3)


def test_a_single_seed_borrows_nothing_and_is_said(home: Path) -> None:
    """Two seeds of RAAT that differ by much, one of PGD-AT: the shared seed alone decides."""
    run = runs.Run("raat_boundary", "quick", studies.resolve("raat_boundary", "quick"), home / "runs" / "x")
    measured = summary({("raat", "clean"): 0.5, ("pgd_at", "clean"): 0.5})
    measured["seeds"], measured["deviation"] = [2, 1], [0.28, math.nan]
    measured["by_seed"], measured["seed_list"] = [[0.7, 0.3], [0.5]], [(0, 1), (0,)]
    verdict = claims.judge("raat", run, measured, 10).set_index("id").loc["raat-clean"]
    assert (verdict["measured"], verdict["low"]) == pytest.approx((20, 20 - 2 * math.sqrt(2)))
    assert verdict["seeds"] == 1
    assert "one seed" in verdict["reason"]


@pytest.mark.parametrize(("n", "decided"), [(19, False), (20, True)])
def test_nothing_is_decided_on_fewer_than_twenty_images(n: int, decided: bool, home: Path) -> None:
    run = runs.Run("cifar_pag", "quick", studies.resolve("cifar_pag", "quick"), home / "runs" / "x")
    rows = [
        {
            "method": method,
            "seed": 0,
            "measure": measure,
            "n": count,
            "value": float(right),
            "each": np.full(count, right),
        }
        for method in ("vanilla", "one_image")
        for measure, count, right in (("clean", 100, True), ("pgd_l2", n, method == "one_image"))
    ]
    verdict = claims.judge("pag", run, evaluation.summary(pd.DataFrame(rows)), 10).set_index("id").loc["l2-one-image"]
    assert (verdict["outcome"] == "reproduced") == decided
    assert (f"{n} images, fewer than 20" in verdict["reason"]) != decided


def test_a_network_at_chance_tests_nothing(home: Path) -> None:
    run = runs.Run("cifar_pag", "quick", studies.resolve("cifar_pag", "quick"), home / "runs" / "x")
    values = {
        ("vanilla", "clean"): 0.9,
        ("vanilla", "pgd_l2"): 0.0,
        ("one_image", "clean"): 0.15,
        ("one_image", "pgd_l2"): 0.1,
    }
    verdicts = claims.judge("pag", run, summary(values), 10).set_index("id")
    for claim in ("l2-one-image", "clean-one-image"):
        assert verdicts.loc[claim, "outcome"] == "not tested here"
        assert "close to chance" in verdicts.loc[claim, "reason"]


def test_claims_need_their_seeds_and_room_for_a_gain(home: Path) -> None:
    run = runs.Run("cifar_pag", "quick", studies.resolve("cifar_pag", "quick"), home / "runs" / "x")
    values = {("vanilla", "pag_score"): 0.97, ("one_image", "pag_score"): 0.99}
    values |= {("vanilla", "pgd_linf"): 0.0, ("one_image", "pgd_linf"): 0.2}
    verdicts = claims.judge("pag", run, summary(values), 10).set_index("id")
    assert "97.0 %, which leaves no room" in verdicts.loc["visual-one-image", "reason"]
    values[("one_image", "pag_score")] = 0.5  # a loss needs no room
    fallen = claims.judge("pag", run, summary(values), 10).set_index("id")
    assert fallen.loc["visual-one-image", "outcome"] == "not reproduced"
    assert "needs 2 seeds or more, this run has 1" in verdicts.loc["error-bars", "reason"]
    assert verdicts.loc["linf-one-image", "outcome"] == "reproduced"
    several = summary(values).assign(seeds=3)
    assert claims.judge("pag", run, several, 10).set_index("id").loc["error-bars", "outcome"] == "reproduced"


def test_error_bars_stand_beside_table_4() -> None:
    table = claims.error_bars("pag", "table4", summary({("one_image", "clean"): 0.5}))
    assert table.loc["one_image, clean", ("paper", "deviation")] == 0.74
    assert table.loc["one_image, clean", ("here", "mean")] == pytest.approx(50)
    assert math.isnan(table.loc["one_image, pgd_l2", ("here", "mean")])


def test_tables_stand_beside_the_papers() -> None:
    measured = summary(
        {("vanilla", "clean"): 0.9, ("one_image", "clean"): 0.8, ("extra", "clean"): 0.7, ("vanilla", "new"): 0.1}
    )
    table = claims.beside("pag", "table1", measured)
    assert list(table.index) == ["vanilla", "one_image", "extra"]
    assert table.loc["one_image", ("clean", "paper")] == 79.46
    assert table.loc["one_image", ("clean", "here")] == pytest.approx(80)
    assert math.isnan(table.loc["extra", ("clean", "paper")])
    assert ("new", "paper") not in table.columns


LEDGER = {
    "paper": {"key": "x", "title": "X", "authors": ["A"], "venue": "Y"},
    "tables": {"one": {"place": "Table 1", "unit": "%", "notebook": "n",
                       "rows": {"a": {"clean": 80}, "b": {"clean": 70.5}}}},
    "scale": {"n": {"besides": [], "by_case": {}, "always": []}},
    "claims": [{"id": "a-b", "notebook": "n", "place": "Table 1", "statement": "a is better.", "kind": "gain",
                "measure": "clean", "method": "a", "than": "b", "claimed": "one"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("paper.key", "x y", "paper.key: String should match"),
        ("paper.colour", "red", "paper.colour: Extra inputs"),
        ("tables.one.rows.a.clean", "80", "tables.one.rows.a.clean: Input should be a valid number"),
        ("tables.one.rows.a.clean", math.nan, "tables.one.rows.a.clean: Input should be a finite number"),
        ("scale.n.always", None, "scale.n.always: Input should be a valid list"),
        ("scale", {}, "claim a-b: its notebook n is missing from scale"),
        ("claims", LEDGER["claims"] * 2, "two claims have the id a-b"),
        ("claims", [], "claims: List should have at least 1 item"),
        ("claims.0.kind", "win", "claims.0.kind: Input should be 'gain', 'keep' or 'ratio'"),
        ("claims.0.claimed", "two", "claim a-b: there is no table two; there are one"),
        ("claims.0.than", "c", "claim a-b: table one has no clean of c"),
        ("claims.0.claimed", {}, "claim a-b: claimed is empty; it should name tables by case"),
        ("claims", [{**LEDGER["claims"][0], "floor": "reported", "claimed": None}], "claim a-b: its floor is reported"),
    ],
)
def test_a_claims_file_of_another_form_is_refused_by_place(place: str, value: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(LEDGER))
    assert claims.ledger.read(file) == LEDGER
    content = copy.deepcopy(LEDGER)
    part: Any = content
    *above, last = place.split(".")
    for name in above:
        part = part[int(name) if isinstance(part, list) else name]
    part[last] = value
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=re.escape(message)):
        claims.ledger.read(file)


def test_fourteen_of_raats_45_improvements_do_not_follow_from_its_tables() -> None:
    tables = [name for name, table in claims.load("raat")["tables"].items() if table.get("improvement")]
    nothing = pd.DataFrame({"method": [], "measure": [], "mean": []})
    found = pd.concat([claims.improvements("raat", name, ["raat", "raat_plus_plus"], nothing) for name in tables])
    assert len(found) == 45
    assert (found["agree"] == "no").sum() == 14
    assert found["here"].isna().all()


def test_an_improvement_is_of_the_best_on_both_sides() -> None:
    means = {"pgd_at": 0.5, "trades": 0.4, "raat": 0.45, "raat_plus_plus": 0.55}
    measured = pd.DataFrame(
        [(method, "pgd_10", mean) for method, mean in means.items()], columns=["method", "measure", "mean"]
    )
    found = claims.improvements("raat", "cifar10_resnet18_linf", ["raat", "raat_plus_plus"], measured)
    assert found.loc["pgd_10", "here"] == pytest.approx(10)
    assert found.loc["pgd_10", "from the table"] == pytest.approx(100 * (54.87 / 53.61 - 1))
