"""For tests of adapters over databases: the accounts that the documentation asks for, and frames as rows."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
from sqlalchemy import create_engine, make_url

DOCS = Path(__file__).parent.parent / "docs" / "sources"
PASSWORD = "a long and random one"


def make_reader(page: str, url: str, name: str = "hutch_reader") -> str:
    """Make the account of a page of docs/sources with the statements that stand there, and give its URL (without the password)."""
    (block,) = re.findall(r"```sql\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    assert "'long and random'" in block
    statements = block.replace("long and random", PASSWORD).replace("hutch_reader", name)
    run(url, *filter(str.strip, statements.split(";")))
    return make_url(url).set(username=name).render_as_string()


def run(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def cells(frame: pl.DataFrame, *columns: str) -> list[tuple[str | None, ...]]:
    return sorted(frame.select(columns).rows(), key=str)
