"""The form of a new instance: what it says, what it offers, and what is wrong with it. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from urllib.parse import quote

from jupyterhub.slugs import is_valid_display_name, normalise_unicode, safe_slug
from starlette.datastructures import FormData, QueryParams

from ..access import Decision, Person, PlanOffer, Terms, Usage, Visit, may_add_cores, may_own_another, may_pick, may_use_experiments
from ..capacity import Verdict
from . import wording

NAME_LENGTH = 250
SUGGESTED_LENGTH = 60
# a server's name has 30 characters; "-99" must fit behind it
SLUG_LENGTH = 27
PAST_SHOWN = 20
GROUPS = {"running": "Running now", "coming": "Coming", "past": "Past"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form says. suggested: the name that was proposed; one that the user typed is not replaced."""

    experiments: tuple[str, ...] = ()
    none: bool = False
    plan: str = ""
    name: str = ""
    suggested: str = ""
    search: str = ""
    touched: bool = False

    @property
    def question(self) -> str:
        """What to ask the page "Why?" about a plan, as a query that ends with the plan."""
        if not self.experiments:
            return "question=plan+launch&key="
        return f"question=experiment+launch&key={quote(','.join(self.experiments))}&plan="


def read(form: FormData | QueryParams) -> Wish:
    def field(name: str) -> str:
        return str(form.get(name) or "").strip()

    return Wish(
        experiments=tuple(dict.fromkeys(str(name) for name in form.getlist("experiment"))),
        none="none" in form,
        plan=field("plan"),
        name=" ".join(normalise_unicode(field("name")).split()),
        suggested=field("suggested"),
        search=field("search"),
        touched="suggested" in form,
    )


def prefilled(wish: Wish, person: Person, visits: Sequence[Visit], terms: Terms) -> Wish:
    """The common case needs no choice: the one experiment that runs now, or none where there is none to choose."""
    if wish.touched or wish.experiments or wish.none:
        return wish
    running = [visit.id for visit in visits if visit.when(terms.at) == "running"]
    if len(running) == 1:
        return replace(wish, experiments=tuple(running))
    return replace(wish, none=not visits and bool(may_use_experiments(person, [], terms)))


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    visits: tuple[Visit, ...]
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """may: whether it can be picked. room: what the cloud has for it. seconds: how long its last launches took."""

    plan: PlanOffer
    may: Decision
    chosen: bool
    room: Verdict
    seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Offer:
    """All that the page shows."""

    wish: Wish
    groups: tuple[Group, ...]
    none_allowed: bool
    has_experiments: bool
    plans: tuple[PlanChoice, ...]
    name: str
    suggested: str
    quota: Decision

    @property
    def possible(self) -> bool:
        """Whether there is anything to launch for."""
        return self.has_experiments or self.none_allowed

    @property
    def summary(self) -> str:
        """What a search or a choice has changed, for those who hear the page."""
        found = wording.counted(sum(len(group.visits) for group in self.groups), "experiment")
        chosen = "".join(f", {choice.plan.name} is chosen" for choice in self.plans if choice.chosen)
        possible = sum(choice.may.allowed and choice.room.ever for choice in self.plans)
        return f"{found} listed; {possible} of {wording.counted(len(self.plans), 'plan')} possible{chosen}"


def offer(
    wish: Wish,
    person: Person,
    visits: Sequence[Visit],
    plans: Sequence[PlanOffer],
    *,
    usage: Usage,
    seconds: Mapping[str, Sequence[float]],
    terms: Terms,
    rooms: Mapping[str, Verdict] = MappingProxyType({}),
) -> Offer:
    chosen = [visit for visit in visits if visit.id in wish.experiments]
    suggested, unknown = suggested_name(chosen), Verdict()
    # the first that refuses; both have reasons when they allow: none
    decisions = {plan.id: may_pick(person, plan, chosen, terms) and may_add_cores(person, usage, plan) for plan in plans}
    possible = [name for name, decision in decisions.items() if decision and rooms.get(name, unknown).ever]
    picked = next((name for name in (wish.plan, usage.last_plan, *possible) if name in possible), "")
    return Offer(
        wish=wish,
        groups=tuple(_groups(visits, wish, terms.at)),
        none_allowed=bool(may_use_experiments(person, [], terms)),
        has_experiments=bool(visits),
        plans=tuple(
            PlanChoice(plan, decisions[plan.id], plan.id == picked, rooms.get(plan.id, unknown), seconds.get(plan.id, ()))
            for plan in plans
        ),
        name=wish.name if wish.name and wish.name != wish.suggested else suggested,
        suggested=suggested,
        quota=may_own_another(person, usage),
    )


def problem(wish: Wish, plan: PlanOffer | None) -> str:
    """What is wrong with the form itself, in a sentence; empty when nothing is."""
    if wish.none and wish.experiments:
        return "You chose experiments and also “none of them”. Untick one or the other."
    if plan is None:
        return "Choose a plan: the one chosen before is no longer offered." if wish.plan else "Choose a plan."
    if not wish.name:
        return "Give the instance a name."
    if len(wish.name) > NAME_LENGTH:
        return f"The name has {len(wish.name)} characters; at most {NAME_LENGTH} are possible."
    if not is_valid_display_name(wish.name):
        return "The name holds a character that cannot be shown. Please type it again."
    return ""


def suggested_name(chosen: Sequence[Visit]) -> str:
    """The title of the first experiment, cut at a word."""
    if not chosen:
        return "Analysis"
    title = _printable(chosen[0].title) or chosen[0].proposal_id
    if len(title) <= SUGGESTED_LENGTH:
        return title
    return title[:SUGGESTED_LENGTH].rsplit(" ", 1)[0].rstrip(" ,;:–-")


def free_server_name(title: str, taken: Iterable[str]) -> str:
    """A name for JupyterHub and for addresses: 1 to 30 of a-z, 0-9 and single hyphens, a letter first, not taken."""
    base, used = safe_slug(title, avoid_collisions=False, max_length=SLUG_LENGTH), set(taken)
    if base == "x":
        # nothing of the title can be written in an address
        base = "instance"
    if base not in used:
        return base
    return next(name for count in range(2, len(used) + 3) if (name := f"{base}-{count}") not in used)


def _groups(visits: Sequence[Visit], wish: Wish, at: datetime) -> Iterable[Group]:
    """Those that were chosen stay in sight, whatever is searched for."""
    words = wish.search.casefold().split()
    found: dict[str, list[Visit]] = {when: [] for when in GROUPS}
    for visit in visits:
        if not words or visit.id in wish.experiments or _matches(visit, words):
            found[visit.when(at)].append(visit)
    for when, title in GROUPS.items():
        here = found[when]
        if when == "coming":
            here.reverse()
        shown = here
        if when == "past" and not words:
            shown = [visit for place, visit in enumerate(here) if place < PAST_SHOWN or visit.id in wish.experiments]
        if shown:
            yield Group(title, tuple(shown), hidden=len(here) - len(shown))


def _matches(visit: Visit, words: Sequence[str]) -> bool:
    text = f"{visit.proposal_id} {visit.title} {visit.instrument} {visit.id}".casefold()
    return all(word in text for word in words)


def _printable(text: str) -> str:
    """On one line, without what a display name may not hold."""
    kept = "".join(" " if unicodedata.category(char)[0] in "ZC" else char for char in normalise_unicode(text))
    return " ".join(kept.split())
