"""What Neutron, Glance and Keystone, and Nova about what servers are made of, answer, as far as Hutch relies on it."""

from __future__ import annotations

from typing import Any

import pytest

from hub.firewall import neutron_rule, spelled

NOWHERE = "00000000-0000-4000-8000-000000000000"
PORT = {
    "id", "name", "description", "network_id", "tenant_id", "project_id", "mac_address", "fixed_ips", "status", "admin_state_up",
    "device_id", "device_owner", "security_groups", "allowed_address_pairs", "port_security_enabled", "binding:vnic_type", "tags",
    "created_at", "updated_at", "revision_number", "extra_dhcp_opts",
}  # fmt: skip
IMAGE = {
    "id", "name", "status", "visibility", "owner", "protected", "os_hidden", "tags", "disk_format", "container_format", "min_disk",
    "min_ram", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "created_at", "updated_at", "self", "file",
    "schema",
}  # fmt: skip


@pytest.fixture
def network(contract):
    def ask(method: str, path: str, body: Any = None, **more: Any) -> Any:
        return contract.ask(method, path, body, service="network", **more)

    return ask


def neutron_error(answer: Any) -> tuple[int, str]:
    error = answer.json()["NeutronError"]
    assert set(error) == {"type", "message", "detail"}
    return answer.status_code, error["type"]


# --- ports


def test_a_port_has_an_address_before_there_is_a_server(contract):
    port = contract.port(name="hutch-1", description="hutch-1 2", admin_state_up=True)
    assert set(port) >= PORT
    assert (port["name"], port["description"], port["status"]) == ("hutch-1", "hutch-1 2", "DOWN")
    assert (port["device_id"], port["device_owner"]) == ("", "")
    [fixed] = port["fixed_ips"]
    assert set(fixed) == {"subnet_id", "ip_address"}


def test_ports_are_listed_by_name_and_by_server(contract, network, kept):
    found = network("GET", f"/ports?name=hutch-contract&device_id={kept['id']}").json()["ports"]
    assert [port["id"] for port in found] == [kept["port"]["id"]]
    assert found[0]["device_owner"] == f"compute:{contract.zone}" and found[0]["device_id"] == kept["id"]
    assert network("GET", "/ports?name=nobody").json() == {"ports": []}


def test_ports_of_another_project_are_not_there(contract, network, kept):
    path = f"/ports/{kept['port']['id']}"
    assert neutron_error(network("GET", path, who=contract.other)) == (404, "PortNotFound")
    assert neutron_error(network("DELETE", path, who=contract.other)) == (404, "PortNotFound")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        pytest.param("GET", f"/ports/{NOWHERE}", None, 404, "PortNotFound", id="no-port"),
        pytest.param("DELETE", f"/ports/{NOWHERE}", None, 404, "PortNotFound", id="delete-no-port"),
        pytest.param("GET", f"/networks/{NOWHERE}", None, 404, "NetworkNotFound", id="no-network"),
        pytest.param("GET", f"/security-groups/{NOWHERE}", None, 404, "SecurityGroupNotFound", id="no-group"),
        pytest.param("POST", "/ports", {"port": {"network_id": NOWHERE}}, 404, "NetworkNotFound", id="port-without-network"),
    ],
)
def test_what_is_missing_is_named(network, method, path, body, status, kind):
    assert neutron_error(network(method, path, body)) == (status, kind)


@pytest.mark.parametrize(
    ("more", "status", "kind"),
    [
        pytest.param({"security_groups": [NOWHERE]}, 404, "SecurityGroupNotFound", id="group"),
        pytest.param({"fixed_ips": [{"ip_address": "10.77.0.9"}]}, 403, "PolicyNotAuthorized", id="chosen-address"),
        pytest.param({"fixed_ips": [{"ip_address": "not one"}]}, 400, "HTTPBadRequest", id="no-address"),
        pytest.param({"wish": "moon"}, 400, "HTTPBadRequest", id="unknown-field"),
    ],
)
def test_a_wrong_port_is_refused(contract, network, more, status, kind):
    answer = network("POST", "/ports", {"port": {"network_id": contract.network_id, **more}})
    assert neutron_error(answer) == (status, kind)


def test_an_address_is_given_once_even_to_an_admin(contract, network):
    address = contract.port()["fixed_ips"][0]["ip_address"]
    body = {"port": {"network_id": contract.network_id, "fixed_ips": [{"ip_address": address}]}}
    assert neutron_error(network("POST", "/ports", body, who=contract.admin)) == (409, "IpAddressAlreadyAllocated")


def test_an_address_elsewhere_is_refused_even_to_an_admin(contract, network):
    body = {"port": {"network_id": contract.network_id, "fixed_ips": [{"ip_address": "192.0.2.1"}]}}
    assert neutron_error(network("POST", "/ports", body, who=contract.admin)) == (400, "InvalidIpForNetwork")


def test_a_port_is_deleted_once(contract, network):
    port = contract.port()
    assert network("DELETE", f"/ports/{port['id']}").status_code == 204
    assert neutron_error(network("DELETE", f"/ports/{port['id']}")) == (404, "PortNotFound")


def test_a_full_quota_of_ports_is_a_conflict_that_says_so(contract, network, quota):
    quota("network", port=0)
    answer = network("POST", "/ports", {"port": {"network_id": contract.network_id}})
    assert neutron_error(answer) == (409, "OverQuota")
    assert answer.json()["NeutronError"]["message"] == "Quota exceeded for resources: ['port']."


# --- security groups


@pytest.fixture
def group(network):
    """Makes groups, as far as the quota reaches, and deletes them."""
    made = []

    def make(name: str, description: str = "") -> dict[str, Any]:
        body = {"security_group": {"name": name, "description": description}}
        made.append(network("POST", "/security-groups", body).json()["security_group"])
        return made[-1]

    yield make
    for one in made:
        network("DELETE", f"/security-groups/{one['id']}")


def test_a_group_guards_the_ports_that_name_it_and_cannot_go_before_them(contract, network):
    group = network("POST", "/security-groups", {"security_group": {"name": "hub", "description": "d"}}).json()["security_group"]
    assert {rule["direction"] for rule in group["security_group_rules"]} == {"egress"}
    port = contract.port(security_groups=[group["id"]])
    assert port["security_groups"] == [group["id"]]
    assert neutron_error(network("DELETE", f"/security-groups/{group['id']}")) == (409, "SecurityGroupInUse")
    default = network("GET", "/security-groups?name=default").json()["security_groups"][0]["id"]
    changed = network("PUT", f"/ports/{port['id']}", {"port": {"security_groups": [default]}}).json()["port"]
    assert changed["security_groups"] == [default]
    assert network("DELETE", f"/security-groups/{group['id']}").status_code == 204


def test_two_groups_may_have_one_name_and_are_told_apart_by_their_descriptions(network, group):
    for description in ("hutch-1 base", "hutch-2 base"):
        group("twin", description)
    listed = network("GET", "/security-groups?name=twin").json()["security_groups"]
    assert sorted(one["description"] for one in listed) == ["hutch-1 base", "hutch-2 base"]


def test_a_new_group_lets_everything_out_and_nothing_in_as_the_firewall_spells_it(group):
    everywhere = {spelled(neutron_rule({"to": where})) for where in ("0.0.0.0/0", "::/0")}
    assert {spelled(rule) for rule in group("new")["security_group_rules"]} == everywhere


@pytest.mark.parametrize(
    "entry",
    [
        {"from": "192.0.2.1", "ports": 8765},
        {"from": "192.0.2.0/24", "ports": "5064-5065", "protocol": "udp"},
        {"from": "2001:db8::/32", "protocol": "tcp"},
        {"from": "0.0.0.0/0", "protocol": "icmp"},
        {"to": "198.51.100.7/32"},
    ],
    ids=str,
)
def test_a_rule_of_the_firewall_is_shown_as_it_was_made(network, group, entry):
    group_id = group("spelled")["id"]
    made = network("POST", "/security-group-rules", {"security_group_rule": neutron_rule(entry) | {"security_group_id": group_id}})
    assert made.status_code == 201, made.text
    rules = network("GET", f"/security-groups/{group_id}").json()["security_group"]["security_group_rules"]
    assert spelled(neutron_rule(entry)) in set(map(spelled, rules)) and len(rules) == 3


def test_the_groups_of_a_port_in_use_change_and_its_listing_says_so(contract, network, kept, group):
    port, late = kept["port"], group("late")["id"]
    path = f"/ports/{port['id']}"
    assert network("PUT", path, {"port": {"security_groups": [late]}}).status_code == 200
    fields = "fields=id&fields=description&fields=security_groups"
    listed = network("GET", f"/ports?{fields}&name={port['name']}").json()["ports"]
    assert {"id": port["id"], "description": port["description"], "security_groups": [late]} in listed
    unknown = network("PUT", path, {"port": {"security_groups": [NOWHERE]}})
    assert neutron_error(unknown) == (404, "SecurityGroupNotFound")
    network("PUT", path, {"port": {"security_groups": port["security_groups"]}})
    assert contract.server(kept["id"])["status"] == "ACTIVE"


def test_a_port_that_names_no_group_gets_the_default_one(contract, network):
    [default] = network("GET", "/security-groups?name=default").json()["security_groups"]
    assert contract.port()["security_groups"] == [default["id"]]


def test_rules_are_made_once_and_deleted_once(network):
    group = network("POST", "/security-groups", {"security_group": {"name": "ruled"}}).json()["security_group"]["id"]
    wanted = {"security_group_id": group, "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp"}
    rule = wanted | {"port_range_min": 8765, "port_range_max": 8765, "remote_ip_prefix": "192.0.2.1/32"}
    made = network("POST", "/security-group-rules", {"security_group_rule": rule})
    assert made.status_code == 201 and made.json()["security_group_rule"].items() >= rule.items()
    assert neutron_error(network("POST", "/security-group-rules", {"security_group_rule": rule})) == (
        409,
        "SecurityGroupRuleExists",
    )
    path = f"/security-group-rules/{made.json()['security_group_rule']['id']}"
    assert network("DELETE", path).status_code == 204
    assert neutron_error(network("DELETE", path)) == (404, "SecurityGroupRuleNotFound")


@pytest.mark.parametrize(
    ("method", "status", "kind"),
    [
        pytest.param("DELETE", 409, "SecurityGroupInUse", id="delete"),
        pytest.param("PUT", 409, "SecurityGroupCannotUpdateDefault", id="rename"),
    ],
)
def test_the_default_group_stays(network, kept, method, status, kind):
    [default] = network("GET", "/security-groups?name=default").json()["security_groups"]
    body = {"security_group": {"name": "other"}} if method == "PUT" else None
    assert neutron_error(network(method, f"/security-groups/{default['id']}", body)) == (status, kind)


# --- images


def test_an_image_has_the_fields_that_are_read(contract):
    image = contract.ask("GET", f"/images/{contract.image_id}", service="image").json()
    assert set(image) >= IMAGE
    assert (image["status"], image["visibility"], image["container_format"]) == ("active", "public", "bare")


def test_a_missing_image_is_not_found(contract):
    answer = contract.ask("GET", f"/images/{NOWHERE}", service="image")
    assert answer.status_code == 404 and f"No image found with ID {NOWHERE}" in answer.text


def test_images_are_found_by_name(contract):
    name = contract.ask("GET", f"/images/{contract.image_id}", service="image").json()["name"]
    found = contract.ask("GET", f"/images?name={name}", service="image").json()
    assert [image["id"] for image in found["images"]] == [contract.image_id]
    assert contract.ask("GET", "/images?name=nobody", service="image").json()["images"] == []


# --- flavors, limits, zones


def test_a_flavor_has_the_fields_that_are_read(contract):
    answer = contract.ask("GET", f"/flavors/{contract.flavor_id('m1.small')}")
    flavor = answer.json()["flavor"]
    assert set(flavor) == {
        *("id", "name", "vcpus", "ram", "disk", "swap", "OS-FLV-EXT-DATA:ephemeral", "OS-FLV-DISABLED:disabled"),
        *("os-flavor-access:is_public", "rxtx_factor", "links", "description", "extra_specs"),
    }
    assert flavor["swap"] == 0 and flavor["os-flavor-access:is_public"] is True


def test_a_missing_flavor_is_not_found(contract):
    answer = contract.ask("GET", "/flavors/77")
    assert answer.json() == {"itemNotFound": {"code": 404, "message": "Flavor 77 could not be found."}}


def test_limits_say_what_is_used(contract, kept):
    absolute = contract.ask("GET", "/limits").json()["limits"]["absolute"]
    assert absolute["totalInstancesUsed"] >= 1 and absolute["maxServerMeta"] == 128
    assert {"maxTotalInstances", "maxTotalCores", "maxTotalRAMSize", "totalCoresUsed", "totalRAMUsed"} <= set(absolute)


def test_limits_and_details_say_what_is_free_of_what_a_launch_takes(contract, network, kept):
    absolute = contract.ask("GET", "/limits").json()["limits"]["absolute"]
    for limit, used in [("Instances", "Instances"), ("Cores", "Cores"), ("RAMSize", "RAM")]:
        assert isinstance(absolute[f"maxTotal{limit}"], int) and absolute[f"total{used}Used"] >= 1
    port = network("GET", f"/quotas/{contract.cloud.current_project_id}/details.json").json()["quota"]["port"]
    assert set(port) == {"limit", "used", "reserved"} and port["used"] >= 1


def test_a_server_counts_from_its_create_to_its_delete(contract):
    def used() -> tuple[int, int]:
        absolute = contract.ask("GET", "/limits").json()["limits"]["absolute"]
        return absolute["totalInstancesUsed"], absolute["totalCoresUsed"]

    def listed() -> tuple[int, int]:
        servers = contract.ask("GET", "/servers/detail").json()["servers"]
        return len(servers), sum(server["flavor"]["vcpus"] for server in servers)

    server = contract.create()
    # those of other tests may be on their way out
    contract.until_true(lambda: server in contract.ask("GET", "/servers").text and used() == listed(), "it counts from its create")
    contract.until(server, "ACTIVE")
    contract.act(server, "os-stop")
    contract.until(server, "SHUTOFF")
    contract.until_true(lambda: used() == listed(), "it counts while it is stopped")
    assert contract.ask("DELETE", f"/servers/{server}").status_code == 204
    contract.until_gone(server)
    contract.until_true(lambda: used() == listed(), "it counts no more")


def test_placement_is_for_admins_and_tells_them_what_hosts_have_in_one_call(contract, kept):
    asked = {"service": "placement", "OpenStack_API_Version": "placement 1.27"}
    path = "/allocation_candidates?resources=VCPU:1&limit=1000"
    refused = contract.ask("GET", path, **asked)
    assert refused.status_code == 403 and refused.json()["errors"][0]["status"] == 403
    answer = contract.ask("GET", path, who=contract.admin, **asked).json()
    hosts = [host["resources"] for host in answer["provider_summaries"].values() if "VCPU" in host["resources"]]
    assert hosts and all({"VCPU", "MEMORY_MB"} <= set(host) for host in hosts)
    assert all(set(host["VCPU"]) == {"capacity", "used"} for host in hosts)
    assert sum(host["VCPU"]["used"] for host in hosts) >= 1
    none = contract.ask("GET", "/allocation_candidates?resources=VCPU:1000000", who=contract.admin, **asked)
    assert none.status_code == 200 and none.json()["provider_summaries"] == {}


def test_flavors_are_told_with_what_they_ask_for(contract):
    flavors = {flavor["name"]: flavor for flavor in contract.ask("GET", "/flavors/detail").json()["flavors"]}
    assert {"id", "vcpus", "ram", "disk", "extra_specs"} <= set(flavors["m1.small"])


def test_zones_say_whether_they_are_available(contract):
    zones = contract.ask("GET", "/os-availability-zone").json()["availabilityZoneInfo"]
    assert {"zoneName": contract.zone, "zoneState": {"available": True}, "hosts": None} in zones


def test_quotas_of_another_project_are_none_of_ours(contract):
    project = contract.other.current_project_id
    assert contract.ask("GET", f"/os-quota-sets/{project}").status_code == 403
    assert contract.ask("GET", f"/quotas/{project}", service="network").status_code in (403, 404)


# --- who asks


@pytest.mark.parametrize("service", ["compute", "network", "image"])
@pytest.mark.parametrize("token", ["", "nonsense"], ids=["none", "wrong"])
def test_without_a_token_nothing_is_told(contract, service, token):
    path = {"compute": "/servers", "network": "/ports", "image": "/images"}[service]
    answer = contract.ask("GET", path, service=service, X_Auth_Token=token)
    assert answer.status_code == 401 and "Keystone uri=" in answer.headers["WWW-Authenticate"]


def test_a_revoked_token_is_refused_and_a_new_one_is_to_be_had(contract):
    token = contract.cloud.session.get_token()
    answer = contract.ask("DELETE", "/auth/tokens", service="identity", X_Subject_Token=token)
    assert answer.status_code == 204
    # the services may have looked it up a moment ago, and believe that for some minutes
    assert contract.ask("GET", "/servers", X_Auth_Token=token).status_code in (200, 401)
    assert contract.ask("GET", "/auth/tokens", service="identity", X_Auth_Token=token, X_Subject_Token=token).status_code == 401
    contract.cloud.session.invalidate()
    assert contract.ask("GET", "/servers").status_code == 200


@pytest.mark.parametrize(("known", "status"), [(True, 401), (False, 404)], ids=["secret", "id"])
def test_a_wrong_application_credential_gets_no_token(contract, known, status):
    credential = contract.cloud.config.config["auth"]["application_credential_id"] if known else NOWHERE
    method = {"methods": ["application_credential"], "application_credential": {"id": credential, "secret": "wrong"}}
    answer = contract.ask("POST", "/auth/tokens", {"auth": {"identity": method}}, service="identity")
    assert answer.status_code == status
    assert answer.json()["error"].keys() >= {"code", "title", "message"}
