"""What each of our services does first: log as events with fields, and end with the hub that started it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

from .errors import HutchError

# ref: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1
# told by the hub itself: by the time that a service asks for its parent, a killed hub is that no more
HUB_VARIABLE = "HUTCH_HUB_PID"
AGAIN_SECONDS, MANY = 600.0, 1000
_said: dict[str, tuple[float, int]] = {}


def begin() -> None:
    # what is loaded by now stays: to look through it at each full collection would hold up every request for a tenth of a second
    gc.freeze()
    _configure_log()
    sys.excepthook = _end
    # JupyterHub ends a service with SIGINT, which is ignored from the start in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(int(os.environ.get(HUB_VARIABLE) or os.getppid()))


def _configure_log() -> None:
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


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, HutchError):
        structlog.get_logger().critical("cannot go on", error=str(error))
    else:
        sys.__excepthook__(kind, error, trace)


def say_once(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What goes wrong at every pass is said every ten minutes, with how often it was left out since; detail may differ."""
    if event["level"] in ("debug", "info"):
        return event
    error = sys.exc_info()[1] if event.get("exc_info") else None
    key = repr(({name: value for name, value in event.items() if name != "detail"}, error))
    said_at, left_out = _said.get(key, (-AGAIN_SECONDS, 0))
    if time.monotonic() - said_at < AGAIN_SECONDS:
        _said[key] = said_at, left_out + 1
        raise structlog.DropEvent
    if len(_said) > MANY:
        _said.clear()
    _said[key] = time.monotonic(), 0
    return {**event, **({"left_out": left_out} if left_out else {})}


def end_with_parent(parent: int) -> None:
    """A hub that was killed cannot end its services; a new hub starts its own and needs their ports."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the hub that started this service is gone")
