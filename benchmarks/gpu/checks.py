"""What can go wrong on a GPU alone: every method, attack and a training there, against the same on the CPU."""

import copy
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.common import HERE, RESULTS, pack, save, table

sys.path.insert(0, str(HERE / "tests"))

import parts

from paperlib import attacks, models, training
from paperlib.attacks import graphs, lengths, minimum_norm, pgd
from paperlib.data import Splits
from paperlib.methods import Batch, Step
from paperlib.methods.baselines import AdversarialTraining
from paperlib.runs.files import read_json
from paperlib.runs.run import environment
from paperlib.runs.settings import TrainingSettings
from paperlib.training import kept

EXACT, SINGLE = 1e-6, 5e-2  # relative errors allowed in double and in single precision
EPS = 0.05


class FailedError(AssertionError):
    """A check that did not hold."""


def run(out: Path, device: str, until: float) -> None:
    """Write checks.json and .txt: each check's outcome, and those for which there was no time."""
    rows: list[dict[str, Any]] = []
    torch.set_num_threads(min(4, torch.get_num_threads()))  # the networks are small
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def keep() -> None:
        save(RESULTS / "checks.json", {"environment": environment(), "rows": rows})
        (RESULTS / "checks.txt").write_text(table(rows) + "\n", encoding="utf-8")
        pack(RESULTS, out / "results.tar")

    for what, check in every(device):
        begun = time.time()
        if begun > until:
            rows.append({"what": what, "outcome": "skipped", "detail": "no time left"})
            continue
        try:
            rows.append({"what": what, "outcome": "passed", "detail": check() or ""})
        except Skipped as reason:
            rows.append({"what": what, "outcome": "skipped", "detail": str(reason)})
        except Exception as error:
            if not isinstance(error, FailedError):
                traceback.print_exc()
            rows.append({"what": what, "outcome": "FAILED", "detail": f"{type(error).__name__}: {str(error)[:160]}"})
            if "CUDA error" in str(error):
                keep()
                raise
        rows[-1]["seconds"] = round(time.time() - begun, 2)
        if rows[-1]["outcome"] != "passed":
            print(f"{rows[-1]['outcome']} {what}: {rows[-1]['detail']}", flush=True)
        keep()
    keep()
    counts = {outcome: sum(row["outcome"] == outcome for row in rows) for outcome in ("passed", "skipped", "FAILED")}
    said = ("graph", "a step", "killed", "attack", "bf16 raat", "bf16 pag", "fp32 small_cnn raat", "fp32 small_cnn pag")
    print(table([row for row in rows if row["outcome"] == "FAILED" or row["what"].startswith(said)]), flush=True)
    print(*(f"{count} {outcome}" for outcome, count in counts.items()), sep=", ", flush=True)


class Skipped(Exception):
    """A check that cannot be made here, and why."""


def every(device: str) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """All checks by name; the graph first, which decides how the campaign attacks."""
    for bf16 in (False, True):
        name = "bf16" if bf16 else "fp32"
        yield f"graph = call, {name}", partial(graph_is_the_call, device, bf16)
    yield "graph reads the weights and the seed", partial(graph_reads, device)
    yield "a step does not wait", partial(steps_do_not_wait, device)
    yield "killed and resumed", partial(resumed, device)
    for name in parts.METHODS:
        yield f"bf16 {name}", partial(finite_in_bf16, device, name)
    for (kind, name), build in parts.CASES.items():
        yield f"fp64 {kind} {name}", partial(same_gradient, device, kind, build, torch.float64, EXACT)
    for name, attack in own_attacks().items():
        yield f"attack {name}", partial(attack_is_the_same, device, attack)
    for name, attack in libraries().items():
        yield f"attack {name}", partial(attack_is_as_strong, device, attack)
    for (kind, name), build in parts.CASES.items():
        yield f"fp32 {kind} {name}", partial(same_gradient, device, kind, build, torch.float32, SINGLE)


# Methods -----------------------------------------------------------------------------------------------------------


def moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    """A method with the tensors and networks in it on a device and in a precision."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(device, dtype)
    if isinstance(value, partial):
        given = [moved(one, device, dtype) for one in value.args]
        return partial(value.func, *given, **{name: moved(one, device, dtype) for name, one in value.keywords.items()})
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: moved(getattr(value, field.name), device, dtype) for field in fields(value)})
    if isinstance(value, tuple):
        return tuple(moved(one, device, dtype) for one in value)
    return value


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Where a method draws on the device, the two would draw differently."""
    randn_like = torch.randn_like
    torch.randn_like = lambda x, **_: x.detach() + torch.arange(x.shape[-1], device=x.device)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = randn_like


def gradient(device: str, kind: str, build: parts.Build, dtype: torch.dtype, bf16: bool = False) -> dict[str, Tensor]:
    """A step's gradients, the network's buffers after it and the terms of the loss."""
    model = copy.deepcopy(trained(kind))
    method = moved(build(model), device, dtype)
    model = model.to(device, dtype).train()
    if bf16:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).eval()
    pixels, labels, depth = parts.images()
    batch = Batch(pixels.to(device, dtype), labels.to(device), lambda x: x.clone(), depth.to(device, dtype))
    torch.manual_seed(0)
    with nothing_drawn(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        terms = method.loss(model, batch, Step(40, 100, 4, averaged))
    terms["total"].backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    found |= {f"buffer {name}": buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    found |= {f"term {name}": term for name, term in terms.items()}
    return {name: value.detach().double().cpu() for name, value in found.items()}


def same_gradient(device: str, kind: str, build: parts.Build, dtype: torch.dtype, allowed: float) -> str:
    here, there = (gradient(place, kind, build, dtype) for place in ("cpu", device))
    if here.keys() != there.keys():
        raise FailedError(f"other weights have a gradient: {sorted(here.keys() ^ there.keys())[:3]}")
    weights = [name for name in here if not name.startswith(("buffer ", "term "))]
    flat = [torch.cat([found[name].flatten() for name in weights]) for found in (here, there)]
    errors = {"gradient": relative(*flat), "total": relative(here["term total"], there["term total"])}
    errors["buffers"] = max((relative(here[name], there[name]) for name in here if name.startswith("buffer ")), default=0.0)
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    if not all(error < allowed for error in errors.values()):
        raise FailedError(f"{shown}; allowed {allowed:g}")
    return shown


def relative(expected: Tensor, found: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def finite_in_bf16(device: str, name: str) -> str:
    found = gradient(device, "small_cnn", parts.METHODS[name], torch.float32, bf16=True)
    bad = [key for key, value in found.items() if not value.isfinite().all()]
    if bad:
        raise FailedError(f"not finite: {', '.join(bad[:3])}")
    reference = gradient("cpu", "small_cnn", parts.METHODS[name], torch.float32)
    return f"total {float(found['term total']):.4f}, on the CPU in fp32 {float(reference['term total']):.4f}"


# Attacks -----------------------------------------------------------------------------------------------------------


def own_attacks() -> dict[str, Any]:
    """Those that draw nothing."""
    settings = {"steps": 10, "step_size": EPS / 4, "random_start": False}
    linf = partial(pgd, eps=EPS, norm="linf", **settings)  # type: ignore[arg-type]
    return {
        "pgd linf": linf,
        "pgd linf margin": partial(linf, loss="margin", kappa=50.0),
        "pgd linf best": partial(linf, best=True),
        "pgd l2": partial(pgd, eps=0.5, norm="l2", steps=10, step_size=0.125, random_start=False),
        "fgsm": partial(attacks.fgsm, eps=EPS, norm="linf"),
    }


def libraries() -> dict[str, Any]:
    """Those that draw, or come from a library."""
    return {
        "pgd, three restarts": partial(pgd, eps=EPS, norm="linf", steps=10, step_size=EPS / 4, restarts=3),
        "apgd": partial(attacks.apgd, eps=EPS, norm="linf", steps=20),
        "apgd l2": partial(attacks.apgd, eps=0.5, norm="l2", steps=20),
        "square": partial(attacks.square, eps=EPS, norm="linf", queries=200),
        "autoattack, short": partial(attacks.autoattack, eps=EPS, norm="linf", short=True),
        "deepfool": partial(minimum_norm.deepfool, norm="l2"),
        "ddn": partial(minimum_norm.ddn, norm="l2", steps=20),
        "carlini_wagner": partial(minimum_norm.carlini_wagner, steps=20, searches=3),
        "elastic_net": partial(minimum_norm.elastic_net, steps=20, searches=3),
        **{name: attack for name, attack in minimum_norm.pixel_attacks(3).items() if name == "one_pixel"},
    }


@cache
def trained(kind: str) -> nn.Module:
    """`parts.network`, trained once."""
    return parts.network(kind)


@cache
def learnt(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that has learnt brightness by channel, in double precision, and 48 images of its kind."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(48) % classes
    images = 0.7 * torch.rand(48, 3, 16, 16, generator=generator, dtype=torch.float64)
    for label in range(3):
        images[labels == label, label] += 0.3 * torch.rand(int((labels == label).sum()), 1, 1, generator=generator).double()
    model = models.build("small_cnn", classes=classes, channels=3, width=8, seed=0).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval(), images, labels


def victim() -> tuple[nn.Module, Tensor, Tensor]:
    model, images, labels = learnt()
    return copy.deepcopy(model), images, labels


def attack_is_the_same(device: str, attack: Any) -> str:
    model, images, labels = victim()
    here = attack(model, images, labels)
    model = model.to(device)
    there = attack(model, images.to(device), labels.to(device)).cpu()
    error = float((here - there).abs().max())
    if not error < EXACT:
        raise FailedError(f"the images differ by {error:.1e}")
    return f"the images differ by {error:.1e}"


def attack_is_as_strong(device: str, attack: Any) -> str:
    """Within the ball and the box, and about as many images fooled as on the CPU; or about as far."""
    accuracies, distances, few = [], [], attack.func is minimum_norm.one_pixel
    for place in ("cpu", device):
        model, images, labels = victim()
        model = model.float().to(place)
        images, labels = images.float().to(place), labels.to(place)
        if few:
            images, labels = images[:4], labels[:4]
        torch.manual_seed(1)
        found = attack(model, images, labels)
        if found.device.type != torch.device(place).type or found.shape != images.shape:
            raise FailedError(f"on {found.device} of shape {tuple(found.shape)}")
        if not (found.min() >= 0 and found.max() <= 1):
            raise FailedError(f"out of the box: {float(found.min())} to {float(found.max())}")
        norm, eps = attack.keywords.get("norm", "l2"), attack.keywords.get("eps", torch.inf)
        if not float(lengths(found - images, norm).max()) <= eps + 1e-5:
            raise FailedError(f"out of the ball: {float(lengths(found - images, norm).max())}")
        with torch.no_grad():
            accuracies.append(float((model(found).argmax(1) == labels).float().mean()))
        sizes = lengths(found - images, norm)
        distances.append(float(sizes[sizes > 0].median()) if bool((sizes > 0).any()) else 0.0)
    shown = f"accuracy {accuracies[0]:.2f} and {accuracies[1]:.2f}, distance {distances[0]:.3f} and {distances[1]:.3f}"
    if abs(accuracies[0] - accuracies[1]) > 0.15 and not few:
        raise FailedError(shown)
    return shown


# Graphs, and whole trainings ---------------------------------------------------------------------------------------


def network(device: str, channels_last: bool) -> tuple[nn.Module, Tensor, Tensor]:
    model = models.build("resnet18", classes=10, channels=3, width=16, seed=0).to(device).eval()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    return model, images, torch.arange(32, device=device) % 10


def both(attack: Any, kept: graphs.Recorded, model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> list[Tensor]:
    found = []
    for one in (attack, kept):
        torch.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)
        found += [one(model, images, labels), torch.rand(4, device=images.device)]  # and what is drawn after it
    return found


ATTACK = partial(pgd, eps=8 / 255, norm="linf", steps=10, step_size=2 / 255)


def graph_is_the_call(device: str, bf16: bool) -> str:
    """The same images, and the same draws after it; also for a second shape."""
    if device != "cuda":
        raise Skipped("there is no GPU")
    kept = graphs.Recorded(ATTACK)
    model, images, labels = network(device, bf16)
    said = []
    for count in (32, 20, 32):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            called, drawn, replayed, drawn_after = both(ATTACK, kept, model, images[:count], labels[:count], count)
        if not kept.replays:
            raise FailedError("it was not recorded")
        if not torch.equal(drawn, drawn_after):
            raise FailedError("the generator is elsewhere after a replay")
        share = float((called != replayed).float().mean())
        said.append("bit for bit" if not share else f"{100 * share:.2g} % of the pixels differ")
        if share > 0.02:
            raise FailedError(said[-1])
        moved_by = float((replayed - images[:count]).abs().max())
        if not 7.9 / 255 < moved_by < 8.1 / 255:
            raise FailedError(f"the images are moved by {moved_by}")
    return ", ".join(said)


def graph_reads(device: str) -> str:
    """The weights as they are at a replay, under autocast too, and the generator's seed."""
    if device != "cuda":
        raise Skipped("there is no GPU")
    model, images, labels = network(device, True)
    kept = graphs.Recorded(ATTACK)
    with torch.autocast(device, torch.bfloat16):
        before = both(ATTACK, kept, model, images, labels, 1)[2]
        again = both(ATTACK, kept, model, images, labels, 1)[2]
        other = both(ATTACK, kept, model, images, labels, 2)[2]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.05)
    with torch.autocast(device, torch.bfloat16):
        called, _, replayed, _ = both(ATTACK, kept, model, images, labels, 1)
    if not torch.equal(before, again) or torch.equal(before, other):
        raise FailedError("the seed does not decide the random start")
    share, changed = ((one != replayed).float().mean().item() for one in (called, before))
    if share > 0.02 or changed < 0.1:
        raise FailedError(f"after new weights {100 * share:.2g} % differ from a call, {100 * changed:.2g} % from before")
    return f"after new weights {100 * share:.2g} % of the pixels differ from a call, {100 * changed:.2g} % from before"


def settings(device: str, **changes: Any) -> TrainingSettings:
    return TrainingSettings(**{**parts.SETTINGS, "device": device, "bf16": True, "ema": 0.0, **changes})


def fitted(device: str, folder: Path, method: Any, **changes: Any) -> nn.Module:
    model = models.build("small_cnn", classes=parts.CLASSES, channels=3, width=8, seed=0)
    return training.fit(model, method, parts.splits(), settings(device, **changes), folder, seed=0, device=device)


def resumed(device: str) -> str:
    """A training that ends in its third epoch and goes on ends as one that was left in peace."""
    recipe = kept.recipe_of
    attack = partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.06)
    seconds, kept.CHECKPOINT_SECONDS = kept.CHECKPOINT_SECONDS, 0.0
    kept.recipe_of = lambda model, method, *rest: recipe(model, AdversarialTraining(attack), *rest)  # type: ignore
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        with tempfile.TemporaryDirectory() as place:
            whole = fitted(device, Path(place) / "whole", AdversarialTraining(attack), epochs=4)
            with suppress(KeyboardInterrupt):
                fitted(device, Path(place) / "half", parts.StopsAt(attack), epochs=4)
            if not (Path(place) / "half" / "checkpoint.safetensors").exists():
                raise FailedError("there is no checkpoint")
            again = fitted(device, Path(place) / "half", AdversarialTraining(attack), epochs=4)
            epochs = read_json(Path(place) / "half" / "history.json")["epochs"]
    finally:
        kept.CHECKPOINT_SECONDS, kept.recipe_of = seconds, recipe
        torch.backends.cudnn.deterministic = deterministic
    if len(epochs) != 4:
        raise FailedError(f"{len(epochs)} epochs of 4")
    pairs = list(zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    error = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    if error > 1e-3:
        raise FailedError(f"the weights differ by {error:.1e}")
    return "bit for bit" if not error else f"the weights differ by {error:.1e}"


def steps_do_not_wait(device: str) -> str:
    """How often a step of PGD-AT makes the processor wait for the GPU: the losses are read every twentieth."""
    if device != "cuda":
        raise Skipped("there is no GPU")
    data = parts.splits()
    many = torch.arange(1200) % len(data.train)
    method = AdversarialTraining(partial(pgd, eps=0.1, norm="linf", steps=2, step_size=0.06))
    counts = {}
    for steps in (20, 100):
        model = models.build("small_cnn", classes=parts.CLASSES, channels=3, width=8, seed=0)
        part = Splits(data.train[many[: 12 * steps]], data.validation, data.test)
        with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                chosen = settings(device, epochs=1, crop_padding=1, flip=True)
                training.fit(model, method, part, chosen, Path(place) / "x", seed=0, device=device)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts[steps] = sum("synchroniz" in str(one.message) for one in told)
    each = (counts[100] - counts[20]) / 80
    if each > 0.2:
        raise FailedError(f"{each:.2f} times a step ({counts})")
    return f"{each:.2f} times a step"
