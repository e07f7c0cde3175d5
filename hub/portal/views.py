"""What the pages show: pure functions from rows and from what the hub says to small frozen objects that templates print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from urllib.parse import quote

from ..access import Person, Visit
from ..database.tables import Experiment, Instance, InstanceEvent, Intent, IntentKind
from ..instances import State, in_force, state_of
from ..queue import Standing
from . import wording
from .hub_api import Server

# the line in an intent's detail after which it is the instance's own console; what stands above is for staff
CONSOLE_HEADING = "--- console ---"
SEES_DETAIL = frozenset({"admin", "it-support"})
Queue = Mapping[int, Standing]
NO_QUEUE: Queue = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Moment:
    """A time with the words before it; exact is shown as a date, else as a distance from now."""

    words: str
    at: datetime | None = None
    relative: str = ""


# a state as people see it, besides its word: a sign and a colour, each enough by itself
LOOKS = {
    State.LAUNCHING: ("◌", "info"),
    State.RUNNING: ("●", "success"),
    State.WAITING: ("◷", "info"),
    State.UNREACHABLE: ("?", "warning"),
    State.STOPPING: ("◍", "info"),
    State.STOPPED: ("○", "secondary"),
    State.FAILED: ("✕", "danger"),
    State.DELETED: ("–", "secondary"),
}
CHANGING = frozenset({State.LAUNCHING, State.STOPPING})


@dataclass(frozen=True, slots=True)
class Failure:
    """stage is empty when none is known; detail only when this person may see it."""

    message: str
    stage: str
    reference: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One instance. id, plan and all that follows are empty where there is no record of it yet."""

    name: str
    title: str
    state: State
    id: str = ""
    plan: str = ""
    size: str = ""
    experiments: tuple[Visit, ...] = ()
    company: str = ""
    ends: Moment | None = None
    notebook_url: str = ""
    failure: Failure | None = None
    holds_data: bool = True
    standing: Standing | None = None
    stop_is_open: bool = False  # the hub has let go of it, and the cloud has not switched it off yet

    @property
    def path(self) -> str:
        return f"instances/{quote(self.name, safe='')}"

    @property
    def desktop_path(self) -> str:
        return f"instances/{self.id}/desktop" if self.id and self.state is State.RUNNING else ""

    @property
    def changing(self) -> bool:
        return self.state in CHANGING and not self.stop_is_open

    @property
    def can_start(self) -> bool:
        return self.state in (State.STOPPED, State.FAILED, State.UNREACHABLE) or self.stop_is_open

    @property
    def can_stop(self) -> bool:
        """Also where a start failed whose server is up: a guest that hangs is helped by that only."""
        return self.state in (State.RUNNING, State.UNREACHABLE) or (self.state is State.FAILED and self.holds_data)


def card(
    row: Instance, server: Server | None, person: Person, at: datetime, launch: Launch | None = None, queue: Queue = NO_QUEUE
) -> Card:
    """launch: what was just heard of a launch; its failure may not have been written down yet."""
    intent = in_force(row.intents)
    ready, pending = (server.ready, server.pending) if server else (False, None)
    standing = queue.get(intent.id) if intent else None
    state = state_of(intent, deleted=row.deleted_at is not None, ready=ready, pending=pending, waits=standing is not None)
    stop_is_open = state is State.STOPPED and intent is not None and (intent.kind, intent.outcome) == (IntentKind.STOP, None)
    failed = failure(intent, person) if intent and state is State.FAILED else None
    if launch and launch.failed and state is State.UNREACHABLE:
        state, failed = State.FAILED, Failure(launch.message, launch.now, row.id[:8])
    return Card(
        id=row.id,
        name=row.server_name,
        title=row.display_name,
        state=State.STOPPING if stop_is_open else state,
        plan=row.plan.name,
        size=wording.size(row.plan.cores, row.plan.memory_mb),
        experiments=tuple(map(visit_of, row.experiments)),
        company=_company(row, person),
        ends=Moment("ends", row.ends_at, wording.relative(row.ends_at, at)) if row.ends_at and not standing else None,
        notebook_url=f"{server.url}lab" if server and server.url and state is State.RUNNING else "",
        failure=failed,
        holds_data=row.first_ready_at is not None,
        standing=standing,
        stop_is_open=stop_is_open,
    )


def unrecorded(name: str, server: Server | None, launch: Launch | None) -> Card:
    """A launch that the hub has accepted and not yet written down, or that it refused before it wrote anything."""
    failed = launch is not None and launch.failed
    state = State.FAILED if failed or server is None else State.LAUNCHING
    message = launch.message if launch and launch.message else "The hub did not go on with the launch, and gave no reason."
    failure = Failure(message, "", name) if state is State.FAILED else None
    return Card(name, server.display_name if server else name, state, failure=failure, holds_data=False)


def cards(rows: Sequence[Instance], servers: Mapping[str, Server], person: Person, at: datetime, queue: Queue) -> list[Card]:
    """Those that are not marked for deletion; what runs or changes comes first, then the newest."""
    order = {state: place for place, state in enumerate(LOOKS)}
    live = [card(row, servers.get(row.server_name), person, at, queue=queue) for row in rows if row.deleted_at is None]
    return sorted(live, key=lambda one: order[one.state])


def restorable(rows: Sequence[Instance], at: datetime) -> list[Instance]:
    """Those whose owner can still take the deletion back."""
    return [row for row in rows if row.deleted_at and row.purged_at is None and row.purge_at and row.purge_at > at]


def summary(shown: Sequence[Card]) -> str:
    """'2 running, 1 stopped', for those who hear the page."""
    return ", ".join(f"{count} {word}" for word, count in Counter(one.state for one in shown).items())


def visit_of(row: Experiment) -> Visit:
    title, where = row.title or row.proposal.title, row.instrument.name
    return Visit(row.id, row.proposal_id, row.instrument_id, title, where, row.starts_at, row.ends_at)


def visit_when(visit: Visit, at: datetime) -> Moment:
    match visit.when(at):
        case "past":
            assert visit.ends_at
            return Moment("ended", visit.ends_at, wording.relative(visit.ends_at, at))
        case "coming":
            assert visit.starts_at
            return Moment("starts", visit.starts_at, wording.relative(visit.starts_at, at))
        case _:
            return Moment("now until", visit.ends_at) if visit.ends_at else Moment("now, without end")


def failure(intent: Intent, person: Person) -> Failure:
    return Failure(
        message=intent.message or "The launch failed, and no reason was recorded.",
        stage=STAGES[intent.stage].doing if intent.stage in STAGES else intent.stage or "",
        reference=f"{intent.instance_id[:8]}-{intent.id}",
        detail=visible_detail(intent.detail or "", person),
    )


def visible_detail(detail: str, person: Person) -> str:
    """Staff see the cloud's own words too; an owner sees the console of their own instance."""
    if person.roles & SEES_DETAIL:
        return detail
    _, _, console = detail.partition(CONSOLE_HEADING)
    return console.strip()


def _company(row: Instance, person: Person) -> str:
    names = [member.user.given_name for member in row.members if member.ended_at is None and member.user_id != person.id]
    return f"with {wording.listed(names)}" if names else ""


# --- history

EVENTS = {
    "firewall-hook-failed": "Launched behind the base firewall",
    "ready": "Ready",
    "launch-asked": "Launch asked for",
    "launch-done": "Launched",
    "launch-failed": "Launch failed",
    "launch-cancelled": "Launch cancelled",
    "queued": "Joined the queue",
    "waited": "Its turn came",
    "stop-asked": "Stop asked for",
    "stop-done": "Stopped",
    "stop-failed": "Stopping failed",
    "stop-cancelled": "Stop called off",
    "delete-asked": "Marked for deletion",
    "delete-done": "Deleted for good",
    "delete-failed": "Deletion failed",
    "delete-cancelled": "Deletion called off",
    "restore-asked": "Restoring asked for",
    "restore-done": "Restored",
    "member-added": "Shared",
    "member-changed": "Part changed",
    "member-removed": "Part ended",
    "member-left": "Left",
    "notebook-shared": "JupyterLab shared",
    "notebook-unshared": "JupyterLab no longer shared",
}


@dataclass(frozen=True, slots=True)
class EventLine:
    at: datetime
    words: str
    actor: str
    took: str
    message: str


def history(events: Sequence[InstanceEvent], person: Person) -> list[EventLine]:
    """Newest first."""
    mine = {person.id, person.login}
    return [
        EventLine(
            at=event.at,
            words=_event_words(event.kind),
            actor="" if not event.actor else "you" if event.actor in mine else event.actor,
            took=wording.stage_seconds(event.seconds) if event.seconds is not None else "",
            message="" if event.kind in STAGES else event.message,
        )
        for event in reversed(events)
    ]


def _event_words(kind: str) -> str:
    if kind in EVENTS:
        return EVENTS[kind]
    return STAGES[kind].done if kind in STAGES else kind.replace("-", " ").capitalize()


# --- a launch


@dataclass(frozen=True, slots=True)
class Stage:
    doing: str
    done: str


STAGES = {
    "rights": Stage("Checking your rights", "Checked your rights"),
    "create": Stage("Creating the server", "Server created"),
    "boot": Stage("Booting", "Booted"),
    "identify": Stage("Checking the server's identity", "Server identified"),
    "account": Stage("Making your account", "Account made"),
    "environment": Stage("Setting up your environment", "Environment set up"),
    "notebook": Stage("Starting JupyterLab", "JupyterLab started"),
    "ready": Stage("Waiting for JupyterLab to answer", "JupyterLab answers"),
}


@dataclass(frozen=True, slots=True)
class StageLine:
    """state is 'waiting', 'started', 'done' or 'failed'."""

    name: str
    words: str
    state: str
    took: str = ""


class Launch:
    """A launch as told by the hub's events so far; `take` each of them."""

    def __init__(self, expected_seconds: float | None = None) -> None:
        self.expected_seconds = expected_seconds
        self.elapsed_seconds = 0.0
        self.ready = self.failed = False
        self.message = ""
        self._told: dict[str, tuple[str, float | None]] = {}

    def take(self, event: Mapping) -> None:
        self.ready, self.failed = bool(event.get("ready")), bool(event.get("failed"))
        if self.failed:
            self.message = str(event.get("message", "")).removeprefix("Spawn failed: ")
        if stage := event.get("stage"):
            self._told[stage] = (event.get("state", "started"), event.get("seconds"))
        self.elapsed_seconds = max(self.elapsed_seconds, event.get("elapsed_seconds") or 0.0)
        self.expected_seconds = event.get("expected_seconds") or self.expected_seconds

    @property
    def stages(self) -> list[StageLine]:
        """Every stage in its order, told of or not; one that Hutch has no words for comes as it is named."""
        names = [*STAGES, *(name for name in self._told if name not in STAGES)]
        last_told = max((names.index(name) for name in self._told), default=-1)
        return [self._line(name, skipped=place < last_told) for place, name in enumerate(names)]

    def _line(self, name: str, *, skipped: bool) -> StageLine:
        words = STAGES.get(name, Stage(name, name))
        # an adopted or pooled server passes over stages that it has behind it
        state, seconds = self._told.get(name, ("done" if skipped else "waiting", None))
        return StageLine(
            name,
            words.done if state == "done" else words.doing,
            state,
            wording.stage_seconds(seconds) if state == "done" and seconds is not None else "",
        )

    @property
    def now(self) -> str:
        """The stage under way, in words."""
        for line in self.stages:
            if line.state in ("started", "failed"):
                return line.words
        waiting = next((line.words for line in self.stages if line.state == "waiting"), "")
        return "Ready" if self.ready else waiting

    def clock(self, elapsed_seconds: float) -> str:
        passed = f"{elapsed_seconds:.0f} s" if elapsed_seconds < 90 else wording.seconds_in_words(elapsed_seconds)
        if not self.expected_seconds:
            return passed
        expected = f"about {wording.seconds_in_words(self.expected_seconds)}"
        return f"{passed}, usually {expected}" if self.is_slow(elapsed_seconds) else f"{passed} of {expected}"

    def is_slow(self, elapsed_seconds: float) -> bool:
        return self.expected_seconds is not None and elapsed_seconds > 1.5 * self.expected_seconds + 1


def launch_under_way(intents: Sequence[Intent], at: datetime, expected_seconds: float | None) -> Launch:
    """What is known of a launch before the hub tells of its stages."""
    launch = Launch(expected_seconds)
    newest = intents[-1] if intents else None
    if newest is not None and newest.kind == IntentKind.LAUNCH and newest.outcome is None:
        launch.elapsed_seconds = max(0.0, (at - newest.asked_at).total_seconds())
    return launch
