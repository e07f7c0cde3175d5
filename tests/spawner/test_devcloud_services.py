"""devcloud's Keystone, Glance and Neutron, asked by an unmodified openstacksdk and by plain HTTP."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import openstack
import pytest
import requests
import yaml
from openstack import exceptions

NOWHERE = "00000000-0000-4000-8000-000000000000"
TOKENS = "/identity/v3/auth/tokens"


# Keystone and discovery


@pytest.mark.parametrize("name", ["devcloud", "devcloud-app", "devcloud-other", "devcloud-admin"])
def test_every_cloud_of_clouds_yaml_logs_in(devcloud: Any, name: str) -> None:
    with devcloud.connect(name) as cloud:
        assert cloud.compute.get_endpoint().startswith(devcloud.url)
        assert cloud.current_project_id == cloud.identity.find_project(cloud.current_project_id).id


def test_the_clouds_file_is_private_and_found_the_usual_way(devcloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE(devcloud.clouds_yaml.stat().st_mode) == 0o600
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(devcloud.clouds_yaml))
    with openstack.connect(cloud="devcloud") as cloud:
        assert cloud.image.find_image("hutch-notebook").status == "active"


def test_everything_says_that_it_is_for_tests(devcloud: Any, cloud: Any) -> None:
    catalog = cloud.session.auth.get_access(cloud.session).service_catalog.catalog
    assert {service["type"] for service in catalog} == {"identity", "compute", "image", "network", "block-storage", "placement"}
    assert all("demos and tests only" in service["name"] for service in catalog)
    assert "demos and tests only" in requests.get(devcloud.url + "/compute", timeout=10).headers["Server"]
    assert "demos and tests only" in devcloud.control("GET", "")["devcloud"]
    assert "stub" in devcloud.control("GET", "")["payload_is"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/identity", 300), ("/identity/v3", 200), ("/compute", 200), ("/compute/v2.1", 200), ("/compute/v2.1/", 200),
        ("/image", 300), ("/image/versions", 200), ("/network", 200),
    ],
)  # fmt: skip
def test_versions_are_told_without_a_token(devcloud: Any, path: str, status: int) -> None:
    assert requests.get(devcloud.url + path, timeout=10).status_code == status


def test_the_sdk_negotiates_the_highest_microversion(cloud: Any) -> None:
    endpoint = cloud.compute.get_endpoint_data()
    assert (endpoint.min_microversion, endpoint.max_microversion) == ((2, 1), (2, 93))


@pytest.mark.parametrize("path", ["/compute/v2.1/servers", "/image/v2/images", "/network/v2.0/ports", "/identity/v3/auth/catalog"])
@pytest.mark.parametrize("token", [None, "nonsense"])
def test_nothing_is_told_without_a_token(devcloud: Any, path: str, token: str | None) -> None:
    answer = requests.get(devcloud.url + path, headers={"X-Auth-Token": token} if token else {}, timeout=10)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == 401


def test_a_wrong_password_is_unauthorized(devcloud: Any) -> None:
    auth = yaml.safe_load(devcloud.clouds_yaml.read_text())["clouds"]["devcloud"]["auth"] | {"password": "guess"}
    with pytest.raises(exceptions.SDKException, match="requires authentication"), openstack.connect(auth=auth) as cloud:
        cloud.authorize()


def test_a_token_is_validated_and_revoked(devcloud: Any, cloud: Any) -> None:
    token = cloud.session.get_token()
    headers = {"X-Auth-Token": token, "X-Subject-Token": token}
    answer = requests.get(devcloud.url + TOKENS, headers=headers, timeout=10).json()["token"]
    assert (answer["user"]["name"], answer["project"]["name"], answer["methods"]) == ("hutch", "hutch", ["password"])
    assert requests.head(devcloud.url + TOKENS, headers=headers, timeout=10).status_code == 200
    assert requests.delete(devcloud.url + TOKENS, headers=headers, timeout=10).status_code == 204
    assert requests.get(devcloud.url + TOKENS, headers=headers, timeout=10).status_code == 401
    assert len(list(cloud.compute.flavors())) == 4  # the SDK logs in again


def test_expired_tokens_only_cost_a_new_login(devcloud: Any, cloud: Any) -> None:
    list(cloud.compute.servers())
    devcloud.control("POST", "/expire-tokens")
    devcloud.clear_calls()
    assert list(cloud.compute.servers()) == []
    assert devcloud.calls()["counts"][f"POST {TOKENS}"] == 1


# Glance


def test_images_are_listed_found_and_shown(cloud: Any) -> None:
    image = cloud.image.find_image("hutch-notebook")
    assert cloud.image.get_image(image.id).status == "active"
    assert [each.name for each in cloud.image.images(status="queued")] == ["hutch-queued"]
    assert len(list(cloud.image.images(limit=2))) == 6


def test_an_unknown_image_is_not_found_in_json_and_in_html(raw: Any) -> None:
    path = f"/image/v2/images/{NOWHERE}"
    assert raw("GET", path, Accept="application/json").json()["code"] == "404 Not Found"
    page = raw("GET", path, Accept="*/*")
    assert page.status_code == 404
    assert f"No image found with ID {NOWHERE}" in page.text
    assert page.headers["Content-Type"].startswith("text/html")


# Neutron


@pytest.fixture
def network(cloud: Any) -> Any:
    return cloud.network.find_network("hutch")


def test_ports_get_addresses_of_their_own(cloud: Any, network: Any) -> None:
    [subnet] = cloud.network.subnets(network_id=network.id)
    ports = [cloud.network.create_port(network_id=network.id, name=f"hutch-{number}") for number in range(20)]
    addresses = [port.fixed_ips[0]["ip_address"] for port in ports]
    assert len(set(addresses)) == len({port.mac_address for port in ports}) == 20
    prefix = subnet.cidr.removesuffix("0.0/16")
    assert all(address.startswith(prefix) and address.rpartition(".")[2] not in ("0", "255") for address in addresses)
    assert {port.fixed_ips[0]["subnet_id"] for port in ports} == {subnet.id}


def test_an_address_can_be_chosen_once_by_an_admin(devcloud: Any, network: Any) -> None:
    with devcloud.connect("devcloud-admin") as cloud:
        [subnet] = cloud.network.subnets()
        fixed_ips = [{"ip_address": subnet.cidr.replace("0.0/16", "9.9")}]
        port = cloud.network.create_port(network_id=network.id, fixed_ips=fixed_ips)
        assert port.fixed_ips[0]["ip_address"] == fixed_ips[0]["ip_address"]
        with pytest.raises(exceptions.ConflictException, match="already allocated in subnet") as refused:
            cloud.network.create_port(network_id=network.id, fixed_ips=fixed_ips)
    error = refused.value.response.json()["NeutronError"]
    assert (error["type"], error["detail"]) == ("IpAddressAlreadyAllocated", "")


@pytest.mark.parametrize(
    ("wanted", "status", "kind"),
    [
        ({"network_id": NOWHERE}, 404, "NetworkNotFound"),
        ({"security_groups": [NOWHERE]}, 404, "SecurityGroupNotFound"),
        ({"fixed_ips": [{"ip_address": "10.1.2.3"}]}, 403, "PolicyNotAuthorized"),
        ({"fixed_ips": [{"ip_address": "ten"}]}, 400, "HTTPBadRequest"),
        ({"wish": 1}, 400, "HTTPBadRequest"),
        ({"name": 1}, 400, "HTTPBadRequest"),
    ],
    ids=["network", "security group", "chosen address", "no address", "unknown field", "wrong type"],
)
def test_a_wrong_port_is_refused_in_neutron_s_words(raw: Any, network: Any, wanted: dict[str, Any], status: int, kind: str) -> None:
    answer = raw("POST", "/network/v2.0/ports", {"port": {"network_id": network.id} | wanted})
    assert (answer.status_code, answer.json()["NeutronError"]["type"]) == (status, kind)


def test_a_full_port_quota_conflicts(cloud: Any, devcloud: Any, network: Any) -> None:
    devcloud.quota(port=1)
    cloud.network.create_port(network_id=network.id)
    with pytest.raises(exceptions.ConflictException, match=r"Quota exceeded for resources: \['port'\]"):
        cloud.network.create_port(network_id=network.id)
    details = cloud.network.get_quota(cloud.current_project_id, details=True)
    assert details.ports == {"used": 1, "limit": 1, "reserved": 0}


def test_ports_are_filtered(cloud: Any, network: Any, raw: Any) -> None:
    ports = [cloud.network.create_port(network_id=network.id, name=name) for name in ("hutch-a", "hutch-b")]
    cloud.network.set_tags(ports[1], ["pool", "warm"])
    for query, found in [
        ({"name": "hutch-a"}, ["hutch-a"]),
        ({"network_id": NOWHERE}, []),
        ({"device_id": "nobody"}, []),
        ({"tags": "pool,warm"}, ["hutch-b"]),
        ({"not_tags": "pool"}, ["hutch-a"]),
        ({"fixed_ips": f"ip_address={ports[0].fixed_ips[0]['ip_address']}"}, ["hutch-a"]),
    ]:
        assert [port.name for port in cloud.network.ports(**query)] == found, query
    fields = raw("GET", "/network/v2.0/ports?fields=id&fields=name").json()["ports"]
    assert [set(port) for port in fields] == [{"id", "name"}] * 2
    assert len(list(cloud.network.ports(limit=1))) == 2


def test_a_port_of_a_running_server_can_be_deleted(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    [port] = cloud.network.ports(device_id=server.id)
    cloud.network.delete_port(port)
    assert cloud.compute.get_server(server).addresses == {}
    with pytest.raises(exceptions.NotFoundException, match=f"Port {port.id} could not be found"):
        cloud.network.get_port(port.id)


def test_security_groups_are_kept_and_guarded(cloud: Any, boot: Any, network: Any) -> None:
    group = cloud.network.create_security_group(name="hutch-agent")
    rule = {"direction": "ingress", "protocol": "tcp", "port_range_min": 8765, "port_range_max": 8765}
    cloud.network.create_security_group_rule(security_group_id=group.id, **rule)
    with pytest.raises(exceptions.ConflictException, match="already exists"):
        cloud.network.create_security_group_rule(security_group_id=group.id, **rule)
    server = boot(cloud, security_groups=[{"name": "hutch-agent"}])
    assert server.security_groups == [{"name": "hutch-agent"}]
    with pytest.raises(exceptions.ConflictException, match="in use"):
        cloud.network.delete_security_group(group)
    assert {each.name for each in cloud.network.security_groups()} == {"default", "hutch-agent"}
    with pytest.raises(exceptions.ConflictException, match="default security group"):
        cloud.network.delete_security_group(cloud.network.find_security_group("default"))


# The command line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "{port}"], "cannot listen on 127.0.0.1 port {port}: Address already in use; is another devcloud running?"),
        (["--host", "192.0.2.1", "--port", "0"], "--host must be a loopback address, not 192.0.2.1"),
        (["--subnet", "10.0.0.0/16", "--port", "0"], "--subnet must lie in 127.0.0.0/8"),
    ],
    ids=["port in use", "open to the world", "addresses of others"],
)
def test_a_devcloud_that_cannot_start_says_why(devcloud: Any, tmp_path: Path, arguments: list[str], complaint: str) -> None:
    port = devcloud.url.rpartition(":")[2]
    command = [sys.executable, "-m", "spawner.devcloud", "--state", str(tmp_path), *(each.format(port=port) for each in arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("devcloud: ") and complaint.format(port=port) in ended.stderr


def test_a_state_folder_serves_one_devcloud(devcloud: Any) -> None:
    command = [sys.executable, "-m", "spawner.devcloud", "--state", str(devcloud.state_dir), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False)
    assert "another devcloud uses the state folder" in ended.stderr
