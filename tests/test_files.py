import errno
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from paperlib.methods.baselines import Standard
from paperlib.runs.files import InputError, read_json, write_atomically, write_json
from paperlib.runs.tensors import described, read_about, read_tensors, write_tensors


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.tensor(1.5), "empty": torch.empty(0, dtype=torch.bool)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"seed": 3})
    back, about = read_tensors(tmp_path / "x.safetensors")
    assert about == {"seed": 3}
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors.items())


def test_weights_have_the_mode_of_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
        (tmp_path / "y").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "y").stat().st_mode
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"old": 1})

    def half(path: Path) -> None:
        path.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, half)
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_text("some")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"x\.bin: the disk is full"):
        write_atomically(tmp_path / "x.bin", full)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.rand(100)}, {})
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    damaged = {"truncated": content[:-20], "flipped": content, "text": b"hello", "empty": b""}[damage]
    file.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_tensors(file)


def test_json_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"x\.json: not a JSON file"):
        read_json(tmp_path / "x.json")


def closed_over(value: object) -> Callable[[], object]:
    return lambda: value


def test_descriptions_are_by_content() -> None:
    def same(one: object, other: object) -> bool:
        return described(one) == described(other)

    assert same(partial(closed_over, 1, value=torch.ones(2)), partial(closed_over, 1, value=torch.ones(2)))
    assert not same(partial(closed_over, 1), partial(closed_over, 2))
    assert not same(torch.ones(2), torch.zeros(2))
    assert not same(torch.ones(2), torch.ones(1, 2))
    assert same(closed_over(3), closed_over(3))
    assert not same(closed_over(3), closed_over(4))
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert not same(closed_over(model), closed_over(other))
    other.load_state_dict(model.state_dict())
    assert same(closed_over(model), closed_over(other))
    assert not same(Standard("ce"), Standard("mse"))
    assert not same(Standard(), [Standard()])
    assert json.dumps(described({"a": (1, None, Standard())}))
    with pytest.raises(TypeError, match="object has no description"):
        described([object()])


def test_numbers_that_are_not_finite_are_stored_as_words(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.inf, (-math.inf, 0.5)], "b": {"c": math.nan}, "d": True})
    stored = read_json(tmp_path / "a.json")
    assert stored["a"] == ["inf", ["-inf", 0.5]]
    assert stored["d"] is True
    assert math.isnan(float(stored["b"]["c"]))


def test_a_changed_description_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"x": torch.ones(2)}, {"epoch": 3})
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b'epoch\\": 3', b'epoch\\": 4'))
    assert (tmp_path / "a").read_bytes() != content
    for read in (read_tensors, read_about):
        with pytest.raises(InputError, match="does not fit its description"):
            read(tmp_path / "a")
