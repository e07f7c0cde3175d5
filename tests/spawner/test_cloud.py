"""What the cloud's errors mean: each goes to one kind of trouble, in words for people."""

from __future__ import annotations

import json
from pathlib import Path

import keystoneauth1.exceptions as keystone_errors
import openstack.exceptions as sdk_errors
import pytest
import requests
import requests.exceptions as http_errors
from keystoneauth1.session import Session

from spawner.cloud import Cloud, _next_page, read_environment_once
from spawner.cloud_errors import CloudError, Trouble, cloud_error
from spawner.devcloud.process import DevcloudProcess

HTML = "<html><title>503 Service Unavailable</title></html>"


def answered(status: int, body: dict | str) -> sdk_errors.HttpException:
    """What the SDK raises for this answer of a service."""
    response = requests.Response()
    response.status_code, response.url = status, "https://nova.example/servers"
    response.headers["Content-Type"] = "text/html" if isinstance(body, str) else "application/json"
    response._content = (body if isinstance(body, str) else json.dumps(body)).encode()
    with pytest.raises(sdk_errors.HttpException) as caught:
        sdk_errors.raise_from_response(response)
    return caught.value


def nova(kind: str, message: str, code: int) -> dict:
    return {kind: {"code": code, "message": message}}


TABLE = [
    pytest.param(answered(403, nova("forbidden", "Quota exceeded for cores", 403)), Trouble.QUOTA, id="nova-quota"),
    pytest.param(
        answered(409, {"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['port'].", "detail": ""}}),
        Trouble.QUOTA,
        id="neutron-quota",
    ),
    pytest.param(answered(400, nova("badRequest", "No valid host was found.", 400)), Trouble.CAPACITY, id="no-valid-host"),
    pytest.param(
        answered(403, nova("forbidden", "Project 1 is over a limit for [Resource servers is over limit of 2 due to ...]", 403)),
        Trouble.QUOTA,
        id="unified-limits",
    ),
    pytest.param(
        answered(409, {"NeutronError": {"type": "IpAddressGenerationFailure", "message": "No more IP addresses available on ..."}}),
        Trouble.CAPACITY,
        id="no-address-left",
    ),
    pytest.param(
        answered(406, nova("computeFault", "Version 2.79 is not supported by the API. Maximum is 2.65.", 406)),
        Trouble.REFUSED,
        id="older-than-train",
    ),
    pytest.param(answered(404, nova("itemNotFound", "Instance could not be found.", 404)), Trouble.NOT_FOUND, id="not-found"),
    pytest.param(
        answered(404, {"NeutronError": {"type": "PortNotFound", "message": "Port gone", "detail": ""}}),
        Trouble.NOT_FOUND,
        id="no-port",
    ),
    pytest.param(answered(404, HTML), Trouble.UNANSWERED, id="404-of-a-broken-proxy"),
    pytest.param(answered(404, {"message": "no route"}), Trouble.UNANSWERED, id="404-of-a-gateway"),
    pytest.param(answered(404, "[]"), Trouble.UNANSWERED, id="404-with-a-list"),
    pytest.param(answered(409, nova("conflictingRequest", "Port is in use", 409)), Trouble.CONFLICT, id="conflict"),
    pytest.param(answered(401, nova("unauthorized", "token", 401)), Trouble.CREDENTIALS, id="401"),
    pytest.param(answered(403, nova("forbidden", "Policy does not allow", 403)), Trouble.REFUSED, id="policy"),
    pytest.param(answered(400, nova("badRequest", "Invalid input", 400)), Trouble.REFUSED, id="bad-request"),
    pytest.param(
        answered(400, nova("badRequest", "The requested availability zone is not available", 400)), Trouble.CLOSED, id="zone"
    ),
    pytest.param(answered(413, nova("overLimit", "Quota exceeded", 413)), Trouble.QUOTA, id="old-quota"),
    pytest.param(answered(429, nova("overLimit", "slow down", 429)), Trouble.UNANSWERED, id="too-many"),
    pytest.param(answered(500, nova("computeFault", "Unexpected API Error.", 500)), Trouble.UNANSWERED, id="500"),
    pytest.param(answered(502, HTML), Trouble.UNANSWERED, id="502"),
    pytest.param(answered(503, HTML), Trouble.UNANSWERED, id="503"),
    pytest.param(keystone_errors.Unauthorized("no"), Trouble.CREDENTIALS, id="keystone-401"),
    pytest.param(keystone_errors.BadRequest("Expecting to find domain in user."), Trouble.CREDENTIALS, id="keystone-400"),
    pytest.param(
        keystone_errors.NotFound("Could not find Application Credential: 1. (HTTP 404)"), Trouble.CREDENTIALS, id="revoked"
    ),
    pytest.param(keystone_errors.NotFound("Not Found (HTTP 404)"), Trouble.UNANSWERED, id="404-before-keystone"),
    pytest.param(keystone_errors.Forbidden("not allowed"), Trouble.CREDENTIALS, id="keystone-403"),
    pytest.param(keystone_errors.EndpointNotFound("not in the catalog"), Trouble.CREDENTIALS, id="not-in-the-catalog"),
    pytest.param(keystone_errors.SSLError("certificate verify failed: expired"), Trouble.CREDENTIALS, id="certificate"),
    pytest.param(keystone_errors.SSLError("EOF occurred in violation of protocol"), Trouble.UNANSWERED, id="tls-cut-off"),
    pytest.param(keystone_errors.MissingRequiredOptions([]), Trouble.CREDENTIALS, id="incomplete-clouds-yaml"),
    pytest.param(sdk_errors.ConfigException("Cloud devcloud was not found."), Trouble.CREDENTIALS, id="unknown-cloud"),
    pytest.param(keystone_errors.ConnectFailure("refused"), Trouble.UNANSWERED, id="connection-refused"),
    pytest.param(keystone_errors.ConnectTimeout("timed out"), Trouble.UNANSWERED, id="timed-out"),
    pytest.param(keystone_errors.DiscoveryFailure("no versions"), Trouble.UNANSWERED, id="discovery"),
    pytest.param(http_errors.ChunkedEncodingError("cut off"), Trouble.UNANSWERED, id="cut-off"),
    pytest.param(http_errors.JSONDecodeError("not JSON", "<html>", 0), Trouble.UNANSWERED, id="not-json"),
    pytest.param(ConnectionResetError("reset"), Trouble.UNANSWERED, id="reset"),
]


@pytest.mark.parametrize(("error", "trouble"), TABLE)
def test_each_error_is_one_kind_of_trouble(error, trouble):
    assert cloud_error(error, "create the server").trouble is trouble


@pytest.mark.parametrize(("error", "trouble"), TABLE)
def test_each_error_is_a_plain_sentence_with_the_clouds_words_apart(error, trouble):
    sorted_error = cloud_error(error, "create the server")
    sentence = str(sorted_error)
    assert sentence[0].isupper() and sentence.endswith(".") and "\n" not in sentence
    assert not any(word in sentence for word in ("HTTP", "Exception", "nova", "<", "{"))
    assert isinstance(sorted_error.detail, str)


@pytest.mark.parametrize(
    ("link", "path"),
    [
        pytest.param([], None, id="last-page"),
        pytest.param(
            [{"rel": "next", "href": "https://nova.example/v2.1/servers/detail?tags=hutch-1&marker=abc"}],
            "/servers/detail?tags=hutch-1&marker=abc",
            id="next-page",
        ),
        pytest.param([{"rel": "self", "href": "https://nova.example"}], None, id="another-link"),
    ],
)
def test_listings_go_on_where_nova_says(link, path):
    assert _next_page({"servers": [], "servers_links": link}, "servers", "/servers/detail?tags=hutch-1") == path


# --- against a devcloud


@pytest.mark.parametrize(
    ("configured", "bundle", "used"),
    [(True, "/site.pem", "/site.pem"), (True, "", True), (False, "/site.pem", False), ("/own.pem", "/site.pem", "/own.pem")],
)
def test_the_environments_authorities_are_trusted_where_the_cloud_names_none(monkeypatch, configured, bundle, used):
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    session = Session(verify=configured)
    read_environment_once(session)
    assert session.verify == used


async def test_a_proxy_that_the_environment_names_is_used(monkeypatch, devcloud: DevcloudProcess):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CloudError) as caught:
        await Cloud("devcloud", devcloud.clouds_yaml).flavor_id("m1.small")
    assert "proxy" in caught.value.detail.lower()


async def test_a_clouds_yaml_that_does_not_exist(tmp_path):
    with pytest.raises(CloudError) as caught:
        await Cloud("devcloud", tmp_path / "clouds.yaml").servers("1")
    assert caught.value.trouble is Trouble.CREDENTIALS and "No such file" in caught.value.detail


@pytest.mark.parametrize(
    ("text", "word"),
    [
        pytest.param("", "devcloud", id="empty"),
        pytest.param("clouds: {other: {}}", "devcloud", id="without-this-cloud"),
        pytest.param("clouds: [", "not YAML", id="not-yaml"),
        pytest.param("clouds: {devcloud: {region_name: r}}", "auth", id="without-credentials"),
        pytest.param("clouds: {devcloud: {auth_type: nowhere}}", "nowhere", id="unknown-way-to-sign-in"),
    ],
)
async def test_a_clouds_yaml_that_cannot_be_used(tmp_path: Path, text, word):
    file = tmp_path / "clouds.yaml"
    file.write_text(text)
    with pytest.raises(CloudError) as caught:
        await Cloud("devcloud", file).servers("1")
    assert caught.value.trouble is Trouble.CREDENTIALS and word in caught.value.detail


async def test_a_password_that_is_wrong_and_is_put_right_while_the_hub_runs(tmp_path: Path, devcloud: DevcloudProcess):
    file = tmp_path / "clouds.yaml"
    text = devcloud.clouds_yaml.read_text()
    lines = [line.split(":")[0] + ": wrong" if line.strip().startswith("password") else line for line in text.splitlines()]
    file.write_text("\n".join(lines))
    cloud = Cloud("devcloud", file)
    with pytest.raises(CloudError) as caught:
        await cloud.servers("1")
    assert caught.value.trouble is Trouble.CREDENTIALS
    file.write_text(text)
    assert await cloud.servers("1") == []


async def test_a_cloud_that_was_away_at_the_first_question_is_found_later(devcloud: DevcloudProcess):
    cloud = Cloud("devcloud", devcloud.clouds_yaml)
    devcloud.fault(action="drop-before", times=None)
    with pytest.raises(CloudError) as caught:
        await cloud.servers("1")
    assert caught.value.trouble is Trouble.UNANSWERED
    devcloud.clear_faults()
    assert await cloud.servers("1") == []


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "status", "status": 500},
        {"action": "status", "status": 503},
        {"action": "status", "status": 404},
        {"action": "garbage"},
        {"action": "truncate"},
        {"action": "drop-after"},
    ],
    ids=lambda fault: f"{fault['action']}-{fault.get('status', '')}",
)
async def test_a_listing_that_failed_is_unknown_and_not_empty(devcloud: DevcloudProcess, fault):
    cloud = Cloud("devcloud", devcloud.clouds_yaml)
    assert await cloud.servers("1") == []
    devcloud.fault(method="GET", path="/servers/detail", times=None, **fault)
    with pytest.raises(CloudError):
        await cloud.servers("1")


@pytest.mark.parametrize("kind", ["image", "flavor", "network", "security group"])
async def test_a_name_that_the_cloud_does_not_have_is_named(devcloud: DevcloudProcess, kind):
    cloud = Cloud("devcloud", devcloud.clouds_yaml)
    look = {
        "image": cloud.image_id,
        "flavor": cloud.flavor_id,
        "network": cloud.network_id,
        "security group": cloud.security_group_id,
    }
    with pytest.raises(CloudError, match=f"The cloud has no {kind} named nowhere") as caught:
        await look[kind]("nowhere")
    assert caught.value.trouble is Trouble.REFUSED


async def test_another_deployments_servers_are_not_listed(devcloud: DevcloudProcess, boot, cloud):
    for deployment in ("1", "2"):
        server = boot(cloud, metadata={"hutch-deployment": deployment})
        cloud.compute.put(f"/servers/{server.id}/tags/hutch-{deployment}", microversion="2.79")
    listed = await Cloud("devcloud", devcloud.clouds_yaml).servers("1")
    assert [server["metadata"]["hutch-deployment"] for server in listed] == ["1"]


async def test_a_name_that_two_have_is_the_facilitys_to_settle_and_no_fault_of_the_cloud(devcloud: DevcloudProcess, cloud):
    for _ in range(2):
        cloud.network.create_security_group(name="twice")
    asked = Cloud("devcloud", devcloud.clouds_yaml)
    with pytest.raises(CloudError, match=r"several of that name.*give its id") as caught:
        await asked.security_group_id("twice")
    assert caught.value.trouble is Trouble.REFUSED
    assert not asked.is_down


async def test_an_image_that_was_replaced_by_another_of_its_name_is_looked_up_again(devcloud: DevcloudProcess, boot, cloud):
    ours, server = Cloud("devcloud", devcloud.clouds_yaml), boot(cloud)
    old = cloud.compute.create_server_image(server, "nightly", wait=True)
    assert await ours.image_id("nightly") == old.id
    cloud.image.delete_image(old.id)
    new = cloud.compute.create_server_image(server, "nightly", wait=True)
    body = {"name": "one", "imageRef": await ours.image_id("nightly"), "flavorRef": "2", "networks": "none"}
    with pytest.raises(CloudError, match="refused to create the server"):
        await ours.create_server({"server": body})
    assert await ours.image_id("nightly") == new.id
    cloud.image.delete_image(new.id)  # other tests count the images of this devcloud


async def test_a_cloud_without_placement_does_not_say_what_is_free_and_nothing_else_follows(devcloud: DevcloudProcess, tmp_path):
    file = tmp_path / "clouds.yaml"
    file.write_text(devcloud.clouds_yaml.read_text().replace("region_name:", "placement_interface: nowhere\n    region_name:"))
    ours = Cloud("devcloud-admin", file)
    assert await Cloud("devcloud-admin", devcloud.clouds_yaml).free_hosts()
    await ours.servers("1")
    connection = ours._connection
    assert await ours.free_hosts() is None
    assert ours._connection is connection
