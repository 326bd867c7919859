import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from paperlib import models, studies, training
from paperlib.attacks import Attack, pgd
from paperlib.data import ImageSet, Splits
from paperlib.evaluation.intervals import rank_correlation
from paperlib.geometry.oracles import exact, target
from paperlib.geometry.saliency import activated
from paperlib.methods import Batch, Method, Step, pag
from paperlib.methods.combined import Combined
from paperlib.methods.ramped import Ramped
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.studies import matrix as matrix_study
from paperlib.studies import measures
from paperlib.studies import raat as raat_study
from paperlib.training.kept import recipe_of

MIXED = {"combinations": "{mixed: {base: pgd_at, add: {first: 0.1, raat: 1.0}}}"}


class Linear(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 8 * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x.flatten(1))


def images(count: int = 12) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand(count, 8, 8, generator=generator)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 3, ("a", "b", "c"), depth)


# Correlations ----------------------------------------------------------------------


def test_a_rank_correlation_is_scipys_and_a_partial_one_the_textbooks() -> None:
    generator = np.random.default_rng(0)
    x, y, control = generator.normal(size=(3, 40))
    y, control = y + x, control + x
    groups = np.arange(40)
    value, low, high = rank_correlation(x, y, groups)
    assert value == pytest.approx(spearmanr(x, y).statistic)
    assert low < value < high
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, control), (y, control)))
    textbook = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, groups, control)[0] == pytest.approx(textbook)


@pytest.mark.parametrize("partial", [False, True])
def test_its_interval_covers_the_truth_with_few_groups(partial: bool) -> None:
    """Normal pairs with r = 0.6, whose rank correlation is 6/π asin(0.3), also beside a control that is of neither."""
    generator = np.random.default_rng(1)
    truth, covered, count = 6 / np.pi * np.arcsin(0.3), 0, 60
    for _ in range(count):
        x, noise, shared = generator.normal(size=(3, 10))
        y = 0.6 * x + 0.8 * noise
        control = shared if partial else None
        _, low, high = rank_correlation(x, y, np.arange(10), control=control, draws=100)
        covered += low <= truth <= high
    assert covered >= 0.9 * count


def test_copies_within_a_group_do_not_narrow_it() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 12))
    once, thrice = (
        rank_correlation(x, y, np.arange(12)),
        rank_correlation(*(np.repeat(one, 3) for one in (x, y, np.arange(12)))),
    )
    assert thrice == pytest.approx(once, abs=0.05)


def test_what_has_no_correlation_is_no_number() -> None:
    x = np.arange(6.0)
    assert np.isnan(rank_correlation(x, np.ones(6), np.arange(6))).all()
    assert np.isnan(rank_correlation(x, -x, np.array([0, 1, 1, 2, 2, 3]))).all()  # four groups tell nothing
    value, low, high = rank_correlation(x, -x, np.arange(6))
    assert value == pytest.approx(-1)
    assert low == pytest.approx(-1)
    assert -0.8 < high < -0.3  # six pairs in perfect order are no certainty
    assert np.isnan(rank_correlation(x, x**2, np.arange(6), control=x)[0])  # nothing is left beside it


def test_predictors_find_what_tells_and_what_only_follows_the_gradient() -> None:
    generator = np.random.default_rng(0)
    gradient, own = generator.normal(size=(2, 60))
    models_ = pd.DataFrame(
        {"autoattack": gradient + own, "small_gradient": gradient, "flatness": own, "linearity": gradient + 0.1 * own},
        index=pd.MultiIndex.from_product([range(20), range(3)], names=["method", "seed"]),
    )
    models_.loc[(0, 0), "flatness"] = np.nan
    found = measures.predictors(models_, "autoattack")
    assert list(found.index) == ["flatness", "linearity", "small_gradient"]  # in the order of MEASURES
    assert found.loc["flatness", ("beside the gradient", "low")] > 0.5
    assert found.loc["linearity", ("ρ", "low")] > 0
    assert found.loc["flatness", ("models", "")] == 59
    assert np.isnan(found.loc["small_gradient", ("beside the gradient", "value")])
    twice = models_.rename(index=lambda name: f"{name}_equal", level="method")
    both = measures.predictors(pd.concat([models_.rename(index=str, level="method"), twice]), "autoattack")
    pd.testing.assert_frame_equal(both, found)  # the same models again


def test_what_only_tells_the_kinds_apart_tells_nothing_within_one() -> None:
    generator = np.random.default_rng(0)
    names = [f"m{number}" for number in range(12)]
    index = pd.MultiIndex.from_product([names, range(3)], names=["method", "seed"])
    adversarial = np.repeat([0.0] * 6 + [1.0] * 6, 3)
    own, noise = generator.normal(size=(2, 36))
    robust = 5 * adversarial + own
    models_ = pd.DataFrame(
        {"autoattack": robust, "small_gradient": own, "flatness": adversarial + 0.1 * noise}, index=index
    )
    assert measures.predictors(models_, "autoattack").loc["flatness", ("ρ", "low")] > 0
    found = measures.within(measures.kinds(models_, set(names[6:])), "autoattack")
    for kind in ("trained on adversarial images", "trained on clean images"):
        assert found.loc["small_gradient", (kind, "low")] > 0.5
        assert found.loc["flatness", (kind, "low")] < 0 < found.loc["flatness", (kind, "high")]
        assert found.loc["flatness", (kind, "models")] == 18


def test_a_model_that_has_hardly_learnt_tells_nothing() -> None:
    """By its own clean accuracy, not its method's; without any model there is no correlation, and no error."""
    index = pd.MultiIndex.from_tuples(
        [("a", 0), ("a", 1), *[(name, 0) for name in "bcdefghijkl"]], names=["method", "seed"]
    )
    values = np.arange(13.0)
    models_ = pd.DataFrame({"autoattack": values, "flatness": values, "small_gradient": values % 5}, index=index)
    low = pd.Series(0.9, index).mask(index == ("a", 0), 0.18).mask(index == ("b", 0), 0.19)
    table = low.rename("low").reset_index().assign(measure="clean")
    table = pd.concat([table, table.assign(measure="fgsm", low=0.0)])
    found = measures.learnt(models_, table, 10)  # of ten classes a tenth is chance, and a tenth of the way up 0.19
    assert list(models_.index.difference(found.index)) == [("a", 0), ("b", 0)]
    halves = measures.kinds(found, set("cdefg"))
    assert [len(part) for part in halves.values()] == [5, 6]
    nobody = measures.learnt(models_, table.assign(low=0.0), 10)
    for some, told in ((found, True), (nobody, False)):
        whole = measures.predictors(some, "autoattack")
        assert list(whole.index) == ["flatness", "small_gradient"]
        assert whole["ρ"].notna().all(axis=None) == whole.loc["flatness", "beside the gradient"].notna().all() == told
        within = measures.within(measures.kinds(some, set("cdefg")), "autoattack")
        assert within.xs("value", axis=1, level=1).notna().all(axis=None) == told


def test_who_trains_on_adversarial_images_is_known_of_combinations_too() -> None:
    settings = studies.resolve("alignment_matrix", "quick", {**MIXED, "defences": ["standard", "first", "pgd_at", "daat"]})
    assert matrix_study.on_adversarial(settings) == {"pgd_at", "daat", "mixed"}


def test_the_other_norm_is_the_other() -> None:
    for norm, other, radius in (("linf", "pgd_l2", 128 / 255), ("l2", "pgd_linf", 4 / 255)):
        attacks = matrix_study.other_attacks(studies.resolve("alignment_matrix", "quick", {"norm": norm}))
        assert list(attacks) == ["pgd_100", other]
        assert attacks[other].keywords["eps"] == radius
        assert attacks["pgd_100"].keywords["norm"] == norm


# Measures --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_is_linear_and_its_gradient_is_its_weights(norm: str) -> None:
    torch.manual_seed(0)
    model = Linear(2).double()
    x, y = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0])
    found = measures.first_order(model, x, y, eps=0.1, norm=norm)  # type: ignore[arg-type]
    assert float(found["linearity"].abs().max()) < 1e-12
    apart = (model.map.weight[0] - model.map.weight[1]).detach()
    dual = apart.abs().sum() if norm == "linf" else apart.norm()
    expected = -(0.1 * dual / model(x).std(1)).log10()
    torch.testing.assert_close(found["small_gradient"], expected.detach())


def test_the_error_of_a_square_is_its_second_order() -> None:
    class Square(nn.Module):
        """Logits ± |x − ½|² / 2 apart: the expansion's error is |δ|², at most ε² per pixel of the cube."""

        def forward(self, x: Tensor) -> Tensor:
            half = (x - 0.5).flatten(1).square().sum(1) / 2
            return torch.stack([half, -half], 1)

    x = torch.full((2, 1, 2, 2), 0.75, dtype=torch.float64)
    torch.manual_seed(0)
    found = measures.first_order(Square(), x, torch.tensor([0, 1]), eps=0.1, norm="linf", steps=20)["linearity"]
    scale = Square()(x).std(1)
    torch.testing.assert_close(found, -(4 * 0.1**2) / scale, rtol=1e-6, atol=0)


def test_every_measure_of_every_image_is_a_number() -> None:
    torch.manual_seed(0)
    model, data = models.small_cnn(3, width=4).eval(), images()
    floats = ImageSet(data.images.float() / 255, data.labels, data.classes, data.depth)
    layers = matrix_study.layers(model, data)
    found = measures.per_image(
        model, floats, targets=matrix_study.toward_means(data, torch.device("cpu")), layers=layers,
        attack=partial(pgd, eps=0.05, norm="linf", steps=2, step_size=0.03), attention=partial(activated, layer="6"),
        target=target(exact), eps=0.05, norm="linf",
    )  # fmt: skip
    measured = measures.by_model(pd.DataFrame([
        {"method": "net", "seed": 0, "measure": name, "value": float(each.mean())} for name, each in found.items()
    ]))  # fmt: skip
    assert set(measured) == set(measures.MEASURES) - {"pag_score", "flatness"}
    assert all(values.shape == (12,) and values.isfinite().all() for values in found.values())
    assert all(not values.requires_grad for values in found.values())
    own = pag.alignment(model, data, matrix_study.toward_means(data, torch.device("cpu"))).mean(1)
    torch.testing.assert_close(found["pag_cosine"], own, rtol=1e-4, atol=1e-6)
    assert float(found[measures.DEFECT].min()) >= 0


# Cost and front ----------------------------------------------------------------------


def test_equal_compute_is_equal() -> None:
    found = pd.Series({"standard": 1.0, "pgd_at": 6.0, "raat": 13.0})
    assert measures.equal_epochs(found, "pgd_at", 10) == {"standard": 60, "pgd_at": 10, "raat": 5}
    assert measures.equal_epochs(found, "standard", 1) == {"standard": 1, "pgd_at": 1, "raat": 1}
    table = measures.cost_table(found, 10, {"standard": 60, "pgd_at": 10, "raat": 5})
    assert list(table["equal, in plain epochs"]) == [60, 60, 65]


def test_the_front_holds_what_nothing_beats_in_all_three() -> None:
    rows = [
        {"method": name, "measure": measure, "mean": value, "low": value, "high": value}
        for name, pair in {"a": (0.9, 0.1), "b": (0.8, 0.5), "c": (0.8, 0.4), "d": (0.7, 0.45)}.items()
        for measure, value in zip(("clean", "robust"), pair, strict=True)
    ]
    found = measures.front(pd.DataFrame(rows), "robust", pd.Series({"a": 1.0, "b": 6.0, "c": 7.0, "d": 2.0, "e": 1.0}))
    assert found["front"].to_dict() == {"a": True, "b": True, "c": False, "d": True}
    assert found.loc["a", "clean"] == 90


def test_robust_alignment_is_a_ratio_of_means() -> None:
    """So an image whose outputs hardly move, and bulge on the way, does not decide for a model."""
    rows = [
        {"method": "a", "seed": 0, "measure": name, "value": value}
        for name, value in {measures.DEFECT: 0.3, measures.MOVED: 0.6, "clean": 0.9}.items()
    ]
    still = [{**row, "method": "b", "value": 0.0} for row in rows]
    models_ = measures.by_model(pd.DataFrame(rows + still))
    assert list(models_["robust_alignment"].fillna(7)) == [-0.5, 7]
    assert set(models_) == {"clean", "robust_alignment"}


# The study -----------------------------------------------------------------------------


def test_every_defence_and_combination_of_every_preset_takes_a_step() -> None:
    data = images()
    for preset in runs.read_presets("alignment_matrix"):
        given = {"combinations": {"all": {"base": "trades", "add": dict.fromkeys(matrix_study.TERMS, 0.1)}}, "neighbors": 2}
        given |= {"data": "scenes", "oracle": "exact", "width": 4}
        settings = studies.resolve("alignment_matrix", preset, given)
        model = models.of_settings(settings, classes=3, channels=3, size=8, seed=0)
        matrix_study.check(settings, model, data)
        teacher = models.of_settings(settings, classes=3, channels=3, size=8, seed=1)
        methods = matrix_study.methods(settings, data, model, torch.device("cpu"), teacher)
        assert list(methods) == [*settings.defences, "all"]
        batch = Batch(data.images.float() / 255, data.labels, lambda x: x.clone(), data.depth)
        for name, method in methods.items():
            terms = method.loss(model, batch, Step(500, 1000, 5, model))
            assert terms["total"].isfinite(), name
            if name in matrix_study.TERMS:
                assert matrix_study.TERMS[name] in terms
        assert isinstance(methods["all"], Combined)
        assert len(methods["all"].added) == len(matrix_study.TERMS)


def test_wrong_settings_are_refused_with_the_right_ones() -> None:
    for given, words in (
        ({"defences": "[standard, raat]"}, "defences needs pgd_at"),
        (
            {"weights": "{raat: 1.0}", "combinations": "{}"},
            "weights has none for class_mean, daat, first, gradient_penalty",
        ),
        (
            {
                "combinations": "{x: {base: deep, add: {raat: 1}}}",
                "weights": "{raat: 1, class_mean: 1, first: 1, gradient_penalty: 1, daat: 1}",
            },
            "weights has none for deep",
        ),
        ({"combinations": "{x_equal: {base: pgd_at, add: {first: 1}}}"}, "x_equal"),
        ({"combinations": "{a/b: {base: pgd_at, add: {first: 1}}}"}, "a/b"),
        ({"combinations": "{raat: {base: pgd_at, add: {first: 1}}}"}, "raat is a defence's name"),
        ({"combinations": "{x: {base: pgd_at, add: {standard: 1}}}"}, "standard has no term of its own"),
        ({"combinations": "{x: {base: pgd_at, add: {}}}"}, "combinations"),
        ({"combinations": "{x: {base: pgdat, add: {first: 1}}}"}, "combinations"),
        ({"seeds_of": "{x: 1}"}, "seeds_of has x"),
        ({"equal_compute": "trades"}, "equal_compute = trades"),
        ({"data": "cifar10"}, "oracle exact"),
        ({"defences": "[standard, pgd_at, wa]", "average": 0}, "average = 0"),
        ({"average": 1.0}, "average"),
        ({"average_start": 1.0}, "average_start"),
        ({"combinations": "{x: {base: pgd_at, add: {raat_sharp: 1}}}"}, "raat_sharp cannot be added"),
        ({"defences": "[standard, pgd_at, raat_sharp]", "weights": "{}", "combinations": "{}"}, "none for raat_sharp"),
        ({"layer": "null"}, "a convolutional network needs a layer"),
        ({"crop_fill": "0.5"}, "crop_fill must be reflect"),
    ):
        with pytest.raises(InputError, match=words):
            studies.resolve("alignment_matrix", "quick", given)


def test_what_does_not_fit_is_refused_before_training() -> None:
    settings = studies.resolve("alignment_matrix", "quick", {"layer": "banana"})
    with pytest.raises(InputError, match="banana"):
        matrix_study.check(settings, models.small_cnn(3, width=4), images())
    settings = studies.resolve("alignment_matrix", "quick", {})
    with pytest.raises(InputError, match="DEEP needs 3"):
        matrix_study.check(settings, nn.Sequential(*[nn.Identity()] * 12, nn.Conv2d(3, 3, 1)), images())


def test_rigd_distils_its_teacher() -> None:
    """Where the trained network is the teacher, nothing is misaligned; cost knows the teacher's passes."""
    data = images()
    settings = studies.resolve(
        "alignment_matrix", "quick", {"defences": "[standard, class_mean, rigd, pgd_at]", "width": 4}
    )
    model, other = (models.of_settings(settings, classes=3, channels=3, size=8, seed=seed).eval() for seed in (0, 1))
    batch = Batch(data.images.float() / 255, data.labels, lambda x: x.clone(), data.depth)
    for teacher, aligned in ((copy.deepcopy(model), True), (other, False)):
        methods = matrix_study.methods(settings, data, model, torch.device("cpu"), teacher)
        assert (float(methods["rigd"].loss(model, batch, Step(0, 1, 0))["misalignment"].detach()) < 1e-5) == aligned
    cost = measures.costs(methods, model, Splits(data, data, data), torch.device("cpu"))
    assert cost["rigd"] > cost["class_mean"] + 0.3  # a plain step is three passes, the teacher's gradient two


def test_the_weights_are_averaged_where_the_defence_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, object]] = {}

    def train_each(run: object, methods: dict[str, object], *_: object, **changes: object) -> dict[str, object]:
        asked.update(dict.fromkeys(methods, changes))
        return {name: {0: None} for name in methods}

    monkeypatch.setattr(matrix_study, "train_each", train_each)
    given = {"average": 0.7, "average_start": 0.2, "combinations": "{mixed: {base: wa, add: {first: 0.1}}}"}
    settings = studies.resolve("alignment_matrix", "quick", given)
    run, data = runs.Run("alignment_matrix", "quick", settings, None), Splits(images(), images(), images())  # type: ignore[arg-type]
    methods = {"raat": None, "wa": None, "raat_sharp": None, "mixed": None}
    matrix_study.train(run, methods, data)  # type: ignore[arg-type]
    matrix_study.train(run, methods, data, dict.fromkeys(methods, 3))  # type: ignore[arg-type]
    averaged = {name: (changes.get("ema"), changes.get("ema_start")) for name, changes in asked.items()}
    for name in methods:
        assert averaged[name] == averaged[f"{name}_equal"] == ((None, None) if name == "raat" else (0.7, 0.2))


def test_trainings_of_equal_compute_have_their_own_names_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[int], object]] = []

    def train_each(
        run: object, methods: dict[str, object], data: object, attack: object, **changes: object
    ) -> dict[str, object]:
        asked.append((*methods, changes["seeds"], changes.get("epochs")))  # type: ignore[arg-type]
        return {name: {0: None} for name in methods}

    monkeypatch.setattr(matrix_study, "train_each", train_each)
    data = Splits(images(), images(), images())
    methods = {"raat": None, "pgd_at": None, "mixed": None}
    for chosen, first, second in (
        ("{raat: 1}", ([0], [0, 1], [0, 1]), ([0], [0, 1], [0, 1])),
        ("{equal: 1}", ([0, 1], [0, 1], [0, 1]), ([0], [0], [0])),
        ("{combinations: 1, raat: 1}", ([0], [0, 1], [0]), ([0], [0, 1], [0])),
    ):
        asked.clear()
        settings = studies.resolve("alignment_matrix", "quick", {"seeds": "[0, 1]", "seeds_of": chosen, **MIXED})
        run = runs.Run("alignment_matrix", "quick", settings, None)  # type: ignore[arg-type]
        assert list(matrix_study.train(run, methods, data)) == [*methods]  # type: ignore[arg-type]
        longer = matrix_study.train(run, methods, data, {"raat": 3, "pgd_at": 7, "mixed": 2})  # type: ignore[arg-type]
        assert list(longer) == ["raat_equal", "pgd_at_equal", "mixed_equal"]
        assert asked[:3] == [(name, seeds, None) for name, seeds in zip(methods, first, strict=True)]
        assert asked[3:] == [*zip(longer, second, (3, 7, 2), strict=True)]


def test_quick_takes_what_the_notebook_of_raat_trained() -> None:
    """Of the images, methods and attacks that both train on, the recipes are the same, and so are the files."""
    own, others = studies.resolve("alignment_matrix", "quick"), studies.resolve("raat_boundary", "quick")
    for name in ("data", "train_images", "validation_images", "test_images", "image_size"):
        assert getattr(own, name) == getattr(others, name)
    data = Splits(images(), images(), images())

    def recipes(settings: Any, methods: Mapping[str, Method], attack: Attack) -> dict[str, str | None]:
        model = training.build(settings, data, 0)
        return {name: recipe_of(model, one, data, settings, 0, attack, "cpu") for name, one in methods.items()}

    network = training.build(own, data, 0)
    methods = matrix_study.methods(own, data.train, network, torch.device("cpu"), network)
    ours = recipes(own, methods, matrix_study.selection_attack(own))
    theirs = recipes(others, raat_study.methods(others), raat_study.attacks(others)["pgd_10"])
    assert None not in (*ours.values(), *theirs.values())
    assert ours["pgd_at"] == theirs["pgd_at"] != ours["raat"]
    assert ours["raat"] == theirs["raat"]


def test_the_ramp_is_in_every_attack_in_training() -> None:
    settings = studies.resolve("alignment_matrix", "quick", {"ramp": "[0.25, 0.75]", **MIXED})
    network = models.small_cnn(3, width=4)
    methods = matrix_study.methods(settings, images(), network, torch.device("cpu"), network)
    ramped = {name for name, method in methods.items() if isinstance(method, Ramped)}
    assert ramped == {"pgd_at", "raat", "daat"}
    mixed = methods["mixed"]
    assert isinstance(mixed, Combined)
    assert [isinstance(one, Ramped) for one in (mixed.base, *(added.method for added in mixed.added))] == [
        True,
        False,
        True,
    ]
