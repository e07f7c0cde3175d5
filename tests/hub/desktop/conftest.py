"""A facility whose instances have real desktops, and people who look at them from pages without a screen."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from facility_hub import FacilityHub, Visitor, facility
from running_hub import until
from sqlalchemy import select
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hub.database.tables import DesktopSession, Instance, InstanceMember
from hub.instances import record_event
from hub.services import portal_address

ANSWER_SECONDS = 30
# relays read it too
CONFIG = """
import hub.desktop.service
hub.desktop.service.ACTIVITY_SECONDS = 0
hub.desktop.service.WRITE_SECONDS = 0
c.Hutch.desktop_relays = 2
"""
KEY_A = bytes((4, 1, 0, 0, 0, 0, 0, 0x61)) + bytes((4, 0, 0, 0, 0, 0, 0, 0x61))


class Page:
    """A desktop's page: takes the room's messages, begins the RFB sessions that it is told of, and draws nothing."""

    def __init__(self, url: str, protocols: list[str], origin: str | None) -> None:
        _, port = url.split("/")[2].split(":")
        # glibc resolves no *.localhost
        there = socket.create_connection(("127.0.0.1", int(port)))
        self.socket: ClientConnection = connect(url, sock=there, subprotocols=protocols, origin=origin, max_size=None)
        self.told: list[dict[str, Any]] = []
        self.pixels = b""
        self.code: int | None = None

    def close(self) -> None:
        self.socket.close()

    def say(self, do: str, **more: Any) -> None:
        self.socket.send(json.dumps({"do": do, **more}))

    def type(self, keys: bytes = KEY_A) -> None:
        self.socket.send(keys)

    def until(self, wanted: Callable[[Page], Any], what: str, seconds: float = ANSWER_SECONDS) -> Any:
        """Takes what comes until that is so."""
        while not (answer := wanted(self)):
            try:
                self._take(self.socket.recv(timeout=seconds))
            except TimeoutError:
                raise AssertionError(f"waited in vain until {what}; told: {self.told[-3:]}") from None
            except ConnectionClosed as end:
                self.code = end.rcvd.code if end.rcvd else 1006
                assert wanted(self), f"the end ({end}) came before {what}; told: {self.told[-3:]}"
        return answer

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.pixels += message
            return
        self.told.append(told := json.loads(message))
        if told["do"] == "rfb":
            self.pixels = b""
            self.say("rfb", session=told["session"])
            self.socket.send(b"RFB 003.008\n\x01\x01")

    @property
    def room(self) -> dict[str, Any]:
        return next((one for one in reversed(self.told) if one["do"] == "room"), {})

    @property
    def end(self) -> dict[str, Any]:
        return next((one for one in self.told if one["do"] == "end"), {})

    @property
    def drives(self) -> bool:
        return next((one["control"] for one in reversed(self.told) if one["do"] == "rfb"), False)

    def shows_desktop(self) -> bool:
        """The desktop's own greeting has come, with its name."""
        return b"Hutch" in self.pixels

    def until_shown(self, *, drives: bool) -> Page:
        self.until(lambda page: page.drives == drives and page.shows_desktop(), f"it shows the desktop, drives={drives}")
        return self

    def until_out(self, seconds: float = ANSWER_SECONDS) -> tuple[int | None, str]:
        """How it ended: the code, and the rule that it was told."""
        self.until(lambda page: page.code is not None, "it is out", seconds)
        return self.code, self.end.get("rule", "")

    def until_room(self, wanted: Callable[[dict[str, Any]], Any], what: str) -> None:
        self.until(lambda page: page.room and wanted(page.room), what)


class Desktops:
    """An instance with a desktop in a facility of its own, and what tests do about it."""

    def __init__(self, hub: FacilityHub, browse: Callable[[int, str], Any], stack: ExitStack) -> None:
        self.hub, self._browse, self._stack = hub, browse, stack
        self._browsers: dict[str, Any] = {}

    def browser(self, login: str) -> Any:
        if login not in self._browsers:
            browser = self._browsers[login] = self._browse(self.hub.port, login)
            until(lambda: browser.get("").status_code == 200, f"{login} is signed in")
        return self._browsers[login]

    @property
    def origin(self) -> str:
        return portal_address(f"http://localhost:{self.hub.port}").removesuffix("/services/portal/")

    def asked(self, instance: Instance, who: Visitor) -> Any:
        """The portal's answer to who wants a ticket."""
        return self.browser(who.login).submit(f"instances/{instance.id}/desktop/ticket")

    def ticket(self, instance: Instance, who: Visitor) -> tuple[str, str]:
        answer = self.asked(instance, who)
        assert answer.status_code == 200, answer.text
        assert answer.json()["protocol"] == "hutch.rfb"
        return answer.json()["url"], answer.json()["ticket"]

    def page(self, url: str, ticket: str, origin: str | None = "") -> Page:
        page = Page(url, ["hutch.rfb", f"hutch.ticket.{ticket}"], self.origin if origin == "" else origin)
        self._stack.callback(page.close)
        return page

    def opened(self, instance: Instance, who: Visitor) -> Page:
        return self.page(*self.ticket(instance, who))

    # --- what others do about an instance

    def member(self, instance: Instance, role: str) -> Visitor:
        """Somebody on the owner's experiment, with a part in the instance."""
        visitor = self.hub.visitor(experiment=False)
        with self.hub.session() as session:
            of = session.get_one(Instance, instance.id)
            for experiment in of.experiments:
                session.add(type(experiment.members[0])(experiment_id=experiment.id, user_id=visitor.id))
            session.add(InstanceMember(instance_id=instance.id, user_id=visitor.id, role=role))
            record_event(session, instance.id, "member-added")
        return visitor

    def change(self, instance: Instance, **values: Any) -> None:
        """As the owner's settings do."""
        with self.hub.session() as session:
            for name, value in values.items():
                setattr(session.get_one(Instance, instance.id), name, value)
            record_event(session, instance.id, "policy-changed")

    def sessions(self, instance: Instance, who: Visitor) -> list[DesktopSession]:
        with self.hub.session() as session:
            query = select(DesktopSession).filter_by(instance_id=instance.id, user_id=who.id)
            return list(session.scalars(query.order_by(DesktopSession.id)))

    def until_session(self, instance: Instance, who: Visitor, wanted: Callable[[DesktopSession], Any], what: str) -> None:
        until(lambda: any(wanted(one) for one in self.sessions(instance, who)), what)

    def relays(self) -> list[int]:
        """The processes of this facility's relays, without those that look after them."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, around = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if b"hub.desktop" in command and f"HUTCH_CONFIG={self.hub.config_file}".encode() in around:
                found[int(folder.name)] = parent
        return [pid for pid, parent in found.items() if parent in found]

    def end_relays(self, how: signal.Signals) -> None:
        ended = self.relays()
        assert ended
        for pid in ended:
            os.kill(pid, how)
        until(lambda: not set(self.relays()) & set(ended), "they have ended")


@pytest.fixture(scope="module")
def desktop_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacilityHub]:
    with facility(tmp_path_factory.mktemp("desktops"), CONFIG, payload="agent") as hub:
        yield hub


@pytest.fixture
def desktops(desktop_hub: FacilityHub, browse: Callable[[int, str], Any]) -> Iterator[Desktops]:
    with ExitStack() as stack:
        yield Desktops(desktop_hub, browse, stack)


@pytest.fixture(scope="module")
def owner(desktop_hub: FacilityHub) -> Visitor:
    return desktop_hub.visitor()


@pytest.fixture(scope="module")
def shared_instance(desktop_hub: FacilityHub, owner: Visitor) -> Instance:
    return desktop_hub.launched(owner)


@pytest.fixture
def instance(shared_instance: Instance, desktops: Desktops) -> Iterator[Instance]:
    """Of the owner's, who is external, as if it had just been launched."""
    yield shared_instance
    desktops.change(shared_instance, when_owner_leaves="disconnect", members_enter_freely=False)
