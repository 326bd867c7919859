"""Accuracy under attack, image by image, with checks of what each attack returns."""

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

CHUNK = 250  # images attacked together, at most; a killed process loses no more
FEW = 8  # images on which the attacked copy must agree with the model
MONOTONE = 0.02  # a larger rise of accuracy with eps is flagged; a smaller one may be chance


class AttackError(RuntimeError):
    """A perturbation outside the ball or the box, or an accuracy changed by an attack of eps = 0."""


def evaluate(
    model: nn.Module, data: ImageSet, attacks: Mapping[str, Attack], file: Path | None = None, *,
    seed: int = 0, device: torch.device | str = "cpu", box: tuple[float, float] | None = BOX,
) -> tuple[dict[str, Tensor], list[str]]:  # fmt: skip
    """Return which images the model classifies correctly, clean and under each attack (bool N by name), and flags.

    Each attack is a `functools.partial` with `eps` and `norm`. Raises AttackError when a perturbation leaves the ball or
    the box, or when an attack with eps = 0 changes an accuracy. Accuracy under attack above clean accuracy is only flagged:
    it is a sign of masked gradients, not of broken code.

    Attacks get `quick(model)`; the model itself classifies the images that they return. With a `file`, outcomes are saved
    after each chunk. Outcomes found in that file, or in another run's file of that name, are not computed again. Each
    device takes one chunk at a time; the outcomes do not depend on the number of devices.
    """
    each = [[name, *described(attack)] for name, attack in attacks.items()]
    recipe = digest(model, data, [each, seed, shareable(data.images, CHUNK)])
    outcomes: dict[str, Tensor] = {name: torch.empty(0, dtype=torch.bool) for name in ("clean", *attacks)}
    flags: list[str] = []
    keeps = None if distributed.rank() else file  # only the first process writes
    if keeps and (kept := recall(recipe, keeps, f"{keeps.parent.name}/{keeps.name}", lambda of: (of, *read_tensors(of)))):
        source, stored, about = kept
        outcomes, flags = {name: stored[name] for name in outcomes}, about["flags"]  # the file sorts them by name
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
        attacked = quick(model, as_float(data.images[:FEW].to(device))) if starts else model
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
    """Yield `known` extended by the results of `of_chunk`, after each round of one chunk per device."""
    for first in range(0, len(starts), distributed.world()):
        for found in distributed.shared(starts[first : first + distributed.world()], of_chunk):
            known = {name: torch.cat([known[name], found[name]]) for name in known}
        yield known


def evaluate_each(
    run: Run[Settings], trained: Trained, data: ImageSet, attacks: Mapping[str, Attack], label: str = "test", *,
    box: tuple[float, float] | None = BOX,
) -> pd.DataFrame:  # fmt: skip
    """Evaluate the models of each method and seed: one row per method, seed and measure ("clean" or an attack).

    Columns: method, seed, measure, n, correct, value, low, high, flags, each. `value` is the accuracy in [0,1]; low … high
    is its binomial interval. `each` is a bool array N of which images were right. Without images the table is empty.
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
    """Measure the L2 distance of every image to its adversarial image: columns method, seed, attack, each.

    `each` is an array N: zero where the model is wrong without attack, infinite where the attack failed. The distances
    are saved after each `chunk` of images.
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
    """Return the distances of the `chunk` images from `start` on."""
    torch.manual_seed(seed * 1_000_003 + start)
    images = as_float(data.images[start : start + chunk]).to(device)
    labels = data.labels[start : start + chunk].to(device)
    return {"distance": distances(model, images, labels, attack(model, images, labels), "l2")}


def sweep(run: Run[Settings], trained: Trained, data: ImageSet, attack: Attack, factors: Sequence[float]) -> pd.DataFrame:
    """Measure accuracy against eps: the attack's own eps and step size are multiplied by each factor.

    Returns the columns of `evaluate_each`, and eps. A rise of accuracy with eps above MONOTONE is flagged.
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
        for place in ordered.index[ordered["value"].diff() > MONOTONE]:
            known, rise = table.loc[place, "flags"], f"{table.loc[place, 'measure']}: accuracy rises with eps"
            table.loc[place, "flags"] = f"{known}; {rise}" if known else rise
    return table


def by_image(outcomes: Iterable[tuple[str, int, str, np.ndarray]]) -> pd.DataFrame:
    """Return rows as of `evaluate_each` from tuples (method, seed, measure, outcomes N): n, value (their mean), each."""
    rows = [(method, seed, measure, len(each), float(each.mean()), each) for method, seed, measure, each in outcomes]
    return pd.DataFrame(rows, columns=["method", "seed", "measure", "n", "value", "each"])


def combine(table: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Join tables of `evaluate_each`; keep the clean rows of the first table alone, which has the most images."""
    return pd.concat([table, *(other[other["measure"] != "clean"] for other in others)], ignore_index=True)


def same_images(table: pd.DataFrame, measures: Sequence[str], data: ImageSet, count: int) -> pd.DataFrame:
    """Restrict rows of `evaluate_each` on all of `data` to the images of `subset(data, count, 0)`.

    Makes them comparable with an attack that was run on this subset alone. Their measures are named "<measure>, n =
    <count>". Returns no rows where the subset is empty or all of `data`.
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
    """Yield the model in evaluation mode on the run's device, with PyTorch's random numbers set by `seed`."""
    with evaluating(model.to(run.device)), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield model


def flags(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have flags: columns method, seed, measure, flags."""
    rows = pd.concat(tables, ignore_index=True)
    return rows.loc[rows["flags"] != "", ["method", "seed", "measure", "flags"]]


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return which images the model classifies correctly, in its current mode: bool N; False where an output is NaN."""
    wrong, undefined = fooled(model, images, labels)
    return ~wrong & ~undefined


@torch.no_grad()
def fooled(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which images the model classifies wrongly, and for which an output is NaN: bool N each, never both."""
    logits: Tensor = model(images)
    return misclassified(logits, labels), logits.isnan().any(1)


def _assert_allowed(
    name: str, attack: Attack, images: Tensor, adversarial: Tensor, found: dict[str, Tensor],
    box: tuple[float, float] | None,
) -> None:  # fmt: skip
    settings = attack.keywords
    eps, kind = settings["eps"], settings["norm"]
    size = float(lengths((adversarial - images).double(), kind).max())
    if not size <= eps * (1 + 1e-4) + 1e-6:  # slack for single precision; the negation also catches NaN
        raise AttackError(f"{name}: a perturbation of {kind} size {size:g} leaves the ball of radius {eps:g}")
    if box is not None and not (box[0] <= float(adversarial.min()) and float(adversarial.max()) <= box[1]):
        low, high = float(adversarial.min()), float(adversarial.max())
        raise AttackError(f"{name}: adversarial images have values from {low:g} to {high:g}, outside {box}")
    if eps == 0 and not torch.equal(found[name], found["clean"]):
        raise AttackError(f"{name}: eps = 0 changes the accuracy; the model gives different answers to one input")
