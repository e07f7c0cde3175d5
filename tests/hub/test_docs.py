"""What the README and docs/ name is there: pages and their headings, files, settings, commands, what make makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyterhub.app import JupyterHub
from jupyterhub.auth import Authenticator
from jupyterhub.crypto import CryptKeeper
from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub.spawner import Spawner
from typer.main import get_command

from hub.configuration import Hutch
from hub.sign_on import FacilityAuthenticator
from hutch import app
from spawner.openstack import OpenStackSpawner

pytestmark = pytest.mark.any_database

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ROOMS = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
CONFIGURED = (
    Hutch,
    OpenStackSpawner,
    FacilityAuthenticator,
    JupyterHub,
    Authenticator,
    Spawner,
    ConfigurableHTTPProxy,
    CryptKeeper,
)
SETTINGS = {f"c.{one.__name__}.{name}" for one in CONFIGURED for name in one.class_trait_names(config=True)}
MADE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def missing(page: Path) -> Iterator[str]:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in headings(target)):
            yield link
    yield from (path for path in re.findall(rf"`((?:{ROOMS})/[\w./-]+)`", text) if not (ROOT / path).exists())
    yield from set(re.findall(r"\bc\.[A-Z]\w+\.[a-z]\w+", text)) - SETTINGS
    yield from (f"make {name}" for name in re.findall(r"(?:`| {4})make ([a-z-]+)", text) if name not in MADE)
    yield from (f"hutch {words}" for words in re.findall(r"(?:`| {4}|_)hutch ([a-z]+(?: [a-z]+)?)", text) if not is_command(words))


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    return {
        re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    }


def is_command(words: str) -> bool:
    group, (first, *rest) = get_command(app), words.split()
    found = group.commands.get(first)  # type: ignore[attr-defined]
    return found is not None and (not hasattr(found, "commands") or not rest or rest[0] in found.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    assert not list(missing(page))


def test_what_is_not_there_is_found(tmp_path):
    page = tmp_path / "page.md"
    names = ["c.Hutch.no", "make no", "hutch no", "hutch etl no", "hutch etl run NAME", "hub/no.py"]
    page.write_text("# Yes\n[yes](#yes) [no](no.md) [no](#no) " + " ".join(f"`{one}`" for one in names))
    assert sorted(missing(page)) == ["#no", "c.Hutch.no", "hub/no.py", "hutch etl no", "hutch no", "make no", "no.md"]
