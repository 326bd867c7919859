import sys
from pathlib import Path

import pytest

from paperlib import cli, runs


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["paperlib", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_list_names_notebooks_and_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list") == 0
    out = capsys.readouterr().out
    assert "toy_pag" in out
    assert "PAG on a line" in out
    assert "scenes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toy"], f"no notebook 'toy'; there are {', '.join(sorted(runs.studies()))}"),
        (["run", "toy_pag", "-p", "epoch=3"], "did you mean 'epochs'"),
        (["run", "toy_pag", "-p", "epochs"], "should be name=value"),
        (["run", "toy_pag", "-p", "epochs=-1"], "greater than or equal to 1"),
        (["run", "toy_pag", "--venue", "nature"], "venue = 'nature': Input should be 'neurips', 'iclr'"),
        (["run", "cifar_pag", "-p", "data=mnist"], "'mnist' is not a data set"),
        (["reproduce", "--preset", "tiny"], "preset = 'tiny'"),
        (["data", "mnist"], "'mnist' is not a data set"),
        (["data", "folder:/nowhere"], "there is no folder train in it"),
    ],
)
def test_wrong_input_is_refused_with_code_2_before_anything_starts(
    arguments: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_status_tells_each_run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs.start("toy_pag", {"epochs": 3}).finish()
    assert call(monkeypatch, "status") == 0
    assert "finished" in capsys.readouterr().out


def test_data_fetches_ahead(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "data", "toy") == 0
    assert "6000 training and 600 test samples of 2, 2 classes" in capsys.readouterr().out
