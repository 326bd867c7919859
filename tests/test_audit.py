import re
import textwrap
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks import defences
from paperlib import attacks, audit, cli, data, evaluation, report, studies, zoo
from paperlib.attacks import Norm, lengths
from paperlib.audit import checks, probes
from paperlib.data import ImageSet, as_float
from paperlib.geometry import cosine
from paperlib.models import external
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, write_json


class Honest(nn.Module):
    """Compares the first channel with the others: linear in the image."""

    def __init__(self, scale: float = 4.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0].mean((1, 2)) - x[:, 1:].mean((1, 2, 3))
        return torch.stack([-first, first], 1) * self.scale


def images(count: int = 60) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, 8, 8, generator=generator)
    pixels[:, 0] += torch.linspace(-0.6, 0.6, count).view(-1, 1, 1)
    return ImageSet(pixels.clamp(0, 1), (torch.arange(count) >= count // 2).long(), ("low", "high"))


def found(model: nn.Module) -> audit.Audit:
    return audit.audit(model, images(), eps=0.05, norm="linf")


def test_an_honest_model_has_no_sign_and_its_accuracies_are_those_of_its_geometry() -> None:
    result = found(Honest())
    assert result.verdict == "no sign of masking", str(result)
    assert list(result.checks.index) == list(audit.CHECKS)
    # Moving every pixel by ε moves the first channel's mean, less that of the others, by 2 ε, but for pixels at the box.
    data = images()
    away = data.labels * 2 - 1
    first = (data.images + 0.05 * away.view(-1, 1, 1, 1) * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)).clamp(0, 1)
    worst = first[:, 0].mean((1, 2)) - first[:, 1:].mean((1, 2, 3))
    assert result.accuracies.loc["best of all", "accuracy"] == pytest.approx(float((worst * away > 0).float().mean()))
    assert result.accuracies.loc["AutoAttack", "n"] == audit.FEW


EXPECTED = {
    "logits times 1000": "saturated outputs",
    "rounded to 8 levels": "images without gradient",
    "fine wave": "gradient turns within the ball",
    "noise": "answers differ between calls",
    "median": "images without gradient",
    "a random linear map's": "gradient not of the function",
    "wrong sign": "gradient unlike finite differences",
}


@pytest.mark.parametrize("defence", EXPECTED)
def test_planted_defences_are_seen_and_keep_the_answers(defence: str) -> None:
    torch.manual_seed(0)
    model = Honest(1.0 if defence == "logits times 1000" else 4.0)
    changed, stand_in = defences.DEFENCES[defence](model, Honest())
    wanted = model(images().images).argmax(1)
    for one in (changed, stand_in):
        assert (one(images().images).argmax(1) == wanted).float().mean() > 0.85
    result = found(changed)
    evident = defence not in ("logits times 1000", "noise")
    assert result.verdict in ({"masked"} if evident else {"suspicious", "masked"}), str(result)
    assert EXPECTED[defence] in result.signs().index
    if defence != "noise":  # attacked through: what is left of the network without the defence is the bound
        bare = found(model).accuracies.loc["best of all", "accuracy"]
        assert result.accuracies.loc["best of all", "accuracy"] <= bare + 0.05


@pytest.fixture(scope="module")
def scenes() -> ImageSet:
    return data.load_test("scenes4", 60)


def unlike(model: nn.Module, some: ImageSet, eps: float = 4 / 255) -> Tensor:
    return probes.gradients(probes.Connected(model), as_float(some.images), some.labels, eps=eps, norm="linf")["unlike"]


def test_the_cosine_with_finite_differences_is_that_with_the_true_gradient(scenes: ImageSet) -> None:
    first, second = zoo.load("quick/jacobian-seed1"), zoo.load("quick/gradient_penalty-seed1")
    x = as_float(scenes.images)
    top = first(x).topk(2, dim=1).indices.unbind(1)

    def gradient(model: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(probes.gap(model, leaf, *top).sum(), leaf)[0]

    truly = cosine(gradient(first), gradient(second)).mean()
    assert float(1 - unlike(defences.foreign(first, second)[0], scenes).mean()) == pytest.approx(float(truly), abs=0.1)


@pytest.mark.parametrize(
    "defence",
    [
        "another network's",
        "most channels detached",
        "two colours detached",
        "straight through 8 levels",
        "noise by a hash",
    ],
)
def test_gradients_of_something_else_are_told_on_trained_networks_and_honest_ones_are_not(
    scenes: ImageSet, defence: str
) -> None:
    """The outputs do rise along them, so that their slope alone tells nothing."""
    check = audit.CHECKS["gradient unlike finite differences"]
    for name, other in (("jacobian", "gradient_penalty"), ("standard", "jacobian")):
        model, foreign = (zoo.load(f"quick/{one}-seed1") for one in (name, other))
        changed, _ = defences.DEFENCES[defence](model, foreign)
        assert checks.mean_figure(unlike(changed, scenes)).low > check.threshold
        for eps in (4 / 255, 16 / 255):  # the latter is four times what any of them is trained at
            assert checks.mean_figure(unlike(model, scenes, eps)).low < check.threshold / 2


def test_half_precision_has_no_finite_differences() -> None:
    class Half(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).bfloat16().float()

    result = found(Half())
    assert result.verdict == "no sign of masking", str(result)
    assert result.checks.loc["gradient unlike finite differences", "n"] == 0


def test_gradients_pass_through_rounding_and_detach() -> None:
    class Stopped(Honest):
        def forward(self, x: Tensor) -> Tensor:
            again = x + ((8 * x.detach()).round() / 8 - x).detach()
            return super().forward(torch.from_numpy(again.detach().numpy()).floor() + again.detach())

    x = images(20).images.requires_grad_(True)
    assert not Stopped()(x).requires_grad or torch.autograd.grad(Stopped()(x).sum(), x, allow_unused=True)[0] is None
    stopped = nn.Sequential(defences.Planted(Honest(), lambda x: (8 * x).round() / 8 + 0 * x.detach()))
    (through,) = torch.autograd.grad(probes.StraightThrough(stopped)(x)[:, 0].sum(), x)
    (bare,) = torch.autograd.grad(Honest()(x)[:, 0].sum(), x)
    torch.testing.assert_close(through, bare)
    assert torch.equal(probes.StraightThrough(Stopped())(x), Stopped()(x))


def test_what_is_fooled_once_in_nine_calls_has_not_fallen() -> None:
    class Rarely(Honest):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * (-1 if self.calls % 9 == 1 else 1)

    some = images(20)
    wrong = Honest()(some.images).argmax(1) != some.labels
    assert torch.equal(probes.falls(Rarely(), some.images, some.labels, 9), wrong)
    assert torch.equal(probes.falls(Rarely(), some.images, some.labels), ~wrong)


def test_networks_picked_at_random_are_random_and_do_not_depend_on_other_images() -> None:
    picked, _ = defences.picked(Honest(4.0), Honest(1.0))
    given, some = base(60)[0], images()
    for seed in range(20):
        torch.manual_seed(seed)
        answers = probes.answers(picked, some.images, some.labels, classes=2)
        assert (answers["difference"] > 0.01).all()
        assert not answers["others"].any()
    part = {
        "difference": (torch.arange(60) < 30).float(),
        "others": torch.ones(60),
    }  # one chunk's calls were alike by chance
    assert told(given | part, 60)["figure"]["answers depend on the other images"] == 0


class Rolled(nn.Module):
    """Right on a share of the images alone, and without a gradient."""

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share

    def forward(self, x: Tensor) -> Tensor:
        draw = (x.flatten(1).sum(1).detach() * 1000) % 1
        logits: Tensor = self.model(x)
        return torch.where(draw[:, None] < self.share, logits, logits.roll(1, 1))


def test_a_network_near_chance_is_told_by_its_right_images() -> None:
    half = Rolled(defences.DEFENCES["median"](Honest(), Honest())[0], 0.6)
    result = found(half)
    assert 30 <= round(result.accuracies.loc["no attack", "accuracy"] * 60) <= 40  # of two classes: close to chance
    assert result.verdict in ("suspicious", "masked"), str(result)
    few = audit.audit(half, images(30), eps=0.05, norm="linf")
    assert few.verdict == "not told"


def test_the_slope_is_right_where_the_model_is_linear_and_wrong_where_it_is_not() -> None:
    data = images(20)
    x = data.images * 0.8 + 0.1
    first, second = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)

    def slope(model: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(probes.gap(probes.Connected(model), leaf, first, second).sum(), leaf)
        return probes.wrong_slope(model, x, gradient, first, second, 0.01, "linf")

    assert float(slope(Honest()).max()) < 1e-3
    assert float(slope(defences.DEFENCES["median"](Honest(), Honest())[0]).min()) == 1
    # A straight-through gradient twice as steep as the function: |1 − 2| / (1 + 2).
    steep = defences.Planted(Honest(), before=lambda x: 2 * x - x.detach())
    torch.testing.assert_close(slope(steep), torch.full((20,), 1 / 3), rtol=1e-3, atol=1e-3)


def test_black_and_white_images_have_a_slope_too() -> None:
    data = images(20)
    x = (data.images > 0.5).float()
    first, second = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(probes.gap(Honest(), leaf, first, second).sum(), leaf)
    assert float(probes.wrong_slope(Honest(), x, gradient, first, second, 0.01, "l2").max()) < 1e-3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_averaging_stays_within_the_ball(norm: Norm) -> None:
    seen: list[Tensor] = []

    class Spy(Honest):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    x = images(5).images
    probes.Averaged(Spy(), 0.3, norm)(x)
    assert len(seen) == probes.DRAWS
    sizes = torch.stack([lengths(noisy - x, norm) for noisy in seen])
    assert 0.2 < float(sizes.min()) <= float(sizes.max()) <= 0.3001


def test_infinite_gradients_do_not_lose_the_audit(tmp_path: Path) -> None:
    class Root(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.where(x >= 0, x, -x) ** 0.5)

    data = images()
    dark = ImageSet(data.images * (data.images > 0.3), data.labels, data.classes)
    result = audit.audit(Root(), dark, eps=0.05, norm="linf")
    assert "images without gradient" in result.signs().index
    write_json(tmp_path / "audit.json", audit.as_json(result))


def test_a_path_on_a_linear_model_is_straight() -> None:
    data = images(20)
    on = probes.path(Honest(), data.images, data.labels, eps=0.05, norm="linf")
    assert float(on["roughness"].abs().max()) < 1e-5
    confident = probes.path(Honest(60.0), data.images, data.labels, eps=0.05, norm="linf")  # gradients down to 1e-32
    assert float(confident["roughness"].abs().max()) < 1e-5
    assert not on["lost"].any()
    assert (on["PGD-100"] >= on["PGD-50"]).all()
    assert (on["loss"] >= on["loss, 10 steps before"] - 1e-6).all()


def test_the_substitute_learns_the_answers_without_a_gradient() -> None:
    data, model = images(), defences.DEFENCES["rounded to 8 levels"](Honest(), Honest())[0]
    torch.manual_seed(0)
    student = probes.substitute(model, data, torch.device("cpu"), 0, 0.05, "linf")
    with torch.no_grad():
        agree = (student(data.images).argmax(1) == model(data.images).argmax(1)).float().mean()
    assert agree > 0.8
    assert not any(weight.requires_grad for weight in student.parameters())


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(torch.zeros(len(x), dtype=torch.long), 2).float() + 0 * x.mean()


def test_a_model_at_chance_is_not_told_and_not_attacked(tmp_path: Path) -> None:
    result = found(Constant())
    assert result.verdict == "not told"
    assert list(result.accuracies.index) == ["no attack"]
    assert not result.checks["sign"].any()
    assert "order of" in str(result) or "in another order" in str(result)
    write_json(tmp_path / "audit.json", audit.as_json(result))
    assert read_json(tmp_path / "audit.json")["verdict"] == "not told"


def test_what_is_no_classifier_of_these_images_is_refused() -> None:
    for model, words in (
        (nn.Identity(), "should be N×classes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "has 1 outputs; the data have 2 classes"),
        (nn.Conv2d(4, 2, 3), "cannot answer images of 3×8×8"),
        (Honest(float("nan")), "for 20 of 20 clean images .* are NaN"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "has 3 outputs; the data have 2 classes.*--classes"),
    ):
        with pytest.raises(InputError, match=words):
            audit.audit(model, images(20), eps=0.05, norm="linf")
    for eps in (0.0, -1.0, 8.0, float("nan")):
        with pytest.raises(InputError, match="8/255"):
            audit.audit(Honest(), images(20), eps=eps, norm="linf")


def base(count: int) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """What probes find of a model that no attack fools, and its accuracy against eps."""
    zero = torch.zeros(count, dtype=torch.bool)
    names = ("no attack", "noise", "FGSM", "PGD-20", "margin", "PGD-50", "PGD-100", "lost", "flat", "saturated", "white")
    names += ("transfer", "Square", "averaged", "through", "AutoAttack", "right", "probabilities", "undefined")
    means = ("difference", "others", "wrong slope", "unlike", "turned", "roughness", "loss", "loss, 10 steps before")
    curve = pd.DataFrame({"eps": [0.0, 1.0], "accuracy": [1.0, 1.0]})
    return dict.fromkeys(names, zero) | dict.fromkeys(means, torch.zeros(count)), curve


def told(changed: dict[str, Tensor], count: int = 100) -> pd.DataFrame:
    given, curve = base(count)
    return audit.signs_of(audit.figures(given | changed, curve, (), 10))


@pytest.mark.parametrize("name", ["Square", "transfer", "averaged", "through"])
def test_a_share_is_a_sign_where_its_interval_is_above_the_threshold(name: str) -> None:
    check = "PGD-20 overstates the best attack"
    for hits in range(25):
        fallen = torch.arange(100) < hits
        low = binomtest(hits, 100).proportion_ci(0.95, "exact").low
        assert told({name: fallen})["sign"][check] == (low > audit.CHECKS[check].threshold)
    # The same share of fewer images tells less.
    assert told({name: torch.arange(100) < 14})["sign"][check]
    assert not told({name: torch.arange(50) < 7}, 50)["sign"][check]


def test_a_gap_between_the_losses_alone_is_no_evidence() -> None:
    fallen = torch.arange(100) < 60
    checks_ = told({"margin": fallen, "PGD-50": fallen, "PGD-100": fallen, "white": fallen, "AutoAttack": fallen})
    assert checks_["sign"]["margin loss gains over cross-entropy"]
    assert audit.verdict_of(checks_) == "suspicious"


def test_a_turning_gradient_alone_is_no_sign() -> None:
    turned = {"turned": torch.ones(100), "roughness": torch.ones(100)}
    assert not told(turned)["sign"].any()
    beside = told(turned | {"flat": torch.ones(100, dtype=torch.bool)})
    assert beside["sign"][["gradient turns within the ball", "gradient turns along the path"]].all()


def test_what_attacks_find_is_counted_among_the_images_that_are_right() -> None:
    wrong = torch.arange(100) >= 30
    few = {"no attack": wrong, "Square": wrong | (torch.arange(100) < 6)}
    row = told({**few, "white": wrong, "margin": wrong, "PGD-20": wrong}).loc["only attacks without gradient fool"]
    assert (row["figure"], row["n"]) == (6 / 30, 30)


# What would mislead the audit ------------------------------------------------------


class Normalising(nn.Module):
    """A model in which batch norm takes the statistics of the batch in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.own = nn.BatchNorm2d(3), Honest()
        self.calls = 0

    def train(self, mode: bool = True) -> "Normalising":
        super().train(mode)
        self.norm.train()
        self.calls += mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x + 0.2 * self.norm(x))


def test_answers_that_depend_on_the_other_images_are_named_and_the_model_comes_back_as_it_came() -> None:
    model = Normalising()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = found(model)
    assert result.verdict == "suspicious", str(result)
    assert result.checks.loc["answers depend on the other images", "sign"]
    assert "the images beside it" in str(result)
    assert model.training
    assert model.norm.training
    assert model.calls == 1  # its own `train` was told
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not found(Honest()).checks.loc["answers depend on the other images", "sign"]


def test_the_best_iterate_is_not_weaker_than_the_last_where_answers_depend_on_the_other_images() -> None:
    model, some = Normalising(), images()
    settings: dict[str, Any] = {"eps": 0.05, "norm": "linf", "steps": 20, "step_size": 0.01}
    fallen = []
    for best in (False, True):
        torch.manual_seed(0)
        adversarial = attacks.pgd(model, some.images, some.labels, best=best, **settings)
        fallen.append(int((model(adversarial).argmax(1) != some.labels).sum()))
    assert fallen[1] >= fallen[0] > 10
    assert attacks.depends_on_others(model, some.images)
    assert not attacks.depends_on_others(Honest(), some.images)
    assert not attacks.depends_on_others(defences.DEFENCES["noise"](Honest(), Honest())[0], some.images)


def test_probabilities_are_named_and_their_logarithm_attacked() -> None:
    sharp = Honest(10.0)
    result, logits = found(nn.Sequential(sharp, nn.Softmax(1))), found(sharp)
    assert result.verdict == "suspicious", str(result)
    assert result.signs().index.tolist() == ["outputs are probabilities"]
    for attack in ("no attack", "PGD-20", "best of all"):
        assert result.accuracies.loc[attack, "accuracy"] == logits.accuracies.loc[attack, "accuracy"]
    logarithms = found(nn.Sequential(sharp, nn.LogSoftmax(1)))  # as good as logits
    assert logarithms.verdict == logits.verdict == "no sign of masking", str(logarithms)


class Undefined(Honest):
    """A model without an answer for images that are not in the set."""

    def forward(self, x: Tensor) -> Tensor:
        known = (x.flatten(1)[:, None] - images().images.flatten(1)).abs().amax(2).amin(1) < 1e-3
        return super().forward(x).masked_fill(~known[:, None], torch.nan)


def test_outputs_that_are_no_numbers_are_counted_and_never_fooled() -> None:
    result = found(Undefined())
    assert result.checks.loc["outputs that are no numbers", "figure"] == 1
    assert result.accuracies.loc["best of all", "accuracy"] == result.accuracies.loc["no attack", "accuracy"]
    assert result.verdict != "no sign of masking"
    attack = {"pgd": partial(attacks.pgd, eps=0.05, norm="linf", steps=3, step_size=0.02)}
    outcomes, flags = evaluation.evaluate(Undefined(), images(), attack)
    assert torch.equal(outcomes["pgd"], outcomes["clean"])
    assert {re.sub(r"\d+", "N", flag) for flag in flags} == {
        "pgd: N images end at outputs that are NaN, and count as not fooled"
    }
    assert sum(int(flag.split()[1]) for flag in flags) == 60


def test_impossible_classes_are_no_fault() -> None:
    class Masked(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), torch.full((len(x), 1), -torch.inf)], 1)

    some = data.named(images(), ["low", "high", "never"])
    result = audit.audit(Masked(), some, eps=0.05, norm="linf")
    honest = found(Honest())
    for attack in ("no attack", "PGD-20", "PGD-100"):
        assert result.accuracies.loc[attack, "accuracy"] == honest.accuracies.loc[attack, "accuracy"]


# In a study, and on a user's own model ---------------------------------------------


def test_the_audit_of_a_run_is_kept_and_made_anew_for_other_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.Run("toy_pag", "quick", studies.resolve("toy_pag", "quick", {"device": "cpu"}), home / "runs" / "x")
    model, judge = Honest(), Honest(2.0)
    table = audit.audit_each(run, {"a": {0: model}}, images(20), eps=0.05, norm="linf", transfer_from=judge)
    assert table.loc["verdict", "a"] in audit.MEANINGS
    asked: list[int] = []
    whole = audit.audit
    monkeypatch.setattr(checks, "audit", lambda *given, **more: asked.append(1) or whole(*given, **more))
    assert audit.audit_each(run, {"a": {0: model}}, images(20), eps=0.05, norm="linf", transfer_from=judge).equals(table)
    assert not asked
    audit.audit_each(run, {"a": {0: Honest(3.0)}}, images(20), eps=0.05, norm="linf", transfer_from=judge)
    assert asked
    assert set(audit.signs(run)) == {"a"}


MODEL = """
import torch
from torch import nn
from helper import classes

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))

def one(argument):
    return argument

def text():
    return "text"

def failing():
    return 1 / 0
"""

BRIGHTNESS = """
import torch
from torch import nn

class Brightness(nn.Module):
    def forward(self, x):
        excess = ((x * 7).round() / 7).mean((1, 2, 3)) - 0.4
        return 9 * torch.stack([-excess, excess], 1)

build = Brightness
"""


def test_a_users_own_model_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text("classes = 2")
    (tmp_path / "syntax.py").write_text("def build(")
    (tmp_path / "missing.py").write_text("import no_such")
    built = external.from_file(f"{tmp_path / 'mine.py'}:build")
    save_file({name: torch.ones_like(weight) for name, weight in built.state_dict().items()}, tmp_path / "w.safetensors")
    filled = external.from_file(f"{tmp_path / 'mine.py'}:build", tmp_path / "w.safetensors")
    assert all(bool((weight == 1).all()) for weight in filled.state_dict().values())
    torch.save({"state_dict": filled.state_dict()}, tmp_path / "w.pt")
    again = external.from_file(f"{tmp_path / 'mine.py'}:build", tmp_path / "w.pt")
    assert all(bool((weight == 1).all()) for weight in again.state_dict().values())
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    torch.save([1, 2], tmp_path / "list.pt")
    for spec, weights, words in (
        ("mine.py", None, "FILE.py:FUNCTION"),
        ("absent.py:build", None, "FILE.py:FUNCTION"),
        ("mine.py:absent", None, "no function 'absent'"),
        ("mine.py:one", None, "need no arguments"),
        ("mine.py:text", None, "returned str"),
        ("mine.py:build", "absent.safetensors", "no such file"),
        ("mine.py:build", "other.safetensors", "not the weights of"),
        ("mine.py:build", "broken.safetensors", "not a readable safetensors"),
        ("syntax.py:build", None, r"syntax.py cannot be imported \(SyntaxError"),
        (
            "missing.py:build",
            None,
            r"imported \(ModuleNotFoundError: No module named 'no_such'; missing.py, line 1",
        ),
        ("mine.py:failing", None, r"failing failed \(ZeroDivisionError: .*; mine.py, line"),
        ("mine.py:build", "list.pt", "no weights by name"),
    ):
        with pytest.raises(InputError, match=words):
            external.from_file(str(tmp_path / spec), None if weights is None else tmp_path / weights)


def test_weights_are_found_under_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "exits.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no-such'])")
    spec = f"{tmp_path / 'mine.py'}:build"
    ones = {name: torch.ones_like(weight) for name, weight in external.from_file(spec).state_dict().items()}
    for prefix, holder in (("module.", "model_state_dict"), ("_orig_mod.module.", "net"), ("model.", "ema"), ("", "model")):
        held: dict[str, Any] = {holder: {prefix + name: value for name, value in ones.items()}, "epoch": 3}
        torch.save(held, tmp_path / "w.pt")
        filled = external.from_file(spec, tmp_path / "w.pt")
        assert all(bool((weight == 1).all()) for weight in filled.state_dict().values())
        said = capsys.readouterr().out
        assert f"the weights are those under {holder!r}" in said
        assert prefix in said
    torch.save({"other": torch.ones(1), **dict(list(ones.items())[1:])}, tmp_path / "w.pt")
    first = next(iter(ones))
    with pytest.raises(InputError, match=rf"1 missing \({re.escape(first)}\) and 1 unknown \(other\)"):
        external.from_file(spec, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"exits.py cannot be imported \(SystemExit: 2"):
        external.from_file(f"{tmp_path / 'exits.py'}:build")


def test_networks_are_built_by_their_names(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = get_model("squeezenet1_1", weights=None, num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = external.from_library("torchvision:squeezenet1_1", tmp_path / "w.safetensors", 3)
    x = torch.rand(2, 3, 64, 64)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = theirs((x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
    torch.testing.assert_close(ours(x), expected)
    with pytest.raises(InputError, match="torchvision has no such network"):
        external.from_library("torchvision:no_such", None, 3)
    with pytest.raises(InputError, match="needs --weights"):
        external.from_library("torchvision:squeezenet1_1", None, 3)
    with pytest.raises(InputError, match=r"512×3|size mismatch"):
        external.from_library("torchvision:squeezenet1_1", tmp_path / "w.safetensors", 4)


class Answering(nn.Module):
    """`Honest` in double precision, which changes its input and answers with an object."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.own, self.answer = Honest().double(), answer

    def forward(self, pixel_values: Tensor) -> Any:
        logits = self.own(pixel_values)
        pixel_values.mul_(0)
        return self.answer(logits)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: (logits, "features"),
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: types.SimpleNamespace(logits=logits),
    ],
    ids=["tuple", "mapping", "object"],
)
def test_models_of_other_habits_are_understood(answer: Callable[[Tensor], Any]) -> None:
    some = images().images
    before = some.clone()
    connected = probes.Connected(Answering(answer))
    torch.testing.assert_close(connected(some), Honest()(some))
    assert connected(some).dtype == torch.float32
    assert torch.equal(some, before)
    leaf = some.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(connected(leaf)[:, 0].sum(), leaf)
    expected = some.clone().requires_grad_(True)
    torch.testing.assert_close(gradient, torch.autograd.grad(Honest()(expected)[:, 0].sum(), expected)[0])


def test_too_few_images_and_the_model_itself_tell_nothing() -> None:
    model = Honest()
    assert audit.audit(model, images(10), eps=0.05, norm="linf").verdict in ("not told", "suspicious", "masked")
    with pytest.raises(InputError, match="transfer_from is the audited model itself"):
        audit.audit(model, images(), eps=0.05, norm="linf", transfer_from=model)


def test_the_three_lines_of_the_how_to_give_a_verdict_and_a_page(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    readme = (REPOSITORY / "docs" / "how-to.md").read_text()
    (lines,) = re.findall(r"`from paperlib import audit, data, report`:\n\n((?:    .*\n)+)", readme)
    given = {"audit": audit, "data": data, "report": report, "model": Honest(), "pixels": images(20).images,
             "labels": images(20).labels, "classes": ("dark", "light")}  # fmt: skip
    exec(textwrap.dedent(lines), given)
    assert repr(given["found"]).startswith(f"{given['found'].verdict}: ")
    assert given["found"].verdict in (home / "runs" / "audit" / "mine" / "index.html").read_text()
    assert "audit-mine/index.html" in report.build().read_text()


def test_the_command_line_audits_a_users_model_and_writes_a_report(home: Path, tmp_path: Path) -> None:
    for label, name in enumerate(("dark", "light")):  # there is nothing to train on
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.new("RGB", (8, 8), (40 + 120 * label + 5 * number,) * 3)
            picture.save(tmp_path / "set" / "test" / name / f"{number}.png")
    (tmp_path / "mine.py").write_text(BRIGHTNESS)
    place = f"folder:{tmp_path / 'set'}"
    given = ["audit", "--model", f"{tmp_path / 'mine.py'}:build", "--data", place, "--eps", "8/255", "--images", "12"]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    (page,) = (home / "runs" / "audit").glob("mine-*/index.html")
    stored = read_json(page.parent / "audit.json")
    assert stored["verdict"] == "masked"
    assert re.search("^masked: ", result.output, re.MULTILINE)  # progress stands before it where it takes long
    assert stored["classes"] == "dark, light"
    text = page.read_text()
    assert "masked" in text
    assert "images without gradient" in text
    assert not re.search(r"(src|href)=.?(https?:)?//", text)
    refused = CliRunner().invoke(cli.app, [*given[:6], "eight", *given[7:]])
    assert isinstance(refused.exception, InputError)
    assert "--eps eight" in str(refused.exception)


def test_the_accuracies_side_by_side_are_of_the_same_images() -> None:
    """The audit's best of all is never above an attack shown beside it, AutoAttack on fewer images included."""
    data = images()
    count = audit.SOME + 20
    repeated = ImageSet(data.images.repeat(3, 1, 1, 1)[:count], data.labels.repeat(3)[:count], data.classes)
    table = audit.audit(Honest(), repeated, eps=0.05, norm="linf").accuracies
    few = f"PGD-20, n = {audit.FEW}"
    assert set(table["n"].drop([few, "AutoAttack"])) == {audit.SOME}
    assert set(table.loc[[few, "AutoAttack"], "n"]) == {audit.FEW}
    assert (table["accuracy"].drop([few, "AutoAttack"]) >= table.loc["best of all", "accuracy"]).all()
    assert table.loc["AutoAttack", "accuracy"] <= table.loc[few, "accuracy"]
