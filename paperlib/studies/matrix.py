"""The study `alignment_matrix`: every defence of the four papers, and combinations, under one protocol.

All defences share data, network, optimiser and epochs, and in training ε, number of steps and step size. The attack's loss
and start follow each defence; weights are settings. Further inputs are given: PAG's targets, a network trained by PGD-AT
for RIGD, a moving average of the weights for RAAT# and its baseline WA, and depth for DAAT. DAAT aligns the activations of
a layer if the network is convolutional, and it lacks the feature alignment, whose teacher must have tokens.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from paperlib.attacks import Attack, Loss, Norm, autoattack, fgsm, pgd, square, training_pgd, transfer
from paperlib.data import ImageSet, Splits, as_float, scenes
from paperlib.evaluation.settings import DepthSettings, Plan, planned
from paperlib.geometry import oracles, weighted_layers
from paperlib.geometry.oracles import Target
from paperlib.geometry.saliency import Attention, activated, attended
from paperlib.methods import Method
from paperlib.methods.baselines import MART, START, TRADES, AdversarialTraining, ConsistencyAT, GradientPenalty, Standard
from paperlib.methods.combined import Added, Combined
from paperlib.methods.daat import DAAT
from paperlib.methods.gfa import GFA, check_differentiable_twice
from paperlib.methods.pag import PAG, Targets, class_mean, distilled, one_image, sample, toward
from paperlib.methods.raat import RAAT, RAATSharp
from paperlib.methods.ramped import ramped
from paperlib.runs.files import InputError
from paperlib.runs.run import Run
from paperlib.runs.settings import Count, Images, Positive, Radius, Ramp
from paperlib.training import train_each

Name = Literal[
    "standard", "gradient_penalty", "one_image", "class_mean", "nearest_neighbor", "rigd", "first", "deep",
    "pgd_at", "trades", "mart", "cons_at", "raat", "raat_plus_plus", "wa", "raat_sharp", "daat",
]  # fmt: skip
# The term that a combination can add for each defence, by its name in the defence's loss.
TERMS: dict[Name, str] = {
    "gradient_penalty": "penalty", "one_image": "misalignment", "class_mean": "misalignment",
    "nearest_neighbor": "misalignment", "rigd": "misalignment", "first": "misalignment", "deep": "misalignment",
    "trades": "kl", "mart": "kl", "cons_at": "js", "raat": "dicar", "raat_plus_plus": "dicar", "daat": "align",
}  # fmt: skip
TWICE: set[Name] = {  # defences that differentiate the network twice
    "gradient_penalty", "one_image", "class_mean", "nearest_neighbor", "rigd", "first", "deep",
}  # fmt: skip
AVERAGED: set[Name] = {"wa", "raat_sharp"}  # defences whose result is a moving average of the weights
ON_ADVERSARIAL: set[Name] = {  # defences that train on adversarial images
    "pgd_at", "trades", "mart", "cons_at", "raat", "raat_plus_plus", "wa", "raat_sharp", "daat",
}  # fmt: skip
WEIGHTED = {*TERMS, "raat_sharp"}  # defences whose loss has a weight
BelowOne = Annotated[float, Field(ge=0, lt=1)]
GROUPS = {"combinations", "equal"}  # groups of trainings in `seeds_of`
DEEP = 3  # layers of DEEP


class Combination(BaseModel):
    """One defence's objective plus weighted terms of other defences."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    base: Name
    add: Annotated[dict[Name, Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def _own_terms(self) -> Self:
        if "raat_sharp" in self.add:
            raise ValueError("raat_sharp cannot be added: its DICAR needs the average of the weights, raat's does not")
        if without := set(self.add) - set(TERMS):
            raise ValueError(f"{', '.join(sorted(without))} has no term of its own; {', '.join(TERMS)} have")
        return self


class MatrixSettings(DepthSettings):
    """Settings of the common protocol."""

    defences: Annotated[list[Name], Field(min_length=2)]
    weights: dict[Name, Radius]  # weight of each defence's term: λ or β; for DEEP, β of every layer
    combinations: dict[str, Combination]  # combinations that no paper tried; add your own
    seeds_of: dict[str, Count]  # number of seeds by name, if fewer than all; "combinations" and "equal" name groups
    ramp: Ramp  # shares of the steps between which ε rises, in every training attack
    equal_compute: Name | None  # train all methods again with as many multiplications as this defence; None: do not
    classes_per_step: Count | None  # PAG's K; None: all classes, as in the paper
    neighbors: Annotated[int, Field(ge=2)]  # PAG's sample size of Nearest Neighbor, per class
    eta: Positive  # RAAT's η
    average: BelowOne  # decay per step of the weights' moving average in WA and RAAT#
    average_start: BelowOne  # share of the epochs before which RAAT# has no DICAR and the average is a copy
    oracle: Literal["exact", "learned"]  # depth oracle for DAAT and for the cosine of attention and edges
    task: Literal["ce", "mse"]  # GFA's task loss in training; the paper uses mse
    landscape_reach: Positive  # twice the L2 distance at which flatness is measured
    measure_images: Annotated[int, Field(ge=2)]  # test images on which alignment is measured
    queries: Count  # queries of Square
    minimum_images: Count  # images for the minimum-norm attacks
    minimum_steps: Count  # steps of C&W, EAD (in each search) and DDN
    pixel_images: Images  # images for the one-pixel attack
    pixel_generations: Count
    score_eps: Positive  # radius of the PAG score's targeted L2 attack
    score_steps: Count

    @model_validator(mode="after")
    def _complete(self) -> Self:
        trained = [*self.defences, *self.combinations]
        if missing := {"standard", "pgd_at"} - set(self.defences):
            raise ValueError(f"defences needs {' and '.join(sorted(missing))}, with which the others are compared")
        if double := set(self.defences) & set(self.combinations):
            raise ValueError(f"combinations: {', '.join(sorted(double))} is a defence's name; choose another")
        if extra := set(self.seeds_of) - set(trained) - GROUPS:
            raise ValueError(
                f"seeds_of has {', '.join(sorted(extra))}, which is not trained; choose from {', '.join(trained)}, "
                f"{' and '.join(sorted(GROUPS))}"
            )
        if self.equal_compute and self.equal_compute not in self.defences:
            raise ValueError(f"equal_compute = {self.equal_compute}, which is not among the defences")
        for name in self.combinations:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith("_equal") or name in {"judge", *GROUPS}:
                raise ValueError(
                    f"combinations: {name!r} should be a name of small letters, digits and _, not with _equal, nor one of "
                    f"{', '.join(sorted({'judge', *GROUPS}))}"
                )
        used = {*self.defences, *(one.base for one in self.combinations.values())}
        if bare := (used & WEIGHTED) - set(self.weights):
            raise ValueError(f"weights has none for {', '.join(sorted(bare))}")
        if used & AVERAGED and not self.average:
            raise ValueError("average = 0: wa and raat_sharp need the moving average of the weights (paper: 0.999)")
        if self.oracle == "exact" and self.data not in scenes.SETS:
            raise ValueError(f"oracle exact needs data with depth of their own, scenes; for {self.data} use learned")
        return self


STUDIES = {"alignment_matrix": MatrixSettings}


# Trainings ---------------------------------------------------------------------------------------------------------


def training_attack(settings: MatrixSettings, loss: Loss = "ce", start_deviation: float | None = None) -> Attack:
    """Return PGD from a random start with steps that sum to 2.5 ε."""
    return training_pgd(
        eps=settings.eps, norm=settings.norm, steps=settings.train_steps, loss=loss, start_deviation=start_deviation
    )


def target(settings: MatrixSettings, size: int) -> Target:
    """Return G for images of `size` pixels, from the scenes' exact depth or from a network that learnt depth on scenes."""
    learned = settings.oracle == "learned"
    depth = oracles.by_learned(size, settings.depth_images, settings.depth_epochs) if learned else oracles.exact
    return oracles.target(depth)


def attention(settings: MatrixSettings) -> Attention:
    """Return the function for A: a layer's activation attention, or a transformer's class-token attention."""
    return attended if settings.layer is None else partial(activated, layer=settings.layer)


def layers(model: nn.Module, data: ImageSet) -> tuple[str, ...]:
    """Return the first layers, at whose inputs gradient and features are compared."""
    return tuple(weighted_layers(model, as_float(data.images[:1]))[:DEEP])


def toward_means(train: ImageSet, device: torch.device) -> Targets:
    """Return g(x, t) of PAG's Class Mean, the target of the PAG cosine."""
    return partial(toward, class_mean(train, 1.0).to(device))


def methods(
    settings: MatrixSettings, train: ImageSet, model: nn.Module, device: torch.device, teacher: nn.Module
) -> dict[str, Method]:
    """Return the defences and the combinations, by name. RIGD distils the gradients of `teacher`.

    `model` is a network of the trained architecture, which gives the names of its layers.
    """
    seed, uniform = settings.seeds[0], training_attack(settings)
    normal = training_attack(settings, start_deviation=START)
    sharp = partial(RAATSharp, uniform, settings.average_start)
    names = layers(model, train)

    def pag(pool: Callable[[], torch.Tensor]) -> Callable[[float], Method]:
        return lambda weight: PAG(partial(toward, pool().to(device)), weight, settings.classes_per_step)

    def rigd(weight: float) -> Method:
        return PAG(partial(distilled, teacher.to(device), PAG.of), weight, settings.classes_per_step)

    def gfa(count: int) -> Callable[[float], Method]:
        return lambda weight: GFA(names[:count], (weight,) * count, task=settings.task)

    def daat(weight: float) -> Method:
        return DAAT(uniform, attention(settings), target(settings, int(train.images.shape[-1])), weight=weight)

    built: dict[Name, Callable[[float], Method]] = {
        "standard": lambda weight: Standard(),
        "gradient_penalty": GradientPenalty,
        "one_image": pag(partial(one_image, train, seed)),
        "class_mean": pag(partial(class_mean, train, 1.0)),
        "nearest_neighbor": pag(partial(sample, train, settings.neighbors, seed)),
        "rigd": rigd,
        "first": gfa(1),
        "deep": gfa(DEEP),
        "pgd_at": lambda weight: AdversarialTraining(uniform),
        "trades": lambda weight: TRADES(training_attack(settings, "kl", START), weight),
        "mart": lambda weight: MART(normal, weight),
        "cons_at": lambda weight: ConsistencyAT(uniform, weight),
        "raat": lambda weight: RAAT(uniform, settings.eta, weight),
        "raat_plus_plus": lambda weight: RAAT(normal, settings.eta, weight, boosted=True),
        "wa": lambda weight: sharp(bound=False, dicar=False),
        "raat_sharp": partial(sharp, settings.eta),
        "daat": daat,
    }

    def defence(name: Name) -> Method:
        return ramped(built[name](settings.weights.get(name, 0.0)), settings.ramp)  # type: ignore[no-any-return]

    def term(name: Name, weight: float) -> Added:
        return Added(name, ramped(_term_alone(built[name](1.0)), settings.ramp), TERMS[name], weight)

    mixed = {
        name: Combined(defence(one.base), tuple(term(other, weight) for other, weight in one.add.items()))
        for name, one in settings.combinations.items()
    }
    return {**{name: defence(name) for name in settings.defences}, **mixed}


def on_adversarial(settings: MatrixSettings) -> set[str]:
    """Return the defences and combinations that train on adversarial images."""
    mixed = {name for name, one in settings.combinations.items() if {one.base, *one.add} & ON_ADVERSARIAL}
    return mixed | (set(settings.defences) & ON_ADVERSARIAL)


def _term_alone(method: Method) -> Method:
    """Strip a method down to the term that a combination adds: RAAT loses its partition and MART's terms."""
    return RAAT(method.attack, bound=False) if isinstance(method, RAAT) else method


def train(
    run: Run[MatrixSettings], named: Mapping[str, Method], data: Splits, epochs: Mapping[str, int] | None = None
) -> dict[str, dict[int, nn.Module]]:
    """Train the methods with each seed, or with the number of seeds in `seeds_of`.

    For WA and RAAT# the result is the moving average of the weights. With `epochs` by name, the trainings are those of
    equal compute, named "<name>_equal".
    """
    settings = run.settings
    trained: dict[str, dict[int, nn.Module]] = {}
    for name, method in named.items():
        called = name if epochs is None else f"{name}_equal"
        changes: dict[str, Any] = {} if epochs is None else {"epochs": epochs[name]}
        mixed = settings.combinations.get(name)
        if (mixed.base if mixed else name) in AVERAGED:
            changes |= {"ema": settings.average, "ema_start": settings.average_start}
        seeds = _seeds(settings, name, epochs is not None)
        trained |= train_each(run, {called: method}, data, selection_attack(settings), seeds=seeds, **changes)
    return trained


def _seeds(settings: MatrixSettings, name: str, equal: bool) -> list[int]:
    """Return the seeds of a defence or combination, for its own training or that of `equal` compute."""
    groups = {"combinations"} if name in settings.combinations else set()
    counts = [count for of, count in settings.seeds_of.items() if of in {name, *groups, *(["equal"] if equal else [])}]
    return list(settings.seeds[: min(counts, default=None)])


# Attacks -----------------------------------------------------------------------------------------------------------


def selection_attack(settings: MatrixSettings) -> Attack:
    """Return the attack on validation images after each epoch: PGD-10, as in RAAT's study."""
    return partial(pgd, eps=settings.eps, norm=settings.norm, steps=10, step_size=settings.eps / 4)


def attacks(settings: MatrixSettings) -> dict[str, Attack]:
    """Return the attacks on all test images: FGSM, PGD-20, and PGD-20 on the margin."""
    eps, norm = settings.eps, settings.norm
    strong = partial(pgd, eps=eps, norm=norm, steps=20, step_size=eps / 8)
    return {"fgsm": partial(fgsm, eps=eps, norm=norm), "pgd_20": strong, "pgd_margin": partial(strong, loss="margin")}


def strong_attacks(settings: MatrixSettings, source: nn.Module) -> dict[str, Attack]:
    """Return the attacks on fewer images: noise, transfer and Square, which need no gradient, and AutoAttack."""
    eps, norm = settings.eps, settings.norm
    steps = partial(pgd, steps=20, step_size=eps / 8, loss="margin")
    return {
        "noise": partial(pgd, eps=eps, norm=norm, steps=0, step_size=0.0),
        "transfer": partial(transfer, source=source, attack=steps, eps=eps, norm=norm),
        "square": partial(square, eps=eps, norm=norm, queries=settings.queries),
        "autoattack": partial(autoattack, eps=eps, norm=norm),
    }


def other_attacks(settings: MatrixSettings) -> dict[str, Attack]:
    """Return further attacks on fewer images: PGD-100, and PGD-20 on the margin in the other norm."""
    other: Norm = "l2" if settings.norm == "linf" else "linf"
    radius = settings.eps_l2 if other == "l2" else settings.eps_linf
    return {
        "pgd_100": partial(pgd, eps=settings.eps, norm=settings.norm, steps=100, step_size=settings.eps / 8),
        f"pgd_{other}": partial(pgd, eps=radius, norm=other, steps=20, step_size=radius / 8, loss="margin"),
    }


def plan(settings: MatrixSettings) -> Plan:
    """Return the number of images for each measure and of seeds for each method."""
    few = [*strong_attacks(settings, nn.Identity()), *other_attacks(settings)]
    images = planned(settings, ["clean", *attacks(settings)], dict.fromkeys(few, settings.autoattack_images))
    names = [*settings.defences, *settings.combinations]
    seeds = {name: len(_seeds(settings, name, False)) for name in names}
    equal = {f"{name}_equal": len(_seeds(settings, name, True)) for name in names if settings.equal_compute}
    return Plan(images, {**seeds, **equal}, settings.data)


PLANS = {"alignment_matrix": plan}


def check(settings: MatrixSettings, model: nn.Module, data: ImageSet) -> None:
    """Raise InputError, before anything is trained, if the network or the images do not fit the settings."""
    if data.images.shape[1] != 3:
        raise InputError(
            f"data = {settings.data}: images of {data.images.shape[1]} channel; depth oracles need colour images"
        )
    with torch.no_grad():
        model.eval()
        attention(settings)(model, as_float(data.images[:2]))
    if len(names := layers(model, data)) < DEEP:
        raise InputError(f"model = {settings.model}: {len(names)} linear or convolutional layers; DEEP needs {DEEP}")
    used = {*settings.defences, *(name for one in settings.combinations.values() for name in (one.base, *one.add))}
    if used & TWICE:
        check_differentiable_twice(model, as_float(data.images[:2]), names, settings.task)
