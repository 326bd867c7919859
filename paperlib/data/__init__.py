"""Data sets. `load` reads any of them by name, and returns every one in the same form: an `ImageSet` per split."""

from paperlib.data import folder, imagenet100, scenes, tiny_imagenet, toy, vision
from paperlib.data.images import (
    ImageSet,
    Splits,
    as_float,
    balanced,
    chunk_size,
    hold_out,
    joined,
    named,
    shareable,
    subset,
)  # fmt: skip
from paperlib.runs.files import InputError

__all__ = [
    "DESCRIPTIONS", "EXTENTS", "ImageSet", "Splits", "as_float", "balanced", "check_name", "chunk_size", "joined", "load",
    "load_test", "named", "shareable", "subset",
]  # fmt: skip

DESCRIPTIONS = {
    "toy": "2-D points on a line, two classes (PAG, Appendix C.1)",
    "scenes": "rendered solids with exact depth, ten classes; no download",
    "scenes4": "four classes of scenes, which small networks learn in seconds",
    "cifar10": "32 px, ten classes; downloaded by torchvision",
    "cifar100": "32 px, a hundred classes; downloaded by torchvision",
    "stl10": "96 px, ten classes; downloaded by torchvision",
    "tiny_imagenet": "64 px, 200 classes; from data/tiny_imagenet, original or restructured, else downloaded",
    "imagenet100": "224 px, a hundred of ImageNet's classes; from data/imagenet100, decoded when needed",
    "fashion_mnist": "28 px, grey, ten classes; downloaded by torchvision",
    "folder:PATH": f"your own images: {folder.LAYOUT}",
}
EXTENTS = {  # test images and classes that are known before loading; for scenes the default number of images
    "toy": (600, 2), "scenes": (2000, 10), "scenes4": (2000, 4), "cifar10": (10_000, 10), "cifar100": (10_000, 100),
    "stl10": (8000, 10), "tiny_imagenet": (10_000, 200), "imagenet100": (5000, 100), "fashion_mnist": (10_000, 10),
}  # fmt: skip
SCENES_TEST_SEED = 1_000_003  # added to a seed for the test scenes


def check_name(name: str) -> str:
    """Return `name` if a data set has it. Raises InputError naming the data sets."""
    known = name in DESCRIPTIONS and name != "folder:PATH"
    if not known and not (name.startswith("folder:") and len(name) > len("folder:")):
        raise InputError(f"data = {name!r} is not a data set; choose one of {', '.join(DESCRIPTIONS)}")
    return name


def load(
    name: str,
    *,
    train_images: int | None = None,
    validation_images: int = 0,
    test_images: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Splits:
    """Load the data set `name`, with validation images held out of the training images by `seed`.

    `train_images` and `test_images` take a class-balanced part; None takes all (scenes: 8,000 and 2,000).
    `validation_images` is rounded down to the same number per class. `image_size`, in pixels, resizes folders and
    imagenet100, and chooses the size of scenes (32 or 64). Raises InputError when there is no such set, when it cannot be
    read, or when it has too few images.
    """
    check_name(name)
    if name == "toy":
        return toy.load(seed)
    if classes := scenes.SETS.get(name):
        count, tested = train_images or 8000, test_images or EXTENTS[name][0]
        size = image_size or 32
        train = scenes.load(count + validation_images, size, seed, classes)
        test = scenes.load(tested, size, seed + SCENES_TEST_SEED, classes)
        splits = hold_out(train, test, validation_images, seed)
        return Splits(subset(splits.train, count, seed), splits.validation, splits.test)
    if name.startswith("folder:"):
        place = folder.located(name.removeprefix("folder:"))
        train, test = (tiny_imagenet.read if tiny_imagenet.recognised(place) else folder.load)(place, image_size)
    elif name == "imagenet100":
        train, test = imagenet100.load(image_size)
    elif image_size is not None:
        raise InputError(f"image_size = {image_size}: {name} has a size of its own; leave image_size out")
    else:
        train, test = tiny_imagenet.load() if name == "tiny_imagenet" else vision.load(name)
    for what, count, available in (
        ("train_images + validation_images", (train_images or 0) + validation_images, len(train)),
        ("test_images", test_images or 0, len(test)),
    ):
        if count > available:
            raise InputError(f"{what} = {count}, but {name} has {available}")
    splits = hold_out(train, subset(test, test_images or len(test), seed), validation_images, seed)
    return Splits(subset(splits.train, train_images or len(splits.train), seed), splits.validation, splits.test)


def load_test(name: str, count: int, image_size: int | None = None) -> ImageSet:
    """Load at most `count` test images of the data set `name`, equally many of each class; of a folder read only these.

    Raises InputError as `load` does.
    """
    if name.startswith("folder:"):
        return folder.load_test(folder.located(name.removeprefix("folder:")), image_size, count)
    few = {"train_images": 10, "test_images": count} if name in scenes.SETS else {}
    return subset(load(name, image_size=image_size, **few).test, count, 0)
