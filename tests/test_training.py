import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperlib import models, training
from paperlib.attacks import pgd
from paperlib.data import ImageSet, Splits
from paperlib.methods import Batch, Step, baselines, pag
from paperlib.runs.files import read_json
from paperlib.runs.settings import TrainingSettings
from paperlib.runs.tensors import read_tensors, write_tensors
from paperlib.training import kept as keeping
from paperlib.training import loop, optimizer

VALUES: dict[str, Any] = {
    "seeds": [0], "device": "cpu", "devices": 1, "sync_batch_norm": True, "venue": "neurips", "retrain": False,
    "epochs": 3, "batch_size": 16, "optimizer": "sgd",
    "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "one_cycle", "milestones": [], "decay": 1.0,
    "clip": 1.0, "ema": 0.9, "ema_start": 0.0, "bf16": False, "channels_last": True, "crop_padding": 1,
    "crop_fill": 0.5, "flip": True, "selection": "mean",
}  # fmt: skip


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({**VALUES, **changes})


def stripes(count: int, seed: int) -> ImageSet:
    """Two classes of noisy 8×8 images, stripes across or along."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    wave = (torch.arange(8) % 2 * 90).float()
    grids = torch.stack([wave.view(8, 1).expand(8, 8), wave.view(1, 8).expand(8, 8)])[labels].unsqueeze(1)
    noise = torch.rand(count, 1, 8, 8, generator=generator) * 120
    return ImageSet((grids + noise).to(torch.uint8), labels, ("across", "along"))


def splits() -> Splits:
    return Splits(stripes(120, 0), stripes(40, 1), stripes(40, 2))


def net() -> nn.Module:
    return models.build("resnet18", classes=2, channels=1, width=4, seed=0)


ATTACK = partial(pgd, eps=0.03, norm="linf", steps=2, step_size=0.02)


def test_it_learns_and_selects_the_best_epoch(tmp_path: Path) -> None:
    model = training.fit(
        net(), baselines.Standard(), splits(), settings(epochs=6, ema=0.0), tmp_path, seed=0, attack=ATTACK
    )
    history = read_json(tmp_path / "history.json")["epochs"]
    assert [entry["epoch"] for entry in history] == list(range(1, 7))
    for entry in history:
        entry["score"] = (entry["clean_accuracy"] + entry["robust_accuracy"]) / 2
    best = max(entry["score"] for entry in history)
    again = training.validate(model, splits().validation, None, "cpu")["clean_accuracy"]
    assert again == [entry for entry in history if entry["score"] == best][-1]["clean_accuracy"]
    assert best > 0.8
    assert not model.training
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_what_is_trained_is_read_back_and_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = training.fit(net(), baselines.Standard(), splits(), settings(), tmp_path, seed=0)
    monkeypatch.setattr(baselines.Standard, "loss", lambda *_: pytest.fail("trained again"))
    second = training.fit(net(), baselines.Standard(), splits(), settings(), tmp_path, seed=0)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_another_run_with_the_same_recipe_is_taken_and_one_with_another_is_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = home / "runs/a/quick-1/training/x-seed0", home / "runs/b/quick-2/training/y-seed0"
    attack = partial(pgd, eps=0.03, norm="linf", steps=1, step_size=0.02)
    method = baselines.AdversarialTraining(attack)
    first = training.fit(net(), method, splits(), settings(epochs=1), there, seed=0)
    trained: list[int] = []
    loss = baselines.AdversarialTraining.loss
    monkeypatch.setattr(baselines.AdversarialTraining, "loss", lambda self, *given: trained.append(1) or loss(self, *given))
    second = training.fit(net(), baselines.AdversarialTraining(partial(attack)), splits(), settings(epochs=1), here, seed=0)
    assert not trained
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert read_json(here / "history.json")["from"] == "runs/a/quick-1/training/x-seed0"
    stronger = baselines.AdversarialTraining(partial(attack, steps=2))
    wider = Splits(stripes(120, 5), *(splits().validation, splits().test))
    for changed, data, seed in ((stronger, splits(), 0), (method, splits(), 1), (method, wider, 0)):
        trained.clear()
        training.fit(net(), changed, data, settings(epochs=1), here, seed=seed)
        assert trained


@pytest.mark.parametrize("change", [{"normalisation": "none"}, {"stem_stride": 2}])
def test_networks_with_the_same_weights_are_not_the_same_recipe(home: Path, change: dict[str, Any]) -> None:
    common: dict[str, Any] = {"classes": 2, "channels": 1, "width": 4, "seed": 0}
    folders = [home / f"runs/a/quick-1/training/{name}-seed0" for name in ("x", "y")]
    for folder, changes in zip(folders, ({}, change), strict=True):
        model = models.build("small_cnn", **{**common, **changes})
        training.fit(model, baselines.Standard(), splits(), settings(epochs=1), folder, seed=0)
    assert "from" not in read_json(folders[1] / "history.json")


def test_weights_of_another_recipe_left_by_a_kill_are_not_taken(tmp_path: Path) -> None:
    training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path, seed=0)
    fresh = training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path / "fresh", seed=1)
    (tmp_path / "history.json").write_text((tmp_path / "fresh" / "history.json").read_text())  # written, then killed
    again = training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path, seed=1)
    assert torch.equal(fresh.linear.weight, again.linear.weight)


def test_another_runs_damaged_file_is_passed_over(home: Path) -> None:
    broken = home / "runs/a/quick-1/training/x-seed0"
    broken.mkdir(parents=True)
    (broken / "history.json").write_text("{")
    (broken / "weights.safetensors").write_bytes(b"no")
    here = home / "runs/b/quick-2/training/y-seed0"
    training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), here, seed=0)
    assert (here / "weights.safetensors").exists()


def test_a_checkpoint_of_another_recipe_is_not_gone_on_from(tmp_path: Path) -> None:
    fresh = training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path / "fresh", seed=0)
    write_tensors(tmp_path / "checkpoint.safetensors", {"none": torch.zeros(1)}, {"recipe": "another"})
    again = training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path, seed=0)
    assert torch.equal(fresh.linear.weight, again.linear.weight)


def test_seeds_differ_and_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    models_ = [
        training.fit(net(), baselines.Standard(), splits(), settings(epochs=1), tmp_path / str(seed), seed=seed)
        for seed in (0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(models_[0].linear.weight, models_[1].linear.weight)


PAG = pag.PAG(partial(pag.toward, torch.rand(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))), 0.1, 1)


@pytest.mark.parametrize(
    ("method", "changes"),
    [("t.baselines.AdversarialTraining(t.ATTACK)", "optimizer='adamw'"), ("t.PAG", "optimizer='sgd', bf16=True")],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path, method: str, changes: str) -> None:
    """A real process, SIGKILLed again and again, against one left in peace."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch, test_training as t\n"
        "from pathlib import Path\n"
        "t.keeping.CHECKPOINT_SECONDS = 0.05\n"
        "back, steps = t.loop.backward, []\n"
        "t.loop.backward = lambda *given: (steps.append(1), back(*given))\n"
        "print('ready', flush=True)\n"
        f"t.training.fit(t.net(), {method}, t.splits(),\n"
        f"    t.settings(epochs=8, {changes}), Path(sys.argv[2]), seed=3, attack=t.ATTACK)\n"
        "print(len(steps), 'steps')\n"
    )
    checkpoint, total = tmp_path / "killed" / "checkpoint.safetensors", 8 * 8

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(Path(__file__).parent), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    assert f"{total} steps" in start(tmp_path / "peace").communicate()[0]
    moments, kills, done, said = random.Random(0), 0, 0, ""
    while not (tmp_path / "killed" / "weights.safetensors").exists():
        if checkpoint.exists():
            about = read_tensors(checkpoint)[1]
            done = 8 * about["epoch"] + about["index"]
        process = start(tmp_path / "killed")
        assert process.stdout is not None
        process.stdout.readline()  # training begins
        if kills < 2:
            while kills and not checkpoint.exists() and process.poll() is None:  # the second leaves something to go on from
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.2) if kills else moments.uniform(0.2, 1.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            said = process.communicate()[0]
    assert done > 0  # something was there to go on from, and it did
    assert f"{total - done} steps" in said
    one, two = (read_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("peace", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    histories = [read_json(tmp_path / name / "history.json")["epochs"] for name in ("peace", "killed")]
    assert histories[0] == histories[1]


class Exploding:
    """A loss that is no number from some step on."""

    def __init__(self, after: int, value: float) -> None:
        self.after, self.value = after, value

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        ce = model(batch.images).mean() ** 2
        if self.value == 0 and step.index >= self.after:  # a root of zero, whose derivative is infinite
            return {"ce": ce, "total": ce + (0 * ce).sqrt()}
        return {"ce": ce, "total": ce * (self.value if step.index >= self.after else 1.0)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e12, 0.0])
def test_divergence_stops_and_says_where(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "CHECKPOINT_SECONDS", 0)  # after every step
    per_epoch = 8  # ⌈120 / 16⌉
    with pytest.raises(training.DivergenceError) as caught:
        training.fit(net(), Exploding(per_epoch + 2, value), splits(), settings(ema=0.0), tmp_path / "boom", seed=0)
    message = str(caught.value)
    assert f"step {per_epoch + 2} (epoch 2)" in message
    assert "ce = " in message
    checkpoint = tmp_path / "boom" / "checkpoint.safetensors"
    assert f"last good checkpoint is {checkpoint}" in message
    assert (read_tensors(checkpoint)[1]["epoch"], read_tensors(checkpoint)[1]["index"]) == (1, 2)


def test_schedules_are_pytorchs_and_their_formulas() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    total, per_epoch = 40, 4

    def rates(**changes: Any) -> list[float]:
        chosen = settings(epochs=10, learning_rate=0.1, **changes)
        return [training.learning_rate(chosen, Step(index, total, index // per_epoch)) for index in range(total)]

    optimizer = torch.optim.SGD(weights, 0.1)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 7], 0.1)
    expected = []
    for _ in range(10):
        expected += [reference.get_last_lr()[0]] * per_epoch
        optimizer.step()
        reference.step()
    assert rates(schedule="step", milestones=[0.5, 0.7], decay=0.1) == pytest.approx(expected)
    assert rates(schedule="constant") == [0.1] * total
    cosine = rates(schedule="cosine")
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[0] + cosine[-1] == pytest.approx(0.1)
    assert sum(cosine) / total == pytest.approx(0.05)
    cycle = rates(schedule="one_cycle")
    assert max(cycle) == pytest.approx(0.1, rel=0.05)
    assert cycle.index(max(cycle)) in (11, 12)
    assert cycle[-1] < 0.001


def test_moving_average_is_its_formula() -> None:
    torch.manual_seed(0)
    model, averaged = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    expected = averaged.running_mean.clone()
    for _ in range(3):
        model(torch.randn(8, 3))
        optimizer.average(averaged, model, 0.8)
        expected = 0.8 * expected + 0.2 * model.running_mean
    torch.testing.assert_close(averaged.running_mean, expected)
    assert averaged.num_batches_tracked == model.num_batches_tracked


def test_bfloat16_trains_about_as_well(tmp_path: Path) -> None:
    chosen = settings(epochs=6, bf16=True, ema=0.0)
    model = training.fit(net(), baselines.Standard(), splits(), chosen, tmp_path, seed=0)
    assert training.validate(model, splits().test, None, "cpu")["clean_accuracy"] > 0.8
    assert next(model.parameters()).dtype == torch.float32


def test_the_average_is_a_copy_until_it_starts(tmp_path: Path) -> None:
    """With a decay of one the average keeps what it was when it started: the weights after the epochs before."""

    class StopsThere(baselines.Standard):
        """The same two epochs, then nothing more is learnt."""

        def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
            assert step.averaged is None
            if step.epoch < 2:
                return super().loss(model, batch, step)
            return {"total": 0 * sum(weight.sum() for weight in model.parameters())}

    same = settings(epochs=4, ema=0.0, weight_decay=0.0, momentum=0.0, selection="last")
    chosen = same.model_copy(update={"ema": 1.0, "ema_start": 0.5})
    averaged = training.fit(net(), baselines.Standard(), splits(), chosen, tmp_path / "b", seed=0)
    stopped = training.fit(net(), StopsThere(), splits(), same, tmp_path / "c", seed=0)
    for mean, weight in zip(averaged.parameters(), stopped.parameters(), strict=True):
        torch.testing.assert_close(mean, weight)


@pytest.mark.parametrize(("selection", "chosen"), [("mean", 1), ("robust", 2), ("last", 3)])
def test_the_epoch_is_chosen_as_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, chosen: int
) -> None:
    scores = iter([(0.9, 0.4), (0.5, 0.6), (0.5, 0.1)])
    kept: list[Tensor] = []

    def validated(model: nn.Module, *_: Any) -> dict[str, float]:
        kept.append(next(model.parameters()).detach().clone())
        clean, robust = next(scores)
        return {"clean_accuracy": clean, "robust_accuracy": robust}

    monkeypatch.setattr(loop, "validate", validated)
    picked = settings(epochs=3, ema=0.0, selection=selection)
    model = training.fit(net(), baselines.Standard(), splits(), picked, tmp_path, seed=0, attack=ATTACK)
    assert torch.equal(next(model.parameters()), kept[chosen - 1])


def test_bfloat16_is_used_only_where_the_processor_computes_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy(baselines.Standard):
        def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().loss(model, batch, step)

    for able in (True, False):
        monkeypatch.setattr(loop, "computes_in_bf16", lambda device, able=able: able)
        training.fit(net(), Spy(), splits(), settings(epochs=1, bf16=True), tmp_path / str(able), seed=0)
        assert set(seen) == {able}
        seen.clear()
