"""Whatever a system over HTTP answers: all of it is read, or none of it and one sentence says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_hub import REPOSITORY
from source_server import Reply, recorded
from source_systems import SECRET, SESSION, SYSTEMS, Running, running_system
from sqlalchemy import Engine

from etl.adapters.http import ATTEMPTS, Web
from etl.frames import SourceError
from etl.load import run
from etl.source import Source, open_source
from hub.database.engine import sessions
from hub.database.tables import Identity, User

# a request in the middle of what each adapter asks for
MIDDLE = {
    "useroffice": "proposals(first: 2, offset: 2)",
    "icat": "SELECT e FROM Investigation e",
    "icatplus": "/investigation",
    "scicat": "/proposals {'filters'",
}
SESSIONS = (recorded("icatplus/session")["sessionId"], recorded("scicat/login")["access_token"])
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"
FAULTS = {
    "not known": (Reply(b'{"message": "who are you"}', 401), "answered 401 Unauthorized"),
    "not allowed": (Reply(b'{"message": "not for you"}', 403), "not for you"),
    "its own error": (Reply(b"oops", 500), "answered 500 Internal Server Error: 'oops'"),
    "busy for long": (Reply(b"", 503), "answered 503"),
    "sent elsewhere": (Reply(b"", 302, location="/login"), "answered 302 Found"),
    "cut within the body": (Reply(b'[{"id": 1}]' * 100, cut=50), "no whole answer, 3 times"),
    "a page for people": (Reply(HTML, content_type="text/html"), None),
    "half of the JSON": (Reply(b'{"data": [{"id": 1'), None),
    "nothing": (Reply(b""), None),
    "null": (Reply(b"null"), None),
    "another shape": (Reply(b'{"answer": 42}'), None),
    "a list of nulls": (Reply(b"[null, null]"), None),
    "no rows": (Reply(b"[]"), None),
    "an object of nothing": (Reply(b"{}"), None),
}


@pytest.fixture(params=SYSTEMS)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with running_system(request.param, tmp_path) as found:
        yield found


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_a_whole_answer_stops_the_reading_and_is_told(running: Running, fault: str) -> None:
    given, expected = FAULTS[fault]
    running.server.fail(MIDDLE[running.adapter.name], given)
    with pytest.raises(SourceError) as stopped:
        running.adapter.read()
    message = str(stopped.value)
    assert message.startswith(running.adapter.url) and "\n" not in message
    assert expected is None or expected in message
    assert not [secret for secret in (SECRET, SESSION, *SESSIONS) if secret in message]


def test_a_silent_server_is_not_waited_for_long(running: Running) -> None:
    running.server.fail(MIDDLE[running.adapter.name], Reply(hang=True))
    with pytest.raises(SourceError, match="no whole answer, 3 times: ReadTimeout"):
        running.told(timeout_seconds=0.6).read()


def test_a_server_that_is_not_there_is_named(running: Running) -> None:
    with pytest.raises(SourceError, match=r"http://127.0.0.1:1/.*no whole answer, 3 times: ConnectError"):
        running.told(url="http://127.0.0.1:1/x").read()


@pytest.mark.parametrize(
    "given",
    [Reply(b"", 502), Reply(b"", 503), Reply(b"", 504), Reply(b'[{"id": 1}]', cut=3)],
    ids=["502", "503", "504", "cut"],
)
def test_it_is_asked_again_when_a_server_is_busy_or_a_connection_breaks(running: Running, given: Reply) -> None:
    before = running.adapter.read()
    running.server.fail(MIDDLE[running.adapter.name], given, ATTEMPTS - 1)
    again = running.adapter.read()
    assert all(again.frames[table].equals(frame) for table, frame in before.frames.items())


def test_what_is_wrong_is_not_asked_again(running: Running) -> None:
    running.server.fail(MIDDLE[running.adapter.name], Reply(b"", 400))
    with pytest.raises(SourceError):
        running.adapter.read()
    assert sum(MIDDLE[running.adapter.name] in str(asked) for asked in running.server.asked) == 1


def test_pages_of_any_size_bring_the_same(running: Running) -> None:
    small, large = running.told(page_size=1).read(), running.told(page_size=1000).read()
    assert small.frames.keys() == large.frames.keys()
    assert all(small.frames[table].equals(frame) for table, frame in large.frames.items())


def test_an_answer_without_end_is_not_swallowed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.adapters.http.MOST_BYTES", 1000)
    running.server.fail(MIDDLE[running.adapter.name], Reply(b"[" + b" " * 2000))
    with pytest.raises(SourceError, match="longer than 1000 bytes"):
        running.adapter.read()


def test_no_secret_is_in_a_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    running.adapter.read()
    assert caplog.records
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert not [secret for secret in (SECRET, SESSION, SESSIONS[0]) if secret in told]


def test_nothing_at_all_is_an_account_without_rights(running: Running) -> None:
    for name, records in running.system.records.items():
        if isinstance(records, list) and name != "people":
            records.clear()
    with pytest.raises(SourceError, match="at all, as for an account without rights"):
        running.told(visits=False).read() if running.adapter.name == "useroffice" else running.adapter.read()


def test_a_run_of_a_broken_source_removes_nobody(
    running: Running, engine: Engine, everything: Callable[[], dict[str, Any]], rows: Callable[[str], list[Any]]
) -> None:
    users = "link" if running.adapter.name == "scicat" else "own"
    source = Source(name="web", adapter=running.adapter.name, users=users, max_ended_share=1, max_rejected_share=1)
    if users == "link":
        confirm_people(engine)
    run(engine, source, running.adapter)
    assert rows("experiment_member")
    before = everything()
    for given, _ in FAULTS.values():
        running.server.faults[:] = [(MIDDLE[running.adapter.name], given, 1000)]
        with pytest.raises(SourceError):
            run(engine, source, running.adapter, allow_removals=True)
    assert everything() == before
    assert [row["outcome"] for row in rows("etl_run")] == ["done", *["failed"] * len(FAULTS)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_example_in_its_page_is_one(name: str, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "sources" / f"{name}.md").read_text(encoding="utf-8")
    (tmp_path / f"{name}.toml").write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    source, adapter = open_source(tmp_path, name)
    assert (source.adapter, adapter.name) == (name, name)
    told = {key for key in type(adapter).model_fields if key not in Web.model_fields} - {"username"}  # type: ignore[attr-defined]
    assert [key for key in told if key not in page] == []


def test_a_certificate_file_that_is_none_is_named(running: Running, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"secret: no certificates can be read"):
        running.told(ca_file=tmp_path / "secret").read()


def confirm_people(engine: Engine) -> None:
    """The facility's users, and staff's word that they are the people of SciCat's e-mail addresses."""
    with sessions(engine)() as session:
        for number, email in enumerate(["pi@uni.edu", "proposer@uni.edu", "other@uni.edu"]):
            session.add(User(id=str(number), login=f"user{number}", given_name="", family_name=email))
            session.flush()
            session.add(Identity(issuer="source:web", subject=email, user_id=str(number), linked_by="staff"))
        session.commit()
