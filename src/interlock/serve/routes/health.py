"""GET /health, the one route without a key, and GET /metrics."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from interlock.serve.http.refusals import Refusal
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import endpoint_of

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while some replica serves."""
    endpoint = endpoint_of(request)
    endpoint.pool()
    if not endpoint.ready:
        raise Refusal(503, "no replica serves", code="no_replica", headers={"Retry-After": "1"})
    return Response(encode({"status": "ready"}), media_type="application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """In Prometheus's text form, under vLLM's names."""
    return Response(endpoint_of(request).measured.text(), media_type=CONTENT_TYPE_LATEST)
