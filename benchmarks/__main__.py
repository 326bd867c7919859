"""Benchmarks of computing costs, as ratios within one run: `make bench`, about twenty minutes on two cores.

Writes docs/results/benchmarks.json and benchmarks.md. Timings are medians of interleaved repeats, so that a change of the
machine's speed affects all of them. `python -m benchmarks NAME…` runs some benchmarks and keeps the results of the others.
"""

import inspect
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from paperlib import models, training, zoo
from paperlib.attacks import autoattack, evaluating, pgd
from paperlib.data import ImageSet, Splits, as_float, folder, load, load_test, scenes
from paperlib.evaluation import evaluate
from paperlib.geometry import all_classes, cosine, saliency
from paperlib.methods import Batch, Step, pag
from paperlib.methods.baselines import MART, TRADES, AdversarialTraining, ConsistencyAT, Standard
from paperlib.methods.raat import RAAT, RAATSharp
from paperlib.models.batchnorm import BatchNorm2d
from paperlib.runs import overview
from paperlib.runs.files import InputError, read_json, root, write_json, write_text
from paperlib.runs.run import environment
from paperlib.runs.settings import TrainingSettings

BATCH, WIDTH, REPEATS = 64, 16, 5
Row = dict[str, Any]


def timed(work: dict[str, Callable[[], object]], repeats: int) -> list[Row]:
    """Return the median seconds of each piece of work, in interleaved repeats after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, call in work.items():
            begun = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return [{"what": name, "seconds": statistics.median(times)} for name, times in seconds.items()]


def compare(work: dict[str, Callable[[], object]], images: int, repeats: int = REPEATS) -> list[Row]:
    """Return images per second of each piece of work and its ratio to the first, timed by `timed`."""
    rates = {row["what"]: images / row["seconds"] for row in timed(work, repeats)}
    first = next(iter(rates.values()))
    return [{"what": name, "img/s": round(rate, 1), "ratio": round(rate / first, 2)} for name, rate in rates.items()]


def network(seed: int = 0) -> nn.Module:
    return models.build("resnet18", classes=10, channels=3, width=WIDTH, seed=seed)


def with_pytorchs_batch_norm(model: nn.Module) -> nn.Module:
    """Replace our batch norm in the network by `torch.nn.BatchNorm2d`."""
    for name, child in list(model.named_children()):
        if isinstance(child, BatchNorm2d):
            plain = nn.BatchNorm2d(child.num_features)
            plain.load_state_dict(child.state_dict())
            setattr(model, name, plain)
        else:
            with_pytorchs_batch_norm(child)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 32, 32, generator=generator)
    return Batch(images, torch.arange(BATCH) % 10, lambda x: x)


def step(method: Any, model: nn.Module, data: Batch, bf16: bool) -> Callable[[], None]:
    """Return a function that makes one training step without the optimiser's update."""

    def run() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = method.loss(model, data, Step(0, 1, 0))["total"]
        total.backward()

    return run


def means() -> Tensor:
    return torch.rand(10, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def pag_of(classes: int | None) -> pag.PAG:
    return pag.PAG(partial(pag.toward, means()), 0.4, classes)


# Evaluation ------------------------------------------------------------------------


def pgd_evaluation() -> list[Row]:
    """PGD-20 (cross-entropy, ε = 4/255) on 500 scenes and two networks of the zoo, by foolbox and by `evaluate`.

    `left` is the accuracy under attack in percent. With `best`, an image leaves the batch once it is fooled.
    """
    data, networks = load_test("scenes", 500), {"plain": "scenes/study_other_0-seed0", "PGD-AT": "scenes/pgd_at-seed0"}
    return [{"network": kind, **row} for kind, name in networks.items() for row in _pgd_20(zoo.load(name), data, 4 / 255)]


def _pgd_20(model: nn.Module, data: ImageSet, eps: float) -> list[Row]:
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # foolbox looks for a git binary at import
    import foolbox

    ours = partial(pgd, eps=eps, norm="linf", steps=20, step_size=eps / 8)
    theirs = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=eps / 8)
    wrapped, left = foolbox.PyTorchModel(model, bounds=(0, 1)), {}

    def by_foolbox() -> None:
        parts = zip(as_float(data.images).split(250), data.labels.split(250), strict=True)
        fooled = torch.cat([theirs(wrapped, *part, epsilons=eps)[2] for part in parts])
        left["foolbox LinfPGD"] = 1 - float(fooled.float().mean())

    def by_evaluate(name: str, best: bool) -> None:
        left[name] = float(evaluate(model, data, {"pgd": partial(ours, best=best)})[0]["pgd"].float().mean())

    work: dict[str, Callable[[], object]] = {
        "foolbox LinfPGD": by_foolbox,
        **{name: partial(by_evaluate, name, "best" in name) for name in ("evaluate, last iterate", "evaluate, best")},
    }
    return [{**row, "left": round(100 * left[row["what"]], 1)} for row in compare(work, len(data))]


def engines() -> list[Row]:
    """The original AutoAttack and ours on 20 images of 32 px and a small_cnn of width 8 with random weights.

    No image is fooled (`left` counts the images that are not fooled), so each part does all of its work.
    """
    model = models.build("small_cnn", classes=4, channels=3, width=8, seed=0, stem_stride=2).eval()
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    left: dict[str, int] = {}

    def run(engine: Any) -> None:
        torch.manual_seed(0)
        found = autoattack(model, images, labels, eps=8 / 255, norm="linf", engine=engine)
        left[engine] = int((model(found).argmax(1) == labels).sum())

    rows = timed({engine: partial(run, engine) for engine in ("original", "own")}, REPEATS)
    return [
        {**row, "seconds": round(row["seconds"], 2), "ratio": round(row["seconds"] / rows[0]["seconds"], 2),
         "left": left[row["what"]]} for row in rows
    ]  # fmt: skip


# Training steps ----------------------------------------------------------------


def methods() -> list[Row]:
    """A training step of each method in single precision, with channels last, and in bfloat16 with channels last."""
    trained = partial(pgd, eps=8 / 255, norm="linf", steps=7, step_size=2 / 255)
    kinds = {
        "plain": Standard(),
        "PGD-7 AT": AdversarialTraining(trained),
        "PAG, K = 1": pag_of(1),
        "PAG, K = 10": pag_of(None),
    }
    work: dict[str, Callable[[], object]] = {}
    for name, method in kinds.items():
        for label, last, bf16 in (
            ("fp32", False, False),
            ("fp32 channels-last", True, False),
            ("bf16 channels-last", True, True),
        ):
            model = network()
            if last:
                model = model.to(memory_format=torch.channels_last)
            work[f"{name}, {label}"] = step(method, model, batch(), bf16)
    return compare(work, BATCH, 3)


# The passes that each method needs at least: (kind of pass, images in units of B, how often). They are for ten attack steps
# and correctly classified images, for which DICAR costs most.
Pass = tuple[str, int, int]
LEAST: dict[str, list[Pass]] = {
    "PGD-AT": [("attack", 1, 10), ("train", 1, 1)],
    "TRADES": [("predict", 1, 1), ("attack", 1, 10), ("train", 1, 2)],
    "MART": [("attack", 1, 10), ("train", 1, 2)],
    "Cons-AT": [("attack", 2, 10), ("train", 2, 1)],
    "RAAT": [("attack", 2, 10), ("predict", 6, 1), ("train", 2, 2), ("train", 1, 1)],
    "RAAT++": [("attack", 2, 10), ("predict", 6, 1), ("train", 2, 3), ("train", 1, 1)],
    "RAAT#": [("attack in training mode", 1, 20), ("predict", 4, 1), ("train", 1, 1), ("train", 2, 1), ("train", 1, 1)],
}


def steps_against_least(names: list[str], width: int, size: int, repeats: int) -> list[Row]:
    """Time each method's step and the sum of the passes that it needs, both in plain training steps of B images."""
    eps = 8 / 255
    attack = partial(pgd, eps=eps, norm="linf", steps=10, step_size=eps / 4)
    near = partial(attack, start_deviation=0.001)
    kinds: dict[str, Any] = {
        "PGD-AT": AdversarialTraining(attack), "TRADES": TRADES(partial(near, loss="kl")), "MART": MART(near),
        "Cons-AT": ConsistencyAT(attack), "RAAT": RAAT(attack), "RAAT++": RAAT(near, boosted=True),
        "RAAT#": RAATSharp(attack, 0),
    }  # fmt: skip

    def made() -> nn.Module:
        model = models.build("resnet18", classes=10, channels=3, width=width, seed=0).to(memory_format=torch.channels_last)
        with torch.no_grad():
            model.linear.bias[0] = 100.0  # every image is classified correctly, clean and attacked
        return model.train()

    images = torch.rand(6 * size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(6 * size, dtype=torch.long)
    model = made()

    def one_pass(kind: str, count: int) -> Callable[[], object]:
        x, y = images[: count * size], labels[: count * size]

        def gradient() -> None:
            leaf = x.detach().requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)

        def run() -> None:
            if kind == "train":
                model.zero_grad()
                F.cross_entropy(model(x), y).backward()
            elif kind == "predict":
                with evaluating(model), torch.no_grad():
                    model(x)
            elif kind == "attack":
                with evaluating(model):
                    gradient()
            else:
                gradient()

        return run

    def whole(name: str) -> Callable[[], object]:
        method, network, averaged = kinds[name], made(), made()
        data = Batch(images[:size], labels[:size], lambda x: x)

        def run() -> None:
            network.zero_grad()
            method.loss(network, data, Step(0, 1, 0, averaged))["total"].backward()

        return run

    passes = {(kind, count) for name in names for kind, count, _ in LEAST[name]} | {("train", 1)}
    work = {f"{kind}, {count} B": one_pass(kind, count) for kind, count in sorted(passes)}
    rates = {row["what"]: row["seconds"] for row in timed(work | {name: whole(name) for name in names}, repeats)}
    plain = rates["train, 1 B"]
    rows = []
    for name in names:
        least = sum(often * rates[f"{kind}, {count} B"] for kind, count, often in LEAST[name])
        counted = ", ".join(f"{often} × {kind} {count} B" for kind, count, often in LEAST[name])
        rows.append(
            {
                "what": name, "plain steps": round(rates[name] / plain, 1), "at least": round(least / plain, 1),
                "over the least": f"{rates[name] / least - 1:+.0%}", "passes": counted,
            }
        )  # fmt: skip
    return rows


def adversarial_methods() -> list[Row]:
    """A step of each adversarial method (B = 64, ten attack steps) beside the passes that it needs at least.

    The passes are timed separately and added, so their overhead and noise can make the difference negative.
    """
    return steps_against_least(list(LEAST), WIDTH, BATCH, 3)


def raat_at_full_width() -> list[Row]:
    """The same comparison for RAAT at width 64 and B = 128, the paper's batch size."""
    return steps_against_least(["RAAT"], 64, 128, 1)


class PlainWay(pag.PAG):
    """Equation 1 in the simplest form: a forward pass for each class."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        total = F.cross_entropy(model(batch.images).float(), batch.labels)
        targets = self.targets(batch.images, all_classes(batch.images, 10))
        for label in range(10):
            x = batch.images.detach().requires_grad_(True)
            out = model(x).float().log_softmax(1)[:, label].sum()
            (gradient,) = torch.autograd.grad(out, x, create_graph=True)
            total = total + self.weight * (1 - cosine(gradient, targets[:, label])).mean()
        return {"total": total}


class Batched(pag.PAG):
    """Equation 1 with all ten vector-Jacobian products in one call, vectorised by torch.vmap."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        x = batch.images.detach().requires_grad_(True)
        logits = model(x).float()
        picks = torch.eye(10)[:, None, :].expand(10, len(x), 10)
        (gradients,) = torch.autograd.grad(logits.log_softmax(1), x, picks, create_graph=True, is_grads_batched=True)
        total = F.cross_entropy(logits, batch.labels)
        targets = self.targets(batch.images, all_classes(batch.images, 10))
        for label in range(10):
            total = total + self.weight * (1 - cosine(gradients[label], targets[:, label])).mean()
        return {"total": total}


def ten_gradients() -> list[Row]:
    """PAG with all ten classes, computed in several ways, with each way's relative error of the weights' gradient."""
    targets = partial(pag.toward, means())
    ways: dict[str, tuple[pag.PAG, nn.Module, bool]] = {
        "a forward pass a class, PyTorch's batch norm": (
            PlainWay(targets, 0.4),
            with_pytorchs_batch_norm(network()),
            False,
        ),
        "one shared forward pass, PyTorch's batch norm": (
            pag.PAG(targets, 0.4),
            with_pytorchs_batch_norm(network()),
            False,
        ),
        "batched products (vmap), PyTorch's batch norm": (
            Batched(targets, 0.4),
            with_pytorchs_batch_norm(network()),
            False,
        ),
        "one shared forward pass, our batch norm": (pag.PAG(targets, 0.4), network(), False),
        "the same, channels last": (pag.PAG(targets, 0.4), network().to(memory_format=torch.channels_last), False),
        "the same, channels last, bfloat16": (pag.PAG(targets, 0.4), network().to(memory_format=torch.channels_last), True),
    }
    reference: Tensor | None = None
    errors = []
    for name, (method, model, bf16) in ways.items():
        step(method, model, batch(), bf16)()
        slope = torch.cat([weight.grad.flatten() for weight in model.parameters()])  # type: ignore[union-attr]
        reference = slope if reference is None else reference
        error = float((slope - reference).norm() / reference.norm())
        # Channels last and bfloat16 are not checked: other rounding moves activations across ReLU's kink.
        assert error < 1e-3 or "channels last" in name, f"{name}: the gradient is off by {error:.2g}"
        errors.append(f"{error:.1g}")
    work: dict[str, Callable[[], object]] = {name: step(*parts[:2], batch(), parts[2]) for name, parts in ways.items()}
    rows = compare(work, BATCH, 2)
    return [{**row, "gradient off by": error} for row, error in zip(rows, errors, strict=True)]


def one_gradient() -> list[Row]:
    """PAG with one class per step, bfloat16 and channels last: PyTorch's batch norm and ours."""
    theirs = with_pytorchs_batch_norm(network()).to(memory_format=torch.channels_last)
    ours = network().to(memory_format=torch.channels_last)
    return compare(
        {
            "PyTorch's batch norm": step(pag_of(1), theirs, batch(), True),
            "our batch norm": step(pag_of(1), ours, batch(), True),
        },
        BATCH,
    )


def sampled_classes() -> list[Row]:
    """The effect of K on the result: Class Mean, λ = 0.1, on 1,500 scenes, ResNet-18 of width 8, five epochs; one seed.

    The training is so short that the plain network has learnt little and no network is robust; only K is compared.
    """
    data = load("scenes", train_images=1500, validation_images=200, test_images=500)
    settings = TrainingSettings.model_validate(
        {
            "seeds": [0], "device": "cpu", "venue": "neurips", "retrain": False,
            "epochs": 5, "batch_size": 32, "optimizer": "sgd",
            "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "one_cycle", "milestones": [],
            "decay": 1.0, "clip": 0.0, "ema": 0.0, "ema_start": 0.0, "bf16": True, "channels_last": True, "crop_padding": 2,
            "crop_fill": 0.5, "flip": True, "selection": "mean",
        }
    )  # fmt: skip
    targets = partial(pag.toward, pag.class_mean(data.train, 1.0))
    rows = []
    for name, method in (("vanilla", Standard()), *((f"K = {k}", pag.PAG(targets, 0.1, k)) for k in (1, 3, 10))):
        rows.append({"what": name, **_outcome(method, data, settings)})
    return rows


def _outcome(method: Any, data: Splits, settings: TrainingSettings) -> Row:
    model = models.build("resnet18", classes=10, channels=3, width=8, seed=0)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        training.fit(model, method, data, settings, Path(place) / "x", seed=0)
    seconds = time.perf_counter() - begun
    attacked = {"l2": partial(pgd, eps=0.5, norm="l2", steps=20, step_size=0.05)}
    outcomes, _ = evaluate(model, data.test, attacked)
    accuracies = {name: round(100 * float(correct.float().mean()), 1) for name, correct in outcomes.items()}
    return {"seconds": round(seconds), "clean %": accuracies["clean"], "PGD-20 L2 %": accuracies["l2"]}


# DAAT --------------------------------------------------------------------------


def alignment() -> list[Row]:
    """The cost of DAAT's attention in the forward and backward pass of the loss, beside the loss alone.

    The table has images per second and the memory kept for the backward pass. The attack's passes have no attention.
    """
    rows = []
    for name, size, width, count, repeats in (("vit_conv", 64, 96, BATCH, REPEATS), ("vit14", 224, 768, 2, 2)):
        model = models.build(name, classes=10, channels=3, width=width, seed=0, size=size)
        images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "cross-entropy alone": lambda x, model=model: model(x).sum(),  # type: ignore[misc]
            "with the class token's row": partial(_seen, saliency.attended, model),
            "with rollout of whole maps": partial(_seen, saliency.rollout, model),
        }
        work = {f"{name}, {size} px, {way}": partial(_pass, model, call, images) for way, call in ways.items()}
        timed_rows = compare(work, count, repeats)
        kept = [_kept(call, images) for call in ways.values()]
        rows += [
            {**row, "MiB kept an image": round(one / count / 2**20, 2), "of it": round(one / kept[0], 2)}
            for row, one in zip(timed_rows, kept, strict=True)
        ]
    return rows


def _seen(saliency_of: Any, model: nn.Module, images: Tensor) -> Tensor:
    logits, attention = saliency_of(model, images)
    return logits.sum() + attention.square().sum()


def _pass(model: nn.Module, call: Callable[[Tensor], Tensor], images: Tensor) -> None:
    model.zero_grad()
    call(images).backward()


def _kept(call: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without weights; shared memory counts once."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not tensor.is_leaf or not tensor.requires_grad:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = call(images)
    del total
    return sum(sizes.values())


# Memory ------------------------------------------------------------------------


def memory() -> list[Row]:
    """Training steps in a separate process, in Python's default environment and in that of paperlib's command line."""
    from paperlib.cli import KEEP_MEMORY

    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    rows = []
    for name, width in (("small_cnn", 32), ("vit_conv", 64)):
        work = {"as it is": plain, "freed memory kept": {**plain, **KEEP_MEMORY}}
        rates: dict[str, list[float]] = {what: [] for what in work}
        for _ in range(3):
            for what, environ in work.items():
                command = [sys.executable, "-c", STEPS, name, str(width)]
                found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
                rates[what].append(float(found.stdout))
        medians = {what: statistics.median(each) for what, each in rates.items()}
        rows += [
            {"what": f"{name}, 64 px, {what}", "img/s": round(rate), "ratio": round(rate / medians["as it is"], 2)}
            for what, rate in medians.items()
        ]
    return rows


STEPS = """
import sys, time, torch
from paperlib import models
model = models.build(sys.argv[1], classes=10, channels=3, width=int(sys.argv[2]), seed=0, size=64)
model = model.to(memory_format=torch.channels_last)
images = torch.rand(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
labels = torch.arange(64) % 10
for turn in range(15):
    if turn == 3:
        begun = time.perf_counter()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
print(12 * 64 / (time.perf_counter() - begun))
"""


# Data --------------------------------------------------------------------------


def rendering() -> list[Row]:
    """Rendering scenes of both sizes, with shadow, depth and mask."""
    small = compare({"scenes, 32 px": lambda: scenes.render(0, np.arange(500), 32)}, 500, 3)
    return small + compare({"scenes, 64 px": lambda: scenes.render(0, np.arange(200), 64)}, 200, 2)


def reading() -> list[Row]:
    """Reading 60,000 JPEGs of 32 px from folders, the first time and from the cache."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        random = np.random.default_rng(0)
        for split, count in (("train", 5000), ("test", 1000)):
            for label in range(10):
                (Path(place) / "jpegs" / split / str(label)).mkdir(parents=True)
                for index in range(count):
                    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                    coarse.resize((32, 32)).save(Path(place) / "jpegs" / split / str(label) / f"{index}.jpg")
        before = os.environ.get("PAPERLIB_ROOT")
        os.environ["PAPERLIB_ROOT"] = place
        try:
            for what in ("first time", "from the cache"):
                begun = time.perf_counter()
                folder.load(Path(place) / "jpegs")
                rows.append({"what": f"60,000 JPEGs, {what}", "seconds": round(time.perf_counter() - begun, 2)})
        finally:
            os.environ.pop("PAPERLIB_ROOT")
            if before is not None:
                os.environ["PAPERLIB_ROOT"] = before
    return rows


# Runs --------------------------------------------------------------------------


def many_runs() -> list[Row]:
    """`paperlib status` and `report` over 200 runs, which are copies of the finished runs on this machine.

    CPU seconds of whole commands, the least of three. Two other processes ran at the same time and increased them.
    """
    finished = [run["folder"] for run in overview.runs() if run["status"]["state"] == "finished"]
    if not finished:
        raise InputError("many_runs: there is no finished run here to copy; `paperlib run toy_pag` makes one")
    with tempfile.TemporaryDirectory() as place:
        for name in ("notebooks", "docs"):
            (Path(place) / name).symlink_to(root() / name)
        for number in range(200):
            source = finished[number % len(finished)]
            copy = Path(place) / "runs" / source.parent.name / f"quick-{number:08x}"
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".lock"))
        seconds = partial(_cpu_seconds, Path(place))
        rows = {"status": min(seconds("status") for _ in range(3)), "report, the first time": seconds("report")}
        rows["report, nothing changed"] = min(seconds("report") for _ in range(3))
        (copy / "claims.json").touch()
        rows["report, one run changed"] = seconds("report")
    return [{"what": what, "CPU seconds": round(took, 1)} for what, took in rows.items()]


def _cpu_seconds(place: Path, command: str) -> float:
    """Return the CPU seconds of a paperlib command in the project folder `place`."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, environ = used(), {**os.environ, "PAPERLIB_ROOT": str(place)}
    subprocess.run([sys.executable, "-m", "paperlib.cli", command], env=environ, stdout=subprocess.DEVNULL, check=True)
    return used() - before


BENCHMARKS = (
    pgd_evaluation, engines, methods, adversarial_methods, raat_at_full_width, one_gradient, ten_gradients, sampled_classes,
    alignment, memory, rendering, reading, many_runs,
)  # fmt: skip


def main() -> None:
    known = {benchmark.__name__: benchmark for benchmark in BENCHMARKS}
    if unknown := [name for name in sys.argv[1:] if name not in known]:
        raise InputError(f"no benchmark {unknown[0]!r}; there are {', '.join(known)}")
    file = root() / "docs" / "results" / "benchmarks.json"
    results: dict[str, Any] = read_json(file) if file.exists() and sys.argv[1:] else {}
    for name in sys.argv[1:] or known:
        results[name] = {"environment": environment(), "rows": known[name]()}
        print(_section(name, inspect.getdoc(known[name]), results[name]), flush=True)
        write_json(file, results)
    network = f"ResNet-18 of width {WIDTH}, batch {BATCH}, 32 px unless said"
    intro = f"# Benchmarks\n\n`make bench`: {network}. Ratios hold within a table.\n"
    pages = [
        _section(name, inspect.getdoc(benchmark), results[name]) for name, benchmark in known.items() if name in results
    ]
    write_text(root() / "docs" / "results" / "benchmarks.md", "\n".join([intro, *pages]))


def _section(name: str, words: str | None, result: dict[str, Any]) -> str:
    about, rows = result["environment"], result["rows"]
    machine = f"{about['processor']}, {about['threads']} threads, torch {about['torch']}"
    lines = [f"## {name.replace('_', ' ')}\n\n{words}\n\n*{machine}.*\n"]
    lines.append("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
