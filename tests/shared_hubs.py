"""Hubs that several files of tests share. One costs a good part of a core while it runs, so it ends after the last such file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

T = TypeVar("T")
# their fixtures
NAMES = ("facility_hub", "running_hub", "demo")
_up: dict[str, tuple[Any, ExitStack]] = {}


def shared(name: str, begin: Callable[[], AbstractContextManager[T]]) -> T:
    """The one that is up, or a new one."""
    if name not in _up:
        end = ExitStack()
        _up[name] = end.enter_context(begin()), end
    return _up[name][0]


def end_all_but(names: Collection[str]) -> None:
    for name in _up.keys() - set(names):
        _up.pop(name)[1].close()
