"""Is the robustness real? Signs of masked gradients (Athalye et al. 2018; Carlini et al. 2019), each with a figure.

The thresholds come from small convolutional networks on which they were set: a sign is a reason to look closer with
AutoAttack and an attack made for the defence, not a proof.
"""

from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.attacks import Attack, Norm, evaluating, fgsm, pgd
from paperlib.data import ImageSet, as_float, chunk_size
from paperlib.evaluation import CHUNK
from paperlib.files import digest, read_json, write_json
from paperlib.geometry import cosine
from paperlib.runs import Run

# name: (threshold, what a figure beyond it says)
CHECKS = {
    "logits differ between calls": (1e-4, "the model answers at random: attacks need to average over many answers"),
    "images without gradient": (0.0, "gradient attacks are blind where the gradient is zero"),
    "gradient turns within the ball": (0.5, "the gradient at the image says little about the ball around it"),
    "FGSM fools, PGD does not": (0.01, "many small steps should find whatever one large step finds"),
    "PGD-100 gains over PGD-20": (0.03, "PGD-20 has not converged: report more steps"),
    "margin loss gains over cross-entropy": (0.05, "cross-entropy saturates: report the margin loss or AutoAttack"),
    "only noise or transfer fools": (0.01, "attacks without gradients should not find what gradients miss"),
    "accuracy at eps = 0.5": (0.01, "any image can become any other there: attacks fail, the model does not hold"),
}


def audit(
    model: nn.Module, data: ImageSet, *, eps: float, norm: Norm, transfer_from: nn.Module | None = None, seed: int = 0
) -> pd.DataFrame:
    """Every check of CHECKS on a classifier of images in [0,1]: rows with columns figure, threshold, sign, meaning.

    Figures are shares of the images, but for the first (a largest difference) and the third (1 − the mean cosine of the
    margin gradients at the image and at a random point of the ball; above the threshold, the gradient turns by more than
    60 degrees). `transfer_from` is another model whose adversarial images are tried.
    """
    device = next(model.parameters()).device
    parts = []
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        together = chunk_size(data.images, CHUNK)
        for start in range(0, len(data), together):
            images = as_float(data.images[start : start + together]).to(device)
            labels = data.labels[start : start + together].to(device)
            parts.append(_tried(model, images, labels, eps, norm, transfer_from))
    tried = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    white = tried["pgd20"] | tried["pgd100"] | tried["margin"]
    figures = [
        float(tried["difference"].max()),
        share(tried["flat"]),
        1 - float(tried["cosine"].mean()),
        share(tried["single"] & ~white),
        share(tried["pgd100"]) - share(tried["pgd20"]),
        share(tried["margin"]) - share(tried["pgd20"]),
        share(tried["blind"] & ~white),
        share(tried["survived"] & ~white),
    ]
    rows = [
        (name, figure, threshold, not figure <= threshold, meaning)
        for (name, (threshold, meaning)), figure in zip(CHECKS.items(), figures, strict=True)
    ]
    return pd.DataFrame(rows, columns=["check", "figure", "threshold", "sign", "meaning"])


def _tried(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: Norm, transfer_from: nn.Module | None
) -> dict[str, Tensor]:
    """What becomes of each image, by name: N each. Fooled by which attack, and how its gradient lies."""

    def strong(steps: int, **more: object) -> Attack:
        return partial(pgd, eps=eps, norm=norm, steps=steps, step_size=2.5 * eps / max(steps, 1), **more)  # type: ignore[arg-type]

    def fooled(adversarial: Tensor) -> Tensor:
        with torch.no_grad():
            return model(adversarial).argmax(1) != labels

    def margin_gradient(points: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_(True)
        top = model(leaf).topk(2, dim=1).values
        return torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), leaf)[0]

    with torch.no_grad():
        difference = (model(images) - model(images)).abs().amax(1)
    noise = strong(0)(model, images, labels)  # the random start alone
    here, there = margin_gradient(images), margin_gradient(noise)
    blind = fooled(noise)
    if transfer_from is not None:
        with evaluating(transfer_from):
            blind |= fooled(strong(20)(transfer_from, images, labels))
    huge = partial(pgd, eps=0.5, norm="linf", steps=100, step_size=0.02, best=True)
    return {
        "difference": difference,
        "flat": here.flatten(1).abs().amax(1) == 0,
        "cosine": cosine(here, there, eps=1e-30),
        "single": fooled(fgsm(model, images, labels, eps=eps, norm=norm)),
        "pgd20": fooled(strong(20, best=True)(model, images, labels)),
        "pgd100": fooled(strong(100, best=True)(model, images, labels)),
        "margin": fooled(strong(20, best=True, loss="margin")(model, images, labels)),
        "blind": blind,
        "survived": ~fooled(huge(model, images, labels)),
    }


def share(members: Tensor) -> float:
    """The share of images that are members."""
    return float(members.float().mean())


def audit_each(
    run: Run,
    trained: Mapping[str, Mapping[int, nn.Module]],
    data: ImageSet,
    *,
    eps: float,
    norm: Norm,
    transfer_from: nn.Module,
) -> pd.DataFrame:
    """The audit of each method's first model, figures by check and method; signs of masking are marked with a !."""
    columns = {}
    for method, members in trained.items():
        file, model = run.folder / "audit" / f"{method}.json", next(iter(members.values())).to(run.device)
        recipe = digest(model, data, [eps, norm, digest(transfer_from, data, None)])
        if not file.exists() or read_json(file)["recipe"] != recipe:
            found = audit(model, data, eps=eps, norm=norm, transfer_from=transfer_from)
            write_json(file, {"recipe": recipe, "checks": found.to_dict("records")})
        rows = read_json(file)["checks"]
        columns[method] = [f"{row['figure']:.3g}{' !' if row['sign'] else ''}" for row in rows]
    thresholds = [str(threshold) for threshold, _ in CHECKS.values()]
    return pd.DataFrame({"threshold": thresholds, **columns}, index=pd.Index(list(CHECKS), name="check"))


def signs(run: Run) -> dict[str, list[str]]:
    """The checks of the run's audit that speak against each method; none for most."""
    return {
        file.stem: [row["check"] for row in read_json(file)["checks"] if row["sign"]]
        for file in sorted((run.folder / "audit").glob("*.json"))
    }
