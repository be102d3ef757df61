"""What is not shown: what a reader might expect, and no source says."""

from collections.abc import Iterator, Sequence
from functools import partial

from interlock.chips import vendors
from interlock.chips.admission import needs_certificate
from interlock.errors import ConfigError
from interlock.evidence import naming
from interlock.evidence.certified import certificates, not_run
from interlock.evidence.compared import parities
from interlock.evidence.identity import ToldChip, of_worker, sameness
from interlock.evidence.planned import plans
from interlock.evidence.ran import runs
from interlock.evidence.record import (
    EvidenceSource,
    NotShown,
    Sentence,
    SourceKind,
    cite,
    derive,
    pointer,
    say,
)
from interlock.plan.chips import find
from interlock.report.fleet import workers

_HOW = "absent from the sources"


def lacking(
    sources: Sequence[EvidenceSource], not_shown: Sequence[NotShown] = ()
) -> list[Sentence]:
    """In sentences; those that name a chip say where its name stands."""
    return [
        *(_plain(each.words) for each in not_shown),
        *_kinds(sources),
        *_alternatives(sources),
        *_uncertified(sources),
        *_priced(sources),
        *not_run(sources),
        *_unnamed(sources),
        *_unsealed(sources),
    ]


def _plain(text: str) -> Sentence:
    return Sentence([text], _HOW)


def _kinds(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    kinds = {each.origin.kind for each in sources}
    for kind, text in (
        (SourceKind.CERTIFICATE, "No certificate of any chip."),
        (SourceKind.PARITY, "No comparison of engines on the same tokens (interlock parity)."),
        (SourceKind.RUN, "No run: nothing is shown of days of work, or of what became of workers."),
        (SourceKind.PLAN, "No plan: nothing is said of hours, money or alternatives."),
        (SourceKind.FLEET, "No qualification of a whole fleet, or of links between nodes."),
    ):
        if kind not in kinds:
            yield _plain(text)
    if not kinds & {SourceKind.BENCH, SourceKind.PREFLIGHT, SourceKind.RUN}:
        yield _plain("No measured speed.")
    if not _real(sources):
        yield _plain(
            "Nothing here was measured on a real accelerator: what was measured is of simulated "
            "devices, or of a CPU."
        )


def _real(sources: Sequence[EvidenceSource]) -> bool:
    """Whether an accelerator that is not simulated was qualified, tried or run on."""
    kinds = {each.content.stack.kind for each in certificates(sources)}
    for each in sources:
        if each.origin.kind is SourceKind.BENCH:
            kinds.add(each.content.stack.kind)
        if each.origin.kind is SourceKind.PREFLIGHT:
            kinds.add(each.content.identity.stack.kind)
        if each.origin.kind is SourceKind.RUN:
            own = {own.device for own in workers(each.content.metrics)}
            kinds |= {vendors.kind_of(name) for name in own if name}
            kinds |= {stack.kind for stack in each.content.learners}
        if each.origin.kind is SourceKind.PARITY:
            labels = (each.content.a.label, each.content.b.label)
            kinds |= {vendors.kind_of(label.partition(":")[2]) for label in labels}
        if each.origin.kind is SourceKind.FLEET:
            kinds |= {device.kind for node in each.content.nodes for device in node.devices}
    return any(kind and not vendors.of(kind).host for kind in kinds)


def _alternatives(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """Chips of plans of which nothing was measured."""
    tried = {_catalogued(each.content.stack.chip) for each in certificates(sources)}
    told = set()
    for source in plans(sources):
        for i, stock in enumerate(source.content.chips):
            if stock.name in tried or stock.name in told:
                continue
            told.add(stock.name)
            yield say(
                "Of {}: no certificate and no measurement, only the figures that its vendor "
                "publishes.",
                cite(source, pointer("chips", i, "name")),
                how=_HOW,
            )


def _catalogued(chip: str) -> str:
    """The catalogue's name of a chip as its driver calls it; "": it has none."""
    try:
        return find(chip).name
    except ConfigError:
        return ""


def _uncertified(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """Devices that runs worked on, and of which there is no certificate; a CPU needs none."""
    certified = [each.content for each in certificates(sources)]
    for source in runs(sources):
        last = {name: own for line in source.content.metrics for name, own in line.workers.items()}
        for worker, own in last.items():
            told = of_worker(own)
            if told is None or not needs_certificate(told.kind):
                continue
            if not any(sameness(told, each) for each in certified):
                field = (
                    f"/metrics.jsonl/*{pointer('workers', worker)}/device, chip, serial: the last"
                )
                yield say(
                    "No certificate of {}, on which the run {} worked.",
                    derive(source, told.device, field, partial(_told, told)),
                    cite(source, "/config.json/name"),
                    how=_HOW,
                )


def _told(chip: ToldChip, _: object) -> str:
    return naming.told(*chip)


def _priced(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    told = set()
    for source in plans(sources):
        for name, price in source.content.prices.items():
            chip = derive(source, name, pointer("prices", name), str)
            if price is None and name not in told:
                told.add(name)
                yield say("No price of {}.", chip, how=_HOW)


def _unnamed(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    for source in parities(sources):
        if source.content.a.stack is not None and source.content.b.stack is not None:
            continue
        yield say(
            "The comparison of {} and {} names devices, not chips or drivers.",
            naming.device(source, "/b/label"),
            naming.device(source, "/a/label"),
            how=_HOW,
        )


def _unsealed(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    yield _plain(
        "Who measured. A seal shows that a file was not changed since; it is no signature."
    )
    if runs(sources):
        yield _plain(
            "That files of runs were not changed: they have no seal. Their digests are those of "
            "what was read."
        )
