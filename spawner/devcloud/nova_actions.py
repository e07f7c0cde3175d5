"""Nova's server actions, the console log, and the history of actions."""

import re
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from spawner.devcloud import nova_schemas as schemas
from spawner.devcloud.errors import ApiError, bad_request, conflict, not_found
from spawner.devcloud.lifecycle import OPERATIONS
from spawner.devcloud.nova import PREFIX, Nova
from spawner.devcloud.state import Server

# Nova takes these out of console logs, carriage returns among them.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f]")
EVENTS = {
    "os-stop": ("stop", "compute_stop_instance"),
    "os-start": ("start", "compute_start_instance"),
    "reboot": ("reboot", "compute_reboot_instance"),
    "shelve": ("shelve", "compute_shelve_instance"),
    "shelveOffload": ("shelveOffload", "compute_shelve_offload_instance"),
    "unshelve": ("unshelve", "compute_unshelve_instance"),
    **{verb: (verb, f"compute_{verb}_instance") for verb in OPERATIONS},
    "confirmResize": ("confirmResize", "compute_confirm_resize"),
    "createImage": ("createImage", "compute_snapshot_instance"),
    "lock": ("lock", "api_lock"),
    "unlock": ("unlock", "api_unlock"),
}


class NovaActions:
    def __init__(self, nova: Nova) -> None:
        self._nova = nova
        self._lifecycle = nova.lifecycle
        self._verbs: dict[str, Callable[[Server, Any], None]] = {
            "os-stop": lambda server, _: self._lifecycle.stop(server),
            "os-start": lambda server, _: self._lifecycle.start(server),
            "reboot": lambda server, how: self._lifecycle.reboot(server, how["type"].upper()),
            "shelve": lambda server, _: self._lifecycle.shelve(server),
            "shelveOffload": lambda server, _: self._lifecycle.shelve_offload(server),
            "unshelve": lambda server, _: self._lifecycle.unshelve(server),
            **{verb: partial(self._lifecycle.operate, verb) for verb in OPERATIONS},
            "resize": lambda server, how: self._resize(server, how["flavorRef"]),
            "confirmResize": lambda server, _: self._lifecycle.confirm_resize(server),
            "createImage": lambda server, _: self._lifecycle.snapshot(server),
            "lock": lambda server, how: self._lock(server, True, (how or {}).get("locked_reason")),
            "unlock": lambda server, _: self._lock(server, False, None),
        }

    def routes(self) -> list[web.RouteDef]:
        server = PREFIX + "/servers/{id}"
        return [
            web.post(server + "/action", self.act),
            web.get(server + "/os-instance-actions", self.index),
            web.get(server + "/os-instance-actions/{request_id}", self.show),
        ]

    async def act(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        if not isinstance(body, dict) or len(body) != 1:
            raise bad_request("Malformed request body")
        name = next(iter(body))
        if name != "os-getConsoleOutput" and name not in self._verbs:
            raise bad_request(f"There is no such action: {name}")
        server = self._nova.server(request)
        schemas.check(name, request["microversion"], body)
        if name == "os-getConsoleOutput":
            return self._console(server, body[name] or {})
        self._verbs[name](server, body[name])
        action, event = EVENTS[name]
        self._lifecycle.record_action(server, action, request["identity"], request["request_id"], event)
        if name == "createImage":
            image_id = self._nova.glance.snapshot(server, body[name]["name"], body[name].get("metadata") or {})
            if request["microversion"] >= (2, 45):
                return web.json_response({"image_id": image_id}, status=202)
            return web.Response(status=202, headers={"Location": f"{request.url.origin()}/image/v2/images/{image_id}"})
        if name == "rescue":
            return web.json_response({"adminPass": secrets.token_urlsafe(9)})
        return web.Response(status=204 if name == "confirmResize" else 202)

    def _resize(self, server: Server, flavor_id: str) -> None:
        flavor = self._nova.flavor(flavor_id)
        self._lifecycle.operate("resize", server)
        server.flavor = flavor

    def _lock(self, server: Server, locked: bool, reason: str | None) -> None:
        server.locked, server.locked_reason = locked, reason if locked else None
        self._nova.state.save(server)

    def _console(self, server: Server, wanted: dict[str, Any]) -> web.Response:
        if not server.placed:
            raise conflict(f"Instance {server.id} is not ready")
        text = self._lifecycle.folder(server).read_console()
        if wanted.get("length") is not None:
            text = tail(text, int(wanted["length"]))
        return web.json_response({"output": CONTROL_CHARACTERS.sub("", text)})

    # History

    def _actions(self, request: web.Request) -> list[dict[str, Any]]:
        identity, server_id = request["identity"], request.match_info["id"]
        state = self._nova.state
        # Since 2.21 the history of a deleted server can be read too.
        server = state.servers.get(server_id) or (state.tombstones.get(server_id) if request["microversion"] >= (2, 21) else None)
        if server is None or not (identity.is_admin or server.project_id == identity.project_id):
            raise not_found(f"Instance {server_id} could not be found.")
        return server.actions

    @staticmethod
    def _brief(action: dict[str, Any], version: tuple[int, int]) -> dict[str, Any]:
        hidden = {"event", "result"} if version >= (2, 58) else {"event", "result", "updated_at"}
        return {key: value for key, value in action.items() if key not in hidden}

    async def index(self, request: web.Request) -> web.Response:
        version = request["microversion"]
        actions = [self._brief(action, version) for action in reversed(self._actions(request))]
        if version >= (2, 58) and request.query.get("limit", "").isdigit():
            actions = actions[: int(request.query["limit"])]
        return web.json_response({"instanceActions": actions})

    async def show(self, request: web.Request) -> web.Response:
        wanted, version = request.match_info["request_id"], request["microversion"]
        for action in self._actions(request):
            if action["request_id"] == wanted:
                seen = self._brief(action, version)
                if version >= (2, 51) or request["identity"].is_admin:
                    event = {
                        "event": action["event"],
                        "start_time": action["start_time"],
                        "finish_time": action["updated_at"] if action["result"] else None,
                        "result": action["result"],
                    }
                    seen["events"] = [event | ({"hostId": ""} if version >= (2, 62) else {})]
                return web.json_response({"instanceAction": seen})
        raise ApiError(404, f"Action for request_id {wanted} on instance {request.match_info['id']} not found")


def tail(text: str, length: int) -> str:
    """The end of a log as Nova cuts it: a last line that is complete counts as two, and -1 loses the first."""
    return "\n".join(text.split("\n")[-length:]) if length else ""
