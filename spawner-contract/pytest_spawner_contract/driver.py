"""What the suite must be able to do to the things that a spawner starts: processes, containers, virtual machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import pytest


def _cannot(what: str) -> NoReturn:
    pytest.skip(f"does not apply: {what}")


class Driver:
    """Made for one spawner class. What is not overridden does not apply, and neither do the situations that need it."""

    name = ""
    """The column's title in the table."""
    spawner_class = ""
    """As in c.JupyterHub.spawner_class."""
    config = ""
    """More lines of jupyterhub_config.py."""
    known_failures: Mapping[str, str] = {}
    """Situation (the test's name without `test_`) to reason, for what this spawner is known not to bear.

    The reason begins with "sometimes" where chance decides.
    """

    def things(self) -> dict[str, bool]:
        """Everything that the spawner has made and that still exists, and whether it runs."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """user_options of every start that is to go well; `cmd` and `start_timeout` become the spawner's traits."""
        return {}

    def restore(self) -> None:
        """Ends every trouble that the suite has made; called after each situation."""

    # --- the next start: what these return is added to its user_options

    def fail_next(self) -> dict[str, Any]:
        """The next start makes its thing, and the thing does not come up."""
        _cannot("nothing can be made that fails to come up")

    def hold_next(self, seconds: float) -> dict[str, Any]:
        """The making of the next thing takes so much longer."""
        _cannot("the making of a thing cannot be held up")

    def held(self) -> bool:
        """Whether it is being held up at this moment."""
        _cannot("the making of a thing cannot be held up")

    # --- things that exist

    def end(self, thing: str) -> None:
        """It ends by itself: a process that exits, a machine that is switched off from inside."""
        _cannot("a thing cannot end by itself")

    def vanish(self, thing: str) -> None:
        """Somebody removes it behind the spawner's back."""
        _cannot("a thing that ends leaves nothing that could vanish")

    def hang(self, thing: str) -> None:
        """It stays up, and what runs in it answers no more."""
        _cannot("a thing cannot hang")

    def check_can_move(self) -> None:
        """Overridden, to do nothing, where a thing may get another address while it runs."""
        _cannot("the address of a thing does not change while it runs")

    # --- what is behind the spawner

    def cut_off(self) -> None:
        """Whoever runs the things answers with errors; the things go on."""
        _cannot("there is nobody to ask between the spawner and its things")

    def fail_stops(self, times: int) -> None:
        """The next stops of existing things fail, so many times."""
        _cannot("a stop cannot fail")

    def hold_stops(self, seconds: float) -> None:
        """The next stop takes so much longer."""
        _cannot("a stop cannot be held up")
