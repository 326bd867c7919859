"""Is the robustness real? Signs of masked gradients (Athalye et al. 2018; Carlini et al. 2019), each with a figure.

The thresholds come from small convolutional networks on which they were set: a sign is a reason to look closer with
AutoAttack and an attack made for the defence, not a proof.
"""

from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.attacks import Norm, evaluating, fgsm, pgd
from paperlib.data import ImageSet, as_float
from paperlib.files import read_json, write_json
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
    images, labels = as_float(data.images).to(device), data.labels.to(device)

    def strong(steps: int, **more: object) -> partial[Tensor]:
        return partial(pgd, eps=eps, norm=norm, steps=steps, step_size=2.5 * eps / max(steps, 1), **more)  # type: ignore[arg-type]

    def fooled(adversarial: Tensor) -> Tensor:
        with torch.no_grad():
            return model(adversarial).argmax(1) != labels

    def margin_gradient(points: Tensor) -> Tensor:
        leaf = points.detach().requires_grad_(True)
        top = model(leaf).topk(2, dim=1).values
        return torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), leaf)[0]

    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        with torch.no_grad():
            again = float((model(images) - model(images)).abs().max())
        noise = strong(0)(model, images, labels)  # the random start alone
        here, there = margin_gradient(images), margin_gradient(noise)
        pgd20 = fooled(strong(20, best=True)(model, images, labels))
        pgd100 = fooled(strong(100, best=True)(model, images, labels))
        by_margin = fooled(strong(20, best=True, loss="margin")(model, images, labels))
        white = pgd20 | pgd100 | by_margin
        blind = fooled(noise)
        if transfer_from is not None:
            with evaluating(transfer_from):
                blind |= fooled(strong(20)(transfer_from, images, labels))
        single = fooled(fgsm(model, images, labels, eps=eps, norm=norm))
        huge = partial(pgd, eps=0.5, norm="linf", steps=100, step_size=0.02, best=True)
        left = ~white  # fooled within eps is fooled within more
        survive = torch.zeros_like(white)
        if left.any():
            adversarial = huge(model, images[left], labels[left])
            with torch.no_grad():
                survive[left] = model(adversarial).argmax(1) == labels[left]
    figures = [
        again,
        share(here.flatten(1).abs().amax(1) == 0),
        1 - float(cosine(here, there, eps=1e-30).mean()),
        share(single & ~white),
        share(pgd100) - share(pgd20),
        share(by_margin) - share(pgd20),
        share(blind & ~white),
        share(survive),
    ]
    rows = [
        (name, figure, threshold, not figure <= threshold, meaning)
        for (name, (threshold, meaning)), figure in zip(CHECKS.items(), figures, strict=True)
    ]
    return pd.DataFrame(rows, columns=["check", "figure", "threshold", "sign", "meaning"])


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
        file = run.folder / "audit" / f"{method}.json"
        if not file.exists():
            model = next(iter(members.values())).to(run.device)
            table = audit(model, data, eps=eps, norm=norm, transfer_from=transfer_from)
            write_json(file, table.to_dict("records"))
        rows = read_json(file)
        columns[method] = [f"{row['figure']:.3g}{' !' if row['sign'] else ''}" for row in rows]
    thresholds = [str(threshold) for threshold, _ in CHECKS.values()]
    return pd.DataFrame({"threshold": thresholds, **columns}, index=pd.Index(list(CHECKS), name="check"))
