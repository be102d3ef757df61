"""The routes of the live page, and what is told to those who look at it.

    GET /                the page                GET /runs            the runs, a line each
    GET /runs/N          all of one              GET /stream          what is new, as it comes
    GET /runs/N/rollouts?stage=&step=            GET /runs/N/held-out?problem=

Read only. Who may ask is in shell.py. Starlette answers by itself: to import FastAPI, which is made
of it, takes longer than to read a thousand steps.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from interlock.errors import InterlockError
from interlock.report.live.answers import held_out, rollouts
from interlock.report.live.following import Following
from interlock.report.live.shell import COMMON_STYLE, Document, document, guarded
from interlock.report.live.telling import Had, line, news, whole
from interlock.report.live.watchers import FollowedRuns
from interlock.rundir import RunView
from interlock.text import visible

_PAGE = Path(__file__).parent / "page"


def make_app(runs: Sequence[Path], hosts: Sequence[str], key: str | None = None) -> Starlette:
    """`hosts`: the names that it answers to. `key`: None asks for none."""
    watched = FollowedRuns(runs)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(watched.follow())
        yield
        task.cancel()
        watched.close()

    async def page(request: Request) -> Response:
        return _page().response()

    async def all_runs(request: Request) -> Response:
        return _json([line(watched, number) for number in range(len(watched.runs))])

    async def one_run(request: Request) -> Response:
        number, _ = _run(watched, request)
        await watched.begun(number)
        return _json(await asyncio.to_thread(whole, watched, number))

    async def of_step(request: Request) -> Response:
        stage, step = _asked(request, "stage", 2**31), _asked(request, "step", 2**31)
        _, run = _run(watched, request)
        return await _from_ledger(run, partial(rollouts, stage=stage, step=step))

    async def of_problem(request: Request) -> Response:
        problem = _asked(request, "problem", 0)
        return await _from_ledger(_run(watched, request)[1], partial(held_out, problem=problem))

    async def stream(request: Request) -> Response:
        try:
            known = msgspec.json.decode(request.query_params.get("had", "[]"), type=list[Had])
        except msgspec.MsgspecError as error:
            raise HTTPException(400, f"had: {error}") from None
        known = known[: len(watched.runs)] + [Had()] * (len(watched.runs) - len(known))
        return StreamingResponse(_news(watched, known), media_type="text/event-stream")

    routes = {
        "/": page,
        "/runs": all_runs,
        "/runs/{number:int}": one_run,
        "/runs/{number:int}/rollouts": of_step,
        "/runs/{number:int}/held-out": of_problem,
        "/stream": stream,
    }
    app = Starlette(
        routes=[Route(path, answer) for path, answer in routes.items()], lifespan=lifespan
    )
    guarded(app, hosts, key)
    return app


async def _news(watched: FollowedRuns, had: list[Had]) -> AsyncIterator[bytes]:
    """What is new of every run since what was had, and then since the message before."""
    seen = [-1] * len(watched.runs)
    with watched.watching():
        while True:
            for number, version in enumerate(watched.told):
                if version == seen[number]:
                    continue
                seen[number] = version
                content, had[number] = await asyncio.to_thread(news, watched, number, had[number])
                yield b"data: " + msgspec.json.encode(content) + b"\n\n"
            if not await watched.news(seen):
                yield b": still here\n\n"


def _run(watched: FollowedRuns, request: Request) -> tuple[int, Following]:
    number = request.path_params["number"]
    if not 0 <= number < len(watched.runs):
        raise HTTPException(404, f"there are {len(watched.runs)} runs, from 0 on")
    return number, watched.runs[number]


def _asked(request: Request, name: str, default: int) -> int:
    try:
        return int(request.query_params.get(name, default))
    except ValueError:
        raise HTTPException(400, f"{name} is no whole number") from None


async def _from_ledger(run: Following, read: Callable[[RunView], dict[str, Any]]) -> Response:
    nothing = {"steps": 0, "problems": 0, "groups": [], "evaluations": []}
    if run.view is None:
        return _json(nothing)
    try:
        return _json(await asyncio.to_thread(read, run.view))
    except InterlockError as error:
        return _json(nothing | {"damage": visible(str(error))})


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


@cache
def _page() -> Document:
    """Read once."""
    styles = [_PAGE / "uPlot.css", COMMON_STYLE, _PAGE / "page.css"]
    scripts = [_PAGE / f"{name}.js" for name in ("uPlot", "basics", "charts", "page")]
    return document(_PAGE / "page.html", styles, scripts)
