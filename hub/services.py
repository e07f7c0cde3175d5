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
USER_SCOPES = frozenset({f"access:services!service={PORTAL}", "shares!user"})
STEWARD_ROLE = {
    "name": STEWARD,
    "description": "Takes servers back that the hub lost sight of, and from people what is no longer theirs",
    "scopes": ["list:users", "read:servers", "start:servers", "delete:servers", "users:shares"],
    "services": [STEWARD],
}


# where browsers find the portal, and the relays in their order; a path where they are on the hub's own host
PORTAL_VARIABLE, RELAYS_VARIABLE = "HUTCH_PORTAL", "HUTCH_DESKTOP_RELAYS"


def portal(hutch: Hutch, config_file: Path) -> dict[str, Any]:
    """It has no scopes of its own and needs no role: it does a little with the token of the user who is signed in."""
    return service(PORTAL, config_file) | {
        "url": f"http://127.0.0.1:{hutch.portal_port}",
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": ["read:users!user", "servers!user", "shares!user"],
    }


def relays(hutch: Hutch, config_file: Path) -> list[dict[str, Any]]:
    """They carry desktops; who may come in, they ask the records. Of JupyterHub they need where an instance is."""
    return [
        service(name, config_file, "desktop", str(number)) | {"url": f"http://127.0.0.1:{hutch.desktop_port + number}"}
        for number, name in enumerate(_relay_names(hutch))
    ]


def relay_role(hutch: Hutch) -> dict[str, Any]:
    return {
        "name": "desktop",
        "description": "Finds instances for those who open their desktops, and notes that they work there",
        "scopes": ["read:servers", "admin:server_state", "users:activity"],
        "services": _relay_names(hutch),
    }


def _relay_names(hutch: Hutch) -> list[str]:
    return [f"desktop-{number}" for number in range(hutch.desktop_relays)]


def service(name: str, config_file: Path, module: str = "", *arguments: str) -> dict[str, Any]:
    """An entry for c.JupyterHub.services."""
    return {
        "name": name,
        "command": [sys.executable, "-m", f"hub.{module or name}", *arguments],
        "environment": {CONFIG_VARIABLE: str(config_file), HUB_VARIABLE: str(os.getpid())},
        "display": False,
    }


def addresses(hutch: Hutch, subdomain_host: str = "", base_url: str = "/") -> dict[str, str]:
    """What portal and relays are told of where browsers find each other."""
    relays = " ".join(_address(name, subdomain_host, base_url) for name in _relay_names(hutch))
    return {PORTAL_VARIABLE: portal_address(subdomain_host, base_url), RELAYS_VARIABLE: relays}


def portal_address(subdomain_host: str = "", base_url: str = "/") -> str:
    return _address(PORTAL, subdomain_host, base_url)


def _address(name: str, subdomain_host: str, base_url: str) -> str:
    """Where browsers find a service: a host of its own under domains per user, else a path of the hub's host."""
    path = f"{base_url.rstrip('/')}/services/{name}/"
    if not subdomain_host:
        return path
    hub = urlsplit(subdomain_host)
    port = f":{hub.port}" if hub.port else ""
    return f"{hub.scheme}://{subdomain_hook_idna(name, hub.hostname, kind='service')}{port}{path}"
