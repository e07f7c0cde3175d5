"""The files of `deploy/` as a site runs them, on this machine: nginx, the proxy by its unit's command, hub, database, sign-on.

Only names, folders and ports are replaced; each replacement must find what it replaces, so that a file that changes is noticed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import live_servers
import requests
from facility_hub import EXAMPLE
from openid_provider import SECRET, OpenIDProcess
from running_hub import REPOSITORY, free_port, until

from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.database.engine import open_database, upgrade
from spawner.devcloud.process import DevcloudProcess, running

HOST = "hutch.localhost"
DEPLOY = REPOSITORY / "deploy"


def rendered(file: Path, replacements: dict[str, str]) -> str:
    text = file.read_text()
    for old, new in replacements.items():
        assert old in text, f"{file} no longer has {old!r}"
        text = text.replace(old, new)
    return text


def command_of(unit: Path) -> str:
    """The shell's part of `ExecStart=/bin/sh -c '...'`."""
    _, line = unit.read_text().replace("\\\n", "").split("ExecStart=/bin/sh -c '", 1)
    return line.split("'\n", 1)[0].replace("$$", "$")


class Production:
    def __init__(self, folder: Path, devcloud: DevcloudProcess, postgresql: live_servers.PostgreSQL) -> None:
        self.folder, self.etc = folder, folder / "etc"
        names = ("https", "http", "proxy", "proxy_api", "proxy_metrics", "hub", "portal", "desktop")
        self.ports = {name: free_port() for name in names}
        self.address = f"https://{HOST}:{self.ports['https']}"
        self.databases = {name: postgresql.new_database() for name in ("hutch", "hutch_jupyterhub")}
        self.provider = OpenIDProcess(folder, "127.0.0.9", {})
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (self.etc / "tls").mkdir(parents=True)
        (folder / "state").mkdir(mode=0o700)
        for name, text in {"proxy-token": secrets.token_hex(32), "oidc-secret": SECRET}.items():
            (self.etc / name).write_text(text)
            (self.etc / name).chmod(0o600)
        shutil.copy(devcloud.clouds_yaml, self.etc / "clouds.yaml")
        self._write_config()
        self._write_nginx()
        engine = open_database(self.databases["hutch"])
        upgrade(engine)
        run(engine, Source(name="example"), Files(folder=EXAMPLE), allow_removals=True)
        engine.dispose()

    def _write_config(self) -> None:
        of_site = {
            "/etc/hutch/": f"{self.etc}/",
            "/var/lib/hutch": str(self.folder / "state"),
            '"postgresql:///hutch_jupyterhub"': repr(self.databases["hutch_jupyterhub"]),
            '"postgresql:///hutch"': repr(self.databases["hutch"]),
            "https://hutch.facility.example": self.address,
            "https://sso.facility.example/realms/users": self.provider.issuer,
            "http://127.0.0.1:8000": f"http://127.0.0.1:{self.ports['proxy']}",
            '"0.0.0.0"': '"127.0.0.1"',
            "10.20.0.5": "127.0.0.1",
            'cloud_name = "facility"': 'cloud_name = "devcloud"',
            'network = "hutch-instances"': 'network = "hutch"',
            "hub.install(": f"""c.JupyterHub.hub_port = {self.ports["hub"]}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{self.ports["proxy_api"]}"
c.Hutch.portal_port = {self.ports["portal"]}
c.Hutch.desktop_port = {self.ports["desktop"]}
c.Hutch.smtp_url = ""
c.JupyterHub.log_level = "DEBUG"
hub.install(""",
        }
        (self.etc / "jupyterhub_config.py").write_text(rendered(DEPLOY / "jupyterhub_config.py", of_site))

    def _write_nginx(self) -> None:
        names = f"DNS:{HOST},DNS:*.{HOST}"
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        made += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName={names}"]
        made += ["-keyout", str(self.etc / "tls/privkey.pem"), "-out", str(self.etc / "tls/fullchain.pem")]
        subprocess.run(made, check=True, capture_output=True)
        of_site = {
            "listen 80;": f"listen 127.0.0.1:{self.ports['http']};",
            "listen 443 ssl": f"listen 127.0.0.1:{self.ports['https']} ssl",
            "    listen [::]:80;\n": "",
            "    listen [::]:443 ssl http2;\n": "",
            "hutch.facility.example": HOST,
            "/etc/ssl/hutch/": f"{self.etc}/tls/",
            "http://127.0.0.1:8000": f"http://127.0.0.1:{self.ports['proxy']}",
        }
        site = rendered(DEPLOY / "nginx.conf", of_site)
        temporary = "".join(
            f"{name}_temp_path {self.folder}/nginx-{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = f"daemon off; pid {self.folder}/nginx.pid; error_log stderr info; {'user root;' if os.geteuid() == 0 else ''}\n"
        (self.folder / "nginx.conf").write_text(
            f"{main}events {{}}\nhttp {{\naccess_log {self.folder}/access.log;\n{temporary}{site}}}\n"
        )

    # --- its processes

    def _start(self, name: str, command: list[str], **environment: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
                start_new_session=True,
            )

    def start_nginx(self) -> None:
        nginx = live_servers.program("nginx")
        self._start("nginx", [nginx, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", "stderr"])

    def start_proxy(self) -> None:
        replacements = {
            "/opt/hutch/current": str(REPOSITORY),
            "--port 8000": f"--port {self.ports['proxy']}",
            "--api-port 8001": f"--api-port {self.ports['proxy_api']}",
            "--metrics-port 8002": f"--metrics-port {self.ports['proxy_metrics']}",
            "http://127.0.0.1:8081": f"http://127.0.0.1:{self.ports['hub']}",
        }
        command = command_of(DEPLOY / "systemd/hutch-proxy.service")
        for old, new in replacements.items():
            assert old in command
            command = command.replace(old, new)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._start("proxy", ["/bin/sh", "-c", command], CREDENTIALS_DIRECTORY=str(self.etc), PATH=path)

    def start_hub(self) -> None:
        config = str(self.etc / "jupyterhub_config.py")
        self._start("hub", [sys.executable, "-m", "jupyterhub", "--config", config], HUTCH_CONFIG=config)
        until(self._answers, f"hub and portal answer through nginx; see the logs in {self.folder}")

    def stop_hub(self) -> None:
        """As `systemctl stop` does with KillMode=mixed."""
        process = self.processes.pop("hub")
        process.terminate()
        process.wait(timeout=30)

    def get(self, path: str, host: str = HOST, **options: object) -> requests.Response:
        headers = {"Host": f"{host}:{self.ports['https']}"}
        url = f"https://127.0.0.1:{self.ports['https']}{path}"
        return requests.get(url, headers=headers, verify=False, timeout=10, **options)  # noqa: S501

    def _answers(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-3000:]}"
        try:
            portal = self.get("/services/portal/", f"portal--service.{HOST}", allow_redirects=False)
            return self.get("/hub/health").status_code == 200 and portal.status_code < 400
        except requests.ConnectionError:
            return False

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.provider.stop()


@contextmanager
def production(folder: Path, postgresql: live_servers.PostgreSQL) -> Iterator[Production]:
    with running(folder / "devcloud", payload="agent") as devcloud:
        site = Production(folder / "site", devcloud, postgresql)
        try:
            site.provider.start(site.address, "facility")
            site.start_proxy()
            site.start_nginx()
            site.start_hub()
            yield site
        finally:
            site.stop()
