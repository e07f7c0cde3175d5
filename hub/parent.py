"""Ends a service with the hub that started it: a hub that was killed cannot, and a new one needs the service's port."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# ref: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
PR_SET_PDEATHSIG = 1


def die_with_it() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the hub that started this service is gone")
