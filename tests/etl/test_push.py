"""What is pushed, over real TLS to the real process: who may, what is taken, and that nothing else changes anything."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest
from etl_service import EtlService

NUMBERS = count(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtlService]:
    service = EtlService(tmp_path_factory.mktemp("pushed"))
    with service.running():
        yield service


@pytest.fixture
def office(service: EtlService) -> Office:
    return Office(service)


class Office:
    """A user office that pushes to a source of its own, with a certificate that may."""

    def __init__(self, service: EtlService) -> None:
        self.service, self.name = service, f"office{next(NUMBERS)}"
        self.certificate = service.certificate(self.name)
        service.source(self.name, f'adapter = "push"\nsubjects = ["CN={self.name}"]')

    def batch(self, batch: str = "1", people: int = 2, **changes: Any) -> dict[str, Any]:
        people_ids = [f"{self.name}-{number}" for number in range(people)]
        tables: dict[str, Any] = {
            "user": [{"id": one, "login": one.replace("-", "x"), "family_name": "Lindqvist"} for one in people_ids],
            "instrument": [{"id": f"{self.name}-I", "name": "Nano"}],
            "proposal": [{"id": f"{self.name}-P", "title": "Cracks"}],
            "experiment": [{"id": f"{self.name}-E", "proposal_id": f"{self.name}-P", "instrument_id": f"{self.name}-I"}],
            "experiment_member": [{"experiment_id": f"{self.name}-E", "user_id": one} for one in people_ids],
        }
        return {"batch": batch, "tables": {**tables, **changes}}

    def push(self, batch: dict[str, Any], **options: Any) -> httpx.Response:
        with self.service.client(self.certificate) as client:
            return client.post(f"/v1/batches/{self.name}", json=batch, **options)

    def push_bytes(self, body: bytes, **headers: str) -> httpx.Response:
        with self.service.client(self.certificate) as client:
            return client.post(f"/v1/batches/{self.name}", content=body, headers=headers)

    def team(self) -> set[str]:
        return set(self.service.team(f"{self.name}-E"))


# --- who may


def test_an_allowed_certificate_pushes(office):
    answer = office.push(office.batch())
    assert answer.status_code == 200
    assert answer.json()["counts"]["user"]["added"] == 2
    assert office.team() == {f"{office.name}-0", f"{office.name}-1"}


def test_a_token_pushes_until_its_line_is_taken_out(office, service):
    token = service.hutch("etl", "token", office.name)
    file = service.sources / f"{office.name}.tokens"
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with service.client(token=token) as client:
        assert client.post(f"/v1/batches/{office.name}", json=office.batch("1")).status_code == 200
        file.write_text("")
        assert client.post(f"/v1/batches/{office.name}", json=office.batch("2")).status_code == 403


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        pytest.param(lambda service, other: {}, 401, id="nothing"),
        pytest.param(lambda service, other: {"certificate": other.certificate}, 403, id="certificate-of-another-source"),
        pytest.param(
            lambda service, other: {"token": service.hutch("etl", "token", other.name)}, 403, id="token-of-another-source"
        ),
        pytest.param(lambda service, other: {"token": "hutch_guessed"}, 403, id="unknown-token"),
    ],
)
def test_others_may_not_and_change_nothing(office, service, credentials, status):
    with service.client(**credentials(service, Office(service))) as client:
        answer = client.post(f"/v1/batches/{office.name}", json=office.batch())
    assert answer.status_code == status
    assert service.runs(office.name) == []


def test_whether_a_source_exists_is_told_to_nobody_else(office, service):
    with service.client(office.certificate) as client:
        unknown = client.post("/v1/batches/nowhere", json={})
        foreign = client.post(f"/v1/batches/{Office(service).name}", json={})
    assert (unknown.status_code, foreign.status_code) == (403, 403)
    assert unknown.json()["detail"].replace("nowhere", "X") == foreign.json()["detail"].replace(
        foreign.url.path.split("/")[-1], "X"
    )


def test_a_certificate_of_a_stranger_is_no_certificate(office, service):
    certificate = service.stranger(office.name)
    with service.client(certificate) as client, pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
        client.post(f"/v1/batches/{office.name}", json=office.batch())
    assert service.runs(office.name) == []


def test_without_tls_nobody_is_answered(office, service):
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{service.port}/v1/batches/{office.name}", json=office.batch())


# --- what is taken


def test_a_batch_that_comes_again_changes_nothing(office, service):
    first = office.push(office.batch("today", people=2)).json()
    again = office.push(office.batch("today", people=1))
    assert (again.status_code, again.json()["repeated"], again.json()["run_id"]) == (200, True, first["run_id"])
    assert len(office.team()) == 2
    assert len(service.runs(office.name)) == 1


def test_the_next_batch_ends_what_it_no_longer_names(office):
    office.push(office.batch("1", people=3))
    answer = office.push(office.batch("2", people=2))
    assert answer.json()["counts"]["experiment_member"]["ended"] == 1
    assert office.team() == {f"{office.name}-0", f"{office.name}-1"}


def test_a_batch_with_scopes_leaves_the_rest_as_it_is(office):
    office.push(office.batch("1"))
    experiment = {"experiment_id": "elsewhere", "user_id": f"{office.name}-0"}
    teams = {"column": "experiment_id", "values": ["elsewhere"]}
    answer = office.push(
        {
            "batch": "2",
            "tables": {"experiment_member": [experiment], "user": []},
            "scopes": {"experiment_member": teams, "user": None},
        }
    )
    assert answer.status_code == 200
    # there is no such experiment
    assert answer.json()["rejections"][0]["line"] == 1
    assert len(office.team()) == 2


def test_a_batch_that_would_take_too_much_away_is_refused_and_may_come_again(office, service):
    office.push(office.batch("1"))
    answer = office.push(office.batch("2", experiment_member=[]))
    assert answer.status_code == 409
    assert "all 2 records would end" in answer.json()["objections"][0]
    assert len(office.team()) == 2
    assert [run["outcome"] for run in service.runs(office.name)] == ["done", "refused"]
    assert office.push(office.batch("2")).json()["repeated"] is False


def test_rows_that_do_not_fit_are_told_and_stop_no_others(office):
    people = [*office.batch()["tables"]["user"], {"id": 7, "login": "UPPER", "family_name": "Okafor"}, {"id": 8, "surname": "Eve"}]
    answer = office.push(office.batch(user=people))
    assert answer.status_code == 200
    assert {(one["line"], one["key"], one["field"]) for one in answer.json()["rejections"]} >= {(3, "7", "login")}
    assert len(office.team()) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"batch": ""}, "batch", id="no-batch-id"),
        pytest.param({"tables": None}, "tables", id="null-tables"),
        pytest.param({"tables": {"user": None}}, "tables.user", id="null-collection"),
        pytest.param({"tables": {"user": ["Ann"]}}, "tables.user.0", id="row-that-is-none"),
        pytest.param({"tables": {"persons": []}}, "no table 'persons'", id="unknown-table"),
        pytest.param({"scopes": {"plan": None}}, "scope of 'plan'", id="scope-of-a-table-that-is-not-there"),
        pytest.param({"scopes": {"user": {"column": "nose", "values": []}}}, "scope of 'user'", id="scope-by-an-unknown-column"),
        pytest.param({"more": 1}, "more", id="unknown-key"),
    ],
)
def test_what_is_no_batch_is_refused_with_its_place(office, service, change, said):
    answer = office.push({**office.batch(), **change})
    assert answer.status_code == 422
    assert said in answer.text
    assert service.runs(office.name) == []


def test_the_schema_is_that_of_the_tables(service):
    schema = service.get("/v1/schema").json()
    row = schema["properties"]["tables"]["properties"]["experiment"]["items"]
    assert row["required"] == ["id", "proposal_id", "instrument_id"]
    assert row["properties"]["starts_at"]["type"] == ["string", "null"]


# --- bodies


def test_gzip_is_unpacked(office):
    body = gzip.compress(json.dumps(office.batch()).encode())
    assert office.push_bytes(body, **{"Content-Encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        pytest.param(gzip.compress(b" " * 200_000_000), "gzip", 413, id="gzip-bomb"),
        pytest.param(b" " * 1_000_001, "identity", 413, id="too-long"),
        pytest.param(gzip.compress(b"{}")[:-4], "gzip", 422, id="half-a-gzip-stream"),
        pytest.param(gzip.compress(b"{}") + b"more", "gzip", 422, id="more-than-gzip"),
        pytest.param(b"{}", "gzip", 422, id="not-gzip"),
        pytest.param(b"{}", "br", 415, id="another-coding"),
        pytest.param(b'{"batch": "1", "tab', "identity", 422, id="half-of-the-json"),
        pytest.param(b"[" * 500_000, "identity", 422, id="too-deep"),
        pytest.param(b"\xff\xfe", "identity", 422, id="not-utf-8"),
        pytest.param(b"", "identity", 422, id="empty"),
    ],
)
def test_a_body_that_is_none_changes_nothing(office, service, body, coding, status):
    assert office.push_bytes(body, **{"Content-Encoding": coding}).status_code == status
    assert service.runs(office.name) == []
    # and the service still works
    assert office.push(office.batch()).status_code == 200


def test_a_connection_that_ends_within_the_body_changes_nothing(office, service):
    body = json.dumps(office.batch()).encode()
    context = ssl.create_default_context(cafile=str(service.folder / "certificates/authority/authority.crt"))
    context.load_cert_chain(*office.certificate)
    with (
        socket.create_connection(("127.0.0.1", service.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        head = f"POST /v1/batches/{office.name} HTTP/1.1\r\nHost: hutch\r\nContent-Length: {len(body)}\r\n\r\n"
        tls.sendall(head.encode() + body[:-1])
    assert office.push(office.batch()).status_code == 200
    assert [run["outcome"] for run in service.runs(office.name)] == ["done"]


def test_two_pushes_at_once_are_two_runs_one_after_the_other(office, service):
    with ThreadPoolExecutor() as both:
        answers = list(both.map(office.push, [office.batch("a", people=1), office.batch("b", people=2)]))
    assert [answer.status_code for answer in answers] == [200, 200]
    first, second = service.runs(office.name)
    assert len(office.team()) == int(second["batch"] == "b") + 1
    assert first["finished_at"] <= second["finished_at"]


def test_the_same_batch_twice_at_once_is_one_run(office, service):
    with ThreadPoolExecutor() as both:
        answers = list(both.map(office.push, [office.batch("a")] * 2))
    assert sorted(answer.json()["repeated"] for answer in answers) == [False, True]
    assert len(service.runs(office.name)) == 1
