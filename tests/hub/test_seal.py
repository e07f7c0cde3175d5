"""A database that was restored or copied is told from the one that went on, and a crash locks nobody out."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from databases import upgrade
from prometheus_client import REGISTRY
from running_hub import PATIENCE_SECONDS
from sqlalchemy import select, update
from typer.testing import CliRunner

import hutch
from hub.configuration import Hutch
from hub.database import seal
from hub.database.engine import deployment_id, open_database, sessions
from hub.database.tables import Deployment
from hub.facility import Facility
from hub.steward.__main__ import Steward

pytestmark = pytest.mark.any_database


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A database whose steward has worked, and the folder with the file beside it."""
    (tmp_path / "jupyterhub_config.py").write_text("c = get_config()\n")
    monkeypatch.setenv("HUTCH_CONFIG", str(tmp_path / "jupyterhub_config.py"))
    folder = tmp_path / ".hutch"
    database = open_database(f"sqlite:///{folder / 'hutch.sqlite'}")
    upgrade(database)
    deployment_id(database)
    assert holds(database, folder) and seal.renew(database, folder)
    return SimpleNamespace(database=database, folder=folder)


def holds(database, folder, of=""):
    with sessions(database).begin() as session:
        return seal.holds(session, folder, of)


def written(database):
    with sessions(database).begin() as session:
        return session.scalars(select(Deployment.seal)).one()


def set_back(database, to):
    """As a backup would, from when the seal was this."""
    with sessions(database).begin() as session:
        session.execute(update(Deployment).values(seal=to))


def test_a_database_that_goes_on_is_known_at_every_start(site):
    for _ in range(3):
        assert seal.renew(site.database, site.folder) and holds(site.database, site.folder)
    assert (site.folder / seal.FILE).read_text() == written(site.database)


def test_a_backup_is_known_even_if_it_was_made_a_pass_ago(site):
    backup = written(site.database)
    assert seal.renew(site.database, site.folder)
    set_back(site.database, backup)
    assert not holds(site.database, site.folder)
    assert not seal.renew(site.database, site.folder), "and it is not sealed over"
    assert not holds(site.database, site.folder)


def test_a_backup_from_before_the_first_start_is_known(site):
    set_back(site.database, None)
    assert not holds(site.database, site.folder)


def test_a_copy_elsewhere_is_known(site, tmp_path):
    shutil.copytree(site.folder, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(seal.FILE))
    copy = open_database(f"sqlite:///{tmp_path / 'elsewhere' / 'hutch.sqlite'}")
    assert written(copy) == written(site.database)
    assert not holds(copy, tmp_path / "elsewhere") and holds(site.database, site.folder)


@pytest.mark.parametrize("cut_off_at", [1, 2, 3])
def test_a_crash_while_it_is_changed_locks_nobody_out(site, cut_off_at, monkeypatch):
    """1: before the file is written; 2: before the database is; 3: before the file forgets the old one."""
    write, calls = seal._write, []

    def cut_off(folder, *seals):
        calls.append(seals)
        if len(calls) == 1 and cut_off_at > 1:
            write(folder, *seals)
        if (len(calls), cut_off_at) in ((1, 1), (1, 2), (2, 3)):
            raise KeyboardInterrupt

    monkeypatch.setattr(seal, "_write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        seal.renew(site.database, site.folder)
    monkeypatch.undo()
    assert holds(site.database, site.folder) and seal.renew(site.database, site.folder)
    assert (site.folder / seal.FILE).read_text() == written(site.database)


def run(*arguments):
    return CliRunner().invoke(hutch.app, arguments)


@pytest.mark.parametrize("option", ["--keep", "--new"])
def test_an_operator_decides_which_database_goes_on(site, option):
    before = deployment_id(site.database)
    set_back(site.database, "older")
    answer = run("db", "seal", option)
    assert answer.exit_code == 0 and deployment_id(site.database) in answer.output.replace("\n", "")
    assert (deployment_id(site.database) == before) is (option == "--keep")
    assert holds(site.database, site.folder) and seal.renew(site.database, site.folder)
    # what began under the old id has to begin anew
    assert holds(site.database, site.folder, before) is (option == "--keep")


@pytest.mark.parametrize("options", [(), ("--keep", "--new")])
def test_it_is_one_or_the_other(site, options):
    before = written(site.database)
    assert run("db", "seal", *options).exit_code == 2 and written(site.database) == before


def test_a_decision_that_is_cut_off_is_none(site, monkeypatch):
    set_back(site.database, "older")

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(seal, "_write", cut_off)
    run("db", "seal", "--new")
    monkeypatch.undo()
    assert not holds(site.database, site.folder)


def test_reconcile_refuses_on_a_copy(site):
    set_back(site.database, "older")
    answer = run("reconcile", "--dry-run")
    assert isinstance(answer.exception, hutch.HutchError) and "hutch db seal --keep" in str(answer.exception)


async def test_the_steward_acts_on_nothing_until_it_is_decided(site):
    hutch_settings = Hutch(state_dir=str(site.folder), database_url=site.database.url.render_as_string(hide_password=False))
    steward, done = Steward(Facility(hutch_settings), clouds={}, hub=None), []

    def task(name):
        async def work():
            done.append(name)

        return work

    async def one_round():
        done.clear()
        works = [asyncio.create_task(steward.repeat(task(name), 3600, acts=name == "purge")) for name in ("purge", "mail")]
        await until_async(lambda: not steward.sealed or "purge" in done)
        await until_async(lambda: "mail" in done)
        for work in works:
            work.cancel()
        return sorted(done), REGISTRY.get_sample_value("hutch_steward_may_act")

    assert await one_round() == (["mail", "purge"], 1)
    held = written(site.database)
    set_back(site.database, "older")
    assert await one_round() == (["mail"], 0)
    await steward.reconcile()
    assert written(site.database) == "older", "nor does it reconcile, which would need a cloud"
    set_back(site.database, held)
    steward.sealed = True
    assert await one_round() == (["mail", "purge"], 1)
    # under a new id it has to be started anew
    seal.decide(site.database, site.folder, new=True)
    assert await one_round() == (["mail"], 0)


async def until_async(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(0.01)


def test_the_file_is_replaced_whole(site):
    assert [file.name for file in Path(site.folder).iterdir() if file.name.startswith("seal")] == ["seal"]
