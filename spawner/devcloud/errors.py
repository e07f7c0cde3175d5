"""How each service says no: one exception, and the body that every service wraps around it."""

import html
import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

NOVA_FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    406: "notAcceptable",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
UNAUTHENTICATED = "The request you have made requires authentication."


class ApiError(Exception):
    """An answer other than success. `type` is Neutron's name of the error; the other services do not show it."""

    def __init__(self, status: int, message: str, type: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.headers = headers or {}


def bad_request(message: str, type: str = "") -> ApiError:
    return ApiError(400, message, type or "BadRequest")


def forbidden(message: str, type: str = "") -> ApiError:
    return ApiError(403, message, type or "Forbidden")


def not_found(message: str, type: str = "") -> ApiError:
    return ApiError(404, message, type or "NotFound")


def conflict(message: str, type: str = "") -> ApiError:
    return ApiError(409, message, type or "Conflict")


def unauthenticated() -> ApiError:
    return ApiError(401, UNAUTHENTICATED, "Unauthorized")


def title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def body_of(service: str, error: ApiError) -> dict[str, Any]:
    """The JSON body in which `service` reports `error`."""
    if service == "compute" and error.status != 401:
        fault: dict[str, Any] = {"code": error.status, "message": error.message}
        if "Retry-After" in error.headers:
            fault["retryAfter"] = error.headers["Retry-After"]
        return {NOVA_FAULTS.get(error.status, "computeFault"): fault}
    if service == "network" and error.status != 401:
        return {"NeutronError": {"type": error.type, "message": error.message, "detail": ""}}
    if service == "image" and error.status != 401:
        reason = title(error.status)
        return {"message": f"{error.message}<br /><br />\n\n\n", "code": f"{error.status} {reason}", "title": reason}
    if service == "placement" and error.status != 401:
        return {"errors": [{"status": error.status, "title": title(error.status), "detail": error.message}]}
    return {"error": {"code": error.status, "title": title(error.status), "message": error.message}}


def response(service: str, error: ApiError, accept: str = "application/json") -> web.Response:
    headers = dict(error.headers)
    if error.status == 401:
        headers.setdefault("WWW-Authenticate", 'Keystone uri="/identity"')
    if service == "image" and "json" not in accept and error.status != 401:
        reason, message = f"{error.status} {title(error.status)}", html.escape(error.message)
        # Glance writes a web page unless JSON was asked for by name.
        page = (
            f"<html>\n <head>\n  <title>{reason}</title>\n </head>\n"
            f" <body>\n  <h1>{reason}</h1>\n  {message}<br /><br />\n\n\n\n </body>\n</html>"
        )
        return web.Response(text=page, status=error.status, content_type="text/html", headers=headers)
    return web.Response(
        body=json.dumps(body_of(service, error)).encode(), status=error.status, content_type="application/json", headers=headers
    )
