"""Templates, and what every page needs: addresses, the facility's name, times as people read them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from jupyterhub._data import DATA_FILES_PATH

from ..access import Visit
from ..configuration import Hutch
from . import views, wording

HERE = Path(__file__).parent
NODE_MODULES = HERE.parents[1] / "node_modules"
# the first part of a static file's path, and the folder it stands for; the hub's own pages are on another host
STATIC = {
    "hub": Path(DATA_FILES_PATH) / "static",
    "htmx": NODE_MODULES / "htmx.org" / "dist",
    "sse": NODE_MODULES / "htmx-ext-sse" / "dist",
    "portal": HERE / "static",
    # made from browser/ by tools/setup
    "desktop": HERE / "built",
}


class Pages:
    """Renders the templates. base: the path under which the portal is served."""

    def __init__(self, hutch: Hutch, base: str) -> None:
        self.base = base
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Jinja's own `capitalize` would make the rest small
        self._environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
        words = {"exact": wording.exact, "relative": wording.relative, "size": wording.size, "expectation": wording.expectation}
        site = {"base": base, "facility": hutch.facility_name, "contact": hutch.contact}
        self._environment.globals.update(site, **words, looks=views.LOOKS, when=_when)

    def render(self, request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        return HTMLResponse(self.fragment(request, template, status=status, **context), status_code=status)

    def fragment(self, request: Request, template: str, **context: Any) -> str:
        def asset(path: str) -> str:
            return f"{self.base}static/{path}?v={_version(path)}"

        login = getattr(request.state, "login", None)
        return self._environment.get_template(template).render(
            asset=asset,
            login=login,
            method=request.method,
            path=request.url.path.removeprefix(self.base),
            now=datetime.now(UTC),
            **context,
        )


def _when(visit: Visit) -> views.Moment:
    return views.visit_when(visit, datetime.now(UTC))


@cache
def _version(path: str) -> str:
    folder, _, file = path.partition("/")
    return hashlib.sha256((STATIC[folder] / file).read_bytes()).hexdigest()[:10]
