"""Who is in the notebook, so that somebody who may no longer be there is out at once.

JupyterHub's single-user server believes for five minutes what the hub said of a person, and asks no more about a connection that
is open (jupyterhub.services.auth, `cache_max_age`).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

FAREWELL = "Your access to this notebook has ended."
# ref: RFC 6455, section 7.4.1
POLICY_VIOLATION = 1008
REMEMBERED_BY_A_REQUEST = ("_jupyterhub_user", "_cached_hub_user")


class Visitors:
    """Stands between the server and its identity provider, and notes whom that lets in."""

    def __init__(self, server: Any) -> None:
        self._auth = server.identity_provider.hub_auth
        self._ask = server.identity_provider.get_user
        self._names: WeakKeyDictionary[RequestHandler, str] = WeakKeyDictionary()
        self._sent_away = 0
        server.identity_provider.get_user = self._get_user

    def send_away(self, name: str) -> None:
        """Closes what this person has open, and forgets what the hub said of anybody."""
        self._sent_away += 1
        self._auth.cache.clear()
        for handler in [handler for handler, who in self._names.items() if who == name]:
            _close(handler)

    async def _get_user(self, handler: RequestHandler) -> Any:
        while True:
            before = self._sent_away
            user = await self._ask(handler)
            if before == self._sent_away:
                break
            # the hub's answer was on its way when somebody was sent away, and may be about them
            self._auth.cache.clear()
            for name in REMEMBERED_BY_A_REQUEST:
                vars(handler).pop(name, None)
        if user is not None:
            self._names[handler] = user.username
        return user


def _close(handler: RequestHandler) -> None:
    if isinstance(handler, WebSocketHandler) and handler.ws_connection:
        stream: Any = handler.ws_connection.stream
        handler.close(POLICY_VIOLATION, FAREWELL)
    elif not handler._finished:
        stream = handler.request.connection.stream  # type: ignore[union-attr]
    else:
        return  # what it was sent over may serve somebody else by now
    # not when the other side has taken leave too: until then it could go on
    stream.close()
