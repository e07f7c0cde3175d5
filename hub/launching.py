"""From a request to start a server to a launch that the rules allow: runs in the hub at every start, by whatever door.

`Launching` is mixed in before a cloud's spawner. JupyterHub's own checks say who may ask for a start at all; whether this user may
have this plan for these experiments is decided here and nowhere else, from the database as it is now. What was asked for is kept
with the instance: options that come later cannot change it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from inspect import isawaitable
from typing import Any, ClassVar, TypeVar

from jupyterhub.spawner import Spawner
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import bindparam, update
from sqlalchemy.orm import Session
from traitlets import default

from spawner.cloud_errors import Trouble
from spawner.launch import LaunchError, LaunchLog, Stage
from spawner.openstack import OpenStackSpawner
from spawner.servers import HELD, WORDS, Server, why_held

from . import access, firewall_hook, instances, queue, records
from .acting import acting_login, mark_deleted
from .database.engine import DatabaseError, take_turn, write
from .database.tables import Instance, InstanceEvent, Intent, IntentKind, Outcome, now
from .facility import Facility
from .firewall import Firewall, Subject
from .services import STEWARD

T = TypeVar("T")
EXPECTED_FOR_SECONDS = 60.0
# reasons of a LaunchError that are no rule's
DATABASE, OVERTAKEN, QUEUED = "database", "overtaken", "queued"
# built once, because that takes longer than the answer
FIRST_READY = update(Instance).where(Instance.id == bindparam("instance")).values(first_ready_at=bindparam("at"))


class LaunchOptions(BaseModel):
    """JupyterHub's `user_options` for an instance that does not exist yet."""

    model_config = ConfigDict(extra="forbid", strict=True)

    plan: str = Field(min_length=1, max_length=250)
    experiments: list[str] = Field(default_factory=list, max_length=100)


@dataclass(frozen=True, slots=True)
class Asked:
    """A start as it was asked for. actor is a login, or the name of a service."""

    login: str
    server_name: str
    display_name: str
    options: dict[str, Any]
    actor: str
    by_service: bool = False
    blocked: bool = False
    # the site's
    places: Collection[str] = ()

    @property
    def by_steward(self) -> bool:
        return self.by_service and self.actor == STEWARD


@dataclass(frozen=True, slots=True)
class Granted:
    """What the rules allowed, as the spawner needs it. waits: where it stands in the queue, when it is not its turn yet."""

    instance_id: str
    intent: Intent
    plan: access.PlanOffer
    is_new: bool
    unused_since: datetime | None
    subject: Subject
    place: str = ""
    waits: str = ""


def refusal(sentence: str, rule: str, status_code: int = 403) -> LaunchError:
    return LaunchError(sentence, reason=rule, stage=Stage.RIGHTS, status_code=status_code)


def grant(session: Session, facility: Facility, asked: Asked) -> Granted:
    """Decides a start and writes the intent down. Raises LaunchError with the rule's own words when it is refused."""
    take_turn(session)  # two launches at once must not both be the last within the quota
    if not asked.server_name:
        raise refusal("Instances are launched from the portal: choose an experiment and a plan there.", "unnamed-server", 400)
    terms = facility.hutch.terms(now())
    person = records.find_person(session, asked.login, terms)
    if person is None:
        raise _refused(access.unknown_person(asked.login))
    if asked.blocked:
        raise refusal(f"{asked.login} is blocked.", "blocked")
    instance = records.find_instance(session, asked.login, asked.server_name)
    if not asked.by_service:
        _check(_may_start(session, asked, person, instance, terms))
    if asked.by_steward and not (instance and instances.is_meant_to_run(session, instance.id)):
        raise refusal("Nobody wants this instance to run any more.", OVERTAKEN, 409)
    is_new = instance is None
    if instance is None:
        instance, plan, visits = _first_launch(session, asked, person, terms)
    else:
        plan, visits = _check_resume(session, asked, person, instance, terms)
    is_unused = instance.first_ready_at is None
    # the turn of one that waits is the steward's to call; until then it keeps its place, whoever asks
    if waited := None if is_new else queue.open_wait(session, instance.id):
        intent, waits = waited, not asked.by_steward
    else:
        intent = instances.intend(session, instance.id, IntentKind.LAUNCH, asked.actor)
        # what has a server already holds its room
        waits = not asked.by_steward and is_unused and queue.join_behind(session, intent)
    standing = str(queue.standings(session)[intent.id]) if waits else ""
    subject = Subject(person, plan, tuple(visits))
    unused_since = instance.created_at if is_unused else None
    return Granted(instance.id, intent, plan, is_new, unused_since, subject, instance.place, standing)


def _may_start(
    session: Session, asked: Asked, owner: access.Person, instance: Instance | None, terms: access.Terms
) -> access.Decision:
    actor = owner if asked.actor == asked.login else records.find_person(session, asked.actor, terms)
    if actor is None:
        return access.unknown_person(asked.actor)
    place = records.find_place(session, instance, actor, terms) if instance else access.Place("", owner.id)
    return access.may_act(actor, access.Action.START, place, terms)


def _first_launch(
    session: Session, asked: Asked, person: access.Person, terms: access.Terms
) -> tuple[Instance, access.PlanOffer, list[access.Visit]]:
    options = _parsed(asked.options)
    plan, visits = _plan_and_visits(session, options, person.id)
    _check(access.may_launch(person, plan, visits, records.find_usage(session, person.id), terms))
    if missing := sorted(set(plan.places) - set(asked.places)):
        raise refusal(f"{plan.name} is for a place that this site does not have ({', '.join(missing)}).", "unknown-place", 409)
    instance = instances.create(
        session,
        place=next(iter(plan.places), ""),
        owner_id=person.id,
        server_name=asked.server_name,
        # JupyterHub allows a few characters more than fit
        display_name=(asked.display_name or asked.server_name)[:250],
        plan_id=plan.id,
        plan_name=plan.name,
        experiment_ids=[visit.id for visit in visits],
        lifetime=access.lifetime(person, plan, terms),
    )
    return instance, plan, visits


def _check_resume(
    session: Session, asked: Asked, person: access.Person, instance: Instance, terms: access.Terms
) -> tuple[access.PlanOffer, list[access.Visit]]:
    """The rules apply to what the instance is, not to what a request now says that it should be."""
    held = LaunchOptions(plan=instance.plan_id, experiments=[experiment.id for experiment in instance.experiments])
    if asked.options:
        options = _parsed(asked.options)
        if options.plan != held.plan or set(options.experiments) != set(held.experiments):
            raise refusal(
                f"{instance.display_name} was launched with plan {held.plan} for {', '.join(held.experiments) or 'no experiment'}, "
                "and that cannot be changed. Launch another instance instead.",
                "options-changed",
                409,
            )
    plan, visits = _plan_and_visits(session, held, person.id)
    _check(access.may_launch(person, plan, visits, None, terms))
    return plan, visits


def _parsed(options: dict[str, Any]) -> LaunchOptions:
    try:
        return LaunchOptions.model_validate(options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'options'}: {item['msg']}" for item in error.errors())
        raise refusal(
            f"The launch options are not right ({wrong}). They are a plan and a list of experiments: launch from the portal.",
            "bad-options",
            400,
        ) from error


def _plan_and_visits(session: Session, options: LaunchOptions, person_id: str) -> tuple[access.PlanOffer, list[access.Visit]]:
    plan = records.find_plan(session, options.plan)
    if plan is None:
        raise _refused(access.unknown_plan(options.plan), 404)
    visits = records.experiments_named(session, options.experiments, person_id)
    missing = sorted(set(options.experiments) - {visit.id for visit in visits})
    if missing:
        raise _refused(access.unknown_experiments(missing), 404)
    return plan, visits


def _refused(decision: access.Decision, status_code: int = 403) -> LaunchError:
    return refusal(decision.reason, decision.rule, status_code)


def _check(decision: access.Decision) -> None:
    if not decision:
        raise _refused(decision)


class Launching(Spawner):
    """The facility's side of a spawner."""

    _expected: ClassVar[dict[str, tuple[float, float | None]]] = {}
    granted: Granted | None = None
    launch: LaunchLog | None = None
    place_is_kept = True
    _instance_id = ""
    _by_steward = False
    _chosen: Sequence[str] = ()  # names of security groups
    deletion_is_written = False
    _is_open = False  # granted, and not written down yet how it ended

    @cached_property
    def facility(self) -> Facility:
        return Facility.of(self.config)

    @default("deployment_id")
    def _default_deployment_id(self) -> str:
        return self.facility.deployment_id

    @property
    def instance_id(self) -> str:
        return self._instance_id

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"instance_id": self._instance_id}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._instance_id = state.get("instance_id", "")

    # --- start

    async def run_pre_spawn_hook(self) -> None:
        """Asks the rules, before a site's own hook and before anything is asked of the cloud."""
        self.granted, self._is_open, self.launch = None, False, LaunchLog()
        self.launch.start(Stage.RIGHTS)
        asked = self._asked()
        # cancelled or not, what was granted is known, so that it can be concluded
        granting = asyncio.ensure_future(self._ask(lambda session: grant(session, self.facility, asked)))
        granting.add_done_callback(self._note_granted)
        try:
            granted = await asyncio.shield(granting)
        except LaunchError as error:
            self.launch.fail(error.message)
            await self._refused(asked, error)
            raise
        if granted.waits:
            self.launch.fail(granted.waits)
            raise LaunchError(granted.waits, reason=QUEUED, stage=Stage.RIGHTS)
        self._by_steward = asked.by_steward
        self.image, self.flavor, self.is_new = granted.plan.image, granted.plan.flavor, granted.is_new
        self.place, self.allowed_places = granted.place, list(granted.plan.places)
        await self._choose_guards(granted)
        self.launch.expected_seconds = await self._expected_seconds(granted.plan.id)
        self.launch.done(Stage.RIGHTS)
        hook = super().run_pre_spawn_hook()
        if isawaitable(hook):
            await hook

    async def _choose_guards(self, granted: Granted) -> None:
        if not (firewall := Firewall(self.facility.hutch.firewall)).ways:
            return
        told = await firewall_hook.ask(firewall, granted.subject.facts(granted.instance_id))
        names = firewall.guards(granted.subject, self.facility.hutch.terms(now()), told)
        self._chosen = [firewall.cloud_name(name, self.deployment_id) for name in sorted(names)]
        if told is None:
            sentence = "The site's firewall hook failed: until it answers, only the base rules of the firewall apply."
            note = granted.instance_id, "firewall-hook-failed"
            await self._record("a hook that failed", lambda session: instances.record_event(session, *note, message=sentence))

    def guards(self) -> list[str]:
        return [*super().guards(), *self._chosen]

    async def _expected_seconds(self, plan_id: str) -> float | None:
        """The median of the plan's last launches, as of a minute ago at most."""
        at, seconds = self._expected.get(plan_id, (-EXPECTED_FOR_SECONDS, None))
        if time.monotonic() - at >= EXPECTED_FOR_SECONDS:
            seconds = await self._ask(lambda session: instances.expected_seconds(session, plan_id))
            self._expected[plan_id] = (time.monotonic(), seconds)
        return seconds

    def _note_granted(self, granting: asyncio.Future[Granted]) -> None:
        if not granting.cancelled() and not granting.exception():
            self.granted = granting.result()
            self._is_open = not self.granted.waits
            self._instance_id = self.granted.instance_id

    async def _refused(self, asked: Asked, error: LaunchError) -> None:
        self.log.info("%s: refused to %s by rule %s: %s", self._log_name, asked.actor, error.reason, error.message)
        # JupyterHub has kept them already, and would ask for the same at each later start
        self.orm_spawner.user_options = {}
        if not asked.by_steward or error.reason in (DATABASE, OVERTAKEN):
            return

        def stop(session: Session) -> None:
            if instance := records.find_instance(session, asked.login, asked.server_name):
                instances.intend(session, instance.id, IntentKind.STOP, STEWARD, error.message)

        # what the rules refuse does not go on running out of sight
        await self._record("that a lost instance may not run", stop)

    def apply_user_options(self, spawner: Spawner, options: dict[str, Any]) -> None:
        """Nothing that users send reaches a trait: `grant` reads the options and decides."""

    def _asked(self) -> Asked:
        by_service = bool(self.handler and getattr(self.handler.current_user, "kind", "user") == "service")
        actor = self.handler.current_user.name if self.handler else self.user.name
        return Asked(
            login=self.user.name,
            server_name=self.name,
            display_name=self.orm_spawner.display_name or "",
            options=dict(self.user_options or {}),
            actor=actor,
            by_service=by_service,
            blocked=self._is_blocked(),
            places=getattr(self, "places", ()),
        )

    async def choose_place(self, place: str) -> None:
        """Written before anything is made there, so that a hub which died half-way knows where to look."""
        write = update(Instance).where(Instance.id == self._instance_id).values(place=place)
        await self._ask(lambda session: session.execute(write))
        await super().choose_place(place)

    def check_may_create(self) -> None:
        """An instance that has been used is not replaced by an empty one under its name."""
        if self.unused_since() is None:
            raise LaunchError(HELD["DELETED"] + self.whom_to_ask, reason="server-gone")

    @property
    def whom_to_ask(self) -> str:
        return self.facility.hutch.whom_to_ask

    def unused_since(self) -> datetime | None:
        return self.granted.unused_since if self.granted else None

    async def _hand_over(self, launch: LaunchLog) -> None:
        """From here on the disk may hold what is the user's; where that cannot be written down, the launch ends."""
        assert self.granted
        if self.granted.unused_since:
            ready = {"instance": self.granted.instance_id, "at": now()}
            await self._ask(lambda session: session.connection().execute(FIRST_READY, ready))
        await super()._hand_over(launch)

    async def start(self) -> str:
        """Launches, and writes down how that ended."""
        try:
            url = await super().start()
        except LaunchError as error:
            await self._ended(Outcome.FAILED, error)
            raise
        except Exception as error:
            self.log.exception("%s: unexpected error during a launch", self._log_name)
            failure = LaunchError("Hutch met a problem that it did not expect.", reason="unexpected", detail=repr(error))
            await self._ended(Outcome.FAILED, failure)
            raise failure from error
        await self._ended(Outcome.DONE)
        return url

    async def run_post_stop_hook(self) -> None:
        """A launch that JupyterHub gave up, in start() or before it, is over. A hub that ends does not come here: it goes on."""
        if self._is_open and self.launch:
            if self.launch.elapsed() >= self.start_timeout - 1:
                sentence = f"The launch was given up after {self.start_timeout} seconds."
                await self._ended(Outcome.FAILED, LaunchError(sentence, reason="timeout", stage=self.launch.current or ""))
            else:
                await self._ended(Outcome.CANCELLED)
        hook = super().run_post_stop_hook()
        if isawaitable(hook):
            await hook

    async def _ended(self, outcome: Outcome, failure: LaunchError | None = None) -> None:
        assert self.granted and self.launch
        self._is_open = False
        granted, events = self.granted, [event for event in self.launch.events if event.state == "done"]
        if failure and self._by_steward and failure.reason in (Trouble.UNANSWERED, Trouble.CREDENTIALS, "agent-unreachable"):
            return  # still unknown: the intent stays open, and the steward tries again later

        def conclude(session: Session) -> None:
            if failure and failure.reason in queue.SENTENCES:
                intent = session.get_one(Intent, granted.intent.id)
                if intent.outcome is None:
                    queue.join(session, intent, failure.reason, tried_at=now())
                    return  # it stays open, and is launched again when its turn comes
            if events:
                of = {"instance_id": granted.instance_id, "intent_id": granted.intent.id}
                told = ({"kind": event.stage, "seconds": event.seconds, "message": event.message} for event in events)
                write(session, InstanceEvent, *(of | one for one in told))
            words = {"stage": failure.stage, "message": failure.message, "detail": failure.detail} if failure else {}
            instances.conclude(session, granted.intent, outcome, **words)

        await self._record("the end of a launch", conclude)

    # --- stop, found stopped, renamed, deleted

    async def stop(self, now: bool = False) -> None:
        """Writes the intent down before the cloud is asked; if it is not done in the end, the steward goes on."""
        if self.stop_is_meant():
            actor = acting_login(self.user.name)  # asked here, as a thread of the database would not know
            await self._record("the intent to stop", lambda session: self._intend_stop(session, actor))
        await super().stop(now)
        if self.is_off:
            await self._record("the end of a stop", self._stopped)

    def _intend_stop(self, session: Session, actor: str) -> None:
        latest = instances.latest_intent(session, self._instance_id)
        if self._instance_id and not (latest and latest.outcome is None and latest.kind in (IntentKind.STOP, IntentKind.DELETE)):
            instances.intend(session, self._instance_id, IntentKind.STOP, actor, "through JupyterHub")

    def _stopped(self, session: Session) -> None:
        latest = instances.latest_intent(session, self._instance_id)
        if latest and latest.kind == IntentKind.LAUNCH:
            # the intent could not be written before
            instances.intend(session, self._instance_id, IntentKind.STOP, self.user.name, "through JupyterHub")
        instances.conclude_open(session, self._instance_id, IntentKind.STOP, Outcome.DONE)

    def stop_is_meant(self) -> bool:
        """JupyterHub also stops, at its start, what belongs to a user who was blocked meanwhile."""
        return super().stop_is_meant() or self._is_blocked()

    def _is_blocked(self) -> bool:
        return self.user.name in self.authenticator.blocked_users

    async def poll(self) -> int | None:
        status = await super().poll()
        # where only the notebook is gone and JupyterHub has let go of it, the steward has it launched again
        if (ended := self.ended) and self.server and not self._stop_pending:
            await self._record("the end of a server", lambda session: self._found_ended(session, ended))
        return status

    def _found_ended(self, session: Session, server: Server) -> None:
        """The cloud is certain that it no longer runs, and nobody asked Hutch for that."""
        latest = instances.current_intent(session, self._instance_id)
        if latest is None or latest.kind != IntentKind.LAUNCH or latest.outcome != Outcome.DONE:
            return
        if why := why_held(server):
            latest.outcome, latest.message = Outcome.FAILED, why + self.whom_to_ask
            instances.record_event(session, self._instance_id, "found-down", actor=instances.CLOUD, message=why)
        else:
            found = f"the server was found {WORDS[server['status']]}"
            intent = instances.intend(session, self._instance_id, IntentKind.STOP, instances.CLOUD, found)
            instances.conclude(session, intent, Outcome.DONE)

    async def rename(self, old_name: str, new_name: str) -> None:
        """The instance goes along; nothing in the cloud bears the name."""
        actor, login = acting_login(self.user.name), self.user.name

        def write(session: Session) -> None:
            if instance := records.find_instance(session, login, old_name):
                instance.server_name = new_name
                instances.record_event(session, instance.id, "renamed", actor=actor, message=f"{old_name} to {new_name}")

        await self.facility.ask(write)

    async def delete_forever(self) -> None:
        """Only marks: JupyterHub drops its row whatever happens here, and the owner has a grace to change their mind."""
        if self.deletion_is_written:
            return
        wish = self.user.name, self.name, acting_login(self.user.name), self.facility.hutch.delete_grace
        await self.facility.ask(lambda session: mark_deleted(session, *wish))

    async def _ask(self, work: Callable[[Session], T]) -> T:
        """What a launch cannot go on without."""
        try:
            return await self.facility.ask(work)
        except DatabaseError as error:
            sentence = "Hutch cannot use its database just now. Please try again in a minute."
            raise LaunchError(sentence, reason=DATABASE, detail=str(error)) from error

    async def _record(self, what: str, write: Callable[[Session], None]) -> None:
        """Writes history. A database that fails must not turn a server that runs into one that JupyterHub takes for dead."""
        try:
            await self.facility.ask(write)
        except Exception:
            self.log.exception("%s: could not write down %s", self._log_name, what)


class InstanceSpawner(Launching, OpenStackSpawner):
    """What Hutch launches: an OpenStack server, within the facility's rules."""
