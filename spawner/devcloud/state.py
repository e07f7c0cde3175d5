"""What devcloud knows: servers, ports, security groups, and how they are kept over a restart.

Everything is held in memory and each change is written through to one SQLite file in the state folder.
"""

import dataclasses
import json
import secrets
import sqlite3
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

KEPT_TOMBSTONES = 5000
DEFAULT_QUOTA = {
    "instances": 4000,
    "cores": 40000,
    "ram": 160_000_000,
    "metadata_items": 128,
    "key_pairs": 100,
    "server_groups": 10,
    "server_group_members": 10,
    "network": 100,
    "subnet": 100,
    "port": 8000,
    "security_group": 100,
    "security_group_rule": 1000,
}
# the one host, in Placement's words
DEFAULT_HOST = {"VCPU": 40000, "MEMORY_MB": 160_000_000, "DISK_GB": 1_000_000}


def now() -> str:
    """The present as Nova and Neutron write it, to the second; such texts sort by time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 9500
    payload: str = "agent"
    agent_command: tuple[str, ...] = (sys.executable, "-m", "images.guest")
    agent_folder: Path = Path(__file__).resolve().parents[2]
    boot_seconds: float = 0.05
    stop_grace_seconds: float = 5.0
    subnet: str = ""
    leave_stopped: bool = False


@dataclass(slots=True)
class Server:
    id: str
    project_id: str
    user_id: str
    name: str
    flavor: dict[str, Any]
    image_id: str
    metadata: dict[str, str]
    tags: list[str]
    user_data: str | None = None
    config_drive: bool = False
    description: str | None = None
    key_name: str | None = None
    hostname: str = ""
    availability_zone: str = "nova"
    disk_config: str = "MANUAL"
    access_ipv4: str = ""
    access_ipv6: str = ""
    trusted_image_certificates: list[str] | None = None
    security_groups: list[str] = field(default_factory=lambda: ["default"])
    requested_networks: list[dict[str, Any]] = field(default_factory=list)
    port_ids: list[str] = field(default_factory=list)
    own_port_ids: list[str] = field(default_factory=list)
    number: int = 0
    placed: bool = False
    vm_state: str = "building"
    task_state: str | None = "scheduling"
    power_state: int = 0
    locked: bool = False
    locked_reason: str | None = None
    fault: dict[str, Any] | None = None
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    launched_at: str | None = None
    terminated_at: str | None = None
    deleted: bool = False
    cell_is_down: bool = False
    actions: list[dict[str, Any]] = field(default_factory=list)
    next_boot: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Port:
    id: str
    project_id: str
    network_id: str
    subnet_id: str
    address: str
    mac: str
    name: str = ""
    description: str = ""
    device_id: str = ""
    device_owner: str = ""
    admin_state_up: bool = True
    port_security_enabled: bool = True
    security_groups: list[str] = field(default_factory=list)
    allowed_address_pairs: list[dict[str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    dns_name: str = ""
    vnic_type: str = "normal"
    bound: bool = False
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    revision: int = 1


@dataclass(slots=True)
class SecurityGroup:
    id: str
    project_id: str
    name: str
    description: str = ""
    rules: list[dict[str, Any]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    revision: int = 1


Record = Server | Port | SecurityGroup
R = TypeVar("R", Server, Port, SecurityGroup)


class Store:
    """One SQLite file: a row for each record, and a few settings that must stay the same over restarts."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None)
        # A power cut may cost devcloud its last writes; a kill of the process may not, and does not.
        self._database.executescript(
            """
            PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
            CREATE TABLE IF NOT EXISTS record (id TEXT PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL);
            CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
            """
        )

    def save(self, record: Record) -> None:
        body = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
        self._database.execute(
            "INSERT INTO record VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (record.id, type(record).__name__, json.dumps(body)),
        )

    def remove(self, record_id: str) -> None:
        self._database.execute("DELETE FROM record WHERE id = ?", (record_id,))

    def load(self, kind: type[R]) -> dict[str, R]:
        rows = self._database.execute("SELECT id, body FROM record WHERE kind = ? ORDER BY rowid", (kind.__name__,))
        return {record_id: kind(**json.loads(body)) for record_id, body in rows}

    def setting(self, name: str, default: str) -> str:
        """The kept value of a setting; at first use, the default is kept."""
        self._database.execute("INSERT OR IGNORE INTO setting VALUES (?, ?)", (name, default))
        return str(self._database.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()[0])

    def set(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def close(self) -> None:
        self._database.close()


class State:
    """All records, with the few indexes that keep two thousand servers cheap."""

    def __init__(self, store: Store, subnet: IPv4Network) -> None:
        self.store = store
        self.subnet = subnet
        self.servers: dict[str, Server] = {}
        self.tombstones: dict[str, Server] = {}
        for server in store.load(Server).values():
            (self.tombstones if server.deleted else self.servers)[server.id] = server
        self.ports = store.load(Port)
        self.security_groups = store.load(SecurityGroup)
        self.ports_by_address = {port.address: port.id for port in self.ports.values()}
        self.quota: dict[str, int] = DEFAULT_QUOTA | json.loads(store.setting("quota", "{}"))
        self.host: dict[str, int] = DEFAULT_HOST | json.loads(store.setting("host", "{}"))
        # Listings paste these together; a record that changes drops its own.
        self.rendered: dict[str, dict[Any, bytes]] = {}

    def secret(self, name: str) -> str:
        """A random text that stays the same for this state folder."""
        return self.store.setting(name, secrets.token_urlsafe(24))

    def identifier(self, name: str) -> str:
        """A random UUID that stays the same for this state folder."""
        return self.store.setting(f"id of {name}", new_id())

    def add(self, record: Record) -> None:
        if isinstance(record, Server):
            self.servers[record.id] = record
        elif isinstance(record, Port):
            self.ports[record.id] = record
            self.ports_by_address[record.address] = record.id
        else:
            self.security_groups[record.id] = record
        self.store.save(record)

    def save(self, record: Record) -> None:
        record.updated = now()
        self.rendered.pop(record.id, None)
        if isinstance(record, Port):
            record.revision += 1
            self.rendered.pop(record.device_id, None)
        self.store.save(record)

    def erase(self, record: Record) -> None:
        """Drop a record without a trace."""
        self.rendered.pop(record.id, None)
        if isinstance(record, Server):
            self.servers.pop(record.id, None)
            self.tombstones.pop(record.id, None)
        elif isinstance(record, Port):
            self.rendered.pop(record.device_id, None)
            self.ports.pop(record.id, None)
            self.ports_by_address.pop(record.address, None)
        else:
            self.security_groups.pop(record.id, None)
        self.store.remove(record.id)

    def bury(self, server: Server) -> None:
        """Nova still lists a deleted server to those who ask what has changed."""
        self.rendered.pop(server.id, None)
        self.servers.pop(server.id, None)
        server.deleted, server.vm_state, server.task_state, server.power_state = True, "deleted", None, 0
        server.terminated_at = server.updated = now()
        server.user_data = None
        self.tombstones[server.id] = server
        self.store.save(server)
        while len(self.tombstones) > KEPT_TOMBSTONES:
            self.erase(next(iter(self.tombstones.values())))

    def set_quota(self, changes: dict[str, int]) -> None:
        self.quota.update(changes)
        self.store.set("quota", json.dumps(self.quota))

    def set_host(self, changes: dict[str, int]) -> None:
        self.host.update(changes)
        self.store.set("host", json.dumps(self.host))

    def ports_of(self, server: Server) -> list[Port]:
        return [self.ports[port_id] for port_id in server.port_ids if port_id in self.ports]
