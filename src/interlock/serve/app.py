"""The application: the table of routes, the gate around them, and what errors become.

connection ──Gate──> ROUTERS ──> a handler ──> Endpoint
             └───────────┴──── Refusal: OpenAI's error body, or Anthropic's
"""

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from interlock import __version__
from interlock.errors import InterlockError
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.documents import document
from interlock.serve.http.gate import Gate
from interlock.serve.http.keys import Keys
from interlock.serve.http.refusals import Refusal, defect, refusal_of
from interlock.serve.http.request_ids import RequestIds
from interlock.serve.routes import (
    admin,
    chat,
    completions,
    generate,
    health,
    messages,
    models,
    page,
    responses,
    sessions,
    tokens,
)

# To add routes: a module in routes/ with `router`, and its place here.
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    models.router,
    chat.router,
    responses.router,
    messages.router,
    completions.router,
    tokens.router,
    generate.router,
    sessions.router,
    page.router,
    admin.router,
)


def make_app(endpoint: Endpoint, routers: Sequence[APIRouter] = ROUTERS) -> FastAPI:
    """The routes without the gate: `guarded` puts it around them."""
    app = FastAPI(
        title="Interlock",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.endpoint = endpoint
    app.openapi = partial(document, app, endpoint.name)  # type: ignore[method-assign]
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(InterlockError, _failed)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _bug)
    return app


def guarded(app: FastAPI, endpoint: Endpoint, keys: Keys, admin_keys: Keys) -> ASGIApp:
    """What a server is given."""
    settings = endpoint.settings
    hosts = [*settings.hosts, settings.host]
    return RequestIds(Gate(app, keys, admin_keys, hosts, settings.origins))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _told(error, request)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, InterlockError)
    return _told(refusal_of(error), request)


async def _of_http(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, no such method."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no route {request.url.path[:100]!r}",
        405: f"{request.method} is not allowed here",
    }.get(error.status_code, str(error.detail))
    code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code)
    headers = dict(error.headers or {})
    return _told(Refusal(error.status_code, said, code=code, headers=headers), request)


async def _bug(request: Request, error: Exception) -> Response:
    return _told(defect(), request)


def _told(refusal: Refusal, request: Request) -> Response:
    return Response(
        refusal.body_for(request.url.path),
        status_code=refusal.status,
        media_type="application/json",
        headers=refusal.headers,
    )
