"""One relay: lets people in to the rooms that are its own, and out again when the rules say so.

The rules are asked when somebody comes, when records change (looked for every POLL_SECONDS), and every JUDGE_SECONDS. When the
database cannot be asked, what was known holds on, and what was granted until a moment still ends then. A change of somebody's right
ends their RFB session and begins another one on the same WebSocket.

`{"do": "end"}` is told only to whom coming back would be of no use; others are cut off with a code, and come back by themselves.
A page says its size and keyboard layout in the query of its address.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import structlog
from sqlalchemy.orm import Session

from spawner.agent_client import AgentClient, AgentError

from ..access import Person, Place, Right, Terms
from ..access.desktops import CONTROL
from ..database.tables import DesktopSession, Instance, SupportAccess, User, now
from ..errors import HutchError
from ..facility import Facility
from ..records import find_person, find_place
from ..service import putting_off, well
from . import ledger, relay_of, support, tickets
from .hub_client import Where, note_activity, where
from .relay import MALFORMED, SUBPROTOCOL, Connection, Refusal
from .room import SUPPORT_VERBS, Room

log = structlog.get_logger("desktop")

POLL_SECONDS, JUDGE_SECONDS, LOOK_SECONDS, WRITE_SECONDS = 0.4, 1.0, 60.0, 60.0
ACTIVITY_SECONDS = 60.0
# a desktop that goes away this soon after it came is not asked for again at once
SHORT_SECONDS = 5.0
NO_TICKET, NO_RIGHT, RESTART, NO_DESKTOP = 4401, 4403, 1012, 4502

ROOM_PATH = re.compile(r"rooms/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
TICKET = "hutch.ticket."
SIZES = range(320, 7681)
LAYOUT = re.compile(r"[a-z]{2,12}(\([a-z0-9_-]{1,20}\))?")


@dataclass(frozen=True, slots=True)
class Known:
    """What the records say of an instance, and of some people in it: nothing of those who have no business there."""

    owner_id: str
    owner_login: str
    server_name: str
    people: dict[str, tuple[Person, Place]]
    requests: Sequence[SupportAccess]


@dataclass
class Desktop:
    """An instance's room, and what is needed to reach its desktop."""

    room: Room
    owner_login: str
    server_name: str
    guests: dict[int, Guest] = field(default_factory=dict)
    where: Where | None = None
    input_at: datetime | None = None
    noted_at: float = 0.0


class Relay:
    def __init__(
        self, facility: Facility, number: int, hub: aiohttp.ClientSession, agents: AgentClient, *, prefix: str, origin: str
    ) -> None:
        """origin: of the portal's pages; empty: the host that the relay itself is asked for."""
        self.facility, self.number, self.hub, self.agents = facility, number, hub, agents
        self.prefix, self.origin = prefix, origin
        self.desktops: dict[str, Desktop] = {}
        self.numbers = itertools.count(1)
        # with when they were written last
        self.lines: dict[DesktopSession, datetime | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.newest = ledger.Newest()
        self._expected: dict[str, dict[str, bool]] = {}
        self._expected_until = now()
        self.ending = False

    # --- from start to end

    async def begin(self) -> None:
        """After a restart, who was there has a while to come back as if they had never left."""
        at, relays = now(), self.facility.hutch.desktop_relays
        self._expected = await self.facility.ask(partial(ledger.close_open, number=self.number, relays=relays, at=at))
        self._expected_until = at + ledger.BACK_WITHIN
        self.newest = await self.facility.ask(partial(ledger.newest, at=at))

    async def run(self) -> None:
        await asyncio.gather(
            self._repeat(self._follow_records, POLL_SECONDS),
            self._repeat(self._look_everywhere, LOOK_SECONDS),
            self._repeat(self._judge_all, JUDGE_SECONDS),
            self._repeat(self._write_down, JUDGE_SECONDS),
        )

    async def end(self) -> None:
        self.ending = True
        for desktop in self.desktops.values():
            for guest in list(desktop.guests.values()):
                guest.finish(ledger.RELAY_ENDED, RESTART)
        with suppress(HutchError):
            await self._write_down()

    async def _repeat(self, task: Callable[[], Any], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await task()
                well("failed", task=task.__name__)
            except Exception:
                log.exception("failed", task=task.__name__)

    def later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- rooms

    def desktop_of(self, instance_id: str, known: Known) -> Desktop:
        if instance_id not in self.desktops:
            room = Room(known.owner_id, self.facility.hutch.terms(now()))
            if (before := self._expected.pop(instance_id, None)) and self._expected_until > now():
                room.expect(before, next((one for one, drove in before.items() if drove), None), self._expected_until)
            self.desktops[instance_id] = Desktop(room, known.owner_login, known.server_name)
        desktop = self.desktops[instance_id]
        desktop.room.requests = known.requests
        return desktop

    async def _follow_records(self) -> None:
        if not self.desktops:
            return
        newest = await self.facility.ask(partial(ledger.newest, at=now()))
        before = self.newest
        if newest == before:
            return
        everywhere = (newest.run, newest.expired) != (before.run, before.expired)
        changed = await self.facility.ask(partial(ledger.concerned, since=before))
        # now, so that whoever comes in meanwhile with older records is looked at again
        self.newest = newest
        try:
            for instance_id in [one for one in self.desktops if everywhere or one in changed]:
                await self.look_again(instance_id)
        except Exception:
            self.newest = before
            raise

    async def _look_everywhere(self) -> None:
        """For what was changed in the records without a word."""
        for instance_id in list(self.desktops):
            await self.look_again(instance_id)

    async def look_again(self, instance_id: str) -> None:
        """Reads the records of a room anew. Who is no longer in them has no business there."""
        desktop = self.desktops.get(instance_id)
        if desktop is None:
            return
        terms = self.facility.hutch.terms(now())
        asked = desktop.room.people
        known = await self.facility.ask(partial(read, instance_id=instance_id, user_ids=asked, terms=terms))
        for guest in list(desktop.guests.values()):
            if known is None or (guest.person.id in asked and guest.person.id not in known.people):
                guest.put_out("unknown-instance" if known is None else "unknown-user", "This desktop is no longer there for you.")
        if known:
            desktop.room.requests = known.requests
            for user_id, (person, place) in known.people.items():
                if user_id in desktop.room.people:
                    desktop.room.learn(user_id, person, place)
            self.judge(desktop)

    async def _judge_all(self) -> None:
        for instance_id, desktop in list(self.desktops.items()):
            self.judge(desktop)
            if desktop.room.is_over:
                del self.desktops[instance_id]
            # others have their turn in between
            await asyncio.sleep(0)

    def judge(self, desktop: Desktop) -> None:
        """Asks the rules about everybody in a room, and does what follows."""
        room, at = desktop.room, now()
        room.settle(at)
        for guest in list(desktop.guests.values()):
            if guest.number not in desktop.guests:
                continue
            standing = room.standing(guest.person.id)
            if not standing.watch:
                guest.put_out(standing.watch.rule, standing.watch.reason)
            elif room.right(guest.person.id) != guest.right:
                guest.begin(room.right(guest.person.id), standing.part)
        told = room.told(at)
        for guest in list(desktop.guests.values()):
            guest.see(told[guest.person.id])

    # --- what is written down

    async def _write_down(self) -> None:
        """New and ended rows at once, the others every WRITE_SECONDS; and that there was work at a desktop."""
        at = now()
        for desktop in self.desktops.values():
            for guest in desktop.guests.values():
                guest.count()
            if desktop.input_at and asyncio.get_running_loop().time() - desktop.noted_at >= ACTIVITY_SECONDS:
                self.later(self._note(desktop, desktop.input_at))
                desktop.input_at, desktop.noted_at = None, asyncio.get_running_loop().time()
        every = timedelta(seconds=WRITE_SECONDS)
        due = [line for line, written_at in self.lines.items() if not written_at or line.ended_at or at - written_at >= every]
        if due:
            # those that end while the others are written are written at the next pass
            ended = [line for line in due if line.ended_at]
            for line, number in zip(due, await self.facility.ask(partial(ledger.write, rows=due)), strict=True):
                line.id, self.lines[line] = number, at
            for line in ended:
                del self.lines[line]

    async def _note(self, desktop: Desktop, at: datetime) -> None:
        with putting_off("the hub was not told of work at a desktop"):
            await note_activity(self.hub, desktop.owner_login, desktop.server_name, at)

    # --- the desktop's own side

    async def open(self, desktop: Desktop, guest: Guest, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """Raises NotRunning or AgentError. After a failure it is asked again where the agent is."""
        agent = desktop.where = desktop.where or await where(self.hub, desktop.owner_login, desktop.server_name)
        try:
            return await self.agents.open_desktop(
                *agent,
                protocol_factory,
                user=guest.person.login,
                control=Right.KEYBOARD in guest.right,
                width=guest.width,
                height=guest.height,
                layout=guest.layout,
                on_stage=lambda text: guest.connection.tell({"do": "starting", "text": text}),
            )
        except AgentError:
            desktop.where = None
            raise


def read(session: Session, instance_id: str, user_ids: Sequence[str], terms: Terms) -> Known | None:
    """None where there is no such instance (any more)."""
    instance = session.get(Instance, instance_id)
    if instance is None or instance.deleted_at is not None:
        return None
    people = {}
    for user_id in user_ids:
        user = session.get(User, user_id)
        if user and (person := find_person(session, user.login, terms)):
            people[user_id] = (person, find_place(session, instance, person, terms))
    requests = support.open_requests(session, instance_id, terms)
    return Known(instance.owner_id, instance.owner.login, instance.server_name, people, requests)


class Guest:
    """One browser: the relay's `Handler`."""

    def __init__(self, relay: Relay, connection: Connection) -> None:
        self.relay, self.connection = relay, connection
        self.number = next(relay.numbers)
        self.instance_id = ""
        self.right = Right(0)
        self.width, self.height, self.layout = 1280, 800, "us"
        self.person: Person
        self.desktop: Desktop | None = None
        self.line: DesktopSession | None = None
        self._known: Known | None = None
        self._input_at: datetime | None = None  # as long as this row lasts
        self._counted: dict[str, int] = dict.fromkeys(ledger.COLUMNS, 0)
        self._seen: dict[str, Any] = {}
        self._as_of = relay.newest
        self._began_at = 0.0

    # --- coming

    async def admit(self) -> Refusal | None:
        path, _, query = self.connection.path.partition("?")
        found = ROOM_PATH.fullmatch(path.removeprefix(self.relay.prefix)) if path.startswith(self.relay.prefix) else None
        hutch = self.relay.facility.hutch
        if not found or relay_of(found[1], hutch.desktop_relays) != self.relay.number:
            return Refusal(404, "There is no such room.\n")
        if self.connection.headers.get("Upgrade", "").lower() != "websocket":
            return Refusal(426, "This is for WebSockets.\n")
        if not self._is_own_page():
            log.warning("desktop-refused", rule="origin", instance=found[1], origin=str(self.connection.origin)[:200])
            return Refusal(403, "This request did not come from a page of Hutch.\n")
        self.instance_id = found[1]
        self._read_wishes(query)
        shown = [name.removeprefix(TICKET) for name in self.connection.subprotocols if name.startswith(TICKET)]
        if len(shown) == 1 and SUBPROTOCOL in self.connection.subprotocols and not self.relay.ending:
            terms, self._as_of = hutch.terms(now()), self.relay.newest
            self._known = await self.relay.facility.ask(
                partial(_redeem_and_read, ticket=shown[0], instance_id=self.instance_id, terms=terms)
            )
        return None

    def _is_own_page(self) -> bool:
        """Whether a page of the portal opened this. Without a host of its own, it is the relay's too."""
        if self.relay.origin:
            return self.connection.origin == self.relay.origin
        return urlsplit(self.connection.origin or "").netloc == self.connection.headers.get("Host", "-")

    def _read_wishes(self, query: str) -> None:
        """What is not understood is left as it is."""
        wishes = parse_qs(query) if len(query) < 1000 else {}
        for name in ("width", "height"):
            text = wishes.get(name, [""])[0]
            if text.isascii() and text.isdigit() and len(text) < 6:
                setattr(self, name, min(max(int(text), SIZES.start), SIZES[-1]))
        layout = wishes.get("layout", [""])[0]
        self.layout = layout if LAYOUT.fullmatch(layout) else self.layout

    def on_open(self) -> None:
        if self._known is None:
            log.warning("desktop-refused", rule="ticket", instance=self.instance_id, peer=self.connection.peer)
            self.connection.end(NO_TICKET)
            return
        known, self._known = self._known, None
        ((self.person, place),) = known.people.values()
        desktop = self.relay.desktop_of(self.instance_id, known)
        decision = desktop.room.enter(self.number, self.person, place, now())
        if not decision:
            self._refuse(decision.rule, decision.reason)
            return
        self.desktop = desktop
        desktop.guests[self.number] = self
        self.relay.judge(desktop)
        if self._as_of != self.relay.newest:
            # something happened after the records were read, and before it could concern this room
            self.relay.later(self.relay.look_again(self.instance_id))

    def _refuse(self, rule: str, text: str) -> None:
        log.info("desktop-refused", rule=rule, instance=self.instance_id, login=self.person.login)
        self.connection.end(NO_RIGHT, {"do": "end", "rule": rule, "text": text})

    # --- being there

    def begin(self, right: Right, part: str) -> None:
        """A new RFB session, with this right."""
        assert self.desktop
        self._close_line("right-changed")
        self.right = right
        who = {"instance_id": self.instance_id, "user_id": self.person.id, "part": part}
        self.line = DesktopSession(**who, control=right == CONTROL, started_at=now())
        self.relay.lines[self.line] = None
        self._open()

    def _open(self) -> None:
        assert self.desktop
        self._began_at = asyncio.get_running_loop().time()
        self.connection.begin(self.right, partial(self.relay.open, self.desktop, self))

    def see(self, room: dict[str, Any]) -> None:
        if room != self._seen:
            self._seen = room
            # the browser's clock may be another
            self.connection.tell(room | {"at": now().isoformat()})

    def on_input(self, kind: str) -> None:
        if self.desktop and self.line:
            self.desktop.input_at = self._input_at = now()
            if kind == "key":
                self.desktop.room.typed(self.person.id, now())

    def on_text(self, message: dict[str, Any]) -> None:
        if not self.desktop:
            return
        try:
            if message.get("do") in SUPPORT_VERBS:
                self.relay.later(self._answer_support(_support(message)))
                return
            if message.get("do") == "layout":
                self.relay.later(self._set_layout(self.desktop, str(message.get("layout"))))
                return
            said = self.desktop.room.hear(self.person.id, message, now())
        except (ValueError, TypeError) as error:
            self.connection.end(MALFORMED, {"do": "end", "rule": "malformed", "text": str(error)})
            return
        for guest in self.desktop.guests.values():
            if text := said.get(guest.person.id):
                guest.connection.tell({"do": "say", "text": text})
        self.relay.judge(self.desktop)

    async def _set_layout(self, desktop: Desktop, layout: str) -> None:
        """The keyboard of the desktop becomes that of who drives it."""
        if Right.KEYBOARD not in self.right or not desktop.where or not LAYOUT.fullmatch(layout):
            return
        self.layout = layout
        try:
            await self.relay.agents.set_layout(*desktop.where, layout)
        except AgentError as error:
            self.connection.tell({"do": "say", "text": str(error)})

    async def _answer_support(self, work: Callable[..., Any]) -> None:
        try:
            await self.relay.facility.ask(partial(work, owner=self.person, terms=self.relay.facility.hutch.terms(now())))
            await self.relay.look_again(self.instance_id)
        except HutchError as error:
            self.connection.tell({"do": "say", "text": str(error)})

    # --- going

    def on_session_lost(self, session: int, problem: Exception | None) -> None:
        """A desktop that worked is asked for again at once: the agent starts it anew. One that did not is left to the page."""
        if not self.desktop:
            return
        worked = asyncio.get_running_loop().time() - self._began_at > SHORT_SECONDS
        if worked and not isinstance(problem, HutchError | AgentError):
            self.desktop.where = None
            self._open()
            return
        text = str(problem) if isinstance(problem, HutchError | AgentError) else "The desktop has ended."
        log.warning("desktop-lost", instance=self.instance_id, login=self.person.login, why=text, problem=repr(problem))
        self.connection.tell({"do": "say", "text": text})
        self.finish("desktop-lost", NO_DESKTOP)

    def put_out(self, rule: str, text: str) -> None:
        log.info("desktop-put-out", rule=rule, instance=self.instance_id, login=self.person.login)
        self.finish(rule, NO_RIGHT, {"do": "end", "rule": rule, "text": text})

    def finish(self, reason: str, code: int, message: dict[str, Any] | None = None) -> None:
        self._left(reason, may_return=code != NO_RIGHT)
        self.connection.end(code, message)

    def on_closed(self) -> None:
        if self.desktop:
            desktop = self.desktop
            self._left(f"closed-{self.connection.close_code}", may_return=True)
            self.relay.judge(desktop)

    def _left(self, reason: str, *, may_return: bool) -> None:
        self._close_line(reason)
        if self.desktop:
            self.desktop.guests.pop(self.number, None)
            self.desktop.room.leave(self.number, now(), may_return=may_return)
            self.desktop = None

    # --- what is counted

    def count(self) -> None:
        """What went through since this row began; the connection counts on over its sessions."""
        if self.line:
            for name in ledger.COLUMNS:
                setattr(self.line, name, getattr(self.connection.counts, name) - self._counted[name])
            self.line.last_input_at = self._input_at

    def _close_line(self, reason: str) -> None:
        self.count()
        if self.line:
            self.line.ended_at, self.line.end_reason, self.line, self._input_at = now(), reason, None, None
            self._counted = {name: getattr(self.connection.counts, name) for name in ledger.COLUMNS}


def _redeem_and_read(session: Session, ticket: str, instance_id: str, terms: Terms) -> Known | None:
    user_id = tickets.redeem(session, ticket, instance_id, terms.at)
    known = read(session, instance_id, [user_id], terms) if user_id else None
    return known if known and known.people else None


def _support(message: dict[str, Any]) -> Callable[..., Any]:
    """What the owner does about support, but for who asks. Raises ValueError."""
    number, minutes, right = (message.get(name) for name in ("request", "minutes", "right"))
    if type(number) is not int or not 0 < number < 2**31:
        raise ValueError("which request?")
    if message["do"] != "grant":
        return partial(support.refuse if message["do"] == "refuse-support" else support.end, request_id=number)
    if type(minutes) is not int or not isinstance(right, str):
        raise ValueError("which right, for how long?")
    return partial(support.grant, request_id=number, right=right, minutes=minutes)
