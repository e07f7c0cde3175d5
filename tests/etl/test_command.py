"""The command line as people call it: what it prints, and its exit status."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import etl
import hutch

EXAMPLE = str(Path(etl.__file__).parent / "example")


@pytest.fixture
def call(tmp_path):
    (tmp_path / "jupyterhub_config.py").write_text("c.Hutch.contact = 'us'\n")

    def call(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, hutch.__file__, *words],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "COLUMNS": "200", "PYTHONPATH": str(Path(hutch.__file__).parent)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return call


def test_from_nothing_to_a_loaded_facility(call):
    assert call("db", "upgrade") == (0, "the database is now at revision 0001\n", "")
    assert call("db", "upgrade") == (0, "the database was already at revision 0001\n", "")
    assert call("db", "current")[0] == 0
    status, out, _ = call("etl", "load", EXAMPLE, "--dry-run")
    assert (status, "Would change" in out) == (0, True)
    status, out, _ = call("etl", "load", EXAMPLE)
    assert (status, "Loaded (run 1)" in out, "Rejected" in out) == (0, True, False)
    experiments = next(line for line in out.splitlines() if "experiment " in line)
    assert experiments.replace("│", " ").split() == ["experiment", "120", "0", "0", "0", "0"]


def test_rejected_rows_are_shown_as_they_were_written(call, office):
    call("db", "upgrade")
    office.put("users", "id,login,family_name", "1,ann,[bold]L[/bold]", "2,[red]bob,Okafor", "5,eve,Eve")
    status, out, _ = call("etl", "load", str(office.folder))
    assert status == 0
    assert "Rejected rows" in out
    assert "not '[red]bob'" in out


def test_a_refused_load_says_why_and_how_to_go_on(call, office):
    call("db", "upgrade")
    call("etl", "load", str(office.folder))
    office.put("experiment_members", "experiment_id,user_id,role")
    status, out, err = call("etl", "load", str(office.folder))
    assert status == 1
    assert "Refused" in out
    assert "experiment_member: all 2 records would end" in err
    assert "--allow-removals" in err
    assert call("etl", "load", str(office.folder), "--allow-removals")[0] == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        pytest.param(["etl", "load", EXAMPLE], 1, "hutch: the database is at revision none", id="no-database"),
        pytest.param(["db", "current"], 1, "run `hutch db upgrade`", id="not-current"),
        pytest.param(["--config", "nowhere.py", "db", "current"], 1, "nowhere.py: no such file", id="no-configuration"),
        pytest.param(["etl", "load"], 2, "Missing argument", id="no-folder-given"),
        pytest.param(["etl", "fetch"], 2, "No such command", id="unknown-command"),
        pytest.param(["etl", "load", ".", "--fast"], 2, "No such option", id="unknown-option"),
    ],
)
def test_what_cannot_be_done_is_said_without_a_traceback(call, words, status, message):
    found, _, err = call(*words)
    assert found == status
    assert message in err
    assert "Traceback" not in err
    assert status == 2 or err.count("\n") == 1


def test_an_unusable_source_is_one_line(call, tmp_path):
    call("db", "upgrade")
    assert call("etl", "load", "nowhere") == (
        1,
        "",
        "hutch: nowhere: there is no such folder; name one that holds users.csv, experiments.csv and the rest\n",
    )


def test_a_locked_database_is_one_line(call, tmp_path, monkeypatch):
    call("db", "upgrade")
    other = sqlite3.connect(tmp_path / ".hutch" / "hutch.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("hub.database.engine.BUSY_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(sys, "argv", ["hutch", "--config", str(tmp_path / "jupyterhub_config.py"), "etl", "load", EXAMPLE])
    monkeypatch.setenv("HUTCH_CONFIG", "")
    with pytest.raises(SystemExit, match=r"^hutch: sqlite:.* stayed locked by another writer for .* seconds; try again later$"):
        hutch.main()


def test_starting_it_is_cheap():
    """`hutch --help` must not import a database, a cloud or a hub."""
    program = (
        "import sys, hutch; print(sorted({'sqlalchemy', 'alembic', 'pydantic', 'openstack', 'jupyterhub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(hutch.__file__).parent
    )
    assert done.stdout == "[]\n"
