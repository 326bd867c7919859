"""Settings: what can be set, of which type and in which range. Nothing runs before they are known to be right."""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from paperlib.runs.files import InputError
from paperlib.runs.values import read_value

MOST, LARGEST = 10**8, 1e30  # of whatever is counted or measured: more is a slip of the hand
Count = Annotated[int, Field(ge=1, le=MOST)]
Images = Annotated[int, Field(ge=0, le=MOST)]  # that an attack is run on; 0: it is left out
Share = Annotated[float, Field(ge=0, le=1)]
Radius = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=1000)]


def _in_order(shares: list[float]) -> list[float]:
    if shares[0] > shares[1]:
        raise ValueError("ε rises from the first share of the steps to the second, so that must not be smaller")
    return shares


# Two shares of the training's steps: ε is zero before the first, whole from the second on, and linear between.
Ramp = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
# A layer's name is text, also one that is a number alone; None where there is none.
Layer = Annotated[str | None, BeforeValidator(lambda layer: str(layer) if isinstance(layer, int) else layer)]
Venue = Literal["neurips", "iclr", "icml", "icml-column", "cvpr", "cvpr-column", "aaai", "aaai-column", "wide"]


def as_options(given: Mapping[str, Any]) -> list[str]:
    """Parameters as `paperlib run` takes them on its command line."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return [option for name, text in texts.items() for option in ("-p", f"{name}={text}")]


class Settings(BaseModel):
    """The settings of every study. Every field is required, so that a preset is complete and explicit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    seeds: Seeds  # one training and evaluation each
    device: Literal["auto", "cpu", "cuda"]
    devices: Count  # that share the work, a process each; the batches of a training are split among them
    venue: Venue  # whose width of the text, or of one of two columns, the figures have; changes no number

    @model_validator(mode="before")
    @classmethod
    def _read_strings(cls, values: dict[str, Any]) -> dict[str, Any]:
        texts = {name for name, field in cls.model_fields.items() if field.annotation is str}
        for name, value in values.items():
            if name not in texts and isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} has an empty value; null is none")
        return {name: value if name in texts else read_value(value) for name, value in values.items()}


class TrainingSettings(Settings):
    """The settings of `training.fit`."""

    retrain: bool  # also what the zoo has
    epochs: Count
    batch_size: Annotated[int, Field(ge=2, le=MOST)]
    optimizer: Literal["sgd", "adam", "adamw"]
    learning_rate: Positive
    momentum: Share  # of SGD
    weight_decay: Radius
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    milestones: list[Share]  # of the step schedule: shares of the epochs after which the rate is multiplied …
    decay: Share  # … by this
    clip: Radius  # the gradient's norm at most; 0 for no limit
    ema: Share  # decay of the weights' moving average per step; 0 for none
    ema_start: Share  # share of the epochs before which the average is a copy of the weights
    bf16: bool  # bfloat16 in training, where the device computes in it (evaluation is always in float32)
    channels_last: bool
    sync_batch_norm: bool  # on several devices: statistics of all their images, as on one; or each device's own
    crop_padding: Annotated[int, Field(ge=0, le=1024)]
    crop_fill: Share | Literal["reflect"]  # value of the padding, or the image mirrored
    flip: bool
    selection: Literal["mean", "robust", "last"]  # of the epoch: by robust accuracy, by its mean with clean accuracy, none

    @model_validator(mode="after")
    def _two_images_each(self) -> Self:
        if self.batch_size < 2 * self.devices:
            raise ValueError(
                f"batch_size = {self.batch_size}, devices = {self.devices}: each device needs two images of a batch"
            )
        return self


S = TypeVar("S", bound=Settings)

# Fields that do not make another run: the venue changes no number, devices which random numbers are drawn. Without
# synchronised batch norm they change more, and then a training's recipe has them.
ANY_RUN = {"venue", "devices"}


def check(kind: type[S], values: Mapping[str, Any]) -> S:
    """`values` as settings of `kind`. Raises InputError naming each wrong value and what would be right."""
    allowed = list(kind.model_fields)
    for name in values:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"unknown parameter {name!r}; {hint}Allowed: {', '.join(allowed)}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = ".".join(map(str, fault["loc"]))
            if fault["type"] == "missing":
                faults.append(f"{name} is missing")
            else:
                reason = fault["msg"].removeprefix("Value error, ")
                # What does not fit together names its settings itself.
                faults.append(f"{name} = {fault['input']!r}: {reason}" if name else reason)
        raise InputError("; ".join(faults)) from None
