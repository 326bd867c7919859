"""Comparison of defences: every measure of alignment of every model, and its correlation with robustness."""

import copy
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.attacks import Attack, Norm, ascent, evaluating, margin, project
from paperlib.data import ImageSet, Splits, as_float
from paperlib.evaluation import at_chance, in_percent
from paperlib.evaluation.intervals import rank_correlation
from paperlib.geometry import alignment_defect, all_classes, class_gradients, cosine
from paperlib.geometry.oracles import Target
from paperlib.geometry.saliency import Attention
from paperlib.methods import Batch, Method
from paperlib.methods.gfa import aligned
from paperlib.methods.pag import Targets
from paperlib.training import cost

# The paper and the meaning of each measure.
MEASURES = {
    "pag_cosine": "PAG: mean cosine of the class gradients with class mean − image",
    "pag_score": "PAG: share of targeted images whose class another model sees",
    "gfa_cosine_1": "GFA: cosine of the cross-entropy's gradient and the input, layer 1",
    "gfa_cosine_2": "GFA: layer 2",
    "gfa_cosine_3": "GFA: layer 3",
    "robust_alignment": "RAAT: minus the Robust Alignment defect of the probabilities",
    "edge_cosine": "DAAT: cosine of attention with the edges of depth",
    "flatness": "GFA: minus the rise of the margin across the image",
    "linearity": "minus the error of the first-order expansion of the loss (Qin et al. 2019)",
    "small_gradient": "minus the logarithm of the gradient's dual norm: what an attack gains to first order",
}
CONTROL = "small_gradient"  # the other measures should predict more than this one
DEFECT, MOVED = "robust_alignment_defect", "robust_alignment_moved"
FEW = 16  # images in a step whose multiplications are counted; ratios of counts do not depend on this number


def per_image(
    model: nn.Module, data: ImageSet, *, targets: Targets, layers: Sequence[str], attack: Attack,
    attention: Attention, target: Target, eps: float, norm: Norm,
) -> dict[str, Tensor]:  # fmt: skip
    """Compute all measures of MEASURES that exist per image, N each, larger for what should be more robust.

    "robust_alignment" is a ratio of means, so its two parts, DEFECT and MOVED, are returned.
    """
    images, labels = data.images, data.labels
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        log_probabilities = model(leaf).log_softmax(1)
        classes = all_classes(images, log_probabilities.shape[1])
        gradients = class_gradients(log_probabilities, leaf, classes)
    pairs = cosine(gradients.flatten(0, 1), targets(images, classes).flatten(0, 1))
    found = {"pag_cosine": pairs.view(classes.shape).mean(1)}
    cosines = aligned(model, images, labels, layers, "ce")[1].detach()  # the same loss for all models
    found |= {f"gfa_cosine_{number}": row for number, row in enumerate(cosines, 1)}
    with torch.no_grad():
        seen = attention(model, images)[1]
        wanted = target(images, data.depth, (seen.shape[1], seen.shape[2]))
        found["edge_cosine"] = F.cosine_similarity(seen.flatten(1), wanted.flatten(1))
    probe = nn.Sequential(model, nn.Softmax(1)).eval()
    defect, moved = alignment_defect(probe, images, attack(model, images, labels), ["1"], (0.25, 0.5, 0.75))
    found |= {DEFECT: defect[0], MOVED: moved[0]}
    return found | first_order(model, images, labels, eps=eps, norm=norm)


def first_order(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Norm, steps: int = 10
) -> dict[str, Tensor]:
    """Measure gradient and linearity of ℓ, the margin in units of the clean outputs' spread, at images N×…: N each.

    "small_gradient" is −log₁₀ of ε times the gradient's dual norm. "linearity" is −max |ℓ(x+δ) − ℓ(x) − δᵀ∇ℓ(x)| over the
    ball, by projected ascent of `steps` steps of ε / 4 (Qin et al. 2019, Equation 5).
    """
    leaf = images.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(leaf)
        scale = logits.detach().std(1).clamp_min(torch.finfo(logits.dtype).tiny)
        loss = margin(logits, labels) / scale
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    start, flat = loss.detach(), gradient.flatten(1)
    size = flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)

    def error(change: Tensor) -> Tensor:
        moved = margin(model(images + change), labels) / scale
        # Qin et al. 2019 (5): |ℓ(x + δ) − ℓ(x) − δᵀ∇ℓ(x)|
        found: Tensor = (moved - start - (change * gradient).flatten(1).sum(1)).abs()
        return found

    change = project(torch.empty_like(images).uniform_(-eps, eps), eps, norm)
    largest = torch.zeros_like(start)
    for _ in range(steps):
        change = change.detach().requires_grad_(True)
        with torch.enable_grad():
            found = error(change)
            (uphill,) = torch.autograd.grad(found.sum(), change)
        largest = largest.maximum(found.detach())
        change = project(change.detach() + eps / 4 * ascent(uphill, norm), eps, norm)
    with torch.no_grad():
        largest = largest.maximum(error(change))
    return {"small_gradient": -(eps * size).clamp_min(1e-12).log10(), "linearity": -largest}


# Measures as predictors of robustness ------------------------------------------------------------------------------


def by_model(table: pd.DataFrame) -> pd.DataFrame:
    """Pivot rows of `evaluate_each` or `by_image` to one row per model (method, seed) and one column per measure's mean.

    "robust_alignment" is minus the mean of DEFECT over that of MOVED, as in RAAT's own study.
    """
    models = table.pivot_table(index=["method", "seed"], columns="measure", values="value", sort=False)
    if DEFECT in models:
        models["robust_alignment"] = -models.pop(DEFECT) / models.pop(MOVED).where(lambda moved: moved > 0)
    return models


def learnt(models: pd.DataFrame, table: pd.DataFrame, classes: int) -> pd.DataFrame:
    """Select the `models` whose clean accuracy in `table`, from `evaluate_each`, is well above chance; see `at_chance`.

    A model near chance keeps most of its accuracy under any attack, whatever its gradients are.
    """
    clean = table[table["measure"] == "clean"].to_dict("records")
    known = {(row["method"], row["seed"]) for row in clean if not at_chance(row, classes)}
    return models[[model in known for model in models.index]]


def kinds(models: pd.DataFrame, adversarial: Collection[str]) -> dict[str, pd.DataFrame]:
    """Split the models into those that trained on adversarial images, whose methods `adversarial` names, and the others."""
    members = _methods(models).isin(adversarial)
    return {"trained on adversarial images": models[members], "trained on clean images": models[~members]}


def _methods(models: pd.DataFrame) -> pd.Index:
    """Return the method of each model, without the suffix of equal compute."""
    return models.index.get_level_values("method").astype(str).str.removesuffix("_equal")


def predictors(models: pd.DataFrame, robust: str) -> pd.DataFrame:
    """Return Spearman's ρ of each measure with the accuracy `robust` over models, alone and given CONTROL.

    `models` is from `by_model`; duplicate rows count once. Columns: (ρ | "beside the gradient", value | low | high), and
    models. The 95 % intervals resample methods, so all seeds and trainings of a method are drawn together.
    """
    rows, models = {}, models.drop_duplicates()
    groups = _methods(models).to_numpy()
    for name in [name for name in MEASURES if name in models]:
        known = models[[name, robust, CONTROL]].notna().all(axis=1).to_numpy()
        x, y, control = (models.loc[known, column].to_numpy() for column in (name, robust, CONTROL))
        alone = rank_correlation(x, y, groups[known])
        beside = (np.nan,) * 3 if name == CONTROL else rank_correlation(x, y, groups[known], control)
        rows[name] = [*alone, *beside, int(known.sum())]
    columns = pd.MultiIndex.from_tuples(
        [(part, end) for part in ("ρ", "beside the gradient") for end in ("value", "low", "high")] + [("models", "")]
    )
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def within(parts: Mapping[str, pd.DataFrame], robust: str) -> pd.DataFrame:
    """Return Spearman's ρ of each measure with `robust` among the models of each part from `kinds`.

    Any measure that separates the kinds follows robustness over all models, so ρ within a kind is the harder test.
    Columns: (kind, value | low | high | models), intervals as in `predictors`.
    """
    rows = {kind: predictors(models, robust) for kind, models in parts.items()}
    return pd.concat({kind: found["ρ"].assign(models=found["models", ""]) for kind, found in rows.items()}, axis=1)


# Costs -------------------------------------------------------------------------------------------------------------


def training_time(histories: pd.DataFrame) -> pd.DataFrame:
    """Return each method's minutes from `training.histories` (mean over seeds), their ratio to PGD-AT's, and epochs."""
    each = histories.groupby(["method", "seed"], sort=False).agg(minutes=("seconds", "first"), epochs=("epoch", "max"))
    table = each.groupby("method", sort=False).mean().rename_axis(None)
    table["minutes"] /= 60
    if "pgd_at" in table.index:
        table.insert(1, "× PGD-AT", table["minutes"] / table.loc["pgd_at", "minutes"])
    return table


def costs(methods: Mapping[str, Method], model: nn.Module, data: Splits, device: torch.device) -> pd.Series:
    """Return the cost of each defence's step in plain steps, by counting multiplications; see `cost`.

    The labels are the untrained model's own predictions, so that terms over correctly classified images (DICAR) have their
    largest cost.
    """
    few, probe = data.train[:FEW], copy.deepcopy(model).to(device)
    images = as_float(few.images).to(device)
    with evaluating(probe), torch.no_grad():
        labels = probe(images).argmax(1)
    depth = None if few.depth is None else few.depth.to(device)
    batch = Batch(images, labels, lambda images: images.clone(), depth)
    found = {}
    for name, method in methods.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found[name] = cost.relative(method, probe, batch)
    return pd.Series(found, name="cost")


def equal_epochs(found: pd.Series, reference: str, epochs: int) -> dict[str, int]:
    """Return the epochs of each defence, at least one, that cost as many multiplications as the reference's `epochs`."""
    return {name: max(1, round(epochs * found[reference] / one)) for name, one in found.items()}


def cost_table(found: pd.Series, epochs: int, equal: Mapping[str, int] | None) -> pd.DataFrame:
    """Return the cost of a step, the epochs, and their product in plain epochs; at equal compute as well if given."""
    table = pd.DataFrame({"cost": found, "epochs": epochs, "in plain epochs": found * epochs})
    if equal is not None:
        table["equal"] = pd.Series(equal)
        table["equal, in plain epochs"] = found * table["equal"]
    return table


def front(table: pd.DataFrame, robust: str, found: pd.Series) -> pd.DataFrame:
    """Return one row per method: clean and robust accuracy in percent with intervals, cost, and Pareto optimality.

    "front" is True if no other method is at least as good in all three and better in one. `table` is from `summary`; its
    methods without a cost in `found` are left out.
    """
    known = in_percent(table).pivot(index="method", columns="measure", values=["value", "low", "high"])
    ends = {f"{measure} {end}": known[end, measure] for measure in ("clean", robust) for end in ("value", "low", "high")}
    frame = pd.DataFrame(ends).rename(columns={"clean value": "clean", f"{robust} value": robust})
    frame = frame.reindex(found.index).dropna(subset=["clean", robust]).assign(cost=found)
    goals = np.column_stack([frame["clean"], frame[robust], -frame["cost"]])
    frame["front"] = [not ((goals >= one).all(1) & (goals > one).any(1)).any() for one in goals]
    return frame
