"""2-D toys: that of PAG, Appendix C.1, two classes on a straight line with three modes each; and two classes on either side
of a wave, for what RAAT's Figures 1 and 3 sketch."""

import numpy as np
import torch

from paperlib.data.images import ImageSet, Splits

CENTRES = ((-50.0, -10.0, 30.0), (-30.0, 10.0, 50.0))  # of the modes of each class, along x₁
PER_MODE = 1000  # training samples a mode
TEST = 600  # test samples, as many of each mode


def line(per_mode: int, seed: int) -> ImageSet:
    """Points (x₁, x₂) with x₁ ~ N(c, 1) and x₂ = 2·x₁ for each mode centre c: float32 N×2, mode after mode."""
    random = np.random.default_rng(seed)
    first = np.concatenate([random.normal(centre, 1.0, per_mode) for centres in CENTRES for centre in centres])
    labels = np.repeat(np.arange(len(CENTRES)), per_mode * len(CENTRES[0]))
    points = np.stack([first, 2 * first], axis=1).astype(np.float32)
    return ImageSet(torch.from_numpy(points), torch.from_numpy(labels), ("class 0", "class 1"))


def load(seed: int) -> Splits:
    """The paper's 6,000 training and 600 test samples, and 600 more to select on, all from the same distribution."""
    test = TEST // sum(map(len, CENTRES))
    streams = np.random.SeedSequence(seed).generate_state(3)
    return Splits(line(PER_MODE, int(streams[0])), line(test, int(streams[1])), line(test, int(streams[2])))


def wave_height(x1: np.ndarray) -> np.ndarray:
    """Where the true boundary of the wave toy lies, for x₁ in [0,1]."""
    return 0.5 + 0.2 * np.sin(2 * np.pi * x1)


def wave(count: int, seed: int, atypical: float = 0.0) -> ImageSet:
    """Points spread evenly over [0,1]², class 1 above the wave x₂ = 0.5 + 0.2 sin(2π x₁): float32 N×2.

    A share `atypical` of them has the label of the other side, as real training sets hold samples that look like another
    class: what a network has to bend its boundary for.
    """
    random = np.random.default_rng(seed)
    points = random.random((count, 2))
    above = points[:, 1] > wave_height(points[:, 0])
    labels = (above ^ (random.random(count) < atypical)).astype(np.int64)
    return ImageSet(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels), ("below", "above"))


def load_wave(count: int, atypical: float, seed: int) -> Splits:
    """`count` points to train on, a share of them atypical; 500 to select on and 2,000 to test on, none atypical."""
    streams = [int(stream) for stream in np.random.SeedSequence(seed).generate_state(3)]
    return Splits(wave(count, streams[0], atypical), wave(500, streams[1]), wave(2000, streams[2]))
