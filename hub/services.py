"""How JupyterHub starts our services, and what it lets them do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.utils import subdomain_hook_idna

from .configuration import CONFIG_VARIABLE, Hutch
from .service import HUB_VARIABLE

PORTAL, STEWARD = "portal", "steward"
# what a user's role needs beyond JupyterHub's own "self"
USER_SCOPES = frozenset({f"access:services!service={PORTAL}"})
STEWARD_ROLE = {
    "name": STEWARD,
    "description": "Takes servers back that the hub lost sight of, and from people what is no longer theirs",
    "scopes": ["list:users", "read:servers", "start:servers", "delete:servers", "users:shares"],
    "services": [STEWARD],
}


def portal(hutch: Hutch, config_file: Path) -> dict[str, Any]:
    """It has no scopes of its own and needs no role: it does a little with the token of the user who is signed in."""
    return _service(PORTAL, config_file) | {
        "url": f"http://127.0.0.1:{hutch.portal_port}",
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": ["read:users!user", "servers!user"],
    }


def steward(config_file: Path) -> dict[str, Any]:
    return _service(STEWARD, config_file)


def _service(name: str, config_file: Path) -> dict[str, Any]:
    """An entry for c.JupyterHub.services."""
    return {
        "name": name,
        "command": [sys.executable, "-m", f"hub.{name}"],
        "environment": {CONFIG_VARIABLE: str(config_file), HUB_VARIABLE: str(os.getpid())},
        "display": False,
    }


def portal_address(subdomain_host: str = "", base_url: str = "/") -> str:
    """Where browsers find the portal: a host of its own under domains per user, else a path of the hub's host."""
    path = f"{base_url.rstrip('/')}/services/{PORTAL}/"
    if not subdomain_host:
        return path
    hub = urlsplit(subdomain_host)
    port = f":{hub.port}" if hub.port else ""
    return f"{hub.scheme}://{subdomain_hook_idna(PORTAL, hub.hostname, kind='service')}{port}{path}"
