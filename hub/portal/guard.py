"""What holds for every request and answer: no foreign page may act here, and no page may run what is not ours."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    # data: is for the small pictures in Bootstrap's style sheet
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
PRIVATE = "private, no-cache"
FOR_EVER = "public, max-age=31536000, immutable"


def is_own_request(method: str, headers: Headers, own_origin: str, scheme: str) -> bool:
    """Whether our own pages sent it. Browsers say so in Sec-Fetch-Site; older ones name the page's origin at least."""
    if method in SAFE_METHODS:
        return True
    if site := headers.get("Sec-Fetch-Site"):
        return site == "same-origin"
    return headers.get("Origin") == (own_origin or f"{scheme}://{headers.get('Host')}")


class Guard:
    """Stands before the whole application, its error pages too."""

    def __init__(self, app: ASGIApp, own_origin: str = "", connects_to: str = "") -> None:
        """connects_to: other origins that our pages' scripts may reach."""
        self._app = app
        policy = HEADERS["Content-Security-Policy"].replace("connect-src 'self'", f"connect-src 'self' {connects_to}".strip())
        self._headers = HEADERS | {"Content-Security-Policy": policy}
        self._own_origin = own_origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                # a static file's address changes with its content
                versioned = "/static/" in scope["path"] and scope["query_string"].startswith(b"v=")
                headers["Cache-Control"] = FOR_EVER if versioned and message["status"] == 200 else PRIVATE
            await send(message)

        app = self._app
        if not is_own_request(scope["method"], Headers(scope=scope), self._own_origin, scope["scheme"]):
            app = PlainTextResponse("This request did not come from a page of Hutch, so nothing was done.", status_code=403)
        await app(scope, receive, send_guarded)
