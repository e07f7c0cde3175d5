"""Whom a source means: the facility's own users, or people who are found among them."""

import polars as pl
import pytest
from sqlalchemy import insert, select, update

from etl.frames import Extract, Scope
from etl.load import run
from etl.people import LinkError, confirm, suggested
from etl.source import Source
from hub.database.tables import Identity, IdentitySuggestion, User

LINKED = Source(name="icat", users="link")
EXPERIMENTS = ["P1-1"]


class Catalogue:
    """A source of teams, which knows people under ids of its own."""

    name = "catalogue"

    def __init__(self, people, team=None, scopes=None):
        self.people, self.scopes = people, scopes or {}
        self.team = [person["id"] for person in people] if team is None else team

    def read(self):
        schema = dict.fromkeys(["id", "login", "orcid", "email", "issuer", "subject"], pl.String)
        people = pl.DataFrame([{name: person.get(name) for name in schema} for person in self.people], schema=schema)
        experiments = pl.DataFrame({"id": ["V1", "V2"], "proposal_id": "P1", "instrument_id": "ID16"})
        team = pl.DataFrame({"user_id": self.team}, schema={"user_id": pl.String}).with_columns(experiment_id=pl.lit("V1"))
        return Extract({"user": people, "experiment": experiments, "experiment_member": team}, self.scopes)


@pytest.fixture
def facility(office, engine):
    """ann (1) and bob (2), with addresses and iDs; a sign-on of ann's is known."""
    office.put(
        "users",
        "id,login,family_name,email,orcid",
        "1,ann,Lindqvist,Ann@nth.example,0000-0002-1825-0097",
        "2,bob,Okafor,bob@uvb.example,0000-0001-5109-3700",
    )
    office.load()
    with engine.begin() as connection:
        connection.execute(insert(Identity), {"issuer": "https://sso", "subject": "ann-sub", "user_id": "1", "linked_by": "login"})
    return engine


def load(engine, *people, **options):
    return run(engine, LINKED, Catalogue(list(people), **options))


def team(rows):
    return sorted(row["user_id"] for row in rows("experiment_member") if row["source"] == "icat" and row["ended_at"] is None)


@pytest.mark.parametrize(
    ("person", "user", "by"),
    [
        pytest.param({"issuer": "https://sso", "subject": "ann-sub"}, "1", "account", id="sign-on"),
        pytest.param({"login": "bob"}, "2", "login", id="login"),
        pytest.param({"orcid": "0000-0001-5109-3700"}, "2", "orcid", id="orcid"),
        pytest.param({"login": "nobody", "orcid": "0000-0001-5109-3700"}, "2", "orcid", id="orcid-of-another-login-name"),
        pytest.param({"issuer": "https://sso", "subject": "ann-sub", "login": "bob"}, "1", "account", id="sign-on-before-login"),
    ],
)
def test_a_person_is_found_and_stays_found(facility, rows, person, user, by):
    report = load(facility, person | {"id": "77"})
    assert report.rejections.is_empty()
    assert "user" not in report.counts
    assert team(rows) == [user]
    [link] = [row for row in rows("identity") if row["issuer"] == "source:icat"]
    assert (link["subject"], link["user_id"], link["linked_by"]) == ("77", user, by)
    # whatever else is said of them later
    assert load(facility, {"id": "77"}).counts["experiment_member"]["unchanged"] == 1


@pytest.mark.parametrize(
    ("person", "suggestions"),
    [
        pytest.param({"email": "ANN@nth.example"}, [("1", "has the same e-mail address")], id="e-mail"),
        pytest.param({}, [], id="nothing"),
        pytest.param({"login": "Ann"}, [], id="login-in-other-letters"),
        pytest.param(
            {"login": "bob", "orcid": "0000-0002-1825-0097"},
            [
                ("1", "has the same orcid"),
                ("2", "has the same login"),
            ],
            id="login-and-orcid-of-two-users",
        ),
    ],
)
def test_a_person_who_is_not_sure_is_only_suggested(facility, rows, person, suggestions):
    report = load(facility, person | {"id": "77"})
    assert team(rows) == []
    assert [(row["user_id"], row["reason"]) for row in rows("identity_suggestion")] == suggestions
    [rejection] = report.rejections.to_dicts()
    assert (rejection["record"], rejection["field"], rejection["skipped"]) == ("experiment_member", "user_id", True)
    assert rejection["reason"].startswith("person '77' of this source is not known as a user")
    assert ("confirm with `hutch etl link icat 77 USER`" in rejection["reason"]) is bool(suggestions)


def test_an_orcid_of_two_users_finds_neither(facility, rows):
    with facility.begin() as connection:
        connection.execute(update(User).values(orcid="0000-0002-1825-0097"))
    load(facility, {"id": "77", "orcid": "0000-0002-1825-0097"})
    assert team(rows) == []


def test_many_who_are_not_known_do_not_stop_the_others(facility, rows):
    report = load(facility, {"id": "77", "login": "ann"}, *({"id": f"x{n}"} for n in range(50)))
    assert report.objections == []
    assert report.counts["experiment_member"]["skipped"] == 50
    assert team(rows) == ["1"]


def test_ids_of_a_source_are_not_taken_for_ids_of_users(facility, rows):
    """2 is bob's id at the facility, and somebody else's in the catalogue."""
    load(facility, {"id": "2", "login": "ann"}, {"id": "1"})
    assert team(rows) == ["1"]


def test_what_staff_confirm_holds_from_the_next_run(facility, rows):
    person = {"id": "77", "email": "ann@nth.example"}
    load(facility, person)
    assert suggested(facility, "icat") == [("77", "1", "ann", " Lindqvist", "has the same e-mail address")]
    assert confirm(facility, "icat", "77", "1") == "person 77 of icat is now user 1: Lindqvist (ann)"
    assert suggested(facility, "icat") == []
    assert load(facility, person).rejections.is_empty()
    assert team(rows) == ["1"]
    assert rows("identity")[-1]["linked_by"].startswith("staff:")


def test_only_users_are_linked_to(facility, rows):
    with pytest.raises(LinkError, match="no user with the id '99'"):
        confirm(facility, "icat", "77", "99")
    assert [row for row in rows("identity") if row["issuer"] == "source:icat"] == []


def test_a_suggestion_stays_the_same_from_run_to_run(facility, rows):
    person = {"id": "77", "email": "ann@nth.example"}
    load(facility, person)
    before = rows("identity_suggestion")
    load(facility, person)
    assert rows("identity_suggestion") == before


def test_two_people_of_a_source_may_be_one_user(facility, rows):
    assert load(facility, {"id": "77", "login": "ann"}, {"id": "78", "orcid": "0000-0002-1825-0097"}).rejections.is_empty()
    assert team(rows) == ["1"]


def test_teams_are_known_without_a_list_of_people_once_these_are_linked(facility, rows):
    load(facility, {"id": "77", "login": "ann"}, {"id": "78", "login": "bob"})
    load(facility, team=["78"])
    assert team(rows) == ["2"]


def test_who_leaves_a_team_is_found_by_the_sources_own_id(facility, rows):
    load(facility, {"id": "77", "login": "ann"}, {"id": "78", "login": "bob"})
    scope = {"experiment": None, "experiment_member": Scope("user_id", frozenset({"78"}))}
    load(facility, {"id": "78", "login": "bob"}, team=[], scopes=scope)
    assert team(rows) == ["1"]


def test_sign_ons_that_a_source_tells_of_its_own_users_become_identities(office, engine, rows):
    office.put("users", "id,login,family_name,issuer,subject", "1,ann,Lindqvist,https://sso,a", "2,bob,Okafor,,")
    for _ in range(2):
        assert office.load().rejections.is_empty()
        [known] = rows("identity")
        assert (known["issuer"], known["subject"], known["user_id"], known["linked_by"]) == ("https://sso", "a", "1", "source")


def test_a_sign_on_does_not_change_hands(office, engine, rows):
    office.put("users", "id,login,family_name,issuer,subject", "1,ann,Lindqvist,https://sso,a", "2,bob,Okafor,,")
    office.load()
    office.put("users", "id,login,family_name,issuer,subject", "1,ann,Lindqvist,,", "2,bob,Okafor,https://sso,a")
    report = office.load()
    assert report.rejections["reason"].to_list() == ["is the sign-on of user '1'"]
    with engine.connect() as connection:
        assert connection.execute(select(Identity.user_id)).scalars().all() == ["1"]
        assert connection.execute(select(IdentitySuggestion)).all() == []
