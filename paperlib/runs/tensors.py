"""Tensors in checksummed files, and hashes that identify models, data and settings.

The project stores JSON, text and safetensors. Nothing is pickled, so reading a file cannot run code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paperlib.runs.code import code_of
from paperlib.runs.files import InputError, write_atomically


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON description `about` as one safetensors file, atomically, with a checksum."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    header = {"about": text, "about_checksum": _of_text(text), "checksum": checksum(stored)}
    write_atomically(path, lambda temporary: save_file(stored, str(temporary), header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the description that `write_tensors` stored.

    Raises InputError naming the file when it is not such a file or its checksum does not match.
    """
    header, tensors = _read(path, whole=True)
    if header.get("checksum") != checksum(tensors):
        raise InputError(f"{path}: the checksum does not fit its content; delete it and start again")
    return tensors, _about(path, header)


def read_about(path: Path) -> dict[str, Any]:
    """Read the description that `write_tensors` stored. Raises InputError when the file is not readable."""
    return _about(path, _read(path, whole=False)[0])


def _read(path: Path, whole: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in (file.keys() if whole else [])}
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors raises its own types and, for malformed headers, others
        raise InputError(f"{path}: not a readable safetensors file ({error}); delete it and start again") from error


def _about(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    text = header.get("about", "")
    if header.get("about_checksum", _of_text(text)) != _of_text(text):  # files of older versions have none
        raise InputError(f"{path}: the checksum does not fit its description; delete it and start again")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: its description is not JSON ({error}); delete it and start again") from error


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def digest(model: nn.Module, data: Any, description: Any) -> str:
    """Return SHA-256 over a model, an image set's images, labels and depth, and a JSON `description`."""
    digest = hashlib.sha256()
    digest.update(json.dumps(description, sort_keys=True).encode())
    digest.update(_content(model).encode())
    streamed = not isinstance(data.images, Tensor)
    depth = getattr(data, "depth", None)
    for tensor in (*([] if streamed else [data.images]), data.labels, *([] if depth is None else [depth])):
        digest.update(_bytes(tensor))
    if streamed:
        digest.update(data.images.fingerprint.encode())
    return digest.hexdigest()


def _content(model: nn.Module) -> str:
    """Return SHA-256 over a model's modules, their plain attributes, weights and all buffers."""
    content = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        plain.pop("training", None)
        content.update(json.dumps([name, plain], sort_keys=True).encode())
    for name, tensor in (*model.state_dict().items(), *model.named_buffers()):  # also buffers that state_dict omits
        content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        content.update(_bytes(tensor))
    return content.hexdigest()


def described(value: Any, source: bool = True) -> Any:
    """Describe an attack, method or settings by content, in JSON that is the same in every process.

    Tensors and models are described by their values. Functions and dataclasses are described by name, held values and,
    with `source`, the hash of their code (`runs.code`). Raises TypeError for any other type.
    """
    within = partial(described, source=source)
    code = code_of if source else lambda _: ""
    if value is None or isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, partial):
        return [within(value.func), [within(one) for one in value.args], within(value.keywords)]
    if isinstance(value, nn.Module):
        return _content(value)
    if isinstance(value, Tensor):
        return checksum({"": value.detach().cpu().contiguous()})
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: within(getattr(value, field.name)) for field in fields(value)}
        return [type(value).__qualname__, code(type(value)), held]
    if isinstance(value, Mapping):
        return {str(key): within(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [within(one) for one in value]
    if isinstance(value, FunctionType):
        closed = [within(cell.cell_contents) for cell in value.__closure__ or ()]
        return [f"{value.__module__}.{value.__qualname__}", code(value), closed]
    if isinstance(value, type):
        return [f"{value.__module__}.{value.__qualname__}", code(value)]
    raise TypeError(f"{type(value).__name__} has no description by content")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
