"""How fast a training step is, and how near to what the card can do: images a second by method, width and precision."""

import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.common import RESULTS, pack, save, seconds_of, table
from benchmarks.gpu.steps import Stepper, method_of, training_attack
from paperlib import models
from paperlib.attacks import evaluating, pgd
from paperlib.methods import Step
from paperlib.runs.run import environment
from paperlib.training import cost

METHODS = ("pgd_at", "raat", "pag", "trades", "standard")
EPOCH = 50_000
FORMS: dict[str, dict[str, Any]] = {
    "bf16 channels-last, graph": {"bf16": True, "channels_last": True, "kind": "graph"},
    "bf16 channels-last": {"bf16": True, "channels_last": True, "kind": "eager"},
    "tf32": {"bf16": False, "channels_last": False, "kind": "eager"},
    "bf16 channels-last, compiled": {"bf16": True, "channels_last": True, "kind": "compiled"},
}


def rate(device: str) -> float:
    """Operations a second of a product of two 8192×8192 matrices in bfloat16 (256 on a CPU)."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device, 10)


def measure(out: Path, device: str, until: float, *, tiny: bool, compiled: bool) -> None:
    """Write throughput.json and .txt after every row."""
    batch, repeats, widths = (8, 2, (4,)) if tiny else (128, 12, (64, 32))
    card = rate(device)
    print(f"8192³ in bf16: {card / 1e12:.0f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    flops: dict[tuple[str, int], int] = {}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        save(RESULTS / "throughput.json", {"bf16 flop/s": card, "environment": environment(), "rows": rows})
        (RESULTS / "throughput.txt").write_text(table(rows) + "\n", encoding="utf-8")
        pack(RESULTS, out / "results.tar")
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def step(name: str, width: int, form: str, vary: bool = False, benchmark: bool = False) -> dict[str, Any]:
        torch.backends.cudnn.benchmark = benchmark
        attack = training_attack(steps=2) if tiny else training_attack()
        means = torch.rand(10, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
        stepper = Stepper(method_of(name, attack, means), device, width=width, batch=batch, vary=vary, **FORMS[form])
        if (name, width) not in flops:
            flops[name, width] = cost.flops(stepper.plain, stepper.model, stepper.batch, Step(0, 1000, 0))
        seconds = stepper.seconds(repeats)
        least = flops[name, width] / card
        return {
            "method": name, "width": width,
            "form": form + ", members vary" * vary + ", cudnn benchmark" * benchmark, "ms a step": round(1000 * seconds, 2),
            "img/s": round(batch / seconds), "s an epoch": round(EPOCH / batch * seconds, 1),
            "GFLOP": round(flops[name, width] / 1e9), "share of the card": round(least / seconds, 3),
        }  # fmt: skip

    def attacked(width: int) -> dict[str, Any]:
        model = models.build("resnet18", classes=10, channels=3, width=width, seed=0, normalisation="none").to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        count = 16 if tiny else 500
        images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(device)
        labels = torch.arange(count, device=device) % 10
        attack = partial(pgd, eps=8 / 255, norm="linf", steps=2 if tiny else 20, step_size=2 / 255, loss="margin")
        with evaluating(model):
            seconds = seconds_of(lambda: attack(model, images, labels), device, 3, 1)
        row = {"method": "PGD-20", "width": width, "form": "evaluation, tf32", "ms a step": round(1000 * seconds / 20, 2)}
        return {**row, "img/s": round(count / seconds)}

    work: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    first, *others = widths
    for form in list(FORMS)[:3]:
        work += [(f"{name} {first} {form}", partial(step, name, first, form)) for name in METHODS if _differs(name, form)]
    graph = next(iter(FORMS))
    work.insert(2, ("raat, members vary", partial(step, "raat", first, graph, vary=True)))
    work.insert(2, ("pgd_at, cudnn benchmark", partial(step, "pgd_at", first, graph, benchmark=True)))
    work.append((f"PGD-20 {first}", partial(attacked, first)))
    for width in others:
        for form in list(FORMS)[:3]:
            work += [
                (f"{name} {width} {form}", partial(step, name, width, form)) for name in METHODS if _differs(name, form)
            ]
    if compiled:
        form = list(FORMS)[3]
        work += [(f"{name} {first} {form}", partial(step, name, first, form)) for name in ("pgd_at", "raat")]
    for what, call in work:
        if time.time() > until:
            print(f"no time left for {what}", flush=True)
            continue
        try:
            keep(call())
        except Exception as error:
            traceback.print_exc()
            keep({"method": what, "form": f"{type(error).__name__}: {str(error)[:80]}"})
            if "CUDA error" in str(error):
                raise


def _differs(name: str, form: str) -> bool:
    """Methods without an attack have nothing to record."""
    return "graph" not in form or name not in ("pag", "standard")
