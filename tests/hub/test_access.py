"""Who may launch what: each rule as a table, and what holds whatever the records are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.access import (
    MAY,
    UNLIMITED,
    Action,
    Consent,
    Decision,
    Limit,
    Part,
    Person,
    Place,
    PlanOffer,
    Quota,
    Right,
    Terms,
    Usage,
    Visit,
    lifetime,
    may_act,
    may_add_cores,
    may_launch,
    may_own_another,
    may_pick,
    may_use_experiments,
    quota,
    ref,
    standing,
)
from hub.database.tables import FacilityRole

pytestmark = pytest.mark.any_database

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY, A_SECOND = timedelta(days=1), timedelta(seconds=1)
TERMS = Terms(NOW, lifetime=14 * A_DAY)


def person(*roles: str, id: str = "ann", groups: str = "", on: str = "", **more) -> Person:
    return Person(id, id, id.title(), frozenset(roles), frozenset(groups.split()), frozenset(on.split()), **more)


def visit(*members: str, id: str = "P1-1", on: str = "ID16", **more) -> Visit:
    return Visit(id, "P1", on, "Cracks", roles=dict.fromkeys(members, "member"), **more)


HERS, HERS_TOO, FOREIGN = visit("ann", "bob"), visit("ann", id="P2-1", on="D22"), visit("bob", id="P3-1")
GONE = visit("ann", gone=True, public_at=NOW)
OPEN, CLOSED = visit(public_at=NOW), visit(public_at=NOW + A_SECOND)


@pytest.mark.parametrize(
    ("who", "visits", "open_data", "rule"),
    [
        pytest.param(person(), [HERS], False, "+ experiments", id="member"),
        pytest.param(person(), [HERS, HERS_TOO], False, "+ experiments", id="member-of-both"),
        pytest.param(person(), [], False, "- experiment-needed", id="nobody-special-without-experiment"),
        pytest.param(person("staff"), [], False, "+ experiment-not-needed", id="staff-without-experiment"),
        pytest.param(person("guest"), [], False, "+ experiment-not-needed", id="guest-without-experiment"),
        pytest.param(person("admin"), [], False, "+ experiment-not-needed", id="admin-without-experiment"),
        pytest.param(person("it-support"), [], False, "- experiment-needed", id="it-support-alone-without-experiment"),
        pytest.param(person("instrument-control"), [], False, "- experiment-needed", id="control-alone-without-experiment"),
        pytest.param(person("scientific-computing"), [], False, "- experiment-needed", id="computing-alone-without-experiment"),
        pytest.param(person("instrument-scientist", on="ID16"), [], False, "- experiment-needed", id="scientist-without"),
        pytest.param(person(), [FOREIGN], False, "- experiment-membership", id="not-a-member"),
        pytest.param(person(), [HERS, FOREIGN], False, "- experiment-membership", id="member-of-one-of-two"),
        pytest.param(person("staff"), [FOREIGN], False, "- experiment-membership", id="staff-is-no-member"),
        pytest.param(person("admin"), [FOREIGN], False, "- experiment-membership", id="admin-is-no-member"),
        pytest.param(person(on="ID16"), [FOREIGN], False, "- experiment-membership", id="scientist-is-no-member"),
        pytest.param(person(), [GONE], True, "- experiment-gone", id="member-of-what-is-no-longer-named"),
        pytest.param(person(), [OPEN], True, "+ experiments", id="open-from-this-moment"),
        pytest.param(person(), [CLOSED], True, "- experiment-membership", id="embargo-for-another-second"),
        pytest.param(person(), [OPEN], False, "- experiment-membership", id="open-and-the-site-does-not-include-it"),
        pytest.param(person(), [OPEN, HERS], True, "+ experiments", id="open-and-hers"),
        pytest.param(person(), [OPEN, FOREIGN], True, "- experiment-membership", id="open-and-foreign"),
    ],
)
def test_experiments_are_those_of_the_owner_or_open(who, visits, open_data, rule):
    assert said(may_use_experiments(who, visits, replace(TERMS, open_data=open_data))) == rule


def said(decision: Decision) -> str:
    return f"{'+' if decision else '-'} {decision.rule}"


def plan(*limits: dict, **more) -> PlanOffer:
    return PlanOffer("imaging", "Imaging", limits=tuple(map(Limit.read, limits)), **more)


ON_ID16, STAFF, SCHOOL = {"instruments": ["ID16"]}, {"roles": ["staff"]}, {"groups": ["school"]}
BEFORE, AFTER = (NOW - A_SECOND).isoformat(), (NOW + A_SECOND).isoformat()


@pytest.mark.parametrize(
    ("who", "offer", "visits", "rule"),
    [
        pytest.param(person(), plan(), [HERS], "+ plan-for-all", id="unlimited"),
        pytest.param(person(), plan(ON_ID16), [HERS], "+ plan-limit", id="experiment-on-the-instrument"),
        pytest.param(person(), plan(ON_ID16), [HERS_TOO], "- plan-limited", id="experiment-elsewhere"),
        pytest.param(person(), plan(ON_ID16), [HERS_TOO, HERS], "+ plan-limit", id="one-experiment-there"),
        pytest.param(person(), plan(ON_ID16), [], "- plan-limited", id="no-experiment"),
        pytest.param(person(on="ID16"), plan(ON_ID16), [], "+ plan-limit", id="its-scientist"),
        pytest.param(person(on="D22"), plan(ON_ID16), [], "- plan-limited", id="another-scientist"),
        pytest.param(person("staff"), plan(STAFF), [], "+ plan-limit", id="role"),
        pytest.param(person("guest"), plan(STAFF), [], "- plan-limited", id="another-role"),
        pytest.param(person(groups="school"), plan(SCHOOL), [], "+ plan-limit", id="group"),
        pytest.param(person(groups="staff"), plan(STAFF), [], "- plan-limited", id="a-group-is-no-role"),
        pytest.param(person("school"), plan(SCHOOL), [], "- plan-limited", id="a-role-is-no-group"),
        pytest.param(person("staff"), plan(ON_ID16, STAFF), [HERS_TOO], "+ plan-limit", id="or-by-the-second"),
        pytest.param(person(), plan(ON_ID16, STAFF), [HERS], "+ plan-limit", id="or-by-the-first"),
        pytest.param(person(), plan(ON_ID16, STAFF), [HERS_TOO], "- plan-limited", id="or-by-neither"),
        pytest.param(person("staff"), plan(ON_ID16 | STAFF), [HERS], "+ plan-limit", id="and-both"),
        pytest.param(person("staff"), plan(ON_ID16 | STAFF), [HERS_TOO], "- plan-limited", id="and-without-the-instrument"),
        pytest.param(person(), plan(ON_ID16 | STAFF), [HERS], "- plan-limited", id="and-without-the-role"),
        pytest.param(person(groups="school"), plan(SCHOOL | {"until": AFTER}), [], "+ plan-limit", id="until-in-a-second"),
        pytest.param(person(groups="school"), plan(SCHOOL | {"until": NOW.isoformat()}), [], "- plan-limited", id="until-now"),
        pytest.param(person(groups="school"), plan(SCHOOL | {"from": NOW.isoformat()}), [], "+ plan-limit", id="from-now"),
        pytest.param(person(groups="school"), plan(SCHOOL | {"from": AFTER}), [], "- plan-limited", id="from-in-a-second"),
        pytest.param(person(), plan({"from": BEFORE, "until": AFTER}), [], "+ plan-limit", id="dates-alone"),
        pytest.param(person(), plan({"until": "2026-03-10T12:00:01"}), [], "+ plan-limit", id="a-date-without-zone-is-utc"),
        pytest.param(person(), plan({"roles": None}), [], "+ plan-limit", id="null-is-not-named"),
        pytest.param(person("staff"), plan({"roles": []}), [], "- plan-limited", id="an-empty-list-is-nobody"),
        pytest.param(person("staff"), plan(STAFF | {"moon": "full"}), [], "- plan-limited", id="an-unknown-condition-is-nobody"),
        pytest.param(person("staff"), plan({"roles": "staff"}), [], "- plan-limited", id="a-text-for-a-list-is-nobody"),
        pytest.param(person("staff"), plan(STAFF | {"until": "soon"}), [], "- plan-limited", id="a-date-that-is-none-is-nobody"),
        pytest.param(person("admin"), plan(ON_ID16 | {"until": BEFORE}), [], "+ plan-admin", id="admin"),
    ],
)
def test_limited_plans(who, offer, visits, rule):
    assert said(may_pick(who, offer, visits, TERMS)) == rule


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([ON_ID16], "Imaging is only for experiments on Nano-imaging."),
        ([ON_ID16 | STAFF, SCHOOL], "Imaging is only for experiments on Nano-imaging and for staff, or for the group school."),
        ([{"roles": ["staff", "admin"], "until": AFTER}], "Imaging is only for admin, staff until 10 March 2026, 12:00 UTC."),
        ([{"from": AFTER}], "Imaging is only offered from 10 March 2026, 12:00 UTC."),
        ([{"moon": "full"}], "Imaging is only under a condition that Hutch does not know (moon)."),
    ],
    ids=["instrument", "and-or", "until", "from", "unknown"],
)
def test_a_refused_plan_says_whom_it_is_for(limits, words):
    offer = plan(*limits, instruments={"ID16": "Nano-imaging"})
    assert may_pick(person("guest"), offer, [], replace(TERMS, at=NOW + A_DAY if "until" in words else NOW)).reason == words


# --- quota

BY_ROLE = {"": Quota(2, 16), "staff": Quota(5), "guest": Quota(1, 4), "admin": Quota(UNLIMITED, 64), "school": Quota(None, 32)}


@pytest.mark.parametrize(
    ("titles", "allotted", "own", "expected"),
    [
        pytest.param([], None, Quota(), Quota(2, 16), id="everybody"),
        pytest.param(["staff"], None, Quota(), Quota(5, 16), id="by-role"),
        pytest.param(["guest"], None, Quota(), Quota(2, 16), id="a-role-takes-nothing-away"),
        pytest.param(["staff", "guest", "school"], None, Quota(), Quota(5, 32), id="the-most-generous-of-each"),
        pytest.param(["admin", "staff"], None, Quota(), Quota(UNLIMITED, 64), id="without-limit-is-most"),
        pytest.param(["staff"], 3, Quota(), Quota(3, 16), id="the-source-before-roles"),
        pytest.param(["admin"], 0, Quota(), Quota(0, 64), id="the-source-says-none"),
        pytest.param(["staff"], 3, Quota(instances=1), Quota(1, 16), id="an-admin-before-all"),
        pytest.param([], 3, Quota(0, UNLIMITED), Quota(0, UNLIMITED), id="an-admin-for-both"),
    ],
)
def test_the_quota_is_an_admins_word_or_the_sources_or_the_most_generous_role(titles, allotted, own, expected):
    assert quota(replace(TERMS, quotas=BY_ROLE), titles, allotted=allotted, own=own) == expected


@pytest.mark.parametrize(
    ("most", "used", "allowed"),
    [
        pytest.param(2, 0, True, id="none-yet"),
        pytest.param(2, 1, True, id="the-last"),
        pytest.param(2, 2, False, id="used-up"),
        pytest.param(2, 3, False, id="lowered-below"),
        pytest.param(0, 0, False, id="zero-is-none"),
        pytest.param(-1, 1000, True, id="without-limit"),
    ],
)
def test_the_quota_counts_instances(most, used, allowed):
    assert bool(may_own_another(person(quota=most), Usage(used))) is allowed


@pytest.mark.parametrize(
    ("most", "used", "needed", "allowed"),
    [
        pytest.param(8, 0, 8, True, id="all-of-it"),
        pytest.param(8, 1, 8, False, id="one-too-many"),
        pytest.param(8, 9, 0, False, id="lowered-below"),
        pytest.param(0, 0, 1, False, id="zero-is-none"),
        pytest.param(-1, 9999, 64, True, id="without-limit"),
    ],
)
def test_the_quota_counts_cores(most, used, needed, allowed):
    decision = may_add_cores(person(core_quota=most), Usage(1, used), plan(cores=needed))
    assert bool(decision) is allowed
    assert allowed or f"have {used} of at most {most} cores, and Imaging needs {needed}" in decision.reason


@pytest.mark.parametrize(
    ("most", "cores", "usage", "allowed"),
    [
        pytest.param(1, -1, Usage(1), False, id="another"),
        pytest.param(5, 3, Usage(1, 2), False, id="another-beyond-the-cores"),
        pytest.param(1, -1, None, True, id="resume-at-the-limit"),
        pytest.param(0, -1, None, False, id="resume-when-locked-out"),
        pytest.param(1, 0, None, False, id="resume-when-locked-out-by-cores"),
        pytest.param(-1, -1, None, True, id="resume-without-limit"),
    ],
)
def test_a_resume_takes_no_room_but_a_quota_of_zero_locks_out(most, cores, usage, allowed):
    assert bool(may_launch(person(quota=most, core_quota=cores), plan(cores=2), [HERS], usage, TERMS)) is allowed


@pytest.mark.parametrize(
    ("who", "lifetimes", "days"),
    [
        pytest.param(person(), {}, 14, id="the-sites"),
        pytest.param(person(), {"": 3}, 3, id="the-plans"),
        pytest.param(person("staff"), {"": 3, "staff": 30, "guest": 90}, 30, id="by-role"),
        pytest.param(person("staff"), {"": 40, "staff": 30}, 40, id="the-longest"),
        pytest.param(person(groups="school"), {"": 3, "school": 5}, 5, id="by-group"),
        pytest.param(person(), {"staff": 30}, 14, id="none-matches"),
        pytest.param(person("staff"), {"staff": 3}, 14, id="a-role-takes-nothing-away"),
        pytest.param(person("staff"), {"": 3, "staff": 0}, None, id="without-end"),
    ],
)
def test_the_lifetime_is_the_longest_that_the_plan_gives(who, lifetimes, days):
    assert lifetime(who, plan(lifetimes=lifetimes), TERMS) == (None if days is None else timedelta(days=days))


@pytest.mark.parametrize(
    ("starts", "ends", "when"),
    [
        pytest.param(None, None, "running", id="open-ends"),
        pytest.param(NOW - A_DAY, NOW + A_DAY, "running", id="between"),
        pytest.param(NOW, None, "running", id="from-its-first-moment"),
        pytest.param(None, NOW, "past", id="not-in-its-last-moment"),
        pytest.param(NOW + A_DAY, None, "coming", id="coming"),
        pytest.param(NOW - A_DAY, NOW - A_SECOND, "past", id="past"),
        pytest.param(NOW + A_DAY, NOW - A_DAY, "past", id="dates-the-wrong-way-round"),
    ],
)
def test_when_an_experiment_is(starts, ends, when):
    assert replace(HERS, starts_at=starts, ends_at=ends).when(NOW) == when


def test_an_allowed_launch_names_all_that_it_rests_on():
    decision = may_launch(person("staff"), plan(STAFF), [HERS, OPEN], Usage(), replace(TERMS, open_data=True))
    assert decision.records == ("experiment_member:P1-1/ann", "proposal:P1", "plan:imaging", "user_role:ann/staff", "user:ann")


def test_parts_of_a_key_are_told_apart():
    assert ref("user_role", "a/b", "c%d") == "user_role:a%2Fb/c%25d" != ref("user_role", "a", "b/c%d")


# --- whatever the records are

names = st.sampled_from(["ID16", "D22", "BM05"])
logins = st.sampled_from(["ann", "bob", "carol", "grace"])
some_roles = st.frozensets(st.sampled_from(sorted(FacilityRole)), max_size=3)
some_groups = st.frozensets(st.sampled_from(["school", "project"]))
some_names = st.frozensets(names)
moments = st.sampled_from([NOW - A_DAY, NOW - A_SECOND, NOW, NOW + A_SECOND, NOW + 30 * A_DAY])
people = st.builds(
    Person,
    id=logins,
    login=logins,
    name=st.just("N"),
    roles=some_roles,
    groups=some_groups,
    scientist_of=some_names,
    quota=st.integers(-1, 3),
    core_quota=st.integers(-1, 9),
)
some_visits = st.lists(
    st.builds(
        Visit,
        id=st.sampled_from(["P1-1", "P2-1", "P3-1"]),
        proposal_id=st.just("P"),
        instrument_id=names,
        title=st.just("T"),
        starts_at=st.none() | moments,
        ends_at=st.none() | moments,
        roles=st.dictionaries(logins, st.just("member")),
        public_at=st.none() | moments,
        gone=st.booleans(),
    ),
    max_size=3,
)
limits = st.builds(
    Limit,
    instruments=st.none() | some_names,
    roles=st.none() | some_roles,
    groups=st.none() | some_groups,
    since=st.none() | moments,
    until=st.none() | moments,
    unknown=st.sampled_from([frozenset(), frozenset({"moon"})]),
)
plans = st.builds(
    PlanOffer,
    id=st.just("p"),
    name=st.just("P"),
    cores=st.integers(1, 4),
    limits=st.lists(limits, max_size=3).map(tuple),
    lifetimes=st.dictionaries(st.sampled_from(["", "staff", "guest", "school"]), st.integers(0, 90)),
)
usages = st.none() | st.builds(Usage, st.integers(0, 4), st.integers(0, 9))
some_terms = st.builds(Terms, at=st.just(NOW), lifetime=st.none() | st.just(14 * A_DAY), open_data=st.booleans())
places = st.builds(
    Place,
    id=st.just("i1"),
    owner_id=logins,
    owner_is_staff=st.booleans(),
    members=st.dictionaries(logins, st.sampled_from(["owner", "driver", "viewer", "support", ""])),
    visits=some_visits.map(tuple),
    when_owner_leaves=st.sampled_from(["disconnect", "lock", "stay"]),
    members_enter_freely=st.booleans(),
    consented=st.dictionaries(logins, st.builds(Consent, st.sampled_from(["view", "control"]), moments, st.integers(1, 9))),
    owner_here=st.booleans(),
    inside=st.frozensets(logins),
    sent_away=st.frozensets(logins),
)
quotas = st.builds(Quota, st.none() | st.integers(-1, 5), st.none() | st.integers(-1, 5))


def all_decisions(
    who: Person, offer: PlanOffer, chosen: list[Visit], usage: Usage | None, where: Place, terms: Terms
) -> list[bool]:
    launched = bool(may_launch(who, offer, chosen, usage, terms))
    return [launched, *(bool(may_act(who, action, where, terms)) for action in Action)]


@given(people, plans, some_visits, usages, places, some_terms, some_roles, some_groups, some_names)
def test_more_roles_never_take_access_away(who, offer, chosen, usage, where, terms, roles, groups, instruments):
    more = replace(who, roles=who.roles | roles, groups=who.groups | groups, scientist_of=who.scientist_of | instruments)
    before, after = (all_decisions(one, offer, chosen, usage, where, terms) for one in (who, more))
    assert all(later >= earlier for earlier, later in zip(before, after, strict=True))


@given(people, plans, some_visits, usages, places, some_terms)
def test_more_memberships_never_take_access_away(who, offer, chosen, usage, where, terms):
    def joined(visits):
        return [replace(one, roles={**one.roles, who.id: "member"}) for one in visits]

    before = all_decisions(who, offer, chosen, usage, where, terms)
    after = all_decisions(who, offer, joined(chosen), usage, replace(where, visits=tuple(joined(where.visits))), terms)
    assert all(later >= earlier for earlier, later in zip(before, after, strict=True))


@given(people, places, some_terms)
def test_a_greater_part_never_takes_access_away(who, where, terms):
    grown = {None: "viewer", "": "viewer", "viewer": "driver"}.get(where.members.get(who.id))
    greater = replace(where, members={**where.members, who.id: grown} if grown else where.members)
    agreed = replace(
        greater,
        owner_here=True,
        members_enter_freely=True,
        consented={**greater.consented, who.id: Consent("control", NOW + A_DAY, 9)},
    )
    for action in Action:
        allowed = [bool(may_act(who, action, one, terms)) for one in (where, greater, agreed)]
        assert allowed == sorted(allowed)


@given(people, plans, some_visits, usages, some_terms)
def test_a_higher_quota_never_takes_access_away(who, offer, chosen, usage, terms):
    def raised(count):
        return -1 if count == -1 else count + 1

    more = replace(who, quota=raised(who.quota), core_quota=raised(who.core_quota))
    assert not may_launch(who, offer, chosen, usage, terms) or may_launch(more, offer, chosen, usage, terms)


@given(st.dictionaries(st.sampled_from(["staff", "guest", "admin"]), quotas), some_roles, some_roles, quotas)
def test_more_roles_never_lower_a_quota(by_role, roles, more_roles, own):
    terms = replace(TERMS, quotas={"": Quota(2, 16)} | by_role)
    before, after = (quota(terms, held, own=own) for held in (roles, roles | more_roles))
    for few, many in ((before.instances, after.instances), (before.cores, after.cores)):
        assert many == UNLIMITED or (few != UNLIMITED and few <= many)


@given(people, plans, some_roles, some_terms)
def test_more_roles_never_shorten_a_lifetime(who, offer, roles, terms):
    before, after = (lifetime(one, offer, terms) for one in (who, replace(who, roles=who.roles | roles)))
    assert after is None or (before is not None and before <= after)


@given(people, places, some_terms)
def test_nobody_gets_in_but_owner_members_support_and_admins(who, where, terms):
    here = [one for one in where.visits if not one.gone]
    near = any(one.is_within(terms.support_window, NOW) for one in here)
    inside = (
        who.id == where.owner_id
        or where.members.get(who.id) in ("driver", "viewer", "support")
        or who.roles & {"admin", "it-support"}
        or ("instrument-control" in who.roles and near)
        or who.scientist_of & {one.instrument_id for one in here}
    )
    for action in Action:
        decision = may_act(who, action, where, terms)
        assert not decision or inside
        assert not decision or action in MAY[Part(decision.rule)]
        assert inside or decision.rule == "not-yours"


@given(people, places, some_terms, st.booleans())
def test_who_drives_may_control_and_who_sees_may_watch(who, where, terms, drives):
    judged = standing(who, where, terms)
    may = {action: bool(may_act(who, action, where, terms)) for action in Action}
    assert bool(judged.right(drives)) == may[Action.WATCH]
    assert (judged.right(drives) == Right.VIEW) == (may[Action.WATCH] and not (drives and may[Action.CONTROL]))
    assert bool(judged.part) == may[Action.WATCH]


@given(people, places, some_terms)
def test_a_consent_that_is_over_is_as_if_it_had_never_been(who, where, terms):
    over = {name: replace(one, until=NOW - A_SECOND) for name, one in where.consented.items()}
    for action in Action:
        allowed = [bool(may_act(who, action, replace(where, consented=one), terms)) for one in (over, {})]
        assert len(set(allowed)) == 1


@given(people, places, some_terms)
def test_who_is_neither_inside_nor_free_to_come_meets_the_owner_first(who, where, terms):
    outside = replace(where, owner_here=False, members_enter_freely=False, inside=frozenset())
    decision = may_act(who, Action.WATCH, outside, terms)
    assert not decision or decision.rule not in ("driver", "viewer")


@given(people, plans, some_visits, usages, some_terms)
def test_every_launch_is_for_experiments_of_the_owner_or_open_ones(who, offer, chosen, usage, terms):
    if may_launch(who, offer, chosen, usage, terms):
        opened = [one for one in chosen if terms.open_data and one.public_at and one.public_at <= NOW]
        assert all(not one.gone and (who.id in one.roles or one in opened) for one in chosen)
        assert chosen or who.roles & {"admin", "staff", "guest"}


@given(people, plans, some_visits, usages, places, some_terms)
def test_every_refusal_says_why_and_every_decision_names_its_rule_and_records(who, offer, chosen, usage, where, terms):
    for decision in (may_launch(who, offer, chosen, usage, terms), *(may_act(who, action, where, terms) for action in Action)):
        assert decision.rule and decision.records
        assert decision.allowed or decision.reason.endswith(".")


@given(people, plans, some_visits, usages, places, some_terms, st.randoms())
def test_the_order_of_rows_does_not_matter(who, offer, chosen, usage, where, terms, chance):
    def mixed(rows):
        rows = list(rows)
        chance.shuffle(rows)
        return rows

    other_offer = replace(offer, limits=tuple(mixed(offer.limits)))
    other_place = replace(where, visits=tuple(mixed(where.visits)), members=dict(mixed(where.members.items())))
    assert all_decisions(who, offer, chosen, usage, where, terms) == all_decisions(
        who, other_offer, mixed(chosen), usage, other_place, terms
    )
