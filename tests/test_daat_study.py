"""DAAT's study: what it refuses, what it trains with which seeds, and what it makes of the outcomes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from paperlib import models, studies
from paperlib.data import ImageSet, scenes
from paperlib.geometry import oracles, saliency
from paperlib.methods.daat import DAAT
from paperlib.methods.ramped import Ramped
from paperlib.models import external
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.studies import daat as study
from paperlib.studies import dry_run


def settings(**changes: Any) -> study.DaatSettings:
    found = studies.resolve("daat_imagenet100", "quick", {"depth_images": 32, "depth_epochs": 1, **changes})
    assert isinstance(found, study.DaatSettings)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cifar10"}, "oracle exact needs data with depth"),
        ({"data": "cifar10", "oracle": "learned", "controls": "[exact]"}, "oracle exact needs data with depth"),
        ({"oracle": "pretrained"}, "needs depth_weights"),
        ({"teacher": "dinov2"}, "needs teacher_weights"),
        ({"teacher": "null"}, "without_align is PGD-AT if teacher is null"),
        ({"layer": "6"}, "a convolutional network needs a layer, a transformer must have None"),
        ({"model": "small_cnn"}, "a convolutional network needs a layer"),
        ({"model": "small_cnn", "layer": "11"}, "needs a transformer's tokens"),
        ({"methods": "[standard, pgd_at]"}, "methods needs daat"),
        ({"crop_padding": 4, "crop_fill": 0.5}, "crop_fill must be reflect for scenes"),
        ({"rollout": True, "blocks": "[1]"}, "rollout goes over all blocks"),
        ({"layer": "11", "heads": "[0]", "model": "small_cnn", "teacher": "null"}, "without_align is PGD-AT"),
        (
            {"layer": "11", "heads": "[0]", "model": "small_cnn", "teacher": "null", "methods": "[pgd_at, daat]"},
            "blocks, heads and rollout are for transformers only",
        ),
        ({"epsilons": "[]"}, "epsilons"),
        ({"ramp": "[0.5, 0.2]"}, "rises from the first share"),
        ({"focus_images": 1}, "focus_images = 1"),
        ({"linear_classes": "[1, 1]"}, "two different classes"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_table_1_differs_only_in_its_terms(home: Path) -> None:
    s = settings(weight=0.3, controls="[rgb_edges, shuffled, uniform]", weights="[0.5]")
    teacher = models.build("vit_conv", classes=10, channels=3, width=s.width, seed=1)
    found = study.methods(s, 32, teacher)
    assert list(found) == ["standard", "pgd_at", "without_align", "daat"]
    ramped = [found[name] for name in ("pgd_at", "without_align", "daat")]
    assert all(isinstance(one, Ramped) and [one.begin, one.end] == s.ramp for one in ramped)
    pgd_at, alone, full = (one.method for one in ramped)  # type: ignore[attr-defined]
    assert isinstance(pgd_at, DAAT) and isinstance(alone, DAAT) and isinstance(full, DAAT)  # noqa: PT018
    assert pgd_at.teacher is None
    assert pgd_at.target is alone.target is None
    assert alone.teacher is full.teacher is teacher
    assert full.weight == 0.3
    assert all(one.attack.keywords == full.attack.keywords for one in (pgd_at, alone))
    assert full.attack.keywords["step_size"] == pytest.approx(2.5 * s.eps_linf / s.train_steps)
    images, distance = torch.rand(3, 3, 32, 32), 1 + torch.rand(3, 32, 32)
    controls = study.controls(s, 32, teacher)
    seen = {name: method.method.target(images, distance, (8, 8)) for name, method in controls.items()}  # type: ignore[attr-defined]
    torch.testing.assert_close(seen["daat_rgb_edges"], oracles.target(oracles.luminance)(images, None, (8, 8)))
    own = full.target(images, distance, (8, 8))  # type: ignore[misc]
    torch.testing.assert_close(seen["daat_shuffled"], own.roll(-1, 0))
    torch.testing.assert_close(seen["daat_uniform"], torch.full((3, 8, 8), 1 / 64))
    assert [method.method.weight for method in study.weights(s, 32, teacher).values()] == [0.5]  # type: ignore[attr-defined]


def test_some_are_trained_with_the_first_seed_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings(
        seeds="[3, 4]", controls="[uniform, shuffled]", weights="[0.5]", seeds_of="{uniform: 1, sweep: 1, standard: 1}"
    )
    asked: dict[str, int] = {}

    def train_each(run: Any, methods: Any, data: Any, attack: Any, seeds_of: dict[str, int]) -> dict[str, Any]:
        asked.update({name: seeds_of[name] for name in methods})
        return {name: {} for name in methods}

    monkeypatch.setattr(study, "train_each", train_each)
    named = {**study.methods(s, 32, None), **study.controls(s, 32, None), **study.weights(s, 32, None)}
    study.train(None, s, named, None)  # type: ignore[arg-type]
    assert {name for name, seeds in asked.items() if seeds == 1} == {"daat_uniform", "standard", "daat_lambda_0.5"}
    assert {name for name, seeds in asked.items() if seeds == 2} == set(named) - {
        "daat_uniform", "standard", "daat_lambda_0.5",
    }  # fmt: skip


def test_attention_is_what_the_settings_ask_for() -> None:
    model = models.build("vit_conv", classes=10, channels=3, width=64, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    for changes, expected in (
        ({}, saliency.attended(model, images)),
        ({"blocks": "[2]", "heads": "[1]"}, saliency.attended(model, images, [2], [1])),
        ({"rollout": True}, saliency.rollout(model, images)),
    ):
        torch.testing.assert_close(study.attention(settings(**changes))(model, images), expected)
    cnn = models.build("small_cnn", classes=10, channels=3, width=8, seed=0).eval()
    plain = settings(model="small_cnn", layer="12", teacher="null", methods="[pgd_at, daat]")
    torch.testing.assert_close(study.attention(plain)(cnn, images), saliency.activated(cnn, images, "12"))
    assert list(study.attentions(plain, cnn)) == ["aligned"]
    assert study.cam_layer(plain, cnn) == "12"
    assert study.cam_layer(settings(), model) == "vit.blocks.2.norm1"


def test_sources_of_edges_are_held_against_exact_depth(home: Path) -> None:
    run = runs.Run("daat_imagenet100", "quick", settings(), home / "runs" / "x")
    found = study.agreement(run, scenes.load(20, 32, 5), 32, (8, 8))
    assert found["mean cosine"]["exact"] == pytest.approx(1)
    assert found["mean cosine"]["uniform"] < found["mean cosine"]["rgb_edges"] < 1
    assert list(found.index) == ["exact", "learned", "shuffled", "rgb_edges", "uniform"]
    with pytest.raises(InputError, match="uniform has no depth"):
        study.oracle(settings(), 32, "uniform")


def test_what_does_not_fit_network_or_data_shows_before_training(home: Path) -> None:
    data = ImageSet(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1]), tuple("abcdefghij"),
                    1 + torch.rand(2, 32, 32))  # fmt: skip
    model = models.build("vit_conv", classes=10, channels=3, width=64, seed=0)

    def tried(given: ImageSet = data, **changes: Any) -> tuple[int, int]:
        return study.tried(runs.Run("daat_imagenet100", "quick", settings(**changes), home / "runs" / "x"), model, given)

    assert tried() == (8, 8)
    with pytest.raises(InputError, match=r"blocks = \[9\]"):
        tried(blocks="[9]")
    with pytest.raises(InputError, match=r"linear_classes = \[0, 20\]: scenes4 has 10 classes"):
        tried(linear_classes="[0, 20]")
    with pytest.raises(InputError, match="images of 1 channel"):
        tried(ImageSet(data.images[:, :1], data.labels, data.classes, data.depth))
    with pytest.raises(InputError, match="no depth of their own"):
        tried(ImageSet(data.images, data.labels, data.classes))


def test_lambda_zero_is_daat_without_alignment() -> None:
    rows = [
        {"method": name, "measure": "clean", "mean": mean, "low": mean, "high": mean}
        for name, mean in (("pgd_at", 0.1), ("daat", 0.5), ("without_align", 0.3), ("daat_lambda_0.01", 0.4))
    ]
    found = study.weight_points(settings(weights="[0.01]"), pd.DataFrame(rows))
    assert found[["λ", "value"]].to_numpy() == pytest.approx(np.array([[0, 30], [0.01, 40], [0.1, 50]]))


def test_a_teacher_is_the_frozen_stand_in_or_none() -> None:
    model = models.build("vit_conv", classes=10, channels=3, width=64, seed=0).train()
    found = study.teacher(settings(), 32, {"teacher": {1000: model}})
    assert found is model
    assert not found.training
    assert not any(weight.requires_grad for weight in found.parameters())
    assert study.teacher(settings(teacher="null", methods="[pgd_at, daat]"), 32, {}) is None
    dinov2 = settings(teacher="dinov2", teacher_weights="nowhere.safetensors", width=384)
    with pytest.raises(InputError, match=r"nowhere\.safetensors: no such file; it should be timm's vit_small_patch14"):
        study.teacher(dinov2, 56, {})


def test_dinov2_is_read_from_timms_weights_at_another_size(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    whole = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0)
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    found = external.load_dinov2(tmp_path / "weights.safetensors", 384, 56).eval()
    torch.testing.assert_close(found.vit.blocks[3].attn.qkv.weight, whole.blocks[3].attn.qkv.weight)
    images = torch.rand(2, 3, 56, 56)
    features = saliency.tokens(found, images)
    assert features.shape == (2, 1 + 16, 384)
    centred = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(features, found.vit.forward_features(centred))
    with pytest.raises(InputError, match="DINOv2 has 384, 768, 1024"):
        external.load_dinov2(tmp_path / "weights.safetensors", 100, 56)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not the weights of vit_small_patch14"):
        external.load_dinov2(tmp_path / "other.safetensors", 384, 56)


def test_a_dry_run_needs_no_data_and_counts_every_method(home: Path) -> None:
    pytest.importorskip("transformers")
    small = {"model": "vit_conv", "width": 32, "image_size": 32, "oracle": "learned", "controls": "[uniform]",
             "seeds_of": "{uniform: 1, sweep: 1}", "device": "cpu"}  # fmt: skip
    given = studies.resolve("daat_imagenet100", "paper", small)
    found = dry_run.measure("daat_imagenet100", given)
    assert list(found.index) == ["standard", "pgd_at", "daat"]
    assert found["days"].to_numpy() == pytest.approx((125_000 * 300 / found["img/s"] / 86_400).to_numpy())
    assert float(found["GiB, batch 256"]["daat"]) > 0
    assert not (home / "data").exists()
    with pytest.raises(InputError, match="toy_pag has no dry run; daat_imagenet100 has"):
        dry_run.measure("toy_pag", studies.resolve("toy_pag"))


def test_the_untrained_oracle_has_the_published_shape() -> None:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        network = oracles.untrained_dpt()
    assert 100e6 < sum(weight.numel() for weight in network.parameters()) < 125e6
    assert isinstance(network, nn.Module)


def test_early_and_by_budget_are_measures_that_claims_name() -> None:
    epochs = np.arange(10)
    history = pd.DataFrame({"epoch": epochs + 1, "clean_accuracy": 0.1 * epochs, "robust_accuracy": 0.05 * epochs})
    rows = study.early_rows(history.assign(method="daat", seed=3), 50)
    assert rows[["method", "seed", "measure", "n"]].to_numpy().tolist() == [
        ["daat", 3, "early_clean", 50], ["daat", 3, "early_pgd", 50],
    ]  # fmt: skip
    assert list(rows["value"]) == [0.1, 0.05]  # after two of ten epochs
    curve = pd.DataFrame(
        {"method": "daat", "seed": 0, "measure": ["clean", "eps=0.5x", "eps=2x"], "value": [0.9, 0.8, 0.2]}
    )
    found = study.budget_rows(settings(epsilons="[0.5, 2]"), curve)
    assert found.set_index("measure")["value"].to_dict() == {"budget_0.5": 0.8, "budget_2": 0.2, "largest_budget": 0.2}


def test_costs_are_means_over_seeds_and_times_pgd_ats() -> None:
    rows = [("pgd_at", 0, 60.0, 1), ("pgd_at", 1, 120.0, 1), ("daat", 0, 180.0, 1), ("daat", 0, 180.0, 2)]
    table = study.costs(pd.DataFrame(rows, columns=["method", "seed", "seconds", "epoch"]))
    assert table["minutes"].to_dict() == {"pgd_at": 1.5, "daat": 3.0}
    assert table["× PGD-AT"].to_dict() == {"pgd_at": 1.0, "daat": 2.0}
    assert table.loc["daat", "paper"] == 2.0
    assert np.isnan(table.loc["pgd_at", "paper"])
