"""Gather into .gpu/ what a rented GPU's machine lacks: `python -m benchmarks.gpu.prepare --data ARCHIVE`.

Wheels for Python 3.12 on Linux x86-64, and a .tar.xz of images as train/<class>/* and test/<class>/*.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from paperlib.runs.files import InputError, root, write_atomically

# What `pip install torch torchvision timm pandas matplotlib pytest …` does not bring, with all that it needs itself.
WHEELS = (
    "annotated-types==0.7.0",
    "eagerpy==0.30.0",
    "foolbox==3.3.4",
    "gitdb==4.0.12",
    "GitPython==3.2.1",
    "pyautoattack==0.2.0",
    "pydantic==2.11.10",
    "pydantic-core==2.33.2",
    "smmap==5.0.3",
    "typing-inspection==0.4.2",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LEFT_OUT = "/examples/"  # in a wheel: 40 MB of weights
MOST = 64 * 2**20  # bytes that may be carried, the repository included


def wheels(folder: Path) -> None:
    """Download the wheels, and leave their examples out."""
    with tempfile.TemporaryDirectory() as place:
        platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--python-version", "3.12", "--implementation", "cp", *platforms, "--dest", place, *WHEELS,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        for wheel in sorted(Path(place).glob("*.whl")):
            write_atomically(folder / wheel.name, lambda file, wheel=wheel: _without_examples(wheel, file))


def _without_examples(wheel: Path, slim: Path) -> None:
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as part:
        for name in whole.namelist():
            if LEFT_OUT not in f"/{name}":
                part.writestr(name, whole.read(name))


def check_archive(archive: Path) -> None:
    """Raise InputError where `archive` does not hold images by split and class."""
    try:
        with tarfile.open(archive, "r:xz") as opened:
            for count, member in enumerate(opened):
                split, *rest = Path(member.name).parts
                if split not in ("train", "test", "val") or len(rest) > 2:
                    raise InputError(f"{archive}: {member.name} is not of train/<class>/* or test/<class>/*")
                if count == 100:
                    break
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{archive}: not a .tar.xz archive ({error})") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data: Path = parser.parse_args().data
    check_archive(data)
    folder = root() / ".gpu"
    shutil.rmtree(folder, ignore_errors=True)
    wheels(folder / "wheels")
    write_atomically(folder / "data.tar.xz", lambda file: shutil.copyfile(data, file))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root(), capture_output=True, text=True, check=True).stdout
    repository = sum((root() / name).stat().st_size for name in tracked.split("\0") if name and (root() / name).is_file())
    carried = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {carried / 2**20:.1f} MiB, and {repository / 2**20:.1f} MiB of the repository")
    if carried + repository > MOST:
        raise InputError(
            f"{(carried + repository) / 2**20:.1f} MiB are more than the {MOST / 2**20:.0f} that can be carried"
        )


if __name__ == "__main__":
    main()
