"""The relay's door: which requests come as far as a ticket at all. No sockets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.datastructures import Headers

from hub.desktop import relay_of
from hub.desktop.service import Guest

pytestmark = pytest.mark.any_database

ID = "a66c81f1-4483-410e-80f6-628b4ed529bc"
PREFIX, ORIGIN, HOST = "/services/desktop-0/", "https://portal.facility.example", "desktop-0.facility.example"
TICKET = ["hutch.rfb", "hutch.ticket.abc"]


def come(
    path: str, *, origin: str | None = ORIGIN, protocols: Any = TICKET, of: str = ORIGIN, relays: int = 1, **headers: str
) -> tuple:
    """The status of a refusal, and the tickets that were looked up."""
    looked_up: list[dict] = []

    async def ask(work: Any) -> None:
        looked_up.append(work.keywords)

    connection = SimpleNamespace(
        path=path, origin=origin, subprotocols=protocols, peer="", headers=Headers({"Upgrade": "websocket", "Host": HOST} | headers)
    )
    hutch = SimpleNamespace(desktop_relays=relays, terms=lambda at: None)
    relay: Any = SimpleNamespace(
        numbers=iter([1]),
        number=0,
        newest=None,
        prefix=PREFIX,
        origin=of,
        ending=False,
        facility=SimpleNamespace(hutch=hutch, ask=ask),
    )
    guest = Guest(relay, connection)  # type: ignore[arg-type]
    refusal = asyncio.run(guest.admit())
    return refusal.status if refusal else None, [(one["ticket"], one["instance_id"]) for one in looked_up], guest


def test_a_page_of_the_portal_with_a_ticket_is_looked_up():
    assert come(f"{PREFIX}rooms/{ID}")[:2] == (None, [("abc", ID)])


ROOM = f"{PREFIX}rooms/{ID}"
TRICKS = [
    *("", "/", PREFIX, f"{PREFIX}rooms/", f"/rooms/{ID}", f"rooms/{ID}", f"{ROOM}/", f"{ROOM}%2f", f"/{ROOM}", f"http://x{ROOM}"),
    *(f"{PREFIX}rooms/../rooms/{ID}", f"{PREFIX}rooms//{ID}", f"{PREFIX}rooms/{ID.upper()}", f"{PREFIX}rooms/../../x"),
    *(f"{ROOM};x", f"{ROOM}\n", f"{ROOM}\0", f"{ROOM}#x", f"{PREFIX}rooms/%61{ID[1:]}", f"{ROOM[:-1]}\u0663"),
    *(f"{PREFIX}rooms/{ID.replace('-', '')}", f"{PREFIX}rooms/{'x' * 100_000}"),
]


@pytest.mark.parametrize("path", TRICKS, ids=range(len(TRICKS)))
def test_a_room_has_one_address(path):
    assert come(path)[:2] == (404, [])


def test_a_room_is_in_one_relay():
    number = relay_of(ID, 7)
    assert come(f"{PREFIX}rooms/{ID}", relays=7)[0] == (None if number == 0 else 404)
    assert {relay_of(f"{one:08x}{ID[8:]}", 4) for one in range(64)} <= set(range(4))
    assert {relay_of(f"{ID[:-1]}{one:x}", 4) for one in range(16)} == set(range(4))


STRANGERS = (None, "", "null", "https://facility.example", f"{ORIGIN}.evil.example", f"{ORIGIN}/", f"https://{HOST}")


@pytest.mark.parametrize("origin", [*STRANGERS, "http://portal.facility.example", f"{ORIGIN}, {ORIGIN}", f"{ORIGIN}:443"])
def test_only_the_portals_pages_come_in(origin):
    assert come(f"{PREFIX}rooms/{ID}", origin=origin)[:2] == (403, [])


@pytest.mark.parametrize(
    ("origin", "status"), [(f"https://{HOST}", None), (f"http://{HOST}", None), (ORIGIN, 403), (None, 403), ("null", 403)]
)
def test_where_all_have_one_host_a_page_of_that_host_comes_in(origin, status):
    assert come(f"{PREFIX}rooms/{ID}", origin=origin, of="")[0] == status


@pytest.mark.parametrize(
    "protocols", [[], ["hutch.rfb"], ["hutch.ticket.abc"], [*TICKET, "hutch.ticket.def"], ["binary", "hutch.ticket.abc"]], ids=str
)
def test_without_one_ticket_nothing_is_looked_up(protocols):
    assert come(f"{PREFIX}rooms/{ID}", protocols=protocols)[:2] == (None, [])


def test_what_is_no_websocket_is_told_so():
    assert come(f"{PREFIX}rooms/{ID}", Upgrade="")[:2] == (426, [])


@pytest.mark.parametrize(
    ("query", "wishes"),
    [
        ("width=1920&height=1080&layout=de", (1920, 1080, "de")),
        ("layout=us(intl)", (1280, 800, "us(intl)")),
        ("layout=us%28intl%29&width=9999999&height=x", (1280, 800, "us(intl)")),
        ("width=1&height=99999", (320, 7680, "us")),
        ("layout=;reboot&width=-5&height=%D9%A3", (1280, 800, "us")),
        ("layout=" + "a" * 5000, (1280, 800, "us")),
        ("", (1280, 800, "us")),
        ("x=1&" * 200 + "layout=de", (1280, 800, "de")),
    ],
)
def test_a_page_says_its_size_and_keyboard(query, wishes):
    guest = come(f"{PREFIX}rooms/{ID}?{query}")[2]
    assert (guest.width, guest.height, guest.layout) == wishes
