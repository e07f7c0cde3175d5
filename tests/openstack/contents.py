"""What is in the cloud: `contents.py catalogue`, once and kept with the databases; `contents.py cloud CLOUDS_YAML` at every start.

Runs by the system's Python with Debian's openstacksdk, which is much older than Hutch's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import openstack
import yaml

AUTH_URL = "http://127.0.0.1:5000/v3"
PASSWORD = "throw-away"
SERVICES = (
    ("glance", "image", "http://127.0.0.1:9292"),
    ("placement", "placement", "http://127.0.0.1:8778"),
    ("nova", "compute", "http://127.0.0.1:8774/v2.1"),
    ("neutron", "network", "http://127.0.0.1:9696"),
)
PROJECTS = ("hutch", "other")
# by availability zone: which computer is in it
ZONES = {"real": "compute", "fake": "fake"}
NEUTRON_AGENTS = 4
FLAVORS = (
    # name, MB of memory, processors, GB of disk
    ("m1.tiny", 512, 1, 4),
    ("m1.small", 1024, 2, 4),
    ("too-big", 1024, 2, 4_000_000),
)
WAIT_SECONDS = 180.0


def connect(user: str, project: str) -> openstack.connection.Connection:
    return openstack.connect(region_name="RegionOne", identity_api_version="3", auth=password_of(user, project))


def password_of(user: str, project: str) -> dict[str, str]:
    domains = {"user_domain_id": "default", "project_domain_id": "default"}
    return {"auth_url": AUTH_URL, "username": user, "password": PASSWORD, "project_name": project} | domains


def catalogue() -> None:
    identity = connect("admin", "admin").identity
    roles = {role.name: role for role in identity.roles()}
    roles.setdefault("service", identity.find_role("service") or identity.create_role(name="service"))
    service = identity.create_project(name="service", domain_id="default")
    for name, kind, url in SERVICES:
        user = identity.create_user(name=name, password=PASSWORD, domain_id="default", default_project_id=service.id)
        for role in ("admin", "service"):
            identity.assign_project_role_to_user(service, user, roles[role])
        entry = identity.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            identity.create_endpoint(service_id=entry.id, interface=interface, url=url, region_id="RegionOne")
    for name in PROJECTS:
        project = identity.create_project(name=name, domain_id="default")
        user = identity.create_user(name=name, password=PASSWORD, domain_id="default", default_project_id=project.id)
        identity.assign_project_role_to_user(project, user, roles["member"])


def fill(clouds_yaml: Path) -> None:
    admin = connect("admin", "admin")
    wait("the agents of Neutron", lambda: sum(agent.is_alive for agent in admin.network.agents()) >= NEUTRON_AGENTS)
    network = admin.network.create_network(
        name="hutch", shared=True, provider_network_type="flat", provider_physical_network="physnet1"
    )
    pools = [{"start": "10.77.0.20", "end": "10.77.0.250"}]
    admin.network.create_subnet(
        network_id=network.id, name="hutch-v4", ip_version=4, cidr="10.77.0.0/24", gateway_ip="10.77.0.1", allocation_pools=pools
    )
    for name, ram, vcpus, disk in FLAVORS:
        admin.compute.create_flavor(name=name, ram=ram, vcpus=vcpus, disk=disk)
    wait("the computes", lambda: computes(admin) >= {*ZONES.values()})
    for zone, host in ZONES.items():
        aggregate = admin.compute.create_aggregate(name=zone, availability_zone=zone)
        wait(f"{host} in zone {zone}", partial(joined, admin, aggregate, host))
    write_clouds(clouds_yaml, {name: application_credential(name) for name in PROJECTS})


def application_credential(project: str) -> dict[str, str]:
    user = connect(project, project)
    made = user.identity.create_application_credential(user.current_user_id, name="tests", roles=[{"name": "member"}])
    return {"auth_url": AUTH_URL, "application_credential_id": made.id, "application_credential_secret": made.secret}


def computes(admin: openstack.connection.Connection) -> set[str]:
    return {service.host for service in admin.compute.services() if service.binary == "nova-compute" and service.state == "up"}


def joined(admin: openstack.connection.Connection, aggregate: openstack.compute.v2.aggregate.Aggregate, host: str) -> bool:
    """False until the scheduler has found the host; this SDK does not raise on Nova's 404."""
    with contextlib.suppress(openstack.exceptions.HttpException):
        admin.compute.add_host_to_aggregate(aggregate, host)
    return host in (admin.compute.get_aggregate(aggregate.id).hosts or [])


def write_clouds(path: Path, credentials: dict[str, dict[str, str]]) -> None:
    """Clouds "hutch", "other" and "admin" with passwords, "hutch-app" and "other-app" with application credentials."""
    clouds: dict[str, dict[str, object]] = {name: {"auth": password_of(name, name)} for name in (*PROJECTS, "admin")}
    clouds |= {f"{name}-app": {"auth_type": "v3applicationcredential", "auth": auth} for name, auth in credentials.items()}
    for cloud in clouds.values():
        cloud["region_name"] = "RegionOne"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        yaml.safe_dump({"clouds": clouds}, file, sort_keys=False)


def wait(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come up in {WAIT_SECONDS:.0f} s")
        time.sleep(0.3)


if __name__ == "__main__":
    if sys.argv[1] == "catalogue":
        catalogue()
    else:
        fill(Path(sys.argv[2]))
