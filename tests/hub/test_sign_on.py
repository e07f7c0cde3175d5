"""Single sign-on as people meet it: a real browser, a real hub, and three real OpenID providers beside each other."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import browser
import pytest
import requests
from facility_hub import CONTACT, FacilityHub, facility
from openid_provider import CLIENT, SECRET, OpenIDProcess
from playwright.sync_api import Browser, BrowserContext, Page, expect
from running_hub import until
from sqlalchemy import select

from hub.database.tables import ExperimentMember, Identity, IdentitySuggestion, User, now
from hub.errors import HutchError
from hub.oidc import OpenIDProvider

NUMBERS = itertools.count()

# "facility" gives out the facility's logins; accounts of "proxy" name themselves; "orcid" knows people by their ORCID;
# "mistaken" is the facility's provider again, with a wrong secret
CONFIG = """
c.Hutch.steward_interval_seconds = 60
c.Authenticator.auth_refresh_age = 1
c.JupyterHub.authenticator_class = "hub.sign_on.FacilityAuthenticator"
client = {{"client_id": {client!r}, "client_secret_file": "{folder}/client.secret"}}
facility = {{"issuer": {facility!r}, "login_service": "Example Facility", "claims": {{"login": "preferred_username"}}}}
c.FacilityAuthenticator.providers = {{
    "facility": client | facility,
    "proxy": client | {{"issuer": {proxy!r}, "login_service": "Your home institute (eduGAIN)"}},
    "orcid": client | {{"issuer": {orcid!r}, "login_service": "ORCID", "claims": {{"orcid": "sub"}}, "scope": ["openid"]}},
    "mistaken": client | facility | {{"login_service": "Mistaken", "client_secret_file": "{folder}/wrong.secret"}},
}}
import hub.sign_on
hub.sign_on.ASK_AGAIN_SECONDS = 1
"""


@dataclass
class Place:
    hub: FacilityHub
    providers: dict[str, OpenIDProcess]

    @property
    def address(self) -> str:
        return f"http://localhost:{self.hub.port}"

    @property
    def portal(self) -> str:
        return f"http://portal--service.localhost:{self.hub.port}/services/portal/"

    def person(self, **values: str) -> str:
        """A new user of the facility; returns the login, which is the id too."""
        login = f"person{next(NUMBERS)}"

        def add(session) -> None:
            session.add(User(**{"id": login, "login": login, "given_name": "Pia", "family_name": login.title(), **values}))

        self.hub.change(add)
        return login

    def account(self, provider: str, subject: str = "", **claims: str | bool) -> str:
        """A new account at a provider; returns its subject."""
        subject = subject or f"account-{next(NUMBERS)}"
        self.providers[provider].set_account(subject, name="Pia", **claims)
        return subject

    def identities(self, login: str) -> set[tuple[str, str]]:
        query = select(Identity.issuer, Identity.subject, Identity.linked_by).where(Identity.user_id == login)
        names = {process.issuer: name for name, process in self.providers.items()}
        return self.hub.change(lambda session: {(names[issuer], *rest) for issuer, *rest in session.execute(query)})

    def link(self, provider: str, subject: str, login: str) -> None:
        """As staff do who confirm a suggestion."""
        row = Identity(issuer=self.providers[provider].issuer, subject=subject, user_id=login, linked_by="staff")
        self.hub.change(lambda session: session.add(row))

    def leave(self, login: str) -> None:
        def end(session) -> None:
            session.get_one(User, login).ended_at = now()

        self.hub.change(end)

    def suggestions(self, subject: str) -> dict[str, str]:
        query = select(IdentitySuggestion.user_id, IdentitySuggestion.reason).where(IdentitySuggestion.subject == subject)
        return dict(self.hub.change(lambda session: session.execute(query).all()))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sign-on")
    lifetimes = {"facility": 1, "proxy": 3600, "orcid": 3600}
    providers = {
        name: OpenIDProcess(folder, f"127.0.0.{number}", {}, lifetime)
        for number, (name, lifetime) in enumerate(lifetimes.items(), start=2)
    }
    (folder / "client.secret").write_text(f"{SECRET}\n")
    (folder / "wrong.secret").write_text("not the secret")
    issuers = {name: process.issuer for name, process in providers.items()}
    with facility(folder, CONFIG.format(client=CLIENT, folder=folder, **issuers)) as hub:
        try:
            for name, process in providers.items():
                process.start(hub.port, name, "mistaken")
            yield Place(hub, providers)
        finally:
            for process in providers.values():
                process.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as running:
        yield running


@pytest.fixture
def context(chromium) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    yield context
    context.close()


@pytest.fixture
def page(context) -> Page:
    return context.new_page()


def begin(place: Place, page: Page, provider: str, subject: str) -> None:
    """From the sign-on page until the provider lets go of the browser."""
    page.goto(f"{place.address}/hub/login?next=%2Fhub%2Ftoken")
    page.get_by_role("link", name={"facility": "Example Facility", "proxy": "Your home", "orcid": "ORCID"}[provider]).click()
    page.fill("input[name=login]", subject)
    page.fill("input[name=password]", "any")
    page.get_by_role("button", name="Sign-in").click()


def sign_on(place: Place, page: Page, provider: str, subject: str, login: str) -> None:
    """And in."""
    begin(place, page, provider, subject)
    page.wait_for_url(f"{place.address}/hub/token")
    assert who(place, page) == login


def who(place: Place, page: Page) -> str:
    """The login that the hub takes this browser for; empty when it is nobody's."""
    answer = page.request.get(f"{place.address}/hub/token", max_redirects=0, headers={"Sec-Fetch-Mode": "navigate"})
    return answer.text().split('user: "')[1].split('"')[0] if answer.status == 200 else ""


def refused(page: Page) -> str:
    expect(page.get_by_role("heading", level=1)).to_have_text("You are not signed in")
    return page.locator("main").inner_text()


# --- who is who


def test_the_facilitys_own_provider_is_believed_about_the_login(place, page):
    login = place.person()
    subject = place.account("facility", preferred_username=login.upper())
    sign_on(place, page, "facility", subject, login)
    assert place.identities(login) == {("facility", subject, "login")}


def test_a_new_login_and_a_new_address_at_the_provider_change_nothing(place, page, context):
    login, other = place.person(), place.person(email="taken@example.org")
    subject = place.account("facility", preferred_username=login, email="old@example.org")
    sign_on(place, page, "facility", subject, login)
    place.providers["facility"].set_account(subject, preferred_username=other, email="taken@example.org")
    context.clear_cookies()
    sign_on(place, page, "facility", subject, login)
    assert (place.identities(login), place.identities(other)) == ({("facility", subject, "login")}, set())


def test_a_login_that_was_given_to_somebody_else_is_refused_and_written_down(place, page, context):
    login = place.person()
    sign_on(place, page, "facility", place.account("facility", preferred_username=login), login)
    context.clear_cookies()
    newcomer = place.account("facility", preferred_username=login)
    begin(place, page, "facility", newcomer)
    assert "is not linked to you yet" in refused(page) and who(place, page) == ""
    assert place.suggestions(newcomer) == {login: "has the same login, but another account at this provider is already linked"}
    assert len(place.identities(login)) == 1


def test_an_orcid_finds_the_person_beside_their_other_account(place, page, context):
    orcid = f"0000-0002-1825-{next(NUMBERS):03}X"
    login = place.person(orcid=orcid)
    subject = place.account("facility", preferred_username=login)
    sign_on(place, page, "facility", subject, login)
    context.clear_cookies()
    sign_on(place, page, "orcid", place.account("orcid", orcid), login)
    assert place.identities(login) == {("facility", subject, "login"), ("orcid", orcid, "orcid")}


@pytest.mark.parametrize("claim", ["preferred_username", "orcid"])
def test_a_provider_is_not_believed_beyond_what_it_is_trusted_with(place, page, claim):
    orcid = f"0000-0002-1825-{next(NUMBERS):03}X"
    login = place.person(orcid=orcid)
    begin(place, page, "proxy", place.account("proxy", **{claim: orcid if claim == "orcid" else login}))
    assert "is not known to the user office" in refused(page)
    assert place.identities(login) == set()


def test_an_address_alone_is_a_suggestion_that_staff_confirm(place, page):
    login = place.person(email="Pia.Person@Institute.example")
    subject = place.account("proxy", email="pia.person@institute.example", email_verified=True)
    begin(place, page, "proxy", subject)
    text = refused(page)
    assert "It is noted for the staff" in text and CONTACT in text
    assert place.suggestions(subject) == {login: "has the same e-mail address"} and place.identities(login) == set()
    place.link("proxy", subject, login)
    page.get_by_role("link", name="Sign in", exact=True).click()
    page.get_by_role("link", name="Your home").click()
    page.wait_for_url(place.portal)


def test_an_address_that_the_provider_has_not_verified_is_not_even_that(place, page):
    place.person(email="unverified@institute.example")
    subject = place.account("proxy", email="unverified@institute.example", email_verified=False)
    begin(place, page, "proxy", subject)
    assert "is not known to the user office" in refused(page) and place.suggestions(subject) == {}


def test_whom_the_facility_does_not_know_reads_whom_to_ask(place, page):
    begin(place, page, "facility", place.account("facility", preferred_username="nobody"))
    text = refused(page)
    assert "Your account (Example Facility) is not known to the user office of Example Facility." in text and CONTACT in text


def test_who_has_left_is_not_signed_in_again(place, page, context):
    login = place.person()
    subject = place.account("facility", preferred_username=login)
    sign_on(place, page, "facility", subject, login)
    place.leave(login)
    until(lambda: who(place, page) == "", "they are signed out")
    context.clear_cookies()
    begin(place, page, "facility", subject)
    assert f"{login} is not known to the user office" in refused(page)


def test_groups_follow_the_records_while_somebody_is_signed_on(place, page):
    login, proposal = place.person(), place.hub.visitor().experiment.removesuffix("-1")
    sign_on(place, page, "facility", place.account("facility", preferred_username=login), login)
    place.hub.change(lambda session: session.add(ExperimentMember(experiment_id=f"{proposal}-1", user_id=login)))

    def groups() -> list[str]:
        assert who(place, page) == login
        return place.hub.api("GET", f"users/{login}").json()["groups"]

    until(lambda: groups() == [f"proposal-{proposal}"], "the proposal is among the groups")


# --- what is checked of a provider's answer


def test_a_provider_that_asks_for_a_code_challenge_gets_one(place, page):
    """This one refuses whoever sends none; sign-ons that succeed have."""
    login = place.person()
    address = provider_address(place, page)
    query = parse_qs(urlsplit(address).query)
    assert query["code_challenge_method"] == ["S256"] and len(query["code_challenge"][0]) == 43
    page.goto(way_back(page, address, place.account("facility", preferred_username=login)))
    assert who(place, page) == login
    bare = address.replace("code_challenge=", "none=").replace("code_challenge_method=", "none=")
    assert "error=invalid_request" in requests.get(bare, allow_redirects=False, timeout=10).headers["Location"]


def provider_address(place: Place, page: Page, provider: str = "facility") -> str:
    """Where the hub sends this browser, which has not gone there yet."""
    answer = page.request.get(f"{place.address}/hub/sign-on/{provider}?next=%2Fhub%2Ftoken", max_redirects=0)
    return answer.headers["location"]


def way_back(page: Page, address: str, subject: str) -> str:
    """Where the provider sends this browser after signing it in, which has not gone there yet."""
    form = page.request.get(address)
    signed_in = page.request.post(form.url, form={"prompt": "login", "login": subject, "password": "any"}, max_redirects=0)
    return page.request.get(signed_in.headers["location"], max_redirects=0).headers["location"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("state=", "state=0", id="another-state"),
        pytest.param("state=", "nothing=", id="no-state"),
        pytest.param("sign-on/facility", "sign-on/mistaken", id="another-provider"),
        pytest.param("iss=", "iss=http://elsewhere.example/", id="another-issuer"),
    ],
)
def test_an_answer_to_another_sign_on_is_refused(place, page, old, new):
    login = place.person()
    address = way_back(page, provider_address(place, page), place.account("facility", preferred_username=login))
    assert old in address
    page.goto(address.replace(old, new))
    assert "begun in another window" in refused(page) and who(place, page) == ""


def test_an_answer_in_a_browser_that_did_not_begin_is_refused(place, page, chromium):
    login = place.person()
    address = way_back(page, provider_address(place, page), place.account("facility", preferred_username=login))
    victim = chromium.new_context().new_page()
    victim.goto(address)
    assert "begun in another window" in refused(victim) and who(place, victim) == ""
    victim.context.close()


def test_a_token_that_was_made_for_another_sign_on_is_refused(place, page):
    login = place.person()
    address = provider_address(place, page).replace("nonce=", "nonce=0")
    page.goto(way_back(page, address, place.account("facility", preferred_username=login)))
    assert "does not work just now" in refused(page) and who(place, page) == ""
    assert "its nonce differs" in place.hub.log() and place.identities(login) == set()


def test_a_sign_on_leads_nowhere_but_to_the_hub(place, page):
    login = place.person()
    page.goto(f"{place.address}/hub/sign-on/facility?next=https://elsewhere.example/hub/token")
    page.fill("input[name=login]", place.account("facility", preferred_username=login))
    page.fill("input[name=password]", "any")
    page.get_by_role("button", name="Sign-in").click()
    page.wait_for_url(f"{place.address}/hub/token")


def test_who_turns_back_at_the_provider_can_choose_again(place, page):
    page.goto(f"{place.address}/hub/login")
    page.get_by_role("link", name="ORCID").click()
    page.get_by_role("link", name="Cancel").click()
    assert "ORCID did not sign you in." in refused(page)
    page.get_by_role("link", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in to Example Facility")


def test_a_wrong_client_secret_is_named_in_the_log_and_not_shown(place, page):
    page.goto(way_back(page, provider_address(place, page, "mistaken"), place.account("facility")))
    assert "Signing in with Mistaken does not work just now." in refused(page)
    [line] = [line for line in place.hub.log().splitlines() if "Signing in with mistaken failed" in line]
    assert "invalid_client; check client_id 'hutch' and " in line and "wrong.secret" in line


def test_a_made_up_form_signs_nobody_in(place, page):
    page.goto(f"{place.address}/hub/login")
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "_xsrf")
    form = {"account": "ann", "username": "ann", "_xsrf": token}
    answer = page.request.post(f"{place.address}/hub/login", form=form, headers={"Sec-Fetch-Mode": "navigate"})
    assert answer.status == 400 and "Please choose how to sign in." in answer.text() and who(place, page) == ""


# --- how long it lasts


def test_a_sign_on_is_renewed_once_however_many_ask(place, page):
    """This provider's tokens last a second, and each refresh token can be used once."""
    provider, login = place.providers["facility"], place.person()
    sign_on(place, page, "facility", place.account("facility", preferred_username=login), login)
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies(f"{place.address}/hub/")}
    before = provider.refreshes()

    def ask(_number: int) -> int:
        headers = {"Sec-Fetch-Mode": "navigate"}
        answer = requests.get(f"{place.address}/hub/token", cookies=cookies, headers=headers, allow_redirects=False, timeout=20)
        return answer.status_code

    with ThreadPoolExecutor(8) as browsers:
        until(lambda: set(browsers.map(ask, range(8))) == {200} and provider.refreshes() >= before + 3, "it was renewed thrice")
    assert who(place, page) == login


def test_a_sign_on_that_the_provider_does_not_renew_ends_in_all_browsers(place, page, chromium):
    login = place.person()
    subject = place.account("facility", preferred_username=login)
    sign_on(place, page, "facility", subject, login)
    elsewhere = chromium.new_context().new_page()
    sign_on(place, elsewhere, "facility", subject, login)
    elsewhere.goto(place.portal)
    expect(elsewhere.get_by_role("heading", level=1)).to_have_text("My instances")
    token = place.hub.token_of(login)
    place.providers["facility"].set_account(subject)
    until(lambda: who(place, page) == "", "the session has ended")
    assert who(place, elsewhere) == ""

    def portal_asks() -> bool:
        elsewhere.goto(place.portal)
        return "/hub/login" in elsewhere.url

    until(portal_asks, "the portal sends them to the sign-on page")
    assert place.hub.api("GET", "user", token).status_code == 200, "their API tokens go on: the facility knows them"
    place.leave(login)
    until(lambda: place.hub.api("GET", "user", token).status_code == 403, "until it does not")
    elsewhere.context.close()


def test_a_provider_that_does_not_answer_signs_nobody_in_and_nobody_out(place, page, context):
    provider, login = place.providers["facility"], place.person()
    subject = place.account("facility", preferred_username=login)
    sign_on(place, page, "facility", subject, login)
    provider.stop()
    try:
        until(lambda: who(place, page) == login and f"The sign-on of {login} was not renewed" in place.hub.log(), "it was tried")
        assert who(place, page) == login
        other = context.browser.new_context().new_page()
        other.goto(f"{place.address}/hub/sign-on/facility")
        text = refused(other)
        assert "Signing in with Example Facility does not work just now." in text and "or sign in another way" in text
        other.context.close()
    finally:
        provider.start(place.hub.port, "facility", "mistaken")
    # it has lost its memory, and says so
    until(lambda: who(place, page) == "", "the session has ended")
    provider.set_account(subject, preferred_username=login)
    sign_on(place, page, "facility", subject, login)


# --- signing out


def test_signing_out_ends_both_sessions(place, page):
    login = place.person()
    subject = place.account("proxy")
    place.link("proxy", subject, login)
    sign_on(place, page, "proxy", subject, login)
    page.goto(place.portal)
    expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
    kept = page.context.cookies()
    page.goto(f"{place.address}/hub/logout?next=https://elsewhere.example/")
    assert page.url.startswith(place.providers["proxy"].issuer), "the provider asks whether to sign out of it too"
    assert who(place, page) == "", "the hub has not waited for the answer"
    page.get_by_role("button", name="Yes, sign me out").click()
    page.wait_for_url(f"{place.address}/hub/login")
    page.get_by_role("link", name="Your home").click()
    expect(page.locator("input[name=login]")).to_be_visible()
    page.context.add_cookies(kept)
    assert who(place, page) == "", "what was kept of the session is worth nothing"


def test_signing_out_while_the_provider_is_away_ends_the_hubs_session(place, page):
    login = place.person()
    provider, subject = place.providers["orcid"], place.account("orcid")
    place.link("orcid", subject, login)
    sign_on(place, page, "orcid", subject, login)
    provider.stop()
    try:
        page.goto(f"{place.address}/hub/logout")
        page.wait_for_url(f"{place.address}/hub/login")
        assert who(place, page) == ""
    finally:
        provider.start(place.hub.port, "orcid")


def test_signing_out_at_the_provider_ends_the_hubs_session(place, page):
    login = place.person()
    subject = place.account("proxy")
    place.link("proxy", subject, login)
    sign_on(place, page, "proxy", subject, login)
    page.goto(f"{place.providers['proxy'].issuer}/session/end")
    page.get_by_role("button", name="Yes, sign me out").click()
    until(lambda: who(place, page) == "", "the hub's session has ended")


def logout_token(place: Place, subject: str, **changed: object) -> dict:
    event = {"http://schemas.openid.net/event/backchannel-logout": {}}
    issuer, at = place.providers["proxy"].issuer, int(time.time())
    whole = {"iss": issuer, "aud": CLIENT, "iat": at, "exp": at + 120, "jti": "1", "sub": subject, "events": event, **changed}
    return {name: value for name, value in whole.items() if value is not None}


@pytest.mark.parametrize(
    ("changed", "header"),
    [
        pytest.param({}, {"alg": "none"}, id="unsigned"),
        pytest.param({}, {"stranger": True}, id="another-key"),
        pytest.param({}, {"kid": "unheard-of"}, id="unknown-key"),
        pytest.param({"iss": "http://elsewhere.example"}, {}, id="another-issuer"),
        pytest.param({"aud": "another"}, {}, id="another-client"),
        pytest.param({"aud": [CLIENT, "another"]}, {}, id="shared-with-another-client"),
        pytest.param({"exp": 1_000_000_000}, {}, id="expired"),
        pytest.param({"exp": None}, {}, id="without-end"),
        pytest.param({"iat": 4_000_000_000}, {}, id="from-the-future"),
        pytest.param({"events": None}, {}, id="without-event"),
        pytest.param({"events": {"another": {}}}, {}, id="another-event"),
        pytest.param({"events": "http://schemas.openid.net/event/backchannel-logout"}, {}, id="event-as-text"),
        pytest.param({"nonce": "n"}, {}, id="an-id-token"),
        pytest.param({"sub": None, "sid": "s"}, {}, id="without-subject"),
        pytest.param({"jti": None}, {}, id="without-id"),
    ],
)
def test_a_logout_token_that_does_not_hold_signs_nobody_out(place, signed_on, changed, header):
    page, subject, login = signed_on
    assert who(place, page) == login
    token = place.providers["proxy"].sign(logout_token(place, subject, **changed), **header)
    answer = requests.post(f"{place.address}/hub/sign-on/proxy/logout", data={"logout_token": token}, timeout=10)
    assert answer.status_code == 400 and answer.headers["Cache-Control"] == "no-store"
    assert who(place, page) == login


def test_a_logout_token_signs_the_person_out(place, page):
    login = place.person()
    subject = place.account("proxy")
    place.link("proxy", subject, login)
    sign_on(place, page, "proxy", subject, login)
    token = place.providers["proxy"].sign(logout_token(place, subject))
    answer = requests.post(f"{place.address}/hub/sign-on/proxy/logout", data={"logout_token": token}, timeout=10)
    assert answer.status_code == 200 and who(place, page) == ""


@pytest.fixture(scope="module")
def signed_on(place, chromium):
    """Somebody whom the tests that share them leave signed on."""
    page, login = chromium.new_context().new_page(), place.person()
    subject = place.account("proxy")
    place.link("proxy", subject, login)
    sign_on(place, page, "proxy", subject, login)
    yield page, subject, login
    page.context.close()


# --- the page, the log, the settings


def test_the_sign_on_page_fits_a_phone_and_the_keyboard(place, page):
    page.goto(f"{place.address}/hub/login")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    reached: list[str] = []
    while "ORCID" not in reached and len(reached) < 30:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText.trim()"))
    assert reached[-3:] == ["Example Facility", "Your home institute (eduGAIN)", "ORCID"]
    assert page.get_by_role("link", name="ORCID").bounding_box()["height"] >= 44


def test_nothing_secret_is_in_the_log_or_with_other_processes(place, signed_on):
    key = (place.hub.state / "auth-state-key").read_text()
    assert (place.hub.state / "auth-state-key").stat().st_mode & 0o777 == 0o600
    log = place.hub.log()
    assert not [word for word in (SECRET, key, "eyJ", "code_verifier", '"refresh_token"') if word in log]
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes()
            assert key.encode() not in environment and SECRET.encode() not in environment


GOOD = {"issuer": "https://sso.facility.example", "client_id": "hutch", "client_secret_file": "secret"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"isuer": "x"}, "did you mean issuer?", id="unknown-setting"),
        pytest.param({"client_id": ""}, "needs client_id", id="missing"),
        pytest.param({"issuer": "http://sso.facility.example"}, "begins with https://", id="not-encrypted"),
        pytest.param({"client_secret_file": "absent"}, "cannot read client_secret_file", id="no-secret"),
        pytest.param({"claims": {"name": "x"}}, "claims are for login, orcid, email", id="unknown-claim"),
    ],
)
def test_settings_of_a_provider_that_cannot_be_are_named(tmp_path, change, words):
    (tmp_path / "secret").write_text("s")
    with pytest.raises(HutchError, match=f"provider 'facility'.*{re.escape(words)}"):
        OpenIDProvider("facility", {**GOOD, **change}, tmp_path)
