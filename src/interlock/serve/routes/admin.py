"""/admin/*, behind a key of its own: the replicas, which weights they serve, who is drained."""

import asyncio
from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from interlock.errors import ConfigError, InterlockError
from interlock.serve.http.refusals import refusal_of, wrong
from interlock.serve.http.streaming import encode
from interlock.serve.requests.asked import asked, documented, endpoint_of
from interlock.serve.requests.schemas import DrainRequest, PinRequest
from interlock.text import error_line

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
    await _done(lambda: pool.pin(fields.version), "version")
    return _state(request)


@router.post("/unpin")
async def unpin(request: Request) -> Response:
    """Serve the newest version again."""
    pool = endpoint_of(request).pool()
    await _done(lambda: pool.pin(None), None)
    return _state(request)


@router.post("/drain", openapi_extra=documented(DrainRequest))
async def drain(request: Request) -> Response:
    """Give a replica nothing more, or again something."""
    fields = await asked(request, DrainRequest)
    pool = endpoint_of(request).pool()
    await _done(lambda: pool.drain(fields.replica, fields.on), "replica")
    return _state(request)


async def _done(command: Callable[[], None], param: str | None) -> None:
    """Beside the event loop: a store may have to be asked. `param`: the field it may find wrong."""
    try:
        await asyncio.to_thread(command)
    except ConfigError as error:
        raise wrong(param, error_line(error)) from None
    except InterlockError as error:
        raise refusal_of(error) from None


def _state(request: Request) -> Response:
    pool = endpoint_of(request).pool()
    told = {"version": pool.version, "waiting": pool.waiting}
    facts = msgspec.to_builtins(pool.facts())
    return Response(encode(told | {"replicas": facts}), media_type="application/json")
