"""A report on this machine: hardware, versions, disk, data, and how long the presets take here."""

import os
import shutil
import time
from collections.abc import Iterator

import torch

from paperlib import models
from paperlib.attacks import evaluating, training_pgd
from paperlib.data import EXTENTS
from paperlib.runs import run as runs
from paperlib.runs.files import root
from paperlib.training import computes_in_bf16

SECONDS = 2.0  # duration of the measured steps in each precision
# Seconds of `quick` in one thread beside another notebook, with the most expensive networks from the zoo. RATE is the fp32
# training rate of the same machine, an AMD EPYC without matrix units, torch 2.15.
QUICK = {
    "alignment_matrix": 216, "cifar_pag": 102, "daat_imagenet100": 150, "gfa_landscape": 124, "jacobian_norm": 74,
    "raat_boundary": 80, "toy_pag": 65,
}  # fmt: skip
RATE = 1080.0


def lines() -> Iterator[str]:
    """Yield one line each for the machine, its versions, disk and data, and the time that each preset takes here."""
    about = runs.environment()
    cores = os.cpu_count() or 1
    yield f"machine     {about['processor']}, {cores} cores, {about['platform']}"
    yield f"versions    paperlib {about['paperlib']}, Python {about['python']}, torch {about['torch']}"
    units = "yes" if torch.cpu._is_amx_tile_supported() else "no"
    yield f"processor   matrix units: {units}; instructions for bf16: {'yes' if computes_in_bf16('cpu') else 'no'}"
    yield f"GPU         {about['gpu'] or 'none that PyTorch sees'}"
    free = shutil.disk_usage(root()).free / 2**30
    yield f"disk        {free:.0f} GiB free in {root()}" + ("; a run of laptop may take 2" if free < 5 else "")
    found = [name for name in EXTENTS if (root() / "data" / name.replace("scenes4", "scenes")).exists()]
    yield f"data        {', '.join(found) or 'nothing yet'} in data/; scenes and the toy are generated on first use"
    rates = {"fp32": rate(torch.float32)} | ({"bf16": rate(torch.bfloat16)} if computes_in_bf16("cpu") else {})
    yield (
        "speed       "
        + ", ".join(f"{name} {value:.0f} images/s" for name, value in rates.items())
        + " of one thread under the machine's current load: PGD-AT with three steps, small CNN of width 16, 32 px"
    )
    minutes = {name: seconds * RATE / rates["fp32"] / 60 for name, seconds in QUICK.items()}
    total = sum(minutes.values())
    yield (
        f"quick       about {total:.0f} minutes on one core, {total / min(cores, 2):.0f} with --jobs {min(cores, 2)}: "
        + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    )
    for preset, words in (("laptop", "one to several hours a notebook"), ("gpu", "not run yet"), ("paper", "not run yet")):
        took = _took(preset)
        yield f"{preset:11} " + (", ".join(f"{name} {hours:.1f} h here" for name, hours in took.items()) or words)


def rate(dtype: torch.dtype) -> float:
    """Return the images per second of one training thread: PGD-3 AT, small CNN of width 16, 32 px, batches of 64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            model = models.small_cnn(4, width=16, stem_stride=2).to(memory_format=torch.channels_last)
            images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 4
            attack, count, begun = training_pgd(eps=4 / 255, norm="linf", steps=3), 0, 0.0
            while count == 0 or time.perf_counter() - begun < SECONDS:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    with evaluating(model):
                        adversarial = attack(model, images, labels)
                    torch.nn.functional.cross_entropy(model.train()(adversarial), labels).backward()
                begun, count = (begun or time.perf_counter()), count + 1  # the first step warms up
        return (count - 1) * len(images) / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)


def _took(preset: str) -> dict[str, float]:
    """Return the hours that finished runs of the preset took here, by notebook."""
    found = {}
    for folder in (root() / "runs").glob(f"*/{preset}-*"):
        about = runs.status(folder)
        if about["state"] == "finished":
            found[folder.parent.name] = about["seconds"] / 3600
    return found
