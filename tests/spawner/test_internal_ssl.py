"""JupyterHub's internal_ssl: a certificate for each launch, for the address that the server has, handed over by the agent."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupyterhub.user
import pytest
import requests
from cryptography import x509
from facility_hub import facility
from jupyterhub.utils import make_ssl_context
from plain_hub import plain_hub
from running_hub import RunningHub, until

from hub.database.tables import Instance, now
from images.guest import notebook
from spawner.devcloud.process import DevcloudProcess, running

SETTINGS = """
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="agent") as devcloud:
        yield devcloud


@pytest.fixture(scope="module")
def hub(cloud: DevcloudProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with plain_hub(tmp_path_factory.mktemp("hub"), cloud, SETTINGS) as hub:
        yield hub


def start(hub: RunningHub, *names: str) -> None:
    """At once, and waits until all are ready."""
    for name in names:
        assert hub.api("POST", f"users/ann/servers/{name}", json={}).status_code in (201, 202)
    for name in names:
        hub.until_ready("ann", name, 180)


def target(hub: RunningHub, name: str) -> str:
    """Where the proxy sends what is for this server."""
    return next(route["target"] for path, route in hub.api("GET", "proxy").json().items() if path.endswith(f"/user/ann/{name}/"))


def ask(hub: RunningHub, name: str, path: str = "api/status") -> requests.Response:
    """As a browser does, through the proxy; to know whose token that is, the notebook asks the hub."""
    headers = {"Authorization": f"token {hub.token_of('ann')}"}
    return requests.get(f"http://localhost:{hub.port}/user/ann/{name}/{path}", headers=headers, timeout=60)


def certificate(url: str) -> x509.Certificate:
    address, port = url.removeprefix("https://").split(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((address, int(port))).encode())


def names_in(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def test_two_launches_of_one_user_at_once_have_a_certificate_each(hub):
    start(hub, "one", "two")
    seen = {}
    for name in ("one", "two"):
        url = target(hub, name)
        assert url.startswith("https://")
        seen[name] = certificate(url)
        assert names_in(seen[name]) == [url.removeprefix("https://").split(":")[0], "localhost"]
        answer = ask(hub, name)
        assert (answer.status_code, "kernels" in answer.json()) == (200, True)
    assert seen["one"].public_key() != seen["two"].public_key()


def test_nobody_but_hub_and_proxy_is_let_in(hub):
    start(hub, "closed")
    url = target(hub, "closed")
    with pytest.raises(requests.exceptions.RequestException, match=r"(?i)certificate required|connection"):
        requests.get(f"{url}/user/ann/closed/api", verify=False, timeout=30)  # noqa: S501
    with pytest.raises((requests.exceptions.RequestException, OSError)):
        requests.get(f"{url.replace('https', 'http')}/user/ann/closed/api", timeout=30)


def key_and_certificate(hub: RunningHub) -> list[str]:
    return [str(hub.folder / f"internal-ssl/hub-internal/hub-internal.{kind}") for kind in ("key", "crt")]


def test_a_notebook_trusts_the_hubs_authority_and_no_public_one(hub):
    start(hub, "trust")
    names = key_and_certificate(hub)
    trusted = notebook.hub_context(*names, cafile=str(hub.folder / "internal-ssl" / "hub-ca_trust.crt"))
    assert trusted and 0 < len(trusted.get_ca_certs()) < 9 < len(make_ssl_context(*names).get_ca_certs())
    assert (trusted.verify_mode, trusted.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_jupyterhubs_modules_of_a_notebook_take_that_along():
    program = """
from images.guest import notebook
notebook.trust_only_the_hub()
from jupyterhub.services import auth
from jupyterhub.singleuser import extension
assert auth.make_ssl_context is extension.make_ssl_context is notebook.hub_context
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_the_hub_reads_the_authorities_once_and_not_at_each_launch(hub):
    names = key_and_certificate(hub)
    assert jupyterhub.user.make_ssl_context(*names, cafile="") is jupyterhub.user.make_ssl_context(*names, cafile="")


def test_no_key_is_on_a_disk_in_user_data_or_in_an_environment(hub, cloud):
    start(hub, "secret")
    keys = [path for folder in (hub.folder, cloud.state_dir) for path in folder.rglob("*") if path.is_file() and holds_key(path)]
    # those of the hub, its proxy and its authorities, and of the agents themselves; none of a notebook
    assert keys and not [path for path in keys if "ann" in path.name]
    with cloud.connect() as connection:
        for server in connection.compute.get("/servers/detail", microversion="2.79").json()["servers"]:
            assert "PRIVATE KEY" not in str(server)
    environments = [read(path) for path in Path("/proc").glob("[0-9]*/environ")]
    ours = [text for text in environments if b"/user/ann/secret/" in text]
    assert not [text for text in ours if b"PRIVATE KEY" in text]


def holds_key(path: Path) -> bool:
    return b"PRIVATE KEY" in read(path)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_resume_with_a_new_address_has_a_certificate_for_it(hub, cloud):
    start(hub, "moved")
    before = target(hub, "moved")
    hub.api("DELETE", "users/ann/servers/moved", json={"remove": False})
    hub.until_idle("ann", "moved")
    old = before.removeprefix("https://").split(":")[0]
    new = old.rpartition(".")[0] + ".222"
    move(cloud, old, new)
    start(hub, "moved")
    after = target(hub, "moved")
    assert after == f"https://{new}:8888"
    assert names_in(certificate(after)) == [new, "localhost"]
    assert ask(hub, "moved").status_code == 200


def move(cloud: DevcloudProcess, old: str, new: str) -> None:
    """The port gets another address while its server is off."""
    with cloud.connect("devcloud-admin") as admin:
        until(lambda: all(s["status"] == "SHUTOFF" for s in servers_at(admin, old)), "the server is off")
        (port,) = [port for port in admin.network.get("/ports").json()["ports"] if port["fixed_ips"][0]["ip_address"] == old]
        answer = admin.network.put(f"/ports/{port['id']}", json={"port": {"fixed_ips": [{"ip_address": new}]}})
        assert answer.status_code == 200, answer.text


def servers_at(admin: Any, address: str) -> list[dict[str, Any]]:
    listed = admin.compute.get("/servers/detail?all_tenants=1", microversion="2.79").json()["servers"]
    return [server for server in listed if address in str(server["addresses"])]


def test_a_notebook_that_still_runs_is_kept_with_its_certificate_when_the_hub_comes_back(hub):
    start(hub, "kept")
    before = certificate(target(hub, "kept"))
    hub.kill()
    hub.start()
    hub.until_ready("ann", "kept", 60)
    assert certificate(target(hub, "kept")) == before
    assert ask(hub, "kept").status_code == 200


def test_the_portal_the_steward_and_a_domain_per_user_work_with_it(tmp_path):
    more = """
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
"""
    with facility(tmp_path, more, payload="agent") as hub:
        visitor = hub.visitor()
        hub.launch(visitor)
        hub.until_ready(visitor.login, "films", 180)
        host = {"Host": f"{visitor.login}.localhost:{hub.port}", "Authorization": f"token {visitor.token}"}
        url = f"http://127.0.0.1:{hub.port}/user/{visitor.login}/films/api/status"
        assert requests.get(url, headers=host, timeout=60).status_code == 200
        # the portal takes whom the hub knows
        page = requests.get(
            f"http://127.0.0.1:{hub.port}/services/portal/",
            headers={"Host": f"portal--service.localhost:{hub.port}", "Accept": "text/html"},
            allow_redirects=False,
            timeout=60,
        )
        assert page.status_code in (302, 303, 307) and "oauth2/authorize" in page.headers["Location"]
        # the steward has the hub end what is over
        instance = hub.instance(visitor)
        hub.change(lambda session: setattr(session.get_one(Instance, instance.id), "ends_at", now()))
        until(lambda: not hub.server(visitor.login, "films"), "the hub has ended it", 60)
        assert hub.instance(visitor).deleted_at
