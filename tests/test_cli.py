import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from paperlib import cli, studies
from paperlib.runs import progress
from paperlib.runs import run as runs


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
        (["run", "toy"], f"no notebook 'toy'; there are {', '.join(sorted(studies.known()))}"),
        (["run", "toy_pag", "-p", "epoch=3"], "did you mean 'epochs'"),
        (["run", "toy_pag", "-p", "epochs"], "should be name=value"),
        (["run", "toy_pag", "-p", "epochs=-1"], "greater than or equal to 1"),
        (["run", "toy_pag", "--venue", "nature"], "venue = 'nature': Input should be 'neurips', 'iclr'"),
        (["run", "toy_pag", "--width", "column"], "needs a --venue of two columns"),
        (["run", "toy_pag", "--venue", "iclr", "--width", "column"], "venue = 'iclr-column': Input should be"),
        (["run", "jacobian_norm", "-p", "devices=999", "-p", "batch_size=4000"], "devices = 999, but there are"),
        (["run", "raat_boundary", "-p", "toy={}"], "toy: points cannot be cropped or flipped"),
        (["run", "cifar_pag", "-p", "teacher_linf=/nowhere/x.pt"], "teacher_linf = '/nowhere/x.pt': no such file"),
        (["run", "cifar_pag", "-p", "data=mnist"], "'mnist' is not a data set"),
        (["run", "cifar_pag", "-p", "train_images=90000000"], "scenes of 32 px need 1373 GiB while they are rendered"),
        (["run", "raat_boundary", "-p", "gaussian_dimensions=[1000000000000]"], "less than or equal to 100000000"),
        (["run", "raat_boundary", "-p", "toy_hidden=[90000000]"], "less than or equal to 10000"),
        (
            ["audit", "--model", "x.py:y", "--data", "scenes", "--eps", "0.1", "--images", "90000000"],
            "than or equal to 100000",
        ),
        (["data", "folder:x", "--size", "90000000"], "than or equal to 4096"),
        (["reproduce", "--preset", "tiny"], "preset = 'tiny'"),
        (["data", "mnist"], "'mnist' is not a data set"),
        (["data", "folder:/nowhere"], "there is no folder train in it"),
        (["run", "cifar_pag", "-p", "data=folder:/nowhere"], "there is no folder /nowhere"),
        (["run", "cifar_pag", "-p", "data=folder:~nobody_of_that_name/x"], "it should be a folder's path"),
        (["data", f"folder:{'x' * 300}"], "it should be a folder's path"),
        (["report", "--to", __file__], "Not a directory"),
        (["audit", "--model", "x.py:y", "--data", "scenes", "--eps", "8"], "eps = 8: should be a radius"),
        (["audit", "--model", "x.py:y", "--data", "scenes", "--eps", "1.2.3/4"], "should be a number in units of [0,1]"),
    ],
)
def test_wrong_input_is_refused_with_code_2_before_anything_starts(
    arguments: list[str], message: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_status_tells_each_run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    studies.start("toy_pag", {"epochs": 3}).finish()
    at_work = studies.start("toy_pag", {"epochs": 4})
    with progress.Bar(10, "vanilla-seed0", "step"):
        assert call(monkeypatch, "status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.match(r"toy_pag, quick: epochs = 3 +finished ", lines[1])
    assert re.match(r"toy_pag, quick: epochs = 4 +running ", lines[0])
    assert re.search(r"running +\d\d:\d\d +\d+\.\d+[kM]?B  vanilla-seed0: 0/10 step, .* left \(\d\d:\d\d ago\)$", lines[0])
    at_work.finish()


def edit(home: Path, **parameters: object) -> None:
    """A notebook of three cells in place of toy_pag, with these parameters."""
    assigned = "\n".join(f"{name} = {value!r}" for name, value in {"preset": "quick", **parameters}.items())
    cells = [nbformat.v4.new_code_cell(assigned, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell("from paperlib import studies\nrun = studies.start('toy_pag', globals())"),
             nbformat.v4.new_code_cell("print('seeds', run.settings.seeds)\nrun.finish()")]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), home / "notebooks" / "toy_pag.ipynb")


def test_the_page_of_an_edited_notebook_lies_in_the_folder_of_its_own_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "KEEP_MEMORY", {})
    presets = (home / "notebooks" / "presets").resolve()
    (home / "notebooks").unlink()
    (home / "notebooks").mkdir()
    (home / "notebooks" / "presets").symlink_to(presets)
    usual, one = (
        runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag", "quick", changes)) for changes in ({}, {"seeds": [7]})
    )
    edit(home)
    assert call(monkeypatch, "run", "toy_pag", "--no-report") == 0
    edit(home, settings={"seeds": [7]})
    assert call(monkeypatch, "run", "toy_pag", "--no-report") == 0
    assert f"toy_pag: finished, {os.path.relpath(one / 'toy_pag.html')}" in capsys.readouterr().out
    edit(home, settings={"seeds": [7]})  # what is given is put to it, and wins
    assert call(monkeypatch, "run", "toy_pag", "--no-report", "-p", "epochs=7") == 0
    both = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag", "quick", {"seeds": [7], "epochs": 7}))
    assert runs.status(both)["state"] == "finished"
    shutil.rmtree(both)
    edit(home, seeds="none")  # begins no run
    assert call(monkeypatch, "run", "toy_pag", "--no-report") == 1
    assert "seeds = 'none'" in capsys.readouterr().err
    assert sorted((home / "runs" / "toy_pag").iterdir()) == sorted((usual, one))
    for folder, seeds in ((usual, studies.resolve("toy_pag").seeds), (one, [7])):
        assert f"seeds {seeds}" in (folder / "toy_pag.html").read_text()
        assert f"seeds {seeds}" in (folder / "toy_pag.ipynb").read_text()
    assert runs.BEGAN not in os.environ


def test_a_grid_is_refused_as_a_whole_before_the_first_job_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "plan.yaml"
    file.write_text("a: {notebook: toy_pag}\nb: {notebook: jacobian_norm, parameters: {data: 'folder:nowhere'}}\n")
    assert call(monkeypatch, "grid", str(file)) == 2
    assert "plan.yaml: b: data = folder:nowhere: there is no folder" in capsys.readouterr().err
    assert not (home / "runs").exists()
    file.write_text("a: {notebook: toy_pag}\n")
    folder = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag"))
    folder.mkdir(parents=True)
    (folder / "grid.log").write_bytes(b"\xff\npaperlib: the disk is full\n")  # of a job that began no run
    assert call(monkeypatch, "grid", str(file), "--dry-run") == 0
    assert re.search(r"^a .* not started  the disk is full$", capsys.readouterr().out, re.MULTILINE)


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(monkeypatch, "run", "jacobian_norm", "-p", "device=cuda") == 2
    assert "PyTorch finds no GPU here" in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_a_script_that_was_changed_after_its_notebook_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = (home / "notebooks").resolve()
    (home / "notebooks").unlink()
    shutil.copytree(repository, home / "notebooks")
    script, notebook = (home / "notebooks" / f"toy_pag{end}" for end in (".py", ".ipynb"))
    os.utime(notebook, (1, 1))
    cli._check_pair(script.with_suffix(""))  # the same content, as in a clone
    script.write_text(script.read_text() + "\nx = 1\n")
    assert call(monkeypatch, "run", "toy_pag") == 2
    said = capsys.readouterr().err
    assert "toy_pag.py has been changed since toy_pag.ipynb, which is what runs; jupytext --sync" in said
    assert not (home / "runs").exists()
    os.utime(script, (0, 0))
    cli._check_pair(script.with_suffix(""))  # the notebook was changed last: that runs


def test_clean_lists_and_asks_before_it_removes(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "clean") == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)
    monkeypatch.setattr("typer.confirm", lambda question: not print(question) and False)
    assert call(monkeypatch, "clean", "--unfinished") == 0
    out = capsys.readouterr().out
    assert "toy_pag" in out
    assert re.search(r"Remove these 1, and free [\d.]+[kM]?B\?", out)
    assert run.folder.exists()
    assert call(monkeypatch, "clean", "--yes") == 0
    assert run.folder.exists()  # it can be gone on with
    assert call(monkeypatch, "clean", "--unfinished", "--yes") == 0
    assert not run.folder.exists()


def test_data_fetches_ahead(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "data", "toy") == 0
    assert "6000 training and 600 test samples of 2, 2 classes" in capsys.readouterr().out


def test_the_help_does_not_wait_for_pytorch() -> None:
    script = "import sys, paperlib.cli; print([name for name in ('torch', 'pandas', 'pydantic') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_only_reads_runs_does_not_wait_for_pytorch(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A site that is to be made needs PyTorch; one that is as it would be made does not."""
    studies.start("toy_pag", {"epochs": 3}).finish()
    assert call(monkeypatch, command) == 0
    told = capsys.readouterr().out
    script = f"import sys\nsys.argv = ['paperlib', '{command}']\nfrom paperlib import cli\n"
    script += "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{told}False\n"
    assert "toy_pag, quick: epochs = 3" in told or "report: " in told
