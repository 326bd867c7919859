"""What a study of images can be told: which images, which network, under which attacks it is evaluated."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from paperlib import models
from paperlib.attacks import Norm
from paperlib.data import EXTENTS, check_name, scenes
from paperlib.runs.files import InputError
from paperlib.runs.settings import Count, Images, Layer, Positive, Settings, TrainingSettings, check


class NetworkSettings(TrainingSettings):
    """What of a study a part of it may set for itself: which network, and how it is trained."""

    model: Literal[tuple(models.ARCHITECTURES)]  # type: ignore[valid-type]
    width: Annotated[int, Field(ge=1, le=10_000)]
    normalisation: Literal[tuple(models.NORMALISATIONS)]  # type: ignore[valid-type]
    stem_stride: Literal[1, 2]  # of the first convolution; 2 halves the image (Tiny-ImageNet)

    @model_validator(mode="after")
    def _stem_to_stride(self) -> Self:
        models.check_stem(self.model, self.stem_stride)
        models.check_width(self.model, self.width)
        return self


class ImageSettings(NetworkSettings):
    """What a study of real images adds: which images, which evaluation."""

    data: Annotated[str, AfterValidator(check_name)]
    train_images: Count | None
    validation_images: Count
    test_images: Count | None
    image_size: Count | None
    eps_linf: Annotated[float, Field(gt=0, le=1)]
    eps_l2: Positive
    autoattack_images: Images
    sweep_images: Count  # of the sweep over eps
    audit_images: Count

    @model_validator(mode="after")
    def _images_there_are(self) -> Self:
        if self.data == "toy":
            raise ValueError("data = 'toy': points and no images; the notebook toy_pag is made for them")
        if self.data in scenes.SETS and self.image_size not in (None, *scenes.SIZES):
            raise ValueError(
                f"image_size = {self.image_size}: scenes are rendered at {' or '.join(map(str, scenes.SIZES))} px"
            )
        return self


class Plan(NamedTuple):
    """What a study's settings come to, before anything is loaded: each has a function that says so, in its PLANS."""

    images: dict[str, int | None]  # by measure, at most; None where only a folder knows; what is not measured is absent
    seeds: dict[str, int]  # by method: the first so many of the settings' seeds; what is not trained is absent
    case: str  # which of the paper's tables the run is held against


def planned(settings: ImageSettings, every: Iterable[str], fewer: Mapping[str, int]) -> dict[str, int | None]:
    """Test images by measure: of `every` all that the settings have, of `fewer` so many of them; zero leaves one out."""
    count = settings.test_images or EXTENTS.get(settings.data, (None,))[0]
    some = {measure: number if count is None else min(number, count) for measure, number in fewer.items() if number}
    return {**dict.fromkeys(every, count), **some}


class NormSettings(ImageSettings):
    """What a study under one norm adds."""

    norm: Norm  # of the attacks in training and evaluation

    @property
    def eps(self) -> float:
        """ε in the norm of the study."""
        return self.eps_linf if self.norm == "linf" else self.eps_l2


class DepthSettings(NormSettings):
    """What a study of attention and depth adds."""

    train_steps: Count  # of the attack in training, at steps of 2.5 ε / steps
    depth_images: Count  # scenes that a learned oracle learns from
    depth_epochs: Count
    layer: Layer  # of a convolutional network, whose activation is its attention; None for transformers

    @model_validator(mode="after")
    def _depth_and_layer(self) -> Self:
        if self.crop_padding and self.crop_fill != "reflect" and self.data in scenes.SETS:
            raise ValueError("crop_fill must be reflect for scenes, whose depth is cropped with them: a border has none")
        if (self.model in models.TRANSFORMERS) == (self.layer is not None):
            raise ValueError(f"layer = {self.layer!r}: a convolutional network needs one, a transformer none")
        return self


CHANGEABLE = set(NetworkSettings.model_fields) - set(Settings.model_fields)


def check_changes(settings: NetworkSettings, name: str, changes: Mapping[str, Any]) -> None:
    """Raise ValueError where `changes`, the study's setting `name`, cannot stand in place of its own settings."""
    if unknown := set(changes) - CHANGEABLE:
        raise ValueError(f"{name} cannot set {', '.join(sorted(unknown))}; it can {', '.join(sorted(CHANGEABLE))}")
    try:
        check(NetworkSettings, {**{field: getattr(settings, field) for field in NetworkSettings.model_fields}, **changes})
    except InputError as error:
        raise ValueError(f"{name}: {error}") from None
