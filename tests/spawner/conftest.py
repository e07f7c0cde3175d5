"""A devcloud for the tests of this room."""

from collections.abc import Iterator

import pytest

from spawner.devcloud.process import DevcloudProcess, running


@pytest.fixture(scope="session")
def shared_devcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    """One devcloud with stub payloads for all tests that leave nothing of theirs behind but servers and ports."""
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as process:
        yield process


@pytest.fixture
def devcloud(shared_devcloud: DevcloudProcess) -> Iterator[DevcloudProcess]:
    """The shared devcloud without any server, port, fault or order of an earlier test."""
    shared_devcloud.reset()
    yield shared_devcloud
