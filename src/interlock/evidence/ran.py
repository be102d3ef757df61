"""What runs say: how fast each worker was, how far its numbers were off, and what became of it."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from interlock.evidence import naming
from interlock.evidence.record import (
    Cited,
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Piece,
    Sentence,
    SourceKind,
    cite,
    derive,
    percent,
    pointer,
    row,
    say,
    shown,
)
from interlock.evidence.written import RunFiles
from interlock.records.metrics import EventKind, StepMetrics, WorkerState
from interlock.report.fleet import WorkerRow, workers

_HOW = "a run of interlock: logged by the learner's process after every step"
_EVENT = "a run of interlock: an event, logged when it happened"
# What says that a worker, or its device, did not hold; and how that is told.
TROUBLES: dict[EventKind, str] = {
    "worker_quarantined": "put in quarantine: its numbers were off",
    "worker_mismatch": "numbers beyond the warning",
    "worker_unproven": "did not prove that it held the weights",
    "worker_garbage": "answered garbage",
    "worker_lost": "lost",
    "worker_failed": "failed",
    "worker_late": "late",
    "worker_silent": "silent",
    "worker_refused": "refused",
    "worker_retired": "retired: it failed too often",
    "unqualified": "used without a certificate",
    "sizes_untried": "used for a model larger than was tried",
}
_GRAVE: tuple[EventKind, ...] = ("worker_quarantined", "worker_lost", "worker_retired")


def runs(sources: Sequence[EvidenceSource]) -> list[EvidenceSource]:
    return [each for each in sources if each.origin.kind is SourceKind.RUN]


def ran(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    found = runs(sources)
    tables = [table for each in found for table in (*_workers(each), *_events(each))]
    return EvidenceSection(
        "What happened in runs",
        "A run measures its workers while they work: the learner scores the same tokens again, and "
        "k3 says how far the two are apart, in nats per token.",
        brief=[said for each in found for said in _grave(each)],
        sentences=[said for each in found for said in _learner(each)],
        tables=tables,
    )


def _workers(source: EvidenceSource) -> list[EvidenceTable]:
    found: RunFiles = source.content
    rows = [_worker(source, each) for each in workers(found.metrics)]
    columns = [
        *(
            "Worker",
            "Device",
            "Trust",
            "Tokens/s",
            "k3",
            "Canary k3",
            "Groups",
            "Dropped",
            "Restarts",
        ),
        "At the end",
    ]
    title: list[Piece] = ["Workers of the run ", cite(source, "/config.json/name")]
    return [EvidenceTable(title, columns, rows)] if rows else []


def _worker(source: EvidenceSource, own: WorkerRow) -> EvidenceRow:
    place = f"/metrics.jsonl/*{pointer('workers', own.name)}"

    def figure(value: float | str | None, name: str, how: str) -> Cited | str:
        return "–" if value is None else derive(source, value, f"{place}/{name}: {how}", shown)

    return row(
        derive(source, own.name, place, shown),
        "–" if own.device is None else _device(source, own.device, place),
        figure(own.trust, "trust", "the last"),
        figure(_rate(own), "tokens", "sum of its growth, ÷ that of seconds_generating"),
        figure(own.k3, f"mismatch/{own.staleness}/k3", "mean over the tokens"),
        figure(own.canary_k3, "canary_k3", "the last"),
        *(
            figure(int(getattr(own, name)), name, "sum of its growth")
            for name in ("groups", "dropped", "restarts")
        ),
        figure(own.state.value, "state", "the last"),
        how=_HOW,
        bad=own.state in (WorkerState.QUARANTINED, WorkerState.RETIRED),
    )


def _rate(own: WorkerRow) -> float | None:
    """What is simulated has the CPU's speed, which is not told."""
    return None if own.device is not None and naming.is_simulated(own.device) else own.rate


def _device(source: EvidenceSource, name: str, place: str) -> Cited:
    return derive(source, name, f"{place}/device: the last", lambda _: naming.called(name))


def _events(source: EvidenceSource) -> list[EvidenceTable]:
    """Each kind of trouble of each worker: how often, and the last words of it."""
    found: RunFiles = source.content
    seen: dict[tuple[str, EventKind], list[int]] = defaultdict(list)
    for line, event in enumerate(found.events):
        if event.kind in TROUBLES:
            seen[event.worker or "", event.kind].append(line)
    rows = [
        row(
            cite(source, pointer("events.jsonl", lines[0], "worker")) if worker else "–",
            TROUBLES[kind],
            derive(source, len(lines), f"number of lines {_listed(lines)} of events.jsonl", shown),
            cite(source, pointer("events.jsonl", lines[-1], "message")),
            how=_EVENT,
            bad=kind in _GRAVE,
        )
        for (worker, kind), lines in sorted(seen.items())
    ]
    title: list[Piece] = ["What happened to workers in the run ", cite(source, "/config.json/name")]
    columns = ["Worker", "What happened", "Times", "The last time"]
    return [EvidenceTable(title, columns, rows)] if rows else []


def _listed(lines: Sequence[int]) -> str:
    shown_lines = ", ".join(str(each) for each in lines[:8])
    return shown_lines + (", …" if len(lines) > 8 else "")


def _grave(source: EvidenceSource) -> list[Sentence]:
    """The first time of each, said at the beginning of the page, too."""
    found: RunFiles = source.content
    devices = {own.name: own.device for own in workers(found.metrics)}
    said, told = [], set()
    for line, event in enumerate(found.events):
        key = (event.worker, event.kind)
        if event.kind not in _GRAVE or event.worker is None or key in told:
            continue
        told.add(key)
        device = devices.get(event.worker)
        place = f"/metrics.jsonl/*{pointer('workers', event.worker)}"
        said.append(
            say(
                "In the run {} the worker {} on {} was {}: {}",
                cite(source, "/config.json/name"),
                cite(source, pointer("events.jsonl", line, "worker")),
                _device(source, device, place) if device else "an unnamed device",
                TROUBLES[event.kind].partition(":")[0],
                cite(source, pointer("events.jsonl", line, "message")),
                how=_EVENT,
            )
        )
    return said


def _learner(source: EvidenceSource) -> list[Sentence]:
    found: RunFiles = source.content
    said = [
        say(
            "The run {} ended as: {}.",
            cite(source, "/config.json/name"),
            derive(source, found.status, "/manifest.json/status", shown),
            how=_HOW,
        )
    ]
    if naming.SIMULATED in source.origin.machine:
        name = cite(source, "/config.json/name")
        said.append(
            say("Of the run {} no speed is told: part of it was simulated.", name, how=_HOW)
        )
        return said + _accuracy(source)
    steps = [each for each in found.metrics if each.step > 0]
    seconds = _median(source, steps, "seconds/step", lambda line: line.seconds.step)
    rate = _median(source, steps, "update/tokens_per_s", lambda line: line.update.tokens_per_s)
    if seconds and steps:
        count = derive(source, len(steps), "number of lines of metrics.jsonl with a step", shown)
        said.append(say("A step took {} s, the median of {} steps.", seconds, count, how=_HOW))
    if rate:
        said.append(say("Its learner took in {} tokens/s, the median step.", rate, how=_HOW))
    return said + _accuracy(source)


def _median(
    source: EvidenceSource,
    steps: Sequence[StepMetrics],
    name: str,
    value: Callable[[StepMetrics], float | None],
) -> Cited | None:
    known = [each for line in steps if (each := value(line)) is not None]
    if not known:
        return None
    return derive(source, statistics.median(known), f"/metrics.jsonl/*/{name}: the median", shown)


def _accuracy(source: EvidenceSource) -> list[Sentence]:
    """The first and the last of each stage: another stage may ask other problems."""
    placed: dict[int, dict[int, int]] = {}  # stage -> step -> line, the last of them
    for i, line in enumerate(source.tree.get("metrics.jsonl", [])):
        if line.get("accuracy") is not None:
            placed.setdefault(line.get("stage", 0), {})[line["step"]] = i
    said = []
    for stage, lines in sorted(placed.items()):
        if len(lines) < 2:
            continue
        ends = [pointer("metrics.jsonl", lines[step]) for step in (min(lines), max(lines))]
        pieces = [
            cite(source, f"{end}/{name}", form)
            for end in ends
            for name, form in (("accuracy", percent), ("step", None))
        ]
        of = derive(source, stage, f"{ends[0]}/stage", shown)
        said.append(
            say(
                "Right answers to held-out problems of stage {}: {} at step {}, {} at step {}.",
                *(of, *pieces),
                how=_HOW,
            )
        )
    return said
