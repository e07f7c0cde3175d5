"""The file of a source: what it may say, and what is said of its mistakes."""

import re
from pathlib import Path

import pytest

from etl.adapters.files import Files
from etl.frames import SourceError
from etl.source import ADAPTERS, find, named, open_source

SETTINGS = '\n[settings]\nfolder = "office"\n'


def put(folder: Path, text: str) -> None:
    (folder / "one.toml").write_text(text, encoding="utf-8")


def test_a_source_is_read_with_its_adapter(tmp_path):
    put(tmp_path, 'adapter = "files"\nusers = "link"\ntime_zone = "Europe/Paris"\nmax_ended_share = 0.5' + SETTINGS)
    source, adapter = open_source(tmp_path, "one")
    assert (source.name, source.users, source.time_zone, source.max_ended_share) == ("one", "link", "Europe/Paris", 0.5)
    assert (source.every_minutes, source.max_rejected_share) == (None, 0.1)
    assert isinstance(adapter, Files)
    assert adapter.folder == tmp_path / "office"


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_adapter_that_can_be_named_is_there(tmp_path, name):
    put(tmp_path, f'adapter = "{name}"\n[settings]\nnonsense = 1\n')
    with pytest.raises(SourceError, match=r"there is no setting settings\.nonsense"):
        open_source(tmp_path, "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("adapter = ", "one.toml: cannot be read", id="not-toml"),
        pytest.param("[settings]", "adapter is missing; one of files, sql", id="no-adapter"),
        pytest.param('adapter = "fles"', "there is no adapter 'fles'; did you mean files?", id="adapter-misspelt"),
        pytest.param('adapter = "sap"', "there is no adapter 'sap'; known are files, sql", id="adapter-unknown"),
        pytest.param(
            'adapter = "files"\nuser = "own"' + SETTINGS, "there is no setting user; did you mean users?", id="setting-misspelt"
        ),
        pytest.param('adapter = "files"\nusers = "some"' + SETTINGS, "users: Input should be 'own' or 'link'", id="users"),
        pytest.param(
            'adapter = "files"\ntime_zone = "Europe/Pari"' + SETTINGS, "time_zone: there is no time zone 'Europe/Pari'", id="zone"
        ),
        pytest.param('adapter = "files"\nmax_ended_share = 30' + SETTINGS, "max_ended_share: Input should be", id="share"),
        pytest.param('adapter = "files"\nevery_minutes = 0' + SETTINGS, "every_minutes: Input should be", id="minutes"),
        pytest.param('adapter = "files"', "settings.folder is missing", id="settings-missing"),
        pytest.param('adapter = "files"\n[settings]\nfolder = 1\n', "settings.folder: ", id="settings-wrong"),
        pytest.param('adapter = "files"\nsettings = 1\n', "settings", id="settings-no-table"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path, text, message):
    put(tmp_path, text)
    with pytest.raises(SourceError, match=re.escape(message)) as caught:
        open_source(tmp_path, "one")
    assert str(caught.value).startswith(str(tmp_path / "one.toml"))


def test_what_stands_in_the_wrong_place_is_not_repeated(tmp_path):
    """It may be a password."""
    put(tmp_path, 'adapter = "ispyb"\n[settings]\nurl = "mysql://x"\npassword_file = ["hunter2"]\n')
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path, "one")
    assert "hunter2" not in str(caught.value)


def test_a_source_without_a_file_is_told_from_those_that_have_one(tmp_path):
    put(tmp_path, "")
    assert find(tmp_path) == ["one"]
    with pytest.raises(SourceError, match="there is no such file; sources that have one: one"):
        open_source(tmp_path, "two")


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../etc", "-x", "a" * 101])
def test_a_name_that_could_be_another_file_is_refused(name):
    with pytest.raises(SourceError, match="is no name of a source"):
        named(name)
