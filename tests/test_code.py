"""What code results depend on."""

import copy
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import nn

from paperlib import studies, training
from paperlib.data import Splits, toy
from paperlib.methods import raat
from paperlib.methods.baselines import Standard
from paperlib.methods.jacobian import JacobianRegularisation
from paperlib.runs import code
from paperlib.runs.tensors import described

CHANGED = [
    ("methods/raat.py", True), ("methods/baselines.py", True), ("attacks/losses.py", True), ("runs/distributed.py", True),
    ("methods/pag.py", False), ("attacks/autoattack.py", False), ("runs/run.py", False), ("figures/plots.py", False),
]  # fmt: skip


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the package's files appear as in a copy, in which `changed(file, old, new)` changes something."""
    package = shutil.copytree(REPOSITORY / "paperlib", tmp_path / "paperlib")

    def of(module: str) -> Any:
        found = copy.copy(importlib.util.find_spec(module))
        if found and found.origin and module.startswith("paperlib"):
            found.origin = str(package / Path(found.origin).relative_to(REPOSITORY / "paperlib"))
        return found

    def forget() -> None:
        for one in (code.code_of, code._tree, code._digest, code._origin):
            one.cache_clear()

    def change(file: str, old: str, new: str) -> None:
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new, 1))
        forget()

    monkeypatch.setattr(code, "_spec", of)
    forget()
    yield change
    forget()


@pytest.mark.parametrize(("file", "counts"), CHANGED)
def test_every_module_that_a_loss_reaches_counts_and_no_other(changed: Any, file: str, counts: bool) -> None:
    before = code.code_of(raat.RAAT)
    changed(file, "\nimport ", "\n_new = 1\nimport ")
    assert (code.code_of(raat.RAAT) != before) == counts


def test_comments_docstrings_and_layout_do_not_count(changed: Any) -> None:
    before = code.code_of(JacobianRegularisation)
    changed("methods/jacobian.py", '"""', '"""Other words. ')
    changed("methods/jacobian.py", "\nimport ", "\n\n# A comment.\nimport ")
    assert code.code_of(JacobianRegularisation) == before


def test_what_a_package_passes_on_is_looked_for_where_it_is() -> None:
    found = code._reached("paperlib.methods.pag")
    assert {"paperlib.geometry.gradients", "paperlib.attacks.projected", "paperlib.attacks.losses"} <= set(found)
    assert "paperlib.attacks" not in found
    assert "paperlib.training.kept" in code._reached(training.kept.LOOP)


def test_words_for_the_zoo_have_no_code(changed: Any) -> None:
    before = [described(Standard(), source=source) for source in (True, False)]
    changed("methods/baselines.py", "\nimport ", "\n_new = 1\nimport ")
    after = [described(Standard(), source=source) for source in (True, False)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_weights_of_other_code_are_trained_anew_which_is_said(
    home: Path, changed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    points, settings = toy.line(4, 0), studies.resolve("toy_pag", "quick", {"epochs": 2, "batch_size": 8})

    def fit() -> str:
        place = home / "runs" / "toy_pag" / "a" / "training" / "standard-seed0"
        torch.manual_seed(0)
        training.fit(nn.Linear(2, 2), Standard(), Splits(points, points, points), settings=settings, folder=place, seed=0)
        return capsys.readouterr().out

    assert "of another recipe" not in fit()
    assert fit() == ""
    changed("training/optimizer.py", "\nimport ", "\n_new = 1\nimport ")
    said = fit()
    assert "its weights are of another recipe (settings, data, method, code or version); trained anew" in said
    assert "epoch 2" in said
    assert fit() == ""


def test_the_version_alone_changes_no_code() -> None:
    """Else every release would have the zoo's networks trained anew."""
    assert "paperlib" not in code._reached("paperlib.training.loop")
    assert "paperlib.attacks.projected" in code._reached("paperlib.training.loop")
