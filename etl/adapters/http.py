"""What the adapters over HTTP share: a client that brings a whole answer, or says in one sentence what came instead.

Half an answer must not look like the whole of it: a null where the source promises something, a total that is not reached and a
row that comes twice stop the run.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Self, TypeVar

import httpx
import polars as pl
from pydantic import PositiveFloat, PositiveInt, StringConstraints
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from etl.frames import PLACE, Extract, File, Scope, Settings, SourceError
from etl.schema import MANDATORY

ATTEMPTS = 3
# a page of rows is some hundred kilobytes
MOST_BYTES = 64 * 2**20
T = TypeVar("T")

# it logs addresses, and sessions are part of some
logging.getLogger("httpx").setLevel(logging.WARNING)


class Web(Settings):
    """What each source over HTTP is told. ca_file: the authority of the server's certificate, where it is not a public one."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s@?#]+[^\s@?#/]$")]
    ca_file: File | None = None
    timeout_seconds: PositiveFloat = 60
    page_size: PositiveInt = 200


class Http:
    """One source. What is not a good answer is a SourceError that names the address and what came, without the secrets.

    So is what an adapter stumbles over within its `with`: a field that is missing, a null.
    """

    def __init__(self, web: Web, *secrets: str, **headers: str) -> None:
        try:
            verify = ssl.create_default_context(cafile=web.ca_file) if web.ca_file else True
        except OSError as error:
            raise SourceError(f"{web.ca_file}: no certificates can be read: {error}") from error
        self.web, self.secrets = web, list(secrets)
        self.client = httpx.Client(timeout=web.timeout_seconds, verify=verify, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        self.client.close()
        if isinstance(error, LookupError | TypeError | ValueError | AttributeError):
            first_line, *_ = f"{type(error).__name__} {error}".splitlines()
            raise self.fault("", f"an answer is not what was expected: {first_line}") from error

    def fault(self, path: str, what: str) -> SourceError:
        sentence = f"{self.web.url}{path}: {what}"
        for secret in filter(None, self.secrets):
            sentence = sentence.replace(secret, "***")
        return SourceError(sentence)

    def ask(self, kind: type[T], method: str, path: str, **content: Any) -> T:
        """The JSON that comes: a dict or a list, as kind says. content: as for httpx.Client.request."""
        answer = self.send(method, path, **content)
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            raise self.fault(path, f"what came is not JSON, or not all of it: {_start(answer)}") from None
        if not isinstance(value, kind):
            raise self.fault(path, f"a {kind.__name__} was expected, {_start(answer)} came")
        return value

    def send(self, method: str, path: str, **content: Any) -> bytes:
        """The body of a good answer. Asks again when the connection fails or the server is busy, and for nothing else."""
        try:
            return self._send(method, path, content)
        except httpx.HTTPError as error:
            raise self.fault(path, f"no whole answer, {ATTEMPTS} times: {type(error).__name__} {error}") from None

    @retry(
        retry=retry_if_exception_type(httpx.TransportError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(0.5),
        reraise=True,
    )
    def _send(self, method: str, path: str, content: dict[str, Any]) -> bytes:
        with self.client.stream(method, self.web.url + path, **content) as answer:
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise self.fault(path, f"the answer is longer than {MOST_BYTES} bytes; set a smaller page_size")
        came = f"answered {answer.status_code} {answer.reason_phrase}"
        if answer.status_code in (502, 503, 504):
            raise httpx.TransportError(came)
        if not answer.is_success:
            raise self.fault(path, f"{came}: {_start(body)}")
        return bytes(body)

    def pages(self, what: str, key: str, fetch: Callable[[int, Any], tuple[int, Sequence[Any]]]) -> Iterator[Any]:
        """The rows of a collection. fetch: from how many came and the last one to their total, as it is now, and the next rows."""
        seen: set[object] = set()
        total = last = None
        while total is None or len(seen) < total:
            stated, page = fetch(len(seen), last)
            total, came = stated if total is None else total, len(seen) + len(page)
            seen |= {row[key] for row in page}
            if stated != total or came > total or len(seen) < came or (not page and came < total):
                told = f"{total} were announced, now {stated}; {came} came, {len(seen)} different ones"
                raise self.fault("", f"{what}: {told}. They changed while they were read, or some are kept back")
            yield from page
            last = page[-1] if page else None


class Rows:
    """The rows of all tables, each of them once, from one place."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.tables: dict[str, dict[object, dict[str, str | None]]] = {}

    def add(self, table: str, **row: Any) -> None:
        """Values become text."""
        rows, key = self.tables.setdefault(table, {}), row.get("id") or tuple(row.values())
        if table == "experiment" and key in rows:
            raise SourceError(f"{self.place}: experiment {key} came twice; two teams would become one")
        rows[key] = {column: None if value in (None, "") else str(value) for column, value in row.items()}

    def extract(self, needed: Sequence[str] = MANDATORY, scopes: dict[str, Scope | None] | None = None) -> Extract:
        """A table without rows is left out, and so stays as it is; needed: those without which a facility is none."""
        if missing := [table for table in needed if table not in self.tables]:
            raise SourceError(f"{self.place}: there is no {missing[0]} at all, as for an account without rights; check these")
        frames = {}
        for table, rows in self.tables.items():
            columns = dict.fromkeys(next(iter(rows.values())), pl.String)
            frames[table] = pl.DataFrame(list(rows.values()), schema=columns).with_columns(pl.lit(self.place).alias(PLACE))
        return Extract(frames, scopes or {})


def _start(body: bytes | bytearray) -> str:
    return repr(" ".join(body[:1000].decode(errors="replace").split())[:120])
