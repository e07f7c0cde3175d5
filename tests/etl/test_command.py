"""The command line as people call it: what it prints, and its exit status."""

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import etl
import hutch

EXAMPLE = str(Path(etl.__file__).parent / "example")


@pytest.fixture
def engine():
    """The commands open the database of their own deployment."""


@pytest.fixture
def deployment(tmp_path):
    (tmp_path / "jupyterhub_config.py").write_text("c.Hutch.contact = 'us'\n")
    return tmp_path


@pytest.fixture
def process(deployment):
    """`hutch WORDS` as a process: its status, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, hutch.__file__, *words],
            cwd=deployment,
            env={"PATH": os.environ["PATH"], "COLUMNS": "200", "PYTHONPATH": str(Path(hutch.__file__).parent)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def call(deployment, monkeypatch, capsys):
    """The same within this process, which is ten times as quick."""
    monkeypatch.chdir(deployment)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(hutch, "leave", sys.exit)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hutch", *words])
        monkeypatch.setenv("HUTCH_CONFIG", "")
        with pytest.raises(SystemExit) as ended:
            hutch.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def test_from_nothing_to_a_loaded_facility(process):
    assert process("db", "upgrade") == (0, "the database is now at revision 0001\n", "")
    assert process("db", "upgrade") == (0, "the database was already at revision 0001\n", "")
    assert process("db", "current")[0] == 0
    status, out, _ = process("etl", "load", EXAMPLE, "--dry-run")
    assert (status, "Would change" in out) == (0, True)
    status, out, _ = process("etl", "load", EXAMPLE)
    assert (status, "Loaded (run 1)" in out, "Rejected" in out) == (0, True, False)
    experiments = next(line for line in out.splitlines() if "experiment " in line)
    assert experiments.replace("│", " ").split() == ["experiment", "120", "0", "0", "0", "0", "0"]


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
    status, _, err = call("--config", str(tmp_path / "jupyterhub_config.py"), "etl", "load", EXAMPLE)
    assert status == 1 and re.match(r"^hutch: sqlite:.* stayed locked by another writer for .* seconds; try again later$", err)


def test_starting_it_is_cheap():
    """`hutch --help` must not import a database, a cloud or a hub."""
    program = (
        "import sys, hutch; print(sorted({'sqlalchemy', 'alembic', 'pydantic', 'openstack', 'jupyterhub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(hutch.__file__).parent
    )
    assert done.stdout == "[]\n"


@pytest.fixture
def source(tmp_path, office):
    """A source `one` with a file of its own, which reads the folder of the office."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "one.toml").write_text('adapter = "files"\nevery_minutes = 60\n[settings]\nfolder = "../office"\n')
    return office


def cells(out: str) -> list[list[str]]:
    """The rows of all tables that were printed."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_a_source_is_planned_run_looked_back_upon_and_undone(call, source):
    call("db", "upgrade")
    assert call("etl", "run", "one")[0] == 0
    source.put("users", "id,login,given_name,family_name,affiliation_id", "1,ann,Ann,[red]Berg,nth", "2,bob,Bob,Okafor,", "3,c,,C,")
    source.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,principal-investigator")
    change = ["user", "1", "family_name", "Lindqvist", "[red]Berg"]
    status, out, _ = call("etl", "plan", "one")
    assert status == 0
    assert change in cells(out)
    assert ["user", "3", "", "", "added"] in cells(out)
    assert ["experiment_member", "P1-1,2", "", "holds", "ended"] in cells(out)
    assert "Loaded (run 2)" in call("etl", "run", "one")[1]
    assert change in cells(call("etl", "history", "--run", "2")[1])
    status, out, _ = call("etl", "undo", "2")
    assert (status, ["user", "1", "1"] in cells(out)) == (0, True)
    runs = cells(call("etl", "history", "one")[1])
    assert [row[:3] for row in runs] == [["3", "one", "undo of 2"], ["2", "one", "load"], ["1", "one", "load"]]
    assert cells(call("etl", "history", "two")[1]) == []


def test_the_status_of_each_source_is_shown(call, source, tmp_path):
    call("db", "upgrade")
    (tmp_path / "sources" / "bad.toml").write_text('adapter = "fles"')
    source.put("users", "id,login,family_name", "1,ANN,Lindqvist")
    call("etl", "run", "one")
    out = call("etl", "status")[1]
    bad, one = (row for row in cells(out) if row[0])
    assert (bad[0], bad[3]) == ("bad", "never")
    assert "there is no adapter 'fles'" in "".join(row[-1] + " " for row in cells(out))
    assert (one[0], one[1], one[2], one[4]) == ("one", "files", "60", "done")
    assert one[6] == "3"


def test_what_cannot_be_undone_or_linked_is_one_line(call, source):
    call("db", "upgrade")
    assert call("etl", "undo", "7") == (1, "", "hutch: run 7 changed nothing, or there is no such run; see `hutch etl history`\n")
    assert call("etl", "link", "one", "77", "99") == (1, "", "hutch: there is no user with the id '99'\n")
    assert "there is no such file; sources that have one: one" in call("etl", "run", "two")[2]
