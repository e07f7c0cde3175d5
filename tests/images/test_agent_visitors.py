"""Somebody whose access has ended is out of the notebook at once, and nobody else is."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import pytest


@pytest.fixture
async def owner(shared_guest):
    async with shared_guest.browser() as client:
        yield client


@pytest.fixture
def token(small_hub) -> str:
    """Of bob, a guest of ann's notebook as long as the hub says so; another one each time, as refusals are remembered too."""
    token = os.urandom(8).hex()
    small_hub.tokens.add(token)
    small_hub.guests[token] = "bob"
    return token


@pytest.fixture
async def bob(shared_guest, token):
    async with shared_guest.browser(token) as client:
        yield client


@pytest.fixture
async def kernel(owner, start_kernel):
    kernel = await start_kernel(owner)
    yield kernel
    await kernel.shut_down()


async def until_closed(connection: aiohttp.ClientWebSocketResponse) -> int | None:
    """The code that the other side gives."""
    while (message := await connection.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
        pass
    return message.data


async def statuses(client: aiohttp.ClientSession) -> int:
    async with client.get("api/kernels") as response:
        return response.status


async def send_away(guest, name: str) -> None:
    await guest.client.send_away(guest.address, guest.fingerprint, name)


async def test_what_a_person_has_open_closes_and_they_do_not_get_in_again(shared_guest, small_hub, bob, token, kernel):
    seen_by_bob = type(kernel)(bob, kernel.identifier)
    events = bob.ws_connect("api/events/subscribe")
    async with kernel.channels() as owners, seen_by_bob.channels() as channels, events as subscribed:
        assert await seen_by_bob.run("print(1)") == "1"
        small_hub.tokens.discard(token)
        # the notebook believes what it heard before
        assert await statuses(bob) == 200
        await send_away(shared_guest, "bob")
        async with asyncio.timeout(10):
            assert await until_closed(channels) == aiohttp.WSCloseCode.POLICY_VIOLATION
            assert await until_closed(subscribed) == aiohttp.WSCloseCode.POLICY_VIOLATION
        assert await statuses(bob) == 403
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await bob.ws_connect(f"api/kernels/{kernel.identifier}/channels?session_id=s")
        assert await kernel.run("print(2)") == "2"
        assert not owners.closed


async def test_a_download_that_is_under_way_ends_too(shared_guest, bob, kernel):
    await kernel.run("open('large.bin', 'wb').truncate(400_000_000)")
    async with bob.get("files/large.bin") as response:
        assert response.status == 200
        await response.content.readexactly(1000)
        await send_away(shared_guest, "bob")
        with pytest.raises(aiohttp.ClientPayloadError):
            async with asyncio.timeout(30):
                while await response.content.read(1_000_000):
                    pass


async def test_who_is_still_allowed_comes_in_again_and_a_name_can_be_anything(shared_guest, bob):
    assert await statuses(bob) == 200
    for name in ("bob", "nobody/here?", "Çağla #1"):
        await send_away(shared_guest, name)
    assert await statuses(bob) == 200


async def test_without_a_notebook_there_is_nobody_to_send_away(guest):
    await guest.client.send_away(guest.address, guest.fingerprint, "bob")
    assert (await guest.status())["notebook"] == "none"
