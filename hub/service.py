"""What each of our services does first: log as events with fields, and end with the hub that started it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import aiohttp
import structlog

from spawner.cloud_errors import CloudError

from .errors import HutchError

# ref: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1
# told by the hub itself: by the time that a service asks for its parent, a killed hub is that no more
HUB_VARIABLE = "HUTCH_HUB_PID"
AGAIN_SECONDS, MANY = 600.0, 1000
_said: dict[frozenset[tuple[str, str]], tuple[float, int]] = {}


def begin() -> None:
    # what is loaded by now stays: to look through it at each full collection would hold up every request for a tenth of a second
    gc.freeze()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            say_once,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # plain: prettier tracebacks print local variables, and tokens are among them
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )
    sys.excepthook = _end
    # JupyterHub ends a service with SIGINT, which is ignored from the start in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(int(os.environ.get(HUB_VARIABLE) or os.getppid()))


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, HutchError):
        structlog.get_logger().critical("cannot go on", error=str(error))
    else:
        sys.__excepthook__(kind, error, trace)


def say_once(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What goes wrong at every pass is said every ten minutes, with how often it was left out since; detail may differ.

    What went well meanwhile is said at once when it goes wrong again: see `well`.
    """
    if event["level"] in ("debug", "info"):
        return event
    error = sys.exc_info()[1] if event.get("exc_info") else None
    key = _facts(**{name: value for name, value in {**event, "exc_info": error}.items() if name != "detail"})
    said_at, left_out = _said.get(key, (-AGAIN_SECONDS, 0))
    if time.monotonic() - said_at < AGAIN_SECONDS:
        _said[key] = said_at, left_out + 1
        raise structlog.DropEvent
    if len(_said) > MANY:
        _said.clear()
    _said[key] = time.monotonic(), 0
    return {**event, **({"left_out": left_out} if left_out else {})}


def _facts(**facts: object) -> frozenset[tuple[str, str]]:
    return frozenset((name, repr(value)) for name, value in facts.items())


def well(event: str, **facts: object) -> None:
    """What had gone wrong, and was said with this event and these facts, went well: said once."""
    known = _facts(event=event, **facts)
    over = [said for said in _said if known <= said]
    for said in over:
        del _said[said]
    if over:
        structlog.get_logger().info("well again", was=event, **facts)


@contextmanager
def putting_off(event: str, **facts: object) -> Iterator[None]:
    """What is away now, and is asked again at the next pass, is said in a sentence, and holds up nothing that follows."""
    try:
        yield
    except (CloudError, HutchError, aiohttp.ClientError, OSError) as error:
        structlog.get_logger().warning(event, **facts, error=str(error) or repr(error), detail=getattr(error, "detail", ""))
    else:
        well(event, **facts)


def end_with_parent(parent: int) -> None:
    """A hub that was killed cannot end its services; a new hub starts its own and needs their ports."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the hub that started this service is gone")
