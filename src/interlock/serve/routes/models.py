"""GET /v1/models: the model by its names, and every replica with what is known of it."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.serve.endpoint import Endpoint
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import endpoint_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """All names that the model is served under."""
    endpoint = endpoint_of(request)
    data = [_model(endpoint, name) for name in endpoint.names]
    return Response(encode({"object": "list", "data": data}), media_type="application/json")


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """The model under one name."""
    endpoint = endpoint_of(request)
    endpoint.check_model(name)
    return Response(encode(_model(endpoint, name)), media_type="application/json")


def _model(endpoint: Endpoint, name: str) -> dict[str, Any]:
    told: dict[str, Any] = {"id": name, "object": "model", "created": endpoint.created}
    told |= {"owned_by": "interlock", "root": endpoint.name, "parent": None}
    replicas = endpoint.replicas
    if replicas is not None:
        told["max_model_len"] = replicas.limits.context
        told["version"] = replicas.version
        told["replicas"] = msgspec.to_builtins(replicas.facts())
    return told
