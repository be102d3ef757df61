"""What parity says: whether two engines or devices compute the same."""

from collections.abc import Sequence

from interlock.evidence import naming
from interlock.evidence.record import (
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Sentence,
    SourceKind,
    cite,
    percent,
    pointer,
    row,
    say,
)
from interlock.evidence.written import ParityFile

_HOW = (
    "interlock parity: the same prompts and tokens scored by both sides; k3 is the mean of "
    "e^d - 1 - d over the tokens, d the difference of their log-probabilities"
)
_ON_TASK = "interlock parity --task: greedy answers to the same problems; 95 % Wilson interval"


def parities(sources: Sequence[EvidenceSource]) -> list[EvidenceSource]:
    return [each for each in sources if each.origin.kind is SourceKind.PARITY]


def compared(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    found = parities(sources)
    tables = [table for each in found for table in (_differences(each), *_task(each))]
    return EvidenceSection(
        "Whether it computes what another computes",
        "The same model on two sides. How far apart their log-probabilities of the same tokens are "
        "is a number; the band says up to where it counts as the same, and as close.",
        brief=[_verdict(each) for each in found],
        sentences=[said for each in found for said in (_verdict(each), *_said(each))],
        tables=tables,
    )


def _verdict(source: EvidenceSource) -> Sentence:
    a, b = naming.device(source, "/a/label"), naming.device(source, "/b/label")
    return say("{} against {}: {}.", b, a, cite(source, "/verdict"), how=_HOW)


def _said(source: EvidenceSource) -> list[Sentence]:
    found: ParityFile = source.content
    said = [
        say(
            "Allowed were k3 {} as the same, and {} as close, nats per token.",
            cite(source, "/band/warn"),
            cite(source, "/band/quarantine"),
            how=_HOW,
        ),
    ]
    said += [
        say("A side could not do its part: {}", cite(source, pointer("failures", i)), how=_HOW)
        for i in range(len(found.failures))
    ]
    if found.greedy is not None:
        said.append(
            say(
                "Of {} greedy answers {} are the same to the last token.",
                cite(source, "/greedy/answers"),
                cite(source, "/greedy/identical"),
                how=_HOW,
            )
        )
    return said


def _differences(source: EvidenceSource) -> EvidenceTable:
    found: ParityFile = source.content
    rows = [_difference(source, i) for i in range(len(found.differences))]
    a, b = naming.device(source, "/a/label"), naming.device(source, "/b/label")
    return EvidenceTable(
        [b, " against ", a],
        ["Compared", "Tokens", "k3", "Largest difference", "Twice as likely"],
        rows,
    )


def _difference(source: EvidenceSource, i: int) -> EvidenceRow:
    found: ParityFile = source.content
    k3 = found.differences[i].mismatch.k3
    cells = [cite(source, pointer("differences", i, "name"))]
    for name, form in (("tokens", None), ("k3", None), ("max", None), ("share_above_2", percent)):
        cells.append(cite(source, pointer("differences", i, "mismatch", name), form))
    return row(*cells, how=_HOW, bad=k3 is None or k3 > found.band.quarantine)


def _task(source: EvidenceSource) -> list[EvidenceTable]:
    found: ParityFile = source.content
    if found.task is None or found.task.not_judged is not None:
        return []
    rows = [
        row(
            naming.device(source, f"/{side}/label"),
            cite(source, f"/task/{side}/share", percent),
            [
                cite(source, f"/task/{side}/low", percent),
                " to ",
                cite(source, f"/task/{side}/high", percent),
            ],
            cite(source, "/task/problems"),
            cite(source, "/task/p"),
            how=_ON_TASK,
        )
        for side in ("a", "b")
    ]
    columns = ["Side", "Right answers", "Interval", "Problems", "p that they are equally good"]
    return [EvidenceTable(["Right answers to ", cite(source, "/task/task")], columns, rows)]
