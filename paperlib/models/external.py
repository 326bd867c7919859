"""External networks: a user's own from a Python file, and published ones. Reading weights never runs code from the file."""

import importlib.util
import inspect
import sys
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from paperlib.data import ImageSet
from paperlib.models import CIFAR10_STATISTICS, NORMALISATIONS, Bottleneck, Normalise, resnet, resnet18
from paperlib.runs.files import InputError

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "ema")  # keys under which checkpoints hold weights
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # prefixes of names by DataParallel, torch.compile and wrappers


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by name from safetensors or from a checkpoint that PyTorch saved.

    A checkpoint is a pickle: it is read with `weights_only=True`, so no code in it can run. If it holds weights under one
    of HOLDERS, these are used, and the key is printed. Raises InputError if the file does not exist or is no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; it should hold weights, as safetensors or as PyTorch saves them")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises different types
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise InputError(
            f"{path}: cannot be read as weights alone ({reason}); it should be whole, and hold tensors by name"
        ) from error
    while isinstance(content, dict) and (holders := [name for name in HOLDERS if isinstance(content.get(name), dict)]):
        others = f"; there are also {', '.join(holders[1:])}" if holders[1:] else ""
        print(f"{path}: the weights are those under {holders[0]!r}{others}", flush=True)
        content = content[holders[0]]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: holds no weights by name; save the model's state_dict()")
    return {name: value for name, value in content.items() if isinstance(value, Tensor) or name.endswith("_extra_state")}


def from_file(spec: str, weights: Path | None = None) -> nn.Module:
    """Return the model that a function of a Python file builds, such as "my_model.py:build", with weights from a file.

    The file is run, as `import` does. Raises InputError if the file or function does not exist or fails, if the function
    needs arguments or returns no module, or if the weights do not fit the model.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not file or not path.suffix == ".py" or not path.exists():
        raise InputError(f"{spec}: should be FILE.py:FUNCTION, a file that is there and a function in it without arguments")
    module_spec = importlib.util.spec_from_file_location(f"_model_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # as `import` does, because dataclasses look up their module here
    with _beside(path):
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # the user's file may raise anything; argparse raises SystemExit
            raise InputError(f"{spec}: {path.name} cannot be imported ({_told(error, path)})") from error
        if not callable(build_it := getattr(module, name, None)):
            raise InputError(f"{spec}: {path.name} has no function {name!r}")
        try:
            inspect.signature(build_it).bind()
        except TypeError as error:
            raise InputError(f"{spec}: {name} should need no arguments ({error})") from error
        try:
            model = build_it()
        except (Exception, SystemExit) as error:  # the function may raise anything, too
            raise InputError(f"{spec}: {name} failed ({_told(error, path)})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}: {name} returned {type(model).__name__}; it should be a torch.nn.Module")
    if weights is not None:
        _fill(model, weights, spec)
    return model.eval()


def from_library(spec: str, weights: Path | None, classes: int) -> nn.Module:
    """Build a network by its name in timm or torchvision, such as "timm:resnet18", after ImageNet's normalisation.

    Weights come from a file; nothing is downloaded. Raises InputError if the library or name does not exist, or if the
    weights do not fit the model.
    """
    library, _, name = spec.partition(":")
    try:
        if library == "timm":
            import timm

            body = timm.create_model(name, pretrained=False, num_classes=classes)
        else:
            from torchvision.models import get_model

            body = get_model(name, weights=None, num_classes=classes)
    except Exception as error:  # an unknown name or a network without `num_classes` raise different types
        raise InputError(f"{spec}: {library} has no such network ({' '.join(str(error).split())[:200]})") from error
    if weights is None:
        raise InputError(f"{spec}: needs --weights, since networks by name are built untrained")
    _fill(body, weights, spec)
    return nn.Sequential(OrderedDict(normalise=Normalise(NORMALISATIONS["imagenet"]), body=body)).eval()


def _fill(model: nn.Module, path: Path, spec: str) -> None:
    """Read the weights in `path` into the model. Prefixes that all names share are removed, and a line says so."""
    stored, wanted = read_weights(path), set(model.state_dict())
    taken = ""
    while not wanted & set(stored) and (
        prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in stored)), None)
    ):
        stored = {name.removeprefix(prefix): value for name, value in stored.items()}
        taken += prefix
    if taken:
        print(f"{path}: the names of the weights are read without {taken!r}", flush=True)
    missing, unknown = sorted(wanted - set(stored)), sorted(set(stored) - wanted)
    if missing or unknown:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if names[3:] else ''})"
            for names, what in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        raise InputError(f"{path}: not the weights of {spec}: of {len(wanted)} names {' and '.join(parts)}")
    try:
        model.load_state_dict(stored)
    except RuntimeError as error:  # the message names the weights of another shape
        raise InputError(f"{path}: not the weights of {spec}: {' '.join(str(error).split())[:300]}") from error


def _told(error: BaseException, path: Path) -> str:
    """Return the error that a user's file raised, and the line in the file."""
    own = [place.lineno for place in traceback.extract_tb(error.__traceback__) if place.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f"; {path.name}, line {own[-1]}" if own else "")


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Allow imports from the file's folder within the context, as when the file runs as a script."""
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.path.remove(str(path.resolve().parent))


DINOV2 = {384: "vit_small", 768: "vit_base", 1024: "vit_large"}  # timm's names by width


def load_dinov2(path: Path, width: int, size: int) -> nn.Module:
    """Load DINOv2 (Oquab et al. 2023) with 14-pixel patches for images in [0,1] of `size` px, from timm's weights.

    Position embeddings are interpolated from the 518 px of the published weights. Raises InputError if there is no DINOv2
    of the width, or if `path` does not hold its weights. Reading the file runs no code from it.
    """
    import timm

    if width not in DINOV2:
        raise InputError(f"width = {width}: DINOv2 has {', '.join(map(str, DINOV2))}")
    if not path.exists():
        raise InputError(f"{path}: no such file; it should be timm's {DINOV2[width]}_patch14_dinov2.lvd142m")
    weights = read_weights(path)
    try:
        body = timm.create_model(
            f"{DINOV2[width]}_patch14_dinov2.lvd142m", pretrained=True, num_classes=0, img_size=size,
            pretrained_cfg_overlay={"state_dict": weights},
        )  # fmt: skip
        cast(dict[str, Any], body.pretrained_cfg).pop("state_dict", None)
    except Exception as error:  # wrong files raise different types
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{path}: not the weights of {DINOV2[width]}_patch14_dinov2.lvd142m ({reason})") from error
    return nn.Sequential(OrderedDict(normalise=Normalise(NORMALISATIONS["imagenet"]), vit=body))


def load_robust_resnet50(path: Path) -> nn.Module:
    """Load the robust CIFAR-10 ResNet-50 of Engstrom et al. (2019) from `path`, safetensors or the published `.pt`.

    Raises InputError as `read_weights` does, and if the file holds another model.
    """
    model = resnet(Bottleneck, (3, 4, 6, 3), 10, statistics=CIFAR10_STATISTICS)
    return _filled(model, path, "module.model.", "a ResNet-50 with a CIFAR stem")


def load_pag_resnet18(path: Path) -> nn.Module:
    """Load a ResNet-18 that the authors of PAG published for CIFAR-10 (github.com/royg27/PAG-ROB) from its `.pt`.

    The model normalises its inputs to [-1,1]. Raises InputError as `read_weights` does, and for another model.
    """
    model = resnet18(10, statistics=NORMALISATIONS["half"])
    return _filled(model, path, "module.", "PAG's ResNet-18")


def _filled(model: nn.Module, path: Path, prefix: str, what: str) -> nn.Module:
    """Fill the model with the weights in `path`, whose names may begin with `prefix`, and set evaluation mode."""
    stored = read_weights(path)
    prefix = prefix if any(name.startswith(prefix) for name in stored) else ""
    weights = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    wanted = model.state_dict()
    if missing := sorted(set(wanted) - set(weights)):
        raise InputError(f"{path}: not {what}, {missing[0]} is missing")
    if odd := [name for name in wanted if weights[name].shape != wanted[name].shape]:
        raise InputError(f"{path}: not {what}, {odd[0]} has shape {tuple(weights[odd[0]].shape)}")
    model.load_state_dict({name: weights[name] for name in wanted})
    return model.eval()


def load_target_gradients(folder: Path) -> tuple[ImageSet, Tensor]:
    """Load the target gradients that the authors of PAG published: training images, and g(x, y_t) M×10×3×32×32.

    `folder` holds c10_sbg_data.pt, float M×11×3×32×32 with each image in [-1,1] first, and c10_sbg_label.pt, M labels. The
    gradients stay on disk until they are used. Raises InputError if a file is missing or has another layout.
    """
    found = []
    for name in ("c10_sbg_data.pt", "c10_sbg_label.pt"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; target gradients are c10_sbg_data.pt and c10_sbg_label.pt")
        try:
            found.append(torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True))
        except Exception as error:  # the unpickler raises different types
            raise InputError(f"{folder / name}: cannot be read as a tensor ({str(error)[:150]})") from error
    data, labels = found
    if not isinstance(data, Tensor) or data.ndim != 5 or data.shape[1] != 11:
        raise InputError(f"{folder / 'c10_sbg_data.pt'}: should be a tensor M×11×3×32×32, has {_shape(data)}")
    if not isinstance(labels, Tensor) or labels.shape != data.shape[:1]:
        raise InputError(f"{folder / 'c10_sbg_label.pt'}: should be {len(data)} labels, has {_shape(labels)}")
    pixels = ((data[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels.long(), tuple(map(str, range(10)))), data[:, 1:]


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
