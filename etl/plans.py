"""What a plan's lists and objects must be: checked one by one, because there are few plans."""

from __future__ import annotations

import json
from typing import Annotated, Any

import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from hub.database.tables import FacilityRole

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=250)]


class Limit(BaseModel):
    """Whoever meets all that it names may have the plan. ref: hub.database.tables.Plan"""

    model_config = ConfigDict(extra="forbid", use_enum_values=True, populate_by_name=False)
    instruments: list[Name] = []
    roles: list[FacilityRole] = []
    groups: list[Name] = []
    starts: AwareDatetime | None = Field(None, alias="from")
    until: AwareDatetime | None = None


Days = Annotated[float, Field(gt=0, le=3650)]
# of a role or a group, or "" for everybody
MODELS: dict[str, TypeAdapter[Any]] = {
    "Limits": TypeAdapter(list[Limit]),
    "Lifetimes": TypeAdapter(dict[Annotated[str, StringConstraints(strip_whitespace=True, max_length=250)], Days]),
    "Places": TypeAdapter(list[Name]),
}


def read(column: pl.Series, model: str) -> tuple[pl.Series, pl.Series]:
    """The cells as JSON in one spelling, so that equal ones are equal texts; and what is wrong with them, or null."""
    found = [_read(value, MODELS[model]) for value in column.to_list()]
    names = (column.name, f"_fault_{column.name}")
    return tuple(pl.Series(name, [pair[at] for pair in found], pl.String) for at, name in enumerate(names))  # type: ignore[return-value]


def _read(value: Any, model: TypeAdapter[Any]) -> tuple[str | None, str | None]:
    if value is None or value == "":
        return None, None
    try:
        parsed = model.validate_json(value) if isinstance(value, str) else model.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        return None, f"{where}: {fault['msg']}, not {str(fault['input'])[:60]!r}".removeprefix(": ")
    return spelled(model.dump_python(parsed, mode="json", by_alias=True, exclude_defaults=True)), None


def spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def respelled(column: pl.Series) -> pl.Series:
    """What a database holds, in the same spelling."""
    return pl.Series(column.name, [None if text is None else spelled(json.loads(text)) for text in column], pl.String)


def instruments(limits: str) -> set[str]:
    return {name for limit in json.loads(limits) for name in limit.get("instruments", ())}
