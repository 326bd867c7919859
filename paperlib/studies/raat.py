"""The study `raat_boundary`: settings, trainings, attacks and measures of RAAT's notebook."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from paperlib import models
from paperlib.attacks import Attack, Loss, autoattack, pgd, training_pgd
from paperlib.data import ImageSet, Splits, as_float, joined, subset
from paperlib.data.toy import load_wave
from paperlib.evaluation import by_image, measuring
from paperlib.evaluation.intervals import mean_interval
from paperlib.evaluation.settings import NormSettings, Plan, check_changes, planned
from paperlib.geometry import alignment_defect, decision_plane, fragmentation, nonlinear_layers
from paperlib.methods import Method
from paperlib.methods.baselines import MART, START, TRADES, AdversarialTraining, ConsistencyAT, Standard
from paperlib.methods.raat import RAAT, Form, PartitionedAT, RAATSharp, partition
from paperlib.methods.ramped import ramped
from paperlib.models.trained import Trained, each_model, first_models
from paperlib.runs.run import Run
from paperlib.runs.settings import MOST, Count, Positive, Radius, Ramp, Share
from paperlib.studies.measures import training_time
from paperlib.training import train_each

Name = Literal["pgd_at", "trades", "mart", "cons_at", "raat", "raat_plus_plus"]
Component = Literal["two_views", "bound", "dicar"]
Beside = Literal["pgd_at_long", "wa", "raat_sharp"]
Weighted = Literal["trades", "mart", "cons_at", "raat"]  # methods whose regularisation has the weight λ
Dimensions = Annotated[list[Annotated[int, Field(ge=2, le=MOST)]], AfterValidator(sorted)]
KAPPA = 50.0  # κ of the margin loss behind the C&W column
RATES = (0.25, 0.5, 0.75)  # μ of Definition 1 at which the defect is measured


class RaatSettings(NormSettings):
    """Settings of Sections 2.1, 3.1 and 5 and Appendix D."""

    form: Form  # the authors' code, or the equations as printed
    methods: Annotated[list[Name], Field(min_length=1)]
    seeds_of: dict[Name | Component | Beside, Count]  # number of seeds, if fewer than all; sweeps always have one
    ramp: Ramp  # shares of the steps between which ε rises in training; not in the paper
    train_steps: Count  # steps of the training attack, of size 2.5 ε / steps
    eta: Share  # η
    weight: Radius  # λ
    gamma: Positive  # γ
    select_on: Literal["validation", "test"]  # the paper selects checkpoints on the test images
    strong_images: Count  # images for PGD-100 and C&W
    long_epochs: Count | None  # epochs of PGD-AT with as many multiplications as RAAT; None: not trained
    study_epochs: Count | None  # epochs of Figure 2's trainings; None: not trained
    study_images: Count | None  # training images of Figure 2's trainings; None: all
    study_scales: list[Share]  # factors on the perturbation of one part; 1 is the baseline
    study_thresholds: list[Share]  # thresholds of the partition
    components: list[Component]  # Figure 5 (a), beside PGD-AT and RAAT
    etas: list[Share]  # Figure 5 (b), beside η
    weights: dict[Weighted, list[Radius]]  # Figure 5 (c): further λ of each method; {} for no sweep
    sharp: dict[str, Any]  # changed settings for RAAT# and WA (Section 5.3); {} for neither
    toy: dict[str, Any]  # changed settings for the points of Figures 1 and 3
    toy_points: Count
    toy_atypical: Share  # share of the toy's points with the label of the other side
    toy_atypicals: list[Share]  # further shares for which the toy is trained again; [] for none
    toy_hidden: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)]
    toy_eps: Radius
    gaussian_dimensions: Dimensions
    gaussian_spread: Positive  # σ / d^¼
    gaussian_eps: Positive
    gaussian_trials: Count

    @model_validator(mode="after")
    def _changes(self) -> Self:
        if alone := set(self.seeds_of) - {*self.methods, *self.components, *get_args(Beside)}:
            raise ValueError(f"seeds_of has {', '.join(sorted(alone))}, which is in neither methods nor components")
        if swept := set(self.weights) - set(self.methods):
            raise ValueError(f"weights has {', '.join(sorted(swept))}, which is not in methods")
        for name in ("sharp", "toy"):
            check_changes(self, name, getattr(self, name))
        cropped = {name: self.toy.get(name, getattr(self, name)) for name in ("crop_padding", "flip")}
        if any(cropped.values()):
            raise ValueError("toy: points cannot be cropped or flipped; set crop_padding: 0 and flip: false")
        if self.sharp and not self.sharp.get("ema", self.ema):
            raise ValueError("sharp has ema = 0: RAAT# needs the moving average of the weights (paper: 0.999)")
        if (self.components or self.etas or self.weights) and not {"pgd_at", "raat"} <= set(self.methods):
            raise ValueError("components, etas and weights need pgd_at and raat among the methods")
        return self


STUDIES = {"raat_boundary": RaatSettings}


# Attacks -----------------------------------------------------------------------------------------------------------


def training_attack(settings: RaatSettings, loss: Loss = "ce", start_deviation: float | None = None) -> Attack:
    """Return the training attack of D.1; ten steps have size ε / 4: 2/255 in L∞ and 32/255 in L2."""
    return training_pgd(
        eps=settings.eps, norm=settings.norm, steps=settings.train_steps, loss=loss, start_deviation=start_deviation,
        start_in_box=_in_box(settings) and start_deviation is None,
    )  # fmt: skip


def _in_box(settings: RaatSettings) -> bool:
    """Return whether PGD starts uniformly in the box, as the authors' library does in L2."""
    return settings.norm == "l2" and settings.form == "code"


def _evaluation(settings: RaatSettings, steps: int) -> Attack:
    attack = partial(pgd, eps=settings.eps, norm=settings.norm, steps=steps, step_size=settings.eps / 4)
    return partial(attack, start_in_box=True) if _in_box(settings) else attack


def attacks(settings: RaatSettings) -> dict[str, Attack]:
    """Return PGD-10 of Tables 1 and 5, with steps of ε / 4."""
    return {"pgd_10": _evaluation(settings, 10)}


def strong_attacks(settings: RaatSettings) -> dict[str, Attack]:
    """Return PGD-100, and PGD-100 on the margin with κ = 50 for the C&W column, whose attack is not released."""
    strong = _evaluation(settings, 100)
    return {"pgd_100": strong, "cw": partial(strong, loss="margin", kappa=KAPPA)}


def strongest(settings: RaatSettings) -> dict[str, Attack]:
    """Return AutoAttack "standard"."""
    return {"autoattack": partial(autoattack, eps=settings.eps, norm=settings.norm)}


# Trainings ---------------------------------------------------------------------------------------------------------


def splits(settings: RaatSettings, images: Splits) -> Splits:
    """Return the images, split for the selection of checkpoints.

    If checkpoints are selected on the test images, as in the paper, the validation part is added to the training part.
    Raises InputError if a normalisation does not fit the images.
    """
    for normalisation in (settings.normalisation, settings.sharp.get("normalisation", settings.normalisation)):
        models.check_channels(normalisation, images.train.images.shape[1])
    if settings.select_on == "validation":
        return images
    return Splits(joined(images.train, images.validation), images.test, images.test)


def fewer(images: Splits, count: int) -> Splits:
    """Return the images with `count` of the training part, equally many of each class."""
    return Splits(subset(images.train, count, 0), images.validation, images.test)


def _raat(settings: RaatSettings, **changes: Any) -> RAAT:
    constants = {"eta": settings.eta, "weight": settings.weight, "gamma": settings.gamma, "form": settings.form}
    return RAAT(**{"attack": training_attack(settings), **constants, **changes})


def methods(settings: RaatSettings) -> dict[str, Method]:
    """Return the methods of Table 1."""
    everything: dict[Name, Method] = {
        "pgd_at": AdversarialTraining(training_attack(settings)),
        **{name: _at_weight(settings, name) for name in get_args(Weighted)},
        "raat_plus_plus": _raat(settings, attack=training_attack(settings, start_deviation=START), boosted=True),
    }
    return _ramped(settings, {name: everything[name] for name in settings.methods})


def _ramped(settings: RaatSettings, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Return the methods with the settings' ramp of ε."""
    return {name: ramped(method, settings.ramp) for name, method in methods.items()}


def _at_weight(settings: RaatSettings, name: Weighted, weight: float | None = None) -> Method:
    """Return a method of Figure 5 (c) at the given λ, or at its own λ."""
    own = {} if weight is None else {"weight": weight}
    if name == "raat":
        return _raat(settings, **own)
    if name == "cons_at":
        return ConsistencyAT(training_attack(settings), **own)
    if name == "mart":
        return MART(training_attack(settings, start_deviation=START), **own)
    return TRADES(training_attack(settings, "kl", START), **own)


def long_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return PGD-AT for the comparison at equal compute."""
    named: dict[str, Method] = {"pgd_at_long": AdversarialTraining(training_attack(settings))}
    return _ramped(settings, named if settings.long_epochs else {})


def sharp_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return RAAT# and, in the same framework, WA: PGD-AT with averaged weights (Table 3)."""
    if not settings.sharp:
        return {}
    begin = settings.sharp.get("ema_start", settings.ema_start)
    sharp = partial(RAATSharp, training_attack(settings), begin, settings.eta, settings.weight, settings.gamma)
    return _ramped(settings, {"wa": sharp(bound=False, dicar=False), "raat_sharp": sharp()})


def study_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return Figure 2's methods: scaled perturbations of boundary samples and of other samples, and other thresholds.

    With another threshold, boundary samples are perturbed at the threshold. At the smallest scale, a control scales as many
    random samples instead of the boundary samples. Empty if `study_epochs` is None.
    """
    if settings.study_epochs is None:
        return {}
    smallest = sorted(settings.study_scales)[:1]
    build = partial(PartitionedAT, training_attack(settings), form=settings.form)
    named = {
        "study_full": build(settings.eta),
        **{f"study_boundary_{scale:g}": build(settings.eta, boundary=scale) for scale in settings.study_scales},
        **{f"study_random_{scale:g}": build(settings.eta, boundary=scale, control=True) for scale in smallest},
        **{f"study_other_{scale:g}": build(settings.eta, other=scale) for scale in settings.study_scales},
        **{
            f"study_threshold_{eta:g}": build(eta, boundary=eta)
            for eta in settings.study_thresholds
            if not (eta == settings.eta and eta in settings.study_scales)  # trained already
        },
    }
    return _ramped(settings, named)


def component_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return the components of Figure 5 (a). `two_views` is PGD-AT on two augmentations, without BOUND and DICAR."""
    components = {"two_views": {"bound": False, "dicar": False}, "bound": {"dicar": False}, "dicar": {"bound": False}}
    return _ramped(settings, {name: _raat(settings, **components[name]) for name in settings.components})


def sweep_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return RAAT at other η, and each method at other λ than its own (Figure 5 (b) and (c))."""
    etas: dict[str, Method] = {f"eta_{eta:g}": _raat(settings, eta=eta) for eta in settings.etas if eta != settings.eta}
    weights = {
        f"{name}_lambda_{weight:g}": _at_weight(settings, name, weight)
        for name, values in settings.weights.items()
        for weight in values
        if weight != _own_weight(settings, name)
    }
    return _ramped(settings, etas | weights)


def _own_weight(settings: RaatSettings, name: Weighted) -> float:
    return _at_weight(settings, name).weight  # type: ignore[attr-defined, no-any-return]


def study_milestones(settings: RaatSettings) -> list[float]:
    """Return the milestones of Figure 2's trainings, at the same epochs, not the same shares, as for the tables.

    With the paper's 100 epochs, the learning rate never drops, because the milestones are epochs 100 and 105.
    """
    return [one * settings.epochs / (settings.study_epochs or 1) for one in settings.milestones]


def toy_methods(settings: RaatSettings) -> dict[str, Method]:
    """Return clean training, PGD-AT and RAAT for Figures 1 and 3.

    The points have no augmentation, so RAAT's two views differ only by the attack's random start.
    """
    attack = training_pgd(eps=settings.toy_eps, norm="linf", steps=settings.train_steps)
    plain, aligned = AdversarialTraining(attack), _raat(settings, attack=attack)
    return {"toy_vanilla": Standard(), "toy_pgd_at": plain, "toy_raat": aligned}


def toy_sweep(run: Run[RaatSettings], trained: Trained) -> pd.DataFrame:
    """Train the toy at the other shares of mislabelled points. Columns: share (%), method, seed, regions, length.

    `trained` are the toy's models at `toy_atypical`, whose rows are included.
    """
    settings, methods = run.settings, toy_methods(run.settings)
    parts = [fragmentation_each(trained).assign(share=100 * settings.toy_atypical)]
    for share in settings.toy_atypicals:
        points = load_wave(settings.toy_points, share, seed=0)
        named = {f"{name}_atypical_{share:g}": method for name, method in methods.items()}
        models = train_each(run, named, points, **settings.toy)
        parts.append(fragmentation_each({name: models[key] for name, key in zip(methods, named, strict=True)}))
        parts[-1] = parts[-1].assign(share=100 * share)
    return pd.concat(parts, ignore_index=True)


def toy_points(sweep: pd.DataFrame) -> pd.DataFrame:
    """Return the points to draw of `toy_sweep`: panel, line (the method), "mislabelled points (%)", value, low, high.

    Values are means over seeds; low and high are the smallest and the largest seed.
    """
    panels = {"regions": "connected regions", "length": "length of the boundary"}
    rows = [
        (panel, method, share, part[name].mean(), part[name].min(), part[name].max())
        for name, panel in panels.items()
        for (method, share), part in sweep.groupby(["method", "share"])
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "mislabelled points (%)", "value", "low", "high"])


def toy_attacks(settings: RaatSettings) -> dict[str, Attack]:
    """Return PGD-20 within the toy's ε."""
    size = settings.toy_eps / 8
    return {"pgd_linf": partial(pgd, eps=settings.toy_eps, norm="linf", steps=20, step_size=size)}


def case(settings: RaatSettings) -> str:
    """Name the paper's table for a run by data set, architecture and norm; other data sets are compared with CIFAR-10's."""
    data = settings.data if settings.data in ("cifar100", "tiny_imagenet") else "cifar10"
    wide = settings.model == "wide_resnet28" and settings.norm == "linf"
    return f"{data}_{'wide' if wide else 'resnet18'}_{settings.norm}"


def plan(settings: RaatSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method."""
    fewer = dict.fromkeys(strong_attacks(settings), settings.strong_images)
    fewer |= dict.fromkeys([*strongest(settings), "mean", "nrr"], settings.autoattack_images)
    images = planned(settings, ["clean", *attacks(settings)], {**fewer, "defect": settings.audit_images})
    several = {**methods(settings), **component_methods(settings), **long_methods(settings), **sharp_methods(settings)}
    once = {**study_methods(settings), **sweep_methods(settings)}
    seeds = {name: len(settings.seeds[: settings.seeds_of.get(name)]) for name in several}  # type: ignore[call-overload]
    return Plan(images, {**seeds, **dict.fromkeys(once, 1)}, case(settings))


PLANS = {"raat_boundary": plan}


# Measures ----------------------------------------------------------------------------------------------------------


def study_curves(histories: pd.DataFrame, eta: float) -> pd.DataFrame:
    """Return Figure 2's curves from the training histories: columns panel, measure, line, epoch, value (%).

    Panels: boundary samples, other samples, threshold. The baseline is in each panel with other lines. The training of
    boundary samples at scale η is also the training with the threshold η.
    """
    panels = {"boundary": "boundary samples", "other": "other samples", "threshold": "threshold of the partition"}
    panels["random"] = panels["boundary"]
    parts = []
    for name, history in histories[histories["method"].str.startswith("study_")].groupby("method", sort=False):
        _, part, *value = name.split("_")
        words = {"full": "baseline", "threshold": "η = ", "random": "as many at random × "}
        line = words.get(part, "× ") + "".join(value)
        places = [(panel, line) for panel in dict.fromkeys(panels.values())] if part == "full" else [(panels[part], line)]
        if part == "boundary" and value == [f"{eta:g}"]:
            places.append((panels["threshold"], f"η = {eta:g}"))
        found = history.melt("epoch", ["clean_accuracy", "robust_accuracy"], "measure")
        parts += [found.assign(panel=panel, line=line) for panel, line in places]
    frame = pd.concat(parts) if parts else pd.DataFrame(columns=["epoch", "measure", "value", "panel", "line"])
    frame = frame.assign(measure=frame["measure"].str.replace("_", " "), value=100 * frame["value"])
    compared = frame.groupby("panel")["line"].transform("nunique") > 1
    frame = frame[compared] if compared.any() else frame
    return frame.sort_values("line", key=lambda lines: lines != "baseline", kind="stable")


def study_summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over the last three epochs of `study_curves`: one row per line, columns by panel and measure."""
    late = curves[curves["epoch"] > curves["epoch"].max() - 3]
    return late.pivot_table(index="line", columns=["panel", "measure"], values="value", sort=False)


def share_curves(histories: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of misclassified and boundary samples over training: columns panel, line, epoch, value (%)."""
    names = histories["method"].str.removeprefix("study_")
    lines = names.where(names != "full", "baseline").str.replace("_", " ")
    rows = histories.assign(line=lines).reindex(columns=["line", "epoch", "misclassified", "boundary"])
    return rows.melt(["line", "epoch"], var_name="panel").dropna().assign(value=lambda found: 100 * found["value"])


def shares_each(run: Run[RaatSettings], trained: Trained, data: ImageSet, chunk: int = 250) -> pd.DataFrame:
    """Compute the boundary partition of images under trained models, in both forms: shares (%), mean over seeds."""
    attack, settings, rows = training_attack(run.settings), run.settings, {}
    for method, members in trained.items():
        found: dict[tuple[str, str], list[float]] = {}
        for model in members.values():
            model.to(run.device)
            for form in ("code", "text"):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    parts = [
                        partition(model, as_float(images).to(run.device), labels.to(run.device), attack, settings.eta, form)
                        for images, labels in zip(data.images.split(chunk), data.labels.split(chunk), strict=True)
                    ]
                for part in ("misclassified", "boundary", "non_boundary"):
                    share = torch.cat([getattr(one, part) for one in parts]).float().mean()
                    found.setdefault((form, part.replace("_", "-")), []).append(100 * float(share))
        rows[method] = {key: float(np.mean(values)) for key, values in found.items()}
    return pd.DataFrame(rows).T


def defects_each(run: Run[RaatSettings], trained: Trained, data: ImageSet, chunk: int = 250) -> pd.DataFrame:
    """Compute the Robust Alignment defect (Definition 1) of every layer under PGD-10: one row per method, seed and layer.

    Columns: method, seed, layer (in order, "probabilities" last), moved (the mean of ‖h(x′) − h(x)‖ over images), value
    (the mean defect divided by `moved`, so free of the layer's scale; NaN if the layer does not move), and each (an array N
    whose mean is the value and whose spread is that of a ratio of means).
    """
    attack, rows = attacks(run.settings)["pgd_10"], []
    for method, seed, model in each_model(trained):
        probe = nn.Sequential(OrderedDict(model=model, probabilities=nn.Softmax(1)))
        layers = [f"model.{name}" for name in nonlinear_layers(model)] + ["probabilities"]
        found = []
        with measuring(run, seed, probe):
            for images, labels in zip(data.images.split(chunk), data.labels.split(chunk), strict=True):
                x = as_float(images).to(run.device)
                adversarial = attack(model, x, labels.to(run.device))
                found.append(torch.stack(alignment_defect(probe, x, adversarial, layers, RATES)).cpu().double())
        for layer, defect, moved in zip(layers, *torch.cat(found, 2).numpy(), strict=True):
            size = float(moved.mean())
            ratio = float(defect.mean()) / size if size else np.nan
            each = ratio + (defect - ratio * moved) / size if size else np.full(len(defect), np.nan)
            rows.append((method, seed, layer.removeprefix("model."), size, ratio, each))
    return pd.DataFrame(rows, columns=["method", "seed", "layer", "moved", "value", "each"])


def defect_points(defects: pd.DataFrame) -> pd.DataFrame:
    """Return the points to draw of the defects: panel (RAAT# and WA have other layers), line, layer, value, low, high.

    Values are means over seeds, with the interval ± 1.96 standard errors over images.
    """
    rows = []
    apart = ("wa", "raat_sharp")
    others = "the other networks" if defects["method"].isin(apart).any() else ""
    for (method, layer), part in defects.groupby(["method", "layer"], sort=False):
        each = np.mean(list(part["each"]), axis=0)
        panel = "RAAT# and WA" if method in apart else others
        rows.append((panel, method, layer, *mean_interval(each)))
    return pd.DataFrame(rows, columns=["panel", "line", "layer", "value", "low", "high"])


def defect_table(defects: pd.DataFrame) -> pd.DataFrame:
    """Return the defect and the change of the last layers, which all networks have; means over seeds."""
    last = defects[defects["layer"].isin(["linear", "probabilities"])]
    table = last.pivot_table(index="method", columns="layer", values=["value", "moved"], sort=False)
    return table.rename(columns={"value": "defect", "moved": "change"}, level=0)


def alignment_rows(defects: pd.DataFrame) -> pd.DataFrame:
    """Return the defect of the probabilities as rows for the claims, as from `evaluate_each`, with measure "defect".

    Rows whose output does not move are left out.
    """
    rows = defects[(defects["layer"] == "probabilities") & defects["value"].notna()]
    counts = [len(array) for array in rows["each"]]
    return rows[["method", "seed", "each"]].assign(measure="defect", n=counts, value=rows["value"])


def planes(trained: Trained, resolution: int = 400) -> dict[str, np.ndarray]:
    """Return z_1 − z_0 over [0,1]² of each method's first model on the toy."""
    return {method: decision_plane(model, resolution) for method, model in first_models(trained).items()}


def fragmentation_each(trained: Trained, resolution: int = 400) -> pd.DataFrame:
    """Count connected regions and measure the boundary of every toy model: columns method, seed, regions, length."""
    rows = [
        (method, seed, *fragmentation(decision_plane(model, resolution))) for method, seed, model in each_model(trained)
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "regions", "length"])


def fragmentation_table(fragments: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """Return mean and deviation over seeds of regions and length, beside the accuracies (%) on the toy's test points."""
    shape = fragments.groupby("method", sort=False)[["regions", "length"]].agg(["mean", "std"])
    scores = accuracies.assign(value=100 * accuracies["value"]).groupby(["method", "measure"], sort=False)
    wide = scores["value"].agg(["mean", "std"]).unstack("measure").swaplevel(axis=1).sort_index(axis=1)
    return shape.join(wide)


def ablation_points(settings: RaatSettings, summary: pd.DataFrame) -> pd.DataFrame:
    """Return Figure 5's points from the summary: columns panel, line, x, value, low, high in percent.

    Panels: components and η with one line per measure; λ with one line per method, under PGD-10 as in the paper.
    """
    components = {"pgd_at": "PGD-AT", "two_views": "2 views", "bound": "BOUND", "dicar": "DICAR", "raat": "RAAT"}
    etas = {"raat": settings.eta} | {f"eta_{eta:g}": eta for eta in settings.etas if eta != settings.eta}
    places: list[tuple[str, str, Any, str | None]]  # panel, method, place, line
    places = [("components", method, place, None) for method, place in components.items() if settings.components]
    places += [("η", method, place, None) for method, place in etas.items() if len(etas) > 1]
    for name, values in settings.weights.items():
        own = _own_weight(settings, name)
        places += [
            ("λ, under PGD-10", name if value == own else f"{name}_lambda_{value:g}", value, name)
            for value in sorted({own, *values})
        ]
    rows = [
        (panel, line or row.measure, place, 100 * row.mean, 100 * row.low, 100 * row.high)
        for panel, method, place, line in places
        for row in summary[summary["method"] == method].itertuples(index=False)
        if row.measure == "pgd_10" or (row.measure == "clean" and line is None)
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "x", "value", "low", "high"])


def costs(histories: pd.DataFrame, summary: pd.DataFrame, step: pd.Series) -> pd.DataFrame:
    """Return each method's minutes of training (mean over seeds), their ratio to PGD-AT's, epochs, and accuracies (%).

    "step" is the cost of a step in plain steps, from `measures.costs`, if it was counted.
    """
    table = training_time(histories).assign(step=step)
    for measure in dict.fromkeys(summary["measure"]):
        part = summary[summary["measure"] == measure].set_index("method")["mean"]
        if measure in ("clean", "pgd_10", "autoattack"):
            table[measure] = 100 * part
    return table


def time_points(cost: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy (%) against the training time from `costs`: panel, line, "training (minutes)", value, low, high."""
    rows = [
        (f"{panel} (%)", row.method, cost.loc[row.method, "minutes"], 100 * row.mean, 100 * row.low, 100 * row.high)
        for measure, panel in (("clean", "no attack"), ("pgd_10", "PGD-10"))
        for row in summary[summary["measure"] == measure].itertuples(index=False)
        if row.method in cost.index
    ]
    return pd.DataFrame(rows, columns=["panel", "line", "training (minutes)", "value", "low", "high"])


def tradeoffs(table: pd.DataFrame) -> pd.DataFrame:
    """Compute "mean" and "nrr" of clean accuracy and AutoAttack for each method and seed: rows as from `evaluate_each`.

    They are the mean of Table 2 and the Natural-Robustness Ratio 2 A R / (A + R) of Section 5.3, both on AutoAttack's
    images. `each` of the ratio is its linear expansion by image, whose mean is the ratio.
    """
    rows = []
    for (method, seed), part in table.groupby(["method", "seed"], sort=False):
        right = part.set_index("measure")["each"]
        a, r = right["clean"].astype(float), right["autoattack"].astype(float)
        clean, robust = float(a.mean()), float(r.mean())
        total = clean + robust
        # RAAT, Section 5.3: NRR = 2 A R / (A + R)
        ratio = 2 * clean * robust / total if total else 0.0
        slopes = (2 * robust**2 / total**2, 2 * clean**2 / total**2) if total else (0.0, 0.0)
        around = ratio + slopes[0] * (a - clean) + slopes[1] * (r - robust)
        rows += [(method, seed, "mean", (a + r) / 2), (method, seed, "nrr", around)]
    return by_image(rows)


def own_rows(settings: RaatSettings) -> dict[str, list[str]]:
    """Return, by table, the methods of a run to show beside the rows that the paper quotes from other papers.

    Table 2 is for CIFAR-100 and ResNet-18; Table 3 is for CIFAR-10, which stands for other data too, and CIFAR-100.
    """
    hundred = settings.data == "cifar100"
    tables = {"table2": ["raat"] if case(settings) == "cifar100_resnet18_linf" else []}
    if settings.norm == "linf" and settings.data != "tiny_imagenet":
        return {**tables, "table3_cifar100" if hundred else "table3": ["wa", "raat_sharp"]}
    return {**tables, "table3": []}


def unequal_compute(cost: pd.Series, settings: RaatSettings, tolerance: float = 0.1) -> dict[str, str]:
    """Return the long PGD-AT, with the reason, if its multiplications differ from RAAT's by more than `tolerance`.

    `cost` is the counted cost of a step of each method, from `measures.costs`; times would depend on the machine's load.
    """
    if settings.long_epochs is None or "raat" not in cost:
        return {}
    ratio = float(cost["pgd_at_long"] * settings.long_epochs / (cost["raat"] * settings.epochs))
    if abs(ratio - 1) <= tolerance:
        return {}
    equal = round(settings.long_epochs / ratio)
    return {"pgd_at_long": f"has {ratio:.2f} times RAAT's multiplications; long_epochs = {equal} has as many"}
