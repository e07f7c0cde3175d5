"""What Nova answers about servers, as far as Hutch relies on it."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from running_hub import until

NOWHERE = "00000000-0000-4000-8000-000000000000"
SHOWN = {
    "id", "name", "status", "tenant_id", "user_id", "metadata", "hostId", "image", "flavor", "created", "updated", "addresses",
    "accessIPv4", "accessIPv6", "links", "OS-DCF:diskConfig", "OS-EXT-AZ:availability_zone", "config_drive", "key_name",
    "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at", "OS-EXT-STS:task_state", "OS-EXT-STS:vm_state",
    "OS-EXT-STS:power_state", "os-extended-volumes:volumes_attached", "security_groups", "progress", "locked", "description",
    "tags", "trusted_image_certificates", "locked_reason", "server_groups",
}  # fmt: skip
EMBEDDED_FLAVOR = {"original_name", "vcpus", "ram", "disk", "ephemeral", "swap", "extra_specs"}


def fault(answer: Any) -> tuple[int, str, str]:
    """Status, kind and words of a refusal."""
    [(kind, body)] = answer.json().items()
    assert body["code"] == answer.status_code
    return answer.status_code, kind, body["message"]


# --- create


def test_a_create_answers_before_the_server_is_built(kept):
    answer, server = kept["answer"], kept["answer"].json()["server"]
    assert set(server) == {"id", "links", "adminPass", "security_groups", "OS-DCF:diskConfig"}
    assert answer.headers["Location"] == server["links"][0]["href"]
    assert answer.headers["X-OpenStack-Request-Id"].startswith("req-")
    assert kept["first"]["status"] in ("BUILD", "ACTIVE") and kept["first"]["tags"] == ["hutch-1"]


def test_a_server_is_shown_with_all_that_was_asked_for(contract, kept):
    server = contract.server(kept["id"])
    assert set(server) == SHOWN
    assert set(server["flavor"]) == EMBEDDED_FLAVOR
    assert server["metadata"] == {"hutch-instance": "2"} and server["tags"] == ["hutch-1"]
    assert (server["status"], server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:power_state"]) == ("ACTIVE", "active", 1)
    assert (server["progress"], server["config_drive"], server["locked"]) == (0, "True", False)
    assert server["image"]["id"] == contract.image_id and server["server_groups"] == [] and server["hostId"]
    assert server["OS-EXT-AZ:availability_zone"] == contract.zone
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", server["created"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", server["OS-SRV-USG:launched_at"])


def test_its_address_is_that_of_its_port(contract, kept):
    [address] = contract.server(kept["id"])["addresses"]["hutch"]
    port = kept["port"]
    assert address == {
        "version": 4,
        "addr": port["fixed_ips"][0]["ip_address"],
        "OS-EXT-IPS:type": "fixed",
        "OS-EXT-IPS-MAC:mac_addr": port["mac_address"],
    }


@pytest.mark.parametrize(
    ("changes", "status", "kind", "words"),
    [
        pytest.param({"flavorRef": "77"}, 400, "badRequest", "Flavor 77 could not be found.", id="flavor"),
        pytest.param({"imageRef": NOWHERE}, 400, "badRequest", "Can not find requested image", id="image"),
        pytest.param({"networks": [{"uuid": NOWHERE}]}, 400, "badRequest", f"Network {NOWHERE} could not be found.", id="network"),
        pytest.param({"networks": [{"port": NOWHERE}]}, 400, "badRequest", f"Port id {NOWHERE} could not be found.", id="port"),
        pytest.param({"networks": None}, 400, "badRequest", "'networks' is a required property", id="no-networks"),
        pytest.param({"availability_zone": "moon"}, 400, "badRequest", "availability zone is not available", id="zone"),
        pytest.param({"key_name": "mine"}, 400, "badRequest", "Invalid key_name provided.", id="key"),
        pytest.param(
            {"security_groups": [{"name": "nope"}]},
            400,
            "badRequest",
            "Unable to find security_group",
            id="group",
        ),
        pytest.param({"name": ""}, 400, "badRequest", "Invalid input for field/attribute name.", id="no-name"),
        pytest.param({"metadata": {"k": "v" * 256}}, 400, "badRequest", "Invalid input for field/attribute k.", id="metadata"),
        pytest.param(
            {"metadata": {f"k{n}": "v" for n in range(129)}},
            *(403, "forbidden", "Maximum number of metadata items exceeds 128"),
            id="much-metadata",
        ),
        pytest.param({"user_data": "not base64!"}, 400, "badRequest", "is not a 'base64'", id="user-data"),
        pytest.param({"user_data": "A" * 65536}, 400, "badRequest", "is too long", id="long-user-data"),
        pytest.param({"tags": ["t" * 61]}, 400, "badRequest", "is too long", id="long-tag"),
        pytest.param({"tags": ["a,b"]}, 400, "badRequest", "does not match", id="tag-with-a-comma"),
        pytest.param({"wish": "moon"}, 400, "badRequest", "Additional properties are not allowed", id="unknown-field"),
    ],
)
def test_a_wrong_create_is_refused(contract, changes, status, kind, words):
    got = fault(contract.ask("POST", "/servers", contract.request(**changes)))
    assert got[:2] == (status, kind) and words in got[2]


@pytest.mark.parametrize(("field", "before", "since"), [("tags", "2.51", "2.52"), ("description", "2.18", "2.19")])
def test_a_field_is_unknown_before_its_microversion(contract, field, before, since):
    # a flavor that does not exist: what is complained of tells whether the field was understood
    body = contract.request(flavorRef="77", **{field: ["a"] if field == "tags" else "a"})
    assert "Additional properties" in fault(contract.ask("POST", "/servers", body, version=before))[2]
    assert "Flavor 77" in fault(contract.ask("POST", "/servers", body, version=since))[2]


def test_a_port_in_use_is_a_conflict_and_stays_where_it_is(contract, kept):
    body = contract.request(networks=[{"port": kept["port"]["id"]}])
    status, kind, words = fault(contract.ask("POST", "/servers", body))
    assert (status, kind) == (409, "conflictingRequest") and f"Port {kept['port']['id']} is still in use." in words
    port = contract.ask("GET", f"/ports/{kept['port']['id']}", service="network").json()["port"]
    assert port["device_id"] == kept["id"]


def test_the_same_port_twice_is_refused(contract):
    port = contract.port()
    body = contract.request(networks=[{"port": port["id"]}, {"port": port["id"]}])
    assert fault(contract.ask("POST", "/servers", body))[:2] == (400, "badRequest")


def test_a_server_that_fits_nowhere_ends_in_error_and_frees_its_port(contract):
    port = contract.port()
    server_id = contract.create(flavorRef=contract.flavor_id("too-big"), networks=[{"port": port["id"]}])
    server = contract.until(server_id, "ERROR")
    assert set(server["fault"]) == {"code", "message", "created"} and server["fault"]["code"] == 500
    assert server["fault"]["message"].startswith("No valid host was found.")
    assert server["hostId"] == "" and server["OS-EXT-STS:vm_state"] == "error" and "progress" not in server
    held = contract.ask("GET", f"/ports/{port['id']}", service="network").json()["port"]["device_id"]
    assert contract.ask("DELETE", f"/servers/{server_id}").status_code == 204
    contract.until_gone(server_id)
    assert held in ("", server_id)
    assert contract.ask("GET", f"/ports/{port['id']}", service="network").json()["port"]["device_id"] == ""


# --- look


def test_a_missing_server_is_not_found(contract):
    answer = contract.ask("GET", f"/servers/{NOWHERE}")
    assert answer.json() == {"itemNotFound": {"code": 404, "message": f"Instance {NOWHERE} could not be found."}}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("GET", "", None, id="show"),
        pytest.param("DELETE", "", None, id="delete"),
        pytest.param("POST", "/action", {"os-start": None}, id="act"),
        pytest.param("GET", "/metadata", None, id="metadata"),
    ],
)
def test_a_server_of_another_project_is_not_found(contract, kept, method, path, body):
    answer = contract.ask(method, f"/servers/{kept['id']}{path}", body, who=contract.other)
    assert fault(answer)[:2] == (404, "itemNotFound")


def test_tags_of_another_project_are_forbidden_rather_than_missing(contract, kept):
    answer = contract.ask("GET", f"/servers/{kept['id']}/tags", who=contract.other)
    assert fault(answer)[:2] == (403, "forbidden")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        pytest.param("tags=hutch-1", True, id="tag"),
        pytest.param("tags=hutch-1,other", False, id="all-tags"),
        pytest.param("tags-any=hutch-1,other", True, id="any-tag"),
        pytest.param("not-tags=hutch-1", False, id="not-tag"),
        pytest.param("tags=hutch", False, id="part-of-a-tag"),
        pytest.param("name=contract", True, id="part-of-the-name"),
        pytest.param("status=active", True, id="status"),
        pytest.param("status=shutoff", False, id="another-status"),
        pytest.param("changes-since=2020-01-01T00:00:00Z", True, id="changed"),
        pytest.param("changes-since=2099-01-01T00:00:00Z", False, id="not-changed"),
    ],
)
def test_listings_are_filtered(contract, kept, query, found):
    answer = contract.ask("GET", f"/servers/detail?{query}")
    assert answer.status_code == 200, answer.text
    assert (kept["id"] in [server["id"] for server in answer.json()["servers"]]) is found


def test_a_tag_filters_nothing_before_its_microversion(contract, kept):
    answer = contract.ask("GET", "/servers/detail?tags=nothing", version="2.25")
    assert kept["id"] in [server["id"] for server in answer.json()["servers"]]


def test_a_listing_shows_what_a_single_server_does_but_for_its_groups(contract, kept):
    [listed] = contract.ask("GET", "/servers/detail?tags=hutch-1").json()["servers"]
    shown = contract.server(kept["id"])
    assert listed == {key: value for key, value in shown.items() if key != "server_groups"}


def test_pages_are_linked_until_one_is_not_full(contract, kept):
    more = [contract.create(tags=["page"]) for _ in range(2)]
    for server_id in more:
        contract.until(server_id, "ACTIVE")
    seen, path, pages = [], "/servers/detail?tags=page&limit=1", 0
    while path:
        page = contract.ask("GET", path).json()
        seen += [server["id"] for server in page["servers"]]
        assert len(page["servers"]) <= 1
        path = next((link["href"] for link in page.get("servers_links", []) if link["rel"] == "next"), None)
        pages += 1
    # Nova links on from a full page, whether or not anything follows
    assert sorted(seen) == sorted(more) and pages == 3
    for server_id in more:
        contract.ask("DELETE", f"/servers/{server_id}")


@pytest.mark.parametrize(
    ("query", "status", "kind"),
    [
        pytest.param("limit=many", 400, "badRequest", id="limit"),
        pytest.param("status=nonsense", 400, "badRequest", id="unknown-status"),
        pytest.param(f"marker={NOWHERE}", 400, "badRequest", id="marker"),
        pytest.param("changes-since=lately", 400, "badRequest", id="changes-since"),
        pytest.param("sort_key=colour", 400, "badRequest", id="sort-key"),
        pytest.param("all_tenants=1", 403, "forbidden", id="everybodys"),
    ],
)
def test_a_wrong_listing_is_refused(contract, query, status, kind):
    assert fault(contract.ask("GET", f"/servers/detail?{query}"))[:2] == (status, kind)


# --- microversions


@pytest.mark.parametrize(
    ("headers", "status", "version"),
    [
        pytest.param({}, 200, "2.1", id="none"),
        pytest.param({"OpenStack_API_Version": "compute 2.79"}, 200, "2.79", id="ours"),
        pytest.param({"X_OpenStack_Nova_API_Version": "2.60"}, 200, "2.60", id="old-header"),
        pytest.param({"OpenStack_API_Version": "volume 3.50"}, 200, "2.1", id="of-another-service"),
        pytest.param({"OpenStack_API_Version": "compute latest"}, 200, None, id="latest"),
        pytest.param({"OpenStack_API_Version": "compute 2.999"}, 406, None, id="too-new"),
        pytest.param({"OpenStack_API_Version": "compute 1.9"}, 406, None, id="too-old"),
        pytest.param({"OpenStack_API_Version": "compute two"}, 400, None, id="not-a-version"),
    ],
)
def test_microversions_are_negotiated(contract, headers, status, version):
    answer = contract.ask("GET", "/servers/detail", version=None, **headers)
    assert answer.status_code == status
    if version:
        assert answer.headers["OpenStack-API-Version"] == f"compute {version}"
        assert answer.headers["X-OpenStack-Nova-API-Version"] == version
        assert "OpenStack-API-Version" in answer.headers["Vary"]


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("2.1", SHOWN - {"locked", "description", "tags", "trusted_image_certificates", "locked_reason", "server_groups"}),
        ("2.9", SHOWN - {"description", "tags", "trusted_image_certificates", "locked_reason", "server_groups"}),
        ("2.26", SHOWN - {"trusted_image_certificates", "locked_reason", "server_groups"}),
        ("2.71", SHOWN - {"locked_reason"}),
        ("2.90", SHOWN | {"OS-EXT-SRV-ATTR:hostname"}),
    ],
)
def test_a_server_is_shown_in_the_shape_of_its_microversion(contract, kept, version, fields):
    assert set(contract.server(kept["id"], version=version)) == fields


# --- metadata and tags


def test_metadata_is_changed_item_by_item(contract, kept):
    path = f"/servers/{kept['id']}/metadata"
    answer = contract.ask("POST", path, {"metadata": {"a": "1", "b": "2"}})
    assert (answer.status_code, answer.json()) == (200, {"metadata": {"hutch-instance": "2", "a": "1", "b": "2"}})
    assert contract.ask("PUT", f"{path}/a", {"meta": {"a": "3"}}).json() == {"meta": {"a": "3"}}
    assert [contract.ask("DELETE", f"{path}/{key}").status_code for key in ("a", "b", "a")] == [204, 204, 404]
    assert contract.ask("GET", path).json() == {"metadata": {"hutch-instance": "2"}}


def test_tags_are_changed_one_by_one(contract, kept):
    path = f"/servers/{kept['id']}/tags"
    assert contract.ask("PUT", f"{path}/extra").status_code == 201
    assert contract.ask("PUT", f"{path}/extra").status_code == 204
    assert sorted(contract.ask("GET", path).json()["tags"]) == ["extra", "hutch-1"]
    assert [contract.ask("DELETE", f"{path}/extra").status_code for _ in range(2)] == [204, 404]


# --- snapshots


def test_a_snapshot_is_an_image_of_the_project_and_the_server_goes_on(contract):
    server_id = contract.create()
    contract.until(server_id, "ACTIVE")
    answer = contract.act(server_id, "createImage", {"name": "hutch-copy", "metadata": {"purpose": "contract"}})
    assert answer.status_code == 202 and set(answer.json()) == {"image_id"}
    contract.until(server_id, "ACTIVE")
    path = f"/images/{answer.json()['image_id']}"
    image = contract.ask("GET", path, service="image").json()
    assert (image["name"], image["visibility"], image["owner"]) == ("hutch-copy", "private", contract.cloud.current_project_id)
    assert (image["image_type"], image["instance_uuid"], image["purpose"]) == ("snapshot", server_id, "contract")
    # the fake compute uploads nothing
    assert image["status"] in ("queued", "active")
    assert contract.ask("GET", path, service="image", who=contract.other).status_code == 404
    assert contract.ask("DELETE", path, service="image", who=contract.other).status_code == 404
    assert contract.ask("DELETE", path, service="image").status_code == 204
    assert contract.ask("GET", path, service="image").status_code == 404
    actions = contract.ask("GET", f"/servers/{server_id}/os-instance-actions").json()["instanceActions"]
    assert [action["action"] for action in actions] == ["createImage", "create"]


@pytest.mark.parametrize("wrong", [{}, {"name": ""}, {"name": "x", "size": 1}], ids=str)
def test_a_wrong_snapshot_is_refused(contract, kept, wrong):
    assert fault(contract.act(kept["id"], "createImage", wrong))[:2] == (400, "badRequest")


def test_a_public_image_of_others_is_not_deleted(contract):
    assert contract.ask("DELETE", f"/images/{contract.image_id}", service="image").status_code == 403


# --- console, actions


def test_the_console_is_text_and_cut_by_lines(contract, kept):
    whole = contract.act(kept["id"], "os-getConsoleOutput", {})
    assert whole.status_code == 200 and isinstance(whole.json()["output"], str)
    assert isinstance(contract.act(kept["id"], "os-getConsoleOutput", {"length": 2}).json()["output"], str)


@pytest.mark.parametrize(
    ("action", "argument", "status", "kind"),
    [
        pytest.param("os-start", None, 409, "conflictingRequest", id="start"),
        pytest.param("unshelve", None, 409, "conflictingRequest", id="unshelve"),
        pytest.param("unpause", None, 409, "conflictingRequest", id="unpause"),
        pytest.param("resume", None, 409, "conflictingRequest", id="resume"),
        pytest.param("os-getConsoleOutput", {"length": "many"}, 400, "badRequest", id="console-length"),
        pytest.param("reboot", {"type": "GENTLE"}, 400, "badRequest", id="reboot"),
        pytest.param("fly", None, 400, "badRequest", id="unknown"),
    ],
)
def test_what_an_active_server_cannot_do_is_refused(contract, kept, action, argument, status, kind):
    got = fault(contract.act(kept["id"], action, argument))
    assert got[:2] == (status, kind)
    if status == 409:
        assert re.search(rf"Cannot '\w+' instance {kept['id']} while it is in vm_state active", got[2])


def test_a_server_is_stopped_started_shelved_and_unshelved(contract):
    port = contract.port()
    server_id = contract.create(networks=[{"port": port["id"]}])
    address = contract.until(server_id, "ACTIVE")["addresses"]

    assert contract.act(server_id, "os-stop").status_code == 202
    server = contract.until(server_id, "SHUTOFF")
    assert (server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:power_state"], server["addresses"]) == ("stopped", 4, address)
    assert fault(contract.act(server_id, "os-stop"))[:2] == (409, "conflictingRequest")
    assert fault(contract.act(server_id, "reboot", {"type": "SOFT"}))[:2] == (409, "conflictingRequest")

    assert contract.act(server_id, "os-start").status_code == 202
    contract.until(server_id, "ACTIVE")

    assert contract.act(server_id, "shelve").status_code == 202
    contract.until(server_id, "SHELVED_OFFLOADED")
    # a real one lets go of the host a moment later
    server = until(lambda: (one := contract.server(server_id))["hostId"] == "" and one, f"{server_id} has no host")
    assert (server["OS-EXT-STS:vm_state"], server["hostId"], server["addresses"]) == ("shelved_offloaded", "", address)
    assert fault(contract.act(server_id, "os-start"))[:2] == (409, "conflictingRequest")

    assert contract.act(server_id, "unshelve").status_code == 202
    server = contract.until(server_id, "ACTIVE")
    assert server["addresses"] == address and server["hostId"]

    actions = contract.ask("GET", f"/servers/{server_id}/os-instance-actions").json()["instanceActions"]
    assert [action["action"] for action in actions] == ["unshelve", "shelve", "start", "stop", "create"]

    # a port that was handed over outlives the server, and is free again
    assert contract.ask("DELETE", f"/servers/{server_id}").status_code == 204
    contract.until_gone(server_id)
    left = contract.ask("GET", f"/ports/{port['id']}", service="network").json()["port"]
    assert (left["device_id"], left["device_owner"], left["status"]) == ("", "", "DOWN")
    assert fault(contract.ask("DELETE", f"/servers/{server_id}"))[:2] == (404, "itemNotFound")


def test_what_operators_do_to_a_server_keeps_it_from_being_stopped_and_started(contract):
    server_id = contract.create()
    address = contract.until(server_id, "ACTIVE")["addresses"]
    other = {"flavorRef": contract.flavor_id("m1.tiny")}
    for there, argument, status, back in (
        ("pause", None, "PAUSED", "unpause"),
        ("suspend", None, "SUSPENDED", "resume"),
        ("rescue", None, "RESCUE", "unrescue"),
        ("resize", other, "VERIFY_RESIZE", "confirmResize"),
    ):
        assert contract.act(server_id, there, argument).status_code == (200 if there == "rescue" else 202), there
        server = contract.until(server_id, status)
        assert server["addresses"] == address
        for action in ("os-stop", "os-start"):
            code, kind, words = fault(contract.act(server_id, action))
            assert (code, kind) == (409, "conflictingRequest")
            assert words.endswith(f"while it is in vm_state {server['OS-EXT-STS:vm_state']}")
        assert contract.act(server_id, back).status_code in (202, 204), back
        contract.until(server_id, "ACTIVE")


@pytest.mark.parametrize(("before", "power"), [("ACTIVE", 1), ("SHUTOFF", 4)])
def test_a_resized_server_is_up_as_it_was_before_also_until_that_is_confirmed(contract, before, power):
    server_id = contract.create()
    contract.until(server_id, "ACTIVE")
    if before == "SHUTOFF":
        contract.act(server_id, "os-stop")
        contract.until(server_id, before)
    assert contract.act(server_id, "resize", {"flavorRef": contract.flavor_id("m1.tiny")}).status_code == 202
    assert contract.until(server_id, "VERIFY_RESIZE")["OS-EXT-STS:power_state"] == power
    assert contract.act(server_id, "confirmResize").status_code == 204
    assert contract.until(server_id, before)["OS-EXT-STS:power_state"] == power


def test_a_locked_server_is_neither_stopped_started_nor_deleted_and_says_so(contract):
    server_id = contract.create()
    contract.until(server_id, "ACTIVE")
    assert contract.act(server_id, "lock", {"locked_reason": "under repair"}).status_code == 202
    server = contract.server(server_id)
    assert (server["status"], server["locked"], server["locked_reason"]) == ("ACTIVE", True, "under repair")
    refused = [contract.act(server_id, action) for action in ("os-stop", "os-start", "shelve")]
    for answer in (*refused, contract.ask("DELETE", f"/servers/{server_id}")):
        assert fault(answer) == (409, "conflictingRequest", f"Instance {server_id} is locked")
    assert contract.act(server_id, "unlock").status_code == 202
    assert contract.act(server_id, "os-stop").status_code == 202
    contract.until(server_id, "SHUTOFF")


def test_a_server_that_is_built_or_going_takes_a_delete_and_no_start(contract):
    server_id = contract.create()
    # Nova shows a server that it has not placed yet, but cannot find it to act on it
    assert fault(contract.act(server_id, "os-start"))[:2] in ((404, "itemNotFound"), (409, "conflictingRequest"))
    assert contract.ask("DELETE", f"/servers/{server_id}").status_code == 204
    contract.until_gone(server_id)


def test_a_port_that_nova_made_goes_with_the_server(contract):
    server_id = contract.create()
    contract.until(server_id, "ACTIVE")
    [port] = contract.ask("GET", f"/ports?device_id={server_id}", service="network").json()["ports"]
    assert port["device_owner"].startswith("compute:")
    contract.ask("DELETE", f"/servers/{server_id}")
    contract.until_gone(server_id)
    assert contract.ask("GET", f"/ports/{port['id']}", service="network").status_code == 404


# --- quota


def test_a_full_quota_is_forbidden_in_words_that_name_it(contract, quota):
    used = contract.ask("GET", "/limits").json()["limits"]["absolute"]["totalInstancesUsed"]
    quota(instances=used)
    status, kind, words = fault(contract.ask("POST", "/servers", contract.request()))
    assert (status, kind) == (403, "forbidden")
    assert words == f"Quota exceeded for instances: Requested 1, but already used {used} of {used} instances"
    assert contract.ask("GET", "/limits").json()["limits"]["absolute"]["maxTotalInstances"] == used


def test_the_time_of_a_server_is_in_utc(contract, kept):
    created = time.strptime(contract.server(kept["id"])["created"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(time.gmtime()) - time.mktime(created)) < 3600
