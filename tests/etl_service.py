"""`hutch etl serve` as a process, with certificates of its own, a database, and sources that a test writes."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from certipy import Certipy
from databases import database_url, upgrade
from running_hub import REPOSITORY, free_port, until
from sqlalchemy import select

from hub.database.engine import open_database
from hub.database.tables import Base, EtlRun


class EtlService:
    def __init__(self, folder: Path, config: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"https://127.0.0.1:{self.port}"
        self.sources = folder / "sources"
        self.sources.mkdir(parents=True)
        self.log = folder / "log"
        self.certificates = Certipy(store_dir=str(folder / "certificates"))
        self.certificates.create_ca("authority")
        self.strangers = Certipy(store_dir=str(folder / "strangers"))
        self.strangers.create_ca("elsewhere")
        server = self.certificate("server", alt_names=["IP:127.0.0.1"])
        (folder / "server.pem").write_bytes(Path(server[0]).read_bytes() + Path(server[1]).read_bytes())
        url = database_url(folder)
        self.engine = open_database(url)
        upgrade(self.engine)
        lines = [
            f"c.Hutch.database_url = {url!r}",
            f"c.Hutch.etl_url = {self.address!r}",
            "c.Hutch.etl_certificate = 'server.pem'",
            "c.Hutch.etl_client_ca = 'certificates/authority/authority.crt'",
            "c.Hutch.push_limit_mb = 1",
            config,
        ]
        (folder / "jupyterhub_config.py").write_text("\n".join(lines))

    def certificate(self, name: str, **options: Any) -> tuple[str, str]:
        """Of the authority that is trusted: files of the certificate and its key."""
        files = self.certificates.create_signed_pair(name, "authority", **options)["files"]
        return files["cert"], files["key"]

    def stranger(self, name: str) -> tuple[str, str]:
        """The same name, from an authority that nobody trusts."""
        files = self.strangers.create_signed_pair(name, "elsewhere")["files"]
        return files["cert"], files["key"]

    def source(self, name: str, text: str = 'adapter = "push"') -> str:
        (self.sources / f"{name}.toml").write_text(text)
        return name

    def hutch(self, *words: str) -> str:
        done = subprocess.run(self._command(*words), env=self._environment(), capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def client(self, certificate: tuple[str, str] | None = None, token: str = "") -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.folder / "certificates/authority/authority.crt"))
        if certificate:
            context.load_cert_chain(*certificate)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.address, verify=context, headers=headers, timeout=30)

    def rows(self, name: str) -> list[dict[str, Any]]:
        table = Base.metadata.tables[name]
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]

    def runs(self, source: str) -> list[dict[str, Any]]:
        return [row for row in self.rows(EtlRun.__tablename__) if row["source"] == source]

    def team(self, experiment: str) -> dict[str, str]:
        """{user id: role} of those who are members now."""
        return {
            row["user_id"]: row["role"]
            for row in self.rows("experiment_member")
            if row["experiment_id"] == experiment and not row["ended_at"]
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.log.open("ab") as log:
            self.process = process = subprocess.Popen(
                self._command("etl", "serve"), env=self._environment(), stdout=log, stderr=log
            )
        try:
            until(lambda: process.poll() is not None or self._answers(), "it answers")
            assert process.poll() is None, self.log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(30)

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return self.get("/health").status_code == 200
        return False

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hutch", "--config", str(self.folder / "jupyterhub_config.py"), *words]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY)}
