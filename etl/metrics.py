"""What Prometheus reads of the runs: out of the database, whichever process ran them. Nothing personal is in it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select

from hub.database.tables import EtlRun, now

SOURCE = ["source", "kind"]


class Metrics(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.events = Counter("hutch_etl_events", "Messages of brokers", ["source", "type", "outcome"], registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def freshness(self) -> dict[tuple[str, str], float]:
        """{(source, kind of run): seconds since the end of the last one that was done}."""
        last = select(EtlRun.source, EtlRun.kind, func.max(EtlRun.finished_at)).where(EtlRun.outcome == "done")
        with self._engine.connect() as connection:
            rows = connection.execute(last.group_by(EtlRun.source, EtlRun.kind)).all()
        return {(source, kind): (now() - at).total_seconds() for source, kind, at in rows if at}

    def collect(self) -> Iterator[Metric]:
        fresh = GaugeMetricFamily("hutch_etl_freshness_seconds", "Since the last run that was done", labels=SOURCE)
        for labels, seconds in self.freshness().items():
            fresh.add_metric(labels, seconds)
        runs = CounterMetricFamily("hutch_etl_runs", "Runs", labels=[*SOURCE, "outcome"])
        rows = GaugeMetricFamily(
            "hutch_etl_rows", "Rows of the last run; rejected: in quarantine", labels=[*SOURCE, "table", "change"]
        )
        took = GaugeMetricFamily("hutch_etl_duration_seconds", "How long the last run took", labels=SOURCE)
        counted = select(EtlRun.source, EtlRun.kind, EtlRun.outcome, func.count(), func.max(EtlRun.id))
        with self._engine.connect() as connection:
            groups = connection.execute(counted.group_by(EtlRun.source, EtlRun.kind, EtlRun.outcome)).all()
            newest = {(source, kind): last for source, kind, _, _, last in sorted(groups, key=lambda group: group[4])}
            last_runs = connection.execute(select(EtlRun.__table__).where(EtlRun.id.in_(newest.values()))).all()
        for source, kind, outcome, count, _ in groups:
            runs.add_metric([source, kind, str(outcome)], count)
        for run in last_runs:
            if run.finished_at:
                took.add_metric([run.source, run.kind], (run.finished_at - run.started_at).total_seconds())
            for table, counts in run.counts.items():
                for change, count in counts.items():
                    rows.add_metric([run.source, run.kind, table, change], count)
        yield from (fresh, runs, rows, took)
