"""What `paperlib clean` would remove, and what it must not."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from paperlib import studies
from paperlib.runs import run as runs
from paperlib.runs import tidy
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
    at_work = studies.start("toy_pag", {"epochs": 6})
    by_version(at_work.folder, "0.1.0")
    half = aged(finished.folder / ".weights.safetensors.0123abcd.tmp")
    aged(home / "data" / "mine" / ".photo.0123abcd.tmp")  # not the project's
    aged(home / "data" / "cache" / ".photo.tmp")
    cache = aged(home / "data" / "cache" / "images.safetensors")
    aged(at_work.folder / ".toy_pag.123.ipynb")
    (finished.folder / ".new.0123abcd.tmp").write_text("")  # somebody may be writing it

    (found,) = tidy.removable()
    assert (found.path, found.size) == (half, 2048)
    more = tidy.removable(unfinished=True, old=True, data=True)
    assert {one.path for one in more} == {half, old.folder, ended.folder, cache}
    assert "by version 0.1.0" in next(one.reason for one in more if one.path == old.folder)
    assert next(one.reason for one in more if one.path == ended.folder).startswith("killed")

    assert tidy.remove(more) == []
    assert not any(one.path.exists() for one in more)
    assert (finished.folder / "status.json").exists()
    assert (home / "data" / "mine" / ".photo.0123abcd.tmp").exists()
    assert not list(home.glob("runs/.removed/*"))
    assert runs.status(at_work.folder)["state"] == "running"
    at_work.finish()


def test_what_was_left_half_removed_is_found_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    runs.release(run.folder)

    def refused(*_: object) -> None:
        raise PermissionError("not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(tidy.shutil, "rmtree", refused)
        with pytest.raises(InputError, match="cannot be removed"):
            tidy.remove(tidy.removable(unfinished=True))
    assert not run.folder.exists()
    (left,) = tidy.removable()
    assert left.reason == "half-removed"
    assert left.size > 0
    assert tidy.remove([left]) == []
    assert tidy.removable() == []


def test_a_run_that_was_begun_meanwhile_is_not_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = studies.start("toy_pag", {"epochs": 3})
    held = dict(runs._locks)
    monkeypatch.setattr(runs, "_locks", {})  # as another process sees it
    listed = tidy.Removable(run.folder, "killed; the same command would go on with it", 0)
    assert tidy.remove([listed]) == [listed]
    monkeypatch.setattr(runs, "_locks", held)
    run.finish()
    assert tidy.remove([listed]) == [listed]  # it went on, and ended well, while the user was asked
    assert runs.status(run.folder)["state"] == "finished"


def test_a_cache_in_the_making_is_left_alone_and_what_cannot_go_is_named(home: Path) -> None:
    file = aged(home / "data" / "scenes" / "32px.safetensors")
    (listed,) = tidy.removable(data=True)
    with FileLock(file.with_suffix(".lock")):
        assert tidy.remove([listed]) == [listed]
    assert tidy.remove([listed]) == []
    folder = home / "data" / "scenes" / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="folder: cannot be removed"):
        tidy.remove([tidy.Removable(folder, "", 0)])


def test_sizes_count_files_and_no_links(tmp_path: Path) -> None:
    aged(tmp_path / "a" / "b", "x" * 1000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b")
    assert tidy.size_of(tmp_path / "a") == 1000
    assert tidy.size_of(tmp_path / "none") == 0
    assert (tidy.megabytes(3 * 2**19), tidy.megabytes(5 * 2**29)) == ("1.5 MB", "2.5 GB")
