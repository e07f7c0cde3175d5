"""One instance, one owner, one notebook: launched, kept, restarted and stopped.

The owner is written down and never changes. The notebook's environment, which holds its token, lives in memory only: after a boot
the hub sends a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from . import wire
from .nurse import LaunchError, Notebook, Nurse, base_environment
from .upkeep import STOPPING_LIMIT_SECONDS, Upkeep

log = logging.getLogger("hutch.agent")

STARTING_LIMIT_SECONDS = 120.0
PAUSE_SECONDS = 0.02
LOG_TAIL_BYTES = 2000
ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# a running notebook is kept only if none of these changed
SAME_SERVER = ("JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_SERVICE_URL", "JUPYTERHUB_CLIENT_ID")
TLS = {"key", "certificate", "trusted", "address"}


class OtherOwnerError(Exception):
    """The instance belongs to somebody else."""


@dataclass(frozen=True)
class Order:
    """What the hub asks for: whose notebook, with which environment and arguments."""

    launch: str
    owner: str
    env: dict[str, str] = field(repr=False)
    args: list[str]
    port: int
    # under JupyterHub's internal_ssl: the notebook's key and certificate, whom it lets in, and the address that it is reached at
    tls: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, body: Any) -> Order:
        """Raises ValueError with a plain sentence."""
        if not isinstance(body, dict):
            raise ValueError("The body must be a JSON object.")
        launch, owner, env, args, port = (body.get(key) for key in ("launch", "owner", "env", "args", "port"))
        if not (isinstance(launch, str) and 0 < len(launch) <= 200):
            raise ValueError("'launch' must be a text of 1 to 200 characters.")
        if not (isinstance(owner, str) and ACCOUNT.fullmatch(owner)):
            raise ValueError("'owner' must be an account name.")
        if not (isinstance(env, dict) and all(VARIABLE.fullmatch(name) and _is_text(value) for name, value in env.items())):
            raise ValueError("'env' must map names of environment variables to texts.")
        if not env.get("JUPYTERHUB_API_TOKEN"):
            raise ValueError("'env' must hold JUPYTERHUB_API_TOKEN.")
        if not (isinstance(args, list) and all(_is_text(argument) for argument in args)):
            raise ValueError("'args' must be a list of texts.")
        if not (type(port) is int and 0 < port < 65536):
            raise ValueError("'port' must be a number from 1 to 65535.")
        tls = body.get("tls") or {}
        if tls and not (isinstance(tls, dict) and tls.keys() == TLS and all(map(_is_text, tls.values()))):
            raise ValueError(f"'tls' must hold the texts {', '.join(sorted(TLS))}.")
        if len(json.dumps([env, args, tls])) > wire.MAX_PACKET // 2:
            raise ValueError("'env', 'args' and 'tls' together must stay below 96 KiB.")
        return cls(launch, owner, env, args, port, tls)


class Launch:
    """The stages of one launch, as they happen; whoever comes late hears them from the beginning."""

    def __init__(self, identifier: str) -> None:
        self.identifier = identifier
        self.finished = False
        self._events: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._stage = "account"
        self._begun = self._stage_begun = time.monotonic()

    async def tell(self, stage: str, state: str, message: str, **more: Any) -> None:
        now = time.monotonic()
        if state == "started":
            self._stage, self._stage_begun = stage, now
        seconds = round(now - (self._begun if stage == "ready" else self._stage_begun), 3)
        async with self._news:
            self._events.append({"stage": stage, "state": state, "seconds": seconds, "message": message, **more})
            self.finished = stage == "ready" or state == "failed"
            self._news.notify_all()

    async def fail(self, message: str, detail: str = "") -> None:
        """In the stage that was begun last."""
        await self.tell(self._stage, "failed", message, detail=detail)

    @contextlib.asynccontextmanager
    async def stage(self, name: str, beginning: str, end: str) -> AsyncIterator[None]:
        await self.tell(name, "started", beginning)
        yield
        await self.tell(name, "done", end)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        told = 0
        while not (self.finished and told == len(self._events)):
            async with self._news:
                while told == len(self._events):
                    await self._news.wait()
            yield self._events[told]
            told += 1


class Session(Upkeep[Notebook]):
    """The owner's notebook and everything that happens to it."""

    what = "The notebook"

    def __init__(self, nurse: Nurse, state: Path, home: Path, address: str, create_account: bool) -> None:
        super().__init__(state / "notebook.log")
        self._nurse = nurse
        self._owner_file = state / "owner.json"
        self._home = home
        self._address = address
        self._create_account = create_account
        self._order: Order | None = None
        self._environment: dict[str, str] = {}
        self._account: str | None = None
        self._display: dict[str, str] = {}
        self._launch: Launch | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.owner: str | None = json.loads(self._owner_file.read_text())["owner"] if self._owner_file.exists() else None

    def accept(self, order: Order) -> Launch:
        """Begin a launch, or join the one that has this identifier; it goes on whether or not anybody listens."""
        if self.owner not in (None, order.owner):
            raise OtherOwnerError
        self._claim(order.owner)
        if self._launch and self._launch.identifier == order.launch:
            return self._launch
        launch = self._launch = Launch(order.launch)
        task = asyncio.create_task(self._run(launch, order))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return launch

    async def end(self) -> None:
        """Stop the notebook, or the launch of it, and forget its environment; the instance keeps its owner."""
        for task in [*self._tasks]:
            task.cancel()
        async with self._turn:
            await self.stop()
            self._order, self._environment, self._launch = None, {}, None

    async def report(self) -> dict[str, Any]:
        """What the notebook says of its kernels; nothing of it if it is too busy to answer."""
        answer = await self._process.ask({"do": "report"}) if self._process and self.state == "running" else None
        return answer or {}

    async def send_away(self, user: str) -> bool:
        """Closes what this user of the hub has open in the notebook; False if it is too busy to do so."""
        if self._process is None or self.state != "running":
            return True
        answer = await self._process.ask({"do": "send-away", "user": user})
        return bool(answer and answer.get("done"))

    def _claim(self, owner: str) -> None:
        if self.owner is None:
            partial = self._owner_file.with_suffix(".partial")
            partial.write_text(json.dumps({"owner": owner}))
            partial.replace(self._owner_file)
            self.owner = owner

    async def _run(self, launch: Launch, order: Order) -> None:
        try:
            async with self._turn:
                kept = await self._keep(launch, order)
                if not kept:
                    await self._begin(launch, order)
        except LaunchError as error:
            log.warning("Launch %s failed: %s", launch.identifier, error)
            await launch.fail(str(error), error.detail)
        except asyncio.CancelledError:
            await launch.fail("The launch was called off.")
            raise
        except Exception as error:
            log.exception("Launch %s failed", launch.identifier)
            await launch.fail("The agent met an error of its own.", repr(error))
        else:
            message = "Your notebook was still running and is yours again." if kept else "Your notebook answers."
            await launch.tell("ready", "done", message, kept=kept)

    async def _keep(self, launch: Launch, order: Order) -> bool:
        """Give the running notebook its new token, if it is the one that is asked for."""
        environment = self._environment_of(order)
        same = all(self._environment.get(name) == environment.get(name) for name in SAME_SERVER)
        # its own certificate stays good as long as the address and the authorities are the same
        held = self._order.tls if self._order else {}
        same = same and all(held.get(name) == order.tls.get(name) for name in ("address", "trusted"))
        if self._process is None or self.state != "running" or not same:
            return False
        answer = await self._process.ask({"do": "rekey", "environment": environment})
        if not (answer and answer.get("done")):
            return False
        self._order, self._environment = replace(order, tls=held), environment
        await launch.tell("notebook", "done", "The running notebook has its new token.")
        return True

    async def _begin(self, launch: Launch, order: Order) -> None:
        await self.stop()
        self.state, self._order = "starting", order
        try:
            async with launch.stage("account", "Preparing your account and home folder.", "Your account and home are ready."):
                self._account = await self._nurse.settle_account(self._create_account, order.owner, self._home)
                self._environment = self._environment_of(order)
            async with launch.stage("environment", "Preparing the environment of your notebook.", "The environment is ready."):
                notebook = await self._bear()
            async with launch.stage("notebook", "Starting JupyterLab.", "JupyterLab answers."):
                await self._until_answers(notebook)
        except BaseException:
            await self.stop()
            self.state = "dead"
            raise
        self._watch_over(notebook)

    async def _start(self) -> Notebook:
        notebook = await self._bear()
        try:
            await self._until_answers(notebook)
        except BaseException:
            await notebook.end(STOPPING_LIMIT_SECONDS)
            raise
        return notebook

    async def _bear(self) -> Notebook:
        assert self._order is not None
        self.trim_log()
        request = {
            "account": self._account,
            "home": str(self._home),
            "environment": self._environment,
            "arguments": self._order.args,
            "tls": self._order.tls,
        }
        self._process = await self._nurse.bear(request, self._log_path)
        return self._process

    async def _until_answers(self, notebook: Notebook) -> None:
        """Wait for the first answer of the notebook's own API, as the hub itself will do."""
        url = api_url(self._environment)
        answers = _shakes_hands if url.startswith("https:") else _responds
        limit = time.monotonic() + STARTING_LIMIT_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:
            while time.monotonic() < limit:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    if await answers(client, url):
                        return
                if (await asyncio.wait({notebook.ended}, timeout=PAUSE_SECONDS))[0]:
                    raise LaunchError("JupyterLab ended while it was starting.", self._log_tail())
        raise LaunchError(f"JupyterLab did not answer within {STARTING_LIMIT_SECONDS:.0f} seconds.", self._log_tail())

    def person(self) -> tuple[str | None, dict[str, str]]:
        """The owner's account, None for our own, and what a login sets for it: no secret of the notebook's."""
        if not self._environment:
            raise LaunchError("This instance has not been launched for anybody yet, so there is no desktop to show.")
        return self._account, self._login()

    async def show_on(self, display: dict[str, str]) -> None:
        """What is started in the notebook from now on appears on this display."""
        self._display = display
        self._environment |= display
        if self._process and self.state == "running":
            await self._process.ask({"do": "rekey", "environment": display})

    def _login(self) -> dict[str, str]:
        user = self._account or getpass.getuser()
        return {**base_environment(self._home), "USER": user, "LOGNAME": user}

    def _environment_of(self, order: Order) -> dict[str, str]:
        prefix = order.env.get("JUPYTERHUB_SERVICE_PREFIX", "/")
        listens = {"JUPYTERHUB_SERVICE_URL": f"http://{self._address}:{order.port}{prefix}"}
        return {**self._login(), **listens, **self._display, **order.env}

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        return ""


def api_url(environment: dict[str, str]) -> str:
    """Where the notebook's own API answers: it listens where JUPYTERHUB_SERVICE_URL says."""
    service = urlsplit(environment["JUPYTERHUB_SERVICE_URL"])
    host = "127.0.0.1" if service.hostname in (None, "0.0.0.0") else service.hostname  # noqa: S104 (compared, not bound)
    return f"{service.scheme}://{host}:{service.port or 80}{environment.get('JUPYTERHUB_SERVICE_PREFIX', '/')}api"


async def _responds(client: aiohttp.ClientSession, url: str) -> bool:
    async with client.get(url, allow_redirects=False) as response:
        return response.status < 500


async def _shakes_hands(client: aiohttp.ClientSession, url: str) -> bool:
    """It lets in the hub and its proxy only: to be turned away by it is its answer."""
    try:
        async with client.get(url, ssl=False):
            return True
    except aiohttp.ClientConnectorError as error:
        return isinstance(error, aiohttp.ClientSSLError)
    except aiohttp.ClientError:
        return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value
