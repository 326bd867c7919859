"""Settings that studies of images share: data, network, evaluation; and the form of a study's plan."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from paperlib import models
from paperlib.attacks import Norm
from paperlib.data import EXTENTS, check_name, scenes
from paperlib.runs.files import InputError
from paperlib.runs.settings import Count, Images, Layer, Positive, Settings, TrainingSettings, check


class NetworkSettings(TrainingSettings):
    """Network and training settings, which a part of a study may change for itself."""

    model: Literal[tuple(models.ARCHITECTURES)]  # type: ignore[valid-type]
    width: Annotated[int, Field(ge=1, le=10_000)]
    normalisation: Literal[tuple(models.NORMALISATIONS)]  # type: ignore[valid-type]
    stem_stride: Literal[1, 2]  # stride of the first convolution; 2 halves the image (Tiny-ImageNet)

    @model_validator(mode="after")
    def _stem_to_stride(self) -> Self:
        models.check_stem(self.model, self.stem_stride)
        models.check_width(self.model, self.width)
        return self


class ImageSettings(NetworkSettings):
    """Settings of data and evaluation, for a study of real images."""

    data: Annotated[str, AfterValidator(check_name)]
    train_images: Count | None
    validation_images: Count
    test_images: Count | None
    image_size: Count | None
    eps_linf: Annotated[float, Field(gt=0, le=1)]
    eps_l2: Positive
    autoattack_images: Images
    sweep_images: Count  # images of the sweep over eps
    audit_images: Count

    @model_validator(mode="after")
    def _images_there_are(self) -> Self:
        if self.data == "toy":
            raise ValueError("data = 'toy': points and no images; use the notebook toy_pag, or name a set of images")
        if self.data in scenes.SETS and self.image_size not in (None, *scenes.SIZES):
            raise ValueError(
                f"image_size = {self.image_size}: scenes are rendered at {' or '.join(map(str, scenes.SIZES))} px"
            )
        return self


class Plan(NamedTuple):
    """Images and seeds that settings lead to, known before data are loaded; a study's PLANS has the function."""

    images: dict[str, int | None]  # test images by measure, at most; None for a folder, which is not read yet
    seeds: dict[str, int]  # number of seeds by method; a method that is not trained is absent
    case: str  # which of the paper's tables the run is compared with


def planned(settings: ImageSettings, every: Iterable[str], fewer: Mapping[str, int]) -> dict[str, int | None]:
    """Return test images by measure: all for those of `every`, at most its number for those of `fewer`; zero omits one."""
    count = settings.test_images or EXTENTS.get(settings.data, (None,))[0]
    some = {measure: number if count is None else min(number, count) for measure, number in fewer.items() if number}
    return {**dict.fromkeys(every, count), **some}


class NormSettings(ImageSettings):
    """The norm, for a study under one norm."""

    norm: Norm  # norm of the attacks in training and evaluation

    @property
    def eps(self) -> float:
        """ε in the study's norm, in units of [0,1]."""
        return self.eps_linf if self.norm == "linf" else self.eps_l2


class DepthSettings(NormSettings):
    """Settings of a study of attention and depth."""

    train_steps: Count  # steps of the training attack; each has size 2.5 ε / steps
    depth_images: Count  # scenes that a learned depth network is trained on
    depth_epochs: Count
    layer: Layer  # layer of a convolutional network whose activation is the attention; None for transformers

    @model_validator(mode="after")
    def _depth_and_layer(self) -> Self:
        if self.crop_padding and self.crop_fill != "reflect" and self.data in scenes.SETS:
            raise ValueError(
                "crop_fill must be reflect for scenes: their depth is cropped with them, and a border has none"
            )
        if (self.model in models.TRANSFORMERS) == (self.layer is not None):
            raise ValueError(f"layer = {self.layer!r}: a convolutional network needs a layer, a transformer must have None")
        return self


CHANGEABLE = set(NetworkSettings.model_fields) - set(Settings.model_fields)


def check_changes(settings: NetworkSettings, name: str, changes: Mapping[str, Any]) -> None:
    """Raise ValueError where `changes`, given in setting `name`, are no valid network or training settings."""
    if unknown := set(changes) - CHANGEABLE:
        raise ValueError(f"{name} cannot set {', '.join(sorted(unknown))}; it can set {', '.join(sorted(CHANGEABLE))}")
    try:
        check(NetworkSettings, {**{field: getattr(settings, field) for field in NetworkSettings.model_fields}, **changes})
    except InputError as error:
        raise ValueError(f"{name}: {error}") from None
