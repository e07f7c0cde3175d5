"""Nova's version documents, and which microversion a request asks for."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import ApiError, bad_request

Version = tuple[int, int]
MINIMUM: Version = (2, 1)
MAXIMUM: Version = (2, 93)  # as in Zed
DISCOVERY = ("/compute", "/compute/", "/compute/v2.1", "/compute/v2.1/")


def text_of(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def asked_version(request: web.Request) -> Version:
    """The microversion of a request. The newer header wins; without one it is the oldest."""
    text = request.headers.get("X-OpenStack-Nova-API-Version")
    for part in request.headers.get("OpenStack-API-Version", "").split(","):
        service, _, number = part.strip().partition(" ")
        if service == "compute":
            text = number.strip()
    if text is None:
        return MINIMUM
    if text == "latest":
        return MAXIMUM
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()) or (len(minor) > 1 and minor.startswith("0")):
        raise bad_request(f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum.")
    version = (int(major), int(minor))
    if not MINIMUM <= version <= MAXIMUM:
        message = f"Version {text} is not supported by the API. Minimum is {text_of(MINIMUM)} and maximum is {text_of(MAXIMUM)}."
        raise ApiError(406, message)
    return version


def headers_for(version: Version) -> dict[str, str]:
    return {
        "OpenStack-API-Version": f"compute {text_of(version)}",
        "X-OpenStack-Nova-API-Version": text_of(version),
        "Vary": "OpenStack-API-Version, X-OpenStack-Nova-API-Version",
    }


class NovaVersions:
    def __init__(self, base_url: Callable[[], str]) -> None:
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        return [web.get(path, self.all if "v2.1" not in path else self.one) for path in DISCOVERY]

    def _version(self) -> dict[str, Any]:
        return {
            "id": "v2.1",
            "status": "CURRENT",
            "version": text_of(MAXIMUM),
            "min_version": text_of(MINIMUM),
            "updated": "2013-07-23T11:33:21Z",
            "links": [{"rel": "self", "href": self._base_url() + "/compute/v2.1/"}],
        }

    async def all(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": [self._version()]})

    async def one(self, request: web.Request) -> web.Response:
        media = [{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}]
        return web.json_response({"version": self._version() | {"media-types": media}})
