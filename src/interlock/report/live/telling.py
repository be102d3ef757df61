"""What a page is told of a run, as JSON.

line    a run in a few words             whole   all that is drawn of it
news    a line, and what is drawn behind what a page had; or that it is to take all again
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from interlock.records.metrics import Event
from interlock.report.live.following import Following
from interlock.report.live.series import Points
from interlock.report.live.watchers import FollowedRuns
from interlock.text import visible

Json = dict[str, Any]


class Had(msgspec.Struct, array_like=True, frozen=True):
    """How much of a run a page has."""

    x: float = -1
    events: int = 0
    generation: int = 0


def line(watched: FollowedRuns, number: int) -> Json:
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
        "cost": cost(run),
        "event_count": run.event_count,
        "generation": run.generation,
        "ended": view.manifest.sessions[-1].ended if view and view.manifest.sessions else None,
    }


def whole(watched: FollowedRuns, number: int) -> Json:
    run = watched.runs[number]
    with run.held:
        return line(watched, number) | _since(run, Had())


def news(watched: FollowedRuns, number: int, had: Had) -> tuple[Json, Had]:
    """-> and what the page has then"""
    run = watched.runs[number]
    with run.held:
        has = Had(run.x, run.event_count, run.generation)
        if had.generation != run.generation:
            return {"run": number, "again": True}, has
        return line(watched, number) | _since(run, had), has


def _since(run: Following, had: Had) -> Json:
    fresh = run.event_count - had.events
    return {
        "series": {visible(name): told(points) for name, points in run.after(had.x).items()},
        "newest": {visible(name): _short(value) for name, value in run.newest().items()},
        "workers": {visible(name): msgspec.to_builtins(each) for name, each in run.workers.items()},
        "events": [_event(event) for event in list(run.events)[-fresh:]] if fresh > 0 else [],
        "kinds": dict(run.kinds),
    }


def cost(run: Following) -> Json | None:
    """What it has used by its last step, and is to use by its end; None without a meter."""
    used, left = run.cost, run.money_left
    if used.chip_hours is None:
        return None
    at_end = {name: amount + left[name] for name, amount in used.money.items() if name in left}
    return {
        "chip_hours": used.chip_hours,
        "kwh": used.kwh,
        "money": {visible(name): amount for name, amount in used.money.items()},
        "unpriced": bool(used.unpriced_hours),
        "money_at_end": {visible(name): amount for name, amount in at_end.items()},
    }


def _event(event: Event) -> Json:
    worker = event.worker and visible(event.worker)
    return {
        "time": event.time,
        "kind": event.kind,
        "name": visible(event.name),
        "message": visible(event.message),
        "worker": worker,
    }


def told(points: Points) -> dict[str, Sequence[float | None]]:
    """Five digits, and null for what is not finite; places are whole."""
    figures = zip(points._fields[1:], points[1:], strict=True)
    return {"x": points.x} | {name: list(map(_short, column)) for name, column in figures}


def _short(value: float) -> float | None:
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.5g}") if value != int(value) else value
