"""A site's own word on the security groups of an instance: a function, or an HTTP service, that has to answer in time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from inspect import isawaitable
from typing import Any

import httpx
import structlog

from .firewall import Firewall

log = structlog.get_logger()
# of its own: a function that hangs holds up nothing else
_threads = ThreadPoolExecutor(4, thread_name_prefix="firewall-hook")


async def ask(firewall: Firewall, facts: dict[str, Any]) -> set[str] | None:
    """The names that the hook gives; None when it failed, whatever the reason."""
    hook, seconds = firewall.hook, firewall.hook_seconds
    call = hook if callable(hook) else lambda facts: httpx.post(hook, json=facts, timeout=seconds).raise_for_status().json()
    try:
        async with asyncio.timeout(seconds):
            names = await asyncio.get_running_loop().run_in_executor(_threads, call, facts) if hook else ()
            names = await names if isawaitable(names) else names
        if not isinstance(names, list | tuple | set) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"a list of names was expected, not {names!r:.200}")
    except Exception as error:
        log.warning("the firewall hook failed", instance=facts["instance"], error=repr(error))
        return None
    return {*names}
