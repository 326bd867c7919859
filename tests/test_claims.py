import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from paperlib import claims, runs
from paperlib.files import InputError, read_json


def test_the_papers_numbers_are_where_they_should_be() -> None:
    """A few numbers typed in again from the paper's tables."""
    table1, figure5 = claims.rows("pag", "table1"), claims.rows("pag", "figure5")
    assert table1["one_image"] == {"clean": 79.46, "pgd_linf": 16.57, "pgd_l2": 49.68}
    assert table1["rigd_l2"]["pgd_l2"] == 65.04
    assert claims.rows("pag", "table2")["nearest_neighbor"]["pgd_l2"] == 41.94
    assert claims.rows("pag", "table4")["one_image"]["clean"] == 79.13
    assert figure5["lambda_0.4"] == table1["class_mean"]  # the same models, as printed
    assert claims.rows("pag", "toy")["pag"]["pgd_l2"] == 75.5


def test_every_claim_is_complete_and_points_at_numbers_that_exist() -> None:
    ledger = claims.load("pag")
    identifiers = [claim["id"] for claim in ledger["claims"]]
    assert len(set(identifiers)) == len(identifiers)
    for claim in ledger["claims"]:
        assert claim["notebook"] in runs.studies()
        assert claim["kind"] in ("gain", "keep")
        assert claim["statement"].endswith((".", ")."))
        for data in ("cifar10", "stl10", "scenes"):
            number = claims.reported("pag", claim, data)
            assert (number is None) == ("claimed" not in claim)
            if number is not None and claim["kind"] == "gain" and data != "stl10":
                assert number > 0, claim["id"]  # the paper does say so
    for notebook, scale in ledger["scale"].items():
        known = set(runs.studies()[notebook].model_fields)
        assert set(scale["besides"]) <= known
        assert all(set(changes) <= known for changes in scale["by_data"].values())


def test_reported_differences_follow_the_data_set() -> None:
    claim = next(claim for claim in claims.load("pag")["claims"] if claim["id"] == "l2-one-image")
    assert claims.reported("pag", claim, "cifar10") == 49.68
    assert claims.reported("pag", claim, "stl10") == 36.65
    assert claims.reported("pag", claim, "folder:somewhere") == 49.68
    with pytest.raises(InputError, match="no claims of paper 'page'; there are pag"):
        claims.load("page")


@pytest.mark.parametrize(
    ("kind", "difference", "low", "high", "claimed", "floor", "outcome"),
    [
        ("gain", 48, 45, 51, 50, 0, "reproduced"),
        ("gain", 25, 2, 48, 50, 0, "reproduced"),
        ("gain", 24, 20, 30, 50, 0, "direction only"),  # less than half, whatever the interval
        ("gain", 3, -1, 7, 50, 0, "not reproduced"),  # not told from zero
        ("gain", -9, -13, -5, 50, 0, "not reproduced"),
        ("gain", 9, 5, 13, None, 0, "reproduced"),
        ("keep", -12, -15, -9, -14, -20, "reproduced"),
        ("keep", -18, -22, -14, -14, -20, "direction only"),
        ("keep", -22, -25, -19, -14, -20, "not reproduced"),
    ],
)
def test_verdicts(
    kind: Any, difference: float, low: float, high: float, claimed: float | None, floor: float, outcome: str
) -> None:
    found, reason = claims.verdict(kind, difference, low, high, claimed, floor)
    assert found == outcome
    assert f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" in reason


RANK = {"not reproduced": 0, "direction only": 1, "reproduced": 2}
POINTS = st.floats(0, 50)


@given(st.sampled_from(["gain", "keep"]), st.floats(-100, 100), POINTS, POINTS, POINTS, st.floats(0.1, 100))
def test_a_larger_difference_or_less_doubt_never_makes_a_verdict_worse(
    kind: Any, difference: float, arm: float, more: float, doubt: float, claimed: float
) -> None:
    def rank(value: float, half: float) -> int:
        return RANK[claims.verdict(kind, value, value - half, value + half, claimed, -20)[0]]

    assert rank(difference + more, arm) >= rank(difference, arm) >= rank(difference, arm + doubt)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe (1998), example (a), method 10: 56/70 against 48/80, from Wilson's intervals, gives 0.0524 … 0.3339."""
    sides = []
    for hits, count in ((56, 70), (48, 80)):
        wilson = binomtest(hits, count).proportion_ci(0.95, "wilson")
        sides.append((hits / count, wilson.low, wilson.high))
    assert claims.difference_interval(*sides) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def summary(values: dict[tuple[str, str], float]) -> pd.DataFrame:
    rows = [(*key, value, value - 0.02, value + 0.02, math.nan, 1, 500) for key, value in values.items()]
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "low", "high", "deviation", "seeds", "n"])


def test_judging_says_what_was_not_tested_and_at_which_scale(home: Path) -> None:
    settings = runs.resolve("cifar_pag", "quick")
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
        assert "data scenes (paper: cifar10)" in scale
        assert "epochs" in scale
    assert len(read_json(home / "runs" / "x" / "claims.json")) == len(verdicts)

    paper = runs.Run("cifar_pag", "paper", runs.resolve("cifar_pag", "paper"), home / "runs" / "y")
    for scale in claims.judge("pag", paper, measured, 10)["scale"]:
        assert "(paper:" not in scale
        assert "held-out" in scale  # what is never as in the paper
    other = runs.Run("cifar_pag", "paper", runs.resolve("cifar_pag", "paper", {"attack_steps": 1}), home / "runs" / "z")
    assert claims.judge("pag", other, measured, 10)["scale"][0].startswith("attack_steps 1 (paper: 20)")
    stl = {"data": "stl10", "batch_size": 32}
    stl10 = runs.Run("cifar_pag", "paper", runs.resolve("cifar_pag", "paper", stl), home / "runs" / "stl")
    assert claims.judge("pag", stl10, measured, 10)["scale"][0].startswith("eps_l2 0.5 (paper: 1.5)")


def test_a_network_at_chance_tests_nothing(home: Path) -> None:
    run = runs.Run("cifar_pag", "quick", runs.resolve("cifar_pag", "quick"), home / "runs" / "x")
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
    run = runs.Run("cifar_pag", "quick", runs.resolve("cifar_pag", "quick"), home / "runs" / "x")
    values = {("vanilla", "pag_score"): 0.97, ("one_image", "pag_score"): 0.99}
    values |= {("vanilla", "pgd_linf"): 0.0, ("one_image", "pgd_linf"): 0.2}
    verdicts = claims.judge("pag", run, summary(values), 10).set_index("id")
    assert "97.0 %, which leaves no room" in verdicts.loc["visual-one-image", "reason"]
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
