"""Notebooks as files, and each of them run from top to bottom on the smallest settings."""

import ast
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import torch
from conftest import REPOSITORY
from latex import too_wide

from paperlib import claims, models, studies, training
from paperlib.data import load
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LEDGERS = sorted(path.stem for path in (REPOSITORY / "paperlib" / "claims").glob("*.yaml"))
PAPERS = {notebook: paper for paper in LEDGERS for notebook in claims.load(paper)["scale"]}
SMALLEST = {
    "epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "30", "width": "4", "train_steps": "1",
    "autoattack_images": "2", "sweep_images": "5", "audit_images": "10",
}  # fmt: skip
TINY = {
    "toy_pag": {"seeds": "[0, 1]", "epochs": "2"},
    "cifar_pag": {
        "sources": "[class_mean, kmeans, rigd_l2]", "weights": "{class_mean: 0.1, kmeans: 0.1, rigd_l2: 0.1}",
        "clusters": "2", "epochs": "1",
        "teacher_epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "30", "width": "4",
        "sweep_weights": "[0.01]", "score_images": "10", "score_steps": "2", "attack_steps": "2", "sweep_images": "10",
        "audit_images": "10", "autoattack_images": "2", "sweep_epsilons": "[1, 2]", "eps_l2": "1/2",
    },
    "raat_boundary": {
        "epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "30", "width": "4",
        "train_steps": "1", "study_epochs": "1", "study_images": "50", "study_scales": "[0]", "study_thresholds": "[0.3]",
        "long_epochs": "2", "components": "[two_views]", "etas": "[0.3]", "weights": "{mart: [3]}", "strong_images": "2",
        "autoattack_images": "2", "audit_images": "10", "toy_hidden": "[4]", "gaussian_dimensions": "[16, 64]",
        "gaussian_trials": "2", "norm": "l2", "methods": "[pgd_at, mart, raat, raat_plus_plus]", "seeds_of": "{mart: 1}",
        "toy_atypicals": "[0]", "toy": "{epochs: 1, optimizer: adam, crop_padding: 0, flip: false, selection: last}",
    },
    "gfa_landscape": {
        "epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "30", "width": "4",
        "methods": "[standard, first, deep]", "train_steps": "1", "sweep": "[10]", "tasks": "{ce: 1.0}", "restarts": "1",
        "mlp": "{model: mlp, width: 8, stem_stride: 1, channels_last: false}", "queries": "5",
        "architectures": "{resnet18: {model: resnet18, width: 4}}", "landscape_images": "10",
        "minimum_images": "2", "minimum_steps": "3", "pixel_images": "1", "pixel_generations": "1",
        "cone_angles": "[0, 90]", "epsilons": "[0.1]", "autoattack_images": "0", "sweep_images": "5", "audit_images": "10",
    },
    "daat_imagenet100": {
        "epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "32", "width": "32",
        "train_steps": "1", "teacher_epochs": "1", "depth_images": "32", "depth_epochs": "1", "controls": "[uniform]",
        "weights": "[1]",
        "cam_epsilons": "[2]", "focus_images": "10", "epsilons": "[2]", "autoattack_images": "0", "sweep_images": "5",
        "audit_images": "10", "seeds_of": "{sweep: 1}", "operator": "laplacian",
    },
    "alignment_matrix": {
        "epochs": "1", "train_images": "100", "validation_images": "20", "test_images": "30", "width": "4",
        "train_steps": "1", "measure_images": "20", "queries": "5", "score_steps": "2", "autoattack_images": "2",
        "audit_images": "10", "neighbors": "2", "defences": "[standard, pgd_at, raat, first, rigd, raat_sharp]",
        "minimum_images": "2", "minimum_steps": "3", "pixel_images": "1", "pixel_generations": "1",
        "combinations": "{gfa_pgd_at: {base: pgd_at, add: {first: 0.1}}}",
    },
}  # fmt: skip


def tiny(notebook: str) -> dict[str, str]:
    """The smallest settings of a notebook: those of SMALLEST that it has, where TINY says nothing else."""
    known = studies.known()[notebook].model_fields
    return TINY.get(notebook, {name: value for name, value in SMALLEST.items() if name in known})


def test_every_study_has_its_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(studies.known()) == sorted([*PAPERS, "explore"])
    assert sorted(studies.declared("PLANS")) == sorted(PAPERS)  # what `paperlib reproduce` runs
    assert set(TINY) <= set(PAPERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_its_script_and_holds_no_outputs(path: Path) -> None:
    notebook, script = nbformat.read(path, 4), jupytext.read(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in notebook.cells] == [
        (cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in script.cells
    ]
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def code_cells(path: Path) -> tuple[str, list[str]]:
    """The source of the cell of parameters, and of all other code cells."""
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    (parameters,) = (cell.source for cell in code if cell.metadata.get("tags") == ["parameters"])
    return parameters, [cell.source for cell in code if cell.source != parameters]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_are_a_dozen_knobs_with_the_values_of_quick(path: Path) -> None:
    parameters, _ = code_cells(path)
    assert all(isinstance(statement, ast.AnnAssign) for statement in ast.parse(parameters).body)
    shown: dict[str, Any] = {}
    exec(parameters, shown)  # as a kernel has it
    first, *knobs, last = shown["__annotations__"]
    assert (first, shown[first], last, shown[last]) == ("preset", "quick", "settings", {})
    quick = studies.resolve(path.stem).model_dump()
    assert len(knobs) <= 12
    assert {name: shown[name] for name in knobs} == {name: quick[name] for name in knobs}
    for name in shown["__annotations__"]:
        assert re.search(rf"^{name}: .*(\n .*)*  # \S", parameters, re.MULTILINE), f"{name} has no comment"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_leave_the_parameters_alone(path: Path) -> None:
    _, cells = code_cells(path)
    assert path.stem not in PAPERS or any(".loss(" in cell and "one_batch" in cell for cell in cells)
    assert any("models.summary" in cell for cell in cells)
    reserved = {"preset", "settings", *studies.known()[path.stem].model_fields}
    for cell in cells:
        assert not re.search(r"^\s*(def|class) ", cell, re.MULTILINE)
        lines = [line for line in cell.splitlines() if line.strip() and not line.startswith(("from", "import"))]
        assert len(lines) <= 6, cell
        # A cell is run again after those below it: what they bind would then be taken for a parameter.
        assert not bound(cell) & reserved, cell


def bound(source: str) -> set[str]:
    """The names that a cell leaves bound; those of a comprehension are its own."""
    return {
        name.get_name()
        for name in symtable.symtable(source, "cell", "exec").get_symbols()
        if name.is_assigned() or name.is_imported()
    }


@pytest.mark.parametrize("notebook", sorted(PAPERS))
def test_it_runs_from_the_command_line_and_again_without_computing(notebook: str, home: Path) -> None:
    settings = tiny(notebook)
    options = [part for name, value in settings.items() for part in ("-p", f"{name}={value}")]
    command = [sys.executable, "-m", "paperlib.cli", "run", notebook, *options, "--venue", "icml"]
    environment = {**os.environ, "PAPERLIB_ROOT": str(home)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "epoch 1" in first.stdout  # progress, live

    (folder,) = (home / "runs" / notebook).iterdir()
    assert runs.status(folder)["state"] == "finished"
    verdicts = read_json(folder / "claims.json")
    known = [claim for claim in claims.load(PAPERS[notebook])["claims"] if claim["notebook"] == notebook]
    assert [claim["id"] for claim in verdicts] == [claim["id"] for claim in known]
    # Two epochs teach nothing, and the verdicts must say so rather than judge noise. A linear programme learns nothing.
    assert {claim["outcome"] for claim in verdicts if claim["id"] != "proposition-bound"} == {"not tested here"}
    assert any("close to chance" in claim["reason"] or "images, fewer than" in claim["reason"] for claim in verdicts)
    paper = studies.resolve(notebook, "paper").epochs
    assert all(f"epochs {settings['epochs']} (paper: {paper})" in claim["scale"] for claim in verdicts)
    for claim, plan in zip(verdicts, read_json(folder / "plan.json"), strict=True):  # which was made before anything else
        absent = "this run has no" in claim["reason"]
        assert (plan["decides"] == "not run at this preset") == absent, (claim["id"], claim["reason"])
        if not absent:
            assert plan["seeds"] == claim["seeds"], claim["id"]
            measure = next(one for one in known if one["id"] == claim["id"])["measure"]
            at_most = measure.endswith("_joint") or measure == "bound"
            assert plan["n"] >= claim["n"] if at_most else plan["n"] == claim["n"], claim["id"]
    figures = {file.stem for file in (folder / "figures").glob("*.png")}
    assert len(figures) >= 3
    for name in figures:
        for kind in ("pdf", "svg", "json"):
            assert (folder / "figures" / f"{name}.{kind}").exists()
    for table in (folder / "tables").glob("*.tex"):
        assert r"\toprule" in table.read_text()
        assert table.with_suffix(".csv").exists()
    if shutil.which("pdflatex"):
        assert not too_wide(sorted((folder / "tables").glob("*.tex")), "icml")

    for page in (folder / f"{notebook}.html", home / "runs" / "report" / "index.html"):
        text = page.read_text()
        assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=[\"']?https?:", text)
        assert not re.search(r"<link[^>]*\shref=[\"']?https?:", text)
        assert not re.search(r"(@import|url\()\s*[\"']?https?:", text)
    assert "<math" in (folder / f"{notebook}.html").read_text()

    kept = {
        file: file.stat().st_mtime_ns
        for kind in ("training", "evaluation")
        for file in folder.glob(f"{kind}/**/*.safetensors")
    }
    drawn = {file: file.read_bytes() for kind in ("figures", "tables") for file in folder.glob(f"{kind}/*")}
    assert kept
    second = subprocess.run([*command, "--no-report"], env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "epoch 1" not in second.stdout
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    again = {file: file.read_bytes() for kind in ("figures", "tables") for file in folder.glob(f"{kind}/*")}
    assert set(again) == set(drawn)
    assert [file.name for file in drawn if again[file] != drawn[file]] == []


def test_it_runs_under_plain_papermill_and_a_misspelt_parameter_stops_it(home: Path) -> None:
    path = REPOSITORY / "notebooks" / "toy_pag.ipynb"
    command = [sys.executable, "-m", "papermill", str(path), str(home / "out.ipynb"), "-k", "python3"]
    environment = {**os.environ, "PAPERLIB_ROOT": str(home)}
    good = subprocess.run(
        [*command, "-p", "epochs", "1", "-y", "{seeds: [0]}"], env=environment, capture_output=True, text=True
    )
    assert good.returncode == 0, good.stderr
    (folder,) = (home / "runs" / "toy_pag").iterdir()
    assert runs.status(folder)["state"] == "finished"
    bad = subprocess.run([*command, "-p", "epoch", "1"], env=environment, capture_output=True, text=True)
    assert bad.returncode != 0
    assert "unknown parameter 'epoch'; did you mean 'epochs'" in bad.stderr
    assert len(list((home / "runs" / "toy_pag").iterdir())) == 1


def test_a_failed_cell_is_a_failed_run(home: Path) -> None:
    """The toy diverges at an absurd learning rate: exit code 1, status failed, the reason in both."""
    options = ["-p", "learning_rate=1e30", "-p", "seeds=[0]", "-p", "epochs=1"]
    command = [sys.executable, "-m", "paperlib.cli", "run", "toy_pag", *options]
    done = subprocess.run(command, env={**os.environ, "PAPERLIB_ROOT": str(home)}, capture_output=True, text=True)
    assert done.returncode == 1
    (folder,) = (home / "runs" / "toy_pag").iterdir()
    found = runs.status(folder)
    assert found["state"] == "failed"
    assert "diverged in step" in found["error"]
    assert json.loads((folder / "toy_pag.ipynb").read_text())["cells"]


# Parameters ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        ({}, {"epochs": 10, "momentum": 0.9}),
        ({"epochs": 10, "eps_linf": 4 / 255}, {"preset": "laptop", "epochs": 8}),  # knobs as they are in the cell
        ({"epochs": 5}, {"preset": "laptop", "epochs": 5, "train_images": 8000}),
        ({"epochs": None}, {"preset": "laptop", "epochs": 8}),
        ({"seeds": [0], "train_images": "null"}, {"preset": "laptop", "seeds": [0, 1, 2], "train_images": None}),
        ({"epochs": 10}, {"preset": "quick", "epochs": 10}),
        ({"settings": {"momentum": 0.8}}, {"preset": "quick", "momentum": 0.8, "epochs": 10}),
        ({"epochs": 10, "settings": {"epochs": 10}}, {"preset": "laptop", "epochs": 10}),  # quick's value, forced
        (
            {"settings": {"train_images": None, "eps_linf": "8/255"}},
            {"preset": "laptop", "train_images": None, "eps_linf": 8 / 255},
        ),
        ({"settings": "{epochs: 10}"}, {"preset": "laptop", "epochs": 10}),  # as `papermill -p` hands a dict over
        ({"epochs": 10, "In": ["", "# Parameters\nepochs = 10\n"]}, {"preset": "laptop", "epochs": 10}),
        ({"epochs": 10, "In": ["", "epochs = 10\n"]}, {"preset": "laptop", "epochs": 8}),
    ],
)
def test_a_knob_left_at_quicks_value_is_the_presets(
    home: Path, namespace: dict[str, Any], expected: dict[str, Any]
) -> None:
    expected = dict(expected)
    preset = expected.pop("preset", "quick")
    run = studies.start("jacobian_norm", {"preset": preset, "settings": {}, **namespace})
    run.finish()
    assert {name: getattr(run.settings, name) for name in expected} == expected


@pytest.mark.parametrize("namespace", [{"settings": {"epoch": 4}}, {"In": ["# Parameters\nepoch = 4\n"]}])
def test_an_unknown_setting_is_refused_with_those_allowed(home: Path, namespace: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"unknown parameter 'epoch'; did you mean 'epochs'.*Allowed: seeds, device"):
        studies.start("jacobian_norm", {"preset": "quick", **namespace})
    with pytest.raises(InputError, match="settings = 3: should be a dict of settings by name"):
        studies.start("jacobian_norm", {"settings": 3})
    assert not (home / "runs").exists()


def test_settings_are_shown_folded_and_what_differs_from_the_preset_is_bold(home: Path) -> None:
    run = studies.start("jacobian_norm", {"preset": "laptop", "epochs": 5, "settings": {"data": "folder:a<b"}})
    run.finish()
    page = run._repr_html_()
    head, folded = page.split("<details>")
    assert "epochs = 5" in head
    assert "<table" not in head
    assert re.findall(r"font-weight: bold'><td>(\w+)", folded) == ["epochs", "data"]
    assert len(re.findall("<tr", folded)) == len(type(run.settings).model_fields)
    assert "folder:a<b" not in page


def test_text_in_settings_is_no_markup(home: Path) -> None:
    run = studies.start("cifar_pag", {"settings": {"teacher_linf": "<img src=x onerror=alert(1)>"}})
    run.finish()
    shown = run._repr_html_()
    assert "<img" not in shown
    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") == 2


def test_hidden_keys_of_a_preset_file_are_no_presets(home: Path) -> None:
    (home / "notebooks").unlink()
    presets = home / "notebooks" / "presets"
    presets.mkdir(parents=True)
    (presets / "mine.yaml").write_text(".shared: &shared {epochs: 3, flip: true}\nquick: {<<: *shared, epochs: 4}\n")
    assert runs.read_presets("mine") == {"quick": {"epochs": 4, "flip": True}}


# A network and a batch -------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "vit_conv", "mlp"])
def test_a_summary_counts_every_weight_once_and_ends_with_the_outputs(name: str) -> None:
    model = models.build(name, classes=7, channels=3, width=32, seed=0)
    before = [weight.clone() for weight in model.state_dict().values()]
    found = models.summary(model, (3, 32, 32))
    own = int(found["weights"].iloc[:-1].sum())
    loose = sum(weight.numel() for part, weight in model.named_parameters() if "token" in part or "pos_embed" in part)
    assert own + loose == found.loc["in all", "weights"] == sum(weight.numel() for weight in model.parameters())
    assert found.loc["in all", "output"] == "7"
    assert found["kind"].iloc[0] == "Normalise"
    assert model.training
    assert all(torch.equal(one, other) for one, other in zip(before, model.state_dict().values(), strict=True))


def test_one_batch_is_of_the_training_images_and_the_same_each_time(home: Path) -> None:
    given = {
        "data": "scenes",
        "train_images": 60,
        "validation_images": 10,
        "test_images": 10,
        "batch_size": 32,
        "epochs": 3,
    }
    run = studies.start("jacobian_norm", {"settings": given})
    run.finish()
    images = load("scenes", train_images=60, validation_images=10, test_images=10, seed=0)
    (batch, step), draw = training.one_batch(run, images), torch.rand(3)
    (again, _), same = training.one_batch(run, images), torch.rand(3)
    assert torch.equal(batch.images, again.images)
    assert torch.equal(draw, same)
    assert (step.index, step.total, step.epoch, step.epochs) == (3, 6, 1, 3)
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(images.train.images, images.train.labels, strict=True)
    }
    labels = [known[(255 * image).round().byte().numpy().tobytes()] for image in batch.images]
    assert labels == batch.labels.tolist()
    assert len(labels) == 32
