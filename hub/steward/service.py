"""How JupyterHub starts the steward and what it lets it do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..configuration import CONFIG_VARIABLE

NAME = "steward"
ROLE = {
    "name": NAME,
    "description": "Takes servers back that the hub lost sight of, and from people what is no longer theirs",
    "scopes": ["list:users", "read:servers", "start:servers", "delete:servers", "users:shares"],
    "services": [NAME],
}


def service(config_file: Path) -> dict[str, Any]:
    """An entry for c.JupyterHub.services."""
    return {
        "name": NAME,
        "command": [sys.executable, "-m", "hub.steward"],
        "environment": {CONFIG_VARIABLE: str(config_file)},
        "display": False,
    }
