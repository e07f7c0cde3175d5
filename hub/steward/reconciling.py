"""One pass of reconciliation: reads hub, clouds and records, writes down where they differ, and does what the site allows of that.

The number of calls does not grow with the number of servers. A cloud that does not answer is left out of the pass: of it, nothing
begins and nothing ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from spawner.builders import marked
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError
from spawner.servers import instance_of

from .. import instances, service
from ..database.engine import take_turn
from ..database.tables import CloudFinding, Instance, Intent, IntentKind, Outcome, User, now
from ..facility import Facility
from ..services import STEWARD
from .differences import Finding, Meant, Policy, Recorded, Rule, State, View, compare, goes_on, step, unlisted
from .guard import Guard

log = structlog.get_logger()

UNREAD = "a cloud could not be compared"
ALLOW_FILE = "allow-reconciliation"
QUARANTINE_TAG = "hutch-quarantine"
# servers looked up one by one in a pass; of many more it takes several passes
LOOKUPS = 20
# parameters of one statement
MANY = 10_000

FINDINGS = Gauge("hutch_cloud_findings", "Differences between cloud, records and hub", ["state"])
ACTIONS = Counter("hutch_cloud_actions", "What was done about differences", ["action", "outcome"])
CLOUDS_UNREAD = Gauge("hutch_clouds_unread", "Clouds that the last pass could not read")
RECONCILED_AT = Gauge("hutch_reconciled_timestamp_seconds", "When the last pass that read all clouds ended")
PASS_SECONDS = Gauge("hutch_reconcile_duration_seconds", "How long the last pass took")


@dataclass(frozen=True, slots=True)
class Planned:
    """A finding as it is written down, and what is due about it."""

    finding: Finding
    row_id: int
    since: Any
    quarantined_at: Any
    due: Rule | None


@dataclass
class Reconciler:
    """served: what the hub serves, {(login, server name): ready}; None where there is no way to ask."""

    facility: Facility
    clouds: Mapping[str, Cloud]
    served: Callable[[], Awaitable[Mapping[tuple[str, str], bool]]] | None = None

    def __post_init__(self) -> None:
        self.guard = Guard(self.facility, ALLOW_FILE)
        self.unread: list[CloudError] = []
        self.withheld = ""

    @property
    def policy(self) -> Policy:
        hutch = self.facility.hutch
        return Policy(Rule(hutch.reconcile), timedelta(hours=hutch.quarantine_after_hours), timedelta(days=hutch.quarantine_days))

    async def run(self, *, dry_run: bool = False, allow: bool = False) -> list[Planned]:
        """A pass over all clouds. allow: also where it is more than is done without asking."""
        began, self.unread, self.withheld = time.monotonic(), [], ""
        by_cloud: dict[Cloud, set[str]] = {}
        for place, cloud in self.clouds.items():
            by_cloud.setdefault(cloud, set()).add(place)
        read: list[tuple[Cloud, View, Planned]] = []
        servers = 0
        for cloud, places in by_cloud.items():
            try:
                view = await self._read(cloud, frozenset(places))
            except CloudError as error:
                log.warning(UNREAD, places=sorted(places), error=str(error), detail=error.detail)
                self.unread.append(error)
                continue
            service.well(UNREAD, places=sorted(places))
            planned = await self.facility.ask(partial(note, view=view, policy=self.policy, dry_run=dry_run))
            read += [(cloud, view, one) for one in planned]
            servers += len(view.servers)
        found = [one for _, _, one in read]
        may_act = await self._may_act(found, servers, allow, dry_run)
        if not dry_run:
            if may_act:
                await self._act([each for each in read if each[2].due])
            self._measure(found, began)
        return found

    def _measure(self, found: Sequence[Planned], began: float) -> None:
        for state in State:
            FINDINGS.labels(state).set(sum(one.finding.state is state for one in found))
        CLOUDS_UNREAD.set(len(self.unread))
        PASS_SECONDS.set(time.monotonic() - began)
        if not self.unread:
            RECONCILED_AT.set_to_current_time()

    async def _read(self, cloud: Cloud, places: frozenset[str]) -> View:
        at, deployment_id = now(), self.facility.deployment_id
        served = await self.served() if self.served else None
        servers, ports, volumes, addresses = await asyncio.gather(
            cloud.tagged_servers(deployment_id), cloud.all_ports(), _or_none(cloud.volumes()), _or_none(cloud.floating_ips())
        )
        ports = [port for port in ports if marked(port["description"], deployment_id)]
        held, gone = await self._look_up(cloud, unlisted(servers, ports))
        servers = [*servers, *held]
        marks = (*ports, *(addresses or ()))
        ids = {marked(one["description"], deployment_id) for one in marks}
        ids |= {instance_of(one) for one in (*servers, *(volumes or ()))}
        records = await self.facility.ask(partial(on_record, ids=ids))
        return View(deployment_id, at, servers, ports, volumes, addresses, records, served, places, gone)

    async def _look_up(self, cloud: Cloud, ids: Sequence[str]) -> tuple[list[dict[str, Any]], frozenset[str]]:
        """Those that are there, and the ids of those that Nova says are not; one that is not answered is neither."""
        chosen = random.sample(ids, min(LOOKUPS, len(ids)))
        answers = await asyncio.gather(*(cloud.server(one) for one in chosen), return_exceptions=True)
        gone = frozenset(one for one, answer in zip(chosen, answers, strict=True) if answer is None)
        return [answer for answer in answers if isinstance(answer, dict)], gone

    async def _may_act(self, found: Sequence[Planned], servers: int, allow: bool, dry_run: bool) -> bool:
        due = {one for one in found if one.due}
        # those whose time is still to come count too: many at once are a wrong view, not many strays
        coming = {one for one in found if one.finding.state.rule in (Rule.QUARANTINE, Rule.DELETE) and not one.quarantined_at}
        words = (
            f"The cloud has {len(due | coming)} things that would be quarantined or deleted, beside {servers} servers in all. "
            f"Nothing was done. `hutch reconcile --dry-run` shows them; if that is right, `hutch reconcile --allow` does it."
        )
        if due and not allow:
            count = len(due | coming)
            is_little = count <= self.guard.most(servers) if dry_run else await self.guard.allows(count, servers, words)
            self.withheld = "" if is_little else words
        return bool(due) and not self.withheld

    async def _act(self, read: Sequence[tuple[Cloud, View, Planned]]) -> None:
        for cloud, view, one in read:
            try:
                outcome = await self._carry_out(cloud, view, one)
            except CloudError as error:
                outcome = "failed"
                log.warning("put off", action=one.due, resource=one.finding.resource_id, error=str(error), detail=error.detail)
            ACTIONS.labels(one.due, outcome).inc()

    async def _carry_out(self, cloud: Cloud, view: View, one: Planned) -> str:
        """Only after this very thing was read anew, and is still as it was found."""
        finding = await self._again(cloud, view, one.finding)
        if finding is None or (one.due is Rule.DELETE and not finding.is_off):
            return "changed meanwhile"
        facts = {"kind": finding.kind, "resource": finding.resource_id, "instance": finding.instance_id, "state": finding.state}
        log.warning(f"{one.due} in the cloud", **facts)
        if one.due is Rule.DELETE:
            await (cloud.delete_server if finding.kind == "server" else cloud.delete_port)(finding.resource_id)
        elif finding.kind == "server":
            if finding.state.rule is Rule.DELETE:
                await cloud.tag_server(finding.resource_id, QUARANTINE_TAG)
            if not finding.is_off:
                await cloud.act(finding.resource_id, "os-stop")
        await self.facility.ask(partial(_write_down, one=one))
        return "done"

    async def _again(self, cloud: Cloud, view: View, finding: Finding) -> Finding | None:
        servers, ports = [], []
        if finding.kind == "server":
            servers = [server for server in [await cloud.server(finding.resource_id)] if server]
        else:
            ports = await cloud.ports(finding.instance_id or "", view.deployment_id)
        _, gone = await self._look_up(cloud, unlisted(servers, ports))
        records = await self.facility.ask(partial(on_record, ids={finding.instance_id}, only=True))
        one = replace(view, servers=servers, ports=ports, volumes=None, addresses=None, records=records, served=None, gone=gone)
        same = (finding.resource_id, finding.state)
        return next((each for each in compare(one)[0] if (each.resource_id, each.state) == same), None)


async def _or_none(call: Awaitable[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
    """Volumes and floating IPs are only reported: a cloud that does not tell of them is compared without."""
    try:
        return await call
    except CloudError as error:
        log.warning("not compared", error=str(error), detail=error.detail)
        return None


def on_record(session: Session, ids: Iterable[str | None], *, only: bool = False) -> dict[str, Recorded]:
    """All instances that were not purged, and of those that were, the ones of these ids. only: no others than these ids."""
    current = (
        select(Intent.instance_id, func.max(Intent.id).label("id"))
        .where(instances.counting())
        .group_by(Intent.instance_id)
        .subquery()
    )
    query = (
        select(
            *(Instance.id, User.login, Instance.server_name, Instance.place, Instance.first_ready_at),
            *(Instance.deleted_at, Instance.purged_at),
            *(Intent.kind, Intent.actor, Intent.outcome, Intent.asked_at, Intent.ended_at),
        )
        .join(User, User.id == Instance.owner_id)
        .outerjoin(current, current.c.instance_id == Instance.id)
        .outerjoin(Intent, Intent.id == current.c.id)
    )
    rows = [] if only else list(session.execute(query.where(Instance.purged_at.is_(None))))
    missing = sorted({one for one in ids if one} - {row.id for row in rows})
    for first in range(0, len(missing), MANY):
        rows += session.execute(query.where(Instance.id.in_(missing[first : first + MANY])))
    return {row.id: _recorded(row) for row in rows}


def _recorded(row: Any) -> Recorded:
    # what is being carried out is not settled
    meant, since = Meant.UNCLEAR, row.ended_at or now()
    if row.kind == IntentKind.DELETE:
        meant, since = Meant.OFF, row.asked_at
    elif row.outcome == Outcome.DONE:
        # a stop that was only found is nobody's wish: what runs again is taken back, not switched off
        meant = Meant.RUN if row.kind == IntentKind.LAUNCH or row.actor == instances.CLOUD else Meant.OFF
    return Recorded(
        *(row.id, row.login, row.server_name, row.place, meant, row.purged_at or since),
        came_up=row.first_ready_at is not None,
        is_deleted=row.deleted_at is not None,
        is_purged=row.purged_at is not None,
    )


def note(session: Session, view: View, policy: Policy, *, dry_run: bool = False) -> list[Planned]:
    """Writes down what began, goes on and ended."""
    take_turn(session)
    findings, undecided = compare(view)
    here = CloudFinding.ended_at.is_(None), CloudFinding.place.in_(view.places)
    rows = {(row.kind, row.resource_id): row for row in session.scalars(select(CloudFinding).where(*here))}
    noted, began, ended = [], [], []
    for one in findings:
        row = rows.pop((one.kind, one.resource_id), None)
        if row is not None and row.state != one.state:
            row.ended_at = now()
            ended.append(row)
        if row is None or row.state != one.state:
            recorded = view.records.get(one.instance_id or "")
            place = recorded.place if recorded and recorded.place in view.places else min(view.places)
            facts = {"kind": one.kind, "resource_id": one.resource_id, "state": one.state, "instance_id": one.instance_id}
            row = CloudFinding(place=place, since=view.at, **facts)
            session.add(row)
            began.append(one)
        if one.state is State.NOT_SERVED and one.instance_id:
            instances.call_off_found_stop(session, one.instance_id)
        row.detail = one.detail
        noted.append((one, row))
    for row in rows.values():
        if not goes_on(row.kind, row.resource_id, row.state, view, undecided):
            row.ended_at = now()
            ended.append(row)
    session.flush()
    ids = [row.id for _, row in noted]
    for first in range(0, len(ids), MANY):
        session.execute(update(CloudFinding).where(CloudFinding.id.in_(ids[first : first + MANY])).values(seen_at=view.at))
    planned = [
        Planned(one, row.id, row.since, row.quarantined_at, step(one, row.since, row.quarantined_at, policy, view.at))
        for one, row in noted
    ]
    if dry_run:
        session.rollback()
        return planned
    # said each time that it begins, however soon again
    since = {"since": view.at.isoformat()}
    for one in began:
        log.warning("cloud differs", state=one.state, kind=one.kind, resource=one.resource_id, instance=one.instance_id, **since)
    for row in ended:
        log.info("cloud differs no longer", state=row.state, kind=row.kind, resource=row.resource_id, instance=row.instance_id)
    return planned


def _write_down(session: Session, one: Planned) -> None:
    if one.due is Rule.QUARANTINE:
        session.get_one(CloudFinding, one.row_id).quarantined_at = now()
    if one.finding.instance_id and session.get(Instance, one.finding.instance_id):
        facts = {"actor": STEWARD, "message": one.finding.state.sentence}
        instances.record_event(session, one.finding.instance_id, f"reconcile-{one.due}", **facts)
