"""What a network looks at: measures on networks and oracles whose answers are known."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import evaluation, models, studies
from paperlib.attacks import pgd
from paperlib.data import ImageSet
from paperlib.geometry import depth, oracles
from paperlib.runs import run as runs
from paperlib.studies import daat as daat_study
from paperlib.studies import focus

SIDE = 8
NOTHING = partial(pgd, eps=0.0, norm="linf", steps=1, step_size=0.0)
ATTACK = partial(pgd, eps=0.1, norm="linf", steps=3, step_size=0.05)


@pytest.fixture
def data() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(64, 192, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    distance = torch.full((6, SIDE, SIDE), 2.0)
    distance[:, 2:6, 2:6] = 1.0  # a square before a wall
    mask = distance == 1.0
    return ImageSet(images, torch.arange(6) % 2, ("a", "b"), distance, mask)


def linear(weight: Tensor) -> nn.Module:
    """Two logits ± ⟨weight, x⟩ of images 3×8×8."""
    layer = nn.Linear(weight.numel(), 2, bias=False)
    layer.weight = nn.Parameter(torch.stack([weight.flatten(), -weight.flatten()]))
    return nn.Sequential(nn.Flatten(), layer).eval()


def test_the_cosine_of_the_right_attention_is_one_and_of_uniform_attention_a_closed_form(data: ImageSet) -> None:
    target = oracles.target(oracles.exact)
    given = focus.on("cpu", data)
    wanted = target(given.images, given.depth, (4, 4))
    model = linear(torch.ones(3, SIDE, SIDE))

    def right(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        return model(images), wanted

    found = focus.edge_cosines(model, given, attack=ATTACK, attentions={"aligned": right}, target=target)
    assert set(found) == {"aligned, clean", "aligned, under attack", "uniform, clean", "uniform, under attack"}
    torch.testing.assert_close(found["aligned, clean"], torch.ones(6))
    torch.testing.assert_close(found["aligned, under attack"], torch.ones(6))  # exact depth does not move
    # ⟨u, G⟩ / (‖u‖ ‖G‖) with u = 1/16 everywhere and G of mass one
    torch.testing.assert_close(found["uniform, clean"], 1 / (4 * wanted.flatten(1).norm(dim=1)))


def test_the_share_of_the_gradient_on_edges_is_that_of_the_weights(data: ImageSet) -> None:
    given = focus.on("cpu", data)
    lines = depth.outlines(oracles.exact(given.images, given.depth))[0].flatten()
    strongest = lines.topk(round(focus.EDGES * SIDE**2)).indices
    place = partial(focus.gradient_place, oracle=oracles.exact, operator="sobel")
    there = torch.zeros(SIDE**2)
    there[strongest] = 1.0
    weights = {"on": there, "off": 1 - there, "even": torch.ones(SIDE**2)}
    shares = {"on": 1.0, "off": 0.0, "even": len(strongest) / SIDE**2}
    for name, weight in weights.items():
        model = linear(0.1 * weight.view(1, SIDE, SIDE).expand(3, -1, -1).contiguous())
        found = place(model, given, eps=0.03, norm="linf")
        torch.testing.assert_close(found["gradient_on_edges"], torch.full((6,), shares[name]))
        stripes = replace(given, images=torch.zeros_like(given.images).index_fill(3, torch.tensor([2]), 1.0))
        contours = depth.outlines(oracles.luminance(stripes.images, None))[0].flatten().topk(len(strongest)).indices
        share = weight[contours].sum() / weight.sum()
        on_contours = place(model, stripes, eps=0.03, norm="linf")["gradient_on_contours"]
        torch.testing.assert_close(on_contours, share.expand(6))
        # ∇ of cross-entropy: 2 (1 − p_y) w for logits ± ⟨w, x⟩
        missing = 1 - model(given.images).softmax(1).gather(1, given.labels[:, None])[:, 0]
        torch.testing.assert_close(found["first_order_rise"], 0.03 * 2 * missing * 0.1 * 3 * weight.sum())
        euclidean = place(model, given, eps=0.03, norm="l2")["first_order_rise"]
        torch.testing.assert_close(euclidean, 0.03 * 2 * missing * 0.1 * (3 * weight.square().sum()).sqrt())


def test_grad_cam_without_a_perturbation_stays_where_it_is(data: ImageSet) -> None:
    model = models.build("vit", classes=2, channels=3, width=32, seed=0, size=SIDE).eval()
    given = focus.on("cpu", data)
    still = focus.cam_stability(model, given, attack=NOTHING, layer="vit.blocks.5.norm1")
    torch.testing.assert_close(still["cam_correlation"], torch.ones(6))
    torch.testing.assert_close(still["cam_moved"], torch.zeros(6))
    torch.testing.assert_close(still["cam_on_object"], still["cam_on_object_attacked"])
    moved = focus.cam_stability(model, given, attack=partial(ATTACK, eps=0.3, step_size=0.2), layer="vit.blocks.5.norm1")
    assert float(moved["cam_moved"].max()) > 0
    assert bool((moved["cam_moved"] <= 1 + 1e-6).all())
    assert bool((moved["cam_correlation"].abs() <= 1 + 1e-6).all())


def test_the_mass_on_the_object_is_counted_with_the_cells_it_fills(data: ImageSet) -> None:
    class Map(nn.Module):
        """Logits whose Grad-CAM is the first channel of the image."""

        def __init__(self, minus: bool = False) -> None:
            super().__init__()
            self.layer, self.sign = nn.Identity(), -1 if minus else 1

        def forward(self, x: Tensor) -> Tensor:
            total = self.sign * self.layer(x[:, :1]).sum((1, 2, 3))
            return torch.stack([total, total], 1)

    given = focus.on("cpu", data)
    found = focus.cam_stability(Map(), given, attack=NOTHING, layer="layer")
    first = given.images[:, 0]
    expected = first[:, 2:6, 2:6].sum((1, 2)) / first.sum((1, 2))
    torch.testing.assert_close(found["cam_on_object"], expected)
    none = focus.cam_stability(Map(minus=True), given, attack=NOTHING, layer="layer")
    torch.testing.assert_close(none["cam_on_object"], torch.full((6,), 16 / 64))  # no positive evidence: spread evenly
    without = ImageSet(data.images, data.labels, data.classes)
    assert set(focus.cam_stability(Map(), focus.on("cpu", without), attack=NOTHING, layer="layer")) == {
        "cam_correlation", "cam_moved",
    }  # fmt: skip


def test_what_moves_depth_is_compared_at_equal_size(data: ImageSet) -> None:
    given = focus.on("cpu", data)
    model = linear(torch.linspace(-1, 1, 3 * SIDE**2).view(3, SIDE, SIDE))
    seen: list[Tensor] = []

    def oracle(images: Tensor, distance: Tensor | None) -> Tensor:
        seen.append(images)
        return images.mean(1)

    found = focus.depth_moved(model, given, attack=ATTACK, oracle=oracle)
    clean, attacked, shuffled, signs = seen
    change = attacked - clean
    for noise in (shuffled - clean, signs - clean):
        torch.testing.assert_close(noise.abs().amax((1, 2, 3)), change.abs().amax((1, 2, 3)))
    torch.testing.assert_close((shuffled - clean).flatten(1).norm(dim=1), change.flatten(1).norm(dim=1))
    spread = clean.mean(1).flatten(1).std(1)
    torch.testing.assert_close(found["attacked"], change.mean(1).abs().flatten(1).mean(1) / spread)
    still = focus.depth_moved(model, given, attack=ATTACK, oracle=oracles.exact)
    assert all(float(values.abs().max()) == 0 for values in still.values())


def test_rows_are_those_of_an_evaluation_and_do_not_depend_on_the_chunk(
    data: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.Run("daat_imagenet100", "quick", studies.resolve("daat_imagenet100"), home / "runs" / "x")
    trained = {"one": {0: linear(torch.ones(3, SIDE, SIDE)), 1: linear(-torch.ones(3, SIDE, SIDE))}}
    place = partial(focus.gradient_place, oracle=oracles.exact, operator="sobel", eps=0.03, norm="linf")
    whole = focus.by_image(run, trained, data, place)
    assert list(whole["seed"]) == [0, 0, 0, 1, 1, 1]
    assert whole["value"].tolist() == pytest.approx([each.mean() for each in whole["each"]])
    monkeypatch.setattr(focus, "CHUNK", 4)
    parts = focus.by_image(run, trained, data, place)
    for one, two in zip(whole["each"], parts["each"], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    summary = evaluation.summary(focus.renamed(whole, "place"))
    assert list(summary["method"])[:2] == ["one on first_order_rise", "one on gradient_on_edges"]
    assert list(summary["seeds"]) == [2, 2, 2]


def test_the_uniform_baseline_is_a_line_over_all_blocks(data: ImageSet, home: Path) -> None:
    run = runs.Run("daat_imagenet100", "quick", studies.resolve("daat_imagenet100"), home / "runs" / "x")
    model = models.build("vit", classes=2, channels=3, width=32, seed=0, size=SIDE)
    attentions = daat_study.attentions(run.settings, model)
    assert list(attentions) == ["1", "2", "3", "4", "5", "6", "aligned"]
    target = oracles.target(oracles.exact)
    found = focus.by_image(run, {"daat": {0: model}}, data, focus.edge_cosines, attack=ATTACK, attentions=attentions,
                           target=target)  # fmt: skip
    points = focus.points(evaluation.summary(found))
    assert len(points) == 2 * 2 * 7
    flat = points[points["line"] == "uniform"]
    assert flat.groupby("panel")["value"].nunique().tolist() == [1, 1]
    rows = daat_study.edge_rows(found)
    assert list(rows["method"]) == ["daat", "uniform"]
    assert rows["value"][1] == pytest.approx(flat["value"].iloc[-1])
    given = focus.on("cpu", data)
    wanted = target(given.images, given.depth, (8, 8)).flatten(1)
    alone = F.cosine_similarity(attentions["3"](model.eval(), given.images)[1].flatten(1), wanted)
    value = points[(points["panel"] == "clean") & (points["block"] == "3")]["value"].iloc[0]
    assert value == pytest.approx(float(alone.detach().mean()), rel=1e-5)
