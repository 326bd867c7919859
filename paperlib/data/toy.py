"""The 2-D toy of PAG, Appendix C.1: two classes on a straight line, three modes each."""

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
