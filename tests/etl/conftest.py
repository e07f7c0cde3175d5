"""A database of either kind, and a small facility written as the files of its user office."""

import csv
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url, select

from etl.adapters.files import Files
from etl.load import Report, run
from etl.source import Source
from hub.database.engine import open_database, upgrade
from hub.database.tables import Base

TODAY = datetime(2026, 3, 10, 15, 30, tzinfo=UTC)
# how runs went is not what they brought
NOTES = {"etl_run", "etl_rejection"}


@pytest.fixture(scope="session")
def blank_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that is upgraded and empty, to copy from: that is quicker than upgrading one for each test."""
    file = tmp_path_factory.mktemp("blank") / "hutch.sqlite"
    engine = open_database(f"sqlite:///{file}")
    upgrade(engine)
    engine.dispose()
    return file


@pytest.fixture(scope="session")
def blank_postgresql(postgresql: Any) -> str:
    """The same as the URL of a template."""
    url = postgresql.new_database("blank_etl")
    engine = open_database(url)
    upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made = _sqlite if request.param == "sqlite" else _postgresql
    engine = open_database(made(request, tmp_path))
    yield engine
    engine.dispose()
    if request.param == "postgresql":
        request.getfixturevalue("postgresql").drop_database(url_of(engine))


def _sqlite(request: pytest.FixtureRequest, folder: Path) -> str:
    shutil.copy(request.getfixturevalue("blank_sqlite"), folder / "hutch.sqlite")
    return f"sqlite:///{folder}/hutch.sqlite"


def _postgresql(request: pytest.FixtureRequest, folder: Path) -> str:
    blank = make_url(request.getfixturevalue("blank_postgresql"))
    name = f"etl_{abs(hash(str(folder)))}"
    with psycopg.connect(host=blank.host, port=blank.port, user=blank.username, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{blank.database}"')
    return blank.set(database=name).render_as_string()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


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

    def load(self, name: str = "files", **options: Any) -> Report:
        settings = {key: options.pop(key) for key in Source.model_fields if key in options}
        return run(self.engine, Source(name=name, **settings), Files(folder=self.folder), **{"today": TODAY, **options})


@pytest.fixture
def office(tmp_path: Path, engine: Engine) -> Office:
    return Office(tmp_path / "office", engine)


Rows = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def rows(engine: Engine) -> Rows:
    """All rows of a table, in the order of its key."""

    def read(name: str) -> list[dict[str, Any]]:
        table = Base.metadata.tables[name]
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]

    return read


@pytest.fixture
def everything(rows: Rows) -> Callable[[], dict[str, Any]]:
    """The whole database but for the notes of runs, to see that nothing has changed."""
    return lambda: {name: rows(name) for name in Base.metadata.tables if name not in NOTES}
