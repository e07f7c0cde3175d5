"""A member who is removed at the source loses the running notebook of that experiment's instance, and is told why.

The run, the hub, the agent and JupyterLab are real; nobody signs on anew or asks for anything between the run and its effect.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
from conftest import HURRY
from facility_hub import EXAMPLE, FacilityHub, Visitor, facility
from running_hub import until
from sqlalchemy import select

from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.database.tables import Instance, InstanceMember, Notice

LAUNCH_SECONDS = 120
ENDED = "no longer on the team of experiment MA-5012-2 (source 'example', run "


class Site:
    """A facility with real notebooks, and the files that its user office writes."""

    def __init__(self, hub: FacilityHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def person(self, login: str, user_id: str) -> Visitor:
        until(lambda: self.hub.api("GET", f"users/{login}").ok or self.hub.api("POST", f"users/{login}").ok, f"{login} is a user")
        return Visitor(login, user_id, "MA-5012-2", self.hub.token_of(login))

    def load(self, *without: str) -> None:
        """A run of the user office's members but for these lines."""
        lines = (EXAMPLE / "experiment_members.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.strip() not in without]
        assert len(kept) == len(lines) - len(without)
        (self.folder / "experiment_members.csv").write_text("".join(kept))
        assert not run(self.hub.engine, Source(name="example"), Files(folder=self.folder)).objections

    def told(self, person: Visitor) -> list[Notice]:
        query = select(Notice).where(Notice.user_id == person.id).order_by(Notice.id)
        return self.hub.change(lambda session: list(session.scalars(query)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, folder / "office")
    with facility(folder, HURRY, payload="agent") as hub:
        yield Site(hub, folder / "office")


class Notebook:
    """The notebook of somebody's instance as one person reaches it: through the proxy, with their own token."""

    def __init__(self, hub: FacilityHub, owner: Visitor, visitor: Visitor) -> None:
        self.host, self.headers = f"{owner.login}.localhost:{hub.port}", {"Authorization": f"token {visitor.token}"}
        self.base = f"127.0.0.1:{hub.port}/user/{owner.login}/films/api"

    def ask(self, method: str, path: str, **body: Any) -> requests.Response:
        headers = {**self.headers, "Host": self.host}
        return requests.request(method, f"http://{self.base}/{path}", headers=headers, timeout=30, **body)

    def channels(self, kernel: str) -> websocket.WebSocket:
        url = f"ws://{self.base}/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
        return websocket.create_connection(url, host=self.host, header=self.headers, timeout=30, suppress_origin=True)


def answer(channels: websocket.WebSocket, code: str) -> str:
    """What the kernel says to an expression."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3"}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": {"code": code}, "buffers": []}
    channels.send(json.dumps(message))
    while True:
        heard = json.loads(channels.recv())
        if heard["parent_header"].get("msg_id") == header["msg_id"] and heard["msg_type"] == "execute_result":
            return heard["content"]["data"]["text/plain"]


def until_closed(channels: websocket.WebSocket) -> int | None:
    """The code that the other side gave; None where it went away without a word."""
    with suppress(websocket.WebSocketConnectionClosedException):
        while True:
            opcode, data = channels.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big")
    return None


def test_a_guest_who_is_removed_from_the_experiment_is_out_at_once_and_the_owner_stays(site: Site) -> None:
    hub, ann = site.hub, site.person("ann", "4001")
    assert hub.launch(ann).status_code in (201, 202)
    hub.until_ready("ann", "films", LAUNCH_SECONDS)
    # whoever it could be shared with is a user of the hub before they ever signed on
    until(lambda: hub.api("GET", "users/carol").ok, "the team is known to the hub")
    carol = site.person("carol", "4003")
    hub.change(lambda session: session.add(InstanceMember(instance_id=hub.instance(ann).id, user_id="4003", role="driver")))
    hub.change(lambda session: setattr(session.get_one(Instance, hub.instance(ann).id), "members_enter_freely", True))

    owners, guests = Notebook(hub, ann, ann), Notebook(hub, ann, carol)
    kernel = owners.ask("POST", "kernels", json={"name": "python3"}).json()["id"]
    # by the owner's own hand, as the portal does it
    hub.api("POST", "shares/ann/films", ann.token, json={"user": "carol"}).raise_for_status()
    with closing(guests.channels(kernel)) as carols:
        assert answer(carols, "6 * 6") == "36"
        hub.api("PATCH", "shares/ann/films", ann.token, json={"user": "carol"}).raise_for_status()
        assert until_closed(carols) == websocket.STATUS_POLICY_VIOLATION
    hub.api("POST", "shares/ann/films", ann.token, json={"user": "carol"}).raise_for_status()
    with closing(owners.channels(kernel)) as anns, closing(guests.channels(kernel)) as carols:
        assert answer(carols, "6 * 7") == "42"
        assert guests.ask("GET", "kernels").status_code == 200
        site.load("MA-5012-2,4003,member")
        assert until_closed(carols) == websocket.STATUS_POLICY_VIOLATION
        # the notebook believed for five minutes what it had heard, if it were not told
        assert guests.ask("GET", "kernels").status_code == 403
        with pytest.raises(websocket.WebSocketBadStatusException):
            guests.channels(kernel)
        assert answer(anns, "6 * 8") == "48"
    assert hub.api("GET", "users/carol/shared/ann/films").status_code == 404
    told = until(lambda: site.told(carol), "carol is told")
    assert [ENDED in notice.text for notice in (*told, *site.told(ann))] == [True, True]
    assert {member.user_id: member.ended_at is None for member in hub.instance(ann).members} == {"4001": True, "4003": False}


def test_an_owner_who_is_removed_loses_the_instance_and_gets_it_back_with_the_membership(site: Site) -> None:
    hub, bjorn = site.hub, site.person("bsorensen", "4011")
    site.load()
    assert hub.launch(bjorn).status_code in (201, 202)
    hub.until_ready("bsorensen", "films", LAUNCH_SECONDS)
    notebook, (server,) = Notebook(hub, bjorn, bjorn), hub.servers(bjorn)
    kernel = notebook.ask("POST", "kernels", json={"name": "python3"}).json()["id"]
    with closing(notebook.channels(kernel)) as channels:
        assert answer(channels, "open('kept.txt', 'w').write('beam')") == "4"
        site.load("MA-5012-2,4011,member")
        until_closed(channels)
    stop = hub.until_intent(bjorn, kind="stop", outcome="done")
    assert stop.actor == "steward" and ENDED in stop.reason
    (notice,) = site.told(bjorn)
    assert ENDED in notice.text and "is kept" in notice.text
    assert hub.start_again(bjorn).status_code == 403

    site.load()
    assert hub.start_again(bjorn).status_code in (201, 202)
    hub.until_ready("bsorensen", "films", LAUNCH_SECONDS)
    assert [one["id"] for one in hub.servers(bjorn)] == [server["id"]]
    assert notebook.ask("GET", "contents/kept.txt").json()["content"] == "beam"
