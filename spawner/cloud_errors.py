"""What goes wrong with a cloud: what openstacksdk raised, sorted into kinds, each with a plain sentence for people."""

from __future__ import annotations

from enum import StrEnum

import keystoneauth1.exceptions as keystone_errors
import openstack.exceptions as sdk_errors
import requests.exceptions as http_errors

# what openstacksdk and the layers below it raise; and for an answer that is not JSON, or not of the shape that was asked for
CALL_ERRORS = (
    *(sdk_errors.SDKException, keystone_errors.ClientException, http_errors.RequestException, OSError),
    *(ValueError, LookupError, TypeError, AttributeError),
)
# lasting, until the site mends it: to ask again is of no use, and the cloud is not down
MISCONFIGURED = (
    *(sdk_errors.ConfigException, keystone_errors.MissingAuthPlugin, keystone_errors.MissingRequiredOptions),
    keystone_errors.EndpointNotFound,
)
REFUSED_TO_SIGN_IN = (
    *(keystone_errors.Unauthorized, keystone_errors.Forbidden, keystone_errors.BadRequest, keystone_errors.AuthorizationFailure),
)


class Trouble(StrEnum):
    """Kinds of failure that are dealt with differently."""

    UNANSWERED = "cloud-unanswered"  # it may have been done, or not
    REFUSED = "cloud-refused"
    NOT_FOUND = "cloud-not-found"
    CONFLICT = "cloud-conflict"
    QUOTA = "quota"
    CAPACITY = "capacity"
    CLOSED = "zone-closed"  # no host of the availability zone is in use
    CREDENTIALS = "cloud-credentials"


NO_ROOM = {
    Trouble.QUOTA: "The facility's share of the cloud is used up.",
    Trouble.CAPACITY: "There is no room in the cloud for this plan just now.",
}
# in an answer, or, where others were faster after it was taken, as the fault of a server. "Over a limit": Keystone's unified limits
NO_ROOM_WORDS = {
    **dict.fromkeys(("quota exceeded", "is over a limit"), Trouble.QUOTA),
    **dict.fromkeys(("no valid host", "no more ip addresses"), Trouble.CAPACITY),
}


def shortage_in(words: str) -> Trouble | None:
    """What is used up, by the words of Nova or Neutron."""
    return next((trouble for known, trouble in NO_ROOM_WORDS.items() if known in words.lower()), None)


class CloudError(Exception):
    """str() is a plain sentence for people; detail is the cloud's own words, for operators.

    pause_seconds: how long the cloud asks to wait. too_many: it was not done, only because there are too many calls just now.
    """

    def __init__(
        self, trouble: Trouble, sentence: str, detail: str = "", *, pause_seconds: float = 0.0, too_many: bool = False
    ) -> None:
        super().__init__(sentence)
        self.trouble, self.detail = trouble, detail
        self.pause_seconds, self.too_many = pause_seconds, too_many


def cloud_error(error: Exception, asked: str) -> CloudError:
    """Sorts what openstacksdk raised while `asked` ('create the server') was asked for."""
    detail = str(getattr(error, "details", "") or error) or repr(error)
    if isinstance(error, MISCONFIGURED):
        return CloudError(Trouble.CREDENTIALS, f"The cloud is not configured rightly, so it could not {asked}.", detail)
    if "certificate verify failed" in detail or "certificate bundle" in detail:
        sentence = f"Hutch does not trust the cloud's certificate, so the cloud could not {asked}."
        return CloudError(Trouble.CREDENTIALS, sentence, detail)
    if isinstance(error, sdk_errors.HttpException):
        return _http_error(error, asked, detail)
    if isinstance(error, sdk_errors.DuplicateResource):
        sentence = f"The cloud has several of that name, so it could not {asked}. The facility's settings must give its id."
        return CloudError(Trouble.REFUSED, sentence, detail)
    # of an application credential that was revoked Keystone says 404
    if isinstance(error, REFUSED_TO_SIGN_IN) or "Could not find Application Credential" in detail:
        return CloudError(Trouble.CREDENTIALS, f"The cloud does not accept Hutch's credentials, so it could not {asked}.", detail)
    return CloudError(Trouble.UNANSWERED, f"The cloud did not answer when asked to {asked}.", detail)


def _http_error(error: sdk_errors.HttpException, asked: str, detail: str) -> CloudError:
    status = error.response.status_code if error.response is not None else 0
    if 400 <= status < 500 and (shortage := shortage_in(detail)):
        return CloudError(shortage, NO_ROOM[shortage], detail)
    if status == 400 and "availability zone is not available" in detail.lower():
        return CloudError(Trouble.CLOSED, "The part of the cloud that this plan is for is not available.", detail)
    if status == 404 and is_not_found(error):
        return CloudError(Trouble.NOT_FOUND, f"The cloud does not have what was needed to {asked}.", detail)
    if status == 409:
        return CloudError(Trouble.CONFLICT, f"The cloud could not {asked} in the present state.", detail)
    if status == 401:
        return CloudError(Trouble.CREDENTIALS, f"The cloud does not accept Hutch's credentials, so it could not {asked}.", detail)
    if 400 <= status < 500 and status not in (404, 408, 429):
        return CloudError(Trouble.REFUSED, f"The cloud refused to {asked}.", detail)
    why = "has too many requests just now" if status == 429 else "has a problem"
    sentence, words = f"The cloud {why} and could not {asked}.", f"HTTP {status}: {detail}"
    pause = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    seconds = float(pause) if pause.isdecimal() else 0.0
    return CloudError(Trouble.UNANSWERED, sentence, words, pause_seconds=seconds, too_many=status == 429)


def is_not_found(error: sdk_errors.HttpException) -> bool:
    """A 404 of Nova, Neutron or Glance itself; one from a broken proxy before them proves nothing."""
    try:
        body = error.response.json() if error.response is not None else None
    except ValueError:
        return False
    return isinstance(body, dict) and bool({"itemNotFound", "NeutronError"} & body.keys())
