"""/admin/*, behind a key of its own: the replicas, which weights they serve, who is drained."""

import asyncio
from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import InterlockError
from interlock.serve.http.refusals import refusal_of
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import DrainRequest, PinRequest

router = APIRouter(prefix="/admin")


@router.get("/replicas")
async def replicas(request: Request) -> Response:
    """Every replica, and what waits for one."""
    return _state(request)


@router.post("/pin", openapi_extra=documented(PinRequest))
async def pin(request: Request) -> Response:
    """Serve one version of the weights and no newer one; an older one is a roll-back."""
    fields = await asked(request, PinRequest)
    pool = endpoint_of(request).pool()
    await _done(lambda: pool.pin(fields.version))
    return _state(request)


@router.post("/unpin")
async def unpin(request: Request) -> Response:
    """Serve the newest version again."""
    pool = endpoint_of(request).pool()
    await _done(lambda: pool.pin(None))
    return _state(request)


@router.post("/drain", openapi_extra=documented(DrainRequest))
async def drain(request: Request) -> Response:
    """Give a replica nothing more, or again something."""
    fields = await asked(request, DrainRequest)
    pool = endpoint_of(request).pool()
    await _done(lambda: pool.drain(fields.replica, fields.on))
    return _state(request)


async def _done(command: Callable[[], None]) -> None:
    """Beside the event loop: a store may have to be asked."""
    try:
        await asyncio.to_thread(command)
    except InterlockError as error:
        raise refusal_of(error) from None


def _state(request: Request) -> Response:
    pool = endpoint_of(request).pool()
    told = {"version": pool.version, "waiting": pool.waiting}
    facts = msgspec.to_builtins(pool.facts())
    return Response(encode(told | {"replicas": facts}), media_type="application/json")
