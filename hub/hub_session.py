"""How a service of ours asks JupyterHub: at the address and with the token that it was started with."""

from __future__ import annotations

import os

import aiohttp
from jupyterhub.utils import make_ssl_context


def hub_session(timeout_seconds: float) -> aiohttp.ClientSession:
    """Of JupyterHub's REST API, whose paths are relative to it. Make it inside a running event loop, and close it."""
    headers = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    base = os.environ["JUPYTERHUB_API_URL"].rstrip("/") + "/"
    # under internal_ssl, JupyterHub gives its services certificates
    tls = make_ssl_context(*(os.environ.get(f"JUPYTERHUB_SSL_{name}", "") for name in ("KEYFILE", "CERTFILE", "CLIENT_CA")))
    # no limit: who watches a launch holds a connection for as long
    timeout, connector = aiohttp.ClientTimeout(total=timeout_seconds), aiohttp.TCPConnector(ssl=tls or True, limit=0)
    # what the hub would set for one person is not sent for another
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(base, headers=headers, timeout=timeout, connector=connector, cookie_jar=jar)
