"""OpenStackSpawner: the policy of a launch. Each JupyterHub server is a cloud server, whose disk outlives stop and start.

It knows nothing of a facility and can be used alone by any site; its settings are in `settings`. What JupyterHub demands of a
spawner in which situation, and what goes wrong if it does not get it, is said at each method.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jupyterhub.user
from jupyterhub.spawner import Spawner
from tornado import web

from . import belongings, builders
from .agent_client import AgentError, AgentMismatch, AgentRefused, AgentUnreachable, fingerprint_from_console
from .agent_tls import notebook_certificate
from .cloud_errors import NO_ROOM, CloudError, Trouble, shortage_in
from .creation import Creation, Named, find, free_port, guard, wake
from .launch import LaunchError, LaunchLog, Stage
from .servers import (
    LOCKED,
    REPLACEABLE,
    WAKE,
    WORDS,
    Server,
    address_of,
    address_of_port,
    addresses_of,
    fault_of,
    foremost,
    is_ended,
    is_moving,
    why_held,
)
from .settings import OpenStackSettings
from .surroundings import Surroundings, cloud_key

T = TypeVar("T")

AGENT_REASONS = {AgentUnreachable: "agent-unreachable", AgentMismatch: "agent-mismatch", AgentRefused: "agent-refused"}
CONSOLE_LINES = 60
# under internal_ssl JupyterHub makes the same TLS context at each launch, from all public authorities: 30 ms of its event loop
jupyterhub.user.make_ssl_context = cache(jupyterhub.user.make_ssl_context)
NO_ROOM_HERE = (*NO_ROOM, Trouble.CLOSED)


class OpenStackSpawner(OpenStackSettings, Spawner):
    """Runs each server of JupyterHub in an OpenStack server of its own."""

    server_id = ""
    address = ""
    fingerprint = ""  # of the agent in server_id, once it was seen on the console
    is_new = False  # this instance was minted for this very launch, so that the cloud cannot know it
    launch: LaunchLog | None = None
    place = ""  # which of `places` it is in; "" is the place of the spawner's own settings
    place_is_kept = False  # by something that outlives the hub; else it may be in any of the allowed ones
    is_off = False  # the last stop() ended with the server known to be off
    ended: Server | None = None  # the server as the last poll() found it, if nothing of its user's runs there any more
    _creating: asyncio.Task[None] | None = None
    _starting = False
    _acted_at = 0.0  # monotonic; listings that began before it do not show what was done then

    @property
    def instance_id(self) -> str:
        """Opaque, and the same for every start of this server, so that a hub which forgot everything finds it again."""
        return str(uuid.uuid5(uuid.UUID(self.deployment_id), f"{self.user.name}/{self.name}"))

    @property
    def around(self) -> Surroundings:
        return Surroundings.of(self, self.place)

    # --- state. JupyterHub saves it only after start() and at a stop, so it is a cache; the truth is the metadata

    def get_state(self) -> dict[str, Any]:
        state = super().get_state()
        known = {"server_id": self.server_id, "address": self.address, "fingerprint": self.fingerprint}
        return state | known | ({"place": self.place} if self.place else {})

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.server_id = state.get("server_id", "")
        self.address = state.get("address", "")
        self.fingerprint = state.get("fingerprint", "")
        self.place = state.get("place", "")

    # --- start

    async def start(self) -> str:
        """Returns the notebook's address once it answers.

        JupyterHub cancels this at `start_timeout` and when the user stops a launch; it calls stop() afterwards only if poll() says
        None. So nothing here may be lost between "the cloud took it" and the next line, cancelled or not.
        """
        self.launch = self.launch if self.launch and not self.launch.closed else LaunchLog()
        self._starting, self._creating = True, None
        try:
            url = await self._launch(self.launch)
        except (LaunchError, CloudError, AgentError, TimeoutError) as error:
            if isinstance(error, AgentMismatch):
                self.fingerprint = ""  # an agent may have lost its key: the next launch looks at the console again
            failure = self._as_launch_error(error)
            failure.detail = await self._with_console(failure)
            self.launch.fail(str(failure.message))
            raise failure from error
        except asyncio.CancelledError:
            self.launch.fail("The launch was cancelled.")
            raise
        except BaseException:
            self.launch.fail("Hutch met a problem that it did not expect.")
            raise
        finally:
            self._starting = False
        self.launch.done(Stage.READY, seconds=self.launch.elapsed())
        self.launch.close()
        return url

    async def _launch(self, launch: LaunchLog) -> str:
        launch.start(Stage.CREATE)
        servers, ports = await self._find()
        if servers:
            async with self.around.reflector.watching():
                await self._take(foremost(servers), ports)
                await self._boot(launch)
        else:
            await self._launch_somewhere(launch, free_port(ports))
        await self._identify(launch)
        await self._hand_over(launch)
        return self._url()

    async def _find(self) -> tuple[list[Server], list[dict[str, Any]]]:
        """What the cloud has of this instance: after a hub that died half-way, or at a resume. Its place is known from then on."""
        if self.is_new and not self.around.cloud.is_down:
            return [], []
        found = {
            place: await find(Surroundings.of(self, place), self.deployment_id, self.instance_id)
            for place in self._where_it_may_be()
        }
        place = max(found, key=lambda place: bool(found[place][0]))
        servers, ports = found[place]
        if len(servers) > 1:
            self.log.error("%s has %d servers: %s", self._log_name, len(servers), [server["id"] for server in servers])
        if not servers and not self.is_new:
            self.check_may_create()
        if place != self.place:
            await self.choose_place(place)
        return servers, ports

    def _where_it_may_be(self) -> list[str]:
        return [self.place] if self.place_is_kept else list(dict.fromkeys([self.place, *self.allowed_places]))

    async def choose_place(self, place: str) -> None:
        """Called before anything is made there."""
        self.place = place

    async def _launch_somewhere(self, launch: LaunchLog, port: dict[str, Any] | None) -> None:
        """In the first of the allowed places that has room. port: a free one in the present place."""
        places = self.allowed_places or [""]
        for place in places:
            if place != self.place:
                cloud_key(self, place)  # before the present place is left, that there is such a one
                await self._remove()
                await self.choose_place(place)
                port = None
            try:
                async with self.around.reflector.watching():
                    await self._create(port)
                    await self._boot(launch)
                return
            except (CloudError, LaunchError) as error:
                if self._as_launch_error(error).reason not in NO_ROOM_HERE or place == places[-1]:
                    raise
                self.log.warning("%s: no room in place %r: %s", self._log_name, place, error)
                launch.start(Stage.CREATE, "There is no room in one place, trying the next")

    async def _boot(self, launch: LaunchLog) -> None:
        launch.done(Stage.CREATE)
        launch.start(Stage.BOOT)
        await self._until_agent_listens()
        launch.done(Stage.BOOT)

    def guards(self) -> list[str]:
        """The security groups of this launch, by name or id."""
        return self.at(self.place, "security_groups")

    @property
    def whom_to_ask(self) -> str:
        """Ends a sentence about what its reader cannot help."""
        return ""

    def check_may_create(self) -> None:
        """Called when the cloud is certain that it has no server of an instance that is not new; may raise LaunchError."""

    async def _take(self, server: Server, ports: list[dict[str, Any]]) -> None:
        # one that another try has left, or that was taken from the server, may be beside its own
        own = [address_of_port(port) for port in ports if port["device_id"] == server["id"]]
        self._remember(server["id"], next(filter(None, own), "") or address_of(server))
        server = await self._settled(server)
        await guard(self.around.cloud, ports, self.guards())
        status, why = server["status"], why_held(server)
        # a server that failed and whose disk holds nothing is made anew; any other is left for people to look at
        if why and (status not in REPLACEABLE or self.unused_since() is None):
            raise LaunchError(why + self.whom_to_ask, reason="server-held", detail=fault_of(server))
        if why or await self._is_stillborn(server):
            await self._remove()
            await self._create(None)
        elif status in WAKE:
            self.log.info("%s: waking server %s from %s", self._log_name, server["id"], status)
            await self._persist(wake(self.around.cloud, server["id"], WAKE[status], LOCKED + self.whom_to_ask))
            # a listing that began before the answer may still say that it is off
            self._acted_at = time.monotonic()
        else:
            self.log.info("%s: adopting server %s (%s)", self._log_name, server["id"], status)

    async def _settled(self, server: Server) -> Server:
        """Waits until the cloud has done with what it is doing to the server (powering off, shelving)."""
        async with asyncio.timeout(self.stop_timeout_seconds):
            while is_moving(server):
                await self.around.reflector.changed()
                server = self.around.reflector.servers.get(server["id"], server)
        return server

    async def _is_stillborn(self, server: Server) -> bool:
        """Up for longer than a boot may take, never used, and nobody listens: it will not come any more."""
        since = self.unused_since()
        if server["status"] != "ACTIVE" or since is None:
            return False
        # the cloud's clock may be behind ours
        age = datetime.now(UTC) - max(since, datetime.fromisoformat(server["created"]))
        if age.total_seconds() < self.boot_timeout_seconds:
            return False
        try:
            soon = asyncio.get_running_loop().time() + 2
            await self.around.agents.wait_listening(address_of(server), self.agent_port, soon)
        except AgentUnreachable:
            return True
        return False

    def unused_since(self) -> datetime | None:
        """When the instance was first asked for, if what the cloud has of it holds nothing of the user's, as it never came up."""
        return None

    async def _create(self, port: dict[str, Any] | None) -> None:
        """port: a free one that an earlier try has left."""
        creation = Creation(self, self.place, self.around, self.instance_id)
        named = await creation.look_up(self.guards())
        await guard(self.around.cloud, [port] if port else [], self.guards())
        # cancelled or not, what the cloud takes is remembered: stop() waits for this task and then knows the server
        self._creating = asyncio.create_task(self._make(creation, named, port))
        await asyncio.shield(self._creating)

    async def _make(self, creation: Creation, named: Named, port: dict[str, Any] | None) -> None:
        self._remember(*await creation.make(named, port))
        self.log.info("%s: created server %s at %s", self._log_name, self.server_id, self.address)

    def _remember(self, server_id: str, address: str) -> None:
        if server_id != self.server_id:
            self.fingerprint = ""
        self.server_id, self.address = server_id, address

    async def _until_agent_listens(self) -> None:
        """Waits for the agent's port, and at the same time for the cloud to say that there is no use in waiting."""
        deadline = asyncio.get_running_loop().time() + self.boot_timeout_seconds
        listening = asyncio.create_task(self._until_listening(deadline))
        trouble = asyncio.create_task(self._until_trouble())
        try:
            await asyncio.wait({listening, trouble}, return_when=asyncio.FIRST_COMPLETED)
            if trouble.done():
                await trouble
            await listening
        finally:
            for task in (listening, trouble):
                task.cancel()

    async def _until_listening(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while not self.address:  # in a routed network, where it depends on the host
                    await self.around.reflector.changed()
                    self.address = address_of(self.around.reflector.servers.get(self.server_id, {}))
        except TimeoutError as error:
            raise LaunchError("The cloud gave this server no network address.", reason="no-address") from error
        await self.around.agents.wait_listening(self.address, self.agent_port, deadline)

    async def _until_trouble(self) -> None:
        while True:
            server = self.around.reflector.servers.get(self.server_id)
            if server and is_ended(server) and (self.around.reflector.listed_at or 0) > self._acted_at:
                await self._booted_into_trouble(server)
            await self.around.reflector.changed()

    async def _booted_into_trouble(self, server: Server) -> None:
        fault = fault_of(await self._with_reason(server))
        if self._creating is not None and server["status"] == "ERROR":
            # made a moment ago by this very launch: there is nothing on it, and it would hold quota
            await self._remove()
        if shortage := shortage_in(fault):
            raise LaunchError(NO_ROOM[shortage], reason=shortage, detail=fault)
        if server["status"] == "ERROR":
            raise LaunchError("The cloud could not build this server.", reason="server-error", detail=fault)
        what = why_held(server) or f"The server was found {WORDS[server['status']]} while it booted."
        raise LaunchError(what, reason="server-ended", detail=server["status"])

    async def _with_reason(self, server: Server) -> Server:
        """Nova shows that a server has failed a moment before it shows why."""
        for _ in range(4):
            if server["status"] != "ERROR" or server.get("fault"):
                break
            await asyncio.sleep(0.5)
            with suppress(CloudError):
                server = await self.around.cloud.server(server["id"]) or server
        return server

    async def _identify(self, launch: LaunchLog) -> None:
        """Pins the agent's fingerprint, read once from the console through the cloud, to this server."""
        if self.fingerprint:
            return
        launch.start(Stage.IDENTIFY)
        pause = 0.5
        for _ in range(8):
            # the agent prints it before it listens, so only a slow console log lacks it
            if fingerprint := fingerprint_from_console(await self.around.cloud.console(self.server_id)):
                self.fingerprint = fingerprint
                launch.done(Stage.IDENTIFY)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5)
        raise LaunchError("The server did not show who it is.", reason="no-fingerprint", detail="no fingerprint on the console")

    async def _hand_over(self, launch: LaunchLog) -> None:
        """Gives the agent this launch's identity, and passes on the stages that it tells."""
        self.ip = self.address
        tls = await asyncio.to_thread(self._certificate) if self.internal_ssl else None
        session = builders.agent_session(uuid.uuid4().hex, self.account(), self.get_env(), self.get_args(), self.port, tls)
        async for event in self.around.agents.push(self.address, self.fingerprint, session):
            stage = Stage(event["stage"])
            if event["state"] == "started":
                launch.start(stage)
            elif stage is not Stage.READY:
                launch.done(stage, seconds=event.get("seconds"))

    async def create_certs(self) -> dict[str, str]:
        """None: JupyterHub asks for them before the server has an address. They are made in `_hand_over`."""
        return {}

    def _certificate(self) -> dict[str, str]:
        trusted = Path(self.internal_trust_bundles["notebooks-ca"])
        hosts = [name.removeprefix("DNS:") for name in self.ssl_alt_names if name.startswith("DNS:")]
        local = ["localhost"] if self.ssl_alt_names_include_local else []
        return notebook_certificate(self.address, [*hosts, *local], Path(self.internal_certs_location), trusted)

    def _url(self) -> str:
        return f"{'https' if self.internal_ssl else 'http'}://{self.address}:{self.port}"

    def account(self) -> str:
        """The Unix account in the server: the user's name, in what Unix allows."""
        name = re.sub(r"[^a-z0-9_-]", "-", self.user.name.lower())
        return (name if name[0].isalpha() else f"u{name}")[:32]

    def _as_launch_error(self, error: LaunchError | CloudError | AgentError | TimeoutError) -> LaunchError:
        stage = (self.launch.current or Stage.CREATE) if self.launch else Stage.CREATE
        if isinstance(error, TimeoutError):  # of a server that is still stopping, or will not go
            sentence = "The cloud is still busy with this instance. If it still is in a minute, it is stuck there."
            detail = "a task of the cloud did not end in time"
            return LaunchError(sentence + self.whom_to_ask, reason=Trouble.UNANSWERED, stage=stage, detail=detail)
        if isinstance(error, LaunchError):
            error.stage = error.stage or stage
            return error
        reason = error.trouble if isinstance(error, CloudError) else AGENT_REASONS.get(type(error), "agent-failed")
        detail = getattr(error, "detail", "") or repr(error.__cause__ or error)
        return LaunchError(str(error), reason=reason, stage=stage, detail=detail)

    async def _with_console(self, failure: LaunchError) -> str:
        """The detail of a failure, with the end of the console log when there is a server to have one."""
        if (
            failure.stage not in (Stage.BOOT, Stage.IDENTIFY, Stage.ACCOUNT, Stage.ENVIRONMENT, Stage.NOTEBOOK)
            or not self.server_id
        ):
            return failure.detail
        try:
            console = await self.around.cloud.console(self.server_id, CONSOLE_LINES)
        except CloudError as error:
            console = f"(no console log: {error})"
        return f"{failure.detail}\n--- console ---\n{console}".strip()

    async def _persist(self, call: Awaitable[T]) -> T:
        """Lets a call to the cloud run to its end, whoever cancels us meanwhile."""
        return await asyncio.shield(asyncio.ensure_future(call))

    # --- progress

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Tells the stages from the first on. Each open page calls this anew, and an exception here would break the page."""
        if self.launch is not None:
            async for event in self.launch.follow():
                yield event

    # --- poll

    async def poll(self) -> int | None:
        """None while the server runs, starts, or may do so; an exit status only when the cloud is certain.

        JupyterHub takes a status as "it is gone": it forgets the server and never calls stop(). An exception counts the same
        at its start. So this never raises, and an unknown is not an end.
        """
        self.ended = None
        if self._starting or (self._creating and not self._creating.done()):
            return None
        if not self.server_id:
            return 0
        try:
            reflector = self.around.reflector
        except CloudError:  # in a place that the site no longer has
            return None
        if not await reflector.some(within_seconds=5):
            return None
        server = reflector.servers.get(self.server_id)
        if server is None or is_ended(server):
            return await self._poll_again()
        return 0 if self.ready and await self._lost_its_notebook(server) else None

    async def _poll_again(self) -> int | None:
        """The listing may be old, or lack servers whose cell does not answer: an end is one only if Nova says so now."""
        try:
            server = await self.around.cloud.server(self.server_id)
        except CloudError:
            return None
        if server is not None and not is_ended(server):
            return None
        self.ended = server or {"status": "DELETED"}
        return int(self.ended["status"] == "ERROR")

    async def _lost_its_notebook(self, server: Server) -> bool:
        """Certain, though the server runs: it was booted anew, or it is no longer at the address that the hub serves."""
        agents, addresses = self.around.agents, addresses_of(server)
        if not self.fingerprint or "addresses" not in server:  # as of one whose cell does not answer
            return False
        if self.address in addresses:
            lost = await agents.lacks_notebook(self.address, self.fingerprint, self.port)
        else:
            lost = not await agents.answers(self.address, self.fingerprint)
        if lost:
            self.log.warning("%s: server %s has no notebook at %s any more", self._log_name, self.server_id, self.address)
        return lost

    async def get_url(self) -> str:
        """Asked at a hub's start for servers that run, as an address may have changed meanwhile."""
        with suppress(CloudError):
            server = self.around.reflector.servers.get(self.server_id)
            self.address = (address_of(server) if server else "") or self.address
        return self._url()

    # --- stop

    def stop_is_meant(self) -> bool:
        """Whether somebody asked for this stop.

        JupyterHub also stops servers by itself: after a failed launch, and at its own start those that do not answer in time,
        however healthy. Only a stop that came through its handlers leaves a future on the spawner.
        """
        return getattr(self, "_stop_future", None) is not None

    async def stop(self, now: bool = False) -> None:
        """Switches it off if that is meant; its disk stays. Never raises: JupyterHub would answer 204 and forget it."""
        self.is_off = False
        await self._creation_settled()
        if not self.stop_is_meant():
            self.log.warning("%s: nobody asked to stop server %s, it is left as it is", self._log_name, self.server_id)
            return
        try:
            async with asyncio.timeout(self.stop_timeout_seconds), self.around.reflector.watching():
                await self._power_off()
            self.is_off = True
        except (CloudError, TimeoutError) as error:
            self.log.error("%s: server %s is not known to be off yet: %r", self._log_name, self.server_id, error)

    async def _creation_settled(self) -> None:
        if self._creating is not None:
            await asyncio.wait({self._creating}, timeout=self.stop_timeout_seconds)

    async def _power_off(self) -> None:
        """Asks again and again, with growing pauses, until the cloud says that the server is off."""
        pause = 0.5
        while self.server_id:
            try:
                server = await self.around.cloud.server(self.server_id)
                if server is None or is_ended(server):
                    return
                if not is_moving(server):
                    await self.around.cloud.act(self.server_id, "shelve" if self.stop_by == "shelve" else "os-stop")
            except CloudError as error:
                self.log.warning("%s: stopping server %s: %s %s", self._log_name, self.server_id, error, error.detail)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10)

    # --- renamed, removed

    async def rename(self, old_name: str, new_name: str) -> None:
        """The cloud's server is found by an id made of this name: renamed it would be lost, and found by the name's next bearer."""
        raise web.HTTPError(409, f"{old_name} keeps its name, by which its disk is found; its display name can be changed.")

    async def delete_forever(self) -> None:
        """The user or the named server was deleted. JupyterHub swallows what is raised here and drops its row."""
        await self._creation_settled()
        await self._remove()

    async def _remove(self) -> None:
        self.log.info("%s: deleting what the cloud has of instance %s", self._log_name, self.instance_id)
        for place in self._where_it_may_be():
            cloud = Surroundings.of(self, place).cloud
            await self._persist(belongings.remove(cloud, self.deployment_id, self.instance_id))
        self.server_id = self.address = self.fingerprint = ""
