"""What tells the depth of an image: the renderer, a small network that learnt it from rendered scenes, and the controls.

An oracle maps images N×3×H×W in [0,1], and their depth N×H×W where the data have one, to disparities N×H×W.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import depth
from paperlib.attacks import evaluating
from paperlib.data import as_float, scenes
from paperlib.data.cache import cached
from paperlib.files import InputError, root
from paperlib.progress import bar

Oracle = Callable[[Tensor, Tensor | None], Tensor]

RECIPE = 1  # raise it when the network or its training changes: an older one is then learned anew
SEED = 77_001  # of the scenes that the network learns from: no study's
WIDTH = 16  # channels of the network's first level
BATCH = 32
RATE = 2e-3


def exact(images: Tensor, distance: Tensor | None) -> Tensor:
    """The renderer's own depth, which no perturbation of the pixels moves. Raises InputError where the data have none."""
    if distance is None:
        raise InputError("these images have no depth of their own; the oracle must be a learned or a pretrained one")
    return depth.disparity(distance)


def luminance(images: Tensor, distance: Tensor | None) -> Tensor:
    """A control: the image's grey values in place of disparity, so that its edges are any the image has (by BT.601)."""
    weights = torch.tensor([0.299, 0.587, 0.114]).to(images)
    return (images * weights[:, None, None]).sum(1)


def another(oracle: Oracle) -> Oracle:
    """A control: the depth of the next image of the batch."""
    return lambda images, distance: oracle(images, distance).roll(-1, 0)


def target(
    oracle: Oracle, operator: depth.Operator = "sobel"
) -> Callable[[Tensor, Tensor | None, tuple[int, int]], Tensor]:
    """G by an oracle, as `daat.DAAT` takes it: a function of images, their depth and the attention's grid."""
    return lambda images, distance, grid: depth.saliency(oracle(images, distance), grid, operator)


def uniform_target(images: Tensor, distance: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """A control: the G that says nothing."""
    return depth.uniform(len(images), grid, images)


class DepthNet(nn.Module):
    """A small U-Net of three levels: images N×3×H×W in [0,1], sides multiples of 4, to disparities N×H×W."""

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
        self.register_buffer("mean", torch.tensor(0.0))  # of the disparities that it learns from, and their deviation
        self.register_buffer("deviation", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Disparities N×H×W."""
        one = self.first(x - 0.5)
        two = self.second(F.max_pool2d(one, 2))
        three = self.third(F.max_pool2d(two, 2))
        two = self.middle(torch.cat([two, F.interpolate(three, scale_factor=2.0, mode="nearest")], 1))
        one = self.last(torch.cat([one, F.interpolate(two, scale_factor=2.0, mode="nearest")], 1))
        return self.mean + self.deviation * self.out(one)[:, 0]


def learned(size: int, images: int = 3000, epochs: int = 8) -> DepthNet:
    """A `DepthNet` trained on as many scenes of `size` pixels, frozen; trained once and kept under data/oracles/.

    The loss is the L1 error of disparity plus that of its two gradients, which is what its edges are made of. Raises
    InputError for fewer images than a batch.
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


def _learn(network: DepthNet, size: int, images: int, epochs: int) -> None:
    data = scenes.load(images, size, SEED)
    assert data.depth is not None
    truth, steps = depth.disparity(data.depth), epochs * (images // BATCH)
    network.mean, network.deviation = truth.mean(), truth.std()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with bar(steps, "learning depth", "step") as progress:
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


def by_network(network: nn.Module) -> Oracle:
    """An oracle of a network that maps images to disparities; it sees the images that are given, perturbed or not.

    The network goes to the images' device and is used in evaluation mode.
    """

    def seen(images: Tensor, distance: Tensor | None) -> Tensor:
        with evaluating(network.to(images.device)):
            return network(images)

    return seen
