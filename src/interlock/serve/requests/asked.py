"""What a handler has of a request: its body read, checked, and who asks.

Request ──read──parse──validated──> the model of its fields, or a Refusal
"""

from typing import Any, TypeVar

from fastapi import Request

from interlock.serve.endpoint import Endpoint
from interlock.serve.requests.bodies import parse, read
from interlock.serve.requests.schemas import RequestModel, validated
from interlock.serve.requests.unsupported import Inert

Fields = TypeVar("Fields", bound=RequestModel)


def endpoint_of(request: Request) -> Endpoint:
    """The endpoint that a request came to."""
    found = request.app.state.endpoint
    assert isinstance(found, Endpoint)
    return found


async def asked(
    request: Request, kind: type[Fields], inert: dict[str, Inert] | None = None
) -> Fields:
    """The request's fields. Raises Refusal."""
    limits = endpoint_of(request).settings.limits
    body = await read(request, limits.body_mb << 20, limits.body_s)
    return validated(parse(body), kind, inert)


def documented(kind: type[RequestModel], inert: dict[str, Inert] | None = None) -> dict[str, Any]:
    """The request's schema for the OpenAPI document, as `openapi_extra`."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    for field, each in (inert or {}).items():
        schema["properties"][field] = each.schema
    schema = _inlined(schema, schema.pop("$defs", {}))
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(tree: Any, models: dict[str, Any]) -> Any:
    """References to models of the schema's own, replaced by these."""
    if isinstance(tree, dict):
        if (ref := tree.get("$ref")) is not None:
            return _inlined(models[ref.rpartition("/")[2]], models)
        return {key: _inlined(value, models) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_inlined(each, models) for each in tree]
    return tree
