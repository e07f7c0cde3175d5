"""UserOffice's events through a real broker: published as UserOffice does, consumed by the service's own follower."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
import pytest_asyncio
from databases import database_url, upgrade
from running_hub import REPOSITORY
from sqlalchemy import insert, select

from etl.events import Follower
from etl.load import run
from etl.push import Sent, extract_of
from etl.serve import Service
from etl.source import open_source
from hub.configuration import ConfigurationError, Hutch
from hub.database.engine import open_database
from hub.database.tables import EtlRun, Experiment, ExperimentMember, User

PROPOSAL = "999999"
CONSUMER = """
import asyncio, os, signal, sys
from etl.events import Follower
from etl.serve import Service
from etl.source import open_source
from hub.configuration import load
from hub.database.engine import open_database

class Dying(Follower):
    async def take(self, kind, body):
        outcome = await super().take(kind, body)
        os.kill(os.getpid(), signal.SIGKILL)

hutch = load(sys.argv[1])
service = Service(hutch, open_database(hutch.database_url))
asyncio.run(Dying(service, *open_source(service.folder, "uo")).follow())
"""


def person(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "firstName": "Given",
        "lastName": f"Family{number}",
        "email": f"p{number}@facility.example",
        "oidcSub": f"p{number}",
        "oauthIssuer": "https://sso.facility.example",
        "institution": {"id": 1, "name": "Nordhavn", "countryId": 2},
        "country": {"countryId": 2, "country": "Denmark"},
        **changes,
    }


def snapshot(members: tuple[int, ...] = (2,), visitors: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    return {
        "proposalPk": 1,
        "shortCode": PROPOSAL,
        "title": "Cracks in cathodes",
        "abstract": "",
        "callId": 1,
        "instruments": [{"id": 1, "shortCode": "INSTR1", "allocatedTime": 86400}],
        "members": [person(number) for number in members],
        "dataAccessUsers": [],
        "visitors": [person(number) for number in visitors],
        "newStatus": "ALLOCATED",
        "submitted": True,
        "proposer": person(1),
        **changes,
    }


def visit(day: str, visitor: int, **changes: Any) -> dict[str, Any]:
    return {
        "startAt": f"{day}T08:00:00.000Z",
        "endAt": f"{day}T18:00:00.000Z",
        "visitorId": f"p{visitor}",
        "proposal": snapshot(**changes),
    }


class Line:
    """Between the follower and the broker; `cut` breaks every connection."""

    def __init__(self, broker: str) -> None:
        self._broker, self._writers = urlsplit(broker), []

    async def open(self) -> str:
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"amqp://guest@127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_broker = await asyncio.open_connection(self._broker.hostname, self._broker.port)
        self._writers += [writer, to_broker]
        await asyncio.gather(_pass_on(reader, to_broker), _pass_on(there, writer))

    def cut(self) -> None:
        while self._writers:
            self._writers.pop().transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


class Facility:
    """One source with two experiments of a proposal, as its last scheduled run left them, and the sender of its events."""

    def __init__(self, folder: Path, connection: aio_pika.abc.AbstractConnection, url: str, users: str) -> None:
        self.connection, self.users = connection, users
        self.exchange, self.queue = f"{secrets.token_hex(4)}.fanout", secrets.token_hex(4)
        (folder / "sources").mkdir()
        (folder / "sources/rabbitmq.password").write_text("guest\n")
        (folder / "sources/uo.toml").write_text(
            f"""
            adapter = "useroffice"
            users = "{users}"
            [settings]
            url = "http://127.0.0.1:1/graphql"
            token_file = "uo.token"
            issuer = "https://sso.facility.example"
            subject_is_login = true
            [events]
            url = "{url}"
            password_file = "rabbitmq.password"
            exchange = "{self.exchange}"
            queue = "{self.queue}"
            """
        )
        self.config = folder / "jupyterhub_config.py"
        self.config.write_text(f"c.Hutch.database_url = {database_url(folder)!r}")
        self.engine = open_database(database_url(folder))
        upgrade(self.engine)
        hutch = Hutch(database_url=database_url(folder), sources_dir=str(folder / "sources"))
        self.service = Service(hutch, self.engine)
        self.source, self.adapter = open_source(folder / "sources", "uo")

    def load(self) -> None:
        """1 leads, 2 is a member, 3 the local contact; 4 visits the first experiment. With users = "link", all have an x before."""
        ids = [str(number) for number in range(1, 7)]
        if self.users == "link":
            with self.engine.begin() as connection:
                connection.execute(
                    insert(User),
                    [{"id": f"x{one}", "login": f"p{one}", "given_name": "", "family_name": one, "source": "hr"} for one in ids],
                )
        team = {"1": "principal-investigator", "2": "member", "3": "local-contact"}
        dates = {"E1": ("2030-01-07T08:00Z", "2030-01-09T08:00Z"), "E2": ("2030-02-07T08:00Z", "2030-02-09T08:00Z")}
        tables: dict[str, list[dict[str, Any]]] = {
            "user": [{"id": one, "login": f"p{one}", "family_name": f"Family{one}"} for one in ids],
            "instrument": [{"id": "1", "name": "Nano"}],
            "proposal": [{"id": PROPOSAL, "title": "Cracks"}, {"id": "7", "title": "Another"}],
            "experiment": [
                {"id": one, "proposal_id": PROPOSAL, "instrument_id": "1", "starts_at": begins, "ends_at": ends}
                for one, (begins, ends) in dates.items()
            ]
            + [{"id": "E7", "proposal_id": "7", "instrument_id": "1"}],
            "experiment_member": [
                {"experiment_id": experiment, "user_id": user, "role": role}
                for experiment in ("E1", "E2", "E7")
                for user, role in team.items()
            ]
            + [{"experiment_id": "E1", "user_id": "4"}],
        }
        assert not run(self.engine, self.source, Sent("useroffice", lambda: extract_of(tables, {}, "test"))).rejections.height

    async def publish(self, kind: str, body: Any) -> None:
        """As amqplib does it for UserOffice: the type is the event's name, and nothing tells one message from another."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        message = aio_pika.Message(data, type=kind, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self.fanout.publish(message, routing_key="")

    def taken(self, kind: str, outcome: str) -> float:
        labels = {"source": "uo", "type": kind, "outcome": outcome}
        return self.service.metrics.registry.get_sample_value("hutch_etl_events_total", labels) or 0

    def team(self, experiment: str) -> dict[str, str]:
        members = select(ExperimentMember.user_id, ExperimentMember.role).where(
            ExperimentMember.experiment_id == experiment, ExperimentMember.ended_at.is_(None)
        )
        with self.engine.connect() as connection:
            return {user.removeprefix("x"): role for user, role in connection.execute(members).tuples()}

    def members(self, experiment: str) -> set[str]:
        return set(self.team(experiment))

    def pushes(self) -> int:
        with self.engine.connect() as connection:
            return len(connection.execute(select(EtlRun.id).where(EtlRun.kind == "push", EtlRun.outcome == "done")).all())

    async def waiting(self, queue: str) -> int:
        """How many messages a queue holds that nobody has at hand."""
        async with self.connection.channel() as channel:
            found = await channel.declare_queue(queue, passive=True)
            return found.declaration_result.message_count or 0

    async def is_consumed(self) -> bool:
        """On a channel of its own, because the broker closes one that asks for what is not there."""
        with suppress(aio_pika.exceptions.ChannelClosed):
            async with self.connection.channel() as channel:
                queue = await channel.declare_queue(self.queue, passive=True)
                return bool(queue.declaration_result.consumer_count)
        return False

    @asynccontextmanager
    async def following(self, kind: type[Follower] = Follower) -> AsyncIterator[None]:
        task = asyncio.create_task(kind(self.service, self.source, self.adapter).follow())
        yield
        task.cancel()
        await asyncio.wait([task])


async def eventually(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1500):
        answer = condition()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited in vain until {what}")


@pytest.fixture(params=["own", "link"])
def users(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def line(rabbitmq: str) -> Line:
    return Line(rabbitmq)


@pytest_asyncio.fixture
async def facility(
    tmp_path: Path, rabbitmq: str, line: Line, users: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Facility]:
    monkeypatch.setattr("etl.events.CONNECT_AGAIN_SECONDS", 0.05)
    async with await aio_pika.connect(rabbitmq) as connection:
        facility = Facility(tmp_path, connection, await line.open(), users)
        channel = await connection.channel()
        facility.fanout = await channel.declare_exchange(facility.exchange, aio_pika.ExchangeType.FANOUT, durable=True)
        facility.load()
        yield facility
        line.server.close()


@pytest_asyncio.fixture
async def followed(facility: Facility) -> AsyncIterator[Facility]:
    async with facility.following():
        await eventually(facility.is_consumed, "it consumes")
        yield facility


async def test_a_team_is_replaced_in_all_experiments_of_its_proposal(followed):
    await followed.publish("PROPOSAL_UPDATED", snapshot(members=(5,), dataAccessUsers=[person(6)], visitors=(4,)))
    await eventually(lambda: followed.taken("PROPOSAL_UPDATED", "done"), "it is taken")
    assert followed.team("E1") == {
        "1": "principal-investigator", "3": "local-contact", "4": "member", "5": "member", "6": "member",
    }  # fmt: skip
    assert followed.members("E2") == {"1", "3", "5", "6"}
    assert followed.members("E7") == {"1", "2", "3"}


async def test_a_visitor_is_in_the_experiment_of_the_visit_only(followed):
    await followed.publish("VISIT_CREATED", visit("2030-02-08", 5, visitors=(4, 5)))
    await followed.publish("PROPOSAL_UPDATED", snapshot(visitors=(4, 5)))
    await eventually(lambda: followed.taken("PROPOSAL_UPDATED", "done"), "both are taken")
    assert (followed.members("E1"), followed.members("E2")) == ({"1", "2", "3", "4"}, {"1", "2", "3", "5"})
    await followed.publish("VISIT_DELETED", visit("2030-02-08", 5, visitors=(4,)))
    await eventually(lambda: followed.taken("VISIT_DELETED", "done"), "it is taken")
    assert (followed.members("E1"), followed.members("E2")) == ({"1", "2", "3", "4"}, {"1", "2", "3"})


async def test_a_deleted_proposal_ends_with_all_that_is_its_own(followed):
    await followed.publish("PROPOSAL_DELETED", snapshot())
    await eventually(lambda: followed.taken("PROPOSAL_DELETED", "done"), "it is taken")
    assert (followed.members("E1"), followed.members("E2"), followed.members("E7")) == (set(), set(), {"1", "2", "3"})
    with followed.engine.connect() as connection:
        assert set(connection.scalars(select(Experiment.id).where(Experiment.ended_at.is_(None)))) == {"E7"}


@pytest.mark.parametrize("users", ["own"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("CALL_CREATED", {"id": 1}, id="unknown-type"),
        pytest.param("", {}, id="no-type"),
        pytest.param("PROPOSAL_CREATED", snapshot(shortCode="1"), id="unknown-proposal"),
    ],
)
async def test_what_does_not_concern_us_is_counted_and_gone(followed, kind, body):
    await followed.publish(kind, body)
    await eventually(lambda: followed.taken(kind, "not ours"), "it is taken")
    assert await followed.waiting(f"{followed.queue}.dead") == 0
    assert followed.pushes() == 0


@pytest.mark.parametrize("users", ["own"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("PROPOSAL_UPDATED", b"{", id="not-json"),
        pytest.param("PROPOSAL_UPDATED", {}, id="empty"),
        pytest.param("PROPOSAL_UPDATED", {**snapshot(), "members": None}, id="null-members"),
        pytest.param("PROPOSAL_UPDATED", {**snapshot(), "members": [{"id": 1}]}, id="half-a-person"),
        pytest.param("PROPOSAL_UPDATED", snapshot(proposer=None), id="no-proposer"),
        pytest.param("PROPOSAL_DELETED", {"proposalPk": 1}, id="half-a-deletion"),
        pytest.param("VISIT_CREATED", snapshot(), id="no-visit"),
    ],
)
async def test_what_cannot_be_understood_is_laid_aside_and_removes_nobody(followed, kind, body):
    await followed.publish(kind, body)
    await eventually(lambda: followed.taken(kind, "refused"), "it is taken")
    await eventually(lambda: followed.waiting(f"{followed.queue}.dead"), "it is laid aside")
    assert followed.members("E1") == {"1", "2", "3", "4"}
    # and what comes behind it is taken
    await followed.publish("PROPOSAL_ACCEPTED", snapshot(members=()))
    await eventually(lambda: followed.taken("PROPOSAL_ACCEPTED", "done"), "the next one is taken")
    assert followed.members("E2") == {"1", "3"}


@pytest.mark.parametrize("users", ["own"], indirect=True)
async def test_messages_are_taken_in_their_order_and_again_without_harm(followed):
    for members in ((5,), (5, 6), (), (2, 6)):
        await followed.publish("PROPOSAL_UPDATED", snapshot(members=members))
    await followed.publish("PROPOSAL_SUBMITTED", snapshot(members=(2, 6)))
    await eventually(lambda: followed.taken("PROPOSAL_SUBMITTED", "done"), "all are taken")
    assert followed.taken("PROPOSAL_UPDATED", "done") == 4
    assert followed.members("E2") == {"1", "2", "3", "6"}


@pytest.mark.parametrize("users", ["own"], indirect=True)
async def test_a_broken_connection_is_made_again_and_nothing_is_lost(followed, line):
    for cut in range(3):
        line.cut()
        await followed.publish("PROPOSAL_UPDATED", snapshot(members=(4 + cut,)))
        await eventually(lambda member=str(4 + cut): member in followed.members("E2"), "it is taken after the cut")
    assert followed.members("E2") == {"1", "3", "6"}


@pytest.mark.parametrize("users", ["own"], indirect=True)
async def test_a_connection_lost_between_commit_and_acknowledgement_brings_the_message_again(facility, line):
    times = []

    class Cut(Follower):
        async def take(self, kind: str, body: bytes) -> str:
            outcome = await super().take(kind, body)
            times.append(kind)
            if len(times) == 1:
                line.cut()
                await eventually(lambda: facility.waiting(facility.queue), "the broker has it again")
            return outcome

    async with facility.following(Cut):
        await eventually(facility.is_consumed, "it consumes")
        await facility.publish("PROPOSAL_UPDATED", snapshot(members=(5,)))
        await eventually(lambda: len(times) == 2, "it comes again")
        await eventually(lambda: facility.taken("PROPOSAL_UPDATED", "done") == 2, "and is taken")
    assert facility.members("E2") == {"1", "3", "5"}


@pytest.mark.parametrize("users", ["own"], indirect=True)
async def test_a_follower_killed_between_commit_and_acknowledgement_loses_and_doubles_nothing(facility):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HUTCH_CONFIG": str(facility.config)}
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", CONSUMER, str(facility.config), env=environment)
    await eventually(facility.is_consumed, "it consumes")
    await facility.publish("PROPOSAL_UPDATED", snapshot(members=(5,)))
    await facility.publish("PROPOSAL_UPDATED", snapshot(members=(6,)))
    assert await first.wait() == -signal.SIGKILL
    assert facility.members("E2") == {"1", "3", "5"}
    async with facility.following():
        await eventually(lambda: facility.taken("PROPOSAL_UPDATED", "done") == 2, "both are taken")
    assert facility.members("E2") == {"1", "3", "6"}
    assert facility.pushes() == 3


def test_only_useroffice_has_events(tmp_path):
    (tmp_path / "uo.toml").write_text('adapter = "push"\n[events]\nurl = "amqp://broker/"')
    with pytest.raises(ConfigurationError, match="only the adapter useroffice can read"):
        url = f"sqlite:///{tmp_path}/hutch.sqlite"
        Follower(Service(Hutch(database_url=url), open_database(url)), *open_source(tmp_path, "uo"))
