"""What happens to a server between two answers of Nova: building, stopping, starting, and what can go wrong meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from spawner.devcloud.errors import ApiError, conflict
from spawner.devcloud.folder import Folder
from spawner.devcloud.keystone import Identity
from spawner.devcloud.machine import AgentMachine, Machine, Spares
from spawner.devcloud.neutron import Network
from spawner.devcloud.state import Options, Server, State, now
from spawner.devcloud.stub import StubMachine

log = logging.getLogger("devcloud")

NO_STATE, RUNNING, PAUSED, SHUTDOWN, CRASHED = 0, 1, 3, 4, 6
# what operators do to a server: in which states, its task meanwhile, its states afterwards (power None: as before)
OPERATIONS: dict[str, tuple[tuple[str, ...], str, str, int | None]] = {
    "pause": (("active",), "pausing", "paused", PAUSED),
    "unpause": (("paused",), "unpausing", "active", RUNNING),
    "suspend": (("active",), "suspending", "suspended", SHUTDOWN),
    "resume": (("suspended",), "resuming", "active", RUNNING),
    "rescue": (("active", "stopped", "error"), "rescuing", "rescued", RUNNING),
    "unrescue": (("rescued",), "unrescuing", "active", RUNNING),
    "resize": (("active", "stopped"), "resize_finish", "resized", None),
}
NO_VALID_HOST = "No valid host was found. There are not enough hosts available."


def precise_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


class BuildFailed(Exception):
    """A server goes to ERROR with this as its fault."""


class Lifecycle:
    def __init__(self, state: State, network: Network, options: Options) -> None:
        self.state = state
        self.network = network
        self.options = options
        self.machines: dict[str, Machine] = {}
        self.next_boots: list[dict[str, Any]] = []
        self.keeps_deleted = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._spares = Spares()
        self._closing = False

    def folder(self, server: Server) -> Folder:
        return Folder(self.options.state_dir / "servers" / server.id)

    # Tasks: a server does one thing at a time

    def _run(self, server: Server, work: Coroutine[Any, Any, None]) -> None:
        before = self._tasks.get(server.id)
        if before is not None and not before.done():
            before.cancel()
        self._tasks[server.id] = asyncio.create_task(self._guard(server, work, before))

    async def _guard(self, server: Server, work: Coroutine[Any, Any, None], before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            await work
        except asyncio.CancelledError:
            work.close()
            raise
        except (BuildFailed, ApiError, OSError, ValueError) as error:
            await self.fail(server, str(error))
        finally:
            if self._tasks.get(server.id) is asyncio.current_task():
                del self._tasks[server.id]

    def _set(self, server: Server, task_state: str | None, vm_state: str | None = None, power_state: int | None = None) -> None:
        server.task_state = task_state
        if vm_state is not None:
            server.vm_state = vm_state
        if power_state is not None:
            server.power_state = power_state
        self.state.save(server)

    async def _pause(self, share: float) -> None:
        await asyncio.sleep(self.options.boot_seconds * share)

    # Actions, as os-instance-actions shows them

    def record_action(self, server: Server, name: str, identity: Identity, request_id: str, event: str) -> None:
        action = {
            "action": name,
            "instance_uuid": server.id,
            "request_id": request_id,
            "user_id": identity.user.id,
            "project_id": identity.project_id,
            "start_time": precise_now(),
            "updated_at": precise_now(),
            "message": None,
            "event": event,
            "result": None,
        }
        server.actions.append(action)

    def _finish_action(self, server: Server, result: str) -> None:
        if server.actions and server.actions[-1]["result"] is None:
            server.actions[-1]["result"] = result
            server.actions[-1]["message"] = None if result == "Success" else "Error"
            server.actions[-1]["updated_at"] = precise_now()

    # Building

    def build(self, server: Server) -> None:
        if self.next_boots:
            server.next_boot = self.next_boots.pop(0)
        self.state.add(server)
        self._run(server, self._build(server))

    async def _build(self, server: Server) -> None:
        await self._pause(0.05)
        if message := server.next_boot.get("error"):
            raise BuildFailed(message)
        if server.flavor.get("never_fits") or not self._fits(server):
            raise BuildFailed(NO_VALID_HOST)
        server.placed = True
        self._set(server, "networking")
        self._plug(server)
        await self._pause(0.05)
        self._set(server, "spawning")
        await asyncio.sleep(float(server.next_boot.get("seconds", 0)))
        await asyncio.to_thread(self.folder(server).create, server.user_data)
        await self._power_on(server)
        await self._pause(0.9)
        server.launched_at = precise_now()
        self._finish_action(server, "Success")
        self._set(server, None, "active", RUNNING)

    def used_of_host(self) -> dict[str, int]:
        placed = [
            server.flavor for server in self.state.servers.values() if server.placed and server.vm_state != "shelved_offloaded"
        ]
        totals = {"VCPU": sum(f["vcpus"] for f in placed), "MEMORY_MB": sum(f["ram"] for f in placed)}
        return totals | {"DISK_GB": sum(f["disk"] for f in placed)}

    def _fits(self, server: Server) -> bool:
        used, wanted = self.used_of_host(), server.flavor
        needs = {"VCPU": wanted["vcpus"], "MEMORY_MB": wanted["ram"], "DISK_GB": wanted["disk"]}
        return all(used[kind] + needs[kind] <= size for kind, size in self.state.host.items())

    def _plug(self, server: Server) -> None:
        for wanted in server.requested_networks:
            if port_id := wanted.get("port"):
                port = self.state.ports.get(port_id)
                if port is None or port.device_id:
                    raise BuildFailed(f"Build of instance {server.id} aborted: Port {port_id} is not usable for the instance.")
            else:
                fixed_ips = [{"ip_address": wanted["fixed_ip"]}] if wanted.get("fixed_ip") else []
                groups = [self.network.groups.find_by_name_or_id(server.project_id, name) for name in server.security_groups]
                request = {
                    "network_id": wanted["uuid"],
                    "fixed_ips": fixed_ips,
                    "security_groups": [group.id for group in groups if group is not None],
                }
                port = self.network.create_port(server.project_id, request)
                server.own_port_ids.append(port.id)
            server.port_ids.append(port.id)
            self.network.bind(port, server.id)

    async def _power_on(self, server: Server, cold: bool = True) -> None:
        folder, ports = self.folder(server), self.state.ports_of(server)
        address = ports[0].address if ports else ""
        folder.begin_console(server.id, address, cold)
        first_boot, server.next_boot = server.next_boot, {}
        if first_boot.get("never_agent") or not address:
            return
        machine = self._machine(server, folder, address)
        self.machines[server.id] = machine
        await machine.boot()

    def _machine(self, server: Server, folder: Folder, address: str) -> Machine:
        if self.options.payload == "stub":
            return StubMachine(folder, address)
        return AgentMachine(folder, address, self.options, self._spares, lambda: self.powered_off(server))

    def powered_off(self, server: Server) -> None:
        """The guest has switched itself off; Nova notices."""
        self.machines.pop(server.id, None)
        if not self._closing and server.id in self.state.servers and server.task_state is None and server.vm_state == "active":
            self._set(server, None, "stopped", SHUTDOWN)

    async def fail(self, server: Server, message: str) -> None:
        log.info("server %s goes to ERROR: %s", server.id, message)
        await self._kill(server)
        self._unplug(server)
        server.fault = {
            "code": 500,
            "created": now(),
            "message": message,
            "details": f"devcloud, for demos and tests only: {message}",
        }
        self._finish_action(server, "Error")
        self._set(server, None, "error", NO_STATE)

    def _unplug(self, server: Server) -> None:
        """Nova removes the ports that it made, and only unbinds those that were handed to it."""
        for port in self.state.ports_of(server):
            if port.id in server.own_port_ids:
                self.state.erase(port)
            elif port.device_id == server.id:
                self.network.unbind(port)
        server.port_ids, server.own_port_ids = [], []

    async def _kill(self, server: Server) -> None:
        machine = self.machines.pop(server.id, None)
        if machine is not None:
            await machine.kill()

    async def _shut_down(self, server: Server) -> None:
        machine = self.machines.pop(server.id, None)
        if machine is not None:
            await machine.shutdown()

    # The verbs. Each checks what Nova checks, sets the task state before the answer, and works on afterwards.

    def check(self, server: Server, verb: str, vm_states: tuple[str, ...], task_states: tuple[str | None, ...] = (None,)) -> None:
        if server.locked:
            raise conflict(f"Instance {server.id} is locked")
        if server.vm_state not in vm_states:
            raise conflict(f"Cannot '{verb}' instance {server.id} while it is in vm_state {server.vm_state}")
        if task_states and server.task_state not in task_states:
            raise conflict(f"Cannot '{verb}' instance {server.id} while it is in task_state {server.task_state}")
        if not server.launched_at:
            raise conflict(f"Cannot '{verb}' an instance which has never been active")

    def stop(self, server: Server) -> None:
        self.check(server, "stop", ("active", "error"))
        self._begin(server, "powering-off", self._stop)

    def start(self, server: Server) -> None:
        self.check(server, "start", ("stopped",))
        self._begin(server, "powering-on", self._start)

    def reboot(self, server: Server, kind: str) -> None:
        if kind == "SOFT":
            self.check(server, "reboot", ("active",))
            self._begin(server, "rebooting", self._soft_reboot)
        else:
            states = ("active", "stopped", "paused", "suspended", "error")
            self.check(server, "reboot", states, (None, "rebooting", "reboot_pending", "reboot_started", "rebooting_hard"))
            self._begin(server, "rebooting_hard", self._hard_reboot)

    def shelve(self, server: Server) -> None:
        self.check(server, "shelve", ("active", "stopped", "paused", "suspended"))
        self._begin(server, "shelving", self._shelve)

    def shelve_offload(self, server: Server) -> None:
        self.check(server, "shelveOffload", ("shelved",))
        self._begin(server, "shelving_offloading", self._offload)

    def snapshot(self, server: Server) -> None:
        self.check(server, "createImage", ("active", "stopped", "paused", "suspended"))
        self._begin(server, "image_snapshot", self._snapshot)

    async def _snapshot(self, server: Server) -> None:
        await self._pause(0.05)
        self._set(server, None)

    def unshelve(self, server: Server) -> None:
        self.check(server, "unshelve", ("shelved", "shelved_offloaded"))
        self._begin(server, "unshelving", self._unshelve)

    def operate(self, verb: str, server: Server, _: Any = None) -> None:
        vm_states, task_state, vm_state, power_state = OPERATIONS[verb]
        self.check(server, verb, vm_states)
        then = server.power_state if power_state is None else power_state
        self._begin(server, task_state, lambda server: self._operate(server, verb, vm_state, then))

    async def _operate(self, server: Server, verb: str, vm_state: str, power_state: int) -> None:
        """What is paused or suspended goes on answering here; what is rescued has booted something without an agent."""
        await self._pause(0.2)
        if verb in ("rescue", "resize"):
            await self._shut_down(server)
        if verb == "unrescue" or (verb == "resize" and power_state == RUNNING):
            await self._power_on(server)
        self._set(server, None, vm_state, power_state)

    def confirm_resize(self, server: Server) -> None:
        self.check(server, "confirmResize", ("resized",))
        self._set(server, None, "active" if server.power_state == RUNNING else "stopped")

    def delete(self, server: Server) -> None:
        if server.locked:
            raise conflict(f"Instance {server.id} is locked")
        if self.keeps_deleted and server.launched_at and server.vm_state != "soft-delete":
            self._begin(server, "soft-deleting", self._soft_delete)
        elif server.task_state != "deleting":
            self._begin(server, "deleting", self._delete)

    def _begin(self, server: Server, task_state: str, work: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
        self._set(server, task_state)
        self._run(server, self._finishing(server, work))

    async def _finishing(self, server: Server, work: Callable[[Server], Awaitable[None]]) -> None:
        await work(server)
        self._finish_action(server, "Success")
        if not server.deleted:
            self.state.save(server)

    async def _stop(self, server: Server) -> None:
        await self._pause(0.2)
        await self._shut_down(server)
        self._set(server, None, "stopped", SHUTDOWN)

    async def _start(self, server: Server) -> None:
        await self._pause(0.2)
        await self._power_on(server)
        server.fault = None
        self._set(server, None, "active", RUNNING)

    async def _soft_reboot(self, server: Server) -> None:
        await self._shut_down(server)
        self._set(server, "reboot_started")
        await self._power_on(server, cold=False)
        self._set(server, None, "active", RUNNING)

    async def _hard_reboot(self, server: Server) -> None:
        await self._kill(server)
        self._set(server, "reboot_started_hard")
        await self._pause(0.2)
        await self._power_on(server)
        server.fault = None
        self._set(server, None, "active", RUNNING)

    async def _shelve(self, server: Server) -> None:
        await self._shut_down(server)
        self._set(server, "shelving_image_uploading", power_state=SHUTDOWN)
        await self._pause(0.4)
        self._set(server, "shelving_offloading", "shelved")
        await self._offload(server)

    async def _offload(self, server: Server) -> None:
        await self._pause(0.2)
        server.placed = False
        self._set(server, None, "shelved_offloaded", SHUTDOWN)

    async def _unshelve(self, server: Server) -> None:
        await self._pause(0.2)
        server.placed = True
        self._set(server, "spawning")
        await self._power_on(server)
        await self._pause(0.8)
        self._set(server, None, "active", RUNNING)

    async def _soft_delete(self, server: Server) -> None:
        await self._shut_down(server)
        self._set(server, None, "soft-delete", SHUTDOWN)

    async def _delete(self, server: Server) -> None:
        await self._pause(0.2)
        await self._kill(server)
        self._unplug(server)
        self.state.bury(server)
        await asyncio.to_thread(self.folder(server).remove)

    async def forget(self, server: Server) -> None:
        """The server vanishes without a trace, as when somebody cleans up a database; its ports stay behind."""
        task = self._tasks.pop(server.id, None)
        if task is not None:
            task.cancel()
        await self._kill(server)
        self.state.erase(server)
        await asyncio.to_thread(self.folder(server).remove)

    # devcloud's own start and end

    async def resume(self) -> None:
        """After a restart of devcloud every server goes on as after a power cut."""
        if self.options.payload == "agent":
            self._spares.prepare()
        for server in list(self.state.servers.values()):
            if server.task_state == "deleting":
                self._run(server, self._delete(server))
            elif server.vm_state == "building":
                message = "Instance failed to spawn: devcloud was restarted meanwhile."
                await self.fail(server, message)
            elif server.task_state == "powering-off" or (server.vm_state == "active" and self.options.leave_stopped):
                self._set(server, None, "stopped", SHUTDOWN)
            elif server.vm_state == "active" or server.task_state in ("powering-on", "unshelving", "spawning"):
                server.placed = True
                self._set(server, None, "active", RUNNING)
                self._run(server, self._power_on(server))
            elif server.task_state is not None:
                self._set(server, None)

    async def close(self) -> None:
        self._closing = True
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.gather(*(machine.shutdown() for machine in self.machines.values()), return_exceptions=True)
        await self._spares.close()
