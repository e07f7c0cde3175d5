"""What all of Neutron's calls share: reading the one object of a body, filtering and paging a list."""

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import bad_request


def check_fields(given: dict[str, Any], allowed: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(allowed)):
        raise bad_request(f"Unrecognized attribute(s) '{', '.join(unknown)}'", "HTTPBadRequest")


async def body(request: web.Request, name: str, kind: type = dict) -> Any:
    """The one object that a call must carry."""
    try:
        given = (await request.json())[name]
    except (ValueError, KeyError, TypeError) as error:
        raise bad_request(f"Invalid input: the body must be a JSON object with '{name}'.", "HTTPBadRequest") from error
    if not isinstance(given, kind):
        raise bad_request(f"Invalid input for {name}. Reason: '{given}' is not a valid {kind.__name__}.", "HTTPBadRequest")
    return given


def listing(request: web.Request, name: str, items: list[dict[str, Any]]) -> web.Response:
    """Filter, cut to pages and to the wanted fields, as all of Neutron's lists do."""
    query = request.query
    for field in set(query) - {"fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse", "fixed_ips"}:
        wanted = query.getall(field)
        if field in ("tags", "tags-any", "not-tags", "not-tags-any"):
            tags = {tag for value in wanted for tag in value.split(",")}
            whole, negated = not field.endswith("-any"), field.startswith("not-")
            items = [i for i in items if ((tags <= set(i["tags"])) if whole else bool(tags & set(i["tags"]))) != negated]
        elif items and field in items[0]:
            items = [item for item in items if _same(item[field], wanted)]
    for condition in query.getall("fixed_ips", []):
        key, _, value = condition.partition("=")
        items = [item for item in items if any(fixed.get(key) == value for fixed in item.get("fixed_ips", []))]
    result: dict[str, Any] = {}
    if "limit" in query:
        items = sorted(items, key=lambda item: item["id"])
        if marker := query.get("marker"):
            items = [item for item in items if item["id"] > marker]
        limit = int(query["limit"])
        if 0 < limit < len(items):
            items = items[:limit]
            result[name + "_links"] = [{"rel": "next", "href": str(request.url.update_query(marker=items[-1]["id"]))}]
    if fields := query.getall("fields", []):
        items = [{key: item[key] for key in fields if key in item} for item in items]
    return web.json_response({name: items} | result)


def _same(value: Any, wanted: list[str]) -> bool:
    if isinstance(value, bool):
        return str(value).lower() in {text.lower() for text in wanted}
    if isinstance(value, list):
        return any(text in value for text in wanted)
    return str("" if value is None else value) in wanted
