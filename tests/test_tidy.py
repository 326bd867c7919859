"""What `paperlib clean` would remove, and what it must not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from paperlib import studies
from paperlib.runs import files, tidy
from paperlib.runs import run as runs
from paperlib.runs.files import InputError, read_json, write_json


def aged(path: Path, text: str = "x" * 2048) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - 2 * tidy.HOUR,) * 2)
    return path


def by_version(folder: Path, version: str) -> None:
    sessions = read_json(folder / "environment.json")
    write_json(folder / "environment.json", [{**sessions[-1], "paperlib": version}])


def test_only_what_no_run_goes_on_with_is_found(home: Path) -> None:
    finished = studies.start("toy_pag", {"epochs": 3})
    finished.finish()
    old = studies.start("toy_pag", {"epochs": 4})
    old.finish()
    by_version(old.folder, "0.1.0")
    ended = studies.start("toy_pag", {"epochs": 5})
    runs.release(ended.folder)  # as when its process is killed
    elsewhere = studies.start("toy_pag", {"epochs": 6})
    write_json(elsewhere.folder / "status.json", {**read_json(elsewhere.folder / "status.json"), "host": "another"})
    runs.release(elsewhere.folder)
    at_work = studies.start("toy_pag", {"epochs": 7})
    by_version(at_work.folder, "0.1.0")
    half = aged(finished.folder / ".weights.safetensors.0123abcd.tmp")
    aged(home / "data" / "mine" / ".photo.0123abcd.tmp")  # not the project's
    aged(home / "data" / "cache" / ".photo.tmp")
    cache = aged(home / "data" / "cache" / "images.safetensors")
    (finished.folder / ".new.0123abcd.tmp").write_text("")  # somebody may be writing it

    assert tidy.removable() == {half: "half-written"}
    others = [
        aged(finished.folder / name) for name in (".tmpa1B2c3", ".toy_pag.1234.ipynb")
    ]  # of safetensors, of papermill
    assert tidy.removable() == dict.fromkeys([half, *others], "half-written")
    for other in others:
        other.unlink()
    assert set(tidy.removable(unfinished=True)) == {half, ended.folder}
    assert set(tidy.removable(old=True)) == {half, old.folder}
    more = tidy.removable(unfinished=True, old=True, data=True)
    assert set(more) == {half, old.folder, ended.folder, cache}
    assert more[old.folder] == "finished, of version 0.1.0"
    assert more[ended.folder].startswith("killed")

    assert all(tidy.remove(path, reason) for path, reason in more.items())
    assert not any(path.exists() for path in more)
    assert (finished.folder / "status.json").exists()
    assert (home / "data" / "mine" / ".photo.0123abcd.tmp").exists()
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["toy_pag"]
    assert runs.status(at_work.folder)["state"] == "running"
    at_work.finish()


def test_what_was_left_half_removed_is_found_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)
    ((path, reason),) = tidy.removable(unfinished=True).items()

    def refused(*_: object) -> None:
        raise PermissionError("not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(tidy.shutil, "rmtree", refused)
        with pytest.raises(InputError, match="cannot be removed"):
            tidy.remove(path, reason)
    assert not run.folder.exists()
    monkeypatch.setattr(tidy, "HOUR", 0.0)
    ((left, reason),) = tidy.removable(unfinished=True).items()
    assert tidy.size_of(left) > 0
    assert tidy.remove(left, reason)
    assert tidy.removable(unfinished=True) == {}


def test_a_run_that_was_begun_meanwhile_is_not_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)
    ((path, reason),) = tidy.removable(unfinished=True).items()
    run = studies.start("toy_pag", {"epochs": 3})
    assert not tidy.remove(path, reason)
    with monkeypatch.context() as patch:  # between the look and the lock
        patch.setattr(tidy, "status", lambda folder: {"state": "killed"})
        patch.setattr(runs, "_locks", {})  # as another process sees it
        assert not tidy.remove(path, reason)
    run.finish()
    assert not tidy.remove(path, reason)  # it went on, and ended well, while the user was asked
    assert runs.status(run.folder)["state"] == "finished"


def test_a_cache_in_the_making_is_left_alone_and_what_cannot_go_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = aged(home / "data" / "scenes" / "32px.safetensors")
    ((path, reason),) = tidy.removable(data=True).items()
    with FileLock(file.with_suffix(".lock")):
        assert not tidy.remove(path, reason)
    assert tidy.remove(path, reason)
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    with pytest.raises(InputError, match="scenes: cannot be removed"):
        tidy.remove(home / "data" / "scenes", "")


def test_sizes_count_files_and_no_links(tmp_path: Path) -> None:
    aged(tmp_path / "a" / "b", "x" * 1000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    assert tidy.size_of(tmp_path / "a") == 1000
    assert tidy.size_of(tmp_path / "none") == 0


def test_temporary_folders_that_a_kill_left_are_found_and_those_in_use_are_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / "tmp"
    monkeypatch.setattr(files, "rooms", lambda: place)
    (place / "paperlib-others").mkdir(parents=True)
    killed = "with files.temporary() as room: os.kill(os.getpid(), 9)"
    script = "import os\nfrom pathlib import Path\nfrom paperlib.runs import files\n"
    script += f"files.rooms = lambda: Path({str(place)!r})\n"
    subprocess.run([sys.executable, "-c", script + killed], check=False)
    with files.temporary() as room:
        ((path, reason),) = tidy.removable().items()
        assert path.parent == room.parent == place
        assert path != room
        assert tidy.remove(path, reason)
        assert not tidy.remove(room, reason)
        assert room.exists()
    assert [one.name for one in place.iterdir()] == ["paperlib-others"]
