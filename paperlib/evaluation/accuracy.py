"""Accuracy under every attack, image by image, with the checks that an honest evaluation passes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.attacks import BOX, Attack, evaluating, frozen, lengths, masking_flags, misclassified, quick
from paperlib.attacks.minimum_norm import distances
from paperlib.data import ImageSet, as_float, shareable
from paperlib.data.images import places
from paperlib.evaluation.intervals import binomial_interval
from paperlib.models.trained import Trained, each_model
from paperlib.runs import deadline, distributed
from paperlib.runs.files import root
from paperlib.runs.progress import Bar, live
from paperlib.runs.run import Run, recall
from paperlib.runs.settings import Settings
from paperlib.runs.tensors import described, digest, read_tensors, write_tensors

CHUNK = 250  # images attacked together at most, and lost when the process is killed
FEW = 8  # images on which the copy that is attacked must agree with the model
MONOTONE = 0.02  # a rise of accuracy with eps beyond this is more than an attack's luck


class AttackError(RuntimeError):
    """An attack returned what it must not."""


def evaluate(
    model: nn.Module, data: ImageSet, attacks: Mapping[str, Attack], file: Path | None = None, *,
    seed: int = 0, device: torch.device | str = "cpu", box: tuple[float, float] | None = BOX,
) -> tuple[dict[str, Tensor], list[str]]:  # fmt: skip
    """Which images the model classifies correctly, clean and under each attack: bool N by name, and masking flags.

    Each attack is a `functools.partial` whose `eps` and `norm` are asserted: AttackError is raised when a perturbation
    leaves the ball or the box, or when an attack with eps = 0 changes an accuracy. That accuracy under attack is not above
    clean accuracy is not asserted but flagged: it is a sign of masked gradients, not of broken code.

    Attacks are given `quick(model)`, and the model itself classifies what they return. With a `file` outcomes are saved
    after each chunk, and what it holds, or another run's file of that name, is not computed again. Several devices take a
    chunk each; the outcomes do not depend on how many they are.
    """
    each = [[name, *described(attack)] for name, attack in attacks.items()]
    recipe = digest(model, data, [each, seed, shareable(data.images, CHUNK)])
    outcomes: dict[str, Tensor] = {name: torch.empty(0, dtype=torch.bool) for name in ("clean", *attacks)}
    flags: list[str] = []
    keeps = None if distributed.rank() else file  # the first process does
    if keeps and (kept := recall(recipe, keeps, f"{keeps.parent.name}/{keeps.name}", lambda of: (of, *read_tensors(of)))):
        source, stored, about = kept
        outcomes, flags = {name: stored[name] for name in outcomes}, about["flags"]  # in the attacks' order
        if source != keeps:
            write_tensors(keeps, outcomes, {"recipe": recipe, "flags": flags, "from": str(source.relative_to(root()))})
    known = distributed.handed_out(outcomes)
    outcomes = {name: known[name] for name in outcomes}
    flags, together = distributed.agreed(flags), shareable(data.images, CHUNK)
    model.to(device)

    def of_chunk(start: int) -> dict[str, Tensor]:
        images = as_float(data.images[start : start + together].to(device))
        labels = data.labels[start : start + together].to(device)
        found = {"clean": correct(model, images, labels)}
        for name, attack in attacks.items():
            torch.manual_seed(seed * 1_000_003 + start)
            with masking_flags() as warnings, frozen(attacked):
                adversarial = attack(attacked, images, labels).detach()
            flags.extend(f"{name}: {warning}" for warning in warnings)
            fallen, undefined = fooled(model, adversarial, labels)
            found[name] = ~fallen & (found["clean"] | ~undefined)
            if undefined.any():
                flags.append(f"{name}: {int(undefined.sum())} images end at outputs that are NaN, and count as not fooled")
            _assert_allowed(name, attack, images, adversarial, found, box)
        return found

    stage = "evaluating" if file is None else file.stem
    starts = range(len(outcomes["clean"]), len(data), together)
    with evaluating(model), Bar(len(data), stage, "img", starts.start) as progress, torch.random.fork_rng():
        attacked = quick(model, as_float(data.images[:FEW].to(device))) if starts else model  # else nothing is attacked
        for known in _in_rounds(outcomes, starts, of_chunk):
            outcomes, flags = known, distributed.united(flags)
            if keeps:
                write_tensors(keeps, outcomes, {"recipe": recipe, "flags": flags})
                if distributed.world() == 1:
                    deadline.check()
            progress.update(len(outcomes["clean"]) - progress.done)
    clean = float(outcomes["clean"].float().mean())
    for name in attacks:
        if (accuracy := float(outcomes[name].float().mean())) > clean:
            flags = [*flags, f"{name}: accuracy under attack ({accuracy:.1%}) is above clean accuracy ({clean:.1%})"]
    return outcomes, flags


def _in_rounds(
    known: dict[str, Tensor], starts: Sequence[int], of_chunk: Callable[[int], dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """`known` and what `of_chunk` finds from each of `starts` on, after each round: a chunk a device."""
    for first in range(0, len(starts), distributed.world()):
        for found in distributed.shared(starts[first : first + distributed.world()], of_chunk):
            known = {name: torch.cat([known[name], found[name]]) for name in known}
        yield known


def evaluate_each(
    run: Run[Settings], trained: Trained, data: ImageSet, attacks: Mapping[str, Attack], label: str = "test", *,
    box: tuple[float, float] | None = BOX,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate the models of each method and seed: one row a method, seed and measure: clean or the attack.

    Columns: method, seed, measure, n, correct, value (here the accuracy) and its binomial interval low … high, all in
    [0,1], flags, and `each`: image by image whether it was right, a bool array N. No rows without images.
    """
    rows = []
    for method, seed, model in each_model(trained) if len(data) else ():
        file = run.folder / "evaluation" / f"{label}-{method}-seed{seed}.safetensors"
        outcomes, flags = evaluate(model, data, attacks, file, seed=seed, device=run.device, box=box)
        for attack, correct in outcomes.items():
            hits, count = int(correct.sum()), len(correct)
            low, high = binomial_interval(hits, count)
            own = "; ".join(flag for flag in flags if flag.startswith(f"{attack}:"))
            rows.append((method, seed, attack, count, hits, hits / count, low, high, own, correct.numpy()))
        if not live():
            accuracies = "  ".join(f"{row[2]} {row[5]:.1%}" for row in rows[-len(outcomes) :])
            print(f"{label} {method} seed {seed}: {accuracies}", flush=True)
    columns = ["method", "seed", "measure", "n", "correct", "value", "low", "high", "flags", "each"]
    return pd.DataFrame(rows, columns=columns)


def distances_each(
    run: Run[Settings], trained: Trained, data: ImageSet, attacks: Mapping[str, Attack], chunk: int = 50
) -> pd.DataFrame:
    """The L2 distance to the adversarial image of every image, model and attack: columns method, seed, attack, each.

    `each` is an array N: zero where the model is wrong anyway, infinite where the attack failed. Kept by `chunk` images.
    """
    rows = []
    for method, seed, model in each_model(trained):
        for name, attack in attacks.items():
            file = run.folder / "distances" / f"{name}-{method}-seed{seed}.safetensors"
            recipe = digest(model, data, [name, described(attack), chunk])
            of_chunk = partial(_distances, model.to(run.device), data, attack, run.device, chunk, seed)
            known = {"distance": torch.empty(0)}
            if file.exists() and (stored := read_tensors(file))[1]["recipe"] == recipe:
                known = stored[0]
            found = known = distributed.handed_out(known)
            starts = range(len(known["distance"]), len(data), chunk)
            with evaluating(model), torch.random.fork_rng():
                for found in _in_rounds(known, starts, of_chunk):
                    if distributed.rank() == 0:
                        write_tensors(file, found, {"recipe": recipe})
            rows.append((method, seed, name, found["distance"].numpy()))
    return pd.DataFrame(rows, columns=["method", "seed", "attack", "each"])


def _distances(
    model: nn.Module, data: ImageSet, attack: Attack, device: torch.device, chunk: int, seed: int, start: int
) -> dict[str, Tensor]:
    """Of the `chunk` images from `start` on."""
    torch.manual_seed(seed * 1_000_003 + start)
    images = as_float(data.images[start : start + chunk]).to(device)
    labels = data.labels[start : start + chunk].to(device)
    return {"distance": distances(model, images, labels, attack(model, images, labels), "l2")}


def sweep(run: Run[Settings], trained: Trained, data: ImageSet, attack: Attack, factors: Sequence[float]) -> pd.DataFrame:
    """Accuracy against eps: `attack` at its own eps times each factor, its step size scaled alike.

    Columns as of `evaluate_each`, and eps. A rise of accuracy with eps is flagged.
    """
    settings = attack.keywords
    scaled = {
        f"eps={factor:g}x": partial(attack, eps=settings["eps"] * factor, step_size=settings["step_size"] * factor)
        for factor in factors
    }
    table = evaluate_each(run, trained, data, scaled, f"sweep_{settings['norm']}")
    table["eps"] = table["measure"].map({"clean": 0.0} | {name: one.keywords["eps"] for name, one in scaled.items()})
    for (_, _), rows in table.groupby(["method", "seed"]):
        ordered = rows.sort_values("eps")
        rises = ordered["value"].diff() > MONOTONE
        table.loc[ordered.index[rises], "flags"] += "accuracy rises with eps"
    return table


def by_image(outcomes: Iterable[tuple[str, int, str, np.ndarray]]) -> pd.DataFrame:
    """Rows as `evaluate_each` has, of a method, seed, measure and outcomes each: with n, value (their mean) and each."""
    rows = [(method, seed, measure, len(each), float(each.mean()), each) for method, seed, measure, each in outcomes]
    return pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])


def combine(table: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Several tables as one; clean accuracy is that of the first, which has the most images."""
    return pd.concat([table, *(other[other["measure"] != "clean"] for other in others)], ignore_index=True)


def same_images(table: pd.DataFrame, measures: Sequence[str], data: ImageSet, count: int) -> pd.DataFrame:
    """The rows of an `evaluate_each` on all of `data` once more, of the images of `subset(data, count, 0)` alone.

    They stand beside an attack that was run on these images alone, and are named "<measure>, n = <count>". Empty where
    the subset is all of `data`, or has no image.
    """
    rows = table[table["measure"].isin(measures if 0 < count < len(data) else [])]
    chosen = places(data, count, 0).numpy()
    each = [outcomes[chosen] for outcomes in rows["each"]]
    intervals = [binomial_interval(int(one.sum()), count) for one in each]
    return rows.assign(
        measure=[f"{name}, n = {count}" for name in rows["measure"]], n=count, each=each,
        correct=[int(one.sum()) for one in each], value=[float(one.mean()) for one in each],
        low=[low for low, _ in intervals], high=[high for _, high in intervals], flags="",
    )  # fmt: skip


@contextmanager
def measuring(run: Run[Settings], seed: int, model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode on the run's device, and within everything random drawn from the seed."""
    with evaluating(model.to(run.device)), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield model


def flags(*tables: pd.DataFrame) -> pd.DataFrame:
    """What was odd about an attack's outcome: one row a method, seed, measure and flag; empty is good."""
    rows = pd.concat(tables, ignore_index=True)
    return rows.loc[rows["flags"] != "", ["method", "seed", "measure", "flags"]]


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images the model has right: bool N, of the model in the mode it is in; not those whose outputs are NaN."""
    wrong, undefined = fooled(model, images, labels)
    return ~wrong & ~undefined


@torch.no_grad()
def fooled(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which images the model has wrong, and for which it has no answer, since an output is NaN: bool N each, never both."""
    logits: Tensor = model(images)
    return misclassified(logits, labels), logits.isnan().any(1)


def _assert_allowed(
    name: str, attack: Attack, images: Tensor, adversarial: Tensor, found: dict[str, Tensor],
    box: tuple[float, float] | None,
) -> None:  # fmt: skip
    settings = attack.keywords
    eps, kind = settings["eps"], settings["norm"]
    size = float(lengths((adversarial - images).double(), kind).max())
    if not size <= eps * (1 + 1e-4) + 1e-6:  # single precision; also where it is not a number
        raise AttackError(f"{name}: a perturbation of {kind} size {size:g} leaves the ball of radius {eps:g}")
    if box is not None and not (box[0] <= float(adversarial.min()) and float(adversarial.max()) <= box[1]):
        low, high = float(adversarial.min()), float(adversarial.max())
        raise AttackError(f"{name}: adversarial images reach from {low:g} to {high:g}, outside {box}")
    if eps == 0 and not torch.equal(found[name], found["clean"]):
        raise AttackError(f"{name}: eps = 0 changes the accuracy; the model gives different answers to one input")
