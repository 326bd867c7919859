"""Form of a claims file, which has the numbers and claims of a paper, and its validation."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paperlib.runs.files import InputError, read_yaml

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Paper(_Part):
    """Title, authors and venue of a paper."""

    key: Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]
    title: str
    authors: list[str]
    venue: str
    year: int | None = None


class Table(_Part):
    """Reported numbers by method and measure, and their `deviation` over seeds, on `images` test images.

    `improvement` is the printed gain, by measure, of the paper's best method over the best other one, in percent of that.
    """

    place: str
    unit: str
    notebook: str
    rows: dict[str, dict[str, Number]]
    deviation: dict[str, dict[str, Number]] = {}
    images: Annotated[int, Field(ge=1)] | None = None
    improvement: dict[str, Number] = {}


class Scale(_Part):
    """Comparison with the preset `paper`: ignored settings, settings of other cases, and what never is as in the paper."""

    besides: list[str]
    by_case: dict[str, dict[str, Any]]
    always: list[str]
    instead: dict[str, Any] = {}


class Claim(_Part):
    """Comparison of one measure between two methods."""

    id: Annotated[str, Field(pattern=r"^[\w-]+$")]
    notebook: str
    place: str
    statement: str
    kind: Literal["gain", "keep", "ratio"]
    measure: str
    method: str
    than: str
    claimed: Number | str | dict[str, str | None] | None = None  # a number, the table with both numbers, or tables by case
    floor: Number | Literal["reported"] = 0.0  # of kind keep, in points; reported: the paper's difference
    ceiling: bool = True
    seeds: Annotated[int, Field(ge=1)] = 1


class Ledger(_Part):
    """Content of a claims file."""

    paper: Paper
    tables: dict[str, Table]
    scale: dict[str, Scale]
    claims: Annotated[list[Claim], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ids = [claim.id for claim in self.claims]
        if double := {one for one in ids if ids.count(one) > 1}:
            raise ValueError(f"two claims have the id {', '.join(sorted(double))}")
        if bare := [name for name, table in self.tables.items() if table.deviation and table.images is None]:
            raise ValueError(f"table {bare[0]} has deviations; it should also have images, the number of test images")
        for claim in self.claims:
            if claim.notebook not in self.scale:
                raise ValueError(f"claim {claim.id}: its notebook {claim.notebook} is missing from scale")
            named = claim.claimed.values() if isinstance(claim.claimed, dict) else [claim.claimed]
            if claim.floor == "reported" and None in named:
                raise ValueError(f"claim {claim.id}: its floor is reported, so claimed should give the number or table")
            if isinstance(claim.claimed, dict) and not claim.claimed:
                raise ValueError(f"claim {claim.id}: claimed is empty; it should name tables by case")
            for table in named:
                if not isinstance(table, str):
                    continue
                if table not in self.tables:
                    raise ValueError(f"claim {claim.id}: there is no table {table}; there are {', '.join(self.tables)}")
                for method in (claim.method, claim.than):
                    if claim.measure not in self.tables[table].rows.get(method, {}):
                        raise ValueError(f"claim {claim.id}: table {table} has no {claim.measure} of {method}")
        return self


def read(file: Path) -> dict[str, Any]:
    """Read a claims file as plain data. Raises InputError, naming file and place, when it is no valid `Ledger`."""
    content = read_yaml(file)
    try:
        Ledger.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors()[:5]]
        raise InputError(f"{file}: {'; '.join(faults)}") from None
    return cast(dict[str, Any], content)
