"""What each of our services does first: log as events with fields, and end with the hub that started it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

import structlog

# ref: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1
# told by the hub itself: by the time that a service asks for its parent, a killed hub is that no more
HUB_VARIABLE = "HUTCH_HUB_PID"


def begin() -> None:
    # what is loaded by now stays: to look through it at each full collection would hold up every request for a tenth of a second
    gc.freeze()
    _configure_log()
    # JupyterHub ends a service with SIGINT, which is ignored from the start in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(int(os.environ.get(HUB_VARIABLE) or os.getppid()))


def _configure_log() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # plain: prettier tracebacks print local variables, and tokens are among them
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
    )


def end_with_parent(parent: int) -> None:
    """A hub that was killed cannot end its services; a new hub starts its own and needs their ports."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the hub that started this service is gone")
