"""What a run's images and seeds can tell, held against simulations and closed forms; and a plan for every preset."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import nct, norm, t

from paperlib import claims, cli, evaluation, studies
from paperlib.claims import power
from paperlib.claims.power import Spread
from paperlib.data import EXTENTS, load
from paperlib.evaluation.intervals import image_interval
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, write_json

NOTEBOOKS = sorted(studies.declared("PLANS"))


def planned(notebook: str, preset: str = "quick", **changes: Any) -> pd.DataFrame:
    settings = studies.resolve(notebook, preset, changes)
    return power.table(notebook, settings, studies.plan_of(notebook, settings))


def outcomes(random: np.random.Generator, images: int, seeds: int, difference: float, luck: float) -> list[dict[str, Any]]:
    """Rows of a summary of two methods, whose chances on an image are 0.5 ± 0.25 in common and ± 0.15 apart."""
    common, apart = random.choice([-1, 1], (2, images))
    found = []
    for sign in (1, -1):
        chance = 0.5 + 0.25 * common + sign * (0.15 * apart + difference / 2)
        each = random.random((seeds, images)) < chance + random.normal(0, luck / math.sqrt(2), (seeds, 1))
        low, high = image_interval(each, (0.0, 1.0))
        found.append(
            {"mean": each.mean(), "deviation": math.nan, "seeds": seeds, "n": images, "limits": (0.0, 1.0), "each": each,
             "sample_low": low, "sample_high": high, "by_seed": each.mean(1), "seed_list": tuple(range(seeds))}
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("images", "seeds", "luck"), [(100, 1, 0.0), (500, 1, 0.0), (1000, 2, 0.003), (300, 3, 0.02), (500, 5, 0.01)]
)
def test_the_smallest_difference_is_told_in_four_runs_of_five(images: int, seeds: int, luck: float) -> None:
    """By `evaluation.difference` itself, of right and wrong drawn image by image."""
    anew, found = 0.4, 0.1  # what the chances leave to be drawn anew; it hangs on the difference, hence a few rounds
    for _ in range(5):
        own = 0.3**2  # of images: twice 0.15 apart
        variance = own + (anew if seeds == 1 else 0.0)
        spread = Spread(math.sqrt(luck**2 + anew / images), images, "")
        found = power.smallest(variance, spread, images, seeds)
        chances = [0.5 + 0.25 * a + s * (0.15 * b + found / 2) for a in (-1, 1) for b in (-1, 1) for s in (-1, 1)]
        anew = 2 * float(np.mean([p * (1 - p) for p in chances]))
    random = np.random.default_rng(0)
    told = [evaluation.difference(*outcomes(random, images, seeds, found, luck)).low > 0 for _ in range(2000)]
    assert 100 * np.mean(told) == pytest.approx(80, abs=3)


def test_its_limits_have_closed_forms() -> None:
    """One seed is a test of the normal; with no doubt about images Student's, whose power is the noncentral t's."""
    alone = power.power(0.05, 0.25, Spread(0.1, math.inf, ""), 10_000, 1)
    assert alone == pytest.approx(float(norm.sf(1.96 - (0.05 - power.EXACT / 10_000) / 0.005)), abs=1e-3)
    for seeds in (2, 3, 10):
        shift = 0.03 - power.EXACT / (10**9 * seeds)
        effect = shift / (0.01 / math.sqrt(seeds))
        students = float(nct.sf(t.ppf(0.975, seeds - 1), seeds - 1, effect))
        assert power.power(0.03, 1e-9, Spread(0.01, 10**9, ""), 10**9, seeds) == pytest.approx(students, abs=3e-3)


def test_more_images_seeds_and_difference_tell_more() -> None:
    spread = Spread(0.01, math.inf, "")
    by_images = [power.smallest(0.25, spread, count, 3) for count in (20, 100, 1000, 10_000)]
    by_seeds = [power.smallest(0.25, spread, 1000, count) for count in (2, 3, 5, 20)]
    assert by_images == sorted(by_images, reverse=True)
    assert by_seeds == sorted(by_seeds, reverse=True)
    assert power.power(by_seeds[1] + 0.01, 0.25, spread, 1000, 3) > power.POWER
    assert power.power(1.0, 0.01, spread, 19, 3) == 0  # on so few nothing is decided
    assert math.isinf(power.smallest(0.25, Spread(0.5, math.inf, ""), 1000, 2))  # more than all images
    # A spread known of fewer images is an upper bound, one of more says too little of these.
    assert power.smallest(0.25, Spread(0.01, 100, ""), 1000, 3) < power.smallest(0.25, Spread(0.01, 10_000, ""), 1000, 3)


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.5), (0.8, 0.6), (0.9, 0.1), (0.5, 0.0), (1.0, 1.0)])
def test_the_variance_by_image_is_that_of_a_table_of_both_outcomes(first: float, second: float) -> None:
    count = 10**6
    p, q = ((share * count + 2) / (count + 4) for share in (first, second))
    both = min(p * q + power.CORRELATION * math.sqrt(p * (1 - p) * q * (1 - q)), p, q)  # as many right in both as can be
    table = {1: p - both, -1: q - both}
    mean = sum(value * share for value, share in table.items())
    expected = sum(value**2 * share for value, share in table.items()) - mean**2
    assert power.variance(first, second, count) == pytest.approx(expected, abs=1e-12)
    assert power.variance(second, first, count) == pytest.approx(expected, abs=1e-12)


def test_what_would_do_does_and_a_seed_or_an_image_less_does_not() -> None:
    spread = Spread(0.01, math.inf, "")

    def does(images: int, seeds: int) -> bool:
        return power.power(0.03, 0.25, spread, images, seeds) >= power.POWER

    seeds = int(power.enough(0.03, 0.25, spread, 5000, 3, 10_000).removesuffix(" seeds"))
    assert does(5000, seeds)
    assert not does(5000, seeds - 1)
    images = int(power.enough(0.03, 0.25, spread, 500, 1, 10_000).removesuffix(" images").replace(",", ""))
    assert does(images, 1)
    assert not does(images - 1, 1)
    words = power.enough(0.03, 0.25, spread, 500, 2, 10_000)
    more, many = (int(part.split()[0].replace(",", "")) for part in words.split(" and "))
    assert words == f"{more} seeds and {many:,} images"
    assert does(many, more)
    assert not does(10_000, more - 1)
    assert not does(many - 1, more)
    assert power.enough(0.001, 0.25, spread, 500, 2, 10_000) == "more than 100 seeds and 10,000 images"
    assert power.enough(0.03, 0.25, spread, 10_000, 1, 10_000, fewest=2).endswith(" seeds")


@pytest.mark.parametrize("notebook", NOTEBOOKS)
@pytest.mark.parametrize("preset", runs.PRESETS)
def test_every_preset_of_every_notebook_has_a_plan(notebook: str, preset: str, home: Path) -> None:
    settings = studies.resolve(notebook, preset)
    plan = planned(notebook, preset)
    paper = claims.paper_of(notebook)
    assert paper
    known = [claim for claim in claims.load(paper)["claims"] if claim["notebook"] == notebook]
    assert list(plan["id"]) == [claim["id"] for claim in known]
    words = {"yes", "no", power.NO_NUMBER, power.UNTOLD, power.UNSAID}
    for row in plan.to_dict("records"):
        assert row["decides"] in words
        assert bool(row["why"] or row["enough"]) == (row["decides"] != "yes")
        if row["smallest"] is not None:
            assert 0 < row["smallest"] <= 100
            assert row["seeds"] <= len(settings.seeds)
            assert row["spread"]
            enough = row["n"] >= 20 and (row["id"] != "error-bars" or row["seeds"] > 1)
            told = row["asked"] is not None and row["smallest"] <= row["asked"] and enough
            assert (row["decides"] == "yes") == told, row["id"]
            assert (row["decides"] == "no number") == (row["asked"] is None and enough), row["id"]
        if row["kind"] == "ratio":
            assert row["smallest"] is None
    assert power.told(plan).startswith(f"{(plan['decides'] == 'yes').sum()} of {len(plan)} claims can be decided")
    assert all(len(line) <= 140 for line in power.lines(plan))


def row(notebook: str, preset: str, claim: str, **changes: Any) -> dict[str, Any]:
    return dict(planned(notebook, preset, **changes).set_index("id").loc[claim])


def test_what_a_preset_leaves_out_is_named(home: Path) -> None:
    for notebook, preset, claim, why in (
        ("raat_boundary", "gpu", "eta-clean", "eta_0.5 is not trained"),
        ("raat_boundary", "gpu", "sharp-mean", "raat_sharp is not trained"),
        ("raat_boundary", "gpu", "equal-time-clean", "pgd_at_long is not trained"),
        ("raat_boundary", "quick", "raat-consistency", "cons_at is not trained"),
        ("cifar_pag", "quick", "linf-rigd", "rigd_linf is not trained"),
        ("cifar_pag", "quick", "tradeoff-clean", "lambda_0.01 is not trained"),
        ("gfa_landscape", "quick", "resnet", "first_resnet18 is not trained"),
        ("daat_imagenet100", "quick", "daat-autoattack", "autoattack is not measured"),
        ("daat_imagenet100", "laptop", "lambda-peak-low", "daat_lambda_0.01 is not trained"),
        ("daat_imagenet100", "laptop", "budget-three-halves", "budget_1.5 is not measured"),
        ("alignment_matrix", "quick", "raat-time", "raat_equal is not trained"),
    ):
        found = row(notebook, preset, claim)
        assert (found["decides"], found["why"]) == (power.UNTOLD, why)
    assert row("raat_boundary", "quick", "raat-autoattack")["why"] == "autoattack is not measured"
    assert "fewer than 20" in row("raat_boundary", "quick", "raat-autoattack", autoattack_images=10)["why"]
    assert row("cifar_pag", "quick", "error-bars")["why"] == "needs 2 seeds"
    assert "no gain" in row("raat_boundary", "paper", "raat-consistency", data="cifar100")["why"]
    assert "a ratio" in row("gfa_landscape", "paper", "ddn")["why"]
    assert "no share" in row("gfa_landscape", "paper", "flat")["why"]
    folder = {"data": f"folder:{home}"}
    assert "the folder" in row("cifar_pag", "paper", "l2-one-image", **folder)["why"]
    assert row("cifar_pag", "paper", "l2-one-image", **folder, test_images=300)["decides"] == "yes"


def test_images_and_seeds_are_those_of_the_settings(home: Path) -> None:
    assert row("cifar_pag", "paper", "l2-one-image")["n"] == 10_000
    assert row("cifar_pag", "paper", "l2-one-image", data="stl10")["n"] == 8000
    assert row("cifar_pag", "paper", "l2-one-image", test_images=500)["n"] == 500
    assert row("cifar_pag", "paper", "no-masking", test_images=500)["n"] == 500  # of AutoAttack's no more than these
    mixed = row("raat_boundary", "laptop", "raat-consistency", seeds_of={"cons_at": 1})  # Cons-AT has one of the seeds
    assert (mixed["seeds"], mixed["spread"]) == (1, "left out: one seed")
    assert row("raat_boundary", "laptop", "raat-pgd")["seeds"] == 3
    assert row("raat_boundary", "laptop", "boundary-robust")["asked"] == 2  # from its floor
    assert row("cifar_pag", "laptop", "clean-one-image")["asked"] == claims.LEAST  # whose floor is what the paper has
    for name in ("toy", "scenes"):
        few = {"train_images": 10} if name == "scenes" else {}
        splits = load(name, test_images=30 if few else None, **few)
        assert len(splits.test.classes) == EXTENTS[name][1]
        assert few or len(splits.test) == EXTENTS[name][0]


def test_the_spread_is_of_earlier_runs_then_the_papers_then_a_default(home: Path) -> None:
    assert row("raat_boundary", "paper", "raat-clean")["spread"] == f"{math.hypot(0.27, 0.23):.2g}, the paper's ±"
    assert row("raat_boundary", "paper", "bound-clean")["spread"] == "1, a default"
    verdict = {"id": "bound-clean", "kind": "gain", "case": "cifar10_resnet18_linf", "n": 1000}
    for name, spread, seeds, case in (
        ("one", 9.0, 1, "cifar10_resnet18_linf"),
        ("two", 3.0, 2, "cifar10_resnet18_linf"),
        ("three", 2.0, 3, "cifar10_resnet18_linf"),
        ("other", 5.0, 4, "cifar100_resnet18_linf"),
    ):
        file = home / "runs" / "raat_boundary" / name / "claims.json"
        write_json(file, [verdict | {"spread": spread, "seeds": seeds, "case": case}])
    (home / "runs" / "raat_boundary" / "damaged").mkdir()
    (home / "runs" / "raat_boundary" / "damaged" / "claims.json").write_text("{")
    measured = row("raat_boundary", "paper", "bound-clean")
    assert measured["spread"] == "2, three: 3 seeds, 1000 images"
    settings = studies.resolve("raat_boundary", "paper")
    plan, folder = studies.plan_of("raat_boundary", settings), home / "runs" / "raat_boundary" / "three"
    own = power.table("raat_boundary", settings, plan, folder).set_index("id")
    assert own.loc["bound-clean", "spread"] == "3, two: 2 seeds, 1000 images"
    assert own.loc["bound-clean", "smallest"] > measured["smallest"]


def test_a_notebook_shows_and_keeps_its_plan(home: Path) -> None:
    run = runs.Run("toy_pag", "quick", studies.resolve("toy_pag"), home / "runs" / "toy_pag" / "x")
    page = power.show(run, studies.plan_of("toy_pag", run.settings)).to_html()
    kept = read_json(run.folder / "plan.json")
    assert [one["id"] for one in kept] == ["toy-perfect", "toy-robust", "toy-margin"]
    assert power.told(planned("toy_pag")) in page
    assert "keeps the perfect accuracy" in page


def test_a_study_that_says_nothing_of_its_sizes_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("paperlib.methods.jacobian.PLANS")
    with pytest.raises(InputError, match=r"jacobian_norm: its study says in no PLANS .* alignment_matrix"):
        planned("jacobian_norm")


def test_the_command_line_prints_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["paperlib", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert call("plan", "cifar_pag", "--preset", "quick", "-p", "test_images=300") == 0
    out = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 140 for line in out)
    assert any(line.startswith("l2-one-image: One Image targets") for line in out)
    assert "  not run   rigd_linf is not trained" in "\n".join(out)
    assert " 300 " in out[2]
    assert out[-1] == power.told(planned("cifar_pag", "quick", test_images=300))
    assert out[-1].startswith("6 of 23 claims can be decided at this preset; 4 cannot; 4 give no number; 9 not run;")
    assert call("plan", "toy") == 2
    assert f"no notebook 'toy'; there are {', '.join(sorted(studies.known()))}" in capsys.readouterr().err
    assert call("plan", "cifar_pag", "-p", "epoch=3") == 2
    assert "did you mean 'epochs'" in capsys.readouterr().err
    assert not (home / "runs").exists()
