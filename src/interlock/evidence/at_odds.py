"""Where sources contradict one another, or themselves: all of them are shown, none is chosen."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec.structs import replace

from interlock.chips.admission import needs_certificate
from interlock.chips.verdict import judge
from interlock.evidence import naming
from interlock.evidence.certified import certificates, verdict_of
from interlock.evidence.compared import parities
from interlock.evidence.identity import Sameness, of_side, of_worker, same_chip, sameness, worker_at
from interlock.evidence.planned import plans
from interlock.evidence.ran import runs
from interlock.evidence.record import (
    EvidenceSection,
    EvidenceSource,
    Piece,
    Sentence,
    amount,
    cite,
    derive,
    pointer,
    say,
)
from interlock.evidence.written import ParityFile, WrittenPrice
from interlock.records.trust import Certificate, Stack, Trust

_HOW = "found by holding the sources against each other"
_RULES = "the rules of chips/verdict.py on the certificate's own findings"
_USABLE = (Trust.TRAIN, Trust.GENERATE)
_DOUBTS = {
    Sameness.BY_SERIAL: "",
    Sameness.BY_NAME: "; the device has no serial number, and is known by its name",
    Sameness.BY_NAME_ALONE: "; the former tells no serial number: the device is known by its name",
}
_APART = 0.01  # of the hours of two plans of the same, from which they differ


class PlacedStack(NamedTuple):
    source: EvidenceSource
    stack: Stack
    place: str  # in the source, a JSON pointer


def at_odds(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    said = [
        *_verdicts(sources),
        *_rules(sources),
        *_parity(sources),
        *_quarantined(sources),
        *_hours(sources),
        *_prices(sources),
    ]
    return EvidenceSection(
        "Where the sources disagree",
        "Sources that contradict one another, or are of different software, are all shown; which "
        "of them holds is for the reader to judge.",
        brief=said,
        sentences=said,
    )


def _verdicts(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """Certificates of one chip, in the order in which they were issued, pair by pair."""
    groups: dict[tuple[str, str, str], list[EvidenceSource]] = defaultdict(list)
    for source in certificates(sources):
        groups[same_chip(source.content)].append(source)
    for group in groups.values():
        ordered = sorted(group, key=lambda each: each.origin.made)
        for older, newer in pairwise(ordered):
            yield from _pair(older, newer)


def _pair(older: EvidenceSource, newer: EvidenceSource) -> Iterator[Sentence]:
    was, now = older.content, newer.content
    changed = _changed(
        PlacedStack(older, was.stack, "/stack"), PlacedStack(newer, now.stack, "/stack")
    )
    chip, slots = naming.chip(newer, now.stack, "stack"), "{}" * len(changed)
    if was.trust is not now.trust:
        why = f"between them changed {slots}" if changed else "both are of the same software"
        yield say(
            "Two certificates of {} differ in their verdict: the older one says {}, the newer one "
            f"{{}}; {why}.",
            *(chip, verdict_of(older), verdict_of(newer), *changed),
            how=_HOW,
        )
    elif changed:
        yield say(
            f"An older certificate of {{}} is of other software than the newer one: {slots}. It "
            "proves nothing of the newer.",
            *(chip, *changed),
            how=_HOW,
        )


def _changed(before: PlacedStack, after: PlacedStack) -> list[Piece]:
    """ "driver 1 → 2, torch 2.12 → 2.13"."""
    found: list[Piece] = []
    for name in Stack.__struct_fields__:
        if getattr(before.stack, name) == getattr(after.stack, name):
            continue
        was, now = (
            cite(each.source, each.place + pointer(name), _or_none) for each in (before, after)
        )
        found += [", "] if found else []
        found += [f"{name} ", was, " → ", now]
    return found


def _or_none(text: str) -> str:
    return text or "none"


def _rules(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """A certificate never says more than its findings."""
    for source in certificates(sources):
        found: Certificate = source.content
        today, _ = judge(found.findings)
        if today is not found.trust:
            yield say(
                "The certificate of {} says {}; by the rules of this version its findings give {}.",
                naming.chip(source, found.stack, "stack"),
                cite(source, "/trust"),
                derive(source, today.value, "/findings/*/result by the rules", str),
                how=_RULES,
            )


def _parity(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """Of a device against the CPU, which is the reference; of two others either may be at fault."""
    for parity in parities(sources):
        found: ParityFile = parity.content
        chips = {name: of_side(side) for name, side in (("a", found.a), ("b", found.b))}
        judged = [name for name, told in chips.items() if needs_certificate(told.kind)]
        for name in judged if len(judged) == 1 else ():
            for source in certificates(sources):
                usable, different = source.content.trust in _USABLE, found.verdict == "different"
                if usable is different and (alike := sameness(chips[name], source.content)):
                    yield _against(parity, name, source, alike)


def _against(
    parity: EvidenceSource, side: str, certificate: EvidenceSource, alike: Sameness
) -> Sentence:
    """A comparison that says otherwise than a certificate, and of which software either is."""
    stack, found = getattr(parity.content, side).stack, certificate.content
    changed: list[Piece] = []
    if stack is not None:
        certified = PlacedStack(certificate, found.stack, "/stack")
        changed = _changed(certified, PlacedStack(parity, stack, pointer(side, "stack")))
    slots = "{}" * len(changed)
    return say(
        "Parity of {} and {} says {}, and the certificate of {} says {}"
        f"{'; from this to that changed ' + slots if changed else ''}{_DOUBTS[alike]}.",
        naming.device(parity, "/b/label"),
        naming.device(parity, "/a/label"),
        cite(parity, "/verdict"),
        naming.chip(certificate, found.stack, "stack"),
        cite(certificate, "/trust"),
        *changed,
        how=_HOW,
    )


def _quarantined(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """A chip that a certificate lets generate, and that a run put in quarantine."""
    for run in runs(sources):
        for line, event in enumerate(run.content.events):
            if event.kind != "worker_quarantined" or event.worker is None:
                continue
            worker = worker_at(run.content.metrics, event.worker, event.time)
            told = None if worker is None else of_worker(worker)
            if told is None:
                continue
            for source in certificates(sources):
                found: Certificate = source.content
                if found.trust in _USABLE and (alike := sameness(told, found)):
                    yield say(
                        "The run {} put the worker {} in quarantine, and the certificate of its "
                        f"device, {{}}, says {{}}{_DOUBTS[alike]}.",
                        cite(run, "/config.json/name"),
                        cite(run, pointer("events.jsonl", line, "worker")),
                        naming.chip(source, found.stack, "stack"),
                        cite(source, "/trust"),
                        how=_HOW,
                    )


def _hours(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """Two plans of the same recipe on the same chips that give other hours."""
    groups: dict[tuple[str, str, str], list[EvidenceSource]] = defaultdict(list)
    for source in plans(sources):
        plan = source.content
        groups[plan.recipe, plan.model.name, plan.placement].append(source)
    for group in groups.values():
        for one, other in pairwise(group):
            a, b = (each.content.hours.middle for each in (one, other))
            if a is None or b is None or abs(a - b) <= _APART * max(a, b):
                continue
            yield say(
                "Two plans of {} on {} differ: {} and {} hours.",
                cite(one, "/recipe"),
                cite(one, "/placement"),
                cite(one, "/hours/middle"),
                cite(other, "/hours/middle"),
                how=_HOW,
            )


def _prices(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """A chip that several plans put at several prices."""
    seen: dict[str, dict[WrittenPrice, EvidenceSource]] = defaultdict(dict)
    for source in plans(sources):
        for name, price in source.content.prices.items():
            if price is not None:
                seen[name].setdefault(replace(price, source="", date=""), source)
    for name, found in seen.items():
        if len(found) > 1:
            pieces: list[Piece] = []
            for price, source in found.items():
                pieces += [", "] if pieces else []
                pieces += _span(source, name, price)
            first = next(iter(found.values()))
            chip = derive(first, name, pointer("prices", name), str)
            slots = "{}" * len(pieces)
            yield say(
                f"Plans put {{}} at several prices, a chip and hour: {slots}.",
                chip,
                *pieces,
                how=_HOW,
            )


def _span(source: EvidenceSource, name: str, price: WrittenPrice) -> list[Piece]:
    low, high = (
        cite(source, pointer("prices", name, end), amount(price.currency))
        for end in ("low", "high")
    )
    return [low] if price.low == price.high else [low, " to ", high]
