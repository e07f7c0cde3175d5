"""Where browsers find relays, and what the portal's pages may connect to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hub.access import Person
from hub.configuration import Hutch
from hub.desktop import relay_of
from hub.portal import rooms
from hub.portal.guard import Guard
from hub.services import PORTAL_VARIABLE, RELAYS_VARIABLE, addresses, relay_role, relays

pytestmark = pytest.mark.any_database

ID = "a66c81f1-4483-410e-80f6-628b4ed529bc"


def request(scheme: str = "http", host: str = "hub.example:8000") -> Any:
    return SimpleNamespace(url=SimpleNamespace(scheme=scheme), headers={"Host": host})


PLACES = {
    "a domain per user": (
        "https://hub.example",
        "/",
        "http",
        f"wss://desktop-0--service.hub.example/services/desktop-0/rooms/{ID}",
    ),
    "a domain per user, without TLS": (
        "http://hub.example:8000",
        "/",
        "http",
        f"ws://desktop-0--service.hub.example:8000/services/desktop-0/rooms/{ID}",
    ),
    "one host": ("", "/", "http", f"ws://hub.example:8000/services/desktop-0/rooms/{ID}"),
    "one host, with TLS before it": ("", "/", "https", f"wss://hub.example:8000/services/desktop-0/rooms/{ID}"),
    "a path of a host": ("", "/hutch/", "http", f"ws://hub.example:8000/hutch/services/desktop-0/rooms/{ID}"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_a_room_is(monkeypatch, place):
    host, base, scheme, url = PLACES[place]
    monkeypatch.setenv(RELAYS_VARIABLE, addresses(Hutch(), host, base)[RELAYS_VARIABLE])
    assert rooms._room_url(request(scheme), ID) == url
    assert rooms.relay_origins() == (url.partition("/services")[0] if host else "")


def test_a_room_is_at_the_relay_that_has_it(monkeypatch):
    told = addresses(Hutch(desktop_relays=5), "https://hub.example")
    monkeypatch.setenv(RELAYS_VARIABLE, told[RELAYS_VARIABLE])
    assert f"/desktop-{relay_of(ID, 5)}/" in rooms._room_url(request(), ID)
    assert len(rooms.relay_origins().split()) == 5
    assert told[PORTAL_VARIABLE] == "https://portal--service.hub.example/services/portal/"


def test_without_relays_the_portal_says_so(monkeypatch):
    monkeypatch.setenv(RELAYS_VARIABLE, addresses(Hutch(desktop_relays=0))[RELAYS_VARIABLE])
    desk: Any = SimpleNamespace(person=Person("ann", "ann", "Ann"))
    assert rooms.may_come(None, desk, None).rule == "no-desktops"  # type: ignore[arg-type]


def test_pages_may_connect_to_relays_and_nowhere_else():
    def policy(connects_to: str) -> list[str]:
        told = Guard(None, connects_to=connects_to)._headers["Content-Security-Policy"]  # type: ignore[arg-type]
        return next(one for one in told.split("; ") if one.startswith("connect-src")).split()[1:]

    assert policy("") == ["'self'"]
    assert policy("wss://a.example wss://b.example") == ["'self'", "wss://a.example", "wss://b.example"]


def test_relays_are_services_with_a_port_each_and_the_least_that_they_need(tmp_path):
    hutch = Hutch(desktop_relays=2, desktop_port=9600)
    started = relays(hutch, tmp_path / "jupyterhub_config.py")
    assert [(one["name"], one["url"], one["command"][-1]) for one in started] == [
        ("desktop-0", "http://127.0.0.1:9600", "0"),
        ("desktop-1", "http://127.0.0.1:9601", "1"),
    ]
    role = relay_role(hutch)
    assert role["services"] == ["desktop-0", "desktop-1"]
    assert role["scopes"] == ["read:servers", "admin:server_state", "users:activity"]
