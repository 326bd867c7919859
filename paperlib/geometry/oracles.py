"""Depth oracles: the renderer, a small network trained on rendered scenes, a published network; and controls.

An oracle maps images N×3×H×W in [0,1], and their depth N×H×W if the data have depth, to disparities N×H×W.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from paperlib.attacks import evaluating
from paperlib.data import as_float, chunk_size, scenes
from paperlib.data.cache import cached
from paperlib.geometry import depth
from paperlib.runs.files import InputError, root
from paperlib.runs.progress import Bar

Oracle = Callable[[Tensor, Tensor | None], Tensor]
Target = Callable[[Tensor, Tensor | None, tuple[int, int]], Tensor]  # images, their depth and a grid to G, N×h×w
Kind = Literal["disparity", "distance"]  # a network's output: inverse depth (MiDaS), or metres (NYU, KITTI)

NEAREST = 0.1  # lower bound of predictions in metres: the disparity of a distance near zero would outweigh all edges
NO_TRANSFORMERS = "a pretrained depth oracle needs transformers: pip install -e '.[depth]' in the project's folder"
RECIPE = 1  # raise this when the network or its training changes, so that stored networks are trained again
SEED = 77_001  # seed of the training scenes, which no study uses
WIDTH = 16  # channels of the network's first level
BATCH = 32
CHUNK = 100  # most images in one forward pass
RATE = 2e-3


def exact(images: Tensor, distance: Tensor | None) -> Tensor:
    """Return the renderer's exact disparity, which no perturbation changes. Raises InputError if the data have no depth."""
    if distance is None:
        raise InputError("these images have no depth of their own; the oracle must be a learned or a pretrained one")
    return depth.disparity(distance)


def luminance(images: Tensor, distance: Tensor | None) -> Tensor:
    """Return grey values (BT.601) in place of disparity, so that the edges are those of the image: a control."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(1)


def another(oracle: Oracle) -> Oracle:
    """Make an oracle that returns the depth of the next image in the batch: a control."""
    return lambda images, distance: oracle(images, distance).roll(-1, 0)


def target(oracle: Oracle, operator: depth.Operator = "sobel") -> Target:
    """Make G from an oracle, as `daat.DAAT` expects it: a function of images, their depth and the attention's grid."""
    return lambda images, distance, grid: depth.saliency(oracle(images, distance), grid, operator)


def uniform_target(images: Tensor, distance: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """Return a uniform G: a control."""
    return depth.uniform(len(images), grid, images)


class DepthNet(nn.Module):
    """A small U-Net of three levels: images N×3×H×W in [0,1] to disparities N×H×W; H and W are multiples of 4."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()

        def level(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inputs, outputs):
                layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            return nn.Sequential(*layers)

        self.first, self.second, self.third = level(3, width), level(width, 2 * width), level(2 * width, 4 * width)
        self.middle, self.last = level(6 * width, 2 * width), level(3 * width, width)
        self.out = nn.Conv2d(width, 1, 1)
        self.register_buffer("mean", torch.tensor(0.0))  # mean and standard deviation of the training disparities
        self.register_buffer("deviation", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return disparities N×H×W."""
        one = self.first(x - 0.5)
        two = self.second(F.max_pool2d(one, 2))
        three = self.third(F.max_pool2d(two, 2))
        two = self.middle(torch.cat([two, F.interpolate(three, scale_factor=2.0, mode="nearest")], 1))
        one = self.last(torch.cat([one, F.interpolate(two, scale_factor=2.0, mode="nearest")], 1))
        found: Tensor = self.mean + self.deviation * self.out(one)[:, 0]
        return found


def learned(size: int, images: int = 3000, epochs: int = 8) -> DepthNet:
    """Return a frozen `DepthNet`, trained once on `images` scenes of `size` pixels and stored under data/oracles/.

    The loss is the L1 error of the disparity and of its horizontal and vertical differences, which determine the edges.
    Raises InputError for fewer images than a batch.
    """
    if images < BATCH:
        raise InputError(f"images = {images}: depth is learned from {BATCH} or more")
    network = DepthNet()

    def build() -> tuple[dict[str, Tensor], dict[str, int]]:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            fresh = DepthNet()
            _learn(fresh, size, images, epochs)
        return fresh.state_dict(), {}

    file = root() / "data" / "oracles" / f"depth-{size}px-{images}-{epochs}.safetensors"
    source = {"recipe": RECIPE, "scenes": scenes.RECIPE, "images": images, "epochs": epochs, "size": size}
    network.load_state_dict(cached(file, source, build)[0])
    return network.eval().requires_grad_(False)


def by_learned(size: int, images: int, epochs: int) -> Oracle:
    """Return `learned` as an oracle for images of `size` pixels, trained at 64 pixels, or at 32 for smaller images."""
    return by_network(learned(32 if size < 64 else 64, images, epochs))


def _learn(network: DepthNet, size: int, images: int, epochs: int) -> None:
    data = scenes.load(images, size, SEED)
    assert data.depth is not None
    truth, steps = depth.disparity(data.depth), epochs * (images // BATCH)
    network.mean, network.deviation = truth.mean(), truth.std()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with Bar(steps, "learning depth", "step") as progress:
        for _ in range(steps):
            members = torch.randint(0, images, (BATCH,))
            found, wanted = (maps / network.deviation for maps in (network(as_float(data.images[members])), truth[members]))
            loss = F.l1_loss(found, wanted)
            for axis in (1, 2):
                loss = loss + F.l1_loss(found.diff(dim=axis), wanted.diff(dim=axis))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            progress.update(1)


class PretrainedDepth(nn.Module):
    """A published DPT network and its processor: images N×3×H×W in [0,1] to disparities N×H×W."""

    def __init__(self, network: nn.Module, processor: Any, kind: Kind) -> None:
        super().__init__()
        self.network, self.processor, self.kind = network, processor, kind

    def forward(self, x: Tensor) -> Tensor:
        """Return disparities N×H×W."""
        pixels = self.processor(images=255 * x, return_tensors="pt").pixel_values.to(x)
        found = self.network(pixel_values=pixels).predicted_depth
        height, width = x.shape[-2:]
        # The output has 16 pixels for each input patch of 14, and includes the padding.
        padded = tuple(_padded(side, self.processor) for side in (height, width))
        found = F.interpolate(found[:, None].float(), padded, mode="bilinear", align_corners=False)[:, 0]
        top, left = ((whole - side) // 2 for whole, side in zip(padded, (height, width), strict=True))
        found = found[:, top : top + height, left : left + width]
        return found if self.kind == "disparity" else 1 / found.clamp_min(NEAREST)


def _padded(side: int, processor: Any) -> int:
    divisor = processor.size_divisor if processor.do_pad and not processor.do_resize else None
    return math.ceil(side / divisor) * divisor if divisor else side


@functools.cache
def pretrained(name: str, kind: Kind) -> PretrainedDepth:
    """Load a frozen DPT depth network with its processor, from a folder or the hub (e.g. facebook/dpt-dinov2-base-nyu).

    `kind` is the quantity it predicts; networks trained on NYU or KITTI predict metres. Raises InputError if transformers
    is not installed, or if the folder or the name has no such network.
    """
    try:
        from transformers import DPTForDepthEstimation, DPTImageProcessor
    except ImportError:
        raise InputError(NO_TRANSFORMERS) from None
    folder = Path(name).expanduser()
    local = folder.is_dir() or name.startswith((".", "/", "~"))
    for part in ("config.json", "preprocessor_config.json", "model.safetensors") if local else ():
        if not (folder / part).is_file():
            raise InputError(
                f"{folder}: no {part} there; it should hold config.json, preprocessor_config.json and model.safetensors"
            )
    try:
        given: dict[str, Any] = {"local_files_only": True} if local else {}
        processor = DPTImageProcessor.from_pretrained(name, **given)
        given |= {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = DPTForDepthEstimation.from_pretrained(name, **given)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).split(". ")[0]
        where = "" if local else "; where there is no network, give the folder that it was downloaded to"
        raise InputError(f"{name}: no depth network could be read ({reason}){where}") from None
    network, told = loaded
    absent = [*told["missing_keys"], *told["mismatched_keys"]]  # transformers leaves these weights random
    if absent:
        first = min(map(str, absent))
        raise InputError(f"{name}: holds no DPT depth network: {len(absent)} of its weights are missing, {first} for one")
    return PretrainedDepth(network, processor, kind).eval().requires_grad_(False)


def untrained_dpt() -> PretrainedDepth:
    """Build the architecture of facebook/dpt-dinov2-base-nyu with 112 million random weights, to measure its cost."""
    try:
        from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation, DPTImageProcessor
    except ImportError:
        raise InputError(NO_TRANSFORMERS) from None
    stages = [f"stage{number}" for number in (3, 6, 9, 12)]
    backbone = Dinov2Config(  # type: ignore[call-arg]
        out_features=stages, reshape_hidden_states=False, image_size=518, patch_size=14
    )
    network = DPTForDepthEstimation(
        DPTConfig(
            backbone_config=backbone, hidden_size=768, neck_hidden_sizes=[96, 192, 384, 768], fusion_hidden_size=256,
            neck_ignore_stages=[], reassemble_factors=[4, 2, 1, 0.5], add_projection=True,
        )
    )  # fmt: skip
    processor = DPTImageProcessor(do_resize=False, do_rescale=False, do_pad=True, size_divisor=14)
    return PretrainedDepth(network, processor, "distance").eval().requires_grad_(False)


def by_network(network: nn.Module) -> Oracle:
    """Make an oracle of a network that maps images to disparities. Adversarial images are not cleaned before it.

    The network is moved to the images' device and used in evaluation mode, in chunks that fit into memory.
    """

    def seen(images: Tensor, distance: Tensor | None) -> Tensor:
        with evaluating(network.to(images.device)):
            return torch.cat([network(part) for part in images.split(chunk_size(images, CHUNK))])

    return seen
