"""What is asked of OpenStack, word for word."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from spawner import builders

DEPLOYMENT, INSTANCE = "11111111-2222-4333-8444-555555555555", "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PORT = {
    "network_id": "net",
    "name": "hutch-aaaaaaaa",
    "description": f"hutch-{DEPLOYMENT} {INSTANCE}",
    "admin_state_up": True,
}
SERVER = {
    "name": "hutch-aaaaaaaa",
    "imageRef": "image",
    "flavorRef": "flavor",
    "networks": [{"port": "port"}],
    "metadata": {"hutch-deployment": DEPLOYMENT, "hutch-instance": INSTANCE},
    "tags": [f"hutch-{DEPLOYMENT}"],
    "config_drive": True,
    "user_data": base64.b64encode(b"#cloud-config\n").decode(),
}


def server_request(**more: str) -> dict:
    ids = {"instance_id": INSTANCE, "deployment_id": DEPLOYMENT, "image_id": "image", "flavor_id": "flavor", "port_id": "port"}
    return builders.server_request(**ids, user_data="#cloud-config\n", **more)


@pytest.mark.parametrize(
    ("groups", "added"), [((), {}), (("g1", "g2"), {"security_groups": ["g1", "g2"]})], ids=["default-groups", "named-groups"]
)
def test_the_port(groups, added):
    assert builders.port_request("net", INSTANCE, DEPLOYMENT, groups) == {"port": PORT | added}


@pytest.mark.parametrize(
    ("more", "added"),
    [({}, {}), ({"availability_zone": "nova-2"}, {"availability_zone": "nova-2"})],
    ids=["the-cloud-chooses-a-zone", "named-zone"],
)
def test_the_server(more, added):
    assert server_request(**more) == {"server": SERVER | added}


def test_user_data_is_what_cloud_init_and_the_agent_read():
    text = builders.user_data(CA, 8765)
    assert text.startswith("#cloud-config\n")
    (file,) = yaml.safe_load(text)["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/hutch/agent.json", "0644")
    assert json.loads(file["content"]) == {"hub_ca": CA, "port": 8765}


def test_user_data_keeps_within_what_nova_takes():
    # ref: https://docs.openstack.org/nova/latest/user/metadata.html : 65535 bytes in base64
    assert len(base64.b64encode(builders.user_data(CA * 20, 8765).encode())) < 65535


def test_the_agent_session():
    session = builders.agent_session("launch", "ann", {"JUPYTERHUB_USER": "ann"}, ("--a", "--b"), 8888)
    assert session == {
        "launch": "launch",
        "owner": "ann",
        "env": {"JUPYTERHUB_USER": "ann"},
        "args": ["--a", "--b"],
        "port": 8888,
        "tls": None,
    }


def test_what_is_asked_of_the_cloud_for_a_person_names_nobody(make_spawner):
    """The whole of it, as a spawner of a named person asks: the login, name and address are nowhere in it."""
    spawner = make_spawner(user="alindqvist", name="alindqvist-films")
    asked = [
        builders.port_request("net", spawner.instance_id, spawner.deployment_id),
        server_request() | {"metadata": builders.metadata(spawner.deployment_id, spawner.instance_id)},
        builders.user_data(CA, spawner.agent_port),
    ]
    assert "lindqvist" not in json.dumps(asked).lower()
