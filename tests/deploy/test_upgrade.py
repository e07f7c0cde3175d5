"""deploy/upgrade in a folder of its own: real git, a real database, backup and migration; systemctl and setting up are stand-ins.

The stand-in for systemctl keeps which units run, and serves the hub's health for the version that `current` points to.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyterhub.orm import new_session_factory
from running_hub import REPOSITORY, free_port

# each starts a dozen processes, one after another
pytestmark = pytest.mark.timeout(600)

DEPLOY = REPOSITORY / "deploy"
# a version's programs are these tests', run in the version's own folder
SETUP = f"""#!/bin/sh
cd "$(dirname "$0")/.." && mkdir -p .venv/bin
for program in hutch jupyterhub; do
    printf '#!/bin/sh\\nPYTHONPATH=%s exec {sys.executable} -P -m %s "$@"\\n' "$PWD" "$program" >.venv/bin/$program
    chmod +x .venv/bin/$program
done
"""
SYSTEMCTL = """#!/bin/sh
echo "$(basename "$(readlink -f "$HUTCH_ROOT/current")") $*" >>"$SANDBOX/calls"
case "$*" in
    *is-enabled*) exit 0 ;;
    # -9: what a script starts that ignores a signal ignores it too, unlike what systemd starts
    stop*) kill -9 "$(cat "$SANDBOX/pid")" 2>/dev/null; rm -f "$SANDBOX/pid"; exit 0 ;;
    start*) if [ ! -e "$HUTCH_ROOT/current/does-not-start" ]; then
            cd "$HUTCH_ROOT/current" && {python} -m http.server -b 127.0.0.1 {port} >/dev/null 2>&1 & echo $! >"$SANDBOX/pid"; fi ;;
esac
"""
CONFIG = """
import hub
from pathlib import Path
c = get_config()
c.Hutch.state_dir = "state"
hub.install(c, Path(__file__))
"""
NEW_TABLE = '''"""One more table."""
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9999", {head!r}
def upgrade():
    op.create_table("of_the_next_version", sa.Column("id", sa.Integer))
    {then}
'''


@dataclass
class Sandbox:
    folder: Path
    environment: dict[str, str]

    @property
    def current(self) -> str:
        return (self.folder / "opt/current").resolve().name

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def tables(self) -> set[str]:
        return {name for (name,) in self.ask("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def ask(self, statement: str) -> list[tuple[str, ...]]:
        """Of the facility's database, and lets go of it: restoring refuses while somebody has it open."""
        with closing(sqlite3.connect(self.folder / "state/hutch.sqlite", isolation_level=None)) as database:
            return database.execute(statement).fetchall()

    def upgrade(self, tag: str) -> subprocess.CompletedProcess[str]:
        command = [self.folder / "opt/current/deploy/upgrade", tag]
        # root's, where a machine is hardened
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, umask=0o077)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder / "origin", check=True, capture_output=True, text=True
        )
        return done.stdout

    def release(self, tag: str, files: dict[str, str]) -> None:
        """The version before it, with these files changed."""
        self.git("checkout", "-q", "-B", tag, "v1")
        for name, content in files.items():
            (self.folder / "origin" / name).write_text(content)
        self.git("add", "-f", ".")
        self.git("commit", "-q", "-m", tag)
        self.git("tag", "-f", tag)
        self.git("checkout", "-q", "--detach")
        self.git("branch", "-D", tag)


@pytest.fixture
def sandbox(tmp_path):
    """Version v1 runs."""
    programs, origin, port = tmp_path / "bin", tmp_path / "origin", free_port()
    programs.mkdir()
    stands_in = {
        "systemctl": SYSTEMCTL.replace("{python}", sys.executable).replace("{port}", str(port)),
        "runuser": '#!/bin/sh\nshift 3\nexec "$@"\n',
    }
    for name, script in stands_in.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    ignored = shutil.ignore_patterns("__pycache__", "tests", "static")
    for name in ("hub", "etl", "spawner", "deploy"):
        shutil.copytree(REPOSITORY / name, origin / name, ignore=ignored)
    shutil.copy(REPOSITORY / "hutch.py", origin)
    (origin / "tools").mkdir()
    (origin / "tools/setup").write_text(SETUP)
    (origin / "tools/setup").chmod(0o755)
    (tmp_path / "jupyterhub_config.py").write_text(CONFIG)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SANDBOX": str(tmp_path),
        "HUTCH_ROOT": str(tmp_path / "opt"),
        "HUTCH_CONFIG": str(tmp_path / "jupyterhub_config.py"),
        "HUTCH_BACKUPS": str(tmp_path / "backups"),
        "HUTCH_SYSTEMD": str(tmp_path / "systemd"),
        "HUTCH_HEALTH": f"http://127.0.0.1:{port}/hutch.py",
    }
    made = Sandbox(tmp_path, environment)
    made.git("init", "-q")
    made.git("add", "-f", ".")
    made.git("commit", "-q", "-m", "v1")
    made.git("tag", "v1")
    (tmp_path / "opt").mkdir()
    (tmp_path / "systemd").mkdir()
    subprocess.run(["git", "clone", "-q", "--branch", "v1", origin, tmp_path / "opt/v1"], check=True, capture_output=True)
    subprocess.run([tmp_path / "opt/v1/tools/setup"], check=True)
    (tmp_path / "opt/current").symlink_to(tmp_path / "opt/v1")
    subprocess.run([tmp_path / "opt/v1/.venv/bin/hutch", "db", "upgrade"], env=environment, check=True, capture_output=True)
    # as the hub's first start makes it
    new_session_factory(f"sqlite:///{tmp_path}/state/jupyterhub.sqlite")
    made.ask("INSERT INTO instrument (id, name, source) VALUES ('ID16', 'kept', 'test')")
    subprocess.run(["systemctl", "start", "hutch-hub"], env=environment, check=True)
    yield made
    subprocess.run(["systemctl", "stop"], env=environment, check=True)


def head() -> str:
    return sorted(file.stem[:4] for file in (REPOSITORY / "hub/database/migrations/versions").glob("*.py"))[-1]


def migration(then: str = "") -> dict[str, str]:
    return {"hub/database/migrations/versions/9999_next.py": NEW_TABLE.format(head=head(), then=then)}


def test_a_new_version_is_set_up_beside_the_old_one_and_takes_over(sandbox):
    unit = "deploy/systemd/hutch-hub.service"
    sandbox.release("v2", migration() | {unit: "# of v2\n"})
    done = sandbox.upgrade("v2")
    assert done.returncode == 0, done.stderr
    assert (sandbox.folder / "systemd/hutch-hub.service").read_text() == "# of v2\n"
    assert sandbox.current == "v2" and "of_the_next_version" in sandbox.tables()
    orders = [call for call in sandbox.calls[1:] if "is-enabled" not in call]
    assert orders == ["v1 stop hutch-hub hutch-etl", "v2 daemon-reload", "v2 start hutch-hub hutch-etl"], "the proxy is left alone"
    assert len(list((sandbox.folder / "backups").iterdir())) == 1
    made = [path for path in (sandbox.folder / "opt/v2").rglob("*") if not path.is_symlink()]
    assert [path for path in made if not path.stat().st_mode & 0o004] == [], "the hub's account can read all of it"
    again = sandbox.upgrade("v2")
    assert again.returncode == 1 and "v2 is what runs" in again.stderr


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param(migration('raise RuntimeError("cannot be migrated")'), "cannot be migrated", id="its migration fails"),
        pytest.param(migration() | {"does-not-start": ""}, "", id="its hub does not start"),
    ],
)
def test_a_version_that_fails_is_taken_back_with_its_databases(sandbox, files, why):
    tables = sandbox.tables()
    sandbox.release("v2", files)
    sandbox.environment["HUTCH_PATIENCE"] = "2"
    done = sandbox.upgrade("v2")
    assert done.returncode == 1 and why in done.stderr and "v1 runs again" in done.stderr, done.stderr[-3000:]
    assert (sandbox.current, sandbox.calls[-1]) == ("v1", "v1 start hutch-hub hutch-etl")
    assert sandbox.tables() == tables
    assert (sandbox.folder / "systemd/hutch-hub.service").read_text() == (DEPLOY / "systemd/hutch-hub.service").read_text()
    assert sandbox.ask("SELECT name FROM instrument") == [("kept",)]
    sandbox.release("v3", migration())
    assert sandbox.upgrade("v3").returncode == 0, "the next one finds all in order"


def test_what_cannot_be_set_up_disturbs_nobody(sandbox):
    sandbox.release("v2", {"tools/setup": "#!/bin/sh\nexit 1\n"})
    assert sandbox.upgrade("v2").returncode != 0
    assert sandbox.upgrade("no-such-tag").returncode != 0
    assert sandbox.current == "v1"
    assert not [call for call in sandbox.calls if "stop" in call]
