"""The flavors of devcloud, and Nova's ways to show one."""

from typing import Any

Version = tuple[int, int]

FLAVORS: dict[str, dict[str, Any]] = {
    "1": {"id": "1", "name": "m1.tiny", "vcpus": 1, "ram": 512, "disk": 1},
    "2": {"id": "2", "name": "m1.small", "vcpus": 2, "ram": 4096, "disk": 20},
    "3": {"id": "3", "name": "m1.large", "vcpus": 8, "ram": 32768, "disk": 80},
    "9": {"id": "9", "name": "too-big", "vcpus": 512, "ram": 4_194_304, "disk": 1000, "never_fits": True},
}


def describe(base: str, flavor: dict[str, Any], version: Version) -> dict[str, Any]:
    seen = {
        "id": flavor["id"],
        "name": flavor["name"],
        "vcpus": flavor["vcpus"],
        "ram": flavor["ram"],
        "disk": flavor["disk"],
        "swap": "" if version < (2, 75) else 0,
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": False,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
        "links": [
            {"rel": "self", "href": f"{base}/compute/v2.1/flavors/{flavor['id']}"},
            {"rel": "bookmark", "href": f"{base}/compute/flavors/{flavor['id']}"},
        ],
    }
    if version >= (2, 55):
        seen["description"] = None
    if version >= (2, 61):
        seen["extra_specs"] = {}
    return seen


def describe_embedded(base: str, flavor: dict[str, Any], version: Version) -> dict[str, Any]:
    """Within a server: a link before 2.47, and since then a copy without an id."""
    if version < (2, 47):
        return {"id": flavor["id"], "links": [{"rel": "bookmark", "href": f"{base}/compute/flavors/{flavor['id']}"}]}
    return {
        "original_name": flavor["name"],
        "vcpus": flavor["vcpus"],
        "ram": flavor["ram"],
        "disk": flavor["disk"],
        "ephemeral": 0,
        "swap": 0,
        "extra_specs": {},
    }
