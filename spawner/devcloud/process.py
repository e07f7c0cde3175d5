"""Start a devcloud from Python, for tests and for the demo, and stop it again.

with running(tmp_path, payload="stub") as devcloud:
    cloud = openstack.connect(config=..., cloud="devcloud")   # or devcloud.connect()
    devcloud.fault(method="POST", path="/servers$", action="drop-after")
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]


class DevcloudProcess:
    """A devcloud in a process of its own. `arguments` go to the command line as they are."""

    def __init__(self, state_dir: Path, *arguments: str, payload: str = "agent", port: int = 0) -> None:
        self.state_dir = state_dir
        self.url = ""
        self._command = [
            sys.executable,
            "-m",
            "spawner.devcloud",
            "--state",
            str(state_dir),
            "--port",
            str(port),
            "--payload",
            payload,
        ]
        self._command += arguments
        self._process: subprocess.Popen[str] | None = None

    @property
    def clouds_yaml(self) -> Path:
        return self.state_dir / "clouds.yaml"

    @property
    def pid(self) -> int:
        assert self._process is not None, "devcloud is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What devcloud has said on stderr."""
        path = self.state_dir / "devcloud.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> "DevcloudProcess":
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with (self.state_dir / "devcloud.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=CHECKOUT,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready.startswith("devcloud ready"):
            self._process.wait()
            raise RuntimeError(f"devcloud did not start:\n{self.log}")
        self.url = ready.partition("keystone ")[2].partition("/identity")[0]
        # The same port again after a restart, so that clouds.yaml and every session stay good.
        place = self._command.index("--port") + 1
        self._command[place] = self.url.rpartition(":")[2]
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it: by default in order, with its servers; with SIGKILL as a crash."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)
        self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def connect(self, cloud: str = "devcloud", **options: Any) -> Any:
        """An openstacksdk connection that reads this devcloud's clouds.yaml and no other."""
        import openstack
        from openstack.config import OpenStackConfig

        config = OpenStackConfig(config_files=[str(self.clouds_yaml)], secure_files=[], vendor_files=[], load_envvars=False)
        return openstack.connection.Connection(config=config.get_one(cloud, **options))

    # The control API, see ``control``

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call /devcloud/... and return what it answers; an error raises with devcloud's own words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/devcloud{path}", data, {"Content-Type": "application/json"}, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"{method} /devcloud{path}: {error.code} {error.read().decode()}") from error
        return json.loads(text) if text else None

    def fault(self, **fault: Any) -> None:
        self.control("POST", "/faults", fault)

    def clear_faults(self) -> None:
        self.control("DELETE", "/faults")

    def latency(self, seconds: float) -> None:
        self.control("POST", "/latency", {"seconds": seconds})

    def calls(self) -> dict[str, Any]:
        return dict(self.control("GET", "/calls"))

    def clear_calls(self) -> None:
        self.control("DELETE", "/calls")

    def quota(self, **limits: int) -> None:
        self.control("POST", "/quota", limits)

    def host(self, **sizes: int) -> None:
        self.control("POST", "/host", sizes)

    def next_boot(self, **behaviour: Any) -> None:
        self.control("POST", "/next-boot", behaviour)

    def reset(self) -> None:
        """As new: no server, no port, no security group, no fault, the quotas of the first start."""
        self.control("POST", "/reset")

    def trouble(self, server_id: str, verb: str, **more: Any) -> None:
        """power-off, crash, mute, wrong-certificate, error, forget or console."""
        self.control("POST", f"/servers/{server_id}/{verb}", more or None)


@contextlib.contextmanager
def running(state_dir: Path, *arguments: str, payload: str = "agent", port: int = 0) -> Iterator[DevcloudProcess]:
    """A devcloud for the length of a block."""
    process = DevcloudProcess(state_dir, *arguments, payload=payload, port=port).start()
    try:
        yield process
    finally:
        process.stop()
