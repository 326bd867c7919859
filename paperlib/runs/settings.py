"""Settings with their types and ranges. They are validated before anything runs."""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from paperlib.runs.files import InputError
from paperlib.runs.values import read_value

MOST, LARGEST = 10**8, 1e30  # bounds of all counts and numbers, to catch typing errors
Count = Annotated[int, Field(ge=1, le=MOST)]
Images = Annotated[int, Field(ge=0, le=MOST)]  # number of attacked images; 0 omits the attack
Share = Annotated[float, Field(ge=0, le=1)]
Radius = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, max_length=1000)]


def _in_order(shares: list[float]) -> list[float]:
    if shares[0] > shares[1]:
        raise ValueError("the second share must be at least the first, since ε rises from the first share to the second")
    return shares


# Two shares of the training steps: ε is zero before the first, full from the second on, and linear between them.
Ramp = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
# A layer's name, or None. Names of digits are read as numbers and converted back.
Layer = Annotated[str | None, BeforeValidator(lambda layer: str(layer) if isinstance(layer, int) else layer)]
Venue = Literal["neurips", "iclr", "icml", "icml-column", "cvpr", "cvpr-column", "aaai", "aaai-column", "wide"]


def as_options(given: Mapping[str, Any]) -> list[str]:
    """Return parameters as options of `paperlib run`."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return [option for name, text in texts.items() for option in ("-p", f"{name}={text}")]


class Settings(BaseModel):
    """Settings common to all studies. Every field is required, so that presets are complete and explicit."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    seeds: Seeds  # each gives one training and one evaluation
    device: Literal["auto", "cpu", "cuda"]
    devices: Count  # number of processes, one per device, that share each training batch and the evaluation
    venue: Venue  # determines the width of figures; changes no number

    @model_validator(mode="before")
    @classmethod
    def _read_strings(cls, values: dict[str, Any]) -> dict[str, Any]:
        texts = {name for name, field in cls.model_fields.items() if field.annotation is str}
        for name, value in values.items():
            if name not in texts and isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} has an empty value; write null for none")
        return {name: value if name in texts else read_value(value) for name, value in values.items()}


class TrainingSettings(Settings):
    """Settings of `training.fit`."""

    retrain: bool  # train even if the zoo has the network
    epochs: Count
    batch_size: Annotated[int, Field(ge=2, le=MOST)]
    optimizer: Literal["sgd", "adam", "adamw"]
    learning_rate: Positive
    momentum: Share  # SGD only
    weight_decay: Radius
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    milestones: list[Share]  # step schedule: shares of the epochs after which the rate is multiplied by `decay`
    decay: Share
    clip: Radius  # maximal norm of the gradient; 0 for no limit
    ema: Share  # decay per step of the weights' moving average; 0 for no average
    ema_start: Share  # share of the epochs during which the average is a copy of the weights
    bf16: bool  # train in bfloat16 if the device supports it; evaluation is always in float32
    channels_last: bool
    sync_batch_norm: bool  # on several devices: statistics of the whole batch, as on one device, not of each part
    crop_padding: Annotated[int, Field(ge=0, le=1024)]
    crop_fill: Share | Literal["reflect"]  # padding value in [0,1], or mirror padding
    flip: bool
    selection: Literal["mean", "robust", "last"]  # the best mean of clean and robust accuracy, best robust, or last epoch

    @model_validator(mode="after")
    def _two_images_each(self) -> Self:
        if self.batch_size < 2 * self.devices:
            raise ValueError(
                f"batch_size = {self.batch_size}, devices = {self.devices}: a batch should have two images for each device"
            )
        return self


S = TypeVar("S", bound=Settings)

# Fields that do not identify a run: the venue changes no number, and devices change the random numbers alone. Without
# synchronised batch norm, devices also change the statistics; a training's recipe then includes them.
ANY_RUN = {"venue", "devices"}


def check(kind: type[S], values: Mapping[str, Any]) -> S:
    """Validate `values` as settings of `kind`. Raises InputError naming each wrong value and what would be right."""
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
                # A validator over several fields names them in its message.
                faults.append(f"{name} = {fault['input']!r}: {reason}" if name else reason)
        raise InputError("; ".join(faults)) from None
