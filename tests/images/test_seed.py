"""What the cloud says at boot becomes files; what is not understood becomes none."""

from __future__ import annotations

import json
import stat

import pytest

from images.guest.seed import write_files
from spawner.builders import AGENT_FILE, user_data


def test_what_the_hub_asks_for_is_written(tmp_path):
    write_files(user_data("CERTIFICATE", 8765), tmp_path)
    file = tmp_path / AGENT_FILE.lstrip("/")
    assert json.loads(file.read_text()) == {"hub_ca": "CERTIFICATE", "port": 8765}
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_later_boot_writes_anew(tmp_path):
    for authority in ("old", "new"):
        write_files(user_data(authority, 8765), tmp_path)
    folder = (tmp_path / AGENT_FILE.lstrip("/")).parent
    assert [json.loads(file.read_text())["hub_ca"] for file in folder.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("#!/bin/sh\nreboot\n", id="script"),
        pytest.param("", id="nothing"),
        pytest.param("#cloud-config\nwrite_files: [{path: /x, content: QQ==, encoding: b64}]\n", id="encoded"),
        pytest.param("#cloud-config\nwrite_files: [{path: /x, content: a, append: true}]\n", id="appended"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"not a cloud-config|only plain text"):
        write_files(text, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cloud_config_of_other_things_writes_nothing(tmp_path):
    write_files("#cloud-config\n{}\n", tmp_path)
    assert list(tmp_path.iterdir()) == []
