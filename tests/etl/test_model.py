"""Runs in sets do what the rules say row by row: a model in plain Python, and any sequence of what sources may say."""

from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from etl.frames import Extract, Scope
from etl.load import run
from etl.source import Source
from hub.database.tables import Base, EtlChange, EtlRejection, EtlRun

COLUMNS = {
    "user": ["id", "login", "family_name"],
    "instrument": ["id", "name"],
    "instrument_scientist": ["instrument_id", "user_id"],
}
TABLES = list(COLUMNS)
KEYS = {"instrument_scientist": ("instrument_id", "user_id")}
REFERENCES = {"instrument_scientist": {"instrument_id": "instrument", "user_id": "user"}}

few = st.sampled_from(["1", "2", "3", None])
some = st.sampled_from(["1", "2", "3"])
# None and what is wrong are rarer than what is right
ROWS = {
    "user": st.fixed_dictionaries(
        {"id": few, "login": st.sampled_from(["ann", "bob", "cem", None, "ANN"]), "family_name": st.sampled_from(["A", "B", None])}
    ),
    "instrument": st.fixed_dictionaries({"id": some, "name": st.sampled_from(["I", "J"])}),
    "instrument_scientist": st.fixed_dictionaries({"instrument_id": some, "user_id": few}),
}
FRAMES = st.fixed_dictionaries({}, optional={table: st.lists(row, max_size=5) for table, row in ROWS.items()})
SCOPES = st.dictionaries(
    st.just("instrument_scientist"), st.none() | st.builds(Scope, st.just("user_id"), st.frozensets(some, max_size=2)), max_size=1
)
LOADS = st.lists(st.tuples(st.sampled_from(["one", "two"]), FRAMES, SCOPES), max_size=4)

Record = dict[str, Any]


class Model:
    """{table: {key: {field: value, "source": name, "ended": whether}}}."""

    def __init__(self) -> None:
        self.records: dict[str, dict[tuple[str, ...], Record]] = {table: {} for table in TABLES}

    def load(self, source: str, frames: dict[str, list[Record]], scopes: dict[str, Scope | None]) -> None:
        for table in TABLES:
            if table in frames:
                self._load(table, source, frames[table], scopes)

    def _load(self, table: str, source: str, rows: list[Record], scopes: dict[str, Scope | None]) -> None:
        held, key_of = self.records[table], lambda row: tuple(row[name] for name in KEYS.get(table, ("id",)))
        certain = all(None not in key_of(row) for row in rows)
        named = {key_of(row) for row in rows}
        first: dict[tuple[str, ...], Record] = {}
        for row in rows:
            if None not in key_of(row):
                first.setdefault(key_of(row), row)
        claims: dict[str, str] = {}
        for key, row in first.items():
            if self._valid(table, row) and not self._same(held.get(key), row, source) and table == "user" and row["login"]:
                claims.setdefault(row["login"], row["id"])
        good = {key: row for key, row in first.items() if self._good(table, key, row, source, claims)}
        scope = scopes.get(table)
        for key, record in held.items():
            within = scope is None or record[scope.column] in scope.values
            if certain and key not in named and record["source"] == source and within and not (table in scopes and scope is None):
                record["ended"] = True
        held |= {key: row | {"source": source, "ended": False} for key, row in good.items()}

    def _valid(self, table: str, row: Record) -> bool:
        return table != "user" or (row["login"] != "ANN" and row["family_name"] is not None)

    def _same(self, record: Record | None, row: Record, source: str) -> bool:
        return record is not None and record == row | {"source": source, "ended": False}

    def _good(self, table: str, key: tuple[str, ...], row: Record, source: str, claims: dict[str, str]) -> bool:
        record = self.records[table].get(key)
        if not self._valid(table, row) or (record and not record["ended"] and record["source"] != source):
            return False
        if table == "user" and not self._login_is_free(record, row, claims):
            return False
        targets = REFERENCES.get(table, {})
        return all(self._holds(target, row[column]) for column, target in targets.items())

    def _login_is_free(self, record: Record | None, row: Record, claims: dict[str, str]) -> bool:
        if not row["login"] or (record and record["login"] != row["login"]):
            return False
        owner = next((other["id"] for other in self.records["user"].values() if other["login"] == row["login"]), None)
        return (owner or claims.get(row["login"], row["id"])) == row["id"]

    def _holds(self, table: str, name: str) -> bool:
        record = self.records[table].get((name,))
        return record is not None and not record["ended"]


class Said:
    name = "said"

    def __init__(self, frames: dict[str, list[Record]], scopes: dict[str, Scope | None]) -> None:
        self.frames, self.scopes = frames, scopes

    def read(self) -> Extract:
        schemas = {name: dict.fromkeys(columns, pl.String) for name, columns in COLUMNS.items()}
        return Extract({name: pl.DataFrame(rows, schema=schemas[name]) for name, rows in self.frames.items()}, self.scopes)


def found(engine) -> dict[str, dict[tuple[str, ...], Record]]:
    told: dict[str, dict[tuple[str, ...], Record]] = {}
    with engine.connect() as connection:
        for name in TABLES:
            table = Base.metadata.tables[name]
            rows = connection.execute(select(table)).mappings()
            told[name] = {
                tuple(row[key.name] for key in table.primary_key): {field: row[field] for field in COLUMNS[name]}
                | {"source": row["source"], "ended": row["ended_at"] is not None}
                for row in rows
            }
    return told


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(loads=LOADS)
def test_any_sequence_of_loads_does_what_the_rules_say(engine, loads):
    with engine.begin() as connection:
        for name in reversed(TABLES):
            connection.execute(delete(Base.metadata.tables[name]))
        for model in (EtlChange, EtlRejection, EtlRun):
            connection.execute(delete(model))
    model = Model()
    for source, frames, scopes in loads:
        report = run(engine, Source(name=source, max_rejected_share=1), Said(frames, scopes), allow_removals=True)
        assert report.objections == []
        model.load(source, frames, scopes)
        assert found(engine) == model.records
        # and once more, which changes nothing
        again = run(engine, Source(name=source, max_rejected_share=1), Said(frames, scopes), allow_removals=True)
        assert found(engine) == model.records
        assert all(counts["added"] == counts["changed"] == counts["ended"] == 0 for counts in again.counts.values())
