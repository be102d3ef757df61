"""How an answer goes out: whole, or as a stream whose first chunk was waited for.

Answering ──whole──> JSON      ──chunks──> EventStream
    └── the client is gone, or something fails: what runs is cancelled, once
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import Request
from starlette.responses import Response

from interlock import __version__
from interlock.serve.answering import Answering, Provenance, gone
from interlock.serve.http.streaming import EventStream, LastWords, encode, error_and_done, watching
from interlock.serve.listening import ClientGone


def tags(provenance: Provenance, moved: bool = True) -> dict[str, Any]:
    """What an answer says of the weights that drew it; `moved`: and of the way it took."""
    version = "" if provenance.version is None else f"-v{provenance.version}"
    told: dict[str, Any] = {"system_fingerprint": f"interlock-{__version__}{version}"}
    return told | ({"interlock": provenance.tree} if moved else {})


async def answered(
    request: Request, answering: Answering, whole: Callable[[], Awaitable[Any]]
) -> Response:
    """Raises Refusal."""
    try:
        async with watching(request.receive, answering.hearing):
            body = encode(await whole())
    except ClientGone:
        answering.over()
        raise gone() from None
    except BaseException as error:
        answering.over(error)
        raise
    answering.over()
    return Response(body, media_type="application/json", headers=_headers(answering))


async def streamed(
    request: Request,
    answering: Answering,
    chunks: Callable[[], AsyncIterator[bytes]],
    last_words: LastWords = error_and_done,
) -> Response:
    """`last_words`: how a failure in mid-stream is told. Raises Refusal while nothing was drawn."""
    events = chunks()
    try:
        async with watching(request.receive, answering.hearing):
            first = await anext(events)
    except ClientGone:
        answering.over()
        raise gone() from None
    except BaseException as error:
        answering.over(error)
        raise
    return EventStream(
        first, events, answering.hearing, answering.over, _headers(answering), last_words
    )


def _headers(answering: Answering) -> dict[str, str]:
    of = answering.provenance
    found = {"x-request-id": answering.name}
    if of.version is not None:
        found["x-interlock-version"] = str(of.version)
    replicas = ",".join(of.replicas)
    return found | ({"x-interlock-replica": replicas} if replicas else {})
