"""What is asked of OpenStack, as pure functions: each returns the JSON body of one API call.

Nothing in them is secret or personal: a server carries an opaque instance id and the id of the deployment, no name of a person.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import yaml

# ref: https://docs.openstack.org/nova/latest/reference/api-microversion-history.html
# 2.52 tags at creation, 2.54 user_data at rebuild, 2.79 is what the oldest supported release (Train) offers
NOVA_MICROVERSION = "2.79"

DEPLOYMENT_KEY = "hutch-deployment"
INSTANCE_KEY = "hutch-instance"
AGENT_FILE = "/etc/hutch/agent.json"


def deployment_tag(deployment_id: str) -> str:
    """The tag by which the cloud filters our servers in one listing."""
    return f"hutch-{deployment_id}"


def mark(deployment_id: str, of: str) -> str:
    """The description of what has neither tags nor metadata at its creation. of: the instance, or the name of a group."""
    return f"{deployment_tag(deployment_id)} {of}"


def marked(text: str | None, deployment_id: str) -> str | None:
    """What a description of ours is of; None for any other text."""
    tag, _, of = (text or "").partition(" ")
    return of if tag == deployment_tag(deployment_id) else None


def server_name(instance_id: str) -> str:
    """An opaque name for the server and its port, the same at every try."""
    return f"hutch-{instance_id[:8]}"


def metadata(deployment_id: str, instance_id: str) -> dict[str, str]:
    return {DEPLOYMENT_KEY: deployment_id, INSTANCE_KEY: instance_id}


@lru_cache(maxsize=8)
def user_data(hub_ca_pem: str, agent_port: int) -> str:
    """cloud-init's user data: which hub the agent obeys. It is the same for every server, so a spare one can be handed to anybody.

    ref: https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files
    """
    agent = {"hub_ca": hub_ca_pem, "port": agent_port}
    document = {"write_files": [{"path": AGENT_FILE, "permissions": "0644", "content": json.dumps(agent)}]}
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False)


def port_request(network_id: str, instance_id: str, deployment_id: str, security_groups: Sequence[str] = ()) -> dict[str, Any]:
    """POST /v2.0/ports. The port comes before the server, so that its address is known before boot.

    ref: https://docs.openstack.org/api-ref/network/v2/#create-port
    """
    port: dict[str, Any] = {
        "network_id": network_id,
        "name": server_name(instance_id),
        "description": mark(deployment_id, instance_id),
        "admin_state_up": True,
    }
    if security_groups:
        port["security_groups"] = list(security_groups)
    return {"port": port}


def server_request(
    *,
    instance_id: str,
    deployment_id: str,
    image_id: str,
    flavor_id: str,
    port_id: str,
    user_data: str,
    availability_zone: str = "",
) -> dict[str, Any]:
    """POST /servers.

    ref: https://docs.openstack.org/api-ref/compute/#create-server
    """
    server: dict[str, Any] = {
        "name": server_name(instance_id),
        "imageRef": image_id,
        "flavorRef": flavor_id,
        "networks": [{"port": port_id}],
        "metadata": metadata(deployment_id, instance_id),
        "tags": [deployment_tag(deployment_id)],
        "config_drive": True,
        "user_data": base64.b64encode(user_data.encode()).decode(),
    }
    if availability_zone:
        server["availability_zone"] = availability_zone
    return {"server": server}


def agent_session(
    launch_id: str, account: str, env: dict[str, str], args: Sequence[str], port: int, tls: dict[str, str] | None = None
) -> dict[str, Any]:
    """The identity that an agent gets for one launch; see the agent's own description of POST /v1/session."""
    return {"launch": launch_id, "owner": account, "env": env, "args": list(args), "port": port, "tls": tls}
