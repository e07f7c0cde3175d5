"""A database, and a small facility written as the files of its user office."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from etl.adapters.files import Files
from etl.load import Report, run
from hub.database.engine import open_database, upgrade
from hub.database.tables import Base

TODAY = datetime(2026, 3, 10, 15, 30, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(f"sqlite:///{tmp_path}/hutch.sqlite")
    upgrade(engine)
    return engine


class Office:
    """The folder of a user office with few records: `put` replaces a file, `load` loads the folder."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine
        folder.mkdir()
        self.put("affiliations", "id,name,town,country", "nth,Nordhavn,Aarhus,Denmark")
        self.put("users", "id,login,given_name,family_name,affiliation_id", "1,ann,Ann,Lindqvist,nth", "2,bob,Bob,Okafor,")
        self.put("instruments", "id,name", "ID16,Nano-tomography", "D22,Small angles")
        self.put("proposals", "id,title", "P1,Cracks in cathodes")
        self.put("experiments", "id,proposal_id,instrument_id,starts_at,ends_at", "P1-1,P1,ID16,today-1d 08:00,today+2d")
        self.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,principal-investigator", "P1-1,2,member")

    def put(self, name: str, *lines: str) -> None:
        (self.folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def put_bytes(self, name: str, content: bytes) -> None:
        (self.folder / f"{Path(name).stem}.csv").unlink(missing_ok=True)
        (self.folder / name).write_bytes(content)

    def put_rows(self, name: str, columns: str, rows: list[list[Any]]) -> None:
        with (self.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns.split(","), *rows])

    def load(self, **options: Any) -> Report:
        return run(self.engine, Files(self.folder), **{"source": "files", "today": TODAY, **options})


@pytest.fixture
def office(tmp_path: Path, engine: Engine) -> Office:
    return Office(tmp_path / "office", engine)


@pytest.fixture
def rows(engine: Engine) -> Callable[[str], list[dict[str, Any]]]:
    """All rows of a table, in the order of its key."""

    def read(name: str) -> list[dict[str, Any]]:
        table = Base.metadata.tables[name]
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]

    return read


@pytest.fixture
def everything(rows: Callable[[str], list[dict[str, Any]]]) -> Callable[[], dict[str, Any]]:
    """The whole database but for the notes of runs, to see that nothing has changed."""
    return lambda: {name: rows(name) for name in Base.metadata.tables if name != "etl_run"}
