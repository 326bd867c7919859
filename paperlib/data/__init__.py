"""Where images come from. `load` is the one way in; every set arrives as tensors in the same plain object."""

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
    "scenes4": "four of them, which small networks learn in seconds",
    "cifar10": "32 px, ten classes; downloaded by torchvision",
    "cifar100": "32 px, a hundred classes; downloaded by torchvision",
    "stl10": "96 px, ten classes; downloaded by torchvision",
    "tiny_imagenet": "64 px, 200 classes; the archive as it is or restructured, downloaded where it is not there",
    "imagenet100": "224 px, a hundred of ImageNet's classes; from data/imagenet100, decoded as they are needed",
    "fashion_mnist": "28 px, grey, ten classes; downloaded by torchvision",
    "folder:PATH": f"your own images: {folder.LAYOUT}",
}
EXTENTS = {  # test images and classes of what is known before it is there; of scenes, where no number is asked for
    "toy": (600, 2), "scenes": (2000, 10), "scenes4": (2000, 4), "cifar10": (10_000, 10), "cifar100": (10_000, 100),
    "stl10": (8000, 10), "tiny_imagenet": (10_000, 200), "imagenet100": (5000, 100), "fashion_mnist": (10_000, 10),
}  # fmt: skip
SCENES_TEST_SEED = 1_000_003  # added to a seed: the stream of scenes to test on


def check_name(name: str) -> str:
    """`name` itself if it is a data set's. Raises InputError naming those allowed."""
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
    """The data set `name`, with a validation part held out of its training images by `seed`.

    `train_images` and `test_images` take a class-balanced part, all when None (scenes: 8,000 and 2,000); of
    `validation_images` as many are held out as are the same number a class. `image_size` resizes folders and imagenet100,
    and chooses the size of scenes (32 or 64). Raises InputError when there is no such set, when it cannot be read, or when
    it has fewer images than asked for.
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
    """At most `count` test images of the data set `name`, of each class equally many; of a folder no others are read.

    Raises InputError where `load` does.
    """
    if name.startswith("folder:"):
        return folder.load_test(folder.located(name.removeprefix("folder:")), image_size, count)
    few = {"train_images": 10, "test_images": count} if name in scenes.SETS else {}
    return subset(load(name, image_size=image_size, **few).test, count, 0)
