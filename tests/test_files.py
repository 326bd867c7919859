import errno
from pathlib import Path

import pytest
import torch

from paperlib.files import InputError, read_json, read_tensors, write_atomically, write_json, write_tensors


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.tensor(1.5), "empty": torch.empty(0, dtype=torch.bool)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"seed": 3})
    back, about = read_tensors(tmp_path / "x.safetensors")
    assert about == {"seed": 3}
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in tensors.items())


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
