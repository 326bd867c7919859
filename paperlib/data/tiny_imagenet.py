"""Tiny-ImageNet, 200 classes of 64 px: the archive's own tree or a restructured one, read in place.

The archive has train/<class>/images/*.JPEG. All its validation images are in val/images, with their classes in
val/val_annotations.txt; the images of its test folder have no labels. In restructured trees the validation images are in
val/<class>/* or val/<class>/images/*.
"""

import os
import shutil
import zipfile
import zlib
from pathlib import Path

from filelock import FileLock

from paperlib.data.folder import LONGEST, Listing, check_same_classes, decoded, listed, read_lines, subfolders
from paperlib.data.images import ImageSet
from paperlib.runs.files import InputError, root

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
NAME = "tiny-imagenet-200"
ANNOTATIONS = Path("val", "val_annotations.txt")


def load() -> tuple[ImageSet, ImageSet]:
    """Load the training set, and the validation set as test set, uint8 N×3×64×64, from data/tiny_imagenet.

    Downloads it when it is missing. Raises InputError naming the folder and the address when that fails.
    """
    place = root() / "data" / "tiny_imagenet"
    for folder in (place, place / NAME, place.with_name(NAME)):
        if (folder / "train").is_dir():
            return read(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):  # one process downloads, others wait
            if not (place / NAME / "train").is_dir():
                half = place / ".extracting"  # so that the final tree is never incomplete
                shutil.rmtree(half, ignore_errors=True)
                from torchvision.datasets.utils import download_and_extract_archive  # slow to import

                download_and_extract_archive(URL, str(place), str(half), md5=MD5)
                os.replace(half / NAME, place / NAME)
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"data 'tiny_imagenet' is not in {place} and cannot be downloaded ({error}). Put {NAME}.zip or its extracted "
            f"folder there; it comes from {URL}. Or name the folder where you have it: data=folder:PATH"
        ) from error
    return read(place / NAME)


def recognised(folder: Path) -> bool:
    """Return whether a folder has the layout of Tiny-ImageNet's archive, at least in its training part."""
    train = folder / "train"
    return (folder / ANNOTATIONS).is_file() or (
        train.is_dir() and any((train / name / "images").is_dir() for name in subfolders(train)[:1])
    )


def read(folder: Path, size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Load both sets in `folder`: classes in the order of their WordNet numbers, with names from words.txt if it exists.

    Raises InputError naming the file or class when the tree has neither layout.
    """
    if not (folder / "train").is_dir():
        raise InputError(f"data folder {folder}: there is no folder train in it")
    numbers = subfolders(folder / "train")
    if not numbers:
        raise InputError(f"data folder {folder}: there are no class folders in train")
    labels = {number: label for label, number in enumerate(numbers)}
    train = [row for number, label in labels.items() for row in listed(folder, _images(folder / "train" / number), label)]
    annotations = folder / ANNOTATIONS
    loose = folder / "val" / "images"
    moved = not loose.is_dir() or not any(loose.iterdir())  # into class folders
    if annotations.is_file() and not moved:
        val = _annotated(folder, annotations, labels)
    else:
        if not (folder / "val").is_dir():
            raise InputError(f"data folder {folder}: there is no folder val in it")
        check_same_classes(folder, numbers, set(subfolders(folder / "val")) - ({"images"} if moved else set()), "val")
        val = [row for number, label in labels.items() for row in listed(folder, _images(folder / "val" / number), label)]
    trained, tested = decoded(folder, {"train": train, "val": val}, _names(folder, numbers), size)
    return trained, tested


def _images(place: Path) -> Path:
    return place / "images" if (place / "images").is_dir() else place


def _annotated(folder: Path, annotations: Path, labels: dict[str, int]) -> Listing:
    """List the images of val_annotations.txt: file name, class and bounding box per line, separated by tabs."""
    listing: Listing = []
    for number, line in enumerate(read_lines(annotations), 1):
        name, found, *_ = [*line.split("\t"), ""]
        file = folder / "val" / "images" / name
        if found not in labels:
            raise InputError(
                f"{annotations}, line {number}: class {found!r} is not among the folders in {folder / 'train'}"
            )
        if Path(name).name != name or len(name.encode()) > LONGEST or not file.is_file():
            raise InputError(f"{annotations}, line {number}: there is no image {name!r} in {folder / 'val' / 'images'}")
        listing.append((labels[found], f"val/images/{name}", file.stat().st_size, file.stat().st_mtime_ns))
    if not listing:
        raise InputError(f"{annotations} is empty; it should name an image and its class in each line")
    return listing


def _names(folder: Path, numbers: tuple[str, ...]) -> tuple[str, ...]:
    words = folder / "words.txt"
    if not words.is_file():
        return numbers
    known = dict(line.split("\t", 1) for line in read_lines(words) if "\t" in line)
    return tuple(known.get(number, number).split(",")[0].strip() for number in numbers)
