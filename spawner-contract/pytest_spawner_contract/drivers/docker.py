"""For DockerSpawner: the things are containers of the daemon at DOCKER_HOST, asked through a proxy that can make trouble.

The image `spawner-contract-payload` holds BusyBox; `with-dockerd` makes it, and a daemon to run it on.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import aiohttp
import docker
from aiohttp import web

from ..driver import Driver
from ..hub import free_port

IMAGE = "spawner-contract-payload"
PREFIX = "spawner-contract"


@dataclass
class Trouble:
    """What happens to calls that match: they are held, or answered with an error in place of being done."""

    call: str
    seconds: float = 0
    times: int = 1
    holding: bool = False


class TroublingProxy(threading.Thread):
    """Passes calls on to the daemon's socket."""

    def __init__(self, socket: str) -> None:
        super().__init__(daemon=True)
        self.port, self.troubles, self._socket, self._up = free_port(), list[Trouble](), socket, threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._socket)) as self._daemon:
            runner = web.ServerRunner(web.Server(self._pass_on))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            self._up.set()
            await asyncio.Event().wait()

    def up(self) -> TroublingProxy:
        self.start()
        self._up.wait()
        return self

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        trouble = next((one for one in self.troubles if one.times and re.search(one.call, call)), None)
        if trouble:
            trouble.times -= 1
        if trouble and not trouble.seconds:
            return web.json_response({"message": "made trouble"}, status=503)
        try:
            if trouble:
                trouble.holding = True
                await asyncio.sleep(trouble.seconds)
            # what a client asked for is done, whether it still listens or not
            return await asyncio.shield(asyncio.ensure_future(self._ask(request, await request.read())))
        finally:
            if trouble:
                trouble.holding = False

    async def _ask(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with self._daemon.request(request.method, f"http://docker{request.path_qs}", data=body, headers=headers) as answer:
            content = answer.content_type
            return web.Response(body=await answer.read(), status=answer.status, content_type=content)


class DockerDriver(Driver):
    name = "DockerSpawner"
    spawner_class = "dockerspawner.DockerSpawner"

    known_failures: ClassVar = {
        "poll_during_a_start": "poll() asks for the container, which is not there yet, and says 0",
        "start_fails": "the container that failed is kept and started again as it is, whatever is asked for",
        "stop_fails": "stop() raises, and the container goes on, unknown to the hub",
        "cut_off_while_the_hub_starts": "poll() raises what the daemon answers",
        "cut_off_while_it_runs": "poll() raises what the daemon answers",
        "slow_while_the_hub_starts": "stop() ends whatever it is called for, and the hub calls it for what does not answer",
        "moved_while_the_hub_was_down": "it has no get_url(): the container is taken for dead, and stopped",
        "tokens_end": "will_resume keeps the token of a container that is kept (`remove = False`)",
        "delete_forever": "it has no delete_forever(): the container is kept (`remove = False`)",
        "user_is_deleted": "it has no delete_forever(): the container is kept (`remove = False`)",
    }

    def __init__(self) -> None:
        self._docker = docker.from_env()
        self._docker.images.get(IMAGE)
        self._proxy = TroublingProxy(os.environ["DOCKER_HOST"].removeprefix("unix://")).up()
        self.config = f"""
c.DockerSpawner.client_kwargs = {{"base_url": "tcp://127.0.0.1:{self._proxy.port}"}}
c.DockerSpawner.image = {IMAGE!r}
c.DockerSpawner.prefix = {PREFIX!r}
c.DockerSpawner.extra_host_config = {{"init": True}}
"""

    def options(self) -> dict[str, Any]:
        return {"cmd": ["sh", "-c", "exec busybox httpd -f -p 8888"]}

    def things(self) -> dict[str, bool]:
        containers = self._docker.containers.list(all=True, filters={"name": PREFIX}, ignore_removed=True)
        return {one.id: one.status == "running" for one in containers}

    def restore(self) -> None:
        self._proxy.troubles.clear()

    def remove_all(self) -> None:
        for thing in self.things():
            self._docker.containers.get(thing).remove(force=True)

    def _trouble(self, call: str, **more: Any) -> None:
        self._proxy.troubles.append(Trouble(call, **more))

    def fail_next(self) -> dict[str, Any]:
        return {"cmd": ["false"]}

    def hold_next(self, seconds: float) -> dict[str, Any]:
        self._trouble("POST .*/containers/create", seconds=seconds)
        return {}

    def held(self) -> bool:
        return any(trouble.holding for trouble in self._proxy.troubles)

    def end(self, thing: str) -> None:
        self._docker.containers.get(thing).kill()

    def vanish(self, thing: str) -> None:
        self._docker.containers.get(thing).remove(force=True)

    def hang(self, thing: str) -> None:
        """Its network is gone; paused, it would still take connections, for which the hub waits longer than http_timeout."""
        self._docker.networks.get("bridge").disconnect(thing)

    def check_can_move(self) -> None:
        """A published port is another one after `docker restart`."""

    def cut_off(self) -> None:
        self._trouble(".", times=-1)

    def fail_stops(self, times: int) -> None:
        self._trouble("POST .*/stop", times=times)

    def hold_stops(self, seconds: float) -> None:
        self._trouble("POST .*/stop", seconds=seconds)
