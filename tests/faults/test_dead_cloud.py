"""A cloud that stops answering altogether: what runs goes on, launches say why they fail, pages say it, and it passes by itself."""

from __future__ import annotations

import requests
from facility_hub import FacilityHub, Visitor
from running_hub import until

from hub import capacity

WORDS = "The cloud has not answered since"


def answers(hub: FacilityHub, visitor: Visitor) -> bool:
    """The notebook, through the proxy."""
    url = f"http://localhost:{hub.port}/user/{visitor.login}/films/api"
    headers = {"Host": f"{visitor.login}.localhost:{hub.port}"}
    return requests.get(url, headers=headers, timeout=10).status_code == 200


def test_a_dead_cloud_holds_nothing_up_and_the_pages_say_so(hub):
    running, other = hub.visitor(), hub.visitor()
    hub.launched(running)
    assert answers(hub, running)
    hub.devcloud.fault(action="status", status=503, times=None)
    try:
        until(lambda: hub.change(capacity.down), "the steward has found that the cloud is down")
        hub.launch(other)
        intent = hub.until_intent(other, kind="launch", outcome="failed")
        assert intent.message.startswith("The cloud ") and intent.message.endswith(".")
        assert answers(hub, running) and hub.server(running.login, "films")["ready"]
        assert hub.is_up()
    finally:
        hub.devcloud.clear_faults()
    until(lambda: not hub.change(capacity.down), "the steward has found that it is back")
    hub.start_again(other)
    hub.until_ready(other.login, "films")
    assert len(hub.servers(other)) == len(hub.servers(running)) == 1
