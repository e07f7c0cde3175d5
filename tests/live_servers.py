"""Real servers as processes of a test run: PostgreSQL, MariaDB and RabbitMQ from Debian's packages, each in a folder of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pymysql
import pytest
from running_hub import PATIENCE_SECONDS, free_port

STOP_SECONDS = 30


# which of Debian's packages has a program, where it is called otherwise
PACKAGES = {
    "initdb": "postgresql",
    "postgres": "postgresql",
    "mariadb-install-db": "mariadb-server",
    "mariadbd": "mariadb-server",
    "setpriv": "util-linux",
    "nginx": "nginx-light",
}


def program(name: str, *folders: str) -> str:
    """Its path; the test is skipped where it is not installed (which is a failure in CI)."""
    found = shutil.which(name, path=os.pathsep.join([*folders, "/usr/sbin", "/usr/bin", "/usr/local/bin"]))
    if found is None:
        pytest.skip(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return found


def _ordinary_user() -> str | None:
    """PostgreSQL and MariaDB do not run as root: the account that they run as then; None where we are somebody else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "mysql", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("there is no account to run a database as")


@contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    """Short, because paths of sockets are; outside pytest's own folders, which only root may enter when root runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="hutch-live-"))
    try:
        if user:
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as(user: str | None, *command: str) -> list[str]:
    if user is None:
        return list(command)
    return [program("setpriv"), f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups", *command]


@contextmanager
def _running(
    command: list[str], log: Path, answers: Callable[[], object], environment: dict[str, str] | None = None
) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert process.poll() is None, f"{command[-1]} ended:\n{log.read_text(errors='replace')[-3000:]}"
            assert time.monotonic() < deadline, f"it did not answer in time:\n{log.read_text(errors='replace')[-3000:]}"
            with suppress(Exception):
                answers()
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        process.wait()


@dataclass(frozen=True)
class PostgreSQL:
    """One server; `new_database()` gives an empty database as an SQLAlchemy URL."""

    port: int
    data: Path = Path()
    run: Callable[[], None] = lambda: None

    def kill(self) -> None:
        """As a crash: its own processes end when they see that the first one is gone."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # a new one refuses while the old one is still known

    def start_again(self) -> None:
        """It refuses as long as a process of the one before is left."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.run()
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def new_database(self, name: str = "", template: str = "template0") -> str:
        name = name or f"d{secrets.token_hex(6)}"
        with psycopg.connect(self._dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE \"{name}\" TEMPLATE \"{template}\" ENCODING 'UTF8' LOCALE 'C.UTF-8'")
        return f"postgresql+psycopg://hutch@127.0.0.1:{self.port}/{name}"

    def drop_database(self, url: str) -> None:
        with psycopg.connect(self._dsn(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{url.rsplit("/", 1)[1]}" WITH (FORCE)')

    def _dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=hutch dbname=postgres"


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator[PostgreSQL]:
    """A PostgreSQL that trusts whoever connects from this machine, for as long as the block runs.

    It does not wait for the disk, unless it is to be `durable` as one in production is.
    """
    homes = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    initdb, postgres = program("initdb", *homes), program("postgres", *homes)
    user = _ordinary_user()
    with _folder(user) as folder:
        data, port = folder / "data", free_port()
        made = [initdb, "-D", str(data), "-U", "hutch", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(_as(user, *made), check=True, capture_output=True, cwd=folder)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "on" if durable else "off",
            "max_connections": 200,
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        command = _as(user, postgres, "-D", str(data), *settings)
        with ExitStack() as runs:

            def run() -> None:
                runs.enter_context(_running(command, folder / "log", lambda: psycopg.connect(server._dsn()).close()))

            server = PostgreSQL(port, data, run)
            run()
            yield server


@dataclass(frozen=True)
class MariaDB:
    """One server; `new_database()` gives an empty database as an SQLAlchemy URL. sql_mode is empty, as ISPyB's schema wants it."""

    port: int

    def new_database(self, name: str = "", charset: str = "utf8mb4") -> str:
        name = name or f"d{secrets.token_hex(6)}"
        with pymysql.connect(host="127.0.0.1", port=self.port, user="hutch") as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET {charset}")
        return f"mysql+pymysql://hutch@127.0.0.1:{self.port}/{name}"


@contextmanager
def mariadb() -> Iterator[MariaDB]:
    install, mariadbd = program("mariadb-install-db"), program("mariadbd")
    user = _ordinary_user()
    with _folder(user) as folder:
        data, server = folder / "data", MariaDB(free_port())
        account = [f"--user={user}"] if user else []
        made = ["--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db", *account]
        subprocess.run([install, *made], check=True, capture_output=True, cwd=folder)
        # one statement a line
        account_made = "CREATE USER hutch@'127.0.0.1';\nGRANT ALL ON *.* TO hutch@'127.0.0.1' WITH GRANT OPTION;\n"
        (folder / "init.sql").write_text(account_made)
        (folder / "init.sql").chmod(0o644)
        options = {
            "datadir": data,
            "port": server.port,
            "bind-address": "127.0.0.1",
            "socket": folder / "socket",
            "pid-file": folder / "pid",
            "init-file": folder / "init.sql",
            "sql-mode": "",
            "log-bin-trust-function-creators": 1,
            "innodb-flush-log-at-trx-commit": 0,
        }
        settings = [f"--{key}={value}" for key, value in options.items()]
        command = [mariadbd, "--no-defaults", "--skip-name-resolve", *settings, *account]

        def answers() -> None:
            pymysql.connect(host="127.0.0.1", port=server.port, user="hutch").close()

        with _running(command, folder / "log", answers):
            yield server


@contextmanager
def rabbitmq() -> Iterator[str]:
    """Gives the URL of a broker."""
    server = program("rabbitmq-server", "/usr/lib/rabbitmq/bin")
    with _folder(None) as folder:
        port = free_port()
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n")
        environment = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "hutch-test@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": str(folder),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }

        def answers() -> None:
            with socket.create_connection(("127.0.0.1", port), 2) as connection:
                # the server's own greeting: it hangs up at a protocol that it does not know, and says which it speaks
                connection.sendall(b"HELLO???")
                assert connection.recv(8).startswith(b"AMQP")

        try:
            with _running([server], folder / "log", answers, environment):
                yield f"amqp://guest:guest@127.0.0.1:{port}/"
        finally:
            # Erlang leaves its name server behind
            epmd = shutil.which("epmd", path="/usr/lib/erlang/bin:/usr/bin")
            if epmd:
                subprocess.run([epmd, "-kill"], env={**os.environ, **environment}, capture_output=True)
