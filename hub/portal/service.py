"""How JupyterHub starts the portal and what it lets the portal do: nothing by itself, and a little with each user's own token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.utils import subdomain_hook_idna

from ..configuration import CONFIG_VARIABLE, Hutch

NAME = "portal"

# what a user's role needs beyond JupyterHub's own "self": c.JupyterHub.extra_user_scopes |= USER_SCOPES
USER_SCOPES = frozenset({f"access:services!service={NAME}"})

# what the portal may do as the user who is signed in
TOKEN_SCOPES = ("read:users!user", "servers!user")


def service(hutch: Hutch, config_file: Path) -> dict[str, Any]:
    """An entry for c.JupyterHub.services. The service itself has no scopes and needs no role."""
    return {
        "name": NAME,
        "url": f"http://127.0.0.1:{hutch.portal_port}",
        "command": [sys.executable, "-m", "hub.portal"],
        "environment": {CONFIG_VARIABLE: str(config_file)},
        "display": False,
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": list(TOKEN_SCOPES),
    }


def address(subdomain_host: str = "", base_url: str = "/") -> str:
    """Where browsers find the portal: a host of its own under domains per user, else a path of the hub's host."""
    path = f"{base_url.rstrip('/')}/services/{NAME}/"
    if not subdomain_host:
        return path
    hub = urlsplit(subdomain_host)
    port = f":{hub.port}" if hub.port else ""
    return f"{hub.scheme}://{subdomain_hook_idna(NAME, hub.hostname, kind='service')}{port}{path}"
