"""OpenStackSpawner: the policy of a launch. Each JupyterHub server is a cloud server, whose disk outlives stop and start.

It knows nothing of a facility and can be used alone by any site. What JupyterHub demands of a spawner in which situation, and what
goes wrong if it does not get it, is said at each method.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from jupyterhub.spawner import Spawner
from traitlets import Float, Int, List, Unicode, default

from . import belongings, builders
from .agent_client import AgentError, AgentMismatch, AgentRefused, AgentUnreachable, fingerprint_from_console
from .cloud import CloudError, Trouble
from .launch import LaunchError, LaunchLog, Stage
from .servers import WAKE, Server, address_of, fault_of, foremost, is_ended, is_moving, task_of
from .surroundings import Surroundings

T = TypeVar("T")

AGENT_REASONS = {AgentUnreachable: "agent-unreachable", AgentMismatch: "agent-mismatch", AgentRefused: "agent-refused"}
CONSOLE_LINES = 60
CREATE_TRIES = 3
FRESH_SECONDS = 30.0


class OpenStackSpawner(Spawner):
    """Runs each server of JupyterHub in an OpenStack server of its own."""

    cloud_name = Unicode(
        "openstack",
        config=True,
        help="""
        Use the cloud of this name in clouds.yaml.

        Default: `openstack`.
        """,
    )
    clouds_yaml = Unicode(
        "",
        config=True,
        help="""
        Read the cloud's address and credentials from this file.

        Default: empty, which means the places where openstacksdk looks by itself.
        ref: https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html
        """,
    )
    image = Unicode(config=True, help="Boot this Glance image, by name or id. No default.")
    flavor = Unicode(config=True, help="Give the server this Nova flavor, by name or id. No default.")
    network = Unicode("hutch", config=True, help="Attach the server to this Neutron network, by name or id. Default: `hutch`.")
    security_groups = List(
        Unicode(),
        config=True,
        help="Guard the server's port with these security groups, by name or id. Default: none named, so the project's `default`.",
    )
    availability_zone = Unicode(config=True, help="Place the server in this availability zone. Default: empty, the cloud chooses.")
    deployment_id = Unicode(
        config=True,
        help="""
        Mark this hub's servers in the cloud with this id, a UUID. Two hubs in one project need two ids.

        Default: made once and kept in `state_dir`.
        """,
    )
    state_dir = Unicode(
        ".hutch", config=True, help="Keep the keys for talking to agents, and the deployment id, in this folder. Default: `.hutch`."
    )
    agent_port = Int(8765, config=True, help="Reach the agent in a server at this TCP port. Default: 8765.")
    boot_timeout_seconds = Float(
        300, config=True, help="Give a server this many seconds from its creation until its agent listens. Default: 300."
    )
    stop_timeout_seconds = Float(
        # Nova gives a guest 60 s to end by itself
        90,
        config=True,
        help="Wait this many seconds for a server to be powered off before letting go of it. Default: 90.",
    )
    fast_listing_seconds = Float(
        1.0, config=True, help="List the cloud's servers this often, in seconds, while something is changing. Default: 1."
    )
    slow_listing_seconds = Float(
        10.0, config=True, help="List the cloud's servers this often, in seconds, when nothing is changing. Default: 10."
    )
    # VMs need longer than JupyterHub's 60 s: the boot, then the notebook
    start_timeout = Int(600, config=True, help="Give a launch this many seconds in all. Default: 600.")
    default_url = Unicode("/lab", config=True, help="Open this page of the notebook server. Default: `/lab`.")

    @default("ip")
    def _default_ip(self) -> str:
        return "0.0.0.0"  # noqa: S104 - of the guest, where only its network's rules decide who comes in

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []  # the hub's PATH and the like mean nothing in another machine

    @default("port")
    def _default_port(self) -> int:
        return 8888

    @default("deployment_id")
    def _default_deployment_id(self) -> str:
        path = Path(self.state_dir) / "deployment-id"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(uuid.uuid4()))
        return path.read_text().strip()

    server_id = ""
    address = ""
    fingerprint = ""  # of the agent in server_id, once it was seen on the console
    is_new = False  # this instance was minted for this very launch, so that the cloud cannot know it
    launch: LaunchLog | None = None
    is_off = False  # the last stop() ended with the server known to be off
    _creating: asyncio.Task[str] | None = None
    _starting = False
    _acted_at = 0.0  # monotonic; listings that began before it do not show what was done then

    @property
    def instance_id(self) -> str:
        """Opaque, and the same for every start of this server, so that a hub which forgot everything finds it again."""
        return str(uuid.uuid5(uuid.UUID(self.deployment_id), f"{self.user.name}/{self.name}"))

    @property
    def around(self) -> Surroundings:
        return Surroundings.of(self)

    # --- state. JupyterHub saves it only after start() and at a stop, so it is a cache; the truth is the metadata

    def get_state(self) -> dict[str, Any]:
        state = super().get_state()
        return state | {"server_id": self.server_id, "address": self.address, "fingerprint": self.fingerprint}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.server_id = state.get("server_id", "")
        self.address = state.get("address", "")
        self.fingerprint = state.get("fingerprint", "")

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
        async with self.around.reflector.watching():
            launch.start(Stage.CREATE)
            await self._have_server()
            launch.done(Stage.CREATE)
            launch.start(Stage.BOOT)
            await self._until_agent_listens()
            launch.done(Stage.BOOT)
        await self._identify(launch)
        await self._hand_over(launch)
        return f"http://{self.address}:{self.port}"

    async def _have_server(self) -> None:
        """Finds the server that already carries this instance's id (a hub that died half-way, a resume), else creates one."""
        ports: list[dict[str, Any]] = []
        if not self.is_new:
            if not await self.around.reflector.fresh(FRESH_SECONDS):
                sentence, why = "The cloud does not answer. Nothing was changed.", self.around.reflector.last_error
                raise LaunchError(sentence, reason=Trouble.UNANSWERED, detail=why)
            listed = self.around.reflector.of_instance(self.instance_id)
            servers, ports = await belongings.find(self.around.cloud, self.deployment_id, self.instance_id, listed)
            if servers:
                await self._take(self._foremost(servers), ports)
                return
            self.check_may_create()
        await self._create(ports)

    def guards(self) -> list[str]:
        """The security groups of this launch, by name or id."""
        return self.security_groups

    def check_may_create(self) -> None:
        """Called when the cloud is certain that it has no server of an instance that is not new; may raise LaunchError."""

    def _foremost(self, servers: list[Server]) -> Server:
        if len(servers) > 1:
            self.log.error("%s has %d servers: %s", self._log_name, len(servers), [server["id"] for server in servers])
        return foremost(servers)

    async def _take(self, server: Server, ports: list[dict[str, Any]]) -> None:
        addresses = [port["fixed_ips"][0]["ip_address"] for port in ports if port["fixed_ips"]]
        self._remember(server["id"], next(iter(addresses), "") or address_of(server))
        server = await self._settled(server)
        await self._guard(ports)
        status = server["status"]
        if status == "ERROR" or await self._is_stillborn(server):
            await self._replace(server)
        elif status in WAKE:
            self.log.info("%s: waking server %s from %s", self._log_name, server["id"], status)
            await self._persist(self.around.cloud.act(server["id"], WAKE[status]))
            # a listing that began before the answer may still say that it is off
            self._acted_at = time.monotonic()
        else:
            self.log.info("%s: adopting server %s (%s)", self._log_name, server["id"], status)

    async def _guard(self, ports: list[dict[str, Any]]) -> None:
        """The port of an earlier launch gets the groups of this one."""
        groups = await asyncio.gather(*(self.around.cloud.security_group_id(name) for name in self.guards()))
        for port in ports if groups else ():
            if set(groups) != set(port["security_groups"]):
                await self.around.cloud.set_port_groups(port["id"], groups)

    async def _settled(self, server: Server) -> Server:
        """Waits until the cloud has done with what it is doing to the server (powering off, shelving)."""
        async with asyncio.timeout(self.stop_timeout_seconds):
            while is_moving(server):
                await self.around.reflector.changed()
                server = self.around.reflector.servers.get(server["id"], server)
        return server

    async def _is_stillborn(self, server: Server) -> bool:
        """Up for longer than a boot may take, never used, and nobody listens: it will not come any more."""
        age = datetime.now(UTC) - datetime.fromisoformat(server["created"])
        if server["status"] != "ACTIVE" or not self.disposable() or age.total_seconds() < self.boot_timeout_seconds:
            return False
        try:
            soon = asyncio.get_running_loop().time() + 2
            await self.around.agents.wait_listening(address_of(server), self.agent_port, soon)
        except AgentUnreachable:
            return True
        return False

    async def _replace(self, server: Server) -> None:
        """A server that failed and whose disk holds nothing is made anew; any other is left for people to look at."""
        if not self.disposable():
            raise LaunchError(
                "The cloud reports an error with this instance. Its disk is kept.", reason="server-error", detail=fault_of(server)
            )
        await self._remove()
        await self._create([])

    def disposable(self) -> bool:
        """Whether what the cloud has of this instance holds nothing of the user's, as it never came up."""
        return False

    async def _create(self, ports: list[dict[str, Any]]) -> None:
        """ports: what an earlier try has left; a free one is used."""
        cloud = self.around.cloud
        image_id, flavor_id, network_id, *groups = await asyncio.gather(
            cloud.image_id(self.image),
            cloud.flavor_id(self.flavor),
            cloud.network_id(self.network),
            *(cloud.security_group_id(name) for name in self.guards()),
        )
        # cancelled or not, what the cloud takes is remembered: stop() waits for this task and then knows the server
        port = next((port for port in ports if not port["device_id"]), None)
        await self._guard([port] if port else [])
        self._creating = asyncio.create_task(self._create_port_and_server(image_id, flavor_id, network_id, groups, port))
        await asyncio.shield(self._creating)

    async def _create_port_and_server(
        self, image_id: str, flavor_id: str, network_id: str, groups: list[str], port: dict[str, Any] | None
    ) -> str:
        cloud = self.around.cloud
        port = port or await cloud.create_port(builders.port_request(network_id, self.instance_id, self.deployment_id, groups))
        body = builders.server_request(
            instance_id=self.instance_id,
            deployment_id=self.deployment_id,
            image_id=image_id,
            flavor_id=flavor_id,
            port_id=port["id"],
            user_data=builders.user_data(self.around.identity.hub_ca_pem(), self.agent_port),
            availability_zone=self.availability_zone,
        )
        try:
            server_id = await self._create_server(body)
        except CloudError as error:
            if error.trouble is not Trouble.UNANSWERED:
                await cloud.delete_port(port["id"])
            raise
        self._remember(server_id, port["fixed_ips"][0]["ip_address"])
        self.log.info("%s: created server %s at %s", self._log_name, server_id, self.address)
        return server_id

    async def _create_server(self, body: dict[str, Any]) -> str:
        """A create that was not answered may have been done: it is looked up before it is repeated."""
        for attempt in range(1, CREATE_TRIES + 1):
            try:
                return await self.around.cloud.create_server(body)
            except CloudError as error:
                # a port in use is what Nova says when an unanswered create has taken it
                if error.trouble not in (Trouble.UNANSWERED, Trouble.CONFLICT):
                    raise
                self.log.warning("%s: create %d of %d: %s %s", self._log_name, attempt, CREATE_TRIES, error, error.detail)
                if not await self.around.reflector.fresh(FRESH_SECONDS):
                    raise
                if servers := self.around.reflector.of_instance(self.instance_id):
                    return self._foremost(servers)["id"]
                if attempt == CREATE_TRIES:
                    raise
                await asyncio.sleep(0.5 * attempt)
        raise AssertionError("unreachable")

    def _remember(self, server_id: str, address: str) -> None:
        if server_id != self.server_id:
            self.fingerprint = ""
        self.server_id, self.address = server_id, address

    async def _until_agent_listens(self) -> None:
        """Waits for the agent's port, and at the same time for the cloud to say that there is no use in waiting."""
        deadline = asyncio.get_running_loop().time() + self.boot_timeout_seconds
        listening = asyncio.create_task(self.around.agents.wait_listening(self.address, self.agent_port, deadline))
        trouble = asyncio.create_task(self._until_trouble())
        try:
            await asyncio.wait({listening, trouble}, return_when=asyncio.FIRST_COMPLETED)
            if trouble.done():
                await trouble
            await listening
        finally:
            for task in (listening, trouble):
                task.cancel()

    async def _until_trouble(self) -> None:
        while True:
            server = self.around.reflector.servers.get(self.server_id)
            if server and is_ended(server) and (self.around.reflector.listed_at or 0) > self._acted_at:
                await self._booted_into_trouble(server)
            await self.around.reflector.changed()

    async def _booted_into_trouble(self, server: Server) -> None:
        fault = fault_of(server)
        if self._creating is not None and server["status"] == "ERROR":
            # made a moment ago by this very launch: there is nothing on it, and it would hold quota
            await self._remove()
        if "no valid host" in fault.lower():
            raise LaunchError("There is no room in the cloud for this plan just now.", reason=Trouble.CAPACITY, detail=fault)
        if server["status"] == "ERROR":
            raise LaunchError("The cloud could not build this server.", reason="server-error", detail=fault)
        raise LaunchError("The server switched itself off while it booted.", reason="server-ended", detail=server["status"])

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
        session = builders.agent_session(uuid.uuid4().hex, self.account(), self.get_env(), self.get_args(), self.port)
        async for event in self.around.agents.push(self.address, self.fingerprint, session):
            stage = Stage(event["stage"])
            if event["state"] == "started":
                launch.start(stage)
            elif stage is not Stage.READY:
                launch.done(stage, seconds=event.get("seconds"))

    def account(self) -> str:
        """The Unix account in the server: the user's name, in what Unix allows."""
        name = re.sub(r"[^a-z0-9_-]", "-", self.user.name.lower())
        return (name if name[0].isalpha() else f"u{name}")[:32]

    def _as_launch_error(self, error: LaunchError | CloudError | AgentError | TimeoutError) -> LaunchError:
        stage = (self.launch.current or Stage.CREATE) if self.launch else Stage.CREATE
        if isinstance(error, TimeoutError):  # of a server that is still stopping, or will not go
            sentence = "The cloud is still busy with this instance. Please try again in a minute."
            return LaunchError(sentence, reason=Trouble.UNANSWERED, stage=stage, detail="a task of the cloud did not end in time")
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
        if self._starting or (self._creating and not self._creating.done()):
            return None
        if not self.server_id:
            return 0
        reflector = self.around.reflector
        if not await reflector.some(within_seconds=5):
            return None
        server = reflector.servers.get(self.server_id)
        return None if server is not None and not is_ended(server) else await self._poll_again()

    async def _poll_again(self) -> int | None:
        """The listing may be old, or lack servers whose cell does not answer: an end is one only if Nova says so now."""
        try:
            server = await self.around.cloud.server(self.server_id)
        except CloudError:
            return None
        if server is None:
            return 0
        return int(server["status"] == "ERROR") if is_ended(server) else None

    async def get_url(self) -> str:
        """Asked at a hub's start for servers that run, as an address may have changed meanwhile."""
        server = self.around.reflector.servers.get(self.server_id)
        if server is not None:
            self.address = address_of(server) or self.address
        return f"http://{self.address}:{self.port}"

    # --- stop

    def stop_is_meant(self) -> bool:
        """Whether somebody asked for this stop.

        JupyterHub also stops servers by itself: after a failed launch, and at its own start those that do not answer in time,
        however healthy. Only a stop that came through its handlers leaves a future on the spawner.
        """
        return getattr(self, "_stop_future", None) is not None

    async def stop(self, now: bool = False) -> None:
        """Powers the server off if that is meant; its disk stays. Never raises: JupyterHub would answer 204 and forget it."""
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
                if task_of(server) != "powering-off":
                    await self.around.cloud.act(self.server_id, "os-stop")
            except CloudError as error:
                self.log.warning("%s: stopping server %s: %s %s", self._log_name, self.server_id, error, error.detail)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10)

    # --- removal

    async def delete_forever(self) -> None:
        """The user or the named server was deleted. JupyterHub swallows what is raised here and drops its row."""
        await self._creation_settled()
        await self._remove()

    async def _remove(self) -> None:
        self.log.info("%s: deleting what the cloud has of instance %s", self._log_name, self.instance_id)
        await self._persist(belongings.remove(self.around.cloud, self.deployment_id, self.instance_id))
        self.server_id = self.address = self.fingerprint = ""
