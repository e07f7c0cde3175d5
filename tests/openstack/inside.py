"""The cloud's first process: makes its surroundings, starts every service in turn, fills the cloud, and then waits.

Runs as process 1 of namespaces of its own, by the system's Python (which the services use too): inside.py FOLDER CACHE. It has
private copies of /etc and /var, so that every service finds things where Debian puts them, and 127.0.0.1 is the cloud's alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

HERE = Path(__file__).parent
HUB_ADDRESS = "10.77.0.1/24"
DATABASES = ("keystone", "glance", "placement", "nova_api", "nova", "nova_cell0", "neutron")
STATE_FOLDERS = (
    *("lib/glance/images", "lib/nova/instances", "lib/nova-fake", "lib/neutron", "lib/rabbitmq", "lib/mysql"),
    *("log/rabbitmq", "cache", "tmp"),
)
APIS = (("keystone", 5000, "/v3"), ("placement", 8778, "/"), ("glance", 9292, "/"), ("neutron", 9696, "/"), ("nova", 8774, "/"))
WAIT_SECONDS, STARTED_SECONDS = 180.0, 45.0
# without "Connection: close", uWSGI closes connections that clients mean to use again
UWSGI = (
    *("uwsgi", "--plugins", "python3", "--master", "--enable-threads", "--lazy-apps", "--need-app", "--die-on-term"),
    *("--add-header=Connection:close", "--buffer-size", "65535", "--thunder-lock", "--disable-logging"),
)
NOVA, NEUTRON = ("--config-file", "/etc/nova/nova.conf"), ("--config-file", "/etc/neutron/neutron.conf")
RABBIT = {
    "RABBITMQ_NODENAME": "rabbit@localhost",
    "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
    "ERL_EPMD_ADDRESS": "127.0.0.1",
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
    "HOME": "/var/lib/rabbitmq",
}


class Cloud:
    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder, self._log = folder, folder / "log"
        self._began = time.monotonic()
        self._services: dict[int, tuple[str, Callable[[], None]]] = {}  # by process: its name, and what starts it again
        self._schema = cache / f"openstack-{fingerprint()}.sql.xz"

    def up(self) -> None:
        self._surroundings()
        self._start("mariadb", "mariadbd", "--defaults-file=/etc/mysql/cloud.cnf")
        self._start("rabbitmq", "/usr/lib/rabbitmq/bin/rabbitmq-server", **RABBIT)
        self._start("memcached", "memcached", "-u", "root", "-l", "127.0.0.1", "-m", "64")
        self._wait("mariadb", lambda: sql("select 1"))
        self._schemas()
        self._control_plane()
        self._computes()
        self._tell("the computes have started")
        self._fill("cloud", str(self._folder / "clouds.yaml"))
        ready = self._folder / "ready.new"
        ready.write_text(f"ready: OS_CLIENT_CONFIG_FILE={self._folder}/clouds.yaml\n")
        ready.replace(self._folder / "ready")
        self._tell("ready")

    def watch(self) -> None:
        """A service that ends is told of, and started again as systemd would."""
        while self._services:
            pid, status = os.wait()
            name, start_again = self._services.pop(pid)
            self._tell(f"{name} has ended with {os.waitstatus_to_exitcode(status)}")
            time.sleep(1)
            start_again()

    # --- what is around the services

    def _surroundings(self) -> None:
        os.umask(0o022)  # dnsmasq becomes "nobody" and still has to read what Neutron wrote for it
        etc, var, tmp = (self._folder / name for name in ("etc", "var", "tmp"))
        shutil.copytree("/etc", etc, symlinks=True)
        shutil.copytree(HERE / "etc", etc, dirs_exist_ok=True)
        with (etc / "nova/libvirt.conf").open("a") as file:
            file.write(f"virt_type = {'kvm' if has_kvm() else 'qemu'}\n")
        for name in ("keystone/fernet-keys", "keystone/credential-keys"):
            keys(etc / name)
        for name in STATE_FOLDERS:
            (var / name).mkdir(parents=True)
        (var / "run").symlink_to("/run")
        (var / "lock").symlink_to("/run/lock")
        tmp.mkdir()
        tmp.chmod(0o1777)
        for private in (etc, var, tmp):
            command("mount", "--bind", str(private), f"/{private.name}")
        command("mount", "-t", "tmpfs", "tmpfs", "/run")
        command("mount", "-t", "sysfs", "sysfs", "/sys")
        for name in ("/run/lock", "/run/netns"):
            Path(name).mkdir()
        socket.sethostname("compute")
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", "provider", "type", "veth", "peer", "name", "hub")
        command("ip", "address", "add", HUB_ADDRESS, "dev", "hub")
        for name in ("provider", "hub"):
            command("ip", "link", "set", name, "up")
        options = ("--user=root", "--auth-root-authentication-method=normal", "--skip-test-db")
        with (self._log / "mariadb-install.log").open("wb") as log:
            command("mariadb-install-db", "--defaults-file=/etc/mysql/cloud.cnf", *options, output=log)

    def _tell(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)

    def _start(self, name: str, *arguments: str, **environment: str) -> None:
        with (self._log / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
            )
        self._services[process.pid] = name, partial(self._start, name, *arguments, **environment)

    def _start_surely(self, name: str, words: str, *arguments: str) -> None:
        """For what sometimes hangs right after it has forked its worker. words: what that one says then."""
        log = self._log / f"{name}.log"
        for _ in range(3):
            self._start(name, *arguments)
            deadline = time.monotonic() + STARTED_SECONDS
            while time.monotonic() < deadline:
                if words in log.read_text(errors="replace"):
                    return self._tell(f"{name} is up")
                time.sleep(0.2)
            (pid,) = [pid for pid, (its, _) in self._services.items() if its == name]
            os.killpg(pid, signal.SIGKILL)
            self._services.pop(pid)
            self._tell(f"{name} hangs, it is started again")
        raise SystemExit(f"{name} did not come up; see {log}")

    def _wait(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} did not come up in {WAIT_SECONDS:.0f} s; see {self._log}")
            time.sleep(0.2)
        self._tell(f"{what} is up")

    # --- the databases

    def _schemas(self) -> None:
        """Each service's tables, made by its own tool; what they come to is the same every time, so it is kept."""
        sql("create user cloud@'127.0.0.1' identified by 'throw-away'; grant all on *.* to cloud@'127.0.0.1'", check=True)
        keystone = [*UWSGI, "--http-socket", "127.0.0.1:5000", "--processes", "2", "--threads", "2"]
        keystone += ["--wsgi-file", "/usr/bin/keystone-wsgi-public"]
        if self._schema.exists():
            text = subprocess.run(["xz", "-dc", self._schema], check=True, capture_output=True).stdout
            sql(text.decode(), check=True)
            self._start("keystone", *keystone)
            self._tell("databases are back")
            return
        sql("".join(f"create database {name};" for name in DATABASES), check=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._migrate, MIGRATIONS.items()))
        self._tell("databases are made")
        self._start("keystone", *keystone)
        self._wait("keystone", lambda: answers(5000, "/v3"))
        self._fill("catalogue")
        dump = ["mariadb-dump", "--no-defaults", "-uroot", "-S/run/mysqld.sock", "--skip-comments", "--databases", *DATABASES]
        text = subprocess.run(dump, check=True, capture_output=True).stdout
        unfinished = self._schema.with_suffix(".partial")
        unfinished.write_bytes(subprocess.run(["xz", "-1"], input=text, check=True, capture_output=True).stdout)
        unfinished.replace(self._schema)

    def _migrate(self, migration: tuple[str, Sequence[Sequence[str]]]) -> None:
        name, commands = migration
        with (self._log / f"{name}-database.log").open("wb") as log:
            for arguments in commands:
                command(*arguments, output=log)

    def _fill(self, what: str, *arguments: str) -> None:
        command("/usr/bin/python3", str(HERE / "contents.py"), what, *arguments)
        self._tell(f"{what} is filled")

    # --- the services

    def _control_plane(self) -> None:
        self._wait("rabbitmq", lambda: listens(5672))
        placement = [*UWSGI, "--http-socket", "127.0.0.1:8778", "--processes", "1", "--threads", "1"]
        self._start("placement", *placement, "--wsgi-file", "/usr/bin/placement-api")
        self._start("glance", "glance-api", "--config-file", "/etc/glance/glance-api.conf")
        self._start("neutron", "neutron-server", *NEUTRON, "--config-file", "/etc/neutron/ml2.ini")
        for name in ("nova-scheduler", "nova-api"):
            self._start(name, name, *NOVA)
        self._start("libvirtd", "libvirtd", "-f", "/etc/libvirt/libvirtd.conf")
        self._start_surely("nova-conductor", "Starting conductor node", "nova-conductor", *NOVA)
        for name, port, path in APIS:
            self._wait(name, partial(answers, port, path))

    def _computes(self) -> None:
        self._wait("libvirt", lambda: command("virsh", "-c", "qemu:///system", "version", check=False) == 0)
        # before Debian's own, for its listings: see the program
        path = {"PATH": f"{HERE / 'bin'}:{os.environ['PATH']}"}
        for name, program in (("linuxbridge", "neutron-linuxbridge-agent"), ("dhcp", "neutron-dhcp-agent")):
            self._start(name, program, *NEUTRON, "--config-file", f"/etc/neutron/{name}_agent.ini", **path)
        self._start("metadata", "neutron-metadata-agent", *NEUTRON, "--config-file", "/etc/neutron/metadata_agent.ini")
        self._start("nova-compute", "nova-compute", *NOVA, "--config-file", "/etc/nova/libvirt.conf")
        fake = "--config-file", "/etc/nova/fake.conf"
        self._start("fake-compute", "/usr/bin/python3", str(HERE / "fake_compute.py"), *NOVA, *fake)
        self._start("fake-agent", "/usr/bin/python3", str(HERE / "fake_agent.py"), *NEUTRON)


NOVA_MANAGE = ("nova-manage", *NOVA)
MIGRATIONS: dict[str, list[tuple[str, ...]]] = {
    "keystone": [
        ("keystone-manage", "db_sync"),
        (
            *("keystone-manage", "bootstrap", "--bootstrap-password", "throw-away", "--bootstrap-region-id", "RegionOne"),
            *(f"--bootstrap-{kind}-url=http://127.0.0.1:5000/v3" for kind in ("public", "internal", "admin")),
        ),
    ],
    "nova": [
        (*NOVA_MANAGE, "api_db", "sync"),
        (*NOVA_MANAGE, "cell_v2", "map_cell0", "--database_connection", "mysql+pymysql://cloud:throw-away@127.0.0.1/nova_cell0"),
        (*NOVA_MANAGE, "db", "sync"),
        (*NOVA_MANAGE, "cell_v2", "create_cell", "--name", "cell1"),
    ],
    "neutron": [("neutron-db-manage", *NEUTRON, "--config-file", "/etc/neutron/ml2.ini", "upgrade", "heads")],
    "glance": [("glance-manage", "db_sync")],
    "placement": [("placement-manage", "db", "sync")],
}


def fingerprint() -> str:
    """What the databases' first contents depend on."""
    packages = [line for line in (HERE / "packages").read_text().splitlines() if not line.startswith("#")]
    versions = subprocess.run(["dpkg-query", "-W", *packages], check=True, capture_output=True).stdout
    return hashlib.sha256(versions + (HERE / "contents.py").read_bytes() + repr(MIGRATIONS).encode()).hexdigest()[:12]


def has_kvm() -> bool:
    """The device alone proves nothing: some have it who cannot run an ordinary kernel, as their processor is a virtual one."""
    return os.access("/dev/kvm", os.W_OK) and bool(re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()))


def keys(folder: Path) -> None:
    """What ``keystone-manage fernet_setup`` writes, without its four seconds."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("0", "1"):
        (folder / name).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
        (folder / name).chmod(0o600)


def command(*arguments: str, output: object = None, check: bool = True) -> int:
    quiet = subprocess.DEVNULL if not check else output
    return subprocess.run(arguments, check=check, stdin=subprocess.DEVNULL, stdout=quiet, stderr=quiet).returncode  # type: ignore


def sql(text: str, check: bool = False) -> bool:
    client = ["mariadb", "--no-defaults", "-uroot", "-S/run/mysqld.sock"]
    return subprocess.run(client, input=text.encode(), check=check, capture_output=not check).returncode == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int, path: str) -> bool:
    try:
        urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
    except HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def bury_until_ended(child: int) -> None:
    """The first process inherits orphans. libvirt, for one, waits for those that it has killed to be buried."""
    while os.wait()[0] != child:
        pass


if __name__ == "__main__":
    if child := os.fork():
        bury_until_ended(child)
    else:
        cloud = Cloud(Path(sys.argv[1]), Path(sys.argv[2]))
        cloud.up()
        cloud.watch()
