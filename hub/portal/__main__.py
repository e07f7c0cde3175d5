"""Starts the portal as JupyterHub's managed service, and ends it with the hub that started it."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import uvicorn

from ..configuration import load
from ..service import begin
from .app import create_app


def main() -> None:
    begin()
    hutch = load()
    where = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", f"http://127.0.0.1:{hutch.portal_port}"))
    uvicorn.run(
        create_app(hutch),
        host=where.hostname or "127.0.0.1",
        port=where.port or hutch.portal_port,
        log_level="warning",
        access_log=False,
        # open event streams do not hold up the end
        timeout_graceful_shutdown=1,
        # JupyterHub's proxy is the only one that connects
        forwarded_allow_ips="127.0.0.1",
        server_header=False,
    )


main()
