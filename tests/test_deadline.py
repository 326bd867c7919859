"""A run that is given a time ends within it, at a checkpoint, and goes on to the same result."""

import time
from pathlib import Path

import pytest
import torch
from test_cli import call
from torch import Tensor, nn

from paperlib import cli, data, models, studies
from paperlib.evaluation import evaluate
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import Standard
from paperlib.runs import deadline
from paperlib.runs import run as runs
from paperlib.runs.files import InputError
from paperlib.training import fit


@pytest.mark.parametrize(("text", "seconds"), [("9m", 540), ("1h30m", 5400), ("90s", 90), ("1h1m1s", 3661)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert deadline.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "m", "9 minutes", "-9m", "5s", "0m", "30m1h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--within {text}"):
        deadline.seconds(text)


def test_an_earlier_moment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(deadline.UNTIL, str(time.monotonic() + 100))
    deadline.begin("1h")
    assert 90 < deadline.left() <= 100


class OverAt(Standard):
    """Plain training, during whose step `at` the time becomes short."""

    def __init__(self, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.monkeypatch = at, monkeypatch

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        if step.index == self.at:
            self.monkeypatch.setenv(deadline.UNTIL, str(time.monotonic() + deadline.AHEAD / 2))
        return super().loss(model, batch, step)


def test_a_training_ends_at_a_step_and_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits, settings = data.load("toy"), studies.resolve("toy_pag", overrides={"epochs": 3})

    def train(folder: str, method: Standard) -> nn.Module:
        torch.manual_seed(0)
        return fit(models.toy_net(8), method, splits, settings, tmp_path / folder, seed=0)

    whole = train("whole", Standard())
    last = 3 * -(-len(splits.train) // settings.batch_size) - 1
    for at in (0, 5, last):  # the first step, one within an epoch, and the very last
        with pytest.raises(deadline.OutOfTime):
            train(f"cut{at}", OverAt(at, monkeypatch))
        monkeypatch.delenv(deadline.UNTIL)
        again = train(f"cut{at}", OverAt(-1, monkeypatch))
        for one, other in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)


def test_an_evaluation_ends_after_a_chunk_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, model = data.load("toy").test, models.toy_net(8)
    monkeypatch.setenv(deadline.UNTIL, str(time.monotonic() + deadline.AHEAD / 2))
    for _ in range(4):  # a quarter of the images each time
        with pytest.raises(deadline.OutOfTime):
            evaluate(model, test, {}, tmp_path / "kept.safetensors", box=None)
    outcomes, _ = evaluate(model, test, {}, tmp_path / "kept.safetensors", box=None)
    assert torch.equal(outcomes["clean"], model(test.images).argmax(1) == test.labels)


def test_a_run_out_of_time_is_stopped_with_code_75(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    studies.resolve("toy_pag")  # imports what takes seconds
    monkeypatch.setenv(deadline.UNTIL, str(time.monotonic() + deadline.AHEAD + 8))
    assert call(monkeypatch, "run", "toy_pag", "-p", "epochs=5000") == deadline.CODE
    assert "the same command goes on" in capfd.readouterr().err
    folder = next((home / "runs" / "toy_pag").iterdir())
    assert runs.status(folder)["state"] == "stopped"
    assert call(monkeypatch, "run", "toy_pag", "-p", "epochs=5000") == deadline.CODE  # no time is left to start in
    assert "not started" in capfd.readouterr().err


def test_a_cluster_has_limits_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = Path(__file__).parent.parent / "grids" / "profiles" / "slurm"
    assert call(monkeypatch, "grid", "grids/toy_seeds.yaml", "--profile", str(profile), "--within", "9m") == 2
    assert "--within 9m" in capsys.readouterr().err


def test_what_can_decide_nothing_comes_last() -> None:
    few = studies.resolve("cifar_pag", overrides={"test_images": 40, "autoattack_images": 20})
    assert cli._decidable("toy_pag", studies.resolve("toy_pag")) > 0
    assert cli._decidable("cifar_pag", few) <= cli._decidable("cifar_pag", studies.resolve("cifar_pag"))
