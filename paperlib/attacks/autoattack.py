"""AutoAttack "standard" (Croce & Hein 2020): four attacks, each on the images that no attack before it fooled.

The attacks and their settings are AutoAttack's. This implementation saves work: an image leaves an attack as soon as it is
fooled, all target classes run as one batch, and batch norm is folded into the layers before it.
"""

import sys
from types import FrameType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import libraries
from paperlib.attacks.folding import quick
from paperlib.attacks.libraries import LOGGER, SHORT, Part, parts_of
from paperlib.attacks.losses import are_probabilities, misclassified
from paperlib.attacks.parts import auto_pgd, fab, square
from paperlib.attacks.projected import Norm, frozen
from paperlib.data.images import check_pixels
from paperlib.runs.files import InputError

ROWS = 256  # most rows attacked together, to bound memory; a row is an image, or a pair of an image and a target class


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm,
    short: bool = False,
    only: Part | None = None,
    engine: Literal["own", "original"] = "own",
) -> Tensor:
    """Run AutoAttack "standard" (Croce & Hein 2020): APGD-CE, targeted APGD-DLR, targeted FAB and Square.

    Returns images that fool the model itself, or the clean image. With fewer than four classes the targeted ratio is
    undefined; untargeted APGD-CE, FAB and Square run instead. `only` runs one of the four parts. `short` omits FAB, targets
    three classes and gives Square 1,000 queries: for checks, not for reported numbers. `engine` "original" calls the
    authors' package or its repackage. `masking_flags` collects warnings about masked gradients: random outputs, gradients
    in the forward pass, probabilities instead of logits, zero gradients at the start of the targeted APGD, Square better
    than the attacks before it. Raises InputError for images outside [0,1], and for a targeted part with under four classes.
    """
    check_pixels(images)
    if engine == "original":
        return libraries.autoattack(model, images, labels, eps=eps, norm=norm, short=short, only=only)
    if engine != "own":
        raise InputError(f"engine = {engine!r}; there are own and original")
    with torch.no_grad():
        logits = model(images)
        names = parts_of(logits.shape[1], short, only)
        _warn_of_masking(model, images, labels, logits)
        attacked = quick(model, images)
        with frozen(attacked):
            return _cascade(model, attacked, images, labels, logits, names, short, eps, norm)


def _cascade(
    model: nn.Module,
    attacked: nn.Module,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    names: list[str],
    short: bool,
    eps: float,
    norm: Norm,
) -> Tensor:
    wrong = logits.scatter(1, labels[:, None], -torch.inf)  # target classes by rank on the clean image
    ranked = wrong.topk(min(SHORT["targets"] if short else 9, logits.shape[1] - 1)).indices
    found, left = images.clone(), (logits.argmax(1) == labels) & ~logits.isnan().any(1)

    def leave(members: Tensor, points: Tensor, fooled: Tensor) -> Tensor:
        """Keep one point of each image that fools the model itself. Return which rows' images are not fooled yet."""
        if fooled.any():
            rows = fooled.nonzero().squeeze(1)
            rows = rows[misclassified(model(points[rows]), labels[members[rows]])]
            if not len(rows):  # a model with random outputs may be right when asked again
                return left[members]
            left[members[rows]] = False
            same = members[rows][:, None] == members[rows]
            rows = rows[same.int().argmax(1) == torch.arange(len(rows), device=rows.device)]
            found[members[rows]] = points[rows]
        return left[members]

    def run(name: str, members: Tensor, targets: Tensor) -> int:
        rows = images[members], labels[members]
        if name == "square":
            queries, schedule = (SHORT["queries"],) * 2 if short else (5000, 10000)
            square(attacked, *rows, members, leave, eps=eps, norm=norm, queries=queries, schedule=schedule)
        elif name.startswith("fab"):
            fab(attacked, *rows, targets, members, leave, eps=eps, norm=norm)
        else:
            return auto_pgd(attacked, *rows, targets if name == "apgd-t" else None, members, leave, eps=eps, norm=norm)
        return 0

    for name in names:
        LOGGER.debug("running %s", name)
        members, before, zeros = left.nonzero().squeeze(1), left.clone(), 0
        targets = ranked[members]
        if name.endswith("-t"):  # sorted by target rank: images that an early target fools skip the later targets
            members, targets = members.repeat(targets.shape[1]), targets.T.reshape(-1, 1)
        for some, their in zip(members.split(ROWS), targets.split(ROWS), strict=True):
            if (going := left[some]).any():
                zeros += run(name, some[going], their[going])
        if zeros and name == "apgd-t":
            LOGGER.warning("there are %d starting points with zero gradient: attacks by gradients may be unreliable", zeros)
        fallen = float((before & ~left).float().mean())
        if name == "square" and len(names) > 1 and fallen > 0.002:
            LOGGER.warning(
                "Square has decreased the robust accuracy by %.2f%%: the attacks before it are weak", 100 * fallen
            )
    return found


# Signs of masked gradients, with AutoAttack's thresholds --------------------------------------------------------------


def _warn_of_masking(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> None:
    if _differentiates(model, images):
        LOGGER.warning("it seems to be a dynamic defense: the model computes gradients in its forward pass")
    outputs = torch.stack([logits, *(model(images) for _ in range(4))])
    right = (outputs.argmax(2) == labels).sum(1)
    directions = F.normalize(outputs, dim=2, eps=1e-10)
    spread = max(float((one - directions).norm(dim=2).max()) for one in directions)
    if spread > 1e-4 or (right != right[0]).any():
        LOGGER.warning("it seems to be a randomized defense: the model gives different outputs for one input")
    if are_probabilities(logits).all():
        LOGGER.warning("it seems that the output is a probability distribution instead of logits")


def _differentiates(model: nn.Module, images: Tensor) -> bool:
    """Return whether the model's forward pass calls PyTorch for a gradient; False, unchecked, under a profiler."""
    if sys.getprofile() is not None:  # Python has one at a time, and a profiler in C could not be set again
        return False
    seen = False

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        named = event == "call" and frame.f_code.co_name in ("grad", "backward", "_make_grads")
        seen = seen or (named and str(frame.f_globals.get("__name__")).startswith("torch"))

    sys.setprofile(watch)
    try:
        model(images)
    finally:
        sys.setprofile(None)
    return seen
