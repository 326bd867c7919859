"""What the stages share: where things lie, the packages that were carried, and the timing of a step."""

import io
import itertools
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
CARRIED = HERE / ".gpu"
SCRATCH = Path(tempfile.gettempdir()) / "paperlib-gpu"  # the images, their cache and the trainings' own folders
RESULTS = SCRATCH / "results"  # packed into one archive: few files can be brought back


def use_carried_packages() -> None:
    """Put the carried wheels on the path, after what is installed: they fill the gaps alone."""
    site = SCRATCH / "site"
    for wheel in sorted((CARRIED / "wheels").glob("*.whl")):
        done = site / f".{wheel.name}"
        if not done.exists():
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(site)
            done.touch()
    sys.path.append(str(site))
    os.environ["PAPERLIB_ROOT"] = str(SCRATCH)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    SCRATCH.mkdir(parents=True, exist_ok=True)


def save(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; `paperlib.runs.files` may be what is broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def pack(folder: Path, archive: Path) -> None:
    """All files of a folder as one archive, whole or not at all."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as opened:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                opened.add(file, arcname=file.relative_to(folder).as_posix())
    temporary = archive.with_name(f".{archive.name}.tmp")
    temporary.write_bytes(content.getvalue())
    os.replace(temporary, archive)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text, a column for each name in any of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *[[str(row.get(name, "")) for name in names] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def seconds_of(call: Callable[[], object], device: str, repeats: int, warm_up: int = 3) -> float:
    """The median seconds of a call, on a GPU between events that the device itself marks."""
    import torch

    for _ in range(warm_up):
        call()
    if device != "cuda":
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks)) / 1000
