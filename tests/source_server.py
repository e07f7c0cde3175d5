"""A system that data is read from: real HTTP on a port of its own, answered by a function, with faults to order."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

ANSWERS = Path(__file__).parent / "etl" / "adapters" / "answers"


def recorded(name: str) -> Any:
    """An answer in the shape of the system that its file names."""
    return json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8"))["answer"]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    body: str
    headers: dict[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.query} {unquote_plus(self.body)}"


@dataclass(frozen=True)
class Reply:
    """cut: how many bytes of the body go out before the connection ends; hang: the answer never begins."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    cut: int | None = None
    hang: bool = False
    location: str | None = None


def reply(value: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(value).encode(), status)


@dataclass
class SourceServer:
    answer: Callable[[Asked], Reply]
    asked: list[Asked] = field(default_factory=list)
    # what a request whose text holds the first is answered with, how many times
    faults: list[tuple[str, Reply, int]] = field(default_factory=list)
    url: str = ""
    closed: threading.Event = field(default_factory=threading.Event)

    def fail(self, match: str, with_: Reply, times: int = 1000) -> None:
        self.faults.append((match, with_, times))

    def reply_to(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        for number, (match, with_, times) in enumerate(self.faults):
            if match in str(asked) and times:
                self.faults[number] = (match, with_, times - 1)
                return with_
        return self.answer(asked)


@contextmanager
def source_server(answer: Callable[[Asked], Reply]) -> Iterator[SourceServer]:
    source = SourceServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # headers and body in one packet
        wbufsize = 2**20

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            given = source.reply_to(Asked(self.command, parts.path, dict(parse_qsl(parts.query)), body, dict(self.headers)))
            if given.hang:
                source.closed.wait()
                self.close_connection = True
                return
            self.send_response(given.status)
            self.send_header("Content-Type", given.content_type)
            self.send_header("Content-Length", str(len(given.body)))
            if given.location:
                self.send_header("Location", given.location)
            self.end_headers()
            self.wfile.write(given.body[: given.cut])
            self.wfile.flush()
            self.close_connection = given.cut is not None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    source.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield source
    finally:
        source.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()
