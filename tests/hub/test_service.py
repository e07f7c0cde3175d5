"""A service of the hub lives no longer than the hub that started it."""

import os
import subprocess
import sys

import pytest
from running_hub import REPOSITORY

BEGIN = "from hub import service; service.begin(); print('at work')"


@pytest.mark.parametrize(
    ("hub", "goes_on"),
    [pytest.param(None, True, id="its-hub-is-there"), pytest.param(1, False, id="its-hub-was-killed-before-it-looked")],
)
def test_a_service_works_only_for_the_hub_that_started_it(hub, goes_on):
    environment = {**os.environ, "HUTCH_HUB_PID": str(hub or os.getpid())}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ("at work" in done.stdout, done.returncode == 0) == (goes_on, goes_on), done.stderr
    assert goes_on or "is gone" in done.stderr
