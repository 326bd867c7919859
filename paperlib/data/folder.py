"""Images in folders train/<class>/* and test/<class>/* or val/<class>/*, read once into one cached array."""

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from paperlib.data.cache import Built, cached
from paperlib.data.images import ImageSet, places
from paperlib.runs.files import InputError, root
from paperlib.runs.progress import Bar

LONGEST = 255  # bytes of a file's name; Linux raises an error for a longer one instead of finding no file
# Pillow reads more formats, but an EPS image, under any file name, would run Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PIXELS = 2**26  # of one image at most: 8,192 × 8,192; the header of a small file can claim any size
LAYOUT = "train/<class>/* and test/<class>/* or val/<class>/*"


def located(path: str) -> Path:
    """Return the folder of a user's `path`: absolute, from home (~), from the working directory, or from the project.

    Raises InputError where it is no valid path: an unknown user after ~, or a name too long for the file system.
    """
    try:
        folder = Path(path).expanduser()
        return folder if folder.is_absolute() or folder.exists() else root() / folder
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"folder {path[:200]}: {error}; it should be a folder's path") from error


def load(folder: Path, size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Load the training and the test set in `folder`: uint8 N×3×H×W, classes in the order of their names.

    `size` scales the shorter side to that many pixels and crops the middle square; without it all images must have one
    size. Raises InputError naming the file or class when the tree is not as LAYOUT says.
    """
    if not (folder / "train").is_dir():
        raise InputError(f"data folder {folder}: there is no folder train in it; it should hold {LAYOUT}")
    other = _test_split(folder, LAYOUT)
    classes, tested = (tuple(class_folders(folder / split)) for split in ("train", other))
    if not classes:
        raise InputError(f"data folder {folder}: there are no class folders in train; it should hold {LAYOUT}")
    check_same_classes(folder, classes, tested, other)
    train, test = decoded(folder, {split: _files(folder, split, classes) for split in ("train", other)}, classes, size)
    return train, test


def check_same_classes(folder: Path, trained: Collection[str], tested: Collection[str], split: str) -> None:
    """Raise InputError where the class folders of train and of the other `split` differ."""
    if odd := sorted(set(trained) ^ set(tested)):
        missing = split if odd[0] in trained else "train"
        raise InputError(f"data folder {folder}: class {odd[0]!r} is missing from {missing}; both need the same classes")


def load_test(folder: Path, size: int | None = None, count: int | None = None) -> ImageSet:
    """Load the images of test/ or val/ alone; train/ may be missing. Raises InputError as `load` does.

    With `count`, load at most that many, class-balanced to within one, and read no others.
    """
    split = _test_split(folder, "test/<class>/*")
    if not (classes := tuple(class_folders(folder / split))):
        raise InputError(f"data folder {folder}: there are no class folders in {split}; it should hold {split}/<class>/*")
    listing = _files(folder, split, classes)
    if count is not None and count < len(listing):
        labels = torch.tensor([label for label, *_ in listing])
        listing = [listing[place] for place in places(ImageSet(labels, labels, classes), count, 0)]
    (test,) = decoded(folder, {split: listing}, classes, size)
    return test


Listing = list[tuple[int, str, int, int]]  # label, path within the folder, bytes, time of change


def decoded(folder: Path, listings: dict[str, Listing], classes: tuple[str, ...], size: int | None) -> tuple[ImageSet, ...]:
    """Return the images of the listings, from a cache that is built again when any file's size or time changes."""
    digest = hashlib.sha256()  # changes with any file that is added, removed, renamed, resized or touched
    for split, members in listings.items():
        for label, file, bytes_, modified in members:
            digest.update(f"{split}/{label}/{file}:{bytes_}:{modified}\n".encode(errors="surrogateescape"))
    source = {"tree": digest.hexdigest(), "size": size}
    which = f"{folder.resolve()}:{size}{'' if 'train' in listings else ':test'}"
    key = hashlib.sha256(which.encode()).hexdigest()[:10]
    cache = root() / "data" / "cache" / f"{folder.resolve().name}-{key}.safetensors"
    tensors, _ = cached(cache, source, lambda: _decode(folder, classes, listings, size))
    return tuple(ImageSet(tensors[f"{split}.images"], tensors[f"{split}.labels"], classes) for split in listings)


def class_folders(folder: Path) -> dict[str, str]:
    """Return the folder's name by class, sorted. Classes are in Unicode form NFC; macOS names folders in form NFD.

    Raises InputError where two folders have the same class, and for a name that is not UTF-8.
    """
    names = subfolders(folder)
    for name in names:
        if any("\udc80" <= letter <= "\udcff" for letter in name):  # how Python decodes bytes that are not UTF-8
            raise InputError(f"{folder}: the folder {os.fsencode(name)!r} has a name that is not UTF-8; rename it")
    found = {unicodedata.normalize("NFC", name): name for name in names}
    if len(found) < len(names):
        twice = next(name for name in names if found[unicodedata.normalize("NFC", name)] != name)
        raise InputError(f"{folder}: two folders are called {twice!r}, with accents encoded differently; merge them")
    return dict(sorted(found.items()))


def subfolders(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders in a folder, sorted, without hidden ones. Raises InputError if unreadable."""
    try:
        return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."))
    except OSError as error:  # such as a loop of links
        raise InputError(f"{folder}: {error}; remove it") from error


def listed(folder: Path, place: Path, label: int) -> Listing:
    """List the files of one class in `place` and the folders below it, in the order of torchvision's ImageFolder.

    Hidden files are left out. Raises InputError when there are no files, and for a loop of links.
    """
    members: Listing = []
    try:
        # Not sorted here: sorting would walk a loop of links to its end, which it may not have.
        for where, names, files in os.walk(place, onerror=_raised, followlinks=True):
            names[:] = [name for name in names if name[0] != "."]
            if any(
                os.path.samefile(os.path.join(where, name), parent) for name in names for parent in _up_to(place, where)
            ):
                raise InputError(f"class folder {where}: a link in it leads back to where it is; remove it")
            for name in files:
                if name[0] == ".":
                    continue
                file = Path(where, name)
                if not file.is_file():
                    raise InputError(f"{file}: neither a file nor a link to one; repair or remove it")
                about = file.stat()
                members.append((label, file.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns))
    except OSError as error:  # such as a loop of links
        raise InputError(f"class folder {place}: {error}; remove it") from error
    if not members:
        raise InputError(f"class folder {place} is empty; put images there or remove it from both splits")
    return sorted(members, key=lambda member: (os.path.dirname(member[1]), os.path.basename(member[1])))


def _raised(error: OSError) -> None:
    raise error


def _up_to(place: Path, where: str) -> list[Path]:
    """Return the folder `where` and its parents up to `place`."""
    below = Path(where)
    return [below, *(above for above in below.parents if above == place or place in above.parents)]


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file that belongs to a data set. Raises InputError when it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as UTF-8 text ({error}); repair or remove it") from error


def _test_split(folder: Path, layout: str) -> str:
    if (split := next((name for name in ("test", "val") if (folder / name).is_dir()), None)) is None:
        raise InputError(f"data folder {folder}: there is no folder test or val in it; it should hold {layout}")
    return split


def _files(folder: Path, split: str, classes: tuple[str, ...]) -> Listing:
    names = class_folders(folder / split)
    return [row for label, one in enumerate(classes) for row in listed(folder, folder / split / names[one], label)]


def _decode(folder: Path, classes: tuple[str, ...], listings: dict[str, Listing], size: int | None) -> Built:
    tensors = {}
    shape: tuple[int, int] | None = None if size is None else (size, size)
    with Bar(sum(map(len, listings.values())), f"reading {folder.name}", "img") as progress:
        for split, listing in listings.items():
            images: np.ndarray | None = None
            for row, (_, name, _, _) in enumerate(listing):
                file = folder / name
                pixels = read_image(file, size)
                shape = shape or (pixels.shape[0], pixels.shape[1])
                if pixels.shape[:2] != shape:
                    raise InputError(
                        f"{file} is {pixels.shape[1]}×{pixels.shape[0]} pixels, the images before it "
                        f"{shape[1]}×{shape[0]}: give a size to bring them all to, such as image_size=32"
                    )
                if images is None:
                    images = np.empty((len(listing), 3, *shape), np.uint8)
                images[row] = pixels.transpose(2, 0, 1)
                progress.update()
            tensors[f"{split}.images"] = torch.from_numpy(images)
            tensors[f"{split}.labels"] = torch.tensor([label for label, *_ in listing])
    return tensors, {"classes": list(classes)}


def _eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Scale an image of 16 bits to 8 bits, where Pillow would clip at 255; return others unchanged."""
    if image.mode == "F":
        raise InputError(f"{file}: its pixels are floating-point numbers of no known range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{file}: pixels from {values.min()} to {values.max()}; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 257 · 255


def read_image(file: Path, size: int | None) -> np.ndarray:
    """Read an image file as uint8 H×W×3; with `size`, scale its middle square to that many pixels.

    Raises InputError when it is no file, no complete image, not of FORMATS, or has more than PIXELS pixels.
    """
    if not file.is_file():  # reading a pipe or a device may never end
        raise InputError(f"{file}: neither a file nor a link to one; repair or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # PIXELS is lower than its limit
            image = Image.open(file, formats=FORMATS)
        with image:
            width, height = image.size  # from the header, before decoding
            if width * height > PIXELS:
                raise InputError(f"{file}: {width}×{height} pixels; an image may have {PIXELS:,} pixels in all")
            rgb = _eight_bits(image, file).convert("RGB")
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit is checked first
        raise InputError(f"{file}: {error}; an image may have {PIXELS:,} pixels in all") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{file} is not a whole image of the formats {', '.join(FORMATS)}; convert, repair or remove it"
        ) from error
    except Exception as error:  # decoders raise errors of many kinds
        raise InputError(f"{file} is not a whole image ({error}); repair or remove it") from error
    return np.asarray(rgb if size is None else ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC))
