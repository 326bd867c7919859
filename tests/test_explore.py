"""What the notebook `explore` shows, against the model's own answers, finite differences and closed forms."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from PIL import Image
from torch import Tensor, nn

from paperlib import cli, figures, models, studies, zoo
from paperlib.data import ImageSet
from paperlib.figures import closeup as sheets
from paperlib.geometry import saliency
from paperlib.geometry.closeup import CloseUp, close_up, loss_gradient
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.studies import explore

SIDE, CLASSES = 8, 4


def network(name: str = "small_cnn", size: int = SIDE, **more: Any) -> nn.Module:
    return models.build(name, classes=CLASSES, channels=3, width=32, seed=0, size=size, normalisation="half", **more).eval()


def image(size: int = SIDE) -> Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(1))


def some_images(count: int = 6, size: int = SIDE) -> ImageSet:
    pixels = (255 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))).byte()
    return ImageSet(pixels, torch.arange(count) % CLASSES, ("ant", "bee", "cat", "dog"))


def settings(**changes: Any) -> Any:
    return studies.resolve("explore", "quick", {"device": "cpu", **changes})


# What is computed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_the_adversarial_is_in_the_ball_and_the_box_and_does_harm(norm: Any, eps: float, loss: Any) -> None:
    model, x = network(), image().round(decimals=1)  # with pixels at 0 and 1
    seen = close_up(model, x, 2, eps=eps, norm=norm, loss=loss, steps=10)
    change = seen.images[1] - x
    assert torch.equal(seen.images[0], x)
    assert float(seen.images[1].min()) >= 0
    assert float(seen.images[1].max()) <= 1
    size = float(change.abs().max() if norm == "linf" else change.square().sum().sqrt())
    assert 0.5 * eps < size <= eps * (1 + 1e-5)
    assert seen.margins[-1] > seen.margins[0]


def test_margins_on_the_way_and_in_the_plane_are_the_models_at_these_points() -> None:
    model, x, y = network().double(), image().double(), 1
    seen = close_up(model, x, y, eps=0.5, norm="l2", loss="ce", steps=5, points=7, resolution=5, reach=2.0)
    change = seen.images[1] - x

    def margin(point: Tensor) -> float:
        z = model(point[None])[0].detach().numpy()
        return float(np.delete(z, y).max() - z[y])

    assert seen.shares.tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    for share, found in zip(seen.shares, seen.margins, strict=True):
        assert float(found) == pytest.approx(margin(x + share * change), abs=1e-9)
    assert seen.axis.tolist() == [-2, -1, 0, 1, 2]
    middle = seen.plane_margins[2]  # along the perturbation alone
    assert middle.tolist() == pytest.approx([margin(x + a * change) for a in (-2, -1, 0, 1, 2)], abs=1e-9)
    wanted = [float(F.cross_entropy(model((x + a * change)[None]), torch.tensor([y])).detach()) for a in (-2, -1, 0, 1, 2)]
    assert seen.losses[2].tolist() == pytest.approx(wanted, abs=1e-9)
    assert seen.logits.tolist() == [pytest.approx(row, abs=1e-9) for row in model(seen.images).tolist()]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_the_planes_other_direction_has_the_length_of_eps(norm: Any, eps: float) -> None:
    """Of a model whose only class score is the squared distance from the image, in the norm's own square."""
    x = torch.full((3, SIDE, SIDE), 0.5).double()

    class Distance(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            away = (points - x).flatten(1)
            far = away.abs().amax(1) if norm == "linf" else away.norm(dim=1)
            return torch.stack([torch.zeros_like(far), far, torch.full_like(far, -9)], 1)

    seen = close_up(Distance(), x, 0, eps=eps, norm=norm, loss="margin", steps=3, resolution=5, reach=2.0)
    assert seen.plane_margins[:, 2].tolist() == pytest.approx([2 * eps, eps, 0, eps, 2 * eps])


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_the_input_gradient_is_that_of_finite_differences(loss: Any) -> None:
    model, x, y = network("cnn").double(), image().double(), 3
    seen = close_up(model, x, y, eps=0.1, norm="linf", loss=loss, steps=1)

    def value(point: Tensor) -> float:
        z = model(point[None])[0].detach()
        other, ranked = torch.cat([z[:y], z[y + 1 :]]).max(), z.sort(descending=True).values
        if loss == "ce":
            return float(torch.logsumexp(z, 0) - z[y])
        return float(other - z[y]) if loss == "margin" else float((other - z[y]) / (ranked[0] - ranked[2]))

    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        way = torch.randn(x.shape, generator=random, dtype=torch.float64)
        slope = (value(x + 1e-6 * way) - value(x - 1e-6 * way)) / 2e-6
        assert float((seen.gradient * way).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_a_close_up_is_the_same_again_and_leaves_mode_and_random_numbers_alone() -> None:
    model, x = network().train(), image()
    before = torch.random.get_rng_state()
    first, again = (close_up(model, x, 0, eps=0.1, norm="linf", loss="ce", steps=2) for _ in range(2))
    other = close_up(model, x, 0, eps=0.1, norm="linf", loss="ce", steps=2, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, other.losses)


def test_a_gradient_of_several_images_is_that_of_each() -> None:
    model, x, y = network(), torch.stack([image(), image().flip(1)]), torch.tensor([0, 2])
    both = loss_gradient(model, x, y, "ce")
    for number in range(2):
        alone = loss_gradient(model, x[number : number + 1], y[number : number + 1], "ce")
        torch.testing.assert_close(both[number : number + 1], alone)


def test_a_transformer_shows_attention_a_convolutional_network_grad_cam_and_an_mlp_nothing() -> None:
    x, y = image(32)[None], torch.tensor([1])
    vit, cnn, mlp = network("vit", 32), network("small_cnn", 32), network("mlp", 32)
    name, found = saliency.saliency(vit, x, y) or ("", x)
    assert name == "attention"
    torch.testing.assert_close(found, saliency.attended(vit, x)[1])
    name, found = saliency.saliency(cnn, x, y) or ("", x)
    assert name == "Grad-CAM"
    assert saliency.last_map(cnn, x) == "12"  # the last ReLU, before the mean over places
    torch.testing.assert_close(found, saliency.grad_cam(cnn, x, y, "12"))
    assert saliency.saliency(mlp, x, y) is None


# What is drawn -------------------------------------------------------------------------------------------------------


def seen_by(model: nn.Module, x: Tensor, **more: Any) -> CloseUp:
    return close_up(model, x, 0, **{"eps": 8 / 255, "norm": "linf", "loss": "ce", "steps": 3, **more})


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_sheet_filled_again_is_as_one_filled_anew() -> None:
    """Also where the image is of another size, the attack has another outcome, and there was a map before."""
    first, second = seen_by(network("small_cnn", 32), image(32)), seen_by(network("mlp"), image(), eps=0.5, norm="l2")
    canvas, sheet = sheets.on_screen()
    sheet.show(first, 0, "abcd", "linf")
    before = pixels(sheets.picture(canvas))
    sheet.show(second, 0, "abcd", "l2")
    other = pixels(sheets.picture(canvas))
    sheet.show(first, 0, "abcd", "linf")
    again = pixels(sheets.picture(canvas))
    assert before.shape == (480, 800, 3)
    assert not np.array_equal(before, other)
    assert np.array_equal(before, again)


def test_a_wrong_answer_is_in_colour_and_numbers_are_those_of_the_tensors() -> None:
    seen = seen_by(network(), image(), eps=0.25)
    answer, label = int(seen.logits[0].argmax()), int(seen.logits[0].argmin())
    _, sheet = sheets.on_screen()
    for true, colour in ((answer, "black"), (label, figures.COLOURS[2])):
        sheet.show(seen, true, ("ant", "bee", "cat", "dog"), "linf")
        title = sheet.images[0].title
        assert title.get_color() == colour
        share = 100 * float(seen.logits[0].softmax(0).max())
        assert title.get_text() == (
            f"image: {('ant', 'bee', 'cat', 'dog')[true]}\nseen as {('ant', 'bee', 'cat', 'dog')[answer]}, {share:.0f} %"
        )
    assert sheet.perturbation.title.get_text() == "perturbation\nℓ∞ 63.8/255"
    assert sheet.line.get_ydata().tolist() == seen.margins.tolist()


# The study -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "scenes/none"}, "no network 'scenes/none'; there are"),
        ({"model": "mine.py:build"}, "model = mine.py:build: data must name its images"),
        ({"model": "mine.py", "data": "scenes4"}, "should be FILE.py:FUNCTION"),
        ({"model": "nowhere.py:build", "data": "scenes4"}, "should be FILE.py:FUNCTION, a file that is there"),
        ({"weights": "w.pt"}, "weights = w.pt: .* has its weights in the zoo"),
        ({"data": "toy"}, "data = toy: these are points"),
        ({"data": "scenes"}, "the model has 4 outputs; the data have 10 classes"),
        ({"data": "folder:/nowhere"}, "/nowhere"),
        ({"eps": 0}, "eps = 0: Input should be greater than 0"),
        ({"seeds": [0, 1]}, "seeds"),
        ({"loss": "kl"}, "loss = 'kl'"),
    ],
)
def test_wrong_choices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        explore.subject(settings(**changes))


def test_an_image_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="image = 6: there are images 0 to 5 here"):
        explore.look(settings(image=6), network(), some_images())


def own_model(place: Path) -> dict[str, Any]:
    """A model file with weights, and a folder of images: the parameters that name them."""
    layers = "nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 2))"
    (place / "mine.py").write_text(f"from torch import nn\ndef build():\n    return {layers}\n")
    torch.save(eval(layers).state_dict(), place / "w.pt")
    for label in ("left", "right"):
        (place / "images" / "test" / label).mkdir(parents=True)
        for number in range(3):
            values = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(values).save(place / "images" / "test" / label / f"{number}.png")
    return {"model": f"{place / 'mine.py'}:build", "weights": str(place / "w.pt"), "data": f"folder:{place / 'images'}"}


def test_ones_own_network_has_its_weights_and_images(home: Path) -> None:
    given = own_model(home)
    model, images = explore.subject(settings(**given))
    assert images.classes == ("left", "right")
    assert len(images) == 6
    weights = torch.load(home / "w.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    seen, label = explore.look(settings(**given, image=4), model, images)
    assert torch.equal(seen.images[0], images.images[4].float() / 255)
    assert label == int(images.labels[4])
    assert seen.looked == "Grad-CAM"


def test_it_runs_headless_with_ones_own_network_and_reproduce_leaves_it_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for name, value in own_model(home).items() for part in ("-p", f"{name}={value}")]
    command = [sys.executable, "-m", "paperlib.cli", "run", "explore", *options, "-p", "steps=2"]
    done = subprocess.run(command, env={**os.environ, "PAPERLIB_ROOT": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (home / "runs" / "explore").iterdir()
    assert runs.status(folder)["state"] == "finished"
    for kind in ("png", "pdf", "svg", "json", "csv"):
        assert (folder / "figures" / f"close_up.{kind}").exists()
    page = (folder / "explore.html").read_text()
    assert "Nobody is here to move controls" in page
    assert "widget" not in (folder / "explore.ipynb").read_text()
    assert "explore" in (home / "runs" / "report" / "index.html").read_text()
    assert "explore" not in studies.declared("PLANS")

    monkeypatch.setattr(sys, "argv", ["paperlib", "plan", "explore"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "explore: its study says in no PLANS what it measures" in capsys.readouterr().err


# Controls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def controls() -> explore.Controls:
    """On a small network and few images."""
    return explore.Controls(settings(eps="8/255", image=5), network(), some_images())


def test_a_move_changes_what_is_looked_at_and_draws_once(
    controls: explore.Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    look = explore.look
    monkeypatch.setattr(explore, "look", lambda *given: drawn.append(given) or look(*given))  # type: ignore[func-returns-value]
    for name, value, expected in (
        ("image", 3, {"image": 3}),
        ("eps", 16.0, {"eps": 16 / 255}),
        ("loss", "margin", {"loss": "margin"}),
        ("steps", 4, {"steps": 4}),
        ("norm", "l2", {"norm": "l2", "eps": 256 / 255}),  # at the same place of the slider
        ("norm", "linf", {"norm": "linf", "eps": 16 / 255}),
    ):
        before = controls.picture.value
        getattr(controls, name).value = value
        (used, *_) = drawn[-1]
        assert {key: getattr(used, key) for key in expected} == expected
        assert controls.picture.value != before, name
    assert len(drawn) == 6
    seen, label = look(drawn[-1][0], controls.network, controls.images)
    _, sheet = sheets.on_screen()
    sheet.show(seen, label, controls.images.classes, "linf")
    assert controls.sheet.line.get_ydata().tolist() == sheet.line.get_ydata().tolist()
    assert controls.said.value == ""


def test_another_network_comes_with_its_own_images_and_the_first_comes_back(
    controls: explore.Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    answer = network("mlp"), some_images(4)
    monkeypatch.setattr(explore, "subject", lambda given: asked.append(given) or answer)  # type: ignore[func-returns-value]
    controls.settings = controls.given = controls.given.model_copy(update={"data": "scenes4"})
    other, first = zoo.names()[0], controls.given.model
    controls.model.value = other
    assert (asked[-1].model, asked[-1].data) == (other, None)
    assert (controls.image.max, controls.image.value) == (3, 3)  # there are but four
    assert isinstance(controls.network[1], nn.Flatten)  # type: ignore[index]
    controls.model.value = first
    assert (asked[-1].model, asked[-1].data) == (first, "scenes4")


def test_what_is_refused_is_said_and_the_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ImageSet(some_images().images, some_images().labels % 2, ("a", "b"))
    model = models.build("small_cnn", classes=2, channels=3, width=4, seed=0, size=SIDE, normalisation="half").eval()
    panel = explore.Controls(settings(), model, two)
    before = panel.picture.value
    panel.loss.value = "dlr"
    assert "three classes or more" in panel.said.value
    assert panel.picture.value == before
    panel.loss.value = "margin"
    assert panel.said.value == ""

    def refuse(given: Any) -> Any:
        raise InputError("weights of <b>another</b> network")

    monkeypatch.setattr(explore, "subject", refuse)
    panel.model.value = zoo.names()[0]
    assert panel.said.value == "weights of &lt;b&gt;another&lt;/b&gt; network"
    assert panel.network is model


def test_controls_are_there_where_somebody_is() -> None:
    """In a kernel, asked as JupyterLab asks, and as those do that run notebooks headless."""
    from jupyter_client.manager import start_new_kernel

    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_explore as t; from types import SimpleNamespace as S\n"
        "t.explore.controls(S(settings=t.settings(steps=1)), t.network(), t.some_images())"
    )
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(REPOSITORY))
    shown: list[Any] = []
    try:
        for allowed in (True, False):
            client.execute_interactive(code, allow_stdin=allowed, timeout=120, output_hook=shown.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    there, headless = (one["content"]["data"] for one in shown if one["msg_type"] == "execute_result")
    assert "application/vnd.jupyter.widget-view+json" in there
    assert headless == {"text/plain": repr(explore.NOBODY)}


def test_without_ipywidgets_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[lab\]'"):
        explore.Controls(settings(), network(), some_images())
