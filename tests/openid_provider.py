"""A real OpenID provider (npm `oidc-provider`) as a process, which tests change as its operators and users would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
from running_hub import free_port, until

SCRIPT = Path(__file__).parent / "oidc/provider.mjs"
# the one that tools/setup installs where Debian's is too old, else any
NODE = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node") or "node"
CLIENT, SECRET = "hutch", "a secret of the tests, long enough for any"


class OpenIDProcess:
    """At http://<host>:<port>; `host` is a loopback address of its own, because cookies know no ports.

    accounts: {id: claims}. People sign on with the id and any password; the id is their `sub`.
    """

    def __init__(self, folder: Path, host: str, accounts: dict[str, dict[str, Any]], lifetime_seconds: int = 3600) -> None:
        self.host, self.port, self.log_file = host, free_port(), folder / f"provider-{host}.log"
        self.settings: dict[str, Any] = {
            "host": host,
            "port": self.port,
            "accounts": accounts,
            "lifetimeSeconds": lifetime_seconds,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def issuer(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self, hub: int | str, *names: str) -> None:
        """Knowing the hub (its port on this machine, or its address) as a client, which calls this provider by these names."""
        back = f"http://localhost:{hub}/hub/" if isinstance(hub, int) else f"{hub}/hub/"
        client = {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "redirect_uris": [f"{back}sign-on/{name}/callback" for name in names],
            "post_logout_redirect_uris": [f"{back}login"],
            "backchannel_logout_uri": f"{back}sign-on/{names[0]}/logout",
            "grant_types": ["authorization_code", "refresh_token"],
        }
        command = [NODE, str(SCRIPT), json.dumps({**self.settings, "clients": [client]})]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "NO_COLOR": "1"})
        until(self._answers, f"the provider answers; see {self.log_file}")

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, self.log_file.read_text()
        try:
            return requests.get(f"{self.issuer}/.well-known/openid-configuration", timeout=5).ok
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        if self.process:
            # a stopped process does not end
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def events(self, event: str) -> list[dict[str, Any]]:
        """What it has granted or refused, oldest first."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def refreshes(self) -> int:
        return len([grant for grant in self.events("grant") if grant["type"] == "refresh_token"])

    def set_account(self, subject: str, **claims: Any) -> None:
        """As the account is from now on; without claims it is gone."""
        self._do("account", {"id": subject, "claims": claims or None})

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A token of any claims. Header `stranger`: signed with a key that is not the provider's; alg "none": not at all."""
        return self._do("sign", {"claims": claims, "header": header})

    def _do(self, action: str, body: dict[str, Any]) -> Any:
        answer = requests.post(f"{self.issuer}/test/{action}", json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()
