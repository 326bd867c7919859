import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from paperlib import studies
from paperlib.runs import files, progress
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, write_json
from paperlib.runs.values import read_value
from paperlib.studies import sizes

# Settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 1.5 / 3 ", 0.5),
        ("1e-3", 0.001),
        ("2E2", 200.0),
        ("1e+30", 1e30),  # as JSON has it
        ("[0, 1]", [0, 1]),
        (["1/4", 2], [0.25, 2]),
        ("true", True),
        ("null", None),
        ("adam", "adam"),
        ("1/0", "1/0"),
        ("1.2.3/4", "1.2.3/4"),
        ("2001-13-45", "2001-13-45"),  # no date
        ("{a: 1/4, b: [1e-2]}", {"a": 0.25, "b": [0.01]}),
        (7, 7),
        ("[010, 0o10, 0x10]", [10, 8, 16]),  # by YAML 1.2; PyYAML's 1.1 reads 8
        ("1:30", "1:30"),  # not 90
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("2001-01-01", "2001-01-01"),
        ("-.5e-1", -0.05),
        ("", ""),
        ("[1, &a 2, *a]", "[1, &a 2, *a]"),  # no aliases
        ("[" * 5000, "[" * 5000),
    ],
)
def test_values_are_read_as_meant(text: Any, value: Any) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("notebook", sorted(studies.known()))
def test_presets_are_complete_valid_and_nothing_else(notebook: str) -> None:
    presets = runs.read_presets(notebook)
    assert tuple(presets) == (runs.PRESETS if notebook in studies.declared("PLANS") else ("quick",))
    for name, values in presets.items():
        assert set(values) == set(studies.known()[notebook].model_fields), name
        own = studies.resolve(notebook, name).model_dump()
        assert runs.changed(values, own) == {}, name
        assert runs.changed(values, {**own, "seeds": [3], "old": 1, "venue": "wide"}) == {"seeds": [3], "venue": "wide"}


@pytest.mark.parametrize(
    ("written", "value", "same"),
    [("8/255", 8 / 255, True), ("8/255", "8/255", True), (1, 1.0, True), (3, "3", True), ("007", "007", True),
     ("1e-3", 0.001, True), (["1/4"], [0.25], True), (None, None, True), ("null", None, True), (False, True, False),
     (1, 2, False), ("a", "b", False), (["1/4"], [0.5], False), (0.1, None, False)],
)  # fmt: skip
def test_what_a_preset_says_in_other_words_is_not_changed(written: Any, value: Any, same: bool) -> None:
    assert runs.changed({"x": written}, {"x": value}) == ({} if same else {"x": value})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, r"unknown parameter 'epoch'; did you mean 'epochs'\? Allowed: seeds"),
        ({"epochs": "many"}, "epochs = 'many': Input should be a valid integer"),
        ({"epochs": 0}, "epochs = 0: Input should be greater than or equal to 1"),
        ({"epochs": 2.5}, "epochs = 2.5"),
        ({"epochs": True}, "epochs = True"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"learning_rate": -0.1}, "greater than 0"),
        ({"optimizer": "lion"}, "optimizer = 'lion': Input should be 'sgd', 'adam' or 'adamw'"),
        ({"data": "cifar"}, "'cifar' is not a data set; choose one of toy, scenes"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [2**63 - 1]}, "seeds.0 = 9223372036854775807: Input should be less than 4294967296"),
        ({"seeds": ""}, "seeds has an empty value; write null for none"),
        ({"epochs": "1:30"}, "epochs = '1:30': Input should be a valid integer"),
        ({"flip": "yes"}, "flip = 'yes'"),
        ({"seeds": "[" + "0," * 60_000 + "0]"}, "a text of 120,003 characters; at most 100,000"),
        ({"train_images": 10**12}, "train_images = 1000000000000: Input should be less than or equal to"),
        ({"eps_l2": 1e300}, "eps_l2 = 1e[+]300: Input should be less than or equal to"),
        ({"data": "toy"}, "data = 'toy': points and no images"),
        ({"crop_padding": 10**6}, "crop_padding = 1000000"),
        ({"batch_size": 10**11}, "batch_size = 100000000000"),
        ({"width": 10**5}, "width = 100000"),
        (
            {"data": "cifar10", "train_images": 90_000_000},
            "train_images = 90000000, validation_images = 40: cifar10 has 50000 training images.*at most 49960",
        ),
        ({"data": "stl10", "train_images": None, "validation_images": 6000}, "stl10 has 5000 training images.*at most 0"),
        ({"data": "fashion_mnist", "test_images": 10_001}, "test_images = 10001: fashion_mnist has 10000"),
        ({"data": "imagenet100", "train_images": 130_000}, "imagenet100 has 130000 training images.*at most 129960"),
        ({"data": "folder:x", "image_size": 90_000_000}, "image_size = 90000000: should be at most 4096 pixels"),
        ({"data": "cifar10", "image_size": 64}, "image_size = 64: cifar10 has a size of its own"),
        ({"sources": ["kmeans"], "clusters": 301, "weights": {"kmeans": 1.0}}, "clusters = 301: should be at most 300"),
        ({"image_size": 33}, "image_size = 33: scenes are rendered at 32 or 64 px"),
        ({"model": "vit", "width": 7, "stem_stride": 1}, "width = 7: vit has heads of 32"),
        ({"eps_linf": 0.0}, "eps_linf = 0.0: Input should be greater than 0"),
        ({"eps_linf": 8}, "eps_linf = 8: Input should be less than or equal to 1"),
        ({"seeds": [0, "x"]}, r"seeds.1 = 'x'"),
        ({"sources": ["one_image", "two_images"]}, "two_images"),
        ({"weights": {"one_image": 1.0}}, "weights has no λ for"),
        ({"sources": ["one_image"], "sweep_weights": [0.1]}, "sweep_weights needs class_mean"),
        (
            {"model": "vgg"},
            "model = 'vgg': Input should be 'mlp', 'cnn', 'vit', 'vit_conv', 'vit14', 'small_cnn', 'resnet18'",
        ),
    ],
)
def test_wrong_settings_are_refused_with_what_would_be_right(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        studies.resolve("cifar_pag", "quick", overrides)


@pytest.mark.parametrize(
    ("notebook", "overrides", "message"),
    [
        ("cifar_pag", {"train_images": 90_000_000}, "train_images = 90000000: scenes of 32 px need 1373 GiB"),
        ("cifar_pag", {"image_size": 64, "test_images": 20_000}, "test_images = 20000: scenes of 64 px.*at most 16384$"),
        ("cifar_pag", {"validation_images": 65_537}, "validation_images = 65537: scenes.*at most 65536$"),
        ("alignment_matrix", {"depth_images": 10**8}, "depth_images = 100000000: scenes"),
        (
            "cifar_pag",
            {"model": "resnet18", "width": 512},
            "resnet18 needs 8 GiB to train its weights",
        ),
    ],
)
def test_what_is_larger_than_the_memory_is_refused_before_it_is_made(
    notebook: str, overrides: dict[str, Any], message: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of 1 GiB: 65,536 times the 16 kiB that a scene of 32 px takes."""
    monkeypatch.setattr(sizes.os, "sysconf", {"SC_PHYS_PAGES": 2**18, "SC_PAGE_SIZE": 2**12}.__getitem__)
    with pytest.raises(InputError, match=message):
        studies.start(notebook, overrides)
    assert not (home / "runs").exists()


def test_as_much_as_there_is_may_be_asked_for() -> None:
    whole = {"data": "cifar10", "train_images": 49_000, "validation_images": 1000, "test_images": 10_000}
    sizes.check_memory(studies.resolve("cifar_pag", "quick", whole), 1)
    most = studies.resolve("cifar_pag", "quick", {"train_images": 65_536, "test_images": 65_536, "width": 256})
    sizes.check_memory(most, 2**30)
    with pytest.raises(InputError, match="at most 65535"):
        sizes.check_memory(most, 2**30 - 1)


def test_unknown_notebooks_and_presets_are_refused() -> None:
    with pytest.raises(InputError, match="no notebook 'cifar'; there are alignment_matrix, cifar_pag, daat_imagenet100"):
        studies.resolve("cifar")
    with pytest.raises(InputError, match="preset = 'tiny': toy_pag has quick, laptop, gpu, paper"):
        studies.resolve("toy_pag", "tiny")


def test_fractions_are_read_and_the_same_settings_find_the_same_folder() -> None:
    text = studies.resolve("cifar_pag", "quick", {"eps_linf": "8/255"})
    number = studies.resolve("cifar_pag", "quick", {"eps_linf": 8 / 255})
    assert text == number
    assert runs.folder_of("cifar_pag", "quick", text) == runs.folder_of("cifar_pag", "quick", number)
    assert runs.folder_of("cifar_pag", "quick", text) != runs.folder_of("cifar_pag", "quick", studies.resolve("cifar_pag"))
    venue = studies.resolve("cifar_pag", "quick", {"venue": "icml"})
    assert runs.folder_of("cifar_pag", "quick", venue) == runs.folder_of("cifar_pag", "quick", studies.resolve("cifar_pag"))


# Runs ------------------------------------------------------------------------------


def test_a_run_writes_settings_environment_and_status(home: Path) -> None:
    run = studies.start("toy_pag", {"preset": "quick", "epochs": 7, "seeds": None})
    assert run.settings.epochs == 7
    assert yaml.safe_load((run.folder / "settings.yaml").read_text())["epochs"] == 7
    (about,) = read_json(run.folder / "environment.json")  # one session so far
    assert {"commit", "python", "torch", "processor"} <= set(about)
    assert runs.status(run.folder)["state"] == "running"
    run.finish()
    found = runs.status(run.folder)
    assert found["state"] == "finished"
    assert found["peak_memory_bytes"] > 10_000_000
    assert runs.status(home / "runs" / "none") == {"state": "not started"}


def test_a_folder_is_another_in_another_place_and_the_same_by_each_of_its_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for place in ("here", "there"):
        (tmp_path / place / "images" / "train").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        by_name = [studies.start("jacobian_norm", {"data": f"folder:{name}"})
                   for name in ("images", "../" + place + "/images", str(tmp_path / place / "images"))]  # fmt: skip
        assert {run.settings.data for run in by_name} == {f"folder:{tmp_path / place / 'images'}"}
        (found[place],) = {run.folder for run in by_name}
        by_name[-1].finish()
    assert found["here"] != found["there"]
    monkeypatch.chdir(tmp_path / "here")
    assert studies.resolve("jacobian_norm", "quick", {"data": "folder:there/images"}).data == "folder:there/images"


def test_misspelt_papermill_parameters_are_refused_before_anything_starts(home: Path) -> None:
    namespace = {
        "preset": "quick",
        "epochs": None,
        "epoch": 3,
        "In": ["", "epochs = None", "# Parameters\nepoch = 3\n"],
    }
    with pytest.raises(InputError, match="unknown parameter 'epoch'"):
        studies.start("toy_pag", namespace)
    with pytest.raises(InputError, match=r"eps = float\('nan'\): should be a plain value"):  # as papermill writes it
        studies.start("toy_pag", {"In": ["# Parameters\neps = float('nan')\n"]})
    assert not (home / "runs").exists()
    namespace = {"preset": "quick", "epochs": 3, "epoch": 3, "In": ["", "# Parameters\nepochs = 3\n", "epoch = 3"]}
    run = studies.start("toy_pag", namespace)  # a user's own variable is his own business
    assert run.settings.epochs == 3
    run.finish()


def test_null_is_a_value_and_none_is_the_presets(home: Path) -> None:
    run = studies.start("cifar_pag", {"preset": "laptop", "classes_per_step": "null", "weights": None})
    assert run.settings.classes_per_step is None
    assert run.settings.weights["one_image"] == 0.5
    run.finish()


@pytest.mark.parametrize(
    ("ending", "state"),
    [("os.kill(os.getpid(), 9)", "killed"), ("sys.exit(1)", "stopped"), ("run.finish()", "finished")],
)
def test_status_is_true_whatever_ended_the_process(home: Path, ending: str, state: str) -> None:
    script = f"import os, sys\nfrom paperlib import studies\nrun = studies.start('toy_pag', {{}})\n{ending}\n"
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PAPERLIB_ROOT": str(home)}, check=False)
    folder = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag"))
    assert runs.status(folder)["state"] == state


def test_two_processes_do_not_share_a_run(home: Path) -> None:
    begin = "from paperlib import studies\nrun = studies.start('toy_pag', {})\n"
    script = f"import time\n{begin}print('up', flush=True)\ntime.sleep(60)\n"
    environment = {**os.environ, "PAPERLIB_ROOT": str(home)}
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        with pytest.raises(InputError, match="another process is at work"):
            studies.start("toy_pag", {})
        folder = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag"))
        assert runs.status(folder)["state"] == "running"
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    time.sleep(0.1)
    assert runs.status(folder)["state"] == "killed"
    studies.start("toy_pag", {}).finish()


def test_a_second_run_in_one_process_lets_go_of_the_first(home: Path) -> None:
    """As when somebody changes a parameter and runs the cell again."""
    first = studies.start("toy_pag", {"epochs": 3})
    second = studies.start("toy_pag", {"epochs": 4})
    assert [runs.status(run.folder)["state"] for run in (first, second)] == ["stopped", "running"]
    assert not runs._locked(first.folder)
    second.finish()


def test_the_projects_folder_is_the_same_wherever_one_stands(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("PAPERLIB_ROOT", tmp_path.name)
    assert files.root() == tmp_path
    monkeypatch.setenv("PAPERLIB_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="should hold notebooks/"):
        studies.resolve("toy_pag")


def test_a_killed_run_took_until_it_was_last_heard_of_whatever_the_clock_was_set_to(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    file, news = run.folder / "status.json", run.folder / progress.NAME
    assert runs.taken(runs.status(run.folder)) < 60
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e10)  # set while the run is at work
        assert runs.taken(runs.status(run.folder)) < 60
        runs._write_status(run, "running")
    runs.release(run.folder)
    begun = read_json(file)["clock"]
    for last, seconds in ((begun + 70, 70.0), (begun - 5, 0.0), ("x", 0.0), (1e300, 0.0), (None, 0.0)):
        write_json(file, {**read_json(file), "seconds": 0.0})
        write_json(news, {"words": "", "clock": last})
        assert runs.status(run.folder)["seconds"] == pytest.approx(seconds)
    news.write_bytes(b"\xff")
    assert runs.status(run.folder)["state"] == "killed"


def test_what_a_run_on_another_machine_does_cannot_be_told_from_here_and_it_can_be_gone_on_with(home: Path) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    file = run.folder / "status.json"
    write_json(file, {**read_json(file), "host": "another"})
    assert runs.status(run.folder)["state"] == "running"  # its lock is seen
    runs.release(run.folder)
    about = runs.status(run.folder)
    assert (about["state"], about["error"]) == ("unknown", "on another, cannot tell from here")
    again = studies.start("toy_pag", {"epochs": 3})
    assert runs.status(again.folder)["state"] == "running"
    again.finish()
    assert runs.status(again.folder)["state"] == "finished"


@pytest.mark.parametrize("content", [
    "{}", "[]", '{"state": "running"}', '{"state": "finished", "started": 0, "seconds": 1e999}',
    '{"state": "finished", "started": 0, "seconds": "1"}',
    f'{{"state": "killed", "started": 0, "seconds": {10**400}}}',
])  # fmt: skip
def test_a_damaged_status_is_refused_by_name(home: Path, content: str) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)
    (run.folder / "status.json").write_text(content)
    with pytest.raises(InputError, match=r"status\.json: not the status of a run; delete it"):
        runs.status(run.folder)


def test_text_stays_text_in_a_notebooks_settings(home: Path) -> None:
    """A file may be called 1e3; an empty name is no None."""
    run = studies.start("cifar_pag", {"settings": {"teacher_linf": "1e3", "teacher_l2": "", "train_images": "null"}})
    run.finish()
    assert (run.settings.teacher_linf, run.settings.teacher_l2, run.settings.train_images) == ("1e3", "", None)


def test_a_run_whose_folder_is_removed_meanwhile_is_not_finished(home: Path) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    shutil.rmtree(run.folder)
    (run.folder / "training").mkdir(parents=True)  # as results that are written afterwards make it
    with pytest.raises(InputError, match="was removed while the run was at work; start the run again"):
        run.finish()
    assert runs.status(run.folder) == {"state": "not started"}
    again = studies.start("toy_pag", {"epochs": 4})  # another run in the same process lets go of it
    again.finish()


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "sys.exit(1)"])
def test_a_finished_run_that_is_started_again_and_ended_early_is_finished_still(home: Path, ending: str) -> None:
    studies.start("toy_pag", {"epochs": 3}).finish()
    folder = runs.folder_of("toy_pag", "quick", studies.resolve("toy_pag", "quick", {"epochs": 3}))
    finished = runs.status(folder)
    script = f"""
import os, sys
from paperlib import studies
from paperlib.runs.run import status
run = studies.start('toy_pag', {{'epochs': 3}})
print(status(run.folder)['state'], flush=True)
{ending}
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PAPERLIB_ROOT": str(home)},
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.stdout == "running\n"
        assert runs.status(folder) == finished


def test_asking_for_a_status_writes_nothing(home: Path) -> None:
    """So a killed run reads as killed also in a folder that cannot be written."""
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)
    before = sorted((file, file.stat().st_mtime_ns) for file in run.folder.rglob("*"))
    assert runs.status(run.folder)["state"] == "killed"
    assert before == sorted((file, file.stat().st_mtime_ns) for file in run.folder.rglob("*"))
    (run.folder / ".lock").unlink()
    assert runs.status(run.folder)["state"] == "killed"
    assert not (run.folder / ".lock").exists()
