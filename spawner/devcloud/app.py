"""One process, one port, all services: what wraps every call, and the start and end of a devcloud."""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import resource
import signal
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import yaml
from aiohttp import web

from spawner.devcloud import control, errors, nova_versions
from spawner.devcloud.control import Calls, Control
from spawner.devcloud.errors import ApiError
from spawner.devcloud.faults import Faults
from spawner.devcloud.glance import Glance
from spawner.devcloud.keystone import NOTE, SERVICES, Keystone
from spawner.devcloud.lifecycle import Lifecycle
from spawner.devcloud.neutron import Network, Neutron
from spawner.devcloud.nova import Nova
from spawner.devcloud.nova_actions import NovaActions
from spawner.devcloud.nova_extras import NovaExtras
from spawner.devcloud.placement import Placement
from spawner.devcloud.state import Options, State, Store
from spawner.devcloud.volumes import ROOT, Volumes

log = logging.getLogger("devcloud")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN_PATHS = {
    "/image",
    "/image/",
    "/image/versions",
    "/image/v2",
    "/image/v2/",
    "/network",
    "/network/",
    *nova_versions.DISCOVERY,
    *ROOT,
    "/placement",
    "/placement/",
}
SUBNETS = [f"127.{number}.0.0/16" for number in range(64, 128)]
# above 1024, as the demo is for ordinary users too
SUBNET_LOCK_PORT = 9509
SERVER_HEADER = f"devcloud ({NOTE})"


class CannotStart(Exception):
    """Why this devcloud cannot start, in words for whoever starts it."""


class Devcloud:
    """All services over one state folder. `base_url` is known once the port is."""

    def __init__(self, options: Options) -> None:
        if not ip_address(options.host).is_loopback:
            raise CannotStart(
                f"devcloud is for demos and tests on one machine: --host must be a loopback address, not {options.host}"
            )
        self.options = options
        self.base_url = f"http://{options.host}:{options.port}"
        options.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock_folder(options.state_dir)
        self._store = Store(options.state_dir / "state.sqlite")
        subnet, self._subnet_lock = claim_subnet(self._store, options.subnet)
        state = State(self._store, subnet)
        self.keystone = Keystone(state, self._base_url)
        network = Network(state)
        glance = Glance(state, self._base_url, owner=self.keystone.users[-1].project_id)
        self.lifecycle = Lifecycle(state, network, options)
        nova = Nova(self.lifecycle, network, glance, self._base_url)
        self._faults, self._calls = Faults(), Calls()
        self._services = [
            self.keystone,
            nova,
            NovaActions(nova),
            NovaExtras(nova),
            nova_versions.NovaVersions(self._base_url),
            glance,
            Neutron(network, self._base_url),
            Volumes(),
            Placement(self.lifecycle, self._base_url),
            Control(self.lifecycle, self.keystone, self._faults, self._calls),
        ]

    def _base_url(self) -> str:
        return self.base_url

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._wrap], client_max_size=2**22)
        for service in self._services:
            app.add_routes(service.routes())  # type: ignore[attr-defined]
        return app

    # What happens to every call

    @web.middleware
    async def _wrap(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        request["request_id"] = f"req-{uuid.uuid4()}"
        service = request.path.split("/", 2)[1]
        if service == "devcloud":
            return await self._switch(request, handler)
        answer = await self._faults.apply(request, service, lambda: self._answer(request, service, handler))
        self._calls.record(request, answer.status, started)
        if not answer.prepared:
            answer.headers["X-OpenStack-Request-Id"] = request["request_id"]
            answer.headers["Server"] = SERVER_HEADER
        return answer

    async def _switch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not control.from_this_machine(request):
            return web.json_response({"error": "Only programs on this machine may use /devcloud."}, status=403)
        try:
            return await handler(request)
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": f"{request.method} {request.path}: {error}"}, status=400)

    async def _answer(self, request: web.Request, service: str, handler: Handler) -> web.StreamResponse:
        headers: dict[str, str] = {}
        try:
            if service != "identity" and request.path not in OPEN_PATHS:
                self._identify(request)
            if service == "compute" and request.path not in nova_versions.DISCOVERY:
                request["microversion"] = nova_versions.asked_version(request)
                headers = nova_versions.headers_for(request["microversion"])
            answer = await handler(request)
        except ApiError as error:
            answer = errors.response(service, error, request.headers.get("Accept", ""))
        except web.HTTPException as error:
            message = {404: "The resource could not be found.", 405: "The method is not allowed for this resource."}
            known = ApiError(error.status, message.get(error.status, error.reason), error.reason)
            answer = errors.response(service, known, request.headers.get("Accept", ""))
        except ValueError as error:
            answer = errors.response(service, errors.bad_request(f"Malformed request: {error}"), request.headers.get("Accept", ""))
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            answer = errors.response(service, ApiError(500, "Unexpected API Error. This is a fault of devcloud; see its log."))
        answer.headers.update(headers)
        return answer

    def _identify(self, request: web.Request) -> None:
        request["identity"] = self.keystone.identify(request.headers.get("X-Auth-Token"))
        if request["identity"].project_id is None:
            raise errors.unauthenticated()

    # Start and end

    def write_clouds_yaml(self) -> Path:
        path = self.options.state_dir / "clouds.yaml"
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"# Written by devcloud ({NOTE}) at every start.\n")
            yaml.safe_dump(self.keystone.clouds_yaml(), file, sort_keys=False)
        fresh.replace(path)
        return path

    async def serve(self) -> None:
        """Answer until SIGTERM or SIGINT; then switch all servers off, which stay known."""
        raise_file_limit()
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        listener = listen(self.options.host, self.options.port)
        self.base_url = f"http://{self.options.host}:{listener.getsockname()[1]}"
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        try:
            clouds_yaml = self.write_clouds_yaml()
            await self.lifecycle.resume()
            await web.SockSite(runner, listener, backlog=1024).start()
            services = ", ".join(f"{name} {self.base_url}{path}" for name, path in SERVICES.values())
            ready = f"devcloud ready ({NOTE}; payload {self.options.payload}): {services}; OS_CLIENT_CONFIG_FILE={clouds_yaml}"
            print(ready, flush=True)  # noqa: T201
            await stopping.wait()
        finally:
            await runner.cleanup()
            await self.lifecycle.close()
            self.close()

    def close(self) -> None:
        self._store.close()
        self._subnet_lock.close()
        os.close(self._lock)


def lock_folder(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CannotStart(f"another devcloud uses the state folder {folder}; stop it, or choose another with --state") from error
    return lock


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        message = f"cannot listen on {host} port {port}: {reason}; is another devcloud running? Choose another with --port"
        raise CannotStart(message) from error


def claim_subnet(store: Store, wanted: str) -> tuple[IPv4Network, socket.socket]:
    """Addresses that no other devcloud on this machine uses. Whoever listens at the gateway's address has the subnet.

    A random one, which nobody else takes while this devcloud is started again.
    """
    kept = store.setting("subnet", "")
    for candidate in [kept] if kept else [wanted] if wanted else random.sample(SUBNETS, len(SUBNETS)):
        subnet = IPv4Network(candidate)
        if not subnet.is_loopback or subnet.num_addresses < 8:
            raise CannotStart(f"--subnet must lie in 127.0.0.0/8 and hold some addresses, unlike {subnet}")
        with contextlib.suppress(OSError):
            lock = socket.socket()
            lock.bind((str(subnet[1]), SUBNET_LOCK_PORT))
            store.set("subnet", candidate)
            return subnet, lock
    tried = kept or wanted or f"{SUBNETS[0]} to {SUBNETS[-1]}"
    raise CannotStart(
        f"the addresses {tried} are in use by another devcloud; stop it, or start with a new --state or another --subnet"
    )


def raise_file_limit() -> None:
    """Thousands of stub servers are thousands of listening sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
