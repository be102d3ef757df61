"""The page of a run: all that its directory has to show, on one sheet.

All text of a run (answers, questions, events, settings) is shown escaped, with control characters
made visible: see `sheet`.
"""

import math
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment

from interlock.config.schema import GuardSettings
from interlock.records.metrics import Event, StepMetrics
from interlock.report import fleet, moves, plots, sheet, summary
from interlock.report.cost import cost_table
from interlock.report.expert_plots import expert_plots
from interlock.report.fleet_plots import fleet_plots
from interlock.report.planned import planned_table
from interlock.report.pool_plots import pool_plots
from interlock.report.replay_plots import replay_plots
from interlock.report.rewards import hacked, reward_plots, reward_rows
from interlock.report.teacher_plots import teacher_plots
from interlock.rundir import RunDir, RunView

_HERE = Path(__file__).parent
_COMPARISONS, _GROUPS, _COMPLETIONS = 3, 2, 4
_ALERTS = frozenset(
    {"unqualified", "unsandboxed", "worker_quarantined", "worker_retired", "store_damaged"}
    | {"reward_hacked"}
    # Why it does not learn: recipes/diagnosis.py.
    | {"nothing_taught", "little_taught", "form_never_met", "entropy_collapsed", "answers_cut"}
    | {"accuracy_fell"}
)
_FIRST = 3  # of them
_EVENTS = 100  # shown; the rest is counted
_TEXT = 4000  # characters of one answer shown; the rest is counted


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """See `interlock.report.write_report`."""
    with closing(RunDir.read(run_dir)) as run:
        return sheet.write(out or run_dir / "report.html", _render(run))


def _render(run: RunView) -> str:
    metrics, events = run.metrics(), run.events()
    found = summary.evaluations(run, metrics)
    pair = summary.before_after(run, found)
    moved = run.manifest.moves
    timeline = plots.Timeline(metrics, found, moves.marks(moved))
    guard = _guard(run)
    shown = plots.plots(metrics, found, timeline) + teacher_plots(metrics, timeline)
    shown += pool_plots(metrics, timeline) + expert_plots(metrics, timeline)
    shown += replay_plots(metrics, timeline)
    # An inline generator is part of the learner's process: there is no fleet to tell of.
    inline = (run.config.get("fleet") or {}).get("kind") == "inline"
    of_fleet = [] if inline else fleet_plots(metrics, events, guard, timeline)
    of_rewards = reward_plots(metrics, found, timeline)
    name = run.config.get("name", run.path.name)
    body = (
        _environment()
        .get_template("page.html")
        .render(
            name=name,
            model=(run.config.get("model") or {}).get("path", ""),
            status=run.status,
            alerts=[*_torn(run), *_alerts(events)],
            reasons=[*filter(None, [run.manifest.reason]), *_void(run)],
            stages=len(run.config.get("stage", [])),
            facts=_facts(run, metrics, events),
            pair=pair,
            answers="greedy" if pair is None or pair.before.samples == 1 else "drawn",
            comparisons=summary.comparisons(run, pair, _COMPARISONS),
            samples=summary.samples(run, _GROUPS, _COMPLETIONS),
            counts=_counts(metrics, events),
            events=[(_duration(e.time - run.manifest.created), e) for e in events[-_EVENTS:]],
            events_left_out=max(0, len(events) - _EVENTS),
            plots=shown,
            rewards=reward_rows(metrics),
            reward_plots=of_rewards,
            cost=cost_table(run, metrics, pair),
            planned=planned_table(run, metrics),
            hacked=hacked(events),
            sides=moves.sides(moved, metrics),
            moves=moves.rows(moved),
            workers=[] if inline else fleet.workers(metrics),
            fleet=fleet.summary(metrics),
            fleet_plots=of_fleet,
            guard=guard,
            config=to_toml(run.config),
            versions={**run.manifest.versions, "platform": run.manifest.platform},
            figures={
                plot.id: sheet.figure(plot.figure(timeline), plot.height, f"plot-{plot.id}")
                for plot in [*shown, *of_rewards, *of_fleet]
            },
        )
    )
    return sheet.sheet(f"{name} · Interlock", body)


def _alerts(events: list[Event]) -> list[str]:
    """What a reader wants to know of first; the rest of the events stand at the end."""
    found = [event.message for event in events if event.kind in _ALERTS]
    more = len(found) - _FIRST
    return found[:_FIRST] + ([f"and {more} more of the like: see Events"] if more > 0 else [])


def _torn(run: RunView) -> list[str]:
    return [f"{name} ends within a line: what it says there is not shown" for name in run.torn]


def _void(run: RunView) -> list[str]:
    return summary.void(run) if run.status == "finished" else []


def _environment() -> Environment:
    environment = sheet.environment(_HERE)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["clip"] = _clip
    environment.filters["count"] = lambda value: "–" if value is None else f"{value:,.0f}"
    environment.filters["k3"] = lambda value: "–" if value is None else f"{value:.1e}"
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3g}"
    environment.filters["share"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["megabytes"] = lambda value: (
        "–" if value is None else fleet.megabytes(value)
    )
    return environment


def _clip(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    return f"{text[:_TEXT]}… ({len(text) - _TEXT:,} more characters)"


def _guard(run: RunView) -> GuardSettings | None:
    """The limits that the run was guarded by; None when its config does not tell."""
    try:
        return msgspec.convert(run.config.get("guard"), GuardSettings)
    except msgspec.ValidationError:
        return None


def _facts(run: RunView, metrics: list[StepMetrics], events: list[Event]) -> dict[str, str]:
    """The line under the headline."""
    times = [line.time for line in metrics if line.time is not None]
    times += [event.time for event in events]
    sessions = run.manifest.sessions
    begun = datetime.fromtimestamp(run.manifest.created, UTC)
    facts = {
        "stages": " → ".join(str(stage.get("kind")) for stage in run.config.get("stage", [])),
        "steps": f"{sum(line.step > 0 for line in metrics):,}",
        "time": _duration(summary.active_seconds(sessions, times)),
        "begun": f"{begun:%Y-%m-%d %H:%M} UTC",
        "resumed": f"{len(sessions) - 1} times" if len(sessions) > 1 else "",
    }
    return {name: value for name, value in facts.items() if value}


def _counts(metrics: list[StepMetrics], events: list[Event]) -> dict[str, str]:
    """What a reader should know before trusting the curves."""
    sums = {
        "tokens generated": summary.total(metrics, lambda m: m.rollout.tokens),
        "tokens trained on": summary.total(metrics, lambda m: m.update.tokens),
        "groups learned from, or skipped": summary.total(metrics, lambda m: m.rollout.groups),
        "groups skipped: all rewards equal": summary.total(
            metrics, lambda m: m.rollout.groups_skipped
        ),
        "groups dropped: too stale": summary.total(metrics, lambda m: m.rollout.groups_stale),
        "problems retired: solved": _retired(metrics),
        "problems set aside": summary.total(metrics, lambda m: m.rollout.groups_set_aside),
        "bad steps: not finite, skipped": summary.total(metrics, lambda m: m.update.bad_steps),
        "verifier errors: counted as reward 0": summary.total(
            metrics, lambda m: m.rollout.verifier_errors
        ),
    }
    counts = {label: f"{value:,.0f}" for label, value in sums.items() if value is not None}
    kinds = Counter(event.name for event in events)
    return counts | {f"events: {kind}": f"{count:,}" for kind, count in kinds.items()}


def _retired(metrics: list[StepMetrics]) -> float | None:
    """Of every stage that draws by pass rate, as its last step has it."""
    pools = {line.stage: line.rollout.pools for line in metrics if line.rollout.pools}
    each = [pool.retired or 0 for stage in pools.values() for pool in stage.values()]
    return sum(each) if each else None


def _duration(seconds: float) -> str:
    whole = max(0, math.floor(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def to_toml(tree: dict[str, Any], prefix: str = "") -> str:
    """The config as TOML to read; a setting of None, which TOML cannot say, is a comment."""
    plain: list[str] = []
    tables: list[str] = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            tables.append(f"\n[{path}]\n{to_toml(value, f'{path}.')}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables += [f"\n[[{path}]]\n{to_toml(item, f'{path}.')}" for item in value]
        elif value is None:
            plain.append(f"# {key} is not set\n")
        else:
            plain.append(f"{key} = {msgspec.json.encode(value).decode()}\n")
    return "".join(plain + tables)
