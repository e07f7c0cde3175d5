"""Sharing as people meet it: the page, invitations, what is shared with them, JupyterLab, small pictures. A real hub and proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import browser as browsers
import httpx
import pytest
from facility_hub import FacilityHub, Visitor
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import delete
from sqlalchemy.orm import Session

from hub.database.tables import ExperimentMember, Instance, InstanceMember, Invitation, Notice, Thumbnail, User
from hub.portal.sharing import PICTURE_BYTES, has_own_domains

JPEG, WEBP = b"\xff\xd8\xff\xe0" + bytes(96), b"RIFF\x20\x00\x00\x00WEBPVP8 " + bytes(24)


class Shared:
    """An instance of Ann's with people around it, each with a browser; Bob is on its experiment, Ian is not."""

    def __init__(self, hub: FacilityHub, browse: Callable) -> None:
        self.hub = hub
        self.ann, self.bob, self.ian = hub.visitor(), hub.visitor(), hub.visitor()
        hub.change(lambda session: session.add(ExperimentMember(experiment_id=self.ann.experiment, user_id=self.bob.id)))
        hub.launched(self.ann)
        self.id = hub.instance(self.ann).id
        self.page = f"instances/{self.id}/sharing"
        self.browsers = [browse(hub.port, who.login) for who in (self.ann, self.bob, self.ian)]

    def begin(self) -> None:
        """As it was made: what the test before has done is taken back."""

        def work(session: Session) -> None:
            row = session.get_one(Instance, self.id)
            row.when_owner_leaves, row.members_enter_freely, row.thumbnails = "disconnect", False, False
            for table in (Thumbnail, Invitation):
                session.execute(delete(table).where(table.instance_id == self.id))
            session.execute(delete(InstanceMember).where(InstanceMember.instance_id == self.id, InstanceMember.role != "owner"))
            session.execute(delete(Notice).where(Notice.user_id.in_([self.ann.id, self.bob.id])))

        self.hub.change(work)
        self.hub.api("DELETE", f"shares/{self.ann.login}/films").raise_for_status()

    def ask(self, browser: httpx.Client, do: str, **form: str) -> httpx.Response:
        return browser.submit(self.page, {"do": do, **form})  # type: ignore[attr-defined]

    def share(self, ann: httpx.Client, role: str = "driver", **settings: str) -> None:
        assert self.ask(ann, "add", login=self.bob.login, role=role).status_code == 200
        if settings:
            assert self.ask(ann, "settings", when_owner_leaves="disconnect", **settings).status_code == 200

    def part(self, who: Visitor) -> str:
        """Empty for none that holds."""
        row = self.hub.change(lambda session: session.get(InstanceMember, (self.id, who.id)))
        return row.role if row and row.ended_at is None else ""

    def notebook(self, who: Visitor) -> bool:
        return self.hub.api("GET", f"users/{who.login}/shared/{self.ann.login}/films").ok


@pytest.fixture(scope="module")
def site(facility_hub: FacilityHub, browse: Callable) -> Shared:
    return Shared(facility_hub, browse)


@pytest.fixture
def shared(site: Shared, hub: FacilityHub) -> Shared:
    site.begin()
    return site


def alert(page: httpx.Response) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", "".join(re.findall(r'class="alert.*?</div>', page.text, re.DOTALL))).split())


# --- the page


def test_a_team_is_let_in_with_one_click_and_finds_it_on_its_own_page(shared):
    ann, bob, _ = shared.browsers
    assert f"instances/{shared.id}/sharing" in ann.get("").text and f"instances/{shared.id}/desktop" in ann.get("").text
    done = shared.ask(ann, "team", experiment=shared.ann.experiment, role="viewer")
    assert f"Team of {shared.ann.experiment}. Added: Vera Visitor" in alert(done)
    assert shared.part(shared.bob) == "viewer"
    page = bob.get("").text
    assert "Shared with you" in page and "you are a viewer" in page and f"instances/{shared.id}/desktop" in page
    assert "is there." in page, "when they can come in is said"
    assert "Open JupyterLab" not in page


def test_a_part_is_changed_taken_back_and_given_up(shared):
    ann, bob, _ = shared.browsers
    shared.share(ann, "viewer")
    shared.ask(ann, "change", login=shared.bob.login, role="driver")
    assert shared.part(shared.bob) == "driver"
    shared.ask(ann, "remove", login=shared.bob.login, reason="the shift is over")
    assert shared.part(shared.bob) == ""
    assert "Reason: the shift is over." in bob.get("").text
    shared.share(ann, "viewer")
    assert 'id="shared"' in bob.get("").text
    assert 'id="shared"' not in bob.submit(f"instances/{shared.id}/leave").text
    assert shared.part(shared.bob) == ""
    assert bob.submit(f"instances/{shared.id}/leave").status_code == 404


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"do": "add", "login": "ian", "role": "viewer"}, "is not a member of experiment"),
        ({"do": "add", "login": "bob", "role": "owner"}, "One can be made a viewer, a driver or support, and nothing else."),
        ({"do": "remove", "login": "bob"}, "takes no part in it."),
        ({"do": "settings", "when_owner_leaves": "explode"}, "is none of: disconnect, lock, stay."),
        ({"do": "share-notebook", "login": "bob"}, "takes no part in it."),
        ({"do": "invite", "role": "owner", "hours": "24"}, "An invitation is for a viewer or a driver"),
        ({"do": "invite", "role": "viewer", "hours": "9999"}, "for at most 30 days."),
        ({"do": "revoke", "number": "0"}, "There is no such invitation."),
    ],
)
def test_what_is_refused_is_said_on_the_page_itself(shared, form, sentence):
    people = {"ian": shared.ian.login, "bob": shared.bob.login}
    answer = shared.browsers[0].submit(shared.page, form | {"login": people.get(form.get("login", ""), "")})
    assert answer.status_code == 422
    assert "Nothing was changed." in alert(answer) and sentence in alert(answer)


def test_nobody_else_shares_and_strangers_do_not_even_learn_that_it_exists(shared):
    ann, bob, ian = shared.browsers
    form = {"login": shared.bob.login, "role": "driver"}
    assert [ian.get(shared.page).status_code, shared.ask(ian, "add", **form).status_code] == [404, 404]
    shared.share(ann, "viewer")
    for answer in (bob.get(shared.page), shared.ask(bob, "change", **form)):
        assert answer.status_code == 403 and "As viewer one may only see, watch." in answer.text
    assert shared.part(shared.bob) == "viewer"
    assert shared.ask(ann, "nonsense").status_code == 400


# --- JupyterLab


def test_jupyterlab_is_shared_with_a_driver_and_goes_with_the_part(shared):
    ann, bob, _ = shared.browsers
    shared.share(ann, "driver")
    refused = shared.ask(ann, "share-notebook", login=shared.bob.login)
    assert refused.status_code == 422 and "Members come in while the owner is there" in alert(refused)
    shared.ask(ann, "settings", when_owner_leaves="stay", members_enter_freely="1")
    assert "Sharing JupyterLab lets them act as you" in ann.get(shared.page).text
    assert "opens JupyterLab" in shared.ask(ann, "share-notebook", login=shared.bob.login).text
    assert shared.notebook(shared.bob)
    assert f"/user/{shared.ann.login}/films/lab" in bob.get("").text
    for ending in ({"do": "change", "role": "viewer"}, {"do": "remove"}, {"do": "end-notebook"}):
        back = InstanceMember(instance_id=shared.id, user_id=shared.bob.id, role="driver", ended_at=None)
        shared.hub.change(lambda session, back=back: session.merge(back) and None)
        shared.ask(ann, "share-notebook", login=shared.bob.login)
        assert shared.notebook(shared.bob)
        shared.ask(ann, **ending, login=shared.bob.login)
        assert not shared.notebook(shared.bob), ending
    assert "/films/lab" not in bob.get("").text


def test_who_may_no_longer_come_in_while_the_owner_is_away_is_out_of_jupyterlab_too(shared):
    ann = shared.browsers[0]
    shared.share(ann, "driver", members_enter_freely="1")
    shared.ask(ann, "share-notebook", login=shared.bob.login)
    assert shared.notebook(shared.bob)
    shared.ask(ann, "settings", when_owner_leaves="disconnect")
    assert not shared.notebook(shared.bob)


@pytest.mark.parametrize(
    ("part", "freely", "body", "status"),
    [
        ("driver", True, {"user": "bob"}, 200),
        ("driver", False, {"user": "bob"}, 403),
        ("viewer", True, {"user": "bob"}, 403),
        ("", True, {"user": "bob"}, 403),
        ("driver", True, {"user": "ian"}, 403),
        ("driver", True, {"group": "role-staff"}, 403),
        ("driver", True, {"user": "bob", "scopes": ["servers"]}, 403),
    ],
)
def test_an_owners_own_token_shares_no_more_than_the_rules_allow(shared, part, freely, body, status):
    def prepare(session):
        session.get_one(Instance, shared.id).members_enter_freely = freely
        if part:
            session.add(InstanceMember(instance_id=shared.id, user_id=shared.bob.id, role=part))

    shared.hub.change(prepare)
    names = {"bob": shared.bob.login, "ian": shared.ian.login}
    body = body | ({"user": names[body["user"]]} if "user" in body else {})
    answer = shared.hub.api("POST", f"shares/{shared.ann.login}/films", shared.ann.token, json=body)
    assert answer.status_code == status, answer.text
    assert shared.notebook(shared.bob) is (status == 200)
    code = shared.hub.api("POST", f"share-codes/{shared.ann.login}/films", shared.ann.token, json={})
    assert code.status_code == 403, "a code of JupyterHub's own would go round the rules"


@pytest.mark.parametrize(
    ("portal", "hub", "own"),
    [
        ("https://portal--service.hutch.example/services/portal/", "https://hutch.example/hub/", True),
        ("https://hutch.example/services/portal/", "https://hutch.example/hub/", False),
        ("", "", False),
    ],
)
def test_jupyterlab_is_shared_only_where_notebooks_have_domains_of_their_own(monkeypatch, portal, hub, own):
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", portal)
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_HUB_URL", hub)
    assert has_own_domains() is own


# --- small pictures


@pytest.mark.parametrize(
    ("picture", "status"),
    [
        (JPEG, 204),
        (WEBP, 204),
        (JPEG.ljust(PICTURE_BYTES, b"\0"), 204),
        (JPEG.ljust(PICTURE_BYTES + 1, b"\0"), 413),
        (b"", 415),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 415),
        (b"<svg onload='alert(1)'/>", 415),
        (b"RIFF\x20\x00\x00\x00WAVEfmt ", 415),
    ],
    ids=["jpeg", "webp", "as big as may be", "bigger", "empty", "png", "svg", "sound"],
)
def test_a_small_picture_is_taken_for_what_its_bytes_say(shared, picture, status):
    ann = shared.browsers[0]
    shared.ask(ann, "settings", when_owner_leaves="disconnect", thumbnails="1")
    path, ours = f"instances/{shared.id}/thumbnail", {"Sec-Fetch-Site": "same-origin", "Content-Type": "image/jpeg"}
    assert ann.post(path, content=picture, headers=ours).status_code == status
    shown = ann.get(path)
    if status == 204:
        assert shown.content == picture
        assert shown.headers["content-type"] == ("image/webp" if picture is WEBP else "image/jpeg")
        assert f"{shared.id}/thumbnail?v=" in ann.get("").text
    else:
        assert shown.status_code == 404


def test_small_pictures_are_for_those_who_may_watch_and_only_while_the_owner_wants_them(shared):
    ann, bob, ian = shared.browsers
    path, ours = f"instances/{shared.id}/thumbnail", {"Sec-Fetch-Site": "same-origin"}

    def keeps(browser: httpx.Client) -> int:
        return browser.post(path, content=JPEG, headers=ours).status_code

    assert keeps(ann) == 404, "nobody asked for them"
    shared.share(ann, "viewer", members_enter_freely="1", thumbnails="1")
    assert [keeps(one) for one in (ann, bob, ian)] == [204, 404, 404], "a viewer may not control"
    assert [one.get(path).status_code for one in (ann, bob, ian)] == [200, 200, 404]
    assert f"{shared.id}/thumbnail?v=" in bob.get("").text
    shared.ask(ann, "settings", when_owner_leaves="disconnect", thumbnails="1")
    assert bob.get(path).status_code == 404, "the owner is away, and lets nobody in then"
    shared.ask(ann, "settings", when_owner_leaves="disconnect")
    assert ann.get(path).status_code == 404


# --- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsers.chromium() as running:
        yield running


def sign_in(hub: FacilityHub, chromium: Browser, who: Visitor, path: str = "") -> Page:
    """On a phone. A name of this facility's is enough."""
    page = chromium.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(f"http://portal--service.localhost:{hub.port}/services/portal/{path}")
    if page.get_by_role("link", name="Sign in").count():
        page.get_by_role("link", name="Sign in").last.click()
    page.get_by_text("Everybody else").click()
    page.locator(f"button[value={who.login}]").click()
    page.wait_for_url("**/services/portal/**")
    return page


def test_a_link_leads_through_the_sign_in_to_the_instance_and_its_code_is_in_no_log(shared, hub, chromium):
    ann = sign_in(hub, chromium, shared.ann, shared.page)
    ann.get_by_role("button", name="Make a link").click()
    expect(ann.get_by_role("button", name="Copy")).to_be_visible()
    link = ann.get_by_label("The new invitation link").input_value()
    code = link.partition("#")[2]
    assert len(code) >= 43
    ann.goto(ann.url)
    expect(ann.get_by_role("button", name="Take back")).to_have_count(1)
    assert code not in ann.content(), "it is shown once"

    bob = sign_in(hub, chromium, shared.bob, f"join#{code}")
    expect(bob.get_by_label("Invitation code")).to_have_value(code)
    assert "#" not in bob.url
    bob.get_by_role("button", name="Accept").click()
    expect(bob.get_by_role("heading", name="Shared with you")).to_be_visible()
    assert shared.part(shared.bob) == "viewer"
    ian = sign_in(hub, chromium, shared.ian, f"join#{code}")
    ian.get_by_role("button", name="Accept").click()
    expect(ian.get_by_role("alert").first).to_contain_text("You are not a member of experiment")
    logs = [path.read_text(errors="replace") for path in Path(hub.folder).glob("*.log")]
    assert logs and not any(code in log for log in logs)


def test_the_page_fits_a_phone_and_is_worked_by_keyboard(shared, hub, chromium):
    hub.change(lambda session: setattr(session.get(User, shared.bob.id), "family_name", "Ottokar-Wolfenstein " * 3))
    page = sign_in(hub, chromium, shared.ann, shared.page)
    page.get_by_role("button", name="Share with the team").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Added")).to_be_focused()
    row = page.locator("li", has_text=shared.bob.login)
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sizes = "[...document.querySelectorAll('.btn, summary, nav a, .choice label, .form-select, .form-control')]"
    assert page.evaluate(f"{sizes}.filter(e => e.offsetHeight && e.offsetHeight < 44).map(e => e.outerHTML)") == []
    named = "[...document.querySelectorAll('input:not([type=hidden]), select')].filter(e => !e.labels.length).length"
    assert page.evaluate(named) == page.locator("h1").count() - 1 == 0
    row.get_by_label("Part").select_option("driver")
    row.get_by_role("button", name="Save").focus()
    page.keyboard.press("Enter")
    expect(page.locator("li", has_text=shared.bob.login).locator("summary")).to_contain_text("driver")
    page.get_by_label("Others may watch").check()
    page.get_by_role("button", name="Save what happens").click()
    expect(page.get_by_label("Others may watch")).to_be_checked()
