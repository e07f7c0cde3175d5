"""What the portal's pages show, as tables: no hub and no database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from starlette.datastructures import Headers, QueryParams

from hub.access import Limit, Person, PlanOffer, Terms, Usage, Visit
from hub.database.tables import Instance, InstanceEvent, Intent, Plan
from hub.instances import State
from hub.portal import new_instance, views, wording
from hub.portal.guard import is_own_request
from hub.portal.hub_api import Server
from hub.portal.new_instance import Wish
from hub.services import portal_address

pytestmark = pytest.mark.any_database

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
TERMS = Terms(NOW)
ANN = Person("id-ann", "ann", "Ann Test")
STAFF = Person("id-sam", "sam", "Sam Test", roles=frozenset({"staff"}))
HELPDESK = Person("id-ida", "ida", "Ida Test", roles=frozenset({"it-support"}))


def visit(name: str, starts_days: float, ends_days: float | None, *, title: str = "", instrument: str = "ID16") -> Visit:
    ends = None if ends_days is None else NOW + timedelta(days=ends_days)
    return Visit(name, f"P-{name}", instrument, title or f"Title {name}", instrument, NOW + timedelta(days=starts_days), ends)


# --- words


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (timedelta(seconds=5), "in a moment"),
        (timedelta(seconds=-5), "just now"),
        (timedelta(minutes=1), "in 1 minute"),
        (timedelta(minutes=-59), "59 minutes ago"),
        (timedelta(minutes=90), "in 2 hours"),
        (timedelta(hours=35), "in 35 hours"),
        (timedelta(hours=36), "in 2 days"),
        (timedelta(days=-59), "59 days ago"),
        (timedelta(days=-90), "3 months ago"),
        (timedelta(days=800), "in 2 years"),
    ],
)
def test_a_distance_in_time_is_said_in_the_largest_unit_that_fits(distance, words):
    assert wording.relative(NOW + distance, NOW) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ([], "not launched lately, so its time is not known"),
        ([8.2], "ready in about 8 s (last launch)"),
        ([8, 9, 10], "ready in about 9 s (last 3 launches)"),
        ([*range(1, 20), 60], "ready in about 10 s (last 20 launches: half under 10 s, 19 in 20 under 19 s)"),
        ([0.3] * 5, "ready in about 0.3 s (last 5 launches: half under 0.3 s, 19 in 20 under 0.3 s)"),
        ([200, 200], "ready in about 3 min (last 2 launches)"),
    ],
    ids=["none", "one", "few", "many", "fast", "slow"],
)
def test_what_to_expect_is_said_from_the_last_launches(seconds, words):
    assert wording.expectation(seconds) == words


@pytest.mark.parametrize(
    ("cores", "memory_mb", "words"), [(1, 512, "1 core, 512 MB"), (8, 32768, "8 cores, 32 GB"), (2, 1536, "2 cores, 1.5 GB")]
)
def test_a_size_is_said_in_cores_and_memory(cores, memory_mb, words):
    assert wording.size(cores, memory_mb) == words


@pytest.mark.parametrize(("names", "words"), [(["Ana"], "Ana"), (["Ana", "Bo"], "Ana and Bo"), (list("abcd"), "a, b and 2 others")])
def test_company_is_named_and_the_rest_counted(names, words):
    assert wording.listed(names) == words


# --- an instance


def instance(*intents: Intent, **fields) -> Instance:
    plan = Plan(id="desktop", name="X-ray desktop", cores=8, memory_mb=32768)
    given = {"id": "1234567890", "owner_id": "id-ann", "server_name": "films", "display_name": "Films"} | fields
    row = Instance(plan=plan, **given)
    row.intents, row.members, row.experiments = list(intents), [], []
    return row


def intent(kind: str, outcome: str | None = None, **fields) -> Intent:
    return Intent(id=7, instance_id="1234567890", kind=kind, outcome=outcome, asked_at=NOW, **fields)


LAUNCHED = intent("launch", "done")
READY = Server("films", ready=True, url="http://ann.localhost/user/ann/films/")


@pytest.mark.parametrize(
    ("intents", "server", "state", "open_", "start", "stop"),
    [
        ([LAUNCHED], READY, State.RUNNING, True, False, True),
        ([intent("launch")], Server("films", pending="spawn"), State.LAUNCHING, False, False, False),
        ([LAUNCHED, intent("stop")], Server("films", pending="stop"), State.STOPPING, False, False, False),
        ([LAUNCHED, intent("stop")], None, State.STOPPING, False, True, False),
        ([LAUNCHED, intent("stop", "done")], None, State.STOPPED, False, True, False),
        ([intent("launch", "failed")], None, State.FAILED, False, True, False),
        ([LAUNCHED], None, State.UNREACHABLE, False, True, True),
        ([intent("launch")], None, State.UNREACHABLE, False, True, True),
        ([LAUNCHED, intent("stop", "failed")], None, State.UNREACHABLE, False, True, True),
        ([LAUNCHED, intent("stop", "failed")], READY, State.RUNNING, True, False, True),
        ([intent("launch", "cancelled"), intent("stop", "done")], None, State.STOPPED, False, True, False),
        ([LAUNCHED, intent("delete", "cancelled"), intent("restore", "done")], None, State.STOPPED, False, True, False),
    ],
    ids=[
        "running",
        "launching",
        "stopping",
        "stop-that-the-cloud-has-not-carried-out",
        "stopped",
        "failed",
        "lost-sight-of",
        "hub-died-during-launch",
        "stop-failed-and-lost",
        "stop-failed-and-runs",
        "cancelled",
        "restored",
    ],
)
def test_a_card_offers_what_its_state_allows(intents, server, state, open_, start, stop):
    card = views.card(instance(*intents), server, ANN, NOW)
    assert (card.state, bool(card.notebook_url), card.can_start, card.can_stop) == (state, open_, start, stop)


@pytest.mark.parametrize("came_up", [NOW, None], ids=["it-has-a-server", "it-never-had-one"])
def test_what_failed_to_start_can_be_switched_off_where_there_is_something_to_switch_off(came_up):
    card = views.card(instance(LAUNCHED, intent("launch", "failed"), first_ready_at=came_up), None, ANN, NOW)
    assert (card.state, card.can_stop) == (State.FAILED, came_up is not None)


def test_a_card_leads_to_jupyterlab_on_the_users_own_host():
    assert views.card(instance(LAUNCHED), READY, ANN, NOW).notebook_url == "http://ann.localhost/user/ann/films/lab"


def test_every_state_has_a_sign_of_its_own():
    assert len({sign for sign, _ in views.LOOKS.values()}) == len(views.LOOKS) == len(State)


def test_a_failure_shows_sentence_stage_and_reference():
    failed = intent("launch", "failed", stage="boot", message="No room.")
    failure = views.card(instance(failed), None, ANN, NOW).failure
    assert failure == views.Failure("No room.", "Booting", "12345678-7")


def test_a_failure_that_was_heard_and_not_yet_written_down_is_a_failure():
    launch = views.Launch()
    launch.take({"failed": True, "message": "Spawn failed: No room."})
    card = views.card(instance(intent("launch")), None, ANN, NOW, launch)
    assert card.state is State.FAILED
    assert card.failure and card.failure.message == "No room."


def test_a_launch_that_the_hub_refused_before_it_wrote_anything_says_why():
    launch = views.Launch()
    launch.take({"failed": True, "message": "Spawn failed: GPU is closed."})
    card = views.unrecorded("films", None, launch)
    assert card.state is State.FAILED
    assert card.failure and card.failure.message == "GPU is closed."


def test_a_launch_that_the_hub_has_only_just_accepted_is_followed():
    card = views.unrecorded("films", Server("films", pending="spawn", display_name="Films"), None)
    assert (card.state, card.title, card.failure) == (State.LAUNCHING, "Films", None)


@pytest.mark.parametrize(
    ("person", "seen"),
    [(ANN, "panic"), (HELPDESK, "500 from Nova\n--- console ---\npanic")],
    ids=["owner-sees-their-console", "staff-see-the-clouds-words"],
)
def test_detail_of_a_failure(person, seen):
    assert views.visible_detail("500 from Nova\n--- console ---\npanic", person) == seen


def test_only_what_can_still_be_restored_is_listed_as_deleted():
    past, soon = NOW - timedelta(days=1), NOW + timedelta(days=1)
    rows = [
        instance(id="kept"),
        instance(id="marked", deleted_at=past, purge_at=soon),
        instance(id="late", deleted_at=past, purge_at=past),
        instance(id="purged", deleted_at=past, purge_at=soon, purged_at=NOW),
    ]
    assert [card.id for card in views.restorable(rows, NOW)] == ["marked"]


def test_history_is_told_newest_first_in_words():
    events = [
        InstanceEvent(at=NOW - timedelta(hours=3), kind="launch-asked", actor="ann", message=""),
        InstanceEvent(at=NOW - timedelta(hours=2), kind="boot", seconds=2.31, actor="", message="Booting"),
        InstanceEvent(at=NOW - timedelta(hours=1), kind="stop-asked", actor="steward", message="expired"),
        InstanceEvent(at=NOW, kind="found-in-error", actor="", message=""),
    ]
    told = [(line.words, line.actor, line.took, line.message) for line in views.history(events, ANN)]
    assert told == [
        ("Found in error", "", "", ""),
        ("Stop asked for", "steward", "", "expired"),
        ("Booted", "", "2.3 s", ""),
        ("Launch asked for", "you", "", ""),
    ]


# --- a launch


def test_stages_are_told_in_order_and_those_passed_over_count_as_done():
    launch = views.Launch(8.0)
    launch.take({"stage": "rights", "state": "done", "seconds": 0.01, "elapsed_seconds": 0.1})
    launch.take({"stage": "account", "state": "started", "elapsed_seconds": 0.5})
    launch.take({"stage": "mounts", "state": "started", "elapsed_seconds": 0.6})
    states = {line.name: line.state for line in launch.stages}
    assert list(states) == [*views.STAGES, "mounts"]
    assert states["rights"] == states["boot"] == "done"
    assert states["account"] == states["mounts"] == "started"
    assert launch.now == "Making your account"


@pytest.mark.parametrize(
    ("expected", "elapsed", "words", "slow"),
    [
        (8.0, 4.2, "4 s of about 8 s", False),
        (None, 4.2, "4 s", False),
        (8.0, 12.9, "13 s of about 8 s", False),
        (8.0, 13.1, "13 s, usually about 8 s", True),
        (None, 600, "10 min", False),
    ],
)
def test_the_clock_says_what_was_expected_and_when_it_is_exceeded(expected, elapsed, words, slow):
    launch = views.Launch(expected)
    assert (launch.clock(elapsed), launch.is_slow(elapsed)) == (words, slow)


# --- the form

ID11 = PlanOffer("gpu", "GPU", cores=8, memory_mb=65536, limits=(Limit(frozenset({"ID11"})),))
NOTEBOOK = PlanOffer("notebook", "Notebook", cores=2, memory_mb=8192)
# newest first, as they come from the database
VISITS = [visit("later", 9, 10), visit("next", 3, 4), visit("run", -1, 1), visit("old", -20, -18, instrument="ID11")]


def offer(wish: Wish = Wish(), person: Person = ANN, visits=VISITS, **fields) -> new_instance.Offer:  # noqa: B008
    given = {"usage": Usage(), "seconds": {}, "terms": TERMS} | fields
    return new_instance.offer(new_instance.prefilled(wish, person, visits, TERMS), person, visits, [ID11, NOTEBOOK], **given)


def test_experiments_come_by_what_runs_now_then_the_nearest_to_come_then_the_past():
    told = [(group.title, [visit.id for visit in group.visits]) for group in offer().groups]
    assert told == [("Running now", ["run"]), ("Coming", ["next", "later"]), ("Past", ["old"])]


def test_the_only_experiment_that_runs_now_is_chosen_and_gives_the_name():
    shown = offer()
    assert shown.wish.experiments == ("run",)
    assert shown.name == "Title run"


def test_what_was_unchosen_stays_unchosen():
    shown = offer(new_instance.read(QueryParams("suggested=Title+run&name=Title+run")))
    assert not shown.wish.experiments
    assert shown.name == "Analysis"


@pytest.mark.parametrize(
    ("search", "found"),
    [("id11", ["run", "old"]), ("TITLE next", ["run", "next"]), ("nothing", ["run"])],
    ids=["by-instrument", "by-title", "chosen-stays-in-sight"],
)
def test_the_search_finds_by_words(search, found):
    shown = offer(Wish(experiments=("run",), search=search, touched=True))
    assert [visit.id for group in shown.groups for visit in group.visits] == found


@pytest.mark.parametrize(
    ("experiments", "plan", "last", "chosen", "gpu_possible"),
    [
        (("run",), "", "", "notebook", False),
        (("old",), "", "", "gpu", True),
        (("old",), "", "notebook", "notebook", True),
        (("old",), "gpu", "notebook", "gpu", True),
        (("run",), "gpu", "gpu", "notebook", False),
    ],
    ids=["first-possible", "first", "last-used", "as-picked", "picked-is-not-possible-any-more"],
)
def test_plans_follow_the_experiments(experiments, plan, last, chosen, gpu_possible):
    shown = offer(Wish(experiments=experiments, plan=plan, touched=True), usage=Usage(last_plan=last))
    assert [one.plan.id for one in shown.plans if one.chosen] == [chosen]
    assert bool(shown.plans[0].may) == gpu_possible


def test_a_name_that_was_typed_is_kept_when_experiments_change():
    shown = offer(Wish(experiments=("old",), name="Mine", suggested="Title run", touched=True))
    assert (shown.name, shown.suggested) == ("Mine", "Title old")


@pytest.mark.parametrize(
    ("person", "visits", "possible", "none"),
    [(ANN, [], False, False), (STAFF, [], True, True), (STAFF, VISITS, True, False)],
    ids=["nothing-to-launch-for", "staff-without-experiments", "staff-with-experiments"],
)
def test_none_of_them_is_for_those_who_may(person, visits, possible, none):
    shown = offer(person=person, visits=visits)
    assert (shown.possible, shown.wish.none) == (possible, none)


def test_a_full_quota_is_said_at_once():
    assert offer(usage=Usage(2)).quota.reason.startswith("You have 2 of at most 2 instances.")


@pytest.mark.parametrize(
    ("wish", "plan", "words"),
    [
        (Wish(name="a"), None, "Choose a plan."),
        (Wish(name="a", plan="gone"), None, "no longer offered"),
        (Wish(), NOTEBOOK, "Give the instance a name."),
        (Wish(name="a" * 251), NOTEBOOK, "at most 250"),
        (Wish(name="a\u200bb"), NOTEBOOK, "cannot be shown"),
        (Wish(name="a", none=True, experiments=("run",)), NOTEBOOK, "Untick one"),
        (Wish(name="Ζεύς 日本 ½"), NOTEBOOK, ""),
    ],
    ids=["no-plan", "plan-gone", "no-name", "too-long", "invisible", "contradiction", "any-script"],
)
def test_what_is_wrong_with_the_form_itself(wish, plan, words):
    problem = new_instance.problem(wish, plan)
    assert words in problem if words else problem == ""


@pytest.mark.parametrize(
    ("title", "taken", "name"),
    [
        ("Perovskite films", [], "perovskite-films"),
        ("Perovskite films", ["perovskite-films"], "perovskite-films-2"),
        ("Perovskite films", ["perovskite-films", "perovskite-films-2"], "perovskite-films-3"),
        ("日本", [], "instance"),
        ("日本", ["instance"], "instance-2"),
        ("2026 run", [], "x-2026-run"),
        ("--a--b--", [], "a-b"),
        ("w" * 100, ["w" * 27], "w" * 27 + "-2"),
    ],
)
def test_a_server_name_can_be_written_in_an_address_and_is_not_taken(title, taken, name):
    assert new_instance.free_server_name(title, taken) == name


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Perovskite  films\n", "Perovskite films"),
        ("\u200b", "P-run"),
        ("word " * 30, ("word " * 12).strip()),
        ("x" * 70, "x" * 60),
    ],
)
def test_the_suggested_name_is_the_title_on_one_line_cut_at_a_word(title, name):
    assert new_instance.suggested_name([visit("run", -1, 1, title=title)]) == name


# --- guard and address


@pytest.mark.parametrize(
    ("method", "headers", "ours"),
    [
        ("GET", {"Sec-Fetch-Site": "cross-site"}, True),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, True),
        ("POST", {"Sec-Fetch-Site": "same-site", "Origin": "http://portal"}, False),
        ("POST", {"Sec-Fetch-Site": "none"}, False),
        ("POST", {"Origin": "http://portal"}, True),
        ("POST", {"Origin": "http://ann.localhost"}, False),
        ("POST", {}, False),
        ("DELETE", {"Origin": "null"}, False),
    ],
    ids=["read", "own", "another-users-page", "typed", "old-browser", "old-browser-foreign", "says-nothing", "opaque"],
)
def test_only_our_own_pages_may_act(method, headers, ours):
    assert is_own_request(method, Headers(headers), "http://portal", "http") is ours


@pytest.mark.parametrize(
    ("host", "base_url", "where"),
    [
        ("", "/", "/services/portal/"),
        ("http://localhost:8000", "/", "http://portal--service.localhost:8000/services/portal/"),
        ("https://hutch.example", "/jh/", "https://portal--service.hutch.example/jh/services/portal/"),
    ],
)
def test_the_address_of_the_portal(host, base_url, where):
    assert portal_address(host, base_url) == where
