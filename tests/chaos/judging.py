"""Whether what was last intended for an instance is so, in the database, the hub and the cloud: a rule, without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hub import instances
from hub.database.tables import Instance, IntentKind, Outcome


@dataclass(frozen=True)
class Seen:
    """An instance at one moment. model: JupyterHub's own, {} when it does not serve the instance."""

    instance: Instance
    model: dict[str, Any]
    servers: list[str]  # their states
    ports: int
    asked_last: str  # launch, stop or delete, as its owner asked for last


def wrong(seen: Seen) -> str:
    """What is not as it should be; "" when all is right."""
    instance = seen.instance
    if any(intent.outcome is None for intent in instance.intents if not instance.purged_at):
        return "an intent is still being carried out"
    if instance.deleted_at:
        if seen.asked_last != "delete":
            return "deleted, and nobody asked for it"
        return "" if instance.purged_at and not seen.servers and not seen.ports else "something of a deleted instance is left"
    if seen.asked_last == "delete":
        return "not deleted"
    if len(seen.servers) > 1 or seen.ports > 1:
        return f"{len(seen.servers)} servers, {seen.ports} ports"
    if instance.first_ready_at and not seen.servers:
        return "its server was deleted, and nobody asked for it"
    return _wrong_in_force(seen)


def _wrong_in_force(seen: Seen) -> str:
    intent = instances.in_force(seen.instance.intents)
    assert intent, "an instance begins with an intent"
    if intent.kind == IntentKind.LAUNCH and intent.outcome == Outcome.DONE:
        if seen.asked_last != "launch":
            return "launched, and nobody asked for it"
        return "" if seen.model.get("ready") and seen.servers == ["ACTIVE"] else f"runs, but is {seen.model} in {seen.servers}"
    if seen.model.get("ready") or seen.model.get("pending"):
        return f"does not run, but is {seen.model}"
    if intent.outcome == Outcome.FAILED:
        return "" if intent.message else "a launch failed without a word"
    if seen.asked_last != "stop":
        return f"{intent.kind} {intent.outcome}, and nobody asked for it"
    return "its server is not off" if "ACTIVE" in seen.servers else ""
