"""Estimate the cost of a study's training on this machine from single steps on random images."""

import time
from typing import Any

import pandas as pd
import torch

from paperlib import models, studies
from paperlib.data import load
from paperlib.methods import Batch, Method, Step
from paperlib.runs.files import InputError
from paperlib.runs.progress import Bar
from paperlib.runs.run import peak_memory
from paperlib.training import computes_in_bf16

BATCHES = {"cpu": (1, 2), "cuda": (1, 8, 32)}  # batch sizes; their difference in memory gives the memory of one image
IMAGENET100 = (125_000, 224, 100)  # training images (DAAT, Section 5.1), pixels, classes


def measure(notebook: str, settings: Any) -> pd.DataFrame:
    """Time a step on random images of each method in the study's REHEARSALS; one row per method.

    Columns: img/s, and days for all epochs at that rate. The last method also has the memory of a step at the settings'
    batch size in GiB, extrapolated from small batches. Raises InputError for a study without a rehearsal.
    """
    known = studies.declared("REHEARSALS")
    if (rehearsal := known.get(notebook)) is None:
        raise InputError(f"{notebook} has no dry run; {', '.join(known)} has")
    count, size, classes = _extent(settings)
    device = "cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"
    work: dict[str, Method] = rehearsal(settings, size, classes)
    model = models.of_settings(settings, classes=classes, channels=3, size=size, seed=0).to(device)
    bf16 = settings.bf16 and computes_in_bf16(device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    rows: dict[str, dict[str, float]] = {}
    peaks: list[int] = []
    # The last method runs first: a CPU's peak is the process's and never falls, so other methods would hide its memory.
    last, sizes = list(work)[-1], BATCHES[device]
    with torch.random.fork_rng(), Bar(len(work) * len(sizes), "rehearsing", "step") as progress:
        for name, method in sorted(work.items(), key=lambda one: one[0] != last):
            for number in sizes:
                images = torch.rand(number, 3, size, size, device=device)
                labels = torch.arange(number, device=device) % classes
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                begun = time.perf_counter()
                model.train()
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    terms = method.loss(model, Batch(images, labels, lambda x: x), Step(0, 1, 0))
                terms["total"].backward()
                optimizer.step()
                optimizer.zero_grad()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - begun
                if name == last:
                    peaks.append(torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory())
                progress.update()
            rate = sizes[-1] / seconds
            rows[name] = {"img/s": rate, "days": count * settings.epochs / rate / 86_400}
    each = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
    rows[last][f"GiB, batch {settings.batch_size}"] = (peaks[0] + each * (settings.batch_size - sizes[0])) / 2**30
    return pd.DataFrame(rows).T.loc[list(work)]


def _extent(settings: Any) -> tuple[int, int, int]:
    """Return the numbers of training images, pixels and classes: constants for ImageNet-100, else from the loaded data."""
    if settings.data == "imagenet100":
        count, size, classes = IMAGENET100
        return settings.train_images or count, settings.image_size or size, classes
    train = load(settings.data, train_images=settings.train_images, image_size=settings.image_size).train
    return len(train), int(train.images.shape[-1]), len(train.classes)
