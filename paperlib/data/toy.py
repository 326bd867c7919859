"""Toy data in 2-D, two classes each: three modes per class on a line (PAG, Appendix C.1), and the two sides of a wave
(after RAAT, Figures 1 and 3)."""

import numpy as np
import torch

from paperlib.data.images import ImageSet, Splits

CENTRES = ((-50.0, -10.0, 30.0), (-30.0, 10.0, 50.0))  # of each class's modes, along x₁
PER_MODE = 1000  # training samples per mode
TEST = 600  # test samples of all modes


def line(per_mode: int, seed: int) -> ImageSet:
    """Draw points (x₁, x₂) with x₁ ~ N(c, 1) and x₂ = 2·x₁ for each mode centre c: float32 N×2, mode after mode."""
    random = np.random.default_rng(seed)
    first = np.concatenate([random.normal(centre, 1.0, per_mode) for centres in CENTRES for centre in centres])
    labels = np.repeat(np.arange(len(CENTRES)), per_mode * len(CENTRES[0]))
    points = np.stack([first, 2 * first], axis=1).astype(np.float32)
    return ImageSet(torch.from_numpy(points), torch.from_numpy(labels), ("class 0", "class 1"))


def load(seed: int) -> Splits:
    """Draw the paper's 6,000 training and 600 test samples, and 600 validation samples, from one distribution."""
    test = TEST // sum(map(len, CENTRES))
    streams = np.random.SeedSequence(seed).generate_state(3)
    return Splits(line(PER_MODE, int(streams[0])), line(test, int(streams[1])), line(test, int(streams[2])))


def wave_height(x1: np.ndarray) -> np.ndarray:
    """Return x₂ of the wave toy's true boundary, for x₁ in [0,1]."""
    return 0.5 + 0.2 * np.sin(2 * np.pi * x1)


def wave(count: int, seed: int, atypical: float = 0.0) -> ImageSet:
    """Draw points uniformly from [0,1]², class 1 above the wave x₂ = 0.5 + 0.2 sin(2π x₁): float32 N×2.

    A share `atypical` has the label of the other side, like samples of real training sets that resemble another class. A
    network must bend its boundary for them.
    """
    random = np.random.default_rng(seed)
    points = random.random((count, 2))
    above = points[:, 1] > wave_height(points[:, 0])
    labels = (above ^ (random.random(count) < atypical)).astype(np.int64)
    return ImageSet(torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels), ("below", "above"))


def load_wave(count: int, atypical: float, seed: int) -> Splits:
    """Draw `count` training points, a share of them `atypical`; 500 validation and 2,000 test points, none atypical."""
    streams = [int(stream) for stream in np.random.SeedSequence(seed).generate_state(3)]
    return Splits(wave(count, streams[0], atypical), wave(500, streams[1]), wave(2000, streams[2]))
