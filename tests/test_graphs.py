"""The recording of attacks, with the recorder replaced by one that works without a GPU."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import COUNT, images, network
from torch import Tensor, nn

from paperlib import training
from paperlib.attacks import Attack, evaluating, graphs, pgd
from paperlib.methods import Batch, Step, baselines
from paperlib.methods.combined import Added, Combined
from paperlib.methods.raat import RAAT
from paperlib.methods.ramped import Ramped
from paperlib.runs.files import read_json
from paperlib.training import kept

ATTACK = partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.06)
STEP = Step(40, 100, 4)


def batch() -> Batch:
    pixels, labels, _ = images()
    return Batch(pixels, labels, lambda x: x.clone())


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes recorded; a replay reads memory that was taken at the recording, as a graph's does."""
    shapes: list[torch.Size] = []

    def record(
        attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, compiled: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        shapes.append(images.shape)
        held = images.clone(), labels.clone()

        def replay(images: Tensor, labels: Tensor) -> Tensor:
            held[0].copy_(images)
            held[1].copy_(labels)
            return attack(model, *held).clone()

        return replay

    monkeypatch.setattr(graphs, "recordable", lambda images: True)
    monkeypatch.setattr(graphs, "record", record)
    return shapes


METHODS: dict[str, Any] = {
    "pgd_at": baselines.AdversarialTraining(ATTACK),
    "trades": baselines.TRADES(partial(ATTACK, loss="kl", start_deviation=0.001)),
    "raat": RAAT(ATTACK),
    "raat as printed, a second attack of a smaller radius": RAAT(ATTACK, form="text"),
    "ramped": Ramped(baselines.AdversarialTraining(ATTACK), 0.0, 1.0),
    "ramp at its end": Ramped(baselines.AdversarialTraining(ATTACK), 0.0, 0.1),
    "combined": Combined(baselines.AdversarialTraining(ATTACK), (Added("raat", RAAT(ATTACK, bound=False), "dicar", 0.5),)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_attack_gives_the_same_loss_also_with_new_weights(name: str, records: list[torch.Size]) -> None:
    method, model = METHODS[name], network("small_cnn").train()
    kept = graphs.recorded(method)
    assert type(kept) is type(method)
    assert kept is not method
    for _ in range(2):
        found = []
        for one in (method, kept):
            state = {key: value.clone() for key, value in model.state_dict().items()}
            torch.manual_seed(1)
            found.append(one.loss(model, batch(), STEP)["total"])
            model.load_state_dict(state)
        assert torch.equal(*found)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
    assert len(records) == {"ramped": 0, "combined": 2}.get(name, 1)  # the radius of a ramp changes: it is called


def test_each_shape_is_recorded_once_and_not_more_than_a_few(records: list[torch.Size]) -> None:
    model = network("small_cnn").eval()
    kept = graphs.Recorded(ATTACK)
    pixels = torch.rand(20, 3, 16, 16, dtype=torch.float64)
    for count in (*range(1, graphs.MOST + 3), 1, 2):
        assert kept(model, pixels[:count], torch.zeros(count, dtype=torch.long)).shape == (count, 3, 16, 16)
    assert [shape[0] for shape in records] == list(range(1, graphs.MOST + 1))


def test_what_cannot_be_recorded_is_called_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "recordable", lambda images: True)
    monkeypatch.setattr(graphs, "record", broken)
    model, (pixels, labels, _) = network("small_cnn").eval(), images()
    kept = graphs.Recorded(ATTACK)
    for _ in range(2):
        torch.manual_seed(1)
        called = ATTACK(model, pixels, labels)
        torch.manual_seed(1)
        assert torch.equal(kept(model, pixels, labels), called)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "no CUDA graph of the attack (RuntimeError: operation not permitted when stream is capturing): it is called instead"
    ]


@pytest.mark.parametrize("changes", [{"best": True}, {"restarts": 2}])
def test_attacks_whose_kernels_depend_on_the_images_are_called(changes: dict[str, Any], records: list[torch.Size]) -> None:
    model, (pixels, labels, _) = network("small_cnn").eval(), images()
    graphs.Recorded(partial(ATTACK, **changes))(model, pixels, labels)
    assert not records


def test_a_network_in_training_mode_is_attacked_by_a_call(records: list[torch.Size]) -> None:
    model, (pixels, labels, _) = network("small_cnn").train(), images()
    kept = graphs.Recorded(ATTACK)
    kept(model, pixels, labels)
    assert not records
    with evaluating(model):
        kept(model, pixels, labels)
    assert len(records) == 1
    assert len(pixels) == COUNT


def test_methods_without_an_attack_stay_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = baselines.Standard()
    assert graphs.recorded(plain) is plain
    monkeypatch.setattr(graphs, "KIND", "eager")
    method = baselines.AdversarialTraining(ATTACK)
    assert graphs.recorded(method) is method


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_draws_and_computes_as_a_call() -> None:
    from benchmarks.gpu import checks

    checks.graph_is_the_call("cuda", bf16=False)
    checks.graph_reads("cuda")


# Losses that are read every few steps ------------------------------------------------------------------------------


def test_how_often_losses_are_read_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_training import ATTACK as SHORT
    from test_training import net, settings, splits

    found = []
    for every in (1, 3, 20):
        monkeypatch.setattr(kept, "READ_EVERY", every)
        folder = tmp_path / str(every)
        model = training.fit(net(), baselines.AdversarialTraining(SHORT), splits(), settings(), folder, seed=0)
        history = read_json(folder / "history.json")["epochs"]
        found.append((history, model.state_dict()))
    for history, weights in found[1:]:
        assert history == found[0][0]
        assert all(torch.equal(one, weights[key]) for key, one in found[0][1].items())


def test_the_first_bad_step_is_named_though_it_is_read_later(tmp_path: Path) -> None:
    from test_training import Exploding, net, settings, splits

    with pytest.raises(training.DivergenceError, match=r"diverged in step 3 \(epoch 1\)"):
        training.fit(net(), Exploding(3, 1e12), splits(), settings(ema=0.0), tmp_path, seed=0)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_replacing_keeps_everything_else(records: list[torch.Size]) -> None:
    kept = graphs.recorded(RAAT(ATTACK, eta=0.3, boosted=True))
    assert replace(kept, attack=ATTACK) == RAAT(ATTACK, eta=0.3, boosted=True)
