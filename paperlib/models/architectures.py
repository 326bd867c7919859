"""Architectures. Inputs are in [0,1] (the toy's are raw coordinates); normalisation is the model's first layer."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.models.batchnorm import BatchNorm2d
from paperlib.runs.files import InputError
from paperlib.runs.tensors import read_tensors, write_tensors

Statistics = tuple[float | Sequence[float], float | Sequence[float]]  # mean and deviation, of all channels or per channel

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # those of the published robust ResNet-50s
NORMALISATIONS: dict[str, Statistics | None] = {
    "none": None,  # RAAT's code
    "half": (0.5, 0.5),  # to [−1,1], PAG's code
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # timm and DINOv2
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),  # RAAT#'s code; the true deviations of CIFAR-10
}


class Normalise(nn.Module):
    """(x − mean) / deviation, per channel or for all channels; the identity for None."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, statistics: Statistics | None) -> None:
        super().__init__()
        self.identity = statistics is None
        mean, deviation = statistics or (0.0, 1.0)
        # Not persistent, because these are constants of the architecture and not weights.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.identity else (x - self.mean) / self.deviation


def toy_net(*hidden: int) -> nn.Sequential:
    """Build a network for 2-D points with ReLU layers of the given widths and two classes; PAG's (C.1) is toy_net(32)."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((2, *hidden), hidden, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 2))


def small_cnn(
    classes: int, channels: int = 3, width: int = 32, statistics: Statistics | None = None, stem_stride: int = 1
) -> nn.Sequential:
    """Build four 3×3 convolutions with batch norm, two of them strided, and mean pooling: fast on a laptop."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (channels, width, stem_stride),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
        (2 * width, 4 * width, 2),
    ):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), BatchNorm2d(outputs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(Normalise(statistics), *layers, *head)


def mlp(
    classes: int,
    channels: int = 1,
    width: int = 256,
    statistics: Statistics | None = None,
    stem_stride: int = 1,
    *,
    size: int,
) -> nn.Sequential:
    """Build three linear layers with ReLU between them, for images of `size` × `size`."""
    inputs = channels * size * size
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(Normalise(statistics), nn.Flatten(), *layers)


def cnn(
    classes: int, channels: int = 3, width: int = 32, statistics: Statistics | None = None, stem_stride: int = 1
) -> nn.Sequential:
    """Build convolutions, pooling and linear layers without batch norm, as in GFA's CNN, whose layout is not published."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, width, stem_stride), (width, 2 * width, 1), (2 * width, 4 * width, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU(), nn.MaxPool2d(2)]
    head = [
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * width, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    ]
    return nn.Sequential(Normalise(statistics), *layers, *head)


class ConvStem(nn.Module):
    """Strided 3×3 convolutions from images N×C×H×W to tokens of an 8×8 grid, in place of timm's patch embedding."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **unused: object) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, strides = in_chans, patch_size.bit_length() - 1
        for left in range(strides - 1, -1, -1):
            outputs = embed_dim >> left
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, embed_dim, 1))
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens N×64×width."""
        found: Tensor = self.layers(x).flatten(2).mT
        return found


def transformer(
    classes: int,
    channels: int = 3,
    width: int = 96,
    statistics: Statistics | None = None,
    stem_stride: int = 1,
    *,
    size: int,
    name: str = "vit",
    cell: int = 8,
    head: int = 32,
    fused: bool = False,
    **form: Any,
) -> nn.Sequential:
    """Build timm's vision transformer with a class token: by default 8×8 patches, six blocks, and heads of width 32.

    The image size must be a multiple of `cell` and the width a multiple of `head`, the width of a head: else InputError.
    `form` holds arguments of timm's class. Fused attention has no second derivative on a CPU.
    """
    from timm.models.vision_transformer import VisionTransformer  # imported here because it takes a second and a half

    convolutional = form.get("embed_layer") is ConvStem
    if size % cell or width % head or (convolutional and (size // 8).bit_count() != 1):
        sizes = "one of 8 by a power of two" if convolutional else f"one of {cell}"
        raise InputError(
            f"{name} of width {width} for images of {size} px: width must be a multiple of {head}, the size {sizes}"
        )
    form = {"patch_size": size // 8, "depth": 6, "mlp_ratio": 2, **form}
    body = VisionTransformer(
        img_size=size, in_chans=channels, num_classes=classes, embed_dim=width, num_heads=width // head, **form
    )
    for module in body.modules():
        if hasattr(module, "fused_attn") and not fused:
            module.fused_attn = False  # type: ignore[assignment]
    return nn.Sequential(OrderedDict(normalise=Normalise(statistics), vit=body))


def check_stem(name: str, stem_stride: int) -> None:
    """Raise InputError if the stride is not 1 and the architecture has no first convolution."""
    if stem_stride != 1 and name in SIZED:
        raise InputError(f"stem_stride = {stem_stride}: {name} has no first convolution to stride; use 1")


def check_width(name: str, width: int) -> None:
    """Raise InputError if the width of a transformer is no multiple of the width of its heads."""
    head = getattr(ARCHITECTURES[name], "keywords", {}).get("head", 32)
    if name in TRANSFORMERS and width % head:
        raise InputError(f"width = {width}: {name} has heads of {head}, so the width must be a multiple")


class Projection(nn.Conv2d):
    """A strided 1×1 convolution that drops the skipped pixels first and then convolves without stride.

    It computes the same function as `nn.Conv2d`. On processors with AVX2, oneDNN's strided 1×1 convolution of few channels
    in channels-last order writes past its memory in the weights' gradient: wrong numbers or a crash (its issue 6035).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut (He et al. 2015)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if inputs == outputs and stride == 1:
        return nn.Sequential()
    return nn.Sequential(Projection(inputs, outputs, stride), BatchNorm2d(outputs))


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions (He et al. 2016, "Identity Mappings").

    Where the shape changes, the shortcut is a projection of the activated input, as is usual.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = inputs == width and stride == 1
        self.shortcut = None if same else Projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        passed = x if self.shortcut is None else self.shortcut(active)
        found: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + passed
        return found


Block = type[BasicBlock] | type[Bottleneck] | type[PreActBlock]


def resnet(
    block: Block,
    depths: Sequence[int],
    classes: int,
    channels: int = 3,
    width: int = 64,
    statistics: Statistics | None = None,
    stem_stride: int = 1,
    *,
    stem: int | None = None,
) -> nn.Sequential:
    """Build a ResNet with the CIFAR stem (3×3, `stem` channels or else `width`, no pooling), for images of any size.

    The first group of blocks has `width` channels (times the block's expansion). Each further group has twice as many at
    half the resolution. With pre-activation blocks, batch norm and ReLU follow the last block instead of the stem.
    """
    stem = stem or width
    before = block is not PreActBlock
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        normalise=Normalise(statistics), conv1=nn.Conv2d(channels, stem, 3, stem_stride, 1, bias=False)
    )
    if before:
        layers |= {"bn1": BatchNorm2d(stem), "relu": nn.ReLU()}
    inputs = stem
    for stage, depth in enumerate(depths):
        blocks = []
        for position in range(depth):
            blocks.append(block(inputs, width * 2**stage, 2 if stage and position == 0 else 1))
            inputs = width * 2**stage * block.expansion
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    if not before:
        layers |= {"bn1": BatchNorm2d(inputs), "relu": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(inputs, classes)}
    return nn.Sequential(layers)


# At width 64 and ten classes: 11.17 M parameters, 555 M multiplications for an image of 32 px.
resnet18 = partial(resnet, BasicBlock, (2, 2, 2, 2))
# Eight Bottleneck blocks, so 26 layers, which RAAT's code calls ResNet-18; 13.96 M parameters, 727 M multiplications.
resnet18_bottleneck = partial(resnet, Bottleneck, (2, 2, 2, 2))
# He et al. 2016, "Identity Mappings", with two convolutions per block: 11.17 M parameters.
preact_resnet18 = partial(resnet, PreActBlock, (2, 2, 2, 2))


def wide_resnet28(
    classes: int, channels: int = 3, width: int = 160, statistics: Statistics | None = None, stem_stride: int = 1
) -> nn.Sequential:
    """Build WRN-28-k (Zagoruyko & Komodakis 2016) without dropout at width 16 k: 160 is WRN-28-10, 36.5 M parameters.

    Weights start as in RAAT's code: convolutions normal with variance 2 / (kernel area · outputs), the last bias zero.
    """
    model = resnet(PreActBlock, (4, 4, 4), classes, channels, width, statistics, stem_stride, stem=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


# Strided 3×3 convolutions in place of patches (Xiao et al. 2021) learn from fewer images. The stem has batch norm and is
# followed by three blocks: with six blocks or a layer norm, accuracy stays at chance for hundreds of steps.
vit_conv = partial(transformer, name="vit_conv", cell=16, embed_layer=ConvStem, depth=3)
# At width 768 this is ViT-B/14, which DAAT trains; attention is fused.
vit14 = partial(transformer, name="vit14", cell=14, head=64, patch_size=14, depth=12, mlp_ratio=4, fused=True)

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "vit": transformer,
    "vit_conv": vit_conv,
    "vit14": vit14,
    "small_cnn": small_cnn,
    "resnet18": resnet18,
    "resnet18_bottleneck": resnet18_bottleneck,
    "preact_resnet18": preact_resnet18,
    "wide_resnet28": wide_resnet28,
}


TRANSFORMERS = {"vit", "vit_conv", "vit14"}
SIZED = {"mlp", *TRANSFORMERS}  # architectures for images of one size


def check_channels(normalisation: str, channels: int) -> None:
    """Raise InputError if the normalisation has another number of channels than the images."""
    fits = {  # normalisations for any number of channels, or for the images' number
        name for name, one in NORMALISATIONS.items() if one is None or isinstance(one[0], float) or len(one[0]) == channels
    }
    if normalisation not in fits:
        allowed = " or ".join(name for name in NORMALISATIONS if name in fits)
        raise InputError(f"normalisation = {normalisation} is not for images of {channels} channels; choose {allowed}")


def build(
    name: str,
    *,
    classes: int,
    channels: int,
    width: int,
    seed: int,
    normalisation: str = "half",
    stem_stride: int = 1,
    size: int = 32,
) -> nn.Module:
    """Build the architecture `name` of ARCHITECTURES with weights drawn from `seed`; the global generator is unchanged.

    Only architectures in SIZED use `size`, and they accept images of that size only. Raises InputError for a normalisation
    of other channels, and for a width, size or stem that the architecture cannot have.
    """
    check_channels(normalisation, channels)
    check_stem(name, stem_stride)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sized = {"size": size} if name in SIZED else {}
        return ARCHITECTURES[name](classes, channels, width, NORMALISATIONS[normalisation], stem_stride, **sized)


def of_settings(settings: Any, *, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """Build the network with the architecture, width, normalisation and stem of a study's settings."""
    return build(
        settings.model, classes=classes, channels=channels, width=settings.width, seed=seed,
        normalisation=settings.normalisation, stem_stride=settings.stem_stride, size=size,
    )  # fmt: skip


def save_weights(model: nn.Module, path: Path, about: dict[str, Any] | None = None) -> None:
    """Write the model's weights as safetensors, with a description."""
    write_tensors(path, model.state_dict(), about or {})


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Fill `model` with the weights in `path`. Raises InputError if they belong to another architecture."""
    try:
        model.load_state_dict(read_tensors(path)[0])
    except RuntimeError as error:
        raise InputError(f"{path}: weights of another architecture ({str(error).splitlines()[1].strip()})") from error
    return model
