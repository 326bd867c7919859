"""ImageNet-100: a hundred of ImageNet's classes, read in place and decoded when needed.

The classes are the common list of contrastive multiview coding (Tian et al. 2019, github.com/HobbitLong/CMC). DAAT does not
publish its list, but this one has the classes that its figures name. Labels follow the order of the WordNet numbers. The
tree may have one of three layouts:

- ILSVRC's own tree of all thousand classes: ILSVRC/Data/CLS-LOC/train/<class>/* and val/<class>/*, or val/* with the
  classes in LOC_val_solution.csv;
- train/<class>/* and val/<class>/*;
- several training folders: train.X1/<class>/*, train.X2/<class>/*, … and val.X/<class>/*.
"""

import csv
from pathlib import Path

from paperlib.data.folder import LONGEST, Listing, listed, read_lines, subfolders
from paperlib.data.images import ImageSet
from paperlib.data.streamed import Streamed
from paperlib.runs.files import InputError, root

SIZE = 224  # pixels
SOLUTION = "LOC_val_solution.csv"
CLASSES = (
    "n01558993", "n01692333", "n01729322", "n01735189", "n01749939", "n01773797", "n01820546", "n01855672",
    "n01978455", "n01980166", "n01983481", "n02009229", "n02018207", "n02085620", "n02086240", "n02086910",
    "n02087046", "n02089867", "n02089973", "n02090622", "n02091831", "n02093428", "n02099849", "n02100583",
    "n02104029", "n02105505", "n02106550", "n02107142", "n02108089", "n02109047", "n02113799", "n02113978",
    "n02114855", "n02116738", "n02119022", "n02123045", "n02138441", "n02172182", "n02231487", "n02259212",
    "n02326432", "n02396427", "n02483362", "n02488291", "n02701002", "n02788148", "n02804414", "n02859443",
    "n02869837", "n02877765", "n02974003", "n03017168", "n03032252", "n03062245", "n03085013", "n03259280",
    "n03379051", "n03424325", "n03492542", "n03494278", "n03530642", "n03584829", "n03594734", "n03637318",
    "n03642806", "n03764736", "n03775546", "n03777754", "n03785016", "n03787032", "n03794056", "n03837869",
    "n03891251", "n03903868", "n03930630", "n03947888", "n04026417", "n04067472", "n04099969", "n04111531",
    "n04127249", "n04136333", "n04229816", "n04238763", "n04336792", "n04418357", "n04429376", "n04435653",
    "n04485082", "n04493381", "n04517823", "n04589890", "n04592741", "n07714571", "n07715103", "n07753275",
    "n07831146", "n07836838", "n13037406", "n13040303",
)  # fmt: skip


def load(size: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Load the training set, and ImageNet's validation images as test set, from data/imagenet100: streamed uint8 N×3×S×S.

    The shorter side is scaled to `size` pixels (default SIZE) and the middle square is cropped. Raises InputError naming
    the layouts when the folder is missing, and naming the class or file when one is.
    """
    place = root() / "data" / "imagenet100"
    trees = [place, *(place / below for below in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"))]
    found = next((tree for tree in trees if _trains(tree)), None)
    if found is None:
        raise InputError(
            f"data 'imagenet100' is not in {place}. Downloading it needs an account at image-net.org. Put there, or link "
            "there, ILSVRC's tree (ILSVRC/Data/CLS-LOC/train/<class>/*), or train/<class>/* and val/<class>/*, or "
            "train.X1/<class>/*, train.X2/<class>/*, … and val.X/<class>/*; a class is a WordNet number such as n01558993"
        )
    trains, val = _trains(found), next((found / name for name in ("val", "val.X") if (found / name).is_dir()), None)
    if val is None:
        raise InputError(f"{found} has {trains[0].name} but no folder val or val.X")
    training: Listing = []
    for label, name in enumerate(CLASSES):
        homes = [folder / name for folder in trains if (folder / name).is_dir()]
        if not homes:
            raise InputError(f"{found}: class {name} is in none of {', '.join(folder.name for folder in trains)}")
        training += [row for home in homes for row in listed(found, home, label)]
    train, test = (_streamed(found, rows, size or SIZE) for rows in (training, _validation(found, val, place)))
    return train, test


def _trains(tree: Path) -> list[Path]:
    """Return the training folders of a tree: train, or train.X1, train.X2, …"""
    if not tree.is_dir():
        return []
    return [tree / name for name in subfolders(tree) if name == "train" or name.startswith("train.")]


def _validation(tree: Path, val: Path, place: Path) -> Listing:
    if any(name in CLASSES for name in subfolders(val)):
        if missing := sorted(set(CLASSES) - set(subfolders(val))):
            raise InputError(f"{val}: class {missing[0]} is missing; all of ImageNet-100's classes must be there")
        return [row for label, name in enumerate(CLASSES) for row in listed(tree, val / name, label)]
    solution = next(
        (folder / SOLUTION for folder in (tree, tree.parent, tree.parent.parent, place) if (folder / SOLUTION).is_file()),
        None,
    )
    if solution is None:
        raise InputError(
            f"{val} has no class folders, and there is no {SOLUTION} in {place}, which names each image's class"
        )
    labels, listing = {name: label for label, name in enumerate(CLASSES)}, []
    for number, row in enumerate(csv.DictReader(read_lines(solution)), 2):
        name, words = row.get("ImageId") or "", (row.get("PredictionString") or "").split()
        if not name or not words or Path(name).name != name:
            raise InputError(
                f"{solution}, line {number}: should be an image's name and its class, as ImageId,PredictionString"
            )
        if words[0] in labels:
            file = val / f"{name}.JPEG"
            if len(file.name.encode()) > LONGEST or not file.is_file():
                raise InputError(f"{solution}, line {number}: there is no image {file.name[:300]} in {val}")
            about = file.stat()
            listing.append((labels[words[0]], file.relative_to(tree).as_posix(), about.st_size, about.st_mtime_ns))
    if missing := sorted(set(CLASSES) - {CLASSES[label] for label, *_ in listing}):
        raise InputError(f"{solution} names no image of class {missing[0]}")
    return sorted(listing)


def _streamed(tree: Path, listing: Listing, size: int) -> ImageSet:
    images, labels = Streamed.of(tree, listing, size)
    return ImageSet(images, labels, CLASSES)  # type: ignore[arg-type]  # Streamed is indexed like a tensor
