import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    for notebook, names in ledger["scale"].items():
        assert set(names) <= set(runs.studies()[notebook].model_fields)


def test_reported_differences_follow_the_data_set() -> None:
    claim = next(claim for claim in claims.load("pag")["claims"] if claim["id"] == "l2-one-image")
    assert claims.reported("pag", claim, "cifar10") == 49.68
    assert claims.reported("pag", claim, "stl10") == 36.65
    assert claims.reported("pag", claim, "folder:somewhere") == 49.68
    with pytest.raises(InputError, match="no claims of paper 'page'; there are pag"):
        claims.load("page")


@pytest.mark.parametrize(
    ("kind", "difference", "uncertainty", "claimed", "floor", "outcome"),
    [
        ("gain", 48, 3, 50, 0, "reproduced"),
        ("gain", 22, 4, 50, 0, "reproduced"),  # may be half
        ("gain", 15, 4, 50, 0, "direction only"),
        ("gain", 3, 4, 50, 0, "not reproduced"),  # not told from zero
        ("gain", -9, 4, 50, 0, "not reproduced"),
        ("gain", 9, 4, None, 0, "reproduced"),
        ("keep", -12, 3, -14, -20, "reproduced"),
        ("keep", -22, 3, -14, -20, "reproduced"),  # not surely below
        ("keep", -24, 3, -14, -20, "not reproduced"),
    ],
)
def test_verdicts(
    kind: str, difference: float, uncertainty: float, claimed: float | None, floor: float, outcome: str
) -> None:
    found, reason = claims.verdict(kind, difference, uncertainty, claimed, floor)  # type: ignore[arg-type]
    assert found == outcome
    assert f"{difference:+.1f} ± {uncertainty:.1f}" in reason


RANK = {"not reproduced": 0, "direction only": 1, "reproduced": 2}


@given(st.sampled_from(["gain", "keep"]), st.floats(-100, 100), st.floats(0, 100), st.floats(0, 50), st.floats(0.1, 100))
def test_a_larger_difference_never_makes_a_verdict_worse(
    kind: str, difference: float, more: float, uncertainty: float, claimed: float
) -> None:
    low = claims.verdict(kind, difference, uncertainty, claimed, -20)[0]  # type: ignore[arg-type]
    high = claims.verdict(kind, difference + more, uncertainty, claimed, -20)[0]  # type: ignore[arg-type]
    assert RANK[high] >= RANK[low]


def summary(values: dict[tuple[str, str], float]) -> pd.DataFrame:
    rows = [(method, measure, value, 0.02, math.nan, 1, 500) for (method, measure), value in values.items()]
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "uncertainty", "deviation", "seeds", "n"])


def test_judging_says_what_was_not_tested_and_at_which_scale(home: Path) -> None:
    settings = runs.resolve("cifar_pag", "quick")
    run = runs.Run("cifar_pag", "quick", settings, home / "runs" / "x")
    measured = summary({("vanilla", "pgd_l2"): 0.01, ("one_image", "pgd_l2"): 0.4})
    verdicts = claims.judge("pag", run, measured).set_index("id")
    assert verdicts.loc["l2-one-image", "outcome"] == "reproduced"
    assert verdicts.loc["l2-one-image", "measured"] == pytest.approx(39)
    assert verdicts.loc["l2-one-image", "uncertainty"] == pytest.approx(2 * math.sqrt(2))
    assert verdicts.loc["l2-class-mean", "outcome"] == "not tested here"
    assert "no pgd_l2 of class_mean" in verdicts.loc["l2-class-mean", "reason"]
    for scale in verdicts["scale"]:
        assert "data scenes (paper: cifar10)" in scale
        assert "epochs" in scale
    assert len(read_json(home / "runs" / "x" / "claims.json")) == len(verdicts)

    paper = runs.Run("cifar_pag", "paper", runs.resolve("cifar_pag", "paper"), home / "runs" / "y")
    assert (claims.judge("pag", paper, measured)["scale"] == "").all()


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
