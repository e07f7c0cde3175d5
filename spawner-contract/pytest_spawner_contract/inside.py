"""What the suite brings into the hub: a proxy that only keeps its routes, and a window on spawners."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.proxy import Proxy
from jupyterhub.scopes import needs_scope


class NoProxy(Proxy):
    """Spawners have nothing to do with the proxy; the suite asks the hub and the servers directly."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.should_start, self.routes = False, {}

    async def add_route(self, routespec: str, target: str, data: dict[str, Any]) -> None:
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec: str) -> None:
        self.routes.pop(routespec, None)

    async def get_all_routes(self) -> dict[str, Any]:
        return self.routes


def apply_user_options(spawner: Any, options: dict[str, Any]) -> None:
    for name in ("cmd", "start_timeout"):
        if name in options:
            setattr(spawner, name, options[name])


class Window(APIHandler):
    """Calls a method of a spawner as the hub does, and says what it returned or raised."""

    @needs_scope("admin:servers")
    async def get(self, user_name: str, server_name: str, what: str) -> None:
        user = self.find_user(user_name)
        try:
            answer = {"result": await getattr(self, f"ask_{what}")(user, user.spawners[server_name])}
        except Exception as error:
            self.log.exception("%s raised", what)
            answer = {"raised": repr(error)}
        self.write(json.dumps(answer))

    async def ask_poll(self, user: Any, spawner: Any) -> Any:
        status = await spawner.poll()
        return None if status is None else str(status)

    async def ask_url(self, user: Any, spawner: Any) -> str:
        return spawner.server.url

    async def ask_progress(self, user: Any, spawner: Any) -> list[dict[str, Any]]:
        async with asyncio.timeout(20):
            return [event async for event in spawner.progress()]

    async def ask_state(self, user: Any, spawner: Any) -> dict[str, Any]:
        """What comes back of a state that went through the hub's database, and what a spawner says that has no state."""
        before = json.loads(json.dumps(spawner.get_state()))
        second = user._new_spawner(spawner.name)
        second.load_state(before)
        after, status = second.get_state(), await second.poll()
        second.load_state({})
        second.clear_state()
        return {"before": before, "after": after, "poll": status}


HANDLERS = [(r"/contract/([^/]+)/([^/]+)/([a-z]+)", Window)]
