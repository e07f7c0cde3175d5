"""What Nova accepts in a request body, by microversion, as JSON Schema; so the refusals come in Nova's words too.

# ref: https://docs.openstack.org/api-ref/compute/
"""

import base64
import binascii
import functools
import json
import re
import uuid
from typing import Any

import jsonschema
from aiohttp import web

from spawner.devcloud.errors import bad_request

Version = tuple[int, int]

NAME = {"type": "string", "minLength": 1, "maxLength": 255, "format": "name"}
TAG = {"type": "string", "minLength": 1, "maxLength": 60, "pattern": "^[^,/]*$"}
TRUE = ["True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"]
FALSE = ["False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"]
BOOLEAN = {"type": ["boolean", "string"], "enum": [True, *TRUE, False, *FALSE]}
METADATA = {
    "type": "object",
    "patternProperties": {"^[a-zA-Z0-9-_:. ]{1,255}$": {"type": "string", "maxLength": 255}},
    "additionalProperties": False,
}
DESCRIPTION = {"type": ["string", "null"], "minLength": 0, "maxLength": 255}
PORT = {"oneOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]}
TAGS = {"type": "array", "items": TAG, "maxItems": 50}
CERTIFICATES = {"type": ["array", "null"], "minItems": 1, "maxItems": 50, "items": {"type": "string", "minLength": 1}}
BLOCK_DEVICES = {"type": "array", "items": {"type": "object"}}


def an_object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def networks(version: Version) -> dict[str, Any]:
    item: dict[str, Any] = {"fixed_ip": {"type": "string", "format": "ipv4"}, "port": PORT, "uuid": {"type": "string"}}
    if version >= (2, 37):
        item["uuid"] = {"type": "string", "format": "uuid"}
    if version == (2, 32) or version >= (2, 42):
        item["tag"] = TAG
    array = {"type": "array", "items": an_object(item)}
    return {"oneOf": [array, {"type": "string", "enum": ["none", "auto"]}]} if version >= (2, 37) else array


def create(version: Version) -> dict[str, Any]:
    server: dict[str, Any] = {
        "name": NAME,
        "imageRef": {"oneOf": [{"type": "string", "format": "uuid"}, {"type": "string", "maxLength": 0}]},
        "flavorRef": {"type": ["string", "integer"], "minLength": 1},
        "adminPass": {"type": "string"},
        "metadata": METADATA,
        "networks": networks(version),
        "OS-DCF:diskConfig": {"type": "string", "enum": ["AUTO", "MANUAL"]},
        "accessIPv4": {"type": "string"},
        "accessIPv6": {"type": "string"},
        "availability_zone": NAME,
        "block_device_mapping": BLOCK_DEVICES,
        "block_device_mapping_v2": BLOCK_DEVICES,
        "config_drive": BOOLEAN,
        "key_name": NAME,
        "min_count": {"type": ["integer", "string"], "pattern": "^[0-9]*$", "minimum": 1, "minLength": 1},
        "max_count": {"type": ["integer", "string"], "pattern": "^[0-9]*$", "minimum": 1, "minLength": 1},
        "return_reservation_id": BOOLEAN,
        "security_groups": {"type": "array", "items": an_object({"name": NAME})},
        "user_data": {"type": "string", "format": "base64", "maxLength": 65535},
    }
    later: dict[Version, dict[str, Any]] = {
        (2, 19): {"description": DESCRIPTION},
        (2, 52): {"tags": TAGS},
        (2, 63): {"trusted_image_certificates": CERTIFICATES},
        (2, 74): {"host": {"type": "string"}, "hypervisor_hostname": {"type": "string"}},
        (2, 90): {"hostname": {"type": "string", "minLength": 2, "maxLength": 63}},
    }
    for since, fields in later.items():
        if version >= since:
            server |= fields
    if version < (2, 57):
        server["personality"] = {"type": "array"}
    required = ["name", "flavorRef", "networks"] if version >= (2, 37) else ["name", "flavorRef"]
    hints = {"type": "object"}
    properties = {"server": an_object(server, *required), "os:scheduler_hints": hints, "OS-SCH-HNT:scheduler_hints": hints}
    return an_object(properties, "server")


def update(version: Version) -> dict[str, Any]:
    server: dict[str, Any] = {
        "name": NAME,
        "OS-DCF:diskConfig": {"type": "string", "enum": ["AUTO", "MANUAL"]},
        "accessIPv4": {"type": "string"},
        "accessIPv6": {"type": "string"},
    }
    if version >= (2, 19):
        server["description"] = DESCRIPTION
    if version >= (2, 90):
        server["hostname"] = {"type": "string", "minLength": 2, "maxLength": 63}
    return an_object({"server": an_object(server)}, "server")


NOTHING: dict[str, Any] = {}
ACTIONS: dict[str, dict[str, Any]] = {
    "os-stop": NOTHING,
    "os-start": NOTHING,
    "shelve": NOTHING,
    "shelveOffload": NOTHING,
    "unshelve": NOTHING,
    **dict.fromkeys(("pause", "unpause", "suspend", "resume", "unrescue", "confirmResize"), NOTHING),
    "rescue": {"type": ["object", "null"]},
    "resize": an_object({"flavorRef": {"type": ["string", "integer"], "minLength": 1}}, "flavorRef"),
    "unlock": NOTHING,
    "lock": {"type": ["object", "null"]},
    "createImage": {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 255}, "metadata": {"type": "object"}},
        "required": ["name"],
        "additionalProperties": False,
    },
    "reboot": {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]}},
        "required": ["type"],
        "additionalProperties": False,
    },
    "os-getConsoleOutput": {
        "type": "object",
        "properties": {"length": {"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$", "minimum": -1}},
        "additionalProperties": False,
    },
}
BODIES: dict[str, Any] = {
    "metadata": an_object({"metadata": METADATA}, "metadata"),
    "meta": an_object({"meta": METADATA | {"minProperties": 1, "maxProperties": 1}}, "meta"),
    "tags": an_object({"tags": TAGS}, "tags"),
}
formats = jsonschema.FormatChecker(formats=())


@formats.checks("base64", raises=binascii.Error)
def is_base64(text: object) -> bool:
    if not isinstance(text, str):
        return True
    if not text.isascii():
        return False
    base64.b64decode(text.translate({ord("\n"): None}), validate=True)
    return True


@formats.checks("uuid", raises=ValueError)
def is_uuid(text: object) -> bool:
    return not isinstance(text, str) or str(uuid.UUID(text)).replace("-", "") == text.lower().replace("-", "")


@formats.checks("ipv4")
def is_address(text: object) -> bool:
    return not isinstance(text, str) or re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", text) is not None


@formats.checks("name")
def is_name(text: object) -> bool:
    return not isinstance(text, str) or (text == text.strip() and text.isprintable())


@functools.cache
def validator(kind: str, version: Version) -> jsonschema.Draft4Validator:
    if kind in ACTIONS:
        # An action without parameters takes any value: so does Nova.
        schema = {"type": "object", "properties": {kind: ACTIONS[kind]}, "required": [kind]}
    elif kind in BODIES:
        schema = BODIES[kind]
    else:
        schema = {"create": create, "update": update}[kind](version)
    return jsonschema.Draft4Validator(schema, format_checker=formats)


def check(kind: str, version: Version, body: Any) -> None:
    error = next(iter(sorted(validator(kind, version).iter_errors(body), key=lambda error: len(error.path))), None)
    if error is None:
        return
    if not error.path:
        raise bad_request(error.message)
    raise bad_request(f"Invalid input for field/attribute {error.path[-1]}. Value: {error.instance}. {error.message}")


async def read(request: web.Request, kind: str) -> Any:
    """The body of a request, checked."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise bad_request("Malformed request body") from error
    check(kind, request["microversion"], body)
    return body


def as_boolean(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "on", "yes")
