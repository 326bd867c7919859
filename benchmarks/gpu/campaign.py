"""The trainings of campaign.yaml, one after the other, as long as the time lasts; each is evaluated and written at once."""

import math
import time
import traceback
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.gpu import records
from benchmarks.gpu.common import RESULTS, SCRATCH, pack, save, seconds_of
from benchmarks.gpu.steps import Stepper, method_of, training_attack
from paperlib import evaluation, training
from paperlib.attacks import Attack, autoattack, evaluating, graphs, pgd
from paperlib.data import Splits, load, subset
from paperlib.evaluation import evaluate
from paperlib.evaluation.settings import NetworkSettings
from paperlib.methods.pag import alignment, class_mean, toward
from paperlib.runs.files import read_json
from paperlib.runs.run import environment
from paperlib.runs.tensors import read_tensors, write_tensors

RESERVE = 1.1  # times the measured seconds that a training is given
OVERHEAD = 12.0  # seconds around a training: graphs, libraries' plans for new shapes, digests, files
EPOCHS = range(4, 31)  # of which `--epochs 0` takes the most that let the first three trainings end in time
EVALUATED, OF_AUTOATTACK = 500, 250  # images attacked together
PART = 15 * 2**20  # bytes of a file of weights at most
SAVED = 2  # trainings whose weights are brought back


class OutOfTimeError(RuntimeError):
    """An attack that would end too late is not begun."""


def attacks(settings: dict[str, Any]) -> dict[str, Attack]:
    """What each network is evaluated under; the last is the column "C&W" of RAAT's tables."""
    one = partial(pgd, eps=settings["eps"], norm=settings["norm"], step_size=settings["step_size"])
    return {
        "pgd_20_margin": partial(one, steps=20, loss="margin"),
        "pgd_10": partial(one, steps=10),
        "pgd_100": partial(one, steps=100),
        "pgd_100_margin_50": partial(one, steps=100, loss="margin", kappa=50.0),
    }


class Campaign:
    """One session: the plan, the images, the speeds measured here and what is done."""

    def __init__(
        self, out: Path, device: str, until: float, *, epochs: int, tiny: int, kind: str, images: Path, most: int = 0
    ) -> None:
        self.out, self.device, self.until, self.tiny, self.kind = out, device, until, tiny, kind
        self.plan = records.read_plan()
        self.most = most or None  # of the trainings in their order
        self.folder = RESULTS / "campaign"
        self.data = self._images(images)
        self.means = class_mean(self.data.train, 1.0).to(device)
        self.attack = training_attack(**self.plan["attack"])
        self.failed: dict[str, str] = {}
        self.models: dict[str, nn.Module] = {}
        self.rates: dict[str, float] = {}
        evaluation.CHUNK = EVALUATED
        self.evaluating = self._evaluation_seconds()
        state = {} if tiny else records.read_state(records.KEPT)
        self.epochs = (state.get("protocol") or {}).get("epochs") or epochs or self._epochs_that_fit()
        self.protocol = records.protocol(self.plan, self.epochs, len(self.data.train), len(self.data.test))
        known = records.done(self.folder) | ({} if tiny else records.done(records.KEPT))  # of this session, where it broke
        self.known = {name: about for name, about in known.items() if about.get("protocol") == self.protocol["key"]}
        print(f"{self.epochs} epochs; done before: {', '.join(self.known) or 'nothing'}", flush=True)

    def _images(self, images: Path) -> Splits:
        chosen = self.plan["data"]
        if not self.tiny:
            return load(f"folder:{images}", validation_images=chosen["validation_images"], seed=chosen["seed"])
        whole = load(f"folder:{images}", validation_images=100, seed=chosen["seed"])
        if self.device == "cpu":
            self.plan["network"] |= {"model": "small_cnn", "width": 4}
            self.plan["training"] |= {"batch_size": 64}
        return Splits(subset(whole.train, self.tiny, 0), whole.validation, subset(whole.test, self.tiny // 10, 0))

    # Time --------------------------------------------------------------------------------------------------------

    def left(self) -> float:
        return self.until - time.time()

    def step_seconds(self, method: str) -> float:
        """Of a whole batch, measured once in this session."""
        if method not in self.rates:
            settings = self.plan["training"]
            network = self.plan["network"]
            shape = {
                "network": network["model"],
                "width": network["width"],
                "batch": settings["batch_size"],
                "bf16": settings["bf16"],
            }
            stepper = Stepper(
                method_of(method, self.attack, self.means), self.device, channels_last=True, kind=self.kind,
                size=self.data.train.images.shape[-1], **shape,
            )  # fmt: skip
            self.rates[method] = stepper.seconds(10 if self.device == "cuda" else 1)
            print(f"{method}: {1000 * self.rates[method]:.1f} ms a step", flush=True)
        return self.rates[method]

    def _evaluation_seconds(self) -> float:
        """Of all attacks but AutoAttack on all test images, from five steps on a few."""
        model = training.build(_settings(self.plan, 1, 0, self.device), self.data, 0).to(self.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = self.data.test.images[:EVALUATED].to(self.device).float() / 255
        labels = self.data.test.labels[:EVALUATED].to(self.device)
        attack = training_attack(steps=5)
        with evaluating(model):
            seconds = seconds_of(lambda: attack(model, images, labels), self.device, 3, 1) / 5
        count = sum(one.keywords["steps"] for one in attacks(self.plan["attack"]).values())
        return seconds * count * math.ceil(len(self.data.test) / len(labels))

    def training_seconds(self, name: str, description: dict[str, Any]) -> float:
        steps = self.epochs_of(name, description) * math.ceil(len(self.data.train) / self.plan["training"]["batch_size"])
        return RESERVE * (steps * self.step_seconds(description["method"]) + self.evaluating) + OVERHEAD

    def epochs_of(self, name: str, description: dict[str, Any]) -> int:
        """The campaign's, or those that take the time of another training: by their seconds where both were trained."""
        if not (other := description.get("time_of")):
            return self.epochs
        seed = name.rsplit("-seed", 1)[1]
        pair = [self.known.get(f"{one}-seed{seed}") for one in (other, description["method"])]
        both = [about["seconds"] / about["epochs"] for about in pair if about]
        same_card = len({about["environment"]["gpu"] for about in pair if about}) == 1
        if len(both) < 2 or not same_card:
            of = next(one for one in self.plan["trainings"] if one["name"] == other)
            both = [self.step_seconds(of["method"]), self.step_seconds(description["method"])]
        return max(1, round(self.epochs * both[0] / both[1]))

    def _epochs_that_fit(self) -> int:
        """The most with which the first three trainings end in time."""
        first = [(name, one) for name, one, _ in records.in_order(self.plan)][:3]
        self.known, fitting = {}, EPOCHS[0]
        for self.epochs in EPOCHS:
            if sum(self.training_seconds(name, one) for name, one in first) < self.left():
                fitting = self.epochs
        return fitting

    # Work --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All trainings for which there is time, in their order; then AutoAttack."""
        self.keep()
        for name, description, seed in islice(records.in_order(self.plan), self.most):
            if name in self.known:
                continue
            try:
                needed = self.training_seconds(name, description)
                if needed > self.left():
                    print(f"{name}: needs {needed:.0f} s, {max(0, self.left()):.0f} s are left", flush=True)
                    continue
                self.train(name, description, seed)
            except Exception as error:
                traceback.print_exc()
                self.failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
                self.keep()
                if "CUDA error" in str(error):  # nothing works in this process after that
                    raise
        try:
            self.under_autoattack()
        except Exception:
            traceback.print_exc()
        self.keep()

    def train(self, name: str, description: dict[str, Any], seed: int) -> None:
        graphs.KIND = self.kind  # type: ignore[assignment]
        epochs = self.epochs_of(name, description)
        settings = _settings(self.plan, epochs, seed, self.device)
        place = SCRATCH / "trainings" / self.protocol["key"][:8] / name
        begun = time.time()
        network = training.build(settings, self.data, seed)
        method = method_of(description["method"], self.attack, self.means)
        model = training.fit(network, method, self.data, settings, place, seed=seed, attack=self.attack, device=self.device)
        fitted = time.time()
        history = read_json(place / "history.json")
        print(f"{name}: {epochs} epochs in {fitted - begun:.0f} s ({history['seconds']:.0f} s of training)", flush=True)
        try:
            self.save_weights(name, model)
        except Exception:  # what was learnt can be evaluated all the same
            traceback.print_exc()
        outcomes, flags = evaluate(
            model,
            self.data.test,
            attacks(self.plan["attack"]),
            place / "outcomes.safetensors",
            seed=seed,
            device=self.device,
        )
        self.models[name] = model
        self.known[name] = {
            "name": name, "protocol": self.protocol["key"], "method": description["method"], "seed": seed, "epochs": epochs,
            "seconds": history["seconds"], "validation_seconds": history["validation_seconds"],
            "evaluation_seconds": time.time() - fitted, "attack": self.kind, "history": history["epochs"],
            "environment": environment(), "flags": flags, "precision": _precision(),
            "accuracy": {one: float(found.float().mean()) for one, found in outcomes.items()},
            "alignment": self.alignment(model),
        }  # fmt: skip
        write_tensors(self.folder / f"{name}.safetensors", outcomes, self.known[name])
        shown = "  ".join(f"{one} {100 * value:.2f}" for one, value in self.known[name]["accuracy"].items())
        print(f"{name}: {shown}  (evaluated in {time.time() - fitted:.0f} s)", flush=True)
        self.keep()

    def alignment(self, model: nn.Module, images: int = 500) -> dict[str, float]:
        """The mean cosine of the class gradients with class mean − image, of test images, by batch norm's mode."""
        few, target = subset(self.data.test, min(images, len(self.data.test)), 0), partial(toward, self.means)
        modes = {"evaluation": False, "training": True}
        return {name: float(alignment(model, few, target, batch_statistics=mode).mean()) for name, mode in modes.items()}

    def save_weights(self, name: str, model: nn.Module) -> None:
        """In bfloat16, in parts that are small enough each, of the first trainings alone."""
        if len({file.name.split(".")[0] for file in self.out.glob("*.safetensors")}) >= SAVED:
            return
        parts: list[dict[str, Tensor]] = [{}]
        for key, value in model.state_dict().items():
            small = value.detach().cpu().contiguous()
            small = small.bfloat16() if small.is_floating_point() else small
            if sum(one.nbytes for one in parts[-1].values()) + small.nbytes > PART:
                parts.append({})
            parts[-1][key] = small
        for number, part in enumerate(parts, 1):
            save_file(
                part, str(self.out / f"{name}.{number}of{len(parts)}.safetensors"), {"protocol": self.protocol["key"]}
            )

    def under_autoattack(self) -> None:
        """Round by round: the next chunk of images for every network, so that all have seen the same."""
        evaluation.CHUNK = OF_AUTOATTACK if not self.tiny else 50
        data = self.data.test[: self.plan["autoattack_images"] if not self.tiny else 50]
        slowest, chunk = 0.0, min(len(data), evaluation.shareable(data.images, evaluation.CHUNK))
        for upto in range(chunk, len(data) + 1, chunk):
            for name, model in self.models.items():
                if self.left() < 1.2 * slowest + 5:
                    print(f"AutoAttack: no time left for images {upto - chunk} to {upto} of {name}", flush=True)
                    return
                begun = time.time()
                self._autoattack(name, model, data, upto)
                slowest = max(slowest, time.time() - begun)
                self.keep()

    def _autoattack(self, name: str, model: nn.Module, data: Any, upto: int) -> None:
        calls = 0

        def one(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: Any) -> Tensor:
            nonlocal calls
            if calls:
                raise OutOfTimeError
            calls += 1
            return autoattack(model, images, labels, eps=eps, norm=norm)

        place = SCRATCH / "trainings" / self.protocol["key"][:8] / name / "autoattack.safetensors"
        settings = self.plan["attack"]
        attack = partial(one, eps=settings["eps"], norm=settings["norm"])
        with suppress(OutOfTimeError):
            evaluate(model, data, {"autoattack": attack}, place, seed=self.known[name]["seed"], device=self.device)
        found = read_tensors(place)[0]["autoattack"]
        outcomes, about = read_tensors(self.folder / f"{name}.safetensors")
        about["accuracy"]["autoattack"] = float(found.float().mean())
        about["autoattack_images"] = len(found)
        write_tensors(self.folder / f"{name}.safetensors", {**outcomes, "autoattack": found}, about)
        print(f"{name}: AutoAttack {100 * about['accuracy']['autoattack']:.1f} on {len(found)} images", flush=True)

    def keep(self) -> None:
        """Everything so far, as it would be taken along."""
        self.folder.mkdir(parents=True, exist_ok=True)
        records.write_state(self.folder, self.protocol, self.failed)
        save(RESULTS / "rates.json", {"s a step": self.rates, "s an evaluation": self.evaluating})
        pack(RESULTS, self.out / "results.tar")


def _settings(plan: dict[str, Any], epochs: int, seed: int, device: str) -> Any:
    """Of one training, and its network."""
    values = {
        **plan["training"], "epochs": epochs, "seeds": [seed], "device": device, "devices": 1, "venue": "neurips",
        "retrain": False,
    }  # fmt: skip
    return NetworkSettings.model_validate({**values, **plan["network"]})


def _precision() -> dict[str, bool]:
    return {
        "tf32 convolutions": torch.backends.cudnn.allow_tf32,
        "tf32 products": torch.backends.cuda.matmul.allow_tf32,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
    }


def images_there(wait: float) -> Path:
    """Where the images were unpacked, once they are. Raises RuntimeError where that does not come to an end."""
    ready = SCRATCH / "images.ready"
    end = time.time() + wait
    while not ready.exists():
        if time.time() > end:
            raise RuntimeError("the images are not unpacked")
        time.sleep(0.2)
    return SCRATCH / "images"
