"""Wires the portal together: routes, static files, what guards every answer, and pages for what goes wrong."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ..configuration import Hutch
from ..database.engine import open_database, sessions
from ..desktop.support import SupportError
from ..hub_session import hub_session
from ..sharing import SharingRefused
from . import launches, pages, rooms, sharing, staff, why
from .desk import UnknownPerson
from .guard import Guard
from .hub_api import ANSWER_SECONDS, HubRefusal, HubUnreachable, SignInNeeded
from .identity import AccessRefused, Identity
from .rendering import STATIC, Pages

log = structlog.get_logger("portal")


def create_app(hutch: Hutch) -> ASGIApp:
    """The whole service, at the address that JupyterHub gave it in the environment."""
    base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/services/portal/")
    app = FastAPI(lifespan=_lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.hutch = hutch
    app.state.sessions = sessions(open_database(hutch.database_url))
    app.state.identity = Identity(Path(hutch.state_dir) / "portal.key")
    app.state.pages = Pages(hutch, base)
    app.state.public_host = _origin(hub_address())
    for module in (pages, launches, why, staff, rooms, sharing):
        app.include_router(module.routes, prefix=base.rstrip("/"))
    app.add_api_route(f"{base}oauth_callback", app.state.identity.come_back, response_model=None)
    app.add_api_route(f"{base}sign-out", lambda: app.state.identity.sign_out(hub_address()), response_model=None)
    for name, folder in STATIC.items():
        # without the folder that tools/setup makes, only the page that needs it fails
        app.mount(f"{base}static/{name}", StaticFiles(directory=folder, check_dir=False))
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return Guard(app, own_origin=_origin(os.environ.get("JUPYTERHUB_PUBLIC_URL", "")), connects_to=rooms.relay_origins())


def hub_address() -> str:
    """Where browsers find the hub's own pages, with a slash at the end."""
    return os.environ.get("JUPYTERHUB_PUBLIC_HUB_URL") or (
        os.environ.get("JUPYTERHUB_HOST", "") + os.environ.get("JUPYTERHUB_BASE_URL", "/") + "hub/"
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with hub_session(ANSWER_SECONDS) as app.state.hub:
        yield


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


# --- what goes wrong


def _sign_in(request: Request, _error: SignInNeeded) -> Response:
    if request.headers.get("HX-Request"):
        # a part of a page cannot sign in; the whole page can
        return Response(headers={"HX-Refresh": "true"})
    if request.headers.get("Accept") == "text/event-stream":
        return Response(status_code=204)
    if request.method == "GET":
        return request.app.state.identity.send_to_sign_in(_next_path(request))
    return _page(request, 401, "signed-out")


def _next_path(request: Request) -> str:
    base = request.app.state.pages.base
    if request.url.path == f"{base}oauth_callback":
        return base
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _http(request: Request, error: HTTPException) -> Response:
    kind = {403: "refused", 404: "not-found"}.get(error.status_code, "other")
    return _page(request, error.status_code, kind, message=error.detail)


def _hub_unreachable(request: Request, error: HubUnreachable) -> Response:
    log.warning("hub-unreachable", path=request.url.path, reason=str(error))
    answer = _page(request, 503, "hub-unreachable")
    answer.headers["Retry-After"] = "10"
    return answer


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", path=request.url.path, exc_info=error)
    return _page(request, 500, "unexpected")


def _page(request: Request, status: int, kind: str, **context: Any) -> HTMLResponse:
    return request.app.state.pages.render(
        request, "error.html", status=status, kind=kind, phrase=HTTPStatus(status).phrase, **context
    )


HANDLERS: dict[type[Exception], Callable[..., Response]] = {
    SignInNeeded: _sign_in,
    AccessRefused: lambda request, _error: _page(request, 403, "refused"),
    UnknownPerson: lambda request, _error: _page(request, 403, "unknown-person"),
    HubUnreachable: _hub_unreachable,
    HubRefusal: lambda request, error: _page(request, 409, "hub-refused", message=str(error)),
    SharingRefused: lambda request, error: _page(request, 403, "hub-refused", message=str(error)),
    SupportError: lambda request, error: _page(request, 409, "hub-refused", message=str(error)),
    HTTPException: _http,
    RequestValidationError: lambda request, _error: _page(request, 400, "other"),
    Exception: _unexpected,
}
