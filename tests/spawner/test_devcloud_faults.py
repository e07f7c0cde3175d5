"""Faults on request, and what an unmodified openstacksdk makes of them."""

import time
from typing import Any

import pytest
import requests
from keystoneauth1.exceptions import ClientException
from openstack import exceptions

NOWHERE = "00000000-0000-4000-8000-000000000000"
LIST = "/compute/v2.1/servers/detail"


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        ({"action": "status", "status": 503}, 503, "serviceUnavailable"),
        ({"action": "status", "status": 500}, 500, "computeFault"),
        ({"action": "status", "status": 504}, 504, "computeFault"),
        ({"action": "retry-after", "seconds": 2}, 429, "overLimit"),
        ({"action": "retry-after", "seconds": 2, "status": 413}, 413, "overLimit"),
    ],
    ids=["503", "500", "504", "429", "413"],
)
def test_a_status_comes_in_the_service_s_own_body(devcloud: Any, raw: Any, fault: dict[str, Any], status: int, body: str) -> None:
    devcloud.fault(method="GET", path="/servers", **fault)
    answer = raw("GET", LIST)
    assert (answer.status_code, answer.json()[body]["code"]) == (status, status)
    assert answer.headers.get("Retry-After") == ("2" if status in (413, 429) else None)
    assert raw("GET", LIST).status_code == 200


@pytest.mark.parametrize(
    ("path", "shape"),
    [("/network/v2.0/ports", "NeutronError"), ("/image/v2/images", "title"), ("/identity/v3/auth/catalog", "error")],
)
def test_each_service_fails_in_its_own_way(devcloud: Any, raw: Any, path: str, shape: str) -> None:
    devcloud.fault(path=path, action="status", status=503)
    assert shape in raw("GET", path, Accept="application/json").json()


def test_a_fault_comes_when_and_as_often_as_ordered(devcloud: Any, raw: Any) -> None:
    devcloud.fault(path="detail$", action="status", skip=1, times=2)
    assert [raw("GET", LIST).status_code for _ in range(5)] == [200, 503, 503, 200, 200]
    devcloud.fault(path="detail$", action="status", times=None)
    assert {raw("GET", LIST).status_code for _ in range(5)} == {503}
    devcloud.clear_faults()
    assert raw("GET", LIST).status_code == 200


@pytest.mark.parametrize(
    ("action", "carried_out"), [("drop-before", False), ("drop-after", True), ("truncate", True), ("garbage", True)]
)
def test_a_create_whose_answer_is_lost_may_have_happened(
    devcloud: Any, cloud: Any, boot: Any, action: str, carried_out: bool
) -> None:
    cloud.compute.find_flavor("m1.small")
    devcloud.fault(method="POST", path="/servers$", action=action)
    with pytest.raises((ClientException, exceptions.SDKException, ValueError, AttributeError)):
        boot(cloud, name="lost")
    assert [server.name for server in cloud.compute.servers()] == (["lost"] if carried_out else [])


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("drop-before", requests.ConnectionError),
        ("drop-after", requests.ConnectionError),
        ("truncate", requests.exceptions.ChunkedEncodingError),
    ],
)
def test_a_connection_breaks_where_it_should(devcloud: Any, raw: Any, action: str, error: type[Exception]) -> None:
    devcloud.fault(path="detail$", action=action)
    with pytest.raises(error):
        raw("GET", LIST)


def test_garbage_is_no_json(devcloud: Any, raw: Any) -> None:
    devcloud.fault(path="detail$", action="garbage")
    answer = raw("GET", LIST)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    with pytest.raises(ValueError, match=r"."):
        answer.json()


def test_latency_and_delays_are_paid(devcloud: Any, raw: Any) -> None:
    devcloud.latency(0.2)
    devcloud.fault(path="detail$", action="delay", seconds=0.2)
    started = time.monotonic()
    assert raw("GET", LIST).status_code == 200
    assert time.monotonic() - started >= 0.4


def test_calls_are_counted_by_kind(devcloud: Any, cloud: Any, boot: Any) -> None:
    devcloud.clear_calls()
    server = boot(cloud)
    cloud.compute.get_server(server.id)
    calls = devcloud.calls()
    assert calls["counts"]["POST /compute/v2.1/servers"] == 1
    assert calls["counts"]["GET /compute/v2.1/servers/{id}"] >= 2
    assert calls["total"] == sum(calls["counts"].values()) == len(calls["calls"])
    assert {"method", "path", "status", "seconds", "at", "request_id"} == set(calls["calls"][0])


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/faults", {"action": "explode"}, "action 'explode' is not one of status"),
        ("/faults", {"action": "status", "wish": 1}, "unexpected keyword argument 'wish'"),
        ("/quota", {"happiness": 1}, "no such quota: happiness"),
        (f"/servers/{NOWHERE}/crash", {}, "404"),
        ("/next-boot", {"mood": "bad"}, "next-boot knows error, seconds and never_agent, not mood"),
    ],
    ids=["action", "field", "quota", "server", "next-boot"],
)
def test_a_wrong_order_is_refused(devcloud: Any, path: str, body: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        devcloud.control("POST", path, body)


def test_web_pages_may_not_flip_switches(devcloud: Any) -> None:
    headers = {"Origin": "http://somewhere.example"}
    assert requests.post(devcloud.url + "/devcloud/reset", headers=headers, timeout=10).status_code == 403


# Servers in trouble


def test_the_next_boots_fail_as_ordered(devcloud: Any, cloud: Any, boot: Any) -> None:
    devcloud.next_boot(error="No valid host was found. Not today.", times=2)
    messages = [boot(cloud, "ERROR").fault["message"] for _ in range(2)]
    assert messages == ["No valid host was found. Not today."] * 2
    assert list(cloud.network.ports()) == []
    boot(cloud)


def test_a_server_goes_to_error_and_back(devcloud: Any, cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    devcloud.trouble(server.id, "error", message="The host caught fire.")
    server = cloud.compute.get_server(server.id)
    assert (server.status, server.fault["message"]) == ("ERROR", "The host caught fire.")
    cloud.compute.reboot_server(server, "HARD")
    cloud.compute.wait_for_server(server, failures=[], interval=0.01)
    assert cloud.compute.get_server(server.id).fault is None


def test_a_guest_that_switches_itself_off_is_shutoff(devcloud: Any, cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    devcloud.trouble(server.id, "power-off")
    server = cloud.compute.get_server(server.id)
    assert (server.status, server.power_state) == ("SHUTOFF", 4)


def test_a_forgotten_server_leaves_its_port_behind(devcloud: Any, cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    devcloud.trouble(server.id, "forget")
    assert list(cloud.compute.servers()) == []
    assert [port.device_id for port in cloud.network.ports()] == [server.id]
