"""One OpenStack cloud: the calls that Hutch makes, each in a thread of its own pool, with errors that say what to do.

What is safe to ask twice is asked again within a deadline; a cloud that has stopped answering is not waited for (`breaker`).

Calls go through openstacksdk's own session and catalog, but with plain JSON bodies (see `builders`): what is sent can be read, and
a listing of many servers costs little.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import keystoneauth1.session
import openstack
import openstack.exceptions as sdk_errors
import requests
import yaml

from . import builders
from .breaker import Breaker
from .cloud_errors import CALL_ERRORS, MISCONFIGURED, CloudError, Trouble, cloud_error

T = TypeVar("T")
# what it warns of, at each try, is in the error that follows
logging.getLogger("keystoneauth").setLevel(logging.ERROR)
CATALOGUE_SECONDS = 300.0
# our name of a limit, and what it is called in Nova's "maxTotal..." and "total...Used"
NOVA_LIMITS = (("instances", "Instances", "Instances"), ("cores", "Cores", "Cores"), ("ram", "RAMSize", "RAM"))
# the first that sums up all kinds of resources of a host (Rocky)
PLACEMENT_MICROVERSION = "1.27"
# of one HTTP request, and of a call in all; what takes longer counts as unanswered, never as refused
API_TIMEOUT_SECONDS = 60.0
TRIES = 4
# a call is not tried again when that would begin later than this
RETRY_SECONDS = 15.0


def read_environment_once(session: keystoneauth1.session.Session) -> None:
    """For each request, as requests does it, it takes as long as the request; where there are proxies, it stays so."""
    session.session.trust_env = bool(getproxies())
    if session.verify is True:
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _check_readable(file: Path) -> None:
    """The SDK skips a file that it cannot read, and then misses the cloud. Nothing of the content is told: secrets are in it."""
    try:
        yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise sdk_errors.ConfigException(f"{file}{f', line {mark.line + 1}' if mark else ''} is not YAML") from None


class Cloud:
    """Asks one cloud. Every method is a coroutine and raises CloudError; nothing blocks the event loop."""

    def __init__(self, cloud: str, clouds_yaml: Path | None = None, region: str = "", *, threads: int = 16) -> None:
        self.name, self.clouds_yaml, self.region = cloud, clouds_yaml, region
        self._new_threads = lambda: ThreadPoolExecutor(threads, thread_name_prefix=f"cloud-{cloud}")
        self._threads, self._slots = self._new_threads(), asyncio.Semaphore(threads)
        self._catalogue: dict[tuple[str, str], tuple[float, str]] = {}
        self._addresses: dict[str, tuple[float, str | None]] = {}
        self._connecting = asyncio.Lock()
        self._read: tuple[str | None, int] = None, 0  # the file with our credentials, and when it was written
        self.label = f"{cloud}/{region}" if region else cloud
        self._breaker = Breaker(self.label)

    @property
    def is_down(self) -> bool:
        """It has stopped answering: calls fail at once, until a listing or a look at the limits is answered."""
        return self.down_since is not None

    @property
    def down_since(self) -> datetime | None:
        return self._breaker.down_since

    @cached_property
    def _connection(self) -> openstack.connection.Connection:
        try:
            connection = openstack.connection.Connection(config=self._read_config())
        except CALL_ERRORS as error:  # nothing was asked of the cloud yet
            raise sdk_errors.ConfigException(str(error)) from error
        read_environment_once(connection.session)
        # what a hub has loaded by now stays: to look through it at each full collection would hold up all for a tenth of a second
        if not gc.get_freeze_count():
            gc.freeze()
        return connection

    def _read_config(self) -> openstack.config.cloud_region.CloudRegion:
        files = [str(self.clouds_yaml)] if self.clouds_yaml else None
        if self.clouds_yaml:
            _check_readable(self.clouds_yaml)
        config = openstack.config.OpenStackConfig(config_files=files) if files else openstack.config.OpenStackConfig()
        self._read = config.config_filename, _changed_at(config.config_filename)
        wanted: dict[str, Any] = {"region_name": self.region} if self.region else {}
        # tried again here, within one deadline, and not by the SDK in its own ways
        return config.get_one(cloud=self.name, api_timeout=API_TIMEOUT_SECONDS, status_code_retries=0, connect_retries=0, **wanted)

    def _sign_in_anew(self, error: CloudError) -> None:
        """At the next try, where clouds.yaml or the catalog has to say something else: both are mended while a hub runs."""
        file, read_at = self._read
        if _changed_at(file) == read_at and not isinstance(error.__cause__, MISCONFIGURED):
            return
        self.__dict__.pop("_connection", None)
        self._addresses.clear()
        self._catalogue.clear()

    async def _ask(self, asked: str, call: Callable[[], T], *, repeat: bool = True, probe: bool = False) -> T:
        """repeat: safe to be done twice. probe: let through when the cloud is down, one at a time."""
        if "_connection" not in self.__dict__:
            async with self._connecting:
                await self._in_thread(asked, lambda: self._connection, probe)

        tried, began = 0, time.monotonic()
        while True:
            try:
                answer = await self._in_thread(asked, call, probe)
            except CloudError as error:
                tried += 1
                if error.trouble is Trouble.CREDENTIALS:
                    self._sign_in_anew(error)
                # as long as the cloud asked for, if it did; spread, so that not all come back at once
                pause = error.pause_seconds + random.uniform(0, min(4, 0.25 * 2 ** (tried - 1)))  # noqa: S311 - no secret
                # of several calls at once that find the token ended, keystoneauth renews it for one and fails the others
                renewed = error.trouble is Trouble.CREDENTIALS and tried == 1
                again = renewed or error.too_many or (repeat and error.trouble is Trouble.UNANSWERED)
                late = tried == TRIES or time.monotonic() + pause - began >= RETRY_SECONDS
                if not again or late or self.is_down:
                    self._breaker.count(answered=error.too_many or error.trouble is not Trouble.UNANSWERED)
                    raise
                await asyncio.sleep(pause)
            else:
                self._breaker.count(answered=True)
                return answer

    async def _in_thread(self, asked: str, call: Callable[[], T], probe: bool) -> T:
        async with self._slots:
            with self._breaker.may_ask(probe=probe) as may:
                if not may:
                    raise CloudError(
                        Trouble.UNANSWERED, "The cloud does not answer.", f"{self.name} is down since {self.down_since}"
                    )
                try:
                    async with asyncio.timeout(API_TIMEOUT_SECONDS + 1):
                        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
                except CALL_ERRORS as error:
                    if isinstance(error, TimeoutError):
                        # the thread may hang for long on an answer that comes byte by byte: the others are not to wait for it
                        self._threads.shutdown(wait=False)
                        self._threads = self._new_threads()
                    raise cloud_error(error, asked) from error

    def _has(self, service: str) -> bool:
        """Signed in first: of a catalog that it cannot read, the SDK says that it names no such service."""
        self._connection.session.get_token()
        return bool(self._connection.has_service(service))

    def _compute(self, method: str, path: str, body: Any = None) -> Any:
        return self._request("compute", method, path, body, microversion=builders.NOVA_MICROVERSION)

    def _network(self, method: str, path: str, body: Any = None) -> Any:
        return self._request("network", method, path, body)

    def _request(self, service: str, method: str, path: str, body: Any, **options: Any) -> Any:
        """At the address that the catalog has: looked up for each call, it takes as long as the call."""
        proxy = getattr(self._connection, service)
        at, address = self._addresses.get(service, (0.0, None))
        if address is None or time.monotonic() - at > CATALOGUE_SECONDS:
            address = proxy.get_endpoint()
            self._addresses[service] = (time.monotonic(), address)
        return _answer(proxy.request(path, method, json=body, endpoint_override=address, **options))

    # --- servers

    async def servers(self, deployment_id: str) -> list[dict[str, Any]]:
        """Every server of this deployment, as Nova describes them in detail; one call per thousand."""
        tagged = await self.tagged_servers(deployment_id)
        return [server for server in tagged if server.get("metadata", {}).get(builders.DEPLOYMENT_KEY) == deployment_id]

    async def tagged_servers(self, deployment_id: str) -> list[dict[str, Any]]:
        """The same with those that only the tag calls ours."""

        def call() -> list[dict[str, Any]]:
            found = _listing(self._compute, "servers", f"/servers/detail?tags={builders.deployment_tag(deployment_id)}")
            if not all(server["id"] and server["status"] for server in found):
                raise ValueError(f"not a listing of servers: {found}")
            return found

        # the listing is what finds out that a cloud is back
        return await self._ask("list the servers", call, probe=True)

    async def server(self, server_id: str) -> dict[str, Any] | None:
        """One server, or None when Nova itself says that there is none."""
        try:
            return await self._ask("look up the server", lambda: _server(self._compute("GET", f"/servers/{server_id}"), server_id))
        except CloudError as error:
            if error.trouble is Trouble.NOT_FOUND:
                return None
            raise

    async def create_server(self, body: dict[str, Any]) -> str:
        # not repeated here when it was not answered: it may have been done
        return await self._ask_by_ids(
            "create the server", lambda: str(self._compute("POST", "/servers", body)["server"]["id"]), repeat=False
        )

    async def _ask_by_ids(self, asked: str, call: Callable[[], T], *, repeat: bool = True) -> T:
        """What the catalogue names may have been replaced by another of that name: then it is read anew the next time."""
        try:
            return await self._ask(asked, call, repeat=repeat)
        except CloudError as error:
            if error.trouble in (Trouble.REFUSED, Trouble.NOT_FOUND):
                self._catalogue.clear()
            raise

    async def act(self, server_id: str, action: str) -> None:
        """A server action without arguments: os-start, os-stop, unshelve ..."""
        words = {"os-start": "start the server", "os-stop": "stop the server"}.get(action, f"{action} the server")
        await self._ask(words, lambda: self._compute("POST", f"/servers/{server_id}/action", {action: None}), repeat=False)

    async def tag_server(self, server_id: str, tag: str) -> None:
        await self._ask("tag the server", lambda: self._compute("PUT", f"/servers/{server_id}/tags/{tag}"))

    async def delete_server(self, server_id: str) -> None:
        """Gone already counts as done."""
        try:
            await self._ask("delete the server", lambda: self._compute("DELETE", f"/servers/{server_id}"))
        except CloudError as error:
            if error.trouble is not Trouble.NOT_FOUND:
                raise

    async def console(self, server_id: str, lines: int | None = None) -> str:
        """The end of the serial console's log (all of it that Nova keeps when lines is None)."""
        body = {"os-getConsoleOutput": {"length": lines} if lines else {}}
        path = f"/servers/{server_id}/action"
        return await self._ask("read the console", lambda: str(self._compute("POST", path, body)["output"] or ""))

    # --- ports

    async def create_port(self, body: dict[str, Any]) -> dict[str, Any]:
        return await self._ask_by_ids(
            "create the network port", lambda: _port(self._network("POST", "/ports", body)["port"]), repeat=False
        )

    async def ports(self, instance_id: str, deployment_id: str) -> list[dict[str, Any]]:
        """The ports made for an instance, by the name and description that port_request gives them."""
        name, mark = builders.server_name(instance_id), builders.mark(deployment_id, instance_id)

        def call() -> list[dict[str, Any]]:
            found = self._network("GET", f"/ports?name={name}")["ports"]
            return [_port(port) for port in found if port["description"] == mark]

        return await self._ask("look up the network port", call)

    async def all_ports(self) -> list[dict[str, Any]]:
        """Every port of the project, in what matters here: Neutron cannot filter by deployment. One call, unless paged."""
        path = "/ports?fields=id&fields=name&fields=description&fields=device_id&fields=security_groups"
        return await self._ask("list the network ports", lambda: _listing(self._network, "ports", path))

    async def set_port_groups(self, port_id: str, groups: Sequence[str]) -> None:
        body = {"port": {"security_groups": list(groups)}}
        await self._ask_by_ids("change the security groups", lambda: self._network("PUT", f"/ports/{port_id}", body))

    async def floating_ips(self) -> list[dict[str, Any]]:
        """The project's floating IPs; none where the cloud has no routers."""

        def call() -> list[dict[str, Any]]:
            network = self._connection.network
            return [ip.to_dict() for ip in network.ips()] if network.find_extension("router", ignore_missing=True) else []

        return await self._ask("list the floating IPs", call, repeat=False)

    async def volumes(self) -> list[dict[str, Any]]:
        """The project's volumes; none where the cloud has no such service."""

        def call() -> list[dict[str, Any]]:
            has = self._has("block-storage")
            return [volume.to_dict() for volume in self._connection.block_storage.volumes()] if has else []

        return await self._ask("list the volumes", call, repeat=False)

    async def delete_port(self, port_id: str) -> None:
        """Gone already counts as done."""
        try:
            await self._ask("delete the network port", lambda: self._network("DELETE", f"/ports/{port_id}"))
        except CloudError as error:
            if error.trouble is not Trouble.NOT_FOUND:
                raise

    async def groups(self, asked: str, method: str = "GET", path: str = "s", body: Any = None) -> Any:
        """A call about security groups: /security-group{path}."""
        return await self._ask(asked, lambda: self._network(method, f"/security-group{path}", body), repeat=method != "POST")

    # --- room

    async def limits(self) -> dict[str, tuple[int, int]]:
        """What the project may have of each kind, and has: {"cores": (limit, used)}; a negative limit is none."""

        def call() -> dict[str, tuple[int, int]]:
            nova = self._compute("GET", "/limits")["limits"]["absolute"]
            port = self._network("GET", f"/quotas/{self._connection.current_project_id}/details.json")["quota"]["port"]
            of_nova = {name: (nova[f"maxTotal{of}"], nova[f"total{used}Used"]) for name, of, used in NOVA_LIMITS}
            return of_nova | {"port": (port["limit"], port["used"] + port["reserved"])}

        return await self._ask("tell its limits", call, repeat=False, probe=True)

    async def flavors(self) -> list[dict[str, Any]]:
        call = partial(_listing, self._compute, "flavors", "/flavors/detail")
        return await self._ask("list the flavors", call, repeat=False)

    async def free_hosts(self) -> list[dict[str, int]] | None:
        """What is free on each host that has anything free, by Placement's names; None where Placement does not say.

        One call for all hosts. ref: https://docs.openstack.org/api-ref/placement/#list-allocation-candidates
        """

        def call() -> list[dict[str, int]] | None:
            if not self._has("placement"):
                return None
            asked = "/allocation_candidates?resources=VCPU:1&limit=1000"
            answer = _answer(self._connection.placement.get(asked, microversion=PLACEMENT_MICROVERSION))
            found = (provider["resources"] for provider in answer["provider_summaries"].values())
            return [_free(resources) for resources in found if "VCPU" in resources]

        try:
            return await self._ask("tell what is free on its hosts", call, repeat=False)
        except CloudError:
            return None  # by default it is for admins, and launches do without

    # --- what a site names by name

    async def image_id(self, name: str) -> str:
        return await self._find("image", name, lambda: self._connection.image.find_image(name))

    async def flavor_id(self, name: str) -> str:
        return await self._find("flavor", name, lambda: self._connection.compute.find_flavor(name))

    async def network_id(self, name: str) -> str:
        return await self._find("network", name, lambda: self._connection.network.find_network(name))

    async def security_group_id(self, name: str) -> str:
        return await self._find("security group", name, lambda: self._connection.network.find_security_group(name))

    async def _find(self, kind: str, name: str, look: Callable[[], Any]) -> str:
        """The id behind a name or id, remembered for some minutes: a launch does not list the catalogue."""
        at, known = self._catalogue.get((kind, name), (0.0, ""))
        if known and time.monotonic() - at < CATALOGUE_SECONDS:
            return known

        def call() -> Any:
            found = look()
            if found is not None and not found.id:
                raise ValueError(f"not a {kind}: {found}")
            return found

        found = await self._ask(f"look up the {kind} {name}", call)
        if found is None:
            raise CloudError(Trouble.REFUSED, f"The cloud has no {kind} named {name}.", f"no {kind} {name!r} in {self.name}")
        if kind == "image" and found.status != "active":
            raise CloudError(Trouble.REFUSED, f"The image {name} cannot be used at present.", f"image {name!r} is {found.status}")
        self._catalogue[kind, name] = (time.monotonic(), found.id)
        return found.id

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _changed_at(file: str | None) -> int:
    return Path(file).stat().st_mtime_ns if file and Path(file).exists() else 0


def _server(answer: Any, server_id: str) -> dict[str, Any]:
    """Nova's description, if it is one of this server."""
    server = dict(answer["server"])
    if server["id"] != server_id or not server["status"]:
        raise ValueError(f"not a description of server {server_id}: {server}")
    return server


def _port(port: Any) -> dict[str, Any]:
    """Neutron's description, if it has all that is looked at; an address comes at once or never."""
    if not port["id"] or not isinstance(port["device_id"], str) or not isinstance(port["fixed_ips"], list):
        raise ValueError(f"not a port: {port}")
    return dict(port)


def _answer(response: requests.Response) -> Any:
    sdk_errors.raise_from_response(response)
    return response.json() if response.content else None


def _free(resources: dict[str, dict[str, int]]) -> dict[str, int]:
    kinds = resources.keys() & {"VCPU", "MEMORY_MB", "DISK_GB"}
    return {kind: resources[kind]["capacity"] - resources[kind]["used"] for kind in kinds}


def _listing(ask: Callable[[str, str], Any], kind: str, path: str) -> list[dict[str, Any]]:
    """All of it, page by page."""
    found: list[dict[str, Any]] = []
    following: str | None = path
    while following:
        page = ask("GET", following)
        found += page[kind]
        following = _next_page(page, kind, path)
    return found


def _next_page(page: dict[str, Any], kind: str, path: str) -> str | None:
    """The path of the page after this one; the cloud may call itself otherwise than we do."""
    hrefs = (link["href"] for link in page.get(f"{kind}_links", ()) if link["rel"] == "next")
    return next((f"{path.partition('?')[0]}?{urlsplit(href).query}" for href in hrefs), None)
