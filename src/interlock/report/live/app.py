"""The routes of the live page, and what is told to those who look at it.

    GET /                the page                GET /runs            the runs, a line each
    GET /runs/N          all of one              GET /stream          what is new, as it comes
    GET /runs/N/rollouts?stage=&step=            GET /runs/N/held-out?problem=

Read only. Who may ask is in shell.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import StreamingResponse

from interlock.errors import InterlockError
from interlock.records.metrics import Event
from interlock.report.live.answers import held_out, rollouts
from interlock.report.live.following import Following, told
from interlock.report.live.shell import COMMON_STYLE, Document, document, guarded
from interlock.rundir import RunView
from interlock.text import visible

_LOOK_S = 0.05  # between looks at the files while somebody watches
_IDLE_S = 1.0  # and while nobody does
_BEAT_S = 15.0  # a line without news, so that a lost connection is noticed
_PAGE = Path(__file__).parent / "page"


class Had(msgspec.Struct, array_like=True, frozen=True):
    """How much of a run a page has."""

    x: float = -1
    events: int = 0
    generation: int = 0


class FollowedRuns:
    """The runs that are followed, by one task for all who look."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = [Following(path) for path in runs]
        self.names = _names([run.path.resolve() for run in self.runs])
        self.watchers = 0
        self._news = asyncio.Condition()

    async def follow(self) -> None:
        """Look at the files for ever."""
        while True:
            before = [run.version for run in self.runs]
            more = [await asyncio.to_thread(run.poll) for run in self.runs]
            if before != [run.version for run in self.runs]:
                async with self._news:
                    self._news.notify_all()
            await asyncio.sleep(0 if any(more) else _LOOK_S if self.watchers else _IDLE_S)

    async def wait(self, seen: Sequence[int]) -> None:
        """Until some run is newer than `seen`, or a beat has passed."""

        async def newer() -> None:
            async with self._news:
                await self._news.wait_for(lambda: [run.version for run in self.runs] != seen)

        try:
            await asyncio.wait_for(newer(), _BEAT_S)
        except TimeoutError:
            return


def make_app(runs: Sequence[Path], hosts: Sequence[str], key: str | None = None) -> FastAPI:
    """`hosts`: the names that it answers to. `key`: None asks for none."""
    watched = FollowedRuns(runs)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(watched.follow())
        yield
        task.cancel()
        for run in watched.runs:
            run.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    guarded(app, hosts, key)

    @app.get("/")
    async def page() -> Response:
        return _page().response()

    @app.get("/runs")
    async def all_runs() -> Response:
        return _json([_line(watched, number) for number, run in enumerate(watched.runs)])

    @app.get("/runs/{number}")
    async def one_run(number: int) -> Response:
        _run(watched, number)
        return _json(await asyncio.to_thread(_whole, watched, number))

    @app.get("/runs/{number}/rollouts")
    async def of_step(number: int, stage: int = 2**31, step: int = 2**31) -> Response:
        return await _from_ledger(_run(watched, number), partial(rollouts, stage=stage, step=step))

    @app.get("/runs/{number}/held-out")
    async def of_problem(number: int, problem: int = 0) -> Response:
        return await _from_ledger(_run(watched, number), partial(held_out, problem=problem))

    @app.get("/stream")
    async def stream(had: str = "[]") -> Response:
        try:
            known = msgspec.json.decode(had, type=list[Had])
        except msgspec.MsgspecError as error:
            raise HTTPException(400, f"had: {error}") from None
        known = known[: len(watched.runs)] + [Had()] * (len(watched.runs) - len(known))
        return StreamingResponse(_news(watched, known), media_type="text/event-stream")

    return app


async def _news(watched: FollowedRuns, had: list[Had]) -> AsyncIterator[bytes]:
    """What is new of every run since what was had, and then since the message before."""
    seen = [-1] * len(watched.runs)
    watched.watchers += 1
    try:
        while True:
            for number, run in enumerate(watched.runs):
                if run.version == seen[number]:
                    continue
                seen[number] = run.version
                known, had[number] = had[number], Had(run.x, run.event_count, run.generation)
                if known.generation != run.generation:
                    content: dict[str, Any] = {"run": number, "again": True}
                else:
                    content = _line(watched, number) | _since(run, known.x, known.events)
                yield b"data: " + msgspec.json.encode(content) + b"\n\n"
            beat = time.monotonic()
            await watched.wait(seen)
            if time.monotonic() - beat >= _BEAT_S:
                yield b": still here\n\n"
    finally:
        watched.watchers -= 1


def _names(paths: Sequence[Path]) -> list[str]:
    """As little of each path's end as tells it from the others."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            break
    return found


def _line(watched: FollowedRuns, number: int) -> dict[str, Any]:
    """A run in a few words."""
    run = watched.runs[number]
    view, last = run.view, run.last
    config = view.config if view else {}
    recipe, stages = config.get("name"), config.get("stage") or []
    kinds = [str(each.get("kind")) for each in stages if isinstance(each, dict)]
    return {
        "run": number,
        "name": visible(watched.names[number]),
        "recipe": visible(recipe) if isinstance(recipe, str) else "",
        "stages": list(map(visible, kinds)),
        "status": run.status,
        "reason": visible(view.manifest.reason or "") if view else "",
        "trouble": visible(run.trouble),
        "stage": last.stage if last else 0,
        "step": last.step if last else 0,
        "x": run.x,
        "steps": run.steps,
        "began": view.manifest.created if view else None,
        "seconds_left": run.seconds_left,
        "cost": _cost(run),
        "event_count": run.event_count,
        "generation": run.generation,
        "ended": view.manifest.sessions[-1].ended if view and view.manifest.sessions else None,
    }


def _cost(run: Following) -> dict[str, Any] | None:
    """What it has used by its last step, and is to use by its end; None without a meter."""
    if run.last is None or run.last.cost.chip_hours is None:
        return None
    used, left = run.last.cost, run.money_left
    whole = {name: amount + left[name] for name, amount in used.money.items() if name in left}
    return {
        "chip_hours": used.chip_hours,
        "kwh": used.kwh,
        "money": {visible(name): amount for name, amount in used.money.items()},
        "unpriced": bool(used.unpriced_hours),
        "money_at_end": {visible(name): amount for name, amount in whole.items()},
    }


def _since(run: Following, x: float, events: int) -> dict[str, Any]:
    fresh = list(run.events)[-(run.event_count - events) :] if run.event_count > events else []
    return {
        "series": {visible(name): told(points) for name, points in run.after(x).items()},
        "workers": {visible(name): msgspec.to_builtins(each) for name, each in run.workers.items()},
        "events": [_event(event) for event in fresh],
        "kinds": dict(run.kinds),
    }


def _whole(watched: FollowedRuns, number: int) -> dict[str, Any]:
    return _line(watched, number) | _since(watched.runs[number], -1, 0)


def _event(event: Event) -> dict[str, Any]:
    worker = event.worker and visible(event.worker)
    return {
        "time": event.time,
        "kind": event.kind,
        "name": visible(event.name),
        "message": visible(event.message),
        "worker": worker,
    }


def _run(watched: FollowedRuns, number: int) -> Following:
    if not 0 <= number < len(watched.runs):
        raise HTTPException(404, f"there are {len(watched.runs)} runs, from 0 on")
    return watched.runs[number]


async def _from_ledger(run: Following, read: Callable[[RunView], dict[str, Any]]) -> Response:
    if run.view is None:
        return _json({"steps": 0, "problems": 0, "groups": [], "evaluations": []})
    try:
        return _json(await asyncio.to_thread(read, run.view))
    except InterlockError as error:
        raise HTTPException(503, str(error)) from None


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


@cache
def _page() -> Document:
    """Read once."""
    styles = [_PAGE / "uPlot.css", COMMON_STYLE, _PAGE / "page.css"]
    scripts = [_PAGE / f"{name}.js" for name in ("uPlot", "basics", "charts", "page")]
    return document(_PAGE / "page.html", styles, scripts)
