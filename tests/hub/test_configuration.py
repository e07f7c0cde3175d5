"""Reading jupyterhub_config.py: what it gives, and what is said when it cannot be read."""

import inspect
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hub.access import Quota
from hub.configuration import CONFIG_VARIABLE, ConfigurationError, Hutch, load, read

pytestmark = pytest.mark.any_database


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        file = tmp_path / "jupyterhub_config.py"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_defaults_are_enough(written, tmp_path):
    hutch = load(written("c.JupyterHub.port = 8123"))
    assert (hutch.lifetime_days, hutch.delete_grace_days) == (14, 7)
    assert hutch.state_dir == f"{tmp_path}/.hutch"
    assert hutch.database_url == f"sqlite:///{tmp_path}/.hutch/hutch.sqlite"


@pytest.mark.parametrize("opening", ["", "c = get_config()\n"], ids=["given", "asked-for"])
def test_settings_are_those_of_the_file(written, opening):
    assert load(written(f"{opening}c.Hutch.contact = 'ask@here'\nc.Hutch.lifetime_days = 1.5")).lifetime_days == 1.5


def test_a_state_dir_counts_from_the_file_wherever_the_process_runs(written, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    hutch = load(written("c.Hutch.state_dir = 'state'"))
    assert hutch.state_dir == f"{tmp_path}/state"
    assert hutch.database_url == f"sqlite:///{tmp_path}/state/hutch.sqlite"
    assert load(written("c.Hutch.state_dir = '/srv/hutch'")).state_dir == "/srv/hutch"


def test_a_part_in_another_file_is_read_too(written, tmp_path):
    (tmp_path / "site.py").write_text("c.Hutch.contact = 'site'")
    assert load(written("load_subconfig('site.py')")).contact == "site"


def test_the_file_is_found_by_variable_or_in_the_working_folder(written, tmp_path, monkeypatch):
    file = written("c.Hutch.contact = 'found'")
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    assert load().contact == "found"
    monkeypatch.delenv(CONFIG_VARIABLE)
    monkeypatch.chdir(tmp_path)
    assert load().contact == "found"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("x = 1\nc.Hutch.contact = (", r"jupyterhub_config.py:2: '\(' was never closed", id="syntax"),
        pytest.param("x = 1\n\n1 / 0", "jupyterhub_config.py:3: ZeroDivisionError: division by zero", id="raises"),
        pytest.param("import json\njson.loads('')", "jupyterhub_config.py:2: JSONDecodeError", id="raises-elsewhere"),
        pytest.param("import nowhere", "jupyterhub_config.py:1: ModuleNotFoundError: No module named 'nowhere'", id="import"),
        pytest.param("\nraise SystemExit('enough')", "jupyterhub_config.py:2: SystemExit: enough", id="exits"),
        pytest.param(b"x = '\xe9'", "jupyterhub_config.py:1: .*decode", id="not-utf-8"),
        pytest.param(b"\0", "jupyterhub_config.py.*null byte", id="null-byte"),
        pytest.param("c.Hutch = 3", "jupyterhub_config.py:1: ValueError: .*Hutch", id="not-a-section"),
        pytest.param("c.Hutch.contct = 'x'", "no setting 'contct'; did you mean contact", id="misspelt"),
        pytest.param("c.Hutch.zzz = 'x'", "no setting 'zzz'; known are admin_mail, contact, database_url", id="unknown"),
        pytest.param("c.Hutch.zzz.append(1)", "no setting 'zzz'", id="unknown-appended"),
        pytest.param("c.Hutch.portal_port = 'two'", "'portal_port' .* expected an int, not the str 'two'", id="type"),
        pytest.param("c.Hutch.portal_port = 99999", "'portal_port' .* not be greater than 65535", id="too-large"),
        pytest.param("c.Hutch.lifetime_days = -1", "'lifetime_days' .* not be less than 0", id="too-small"),
        pytest.param("c.Hutch.lifetime_days = float('nan')", "lifetime_days must be a finite number", id="not-a-number"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_place(written, text, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(written(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.py", "."], ids=["missing", "a-folder"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ConfigurationError, match="no such file"):
        load(tmp_path / name)


def test_what_is_not_said_of_everybodys_quota_stays_as_it_is():
    quotas = Hutch(quotas={"": {"cores": 16}, "staff": {"instances": 5}}).terms(datetime.now(UTC)).quotas
    assert quotas == {"": Quota(2, 16), "staff": Quota(5)}
    assert Hutch().terms(datetime.now(UTC)).quotas == {"": Quota(2, -1)}


@pytest.mark.parametrize("name", sorted(Hutch.class_own_traits(config=True)))
def test_every_setting_is_explained(name):
    """By a sentence, and by what it means where the default is no value."""
    trait = Hutch.class_own_traits()[name]
    assert re.match(r"[A-Z].+\.", inspect.cleandoc(trait.help), re.DOTALL)
    assert trait.default() or "Default: " in trait.help


@pytest.mark.parametrize(
    ("lines", "on"),
    [
        pytest.param("", False, id="demo"),
        pytest.param('c.JupyterHub.hub_ip = "10.20.0.5"', True, id="instances-elsewhere"),
        pytest.param('c.JupyterHub.hub_ip = "0.0.0.0"; c.JupyterHub.hub_connect_ip = "10.20.0.5"', True, id="connected-elsewhere"),
        pytest.param('c.JupyterHub.hub_ip = "10.20.0.5"; c.ConfigurableHTTPProxy.should_start = False', False, id="own-proxy"),
        pytest.param('c.JupyterHub.hub_ip = "10.20.0.5"; c.JupyterHub.internal_ssl = False', False, id="switched-off"),
    ],
)
def test_what_leaves_the_machine_is_encrypted(tmp_path, lines, on):
    file = tmp_path / "jupyterhub_config.py"
    text = f"import hub\nfrom pathlib import Path\nc = get_config()\n{lines}\nhub.install(c, Path({str(file)!r}))\n"
    file.write_text(text)
    config = read(file)
    assert config.JupyterHub.internal_ssl is on
    assert config.JupyterHub.get("trusted_alt_names") == (["IP:10.20.0.5"] if on else None)
