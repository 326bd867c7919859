import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_ind, ttest_rel
from scipy.stats import norm as normal
from torch import Tensor, nn

from paperlib import evaluation, studies
from paperlib.attacks import fgsm, pgd
from paperlib.data import ImageSet, subset
from paperlib.evaluation import AttackError, accuracy, evaluate
from paperlib.evaluation.intervals import binomial_interval
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.runs.tensors import read_about


class Threshold(nn.Module):
    """Class 1 where the mean is above a half."""

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        excess = (x.flatten(1).mean(1) - 0.5) * self.scale
        return torch.stack([-excess, excess], 1)


def images(count: int = 40) -> ImageSet:
    """Grey images of every level, labelled by the threshold."""
    levels = torch.linspace(0, 255, count).round().to(torch.uint8)
    return ImageSet(levels.view(-1, 1, 1, 1).expand(count, 3, 4, 4).clone(), (levels > 127).long(), ("dark", "bright"))


CALLS: list[int] = []  # of attacks that count; not closed over, since what an attack closes over is part of its recipe
PGD = partial(pgd, eps=0.1, norm="linf", steps=5, step_size=0.05)


def test_robust_accuracy_of_a_model_where_it_is_known() -> None:
    data = images()
    outcomes, flags = evaluate(Threshold(), data, {"pgd": PGD, "fgsm": partial(fgsm, eps=0.1, norm="linf")})
    distance = (data.images[:, 0, 0, 0].float() / 255 - 0.5).abs()
    assert outcomes["clean"].all()
    assert torch.equal(outcomes["pgd"], distance > 0.1)
    assert torch.equal(outcomes["fgsm"], distance > 0.1)
    assert flags == []


def test_no_perturbation_changes_nothing() -> None:
    outcomes, _ = evaluate(Threshold(), images(), {"none": partial(pgd, eps=0.0, norm="l2", steps=3, step_size=0.1)})
    assert torch.equal(outcomes["none"], outcomes["clean"])


def bad_ball(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str) -> Tensor:
    return (x + 2 * eps).clamp(0, 1)


def bad_box(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str) -> Tensor:
    return x - eps


def bad_number(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str) -> Tensor:
    return x * torch.nan


def test_attacks_that_break_the_rules_are_refused() -> None:
    with pytest.raises(AttackError, match=r"leaves the ball of radius 0\.1"):
        evaluate(Threshold(), images(), {"bad": partial(bad_ball, eps=0.1, norm="linf")})
    with pytest.raises(AttackError, match="outside"):
        evaluate(Threshold(), images(), {"bad": partial(bad_box, eps=0.1, norm="linf")})
    with pytest.raises(AttackError, match="ball"):
        evaluate(Threshold(), images(), {"bad": partial(bad_number, eps=0.1, norm="l2")})

    class Random(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 9 * torch.randn(len(x), 2)

    with pytest.raises(AttackError, match="different answers"):
        evaluate(Random(), images(), {"none": partial(pgd, eps=0.0, norm="linf", steps=1, step_size=0.1)})


def helpful(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str) -> Tensor:
    return (x + eps * (2 * y.view(-1, 1, 1, 1).float() - 1)).clamp(0, 1)


def test_an_attack_that_helps_is_flagged() -> None:
    data = images()
    wrong = ImageSet(data.images, torch.where(torch.arange(40) == 19, 1, data.labels), data.classes)
    _, flags = evaluate(Threshold(), wrong, {"odd": partial(helpful, eps=0.1, norm="linf")})
    assert "odd: accuracy under attack (100.0%) is above clean accuracy" in flags[0]


def test_outputs_that_are_no_numbers_are_wrong() -> None:
    class Broken(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    outcomes, _ = evaluate(Broken(), images(), {})
    assert not outcomes["clean"].any()


def test_a_killed_evaluation_goes_on_by_chunk_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "shareable", lambda images, most: 10)
    model, data, calls = Threshold(), images(), CALLS
    calls.clear()

    def counted(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str, dies: int) -> Tensor:
        CALLS.append(len(x))
        if len(CALLS) == dies:
            raise KeyboardInterrupt
        return pgd(model, x, y, eps=eps, norm="linf", steps=1, step_size=eps)

    attack = partial(counted, eps=0.1, norm="linf")
    whole, _ = evaluate(model, data, {"pgd": partial(attack, dies=0)}, tmp_path / "whole.safetensors")
    calls.clear()
    dying = partial(attack, dies=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, {"pgd": dying}, tmp_path / "killed.safetensors")
    outcomes, _ = evaluate(model, data, {"pgd": dying}, tmp_path / "killed.safetensors")
    assert calls == [10] * 5  # three, one of them lost, and the two that were left
    assert torch.equal(outcomes["pgd"], whole["pgd"])
    evaluate(model, data, {"pgd": dying}, tmp_path / "killed.safetensors")
    assert len(calls) == 5
    two = {"z": partial(fgsm, eps=0.1, norm="linf"), "a": partial(fgsm, eps=0.2, norm="linf")}
    orders = [list(evaluate(model, data, two, tmp_path / "two.safetensors")[0]) for _ in range(2)]
    assert orders == [["clean", "z", "a"]] * 2  # computed or read back
    evaluate(Threshold(3.0), data, {"pgd": dying}, tmp_path / "killed.safetensors")
    assert len(calls) == 9  # other weights: all of it anew


def counting(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str) -> Tensor:
    CALLS.append(len(x))
    return x


def test_what_another_run_has_evaluated_is_taken_from_there(home: Path) -> None:
    mine, other = (home / "runs" / "a" / name / "evaluation" / "test-x-seed0.safetensors" for name in ("mine", "other"))
    CALLS.clear()
    ask = partial(evaluate, Threshold(), images(), {"attack": partial(counting, eps=0.1, norm="l2")})
    outcomes, again = ask(other)[0], ask(mine)[0]
    assert CALLS == [40]
    assert all(torch.equal(outcomes[name], again[name]) for name in outcomes)
    assert read_about(mine)["from"] == "runs/a/other/evaluation/test-x-seed0.safetensors"
    mine.unlink()
    other.write_bytes(b"damaged")
    ask(mine)
    assert CALLS == [40, 40]
    mine.write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a readable"):
        ask(mine)


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_binomial_interval_is_scipys(pair: tuple[int, int]) -> None:
    hits, count = pair
    expected = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert binomial_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_summary_has_mean_deviation_and_both_uncertainties() -> None:
    rows = [("a", seed, "clean", 10000, round(10000 * share), share) for seed, share in enumerate((0.7, 0.8, 0.9))]
    rows.append(("b", 0, "clean", 100, 50, 0.5))
    table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "correct", "value"])
    found = evaluation.summary(table).set_index("method")
    assert found.loc["a", "mean"] == pytest.approx(0.8)
    assert found.loc["a", "deviation"] == pytest.approx(0.1)
    assert found.loc["a", "seed_list"] == (0, 1, 2)
    seeds = 4.302653 * 0.1 / np.sqrt(3)  # t(0.975, 2)
    sample = 0.8 - binomtest(8000, 10000).proportion_ci(0.95, "exact").low
    assert found.loc["a", "low"] == pytest.approx(0.8 - np.hypot(seeds, sample), rel=1e-5)
    assert found.loc["a", "high"] == 1.0
    assert (found.loc["b", "low"], found.loc["b", "high"]) == pytest.approx(binomial_interval(50, 100))
    assert np.isnan(found.loc["b", "deviation"])


def row(hits: int, count: int, each: np.ndarray | None = None, seeds: int = 1, deviation: float = np.nan) -> dict[str, Any]:
    wilson = binomtest(hits, count).proportion_ci(0.95, "wilson")
    return {"mean": hits / count, "sample_low": wilson.low, "sample_high": wilson.high, "seeds": seeds,
            "each": None if each is None else each[None], "deviation": deviation}  # fmt: skip


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe (1998), example (a), method 10: 56/70 against 48/80, from Wilson's intervals, gives 0.0524 … 0.3339."""
    found = evaluation.difference(row(56, 70), row(48, 80))
    assert found[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    # Outcomes of other images, or that never vary, count as independent.
    ones = row(56, 70, np.ones(70, bool))
    assert evaluation.difference(ones, row(48, 80, np.arange(80) < 48))[:3] == found[:3]
    assert evaluation.difference(ones, row(48, 70, np.arange(70) < 48))[0] == pytest.approx(8 / 70)


@pytest.mark.parametrize(
    ("e", "f", "g", "h"), [(36, 12, 2, 0), (20, 12, 2, 16), (20, 0, 0, 30), (0, 0, 0, 50), (50, 0, 0, 0)]
)
def test_the_interval_of_paired_outcomes_is_newcombes(e: int, f: int, g: int, h: int) -> None:
    """Newcombe (1998), paired data, method 10, by its own formula from the fourfold table: both, one, other, neither."""
    n = e + f + g + h
    first, second = (np.repeat(np.array(kind, bool), (e, f, g, h)) for kind in ((1, 1, 0, 0), (1, 0, 1, 0)))
    found = evaluation.difference(row(e + f, n, first), row(e + g, n, second))
    product = (e + f) * (g + h) * (e + g) * (f + h)
    determinant = e * h - f * g
    corrected = max(determinant - n / 2, 0) if determinant > 0 else determinant
    phi = corrected / math.sqrt(product) if product else 0.0
    (l1, u1), (l2, u2) = ((k / n - w.low, w.high - k / n) for k in (e + f, e + g)
                          for w in [binomtest(k, n).proportion_ci(0.95, "wilson")])  # fmt: skip
    low = (f - g) / n - math.sqrt(l1**2 + u2**2 - 2 * phi * l1 * u2)
    high = (f - g) / n + math.sqrt(u1**2 + l2**2 - 2 * phi * u1 * l2)
    assert found[:3] == pytest.approx(((f - g) / n, low, high))
    assert -1 <= found.low < found.value < found.high <= 1  # also where the two never differ


def test_the_interval_of_a_paired_difference_covers_the_truth_and_is_narrower() -> None:
    generator, truth, covered, widths = np.random.default_rng(0), 0.06, 0, []
    for _ in range(400):
        base = generator.random(300)
        sides = [base < 0.5 + truth, np.where(generator.random(300) < 0.9, base, generator.random(300)) < 0.5]
        rows = [row(int(side.sum()), 300, side) for side in sides]
        value, low, high, *_ = evaluation.difference(*rows)
        covered += low <= truth <= high
        unpaired = evaluation.difference(*({**one, "each": None} for one in rows))
        assert unpaired[0] == value
        widths.append((high - low) / (unpaired[2] - unpaired[1]))
    assert 0.93 <= covered / 400 <= 0.98
    assert max(widths) < 0.75


def test_other_seeds_are_told_apart_by_welchs_t() -> None:
    """As scipy has it from the same means, deviations and numbers."""
    means, deviations = (0.8, 0.7), (0.05, 0.02)
    many = 10**9  # images, whose own uncertainty is nothing
    rows = [row(round(many * m), many, seeds=s, deviation=d) for m, d, s in zip(means, deviations, (3, 4), strict=True)]
    samples = []
    for mean, deviation, shape in zip(means, deviations, ([-1, 0, 1], [-3, -1, 1, 3]), strict=True):
        samples.append(mean + deviation * np.array(shape) / np.std(shape, ddof=1))
    for one, sample, seeds in zip(rows, samples, ((0, 1, 2), (3, 4, 5, 6)), strict=True):
        one |= {"seed_list": seeds, "by_seed": sample}
    found = evaluation.difference(*rows)
    expected = ttest_ind(*samples, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert (found.seeds, found.deviation) == (3, pytest.approx(0.05))


def test_shared_seeds_are_paired_and_value_and_interval_are_of_these_alone() -> None:
    """As scipy's paired t has it, where images say nearly everything."""
    accuracies = {"a": {0: 0.52, 1: 0.61, 2: 0.70, 3: 0.99}, "b": {2: 0.64, 0: 0.50, 1: 0.55}}
    table = pd.DataFrame(
        [(name, seed, "clean", 10**8, mean) for name, own in accuracies.items() for seed, mean in own.items()],
        columns=["method", "seed", "measure", "n", "value"],
    )
    first, second = evaluation.summary(table).to_dict("records")
    found = evaluation.difference(first, second)
    expected = ttest_rel([0.52, 0.61, 0.70], [0.50, 0.55, 0.64])
    interval = expected.confidence_interval(0.95)
    assert found[:3] == pytest.approx((0.14 / 3, interval.low, interval.high), abs=3e-4)
    assert found.seeds == 3
    other = evaluation.difference(second, first)
    assert other[:3] == pytest.approx((-found.value, -found.high, -found.low))


def test_where_one_seed_is_shared_the_images_of_its_two_networks_are_all_that_is_told() -> None:
    generator = np.random.default_rng(0)
    right = {(name, seed): generator.random(200) < 0.5 for name, seed in [("a", 0), ("a", 1), ("a", 2), ("b", 1)]}
    rows = [(name, seed, "clean", 200, each.mean(), each) for (name, seed), each in right.items()]
    table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])
    several, one = evaluation.summary(table).to_dict("records")
    (alone,) = evaluation.summary(table[(table["method"] == "a") & (table["seed"] == 1)]).to_dict("records")
    found, expected = evaluation.difference(several, one), evaluation.difference(alone, one)
    assert found[:3] == expected[:3]
    assert found.seeds == 1
    assert math.isnan(found.deviation)
    stranger = evaluation.difference(several, {**one, "seed_list": (7,)})  # a seed that the other has not
    assert stranger.value == pytest.approx(several["mean"] - one["mean"])
    assert stranger.seeds == 1


def test_the_order_of_rows_does_not_matter() -> None:
    """Outcomes are paired by their seed, in whatever order the rows come."""
    generator = np.random.default_rng(0)
    rows = [(name, seed, "clean", 300, each.mean(), each) for name in "ab" for seed in range(3)
            for each in [generator.random(300) < 0.5]]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])
    turned = table.iloc[[2, 0, 1, 3, 4, 5]]
    found = [evaluation.difference(*evaluation.summary(one).to_dict("records"))[:3] for one in (table, turned)]
    assert found[0] == pytest.approx(found[1])


def crossed(generator: np.random.Generator, seeds: int, images: int, spread: float, shared: bool) -> pd.DataFrame:
    """Outcomes of two methods by seeds and images, both drawn: probit of skill + seed + image + seed × image + rest.

    With `shared` seeds half of the variance of a seed's and of a seed and image's effect is common to the two.
    """
    hardness, rows = generator.normal(0, 1.5, images), []
    common = generator.normal(0, 1, seeds), generator.normal(0, 1, (seeds, images))
    for method, skill, first in (("a", 0.5, 0), ("b", 0.2, 0 if shared else seeds)):
        own = 0.9 * hardness + 0.65 * generator.normal(0, 1, images)
        share = math.sqrt(0.5) if shared else 0.0
        luck, taste = (share * part + math.sqrt(1 - share**2) * generator.normal(0, 1, part.shape) for part in common)
        latent = skill + spread * luck[:, None] + own + 0.5 * taste + generator.normal(0, 1, (seeds, images))
        rows += [(method, first + seed, "clean", images, right.mean(), right) for seed, right in enumerate(latent > 0)]
    return pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])


@pytest.mark.parametrize(
    ("seeds", "images", "spread", "shared"),
    [(2, 100, 0.1, True), (3, 300, 0.3, True), (5, 100, 0.1, True), (10, 100, 0.1, True), (3, 300, 0.3, False)],
)
def test_intervals_cover_the_truth_when_images_and_seeds_both_vary(
    seeds: int, images: int, spread: float, shared: bool
) -> None:
    """A 95 % interval of a difference holds the truth in 93 to 98 % of draws; of two seeds, or a mean, perhaps in more."""
    generator, covered, draws = np.random.default_rng(seeds + images), np.zeros(2), 500
    size = math.sqrt(1 + 0.25 + spread**2 + (0.9 * 1.5) ** 2 + 0.65**2)
    truth = [float(normal.cdf(skill / size)) for skill in (0.5, 0.2)]
    for _ in range(draws):
        one, two = evaluation.summary(crossed(generator, seeds, images, spread, shared)).to_dict("records")
        _, low, high, used, _ = evaluation.difference(one, two)
        assert used == seeds
        covered += [one["low"] <= truth[0] <= one["high"], low <= truth[0] - truth[1] <= high]
    of_mean, of_difference = covered / draws
    assert 0.93 <= of_difference <= (0.98 if seeds > 2 else 1.0)
    assert of_mean >= 0.93


def test_seeds_that_agree_by_luck_do_not_make_an_interval_narrow() -> None:
    """Three seeds of 100 images, each right at 60 % by chance alone, whose means are made equal: ± 1.96 √(p q / SN)."""
    generator = np.random.default_rng(0)
    each = np.stack([generator.permutation(np.arange(100) < 60) for _ in range(3)])
    rows = [("a", seed, "clean", 100, own.mean(), own) for seed, own in enumerate(each)]
    found = evaluation.summary(pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])).iloc[0]
    assert found["deviation"] == pytest.approx(0, abs=1e-12)
    assert found["high"] - found["mean"] >= 0.9 * 1.96 * math.sqrt(0.6 * 0.4 / 300)


def test_other_seeds_that_agree_by_luck_do_not_make_an_interval_narrow() -> None:
    generator, columns = np.random.default_rng(0), ["method", "seed", "measure", "n", "value", "each"]
    each = np.stack([generator.permutation(np.arange(100) < 60) for _ in range(6)])
    rows = [("ab"[seed // 3], seed, "clean", 100, own.mean(), own) for seed, own in enumerate(each)]
    found = evaluation.difference(*evaluation.summary(pd.DataFrame(rows, columns=columns)).to_dict("records"))
    assert found.value == pytest.approx(0)
    assert found.high >= 0.9 * 1.96 * math.sqrt(2 * 0.6 * 0.4 / 300)


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize(("measure", "center"), [("cosine_1", -0.03), ("mean", 0.95), ("cam_on_object", 0.4)])
def test_intervals_of_real_outcomes_follow_their_own_spread(measure: str, center: float, seeds: int) -> None:
    """Cosines and shares of images vary far less than right or wrong outcomes of the same mean could."""
    generator, covered, widths = np.random.default_rng(seeds), np.zeros(2), []
    for _ in range(300):
        rows = []
        image = generator.uniform(-0.08, 0.08, 200)
        for method in "ab":
            own = image / 2 + generator.uniform(-0.04, 0.04, 200)
            for seed in range(seeds):
                each = center + (own + generator.uniform(-0.005, 0.005, 200)) / 2
                rows.append((method, seed, measure, 200, each.mean(), each))
        table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])
        one, two = evaluation.summary(table).to_dict("records")
        _, low, high, *_ = evaluation.difference(one, two)
        covered += [one["low"] <= center <= one["high"], low <= 0 <= high]
        widths.append((one["high"] - one["low"]) / (2 * 1.96 * one["each"].mean(0).std() / math.sqrt(200)))
    assert (covered / 300 >= 0.92).all()
    assert max(widths) < 1.2


@given(st.integers(20, 60), st.integers(1, 4), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_intervals_stay_inside_what_is_possible(images: int, seeds: int, first: float, second: float, draw: int) -> None:
    """Shares of right or wrong, and of halves as the mean of clean and robust accuracy has them, at 0 and 1 as well."""
    generator = np.random.default_rng(draw)
    rows = []
    for method, share in (("a", first), ("b", second)):
        for seed in range(seeds):
            halves = (generator.random((2, images)) < share).mean(0)
            rows += [
                (method, seed, measure, images, each.mean(), each)
                for measure, each in (("clean", halves > 0.5), ("mean", halves))
            ]
    table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])
    found = {(one["method"], one["measure"]): one for one in evaluation.summary(table).to_dict("records")}
    for one in found.values():
        assert 0 <= one["low"] <= one["mean"] <= one["high"] <= 1
        assert one["low"] < one["high"]  # nothing is certain, not even at 0 or 1
    for measure in ("clean", "mean"):
        value, low, high, *_ = evaluation.difference(found["a", measure], found["b", measure])
        assert -1 <= low <= value <= high <= 1


def test_below_twenty_images_there_is_no_interval() -> None:
    rows = [("a", seed, "clean", n, 0.5, each) for n in (19,) for seed in (0, 1) for each in [np.arange(n) % 2 == 0]]
    (found,) = evaluation.summary(pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])).to_dict(
        "records"
    )
    assert all(math.isnan(found[end]) for end in ("low", "high", "sample_low", "sample_high"))
    assert all(map(math.isnan, evaluation.difference(found, found)[1:3]))
    assert evaluation.at_chance(found, 10)  # that it has learnt is not known


def test_the_summary_takes_outcomes_by_image() -> None:
    right = np.arange(50) < 30
    scores = np.linspace(-1, 1, 50)
    rows = [("a", seed, "clean", 50, array.mean(), array) for seed, array in enumerate((right, ~right))]
    rows += [("a", 0, "score", 50, scores.mean(), scores), ("b", 0, "clean", 50, 0.5, np.nan)]
    table = pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])
    found = evaluation.summary(table).set_index(["method", "measure"])
    assert found.loc[("a", "clean"), "each"].tolist() == [right.tolist(), (~right).tolist()]
    # The two seeds agree on no image: all that images tell apart is what one seed says, so they count as 100.
    assert found.loc[("a", "clean"), "sample_low"] == pytest.approx(binomial_interval(50, 100)[0])
    half = 1.959964 * scores.std(ddof=1) / np.sqrt(50)
    assert (found.loc[("a", "score"), "low"], found.loc[("a", "score"), "high"]) == pytest.approx((-half, half))
    assert found.loc[("b", "clean"), "each"] is None


# Distances -----------------------------------------------------------------------


def test_distances_are_kept_by_chunk_and_go_on(home: Path) -> None:
    run = runs.Run("toy_pag", "quick", studies.resolve("toy_pag", "quick", {"device": "cpu"}), home / "runs" / "x")
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    data = ImageSet(torch.randint(0, 256, (7, 1, 2, 2), dtype=torch.uint8), torch.zeros(7, dtype=torch.long), ("a", "b"))
    seen = CALLS
    seen.clear()

    def away(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        CALLS.append(len(images))
        if len(CALLS) == 2:
            raise KeyboardInterrupt
        return images + torch.randn_like(images)

    attacks = {"away": partial(away)}
    with pytest.raises(KeyboardInterrupt):
        evaluation.distances_each(run, {"net": {3: model}}, data, attacks, chunk=3)
    resumed = evaluation.distances_each(run, {"net": {3: model}}, data, attacks, chunk=3)["each"].iloc[0]
    assert seen == [3, 3, 3, 1]  # the first chunk is not attacked again
    (run.folder / "distances" / "away-net-seed3.safetensors").unlink()
    whole = evaluation.distances_each(run, {"net": {3: model}}, data, attacks, chunk=3)["each"].iloc[0]
    np.testing.assert_array_equal(resumed, whole)
    with torch.no_grad():
        wrong = model(data.images.float() / 255).argmax(1) == 1
    assert (whole[wrong.numpy()] == 0).all()


def test_what_is_no_number_has_no_interval() -> None:
    row = {"mean": 0.5, "sample_low": math.nan, "sample_high": math.nan, "each": None, "seeds": 1, "deviation": math.nan}
    assert all(map(math.isnan, evaluation.difference(row, row)[1:3]))


def test_gaps_say_what_they_can_tell() -> None:
    rows = [
        {"method": name, "measure": "clean", "mean": mean, "low": 0, "high": 1, "sample_low": mean - 0.02,
         "sample_high": mean + 0.02, "each": None, "seeds": 3, "deviation": deviation, "by_seed": None}
        for name, mean, deviation in (("base", 0.5, 0.01), ("above", 0.7, 0.01), ("near", 0.51, 0.05), ("even", 0.52, 0.01))
    ]  # fmt: skip
    found = evaluation.gaps(pd.DataFrame(rows), "base", ["clean", "absent"])
    assert found["clean", "told"].to_dict() == {"above": "yes", "near": "smaller than the seeds' spread", "even": "no"}
    assert found["clean", "difference"].to_dict() == pytest.approx({"above": 20, "near": 1, "even": 2})
    table = evaluation.wide(pd.DataFrame(rows))
    assert table.loc["near", ("clean", "mean")] == pytest.approx(51)


def test_an_attack_on_fewer_images_is_held_against_the_same_ones(home: Path) -> None:
    """The rows picked from an evaluation of all images are those of an evaluation of the subset itself."""
    run = runs.Run("toy_pag", "quick", studies.resolve("toy_pag", "quick"), home / "runs" / "x")
    trained = {"a": {0: Threshold()}, "b": {0: Threshold(-10.0)}}
    whole = evaluation.evaluate_each(run, trained, images(), {"pgd": PGD})
    alone = evaluation.evaluate_each(run, trained, subset(images(), 12, 0), {"pgd": PGD}, "few")
    same = evaluation.same_images(whole, ["pgd"], images(), 12)
    expected = alone[alone["measure"] == "pgd"]
    assert list(same["measure"]) == ["pgd, n = 12"] * 2
    assert [one.tolist() for one in same["each"]] == [one.tolist() for one in expected["each"]]
    assert same["value"].tolist() == expected["value"].tolist() != [1.0, 1.0]
    assert same[["low", "high"]].to_numpy().tolist() == expected[["low", "high"]].to_numpy().tolist()
    for count in (0, 40, 50):  # none, or all
        assert evaluation.same_images(whole, ["pgd"], images(), count).empty


def test_a_rise_of_accuracy_with_eps_is_flagged_beside_other_flags(home: Path) -> None:
    """Above ε = 0.1 the attack moves images to their own class, so that accuracy is above the clean one, too."""

    def helpful(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: str, step_size: float) -> Tensor:
        toward = 2 * y.view(-1, 1, 1, 1) - 1
        return (x + (eps if eps > 0.15 else -eps) * toward).clamp(0, 1)

    run = runs.Run("toy_pag", "quick", studies.resolve("toy_pag", "quick"), home / "runs" / "x")
    data = ImageSet(images().images, torch.arange(40) % 2, ("dark", "bright"))
    attack = partial(helpful, eps=0.1, norm="linf", step_size=0.1)
    found = evaluation.sweep(run, {"net": {0: Threshold()}}, data, attack, [1, 2]).set_index("measure")
    assert found["eps"].tolist() == pytest.approx([0, 0.1, 0.2])
    assert found["value"]["eps=1x"] < found["value"]["clean"] < found["value"]["eps=2x"]
    assert found["flags"][["clean", "eps=1x"]].tolist() == ["", ""]
    above, rise = found["flags"]["eps=2x"].split("; ")
    assert above.startswith("eps=2x: accuracy under attack")
    assert rise == "eps=2x: accuracy rises with eps"
