"""What a campaign on a rented GPU writes down and takes back; its trainings are tried in tests/test_training.py."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import campaign, collect, common, records
from paperlib.runs.files import InputError, read_json
from paperlib.runs.tensors import read_tensors, write_tensors


def plan() -> dict[str, Any]:
    return records.read_plan()


def protocol(epochs: int = 3) -> dict[str, Any]:
    return records.protocol(plan(), epochs, 100, 10)


def result(folder: Path, name: str, key: str, *, autoattack: int = 0, value: bool = True) -> None:
    outcomes = {"clean": torch.ones(10, dtype=torch.bool), "pgd_10": torch.full((10,), value)}
    if autoattack:
        outcomes["autoattack"] = torch.ones(autoattack, dtype=torch.bool)
    about = {"name": name, "protocol": key, "epochs": 3, "seconds": 60.0, "accuracy": {"clean": 1.0},
             "environment": {"gpu": "one"}}  # fmt: skip
    write_tensors(folder / f"{name}.safetensors", outcomes, about)


def session(place: Path, names: tuple[str, ...] = ("pgd_at-seed0",), epochs: int = 3, **changes: Any) -> Path:
    """What comes back from a session."""
    folder = place / "results" / "campaign"
    for name in names:
        result(folder, name, protocol(epochs)["key"], **changes)
    records.write_state(folder, protocol(epochs), {"pag-seed0": "DivergenceError"})
    common.save(place / "results" / "checks.json", {"rows": [str(place)]})
    common.pack(place / "results", place / "results.tar")
    return place


def test_the_order_is_all_trainings_with_the_first_seed_then_with_the_next() -> None:
    names = [name for name, *_ in records.in_order(plan())]
    assert names[:3] == ["pgd_at-seed0", "raat-seed0", "pgd_at_long-seed0"]
    count = len(plan()["trainings"])
    assert len(set(names)) == len(names) == 3 * count
    assert names[count] == "pgd_at-seed1"


def test_the_protocol_knows_what_changes_a_number_and_not_what_is_trained_when() -> None:
    changed = plan()
    changed["seeds"] = [7]
    changed["trainings"] = changed["trainings"][:1]
    assert records.protocol(changed, 3, 100, 10)["key"] == protocol()["key"]
    other = plan()
    other["training"]["learning_rate"] = 0.2
    keys = {records.protocol(other, 3, 100, 10)["key"], protocol(4)["key"], records.protocol(plan(), 3, 99, 10)["key"]}
    assert protocol()["key"] not in keys
    assert len(keys) == 3
    assert plan()["attack"]["eps"] == 8 / 255


def test_results_are_taken_and_the_next_session_adds_to_them(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert collect.collect(session(tmp_path / "a"), kept) == ["pgd_at-seed0"]
    assert collect.collect(session(tmp_path / "a"), kept) == []  # again: nothing new
    assert collect.collect(session(tmp_path / "b", ("pag-seed0", "raat-seed0")), kept) == ["pag-seed0", "raat-seed0"]
    state = read_json(kept / "state.json")
    assert sorted(state["done"]) == ["pag-seed0", "pgd_at-seed0", "raat-seed0"]
    assert state["failed"] == {}  # what failed then is done now
    assert state["protocol"]["key"] == protocol()["key"]
    assert sorted(file.name for file in kept.glob("checks*")) == ["checks-1.json", "checks-2.json"]


def test_more_images_under_autoattack_replace_fewer(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    collect.collect(session(tmp_path / "a", autoattack=3), kept)
    assert collect.collect(session(tmp_path / "b", autoattack=5), kept) == ["pgd_at-seed0"]
    assert len(read_tensors(kept / "pgd_at-seed0.safetensors")[0]["autoattack"]) == 5
    with pytest.raises(InputError, match="autoattack differs"):  # it has none of what is kept
        collect.collect(session(tmp_path / "c"), kept)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    collect.collect(session(tmp_path / "a"), kept)
    before = {file.name: file.read_bytes() for file in kept.iterdir()}
    with pytest.raises(InputError, match="its protocol is"):
        collect.collect(session(tmp_path / "b", ("raat-seed0",), epochs=4), kept)
    with pytest.raises(InputError, match="pgd_10 differs"):
        collect.collect(session(tmp_path / "c", ("aaa-seed0", "pgd_at-seed0"), value=False), kept)
    broken = session(tmp_path / "d", ("raat-seed0",))
    result(broken / "results" / "campaign", "raat-seed0", protocol()["key"])
    file = broken / "results" / "campaign" / "raat-seed0.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    common.pack(broken / "results", broken / "results.tar")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        collect.collect(broken, kept)
    with pytest.raises(InputError, match="not an archive of results"):
        collect.collect(tmp_path / "nowhere", kept)
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "results.tar", "w") as opened:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        opened.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(InputError, match="not an archive of results"):
        collect.collect(tmp_path, tmp_path / "kept")


def planned(known: dict[str, dict[str, Any]], rates: dict[str, float]) -> campaign.Campaign:
    """A campaign that has measured its speeds, without images."""
    self = campaign.Campaign.__new__(campaign.Campaign)
    self.plan, self.known, self.rates, self.epochs, self.evaluating = plan(), known, rates, 10, 20.0
    self.data = type("Data", (), {"train": range(49_000)})()  # type: ignore[assignment]
    return self


def test_equal_time_is_by_seconds_of_the_same_card_else_by_the_speeds_of_this_session() -> None:
    long = plan()["trainings"][2]
    assert long["time_of"] == "raat"
    rates = {"pgd_at": 0.02, "raat": 0.05}
    assert planned({}, rates).epochs_of("pgd_at_long-seed0", long) == 25
    done = {
        "pgd_at-seed0": {"seconds": 100.0, "epochs": 10, "environment": {"gpu": "one"}},
        "raat-seed0": {"seconds": 300.0, "epochs": 10, "environment": {"gpu": "one"}},
    }
    assert planned(done, rates).epochs_of("pgd_at_long-seed0", long) == 30
    assert planned(done, rates).epochs_of("pgd_at_long-seed1", long) == 25  # of that seed there is none
    done["raat-seed0"]["environment"] = {"gpu": "another"}
    assert planned(done, rates).epochs_of("pgd_at_long-seed0", long) == 25


def test_a_training_is_given_the_seconds_of_its_steps_and_its_evaluation() -> None:
    seconds = planned({}, {"pgd_at": 0.02}).training_seconds("pgd_at-seed0", plan()["trainings"][0])
    assert seconds == pytest.approx(campaign.RESERVE * (10 * 383 * 0.02 + 20) + campaign.OVERHEAD)


def test_the_epochs_that_fit_are_the_most_with_which_three_trainings_end(monkeypatch: pytest.MonkeyPatch) -> None:
    self = planned({}, {"pgd_at": 0.02, "raat": 0.05})
    for left in (150.0, 300.0, 450.0, 1e9):
        monkeypatch.setattr(self, "left", lambda left=left: left)
        epochs = self._epochs_that_fit()
        first = [(name, one) for name, one, _ in records.in_order(self.plan)][:3]

        def needed(count: int, first: Any = first) -> float:
            self.epochs = count
            return sum(self.training_seconds(name, one) for name, one in first)

        assert epochs == campaign.EPOCHS[0] or needed(epochs) < left
        assert epochs == campaign.EPOCHS[-1] or needed(epochs + 1) >= left


def test_a_table_has_a_column_for_every_name() -> None:
    lines = common.table([{"a": 1, "b": "xx"}, {"a": 22, "c": 3}]).splitlines()
    assert [line.split() for line in lines] == [["a", "b", "c"], ["1", "xx"], ["22", "3"]]


def test_every_method_of_the_plan_can_be_made() -> None:
    from benchmarks.gpu.steps import method_of, training_attack

    for training in plan()["trainings"]:
        assert hasattr(
            method_of(training["method"], training_attack(**plan()["attack"]), torch.rand(10, 1, 3, 8, 8)), "loss"
        )
