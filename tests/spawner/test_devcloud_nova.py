"""devcloud's Nova, asked by an unmodified openstacksdk and by plain HTTP."""

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openstack import exceptions

from spawner.devcloud.process import running

SERVERS = "/compute/v2.1/servers"
NOWHERE = "00000000-0000-4000-8000-000000000000"
V2_1 = {
    "id", "name", "status", "tenant_id", "user_id", "metadata", "hostId", "image", "flavor", "created", "updated", "addresses",
    "accessIPv4", "accessIPv6", "links", "OS-DCF:diskConfig", "OS-EXT-AZ:availability_zone", "config_drive", "key_name",
    "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at", "OS-EXT-STS:task_state", "OS-EXT-STS:vm_state",
    "OS-EXT-STS:power_state", "os-extended-volumes:volumes_attached", "security_groups", "progress",
}  # fmt: skip
V2_79 = V2_1 | {"locked", "description", "tags", "trusted_image_certificates", "locked_reason"}


@pytest.fixture
def request_body(cloud: Any) -> dict[str, Any]:
    image = cloud.image.find_image("hutch-notebook")
    return {"name": "hutch-1", "flavorRef": "2", "imageRef": image.id, "networks": "auto"}


@pytest.fixture(scope="module")
def slow_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cloud slow enough to be looked at between the beginning and the end of what it does."""
    with (
        running(tmp_path_factory.mktemp("slow"), "--boot-seconds", "2", payload="stub") as process,
        process.connect() as connection,
    ):
        yield connection


# Shapes


def test_a_create_answers_before_the_server_is_built(raw: Callable[..., Any], request_body: dict[str, Any]) -> None:
    answer = raw("POST", SERVERS, {"server": request_body}, "2.79")
    server = answer.json()["server"]
    assert answer.status_code == 202
    assert set(server) == {"id", "links", "adminPass", "security_groups", "OS-DCF:diskConfig"}
    assert answer.headers["Location"] == server["links"][0]["href"]
    assert answer.headers["X-OpenStack-Request-Id"].startswith("req-")


def test_a_server_is_built_through_nova_s_states(cloud: Any, devcloud: Any, boot: Any) -> None:
    devcloud.next_boot(seconds=0.2)
    server = boot(cloud, "BUILD")
    assert (server.vm_state, server.power_state, server.launched_at) == ("building", 0, None)
    assert server.task_state in ("scheduling", "networking", "spawning")
    server = cloud.compute.wait_for_server(server, interval=0.01)
    assert (server.vm_state, server.task_state, server.power_state, server.progress) == ("active", None, 1, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", server.launched_at)


@pytest.mark.parametrize(
    ("version", "fields", "flavor_fields"),
    [
        (None, V2_1, {"id", "links"}),
        ("2.1", V2_1, {"id", "links"}),
        ("2.8", V2_1, {"id", "links"}),
        ("2.9", V2_1 | {"locked"}, {"id", "links"}),
        ("2.26", V2_1 | {"locked", "description", "tags"}, {"id", "links"}),
        ("2.79", V2_79 | {"server_groups"}, {"original_name", "vcpus", "ram", "disk", "ephemeral", "swap", "extra_specs"}),
        (
            "2.93",
            V2_79 | {"server_groups", "OS-EXT-SRV-ATTR:hostname"},
            {"original_name", "vcpus", "ram", "disk", "ephemeral", "swap", "extra_specs"},
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, str | None) else "",
)
def test_a_server_is_shown_in_the_shape_of_its_microversion(
    cloud: Any, boot: Any, raw: Any, version: str | None, fields: set[str], flavor_fields: set[str]
) -> None:
    server = boot(cloud)
    answer = raw("GET", f"{SERVERS}/{server.id}", version=version)
    assert set(answer.json()["server"]) == fields
    assert set(answer.json()["server"]["flavor"]) == flavor_fields
    assert answer.headers["OpenStack-API-Version"] == f"compute {version or '2.1'}"
    assert answer.headers["X-OpenStack-Nova-API-Version"] == (version or "2.1")
    assert "OpenStack-API-Version" in answer.headers["Vary"]
    listed = raw("GET", f"{SERVERS}/detail", version=version).json()["servers"]
    assert [set(each) | {"server_groups"} for each in listed] == [fields | {"server_groups"}]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"OpenStack_API_Version": "compute latest"}, 200),
        ({"X_OpenStack_Nova_API_Version": "2.60"}, 200),
        ({"OpenStack_API_Version": "volume 3.50"}, 200),
        ({"OpenStack_API_Version": "compute 2.94"}, 406),
        ({"OpenStack_API_Version": "compute 1.9"}, 406),
        ({"OpenStack_API_Version": "compute two"}, 400),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else str(value),
)
def test_microversions_are_negotiated(raw: Any, headers: dict[str, str], status: int) -> None:
    assert raw("GET", f"{SERVERS}/detail", **headers).status_code == status


def test_an_address_shows_its_kind_and_its_mac(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    [port] = cloud.network.ports(device_id=server.id)
    [address] = server.addresses["hutch"]
    assert address["addr"] == port.fixed_ips[0]["ip_address"]
    assert address["OS-EXT-IPS:type"] == "fixed"
    assert address["OS-EXT-IPS-MAC:mac_addr"] == port.mac_address


# Refusals


@pytest.mark.parametrize(
    ("changes", "status", "fault", "message"),
    [
        ({"flavorRef": "77"}, 400, "badRequest", "Flavor 77 could not be found."),
        ({"imageRef": NOWHERE}, 400, "badRequest", "Can not find requested image"),
        ({"networks": [{"uuid": NOWHERE}]}, 400, "badRequest", f"Network {NOWHERE} could not be found."),
        ({"networks": [{"port": NOWHERE}]}, 400, "badRequest", f"Port id {NOWHERE} could not be found."),
        ({"networks": None}, 400, "badRequest", "'networks' is a required property"),
        ({"key_name": "mine"}, 400, "badRequest", "Invalid key_name provided."),
        ({"security_groups": [{"name": "nope"}]}, 400, "badRequest", "Unable to find security_group with name or id 'nope'"),
        ({"name": ""}, 400, "badRequest", "Invalid input for field/attribute name."),
        ({"name": "n" * 256}, 400, "badRequest", "is too long"),
        ({"metadata": {"k": "v" * 256}}, 400, "badRequest", "Invalid input for field/attribute k."),
        ({"metadata": {"k": 1}}, 400, "badRequest", "1 is not of type 'string'"),
        ({"metadata": {f"k{n}": "v" for n in range(129)}}, 403, "forbidden", "Maximum number of metadata items exceeds 128"),
        ({"user_data": "not base64!"}, 400, "badRequest", "is not a 'base64'"),
        ({"user_data": "A" * 65536}, 400, "badRequest", "is too long"),
        ({"tags": ["t" * 61]}, 400, "badRequest", "is too long"),
        ({"wish": "moon"}, 400, "badRequest", "Additional properties are not allowed ('wish' was unexpected)"),
    ],
    ids=[
        "flavor", "image", "network", "port", "no networks", "key", "security group", "no name", "long name", "long metadata",
        "metadata not text", "much metadata", "user_data not base64", "long user_data", "long tag", "unknown field",
    ],
)  # fmt: skip
def test_a_wrong_create_is_refused_in_nova_s_words(
    raw: Any, request_body: dict[str, Any], changes: dict[str, Any], status: int, fault: str, message: str
) -> None:
    body = {key: value for key, value in (request_body | changes).items() if value is not None}
    answer = raw("POST", SERVERS, {"server": body}, "2.79")
    assert answer.status_code == status
    assert answer.json()[fault]["code"] == status
    assert message in answer.json()[fault]["message"]
    assert raw("GET", SERVERS).json() == {"servers": []}


@pytest.mark.parametrize(("field", "before"), [("tags", "2.51"), ("description", "2.18"), ("hostname", "2.89")])
def test_a_field_is_unknown_before_its_microversion(raw: Any, request_body: dict[str, Any], field: str, before: str) -> None:
    value = ["a"] if field == "tags" else "something"
    since = f"2.{int(before.partition('.')[2]) + 1}"
    body = {key: value for key, value in request_body.items() if key != "networks" or before != "2.18"} | {field: value}
    assert raw("POST", SERVERS, {"server": body}, before).status_code == 400
    assert raw("POST", SERVERS, {"server": body}, since).status_code == 202


@pytest.mark.parametrize("status", ["queued", "deactivated", "killed"])
def test_only_an_active_image_boots(cloud: Any, boot: Any, status: str) -> None:
    with pytest.raises(exceptions.BadRequestException, match="is not active"):
        boot(cloud, image=f"hutch-{status}")


def test_a_full_quota_forbids(cloud: Any, devcloud: Any, boot: Any) -> None:
    devcloud.quota(instances=1)
    boot(cloud)
    message = "Quota exceeded for instances: Requested 1, but already used 1 of 1 instances"
    with pytest.raises(exceptions.ForbiddenException, match=message) as refused:
        boot(cloud)
    assert set(refused.value.response.json()) == {"forbidden"}
    limits = cloud.compute.get_limits().absolute
    assert (limits.instances, limits.instances_used) == (1, 1)


def test_a_server_that_fits_nowhere_ends_in_error(cloud: Any, boot: Any) -> None:
    server = boot(cloud, "ERROR", flavor_id="9")
    assert set(server.fault) == {"code", "message", "created"}
    assert (server.fault["code"], server.fault["message"][:27]) == (500, "No valid host was found. Th")
    assert server.host_id == "" and not server.addresses


def test_an_admin_sees_what_the_fault_was_about(cloud: Any, devcloud: Any, boot: Any) -> None:
    server = boot(cloud, "ERROR", flavor_id="9")
    with devcloud.connect("devcloud-admin") as admin:
        assert "details" in admin.compute.get_server(server.id).fault


def test_a_missing_server_is_not_found(raw: Any) -> None:
    answer = raw("GET", f"{SERVERS}/{NOWHERE}")
    assert answer.status_code == 404
    assert answer.json() == {"itemNotFound": {"code": 404, "message": f"Instance {NOWHERE} could not be found."}}


@pytest.mark.parametrize(
    ("method", "path", "status", "fault"),
    [
        ("GET", "/compute/v2.1/nothing", 404, "itemNotFound"),
        ("PATCH", SERVERS, 405, "badMethod"),
        ("GET", f"{SERVERS}/detail?limit=many", 400, "badRequest"),
        ("GET", f"{SERVERS}/detail?marker={NOWHERE}", 400, "badRequest"),
        ("GET", f"{SERVERS}/detail?changes-since=lately", 400, "badRequest"),
    ],
)
def test_a_wrong_call_is_a_fault(raw: Any, method: str, path: str, status: int, fault: str) -> None:
    answer = raw(method, path)
    assert (answer.status_code, set(answer.json())) == (status, {fault})


# Actions

ACTIONS = [
    ("stop_server", "SHUTOFF", "stopped", 4),
    ("start_server", "ACTIVE", "active", 1),
    ("shelve_server", "SHELVED_OFFLOADED", "shelved_offloaded", 4),
    ("unshelve_server", "ACTIVE", "active", 1),
]


def test_actions_move_a_server_through_its_states(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    for action, status, vm_state, power_state in ACTIONS:
        getattr(cloud.compute, action)(server)
        server = cloud.compute.wait_for_server(server, status=status, interval=0.01)
        assert (server.vm_state, server.power_state, server.task_state) == (vm_state, power_state, None)
    for kind in ("SOFT", "HARD"):
        cloud.compute.reboot_server(server, kind)
        server = cloud.compute.wait_for_server(server, interval=0.01)
    history = [action.action for action in cloud.compute.server_actions(server)]
    assert history == ["reboot", "reboot", "unshelve", "shelve", "start", "stop", "create"]


@pytest.mark.parametrize(
    ("status", "action", "body", "attribute"),
    [
        ("SHUTOFF", "stop", {"os-stop": None}, "vm_state stopped"),
        ("ACTIVE", "start", {"os-start": None}, "vm_state active"),
        ("SHUTOFF", "reboot", {"reboot": {"type": "SOFT"}}, "vm_state stopped"),
        ("ACTIVE", "unshelve", {"unshelve": None}, "vm_state active"),
        ("SHELVED_OFFLOADED", "start", {"os-start": None}, "vm_state shelved_offloaded"),
        ("ERROR", "start", {"os-start": None}, "vm_state error"),
    ],
)
def test_an_action_in_the_wrong_state_conflicts(
    cloud: Any, boot: Any, raw: Any, status: str, action: str, body: dict[str, Any], attribute: str
) -> None:
    server = boot(cloud, "ERROR", flavor_id="9") if status == "ERROR" else boot(cloud)
    if status in ("SHUTOFF", "SHELVED_OFFLOADED"):
        (cloud.compute.stop_server if status == "SHUTOFF" else cloud.compute.shelve_server)(server)
        cloud.compute.wait_for_server(server, status=status, interval=0.01)
    answer = raw("POST", f"{SERVERS}/{server.id}/action", body)
    message = f"Cannot '{action}' instance {server.id} while it is in {attribute}"
    assert answer.status_code == 409
    assert answer.json() == {"conflictingRequest": {"code": 409, "message": message}}


def test_an_action_during_another_conflicts(slow_cloud: Any, boot: Any) -> None:
    server = boot(slow_cloud)
    slow_cloud.compute.stop_server(server)
    with pytest.raises(exceptions.ConflictException, match="while it is in task_state powering-off"):
        slow_cloud.compute.stop_server(server)


def test_a_hard_reboot_shows_while_it_lasts(slow_cloud: Any, boot: Any) -> None:
    server = boot(slow_cloud)
    slow_cloud.compute.reboot_server(server, "HARD")
    assert slow_cloud.compute.get_server(server).status == "HARD_REBOOT"


def test_a_locked_server_stays_as_it_is(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    cloud.compute.lock_server(server, "under repair")
    assert cloud.compute.get_server(server).locked_reason == "under repair"
    with pytest.raises(exceptions.ConflictException, match="is locked"):
        cloud.compute.stop_server(server)
    cloud.compute.unlock_server(server)
    cloud.compute.stop_server(server)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dance": None}, "There is no such action: dance"),
        ({"reboot": {"type": "GENTLE"}}, "Invalid input for field/attribute type. Value: GENTLE."),
        ({"reboot": {}}, "'type' is a required property"),
        ({}, "Malformed request body"),
    ],
    ids=["unknown", "wrong value", "missing value", "none"],
)
def test_a_wrong_action_is_refused(cloud: Any, boot: Any, raw: Any, body: dict[str, Any], message: str) -> None:
    answer = raw("POST", f"{SERVERS}/{boot(cloud).id}/action", body)
    assert answer.status_code == 400
    assert message in answer.json()["badRequest"]["message"]


def test_delete_answers_at_once_and_the_server_goes_later(slow_cloud: Any, boot: Any) -> None:
    server = boot(slow_cloud)
    path = f"/servers/{server.id}"
    assert slow_cloud.compute.delete(path).status_code == 204
    assert slow_cloud.compute.get(path).json()["server"]["OS-EXT-STS:task_state"] == "deleting"
    assert slow_cloud.compute.delete(path).status_code == 204
    slow_cloud.compute.wait_for_delete(server, interval=0.01)
    assert slow_cloud.compute.delete(path).status_code == 404


def test_a_server_can_be_deleted_while_it_is_built(cloud: Any, devcloud: Any, boot: Any) -> None:
    devcloud.next_boot(seconds=60)
    server = boot(cloud, "BUILD")
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server, interval=0.01)
    assert list(cloud.network.ports()) == []


# Ports


def test_nova_deletes_its_own_port_and_only_unbinds_the_one_it_was_given(cloud: Any, boot: Any) -> None:
    network = cloud.network.find_network("hutch")
    given = cloud.network.create_port(network_id=network.id, name="hutch-1")
    for networks, kept in (([{"port": given.id}], [given.id]), ("auto", [])):
        server = boot(cloud, networks=networks)
        [port] = cloud.network.ports(device_id=server.id)
        assert (port.device_owner, port.status) == ("compute:nova", "ACTIVE")
        assert server.addresses["hutch"][0]["addr"] == port.fixed_ips[0]["ip_address"]
        cloud.compute.delete_server(server)
        cloud.compute.wait_for_delete(server, interval=0.01)
        left = list(cloud.network.ports())
        assert [(port.id, port.device_id, port.status) for port in left] == [(each, "", "DOWN") for each in kept]
        cloud.network.delete_port(given)


def test_a_port_in_use_conflicts(cloud: Any, boot: Any) -> None:
    network = cloud.network.find_network("hutch")
    port = cloud.network.create_port(network_id=network.id)
    boot(cloud, networks=[{"port": port.id}])
    with pytest.raises(exceptions.ConflictException, match=f"Port {port.id} is still in use."):
        boot(cloud, networks=[{"port": port.id}])


# Lists


def names(servers: Any) -> list[str]:
    return sorted(server.name for server in servers)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["hutch-a", "hutch-b", "pool-c"]),
        ({"name": "hutch"}, ["hutch-a", "hutch-b"]),
        ({"name": "^hutch-[b-z]$"}, ["hutch-b"]),
        ({"status": "SHUTOFF"}, ["hutch-b"]),
        ({"tags": "one"}, ["hutch-a", "hutch-b"]),
        ({"tags": "one,two"}, ["hutch-b"]),
        ({"tags-any": "two,three"}, ["hutch-b", "pool-c"]),
        ({"not-tags": "one"}, ["pool-c"]),
        ({"changes-since": "2000-01-01T00:00:00Z"}, ["gone", "hutch-a", "hutch-b", "pool-c"]),
        ({"changes-since": "2100-01-01T00:00:00Z"}, []),
        ({"deleted": "true"}, ["hutch-a", "hutch-b", "pool-c"]),
        ({"no-such-filter": "1"}, ["hutch-a", "hutch-b", "pool-c"]),
    ],
    ids=str,
)
def test_lists_are_filtered(cloud: Any, boot: Any, raw: Any, filters: dict[str, str], found: list[str]) -> None:
    boot(cloud, name="hutch-a", tags=["one"])
    stopped = boot(cloud, name="hutch-b", tags=["one", "two"])
    boot(cloud, name="pool-c", tags=["three"])
    gone = boot(cloud, name="gone", tags=["four"])
    cloud.compute.stop_server(stopped)
    cloud.compute.wait_for_server(stopped, status="SHUTOFF", interval=0.01)
    cloud.compute.delete_server(gone)
    cloud.compute.wait_for_delete(gone, interval=0.01)
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    listed = raw("GET", f"{SERVERS}/detail?{query}", version="2.79").json()["servers"]
    assert sorted(server["name"] for server in listed) == found
    assert all((server["status"] == "DELETED") == (server["name"] == "gone") for server in listed)


def test_lists_come_in_pages(cloud: Any, boot: Any, raw: Any) -> None:
    for number in range(5):
        boot(cloud, name=f"hutch-{number}")
    page = raw("GET", f"{SERVERS}?limit=2&name=hutch").json()
    assert [server["name"] for server in page["servers"]] == ["hutch-4", "hutch-3"]
    assert page["servers_links"][0]["href"].endswith(f"{SERVERS}?limit=2&name=hutch&marker={page['servers'][-1]['id']}")
    assert names(cloud.compute.servers(limit=2)) == [f"hutch-{number}" for number in range(5)]
    assert "servers_links" not in raw("GET", f"{SERVERS}?limit=9").json()


def test_a_project_sees_its_own_servers_only(cloud: Any, devcloud: Any, boot: Any) -> None:
    server = boot(cloud)
    with devcloud.connect("devcloud-other") as other:
        assert list(other.compute.servers()) == []
        assert list(other.network.ports()) == []
        with pytest.raises(exceptions.NotFoundException):
            other.compute.get_server(server.id)
    with pytest.raises(exceptions.ForbiddenException, match="get_all_tenants"):
        list(cloud.compute.servers(all_projects=True))
    with devcloud.connect("devcloud-admin") as admin:
        assert names(admin.compute.servers(all_projects=True)) == ["hutch-1"]
        assert list(admin.compute.servers()) == []


def test_a_change_shows_in_the_next_list(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    list(cloud.compute.servers())
    cloud.compute.set_server_metadata(server, launch="2")
    cloud.compute.add_tag_to_server(server, "later")
    [listed] = cloud.compute.servers()
    assert (listed.metadata, listed.tags) == ({"launch": "2"}, ["later"])


# Metadata, tags, names


def test_metadata_is_set_item_by_item(cloud: Any, boot: Any) -> None:
    server = boot(cloud, metadata={"hutch-instance": "one"})
    cloud.compute.set_server_metadata(server, **{"hutch-launch": "two"})
    assert cloud.compute.fetch_server_metadata(server).metadata == {"hutch-instance": "one", "hutch-launch": "two"}
    cloud.compute.delete_server_metadata(server, ["hutch-launch"])
    assert cloud.compute.fetch_server_metadata(server).metadata == {"hutch-instance": "one"}


def test_tags_are_set_one_by_one_and_together(cloud: Any, boot: Any, raw: Any) -> None:
    server = boot(cloud, tags=["one"])
    tags = f"{SERVERS}/{server.id}/tags"
    codes = [raw("PUT", f"{tags}/two", version="2.79").status_code for _ in range(2)]
    assert codes == [201, 204]
    assert raw("GET", tags, version="2.79").json() == {"tags": ["one", "two"]}
    assert raw("DELETE", f"{tags}/nine", version="2.79").status_code == 404
    assert raw("PUT", tags, {"tags": ["three"]}, "2.79").json() == {"tags": ["three"]}
    assert raw("DELETE", tags, version="2.79").status_code == 204
    assert raw("GET", tags, version="2.25").status_code == 404


def test_a_server_is_renamed(cloud: Any, boot: Any) -> None:
    server = cloud.compute.update_server(boot(cloud), name="hutch-2", description="second")
    assert (server.name, server.description) == ("hutch-2", "second")


# Console and flavors


def test_the_console_is_cut_as_nova_cuts_it(cloud: Any, devcloud: Any, boot: Any, raw: Any) -> None:
    server = boot(cloud)
    devcloud.trouble(server.id, "console", text="one\r\ntwo\x1b[0m\nthree\n")

    def console(length: Any) -> str:
        return str(raw("POST", f"{SERVERS}/{server.id}/action", {"os-getConsoleOutput": length}).json()["output"])

    assert console({}) == "one\ntwo[0m\nthree\n"
    assert console({"length": 2}) == "three\n"
    assert console({"length": "3"}) == "two[0m\nthree\n"
    assert console({"length": 0}) == ""
    assert console({"length": None}).startswith("one")


def test_a_server_without_a_host_has_no_console(cloud: Any, boot: Any) -> None:
    server = boot(cloud, "ERROR", flavor_id="9")
    with pytest.raises(exceptions.ConflictException, match=f"Instance {server.id} is not ready"):
        cloud.compute.get_server_console_output(server)


def test_flavors_are_found_by_name(cloud: Any) -> None:
    flavor = cloud.compute.find_flavor("m1.large")
    assert (flavor.vcpus, flavor.ram, flavor.extra_specs) == (8, 32768, {})
    assert cloud.compute.find_flavor("m1.enormous") is None


def test_user_data_is_for_admins_to_see(cloud: Any, devcloud: Any, boot: Any) -> None:
    text = base64.b64encode(b"#!/bin/sh\ntrue\n").decode()
    server = boot(cloud, user_data=text, config_drive=True)
    seen = cloud.compute.get_server(server.id)
    assert (seen.user_data, seen.has_config_drive) == (None, "True")
    with devcloud.connect("devcloud-admin") as admin:
        assert admin.compute.get_server(server.id).user_data == text
