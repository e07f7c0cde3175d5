"""The shipped units, configuration and scripts, each by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from running_hub import REPOSITORY

from hub.configuration import load, read

DEPLOY = REPOSITORY / "deploy"
UNITS = sorted(DEPLOY.glob("systemd/hutch-*.service"))
# of 10, by systemd's own reckoning: "exposed" begins at 5
MOST_EXPOSED = 2.0


@pytest.fixture
def units(tmp_path) -> Path:
    """As they are installed, where the programs that they name are there."""
    folder = tmp_path / "systemd"
    shutil.copytree(DEPLOY / "systemd", folder)
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text().replace("/opt/hutch/current", str(REPOSITORY)))
    return folder


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    # only these, and those that come with systemd
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:/lib/systemd/system"}
    return subprocess.run(["systemd-analyze", *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_systemd_has_nothing_to_say_against_the_units(units):
    said = analyze(units, "verify", "--man=no", *map(str, [*units.glob("*.service"), *units.glob("*.timer")]))
    about_ours = [line for line in said.stderr.splitlines() if "hutch" in line or str(units) in line]
    assert (said.returncode, about_ours) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_may_do_little_else(units, unit):
    said = analyze(units, "security", "--offline=true", f"--threshold={int(MOST_EXPOSED * 10)}", unit.name)
    assert said.returncode == 0, said.stdout


def test_a_word_that_systemd_does_not_know_is_noticed(units):
    (units / "hutch-hub.service").write_text((units / "hutch-hub.service").read_text() + "\n[Service]\nProtectSytem=strict\n")
    assert "ProtectSytem" in analyze(units, "verify", "--man=no", str(units / "hutch-hub.service")).stderr


def test_the_example_configuration_loads(tmp_path):
    (tmp_path / "proxy-token").write_text("token\n")
    text = (DEPLOY / "jupyterhub_config.py").read_text().replace("/etc/hutch/", f"{tmp_path}/")
    (tmp_path / "jupyterhub_config.py").write_text(text.replace("/var/lib/hutch", str(tmp_path / "state")))
    config, hutch = read(tmp_path / "jupyterhub_config.py"), load(tmp_path / "jupyterhub_config.py")
    assert config.ConfigurableHTTPProxy.auth_token == "token"
    assert config.ConfigurableHTTPProxy.should_start is False
    assert config.JupyterHub.cleanup_servers is False
    assert {config.JupyterHub.db_url, hutch.database_url} == {"postgresql:///hutch", "postgresql:///hutch_jupyterhub"}
    assert config.JupyterHub.db_kwargs["connect_args"]["tcp_user_timeout"], "nor does JupyterHub itself wait for hours"


def test_a_secret_that_everybody_may_read_is_named(tmp_path):
    for name, mode in {"clouds.yaml": 0o644, "proxy-token": 0o640}.items():
        (tmp_path / name).write_text("secret")
        (tmp_path / name).chmod(mode)
    said = subprocess.run([DEPLOY / "check-secrets", tmp_path], capture_output=True, text=True)
    assert said.returncode == 1 and "clouds.yaml" in said.stderr and "proxy-token" not in said.stderr
    (tmp_path / "clouds.yaml").chmod(0o600)
    assert subprocess.run([DEPLOY / "check-secrets", tmp_path]).returncode == 0


def test_a_hub_that_cannot_begin_says_why_in_one_line(units, tmp_path):
    lines = (units / "hutch-hub.service").read_text().splitlines()
    looks = [line.partition("=")[2].split() for line in lines if line.startswith("ExecStartPre=") and ".venv/" in line]
    (tmp_path / "jupyterhub_config.py").write_text("c.Hutch.facility_name = 'Example'\n")
    environment = {**os.environ, "HUTCH_CONFIG": str(tmp_path / "jupyterhub_config.py")}
    (said,) = [subprocess.run(look, env=environment, capture_output=True, text=True) for look in looks]
    assert said.returncode == 1 and "hutch db upgrade" in said.stderr and said.stderr.count("\n") == 1
