"""Signing on: whom the hub lets in, and that rights follow the records without a new sign-on."""

from __future__ import annotations

import subprocess
import sys

import pytest
from facility_hub import CONTACT, FacilityHub, Visitor, facility
from running_hub import REPOSITORY, free_port, until

from hub.authenticator import refuse_beyond_loopback
from hub.database.engine import open_database, upgrade
from hub.database.tables import ExperimentMember, User, UserRole, now
from hub.errors import HutchError


def test_a_person_of_the_facility_signs_on(hub):
    browser, answer = hub.sign_on("ann")
    assert answer.status_code == 302
    assert hub.page("/hub/api/user", browser).status_code == 200


@pytest.mark.parametrize("login", ["nobody", "<script>", "a" * 300, "tests"], ids=ascii)
def test_whom_the_facility_does_not_know_is_told_whom_to_ask(hub, login):
    browser, answer = hub.sign_on(login)
    assert answer.status_code == 403
    assert "is not known to the user office of Example Facility." in answer.text and CONTACT in answer.text
    assert "<script> is not" not in answer.text and "Traceback" not in answer.text
    assert hub.page("/hub/api/user", browser).status_code == 403


def test_who_has_left_cannot_sign_on(hub):
    visitor = hub.visitor()
    leave(hub, visitor)
    assert hub.sign_on(visitor.login)[1].status_code == 403


def test_who_leaves_while_signed_on_is_signed_out(hub):
    visitor = hub.visitor()
    browser, _ = hub.sign_on(visitor.login)
    leave(hub, visitor)
    until(lambda: "/hub/login" in hub.page("/hub/token", browser).url, "the sign-on page is shown instead of the token page")
    assert "_token_authenticated" not in hub.log()


def leave(hub: FacilityHub, visitor: Visitor) -> None:
    def end(session):
        session.get_one(User, visitor.id).ended_at = now()

    hub.change(end)


def model(hub: FacilityHub, visitor: Visitor) -> dict:
    """What JupyterHub holds of them; asking as them refreshes it."""
    hub.api("GET", "user", visitor.token)
    return hub.api("GET", f"users/{visitor.login}").json()


def test_groups_follow_the_records_although_nobody_asks_for_anything(hub):
    visitor = hub.visitor("staff")

    def groups() -> set[str]:
        return set(hub.api("GET", f"users/{visitor.login}").json()["groups"])

    theirs = f"proposal-{visitor.experiment.removesuffix('-1')}"
    until(lambda: groups() == {theirs, "role-staff"}, "the groups are those of the records")
    hub.end_membership(visitor)
    until(lambda: groups() == {"role-staff"}, "the proposal is gone from the groups")
    leave(hub, visitor)
    until(lambda: groups() == set(), "whom the facility does not know is in no group")


def test_whoever_an_instance_can_be_shared_with_is_a_user_of_the_hub_before_they_sign_on(hub):
    visitor = hub.visitor()

    def join(session, login: str, experiment: str) -> None:
        session.add(User(id=login, login=login, given_name="Tina", family_name="Team"))
        session.flush()
        session.add(ExperimentMember(experiment_id=experiment, user_id=login))

    hub.change(lambda session: join(session, f"team-of-{visitor.login}", visitor.experiment))
    hub.change(lambda session: join(session, f"not-of-{visitor.login}", hub.visitor().experiment))
    hub.launched(visitor)
    until(
        lambda: hub.api("GET", f"users/team-of-{visitor.login}").json().get("groups"),
        "the team is known, with groups",
    )
    assert hub.api("GET", f"users/not-of-{visitor.login}").status_code == 404


def test_groups_follow_the_records_without_a_new_sign_on(hub):
    visitor, proposal = hub.visitor(), f"proposal-{hub.visitor().experiment.removesuffix('-1')}"
    theirs = f"proposal-{visitor.experiment.removesuffix('-1')}"
    until(lambda: model(hub, visitor)["groups"] == [theirs], "the groups are those of the records")
    join = ExperimentMember(experiment_id=proposal.removeprefix("proposal-") + "-1", user_id=visitor.id)
    hub.change(lambda session: session.add(join))
    until(lambda: sorted(model(hub, visitor)["groups"]) == sorted([proposal, theirs]), "the new proposal is among the groups")
    hub.end_membership(visitor)
    until(lambda: model(hub, visitor)["groups"] == [proposal], "the old proposal is gone from the groups")


def test_the_admin_right_follows_the_records_without_a_new_sign_on(hub):
    visitor = hub.visitor()
    assert hub.api("GET", "users", visitor.token).status_code == 403
    hub.change(lambda session: session.add(UserRole(user_id=visitor.id, role="admin")))
    until(lambda: "role-admin" in model(hub, visitor)["groups"], "they are an admin")
    assert hub.api("GET", "users", visitor.token).status_code == 200

    def expire(session):
        session.get_one(UserRole, (visitor.id, "admin")).expires_at = now()

    hub.change(expire)
    until(lambda: "role-admin" not in model(hub, visitor)["groups"], "they are no admin any more")
    assert hub.api("GET", "users", visitor.token).status_code == 403


def test_the_sign_on_page_shows_the_example_people_and_roles_that_hold(hub):
    page = hub.page("/hub/login").content.decode()
    assert 'value="ann"' in page and "Chloé Dubois-Lefèvre" in page
    assert "guest</span>" in page.split('value="gus"')[1].split("</button>")[0]
    # whose guest role has run out
    assert "guest" not in page.split('value="rwest"')[1].split("</button>")[0]


# --- the demo's sign-on lets anybody in, and so runs on loopback only


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_loopback_addresses_are_accepted(host):
    refuse_beyond_loopback(f"http://{host}:8000")


@pytest.mark.parametrize(
    "url",
    [
        "http://0.0.0.0:8000",
        "http://:8000",
        "http://*:8000",
        "http://[::]:8000",
        "http://192.0.2.7",
        "http://127.0.0.1.example",
        "https://hutch.facility.example",
        "http://localhost.example:8000",
        "",
    ],
)
def test_other_addresses_are_refused(url):
    with pytest.raises(HutchError, match="lets anybody in as anybody"):
        refuse_beyond_loopback(url)


CONFIG = """
from pathlib import Path
import hub
c = get_config()
c.JupyterHub.bind_url = "http://{host}:{port}"
c.JupyterHub.hub_port = {hub_port}
c.Hutch.portal_port = {portal_port}
c.Hutch.desktop_relays = 0
{more}
hub.install(c, Path(__file__))
"""


def run_hub(folder, host: str = "localhost", more: str = "", *, database: bool = True) -> str:
    """Starts a hub that must end by itself, and returns its log."""
    ports = {name: free_port() for name in ("port", "hub_port", "portal_port")}
    (folder / "jupyterhub_config.py").write_text(CONFIG.format(host=host, more=more, **ports))
    if database:
        engine = open_database(f"sqlite:///{folder / '.hutch' / 'hutch.sqlite'}")
        upgrade(engine)
        engine.dispose()
    ended = subprocess.run(
        [sys.executable, "-m", "jupyterhub", "--config", str(folder / "jupyterhub_config.py")],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HUTCH_CONFIG": str(folder / "jupyterhub_config.py")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    return ended.stdout + ended.stderr


def last_words(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-3:])


def test_the_demo_does_not_run_where_others_could_reach_it(tmp_path):
    words = last_words(run_hub(tmp_path, host="0.0.0.0"))  # noqa: S104
    assert "DemoAuthenticator lets anybody in as anybody, so it does not run on http://0.0.0.0" in words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param("c.Hutch.quotas = 'many'", "quotas", id="wrong-type"),
        pytest.param("c.Hutch.database_url = 'nonsense'", "is not a database URL", id="database-url"),
        pytest.param("c.Hutch.database_url = 'sqlite:////proc/nowhere/x.sqlite'", "cannot make the folder", id="database-folder"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, more, words):
    assert words in last_words(run_hub(tmp_path, more=more, database=False))


def test_a_database_that_was_not_made_says_how_to_make_it(tmp_path):
    assert "run `hutch db upgrade`" in last_words(run_hub(tmp_path, database=False))


def test_what_keeps_all_launches_from_the_cloud_is_said_at_the_hubs_start(tmp_path):
    with facility(tmp_path, 'c.OpenStackSpawner.network = "nowhere"') as hub:
        told = "nothing can be launched in devcloud: The cloud has no network named nowhere."
        until(lambda: told in hub.log(), "the hub has said so")
