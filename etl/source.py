"""A source of facility records: one TOML file that says how it is read, and what may come of a run."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from etl.frames import Adapter, File, Settings, SourceError
from hub.errors import near

# imported when a source names them, because each brings its own libraries
ADAPTERS = {
    "files": "etl.adapters.files:Files",
    "sql": "etl.adapters.sql:Sql",
    "ispyb": "etl.adapters.ispyb:Ispyb",
    "visa": "etl.adapters.visa:Visa",
    "useroffice": "etl.adapters.useroffice:UserOffice",
    "icat": "etl.adapters.icat:Icat",
    "icatplus": "etl.adapters.icatplus:IcatPlus",
    "scicat": "etl.adapters.scicat:SciCat",
    "push": "etl.push:Push",
}


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}; write Europe/Paris") from None
    return name


Share = Annotated[float, Field(ge=0, le=1)]


class Events(Settings):
    """Where UserOffice publishes. url: amqps://account@host/vhost, without the password; queue: our own, made if it is missing."""

    url: str
    password_file: File | None = None
    exchange: str = "user_office_backend.fanout"
    queue: str = "hutch"


class Source(BaseModel):
    """How a source is known and guarded. users: whether its people are the facility's users or are found among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    adapter: str = "files"
    users: Literal["own", "link"] = "own"
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    # between two runs of the whole source only what changed, where its adapter can; None = each run is of the whole
    full_every_hours: Annotated[float, Field(gt=0)] | None = None
    max_ended_share: Share = 0.3
    max_rejected_share: Share = 0.1
    # subjects of client certificates that may push, as `openssl x509 -noout -subject -nameopt RFC2253` prints them
    subjects: frozenset[str] = frozenset()
    events: Events | None = None


def named(name: str) -> Source:
    """A source without a file, on defaults. Raises SourceError."""
    try:
        return Source(name=name)
    except ValidationError:
        raise SourceError(f"{name!r} is no name of a source: a to z, digits, '-' and '_'") from None


def find(folder: Path) -> list[str]:
    """The names of all sources that have a file there."""
    return sorted(file.stem for file in folder.glob("*.toml"))


def open_source(folder: Path, name: str) -> tuple[Source, Adapter]:
    """The source of that name and its adapter, ready to read. Raises SourceError that names the file and the key."""
    file = folder / f"{name}.toml"
    try:
        said = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(find(folder)) or "none"
        raise SourceError(f"{file}: there is no such file; sources that have one: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"{file}: cannot be read: {error}") from error
    settings = said.pop("settings", {})
    if "adapter" not in said:
        raise SourceError(f"{file}: adapter is missing; one of {', '.join(ADAPTERS)}")
    source: Source = _checked(Source, {**said, "name": name}, file, "", {"folder": folder})
    if source.adapter not in ADAPTERS:
        raise SourceError(f"{file}: there is no adapter {source.adapter!r}{near(source.adapter, ADAPTERS)}")
    module, _, made = ADAPTERS[source.adapter].partition(":")
    model = getattr(importlib.import_module(module), made)
    return source, _checked(model, settings, file, "settings.", {"folder": folder})


def _checked(model: Any, values: Any, file: Path, prefix: str, context: dict[str, Any] | None) -> Any:
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        raise SourceError(
            f"{file}: " + "; ".join(_said(fault, model, prefix) for fault in error.errors(include_url=False))
        ) from error


def _said(fault: Any, model: Any, prefix: str) -> str:
    key = prefix + ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {key}{near(str(fault['loc'][-1]), model.model_fields)}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    # the value may be a password that stands in the wrong place
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}"
