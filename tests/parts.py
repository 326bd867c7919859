"""What the processes of `test_distributed.py` compute, each its part; and what one process computes of the whole.

python parts.py FOLDER everything    started by paperlib.runs.launch, writes FOLDER/<rank>.safetensors
python parts.py FOLDER killed        the second process dies
"""

import copy
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from paperlib import audit, evaluation, models, training
from paperlib.attacks import pgd
from paperlib.data import ImageSet, Splits
from paperlib.data.streamed import Streamed
from paperlib.geometry import oracles, saliency, weighted_layers
from paperlib.methods import Batch, Method, Step, baselines
from paperlib.methods.combined import Added, Combined
from paperlib.methods.daat import DAAT
from paperlib.methods.gfa import GFA
from paperlib.methods.jacobian import JacobianRegularisation
from paperlib.methods.pag import PAG, toward
from paperlib.methods.raat import RAAT, PartitionedAT, RAATSharp
from paperlib.methods.ramped import Ramped
from paperlib.models.batchnorm import synchronised
from paperlib.runs import distributed
from paperlib.runs.settings import TrainingSettings
from paperlib.runs.tensors import write_tensors
from paperlib.training import kept, loop

COUNT, CLASSES = 7, 3  # images of the batch: 4 for the first of two processes and 3 for the second
# No random start: the draws of a process are its own, and here all must be as in one.
ATTACK = partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.06, random_start=False)
Build = Callable[[nn.Module], Method]


def images() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(COUNT, 3, 16, 16, generator=generator, dtype=torch.float64)
    depth = 1 + torch.rand(COUNT, 16, 16, generator=generator, dtype=torch.float64)
    depth[2:5] = 2.0  # without edges, and not as many in both parts
    return pixels, torch.tensor([0, 1, 2, 0, 1, 2, 0]), depth


def pool() -> Tensor:
    return torch.rand(CLASSES, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layers(model: nn.Module) -> tuple[str, ...]:
    return tuple(weighted_layers(model, images()[0][:1]))[:2]


class OneClass(PAG):
    """PAG whose draw follows from each image, so that it is the same in whichever process the image is."""

    def drawn(self, images: Tensor, count: int) -> Tensor:
        return (1000 * images.flatten(1).sum(1)).long()[:, None] % count


METHODS: dict[str, Build] = {
    "standard": lambda model: baselines.Standard(),
    "penalty": lambda model: baselines.GradientPenalty(0.5),
    "pgd_at": lambda model: baselines.AdversarialTraining(ATTACK),
    "ramped": lambda model: Ramped(baselines.AdversarialTraining(ATTACK), 0.0, 1.0),
    "trades": lambda model: baselines.TRADES(ATTACK),
    "mart": lambda model: baselines.MART(ATTACK),
    "cons_at": lambda model: baselines.ConsistencyAT(ATTACK),
    "pag": lambda model: PAG(partial(toward, pool()), 0.5),
    "pag_of_one_class": lambda model: OneClass(partial(toward, pool()), 0.5, 1),
    "pag_of_a_shared_class": lambda model: PAG(partial(toward, pool()), 0.5, 1, draw="per_batch"),
    "pag_in_two_passes": lambda model: OneClass(partial(toward, pool()), 0.5, 1, passes=2),
    "gfa": lambda model: GFA(layers(model), (0.3, 0.2)),
    "gfa_with_an_aim": lambda model: GFA(layers(model), (0.3, 0.2), aim=0.05, task="ce"),
    "raat": lambda model: RAAT(ATTACK),
    "raat_as_printed": lambda model: RAAT(ATTACK, form="text"),
    "raat_plus_plus": lambda model: RAAT(ATTACK, boosted=True),
    "raat_sharp": lambda model: RAATSharp(ATTACK, 0),
    "partitioned": lambda model: PartitionedAT(ATTACK, boundary=0.5),
    "daat": lambda model: DAAT(ATTACK, partial(saliency.activated, layer="3"), oracles.target(oracles.exact), 0.5),
    "jacobian": lambda model: JacobianRegularisation(0.1),
    "combined": lambda model: Combined(
        baselines.AdversarialTraining(ATTACK), (Added("raat", RAAT(ATTACK, bound=False), "dicar", 0.5),)
    ),
}  # fmt: skip


def network(kind: str) -> nn.Module:
    """A network in double precision, trained a little so that it has some of the images right."""
    size = {"size": 16} if kind == "vit" else {}
    model = models.build(kind, classes=CLASSES, channels=3, width=32 if kind == "vit" else 4, seed=0, **size).double()
    pixels, labels, _ = images()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    return model


def teacher() -> nn.Module:
    return models.build("vit", classes=CLASSES, channels=3, width=32, seed=9, size=16).double()


def with_teacher(model: nn.Module) -> Method:
    return DAAT(ATTACK, saliency.attended, oracles.target(oracles.exact), 0.5, teacher=teacher())


CASES: dict[tuple[str, str], Build] = {
    **{("small_cnn", name): build for name, build in METHODS.items()},
    **{("cnn", name): METHODS[name] for name in ("pag", "gfa", "raat", "combined")},
    ("vit", "daat"): with_teacher,
}


def gradients(kind: str, build: Build, together: bool = True) -> dict[str, Tensor]:
    """A step's gradient of every weight, its buffers afterwards and the value of its loss, as `training.fit` takes it."""
    model = network(kind)
    averaged = copy.deepcopy(model).eval()
    own = range(COUNT)[distributed.rank() :: distributed.world()]
    pixels, labels, depth = (values[list(own)] for values in images())
    take = training.over_devices(model, build(model))
    torch.manual_seed(distributed.rank())  # as in training: what all must draw alike has to be agreed on
    model.train()
    step = Step(40, 100, 4, averaged)
    with synchronised(model) if together else nullcontext():
        terms = take(Batch(pixels, labels, lambda x: x.clone(), depth), step)
        training.backward(terms["total"], len(own), COUNT)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    value = distributed.overall(terms["total"].detach(), len(own))
    return {**found, **{f"buffer {name}": buffer for name, buffer in model.named_buffers()}, "total": value}


def every_gradient() -> dict[str, Tensor]:
    """Of every method, on a network with batch norm, one without, and a transformer with its teacher."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda tensor: tensor.detach() + torch.arange(tensor.shape[-1]))
        found = {}
        for (kind, name), build in CASES.items():
            found |= {f"{kind} {name} {key}": value for key, value in gradients(kind, build).items()}
        apart = gradients("small_cnn", METHODS["pag"], together=False)
    return found | {f"apart {key}": value for key, value in apart.items()}


# Whole trainings -------------------------------------------------------------------------------------------------


def splits() -> Splits:
    generator = torch.Generator().manual_seed(3)

    def some(count: int) -> ImageSet:
        labels = torch.arange(count) % CLASSES
        pixels = torch.randint(0, 160, (count, 3, 16, 16), generator=generator)
        pixels[torch.arange(count), labels] += 60
        return ImageSet(pixels.to(torch.uint8), labels, ("a", "b", "c"))

    return Splits(some(46), some(60), some(110))


SETTINGS: dict[str, Any] = {
    "seeds": [0], "device": "cpu", "devices": 1, "sync_batch_norm": True, "venue": "neurips", "retrain": False,
    "epochs": 8, "batch_size": 12,
    "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "one_cycle",
    "milestones": [], "decay": 1.0, "clip": 1.0, "ema": 0.9, "ema_start": 0.0, "bf16": False, "channels_last": True,
    "crop_padding": 0, "crop_fill": 0.5, "flip": False, "selection": "last",
}  # fmt: skip


class StopsAt(baselines.AdversarialTraining):
    """Ends like a killed process in the middle of the third epoch."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        if step.index == 9:
            raise KeyboardInterrupt
        return super().loss(model, batch, step)


def fitted(folder: Path, method: Method | None = None) -> tuple[nn.Module, int]:
    """Trained through `training.fit`, with nothing in it that is drawn; and in how many steps."""
    model = models.build("small_cnn", classes=CLASSES, channels=3, width=4, seed=0)
    whole, recipe, back = baselines.AdversarialTraining(ATTACK), kept.recipe_of, loop.backward
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(kept, "recipe_of", lambda model, method, *rest: recipe(model, whole, *rest))  # also of a half
        patch.setattr(loop, "backward", lambda *given: (taken.append(1), back(*given)))
        settings = TrainingSettings(**SETTINGS)
        model = training.fit(model, method or whole, splits(), settings, folder, seed=0, attack=ATTACK)
    return model, len(taken)


def half(folder: Path) -> None:
    """A training that ends in the middle."""
    with suppress(KeyboardInterrupt):
        fitted(folder, StopsAt(ATTACK))


def evaluated(model: nn.Module) -> dict[str, Tensor]:
    """Outcomes of random attacks, which no number of devices may change; and of the audit."""
    data = splits().test
    attack = partial(pgd, eps=0.3, norm="linf", steps=2, step_size=0.2)
    outcomes, _ = evaluation.evaluate(model, data, {"pgd": attack})
    found = audit.audit(model, data, eps=0.3, norm="linf")
    assert found.verdict != "not told"
    return {**outcomes, "figures": torch.tensor(found.checks["figure"].tolist(), dtype=torch.float64)}


def streamed(folder: Path) -> int:
    """How many files a process reads in an epoch over images that stay in their files."""
    read, calls = Streamed._read, []

    def counted(self: Streamed, file: str) -> Any:
        calls.append(file)
        return read(self, file)

    whole = splits()
    place = folder / f"images-{distributed.rank()}"
    place.mkdir()
    names = [f"{number}.png" for number in range(len(whole.train))]
    for name, image in zip(names, whole.train.images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / name)
    Streamed._read = counted  # type: ignore[method-assign]
    images = ImageSet(Streamed(place, names, 16, tree="same"), whole.train.labels, whole.train.classes)
    training.fit(
        models.build("small_cnn", classes=CLASSES, channels=3, width=4, seed=0), baselines.Standard(),
        Splits(images, whole.validation, whole.test), TrainingSettings(**{**SETTINGS, "epochs": 1}),
        folder / "streamed", seed=0,
    )  # fmt: skip
    Streamed._read = read  # type: ignore[method-assign]
    return len(calls)


def one_sided(together: bool) -> dict[str, Tensor]:
    """A step of DICAR in which the labels of the second process's images are wrong: the model has none of them right."""
    model = network("small_cnn").eval()
    pixels, _, depth = images()
    right = model(pixels).argmax(1)
    labels = torch.where(torch.arange(COUNT) % 2 == 0, right, (right + 1) % CLASSES)
    own = list(range(COUNT)[distributed.rank() :: distributed.world()])
    take = training.over_devices(model.train(), RAAT(partial(ATTACK, eps=1e-9, step_size=1e-9)))
    torch.manual_seed(distributed.rank())
    with synchronised(model) if together else nullcontext():
        terms = take(Batch(pixels[own], labels[own], lambda x: x.clone(), depth[own]), Step(40, 100, 4))
        training.backward(terms["total"], len(own), COUNT)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**found, "members": labels[own] == right[own]}


def everything(folder: Path) -> dict[str, Tensor]:
    model, steps = fitted(folder / "whole")
    half(folder / "half")
    if distributed.rank() == 0:
        shutil.copytree(folder / "half", folder / "again")
    distributed.agreed(None)
    again, rest = fitted(folder / "again")
    taken_over = {}
    if (folder / "of one").exists():  # begun by one process
        model_of_one, steps_of_one = fitted(folder / "of one")
        taken_over = {f"of one {name}": value for name, value in model_of_one.state_dict().items()}
        taken_over["steps of one"] = torch.tensor(steps_of_one)
    return {
        "steps": torch.tensor([steps, rest]),
        **taken_over,
        **every_gradient(),
        "streamed files": torch.tensor(streamed(folder)),
        **{f"one-sided together {name}": value for name, value in one_sided(True).items()},
        **{f"one-sided apart {name}": value for name, value in one_sided(False).items()},
        **{f"again {name}": value for name, value in again.state_dict().items()},
        **{f"fitted {name}": value for name, value in model.state_dict().items()},
        **{f"evaluated {name}": value for name, value in evaluated(model).items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    distributed.join()
    folder, task = Path(sys.argv[1]), sys.argv[2]
    if task == "killed":
        distributed.agreed(None)
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.agreed(None)
        return
    if task == "waiting":
        distributed.agreed(None)
        (folder / "joined").mkdir(exist_ok=True)
        (folder / "joined" / str(os.getpid())).touch()
        signal.pause()
    assert distributed.everyones(distributed.rank()) == [0, 1]
    assert distributed.united([distributed.rank(), 7]) == [0, 7, 1]
    found = everything(folder)
    write_tensors(folder / f"{distributed.rank()}.safetensors", {name: one.contiguous() for name, one in found.items()}, {})
    print(json.dumps({"rank": distributed.rank(), "found": len(found)}))


if __name__ == "__main__":
    main()
