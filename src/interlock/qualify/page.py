"""The page of a certificate: the verdict for whoever decides, the evidence for whoever doubts it.

    Certificate ──┬─ checks.py (what each proves, who needs it, what to do) ──┐
                  └─ plots.py ──> pictures ───────────────────────────────────┴─> one HTML sheet

It needs nothing but the certificate. What a device says of itself (names, exceptions, last words)
is shown escaped. A finding whose check is no longer in the table is shown like any other.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from interlock.chips import certificates
from interlock.qualify import plots
from interlock.qualify.check import Check
from interlock.qualify.checks import CHECKS
from interlock.records.trust import Certificate, Finding, Measure, Result, Role, Trust
from interlock.report import sheet

_HERE = Path(__file__).parent
_REASONS = 3  # said beside the verdict; the table has all
_TEXT = 4000  # characters of one text shown; the rest is counted
_BLANK = "–"
_NOT_ASKED_FOR = "not among the checks asked for"


class Ruling(NamedTuple):
    """A verdict in the words of whoever must act on it."""

    sign: str
    words: str
    meaning: str


class CheckRow(NamedTuple):
    """A check of the table with what it found; `check` is None when the table has it no more."""

    id: str
    check: Check | None
    finding: Finding


_RULINGS = {
    Trust.TRAIN: Ruling(
        "✔",
        "May TRAIN and GENERATE",
        "Every check passed. It may hold the learner of a run, its generators, or both.",
    ),
    Trust.GENERATE: Ruling(
        "◐",
        "May only GENERATE",
        "What generation needs is proven; what training needs is not. Let generators run on it, "
        "and the learner elsewhere: it measures, and corrects for, what they do differently.",
    ),
    Trust.REJECT: Ruling(
        "✖",
        "REJECTED",
        "A check that every use of it depends on has failed. It may neither train nor generate.",
    ),
    Trust.UNKNOWN: Ruling(
        "?",
        "Not decided",
        "Not all checks that decide were run, and what did not run proves nothing. Until they "
        "have, it may neither train nor generate.",
    ),
}
_RESULTS = {Result.PASS: "✔ passed", Result.FAIL: "✖ failed", Result.UNKNOWN: "? did not run"}
_LEVELS = {
    "quick": "quick (small forms)",
    "default": "default",
    "soak": "soak (default and longer)",
}
_ORDER = [Result.FAIL, Result.UNKNOWN, Result.PASS]  # of the evidence


def write_page(certificate: Certificate, path: Path) -> Path:
    """Write the page to `path`; a reader sees the old file or the whole new one.

    Raises RunError when `path` is a directory or cannot be written.
    """
    return sheet.write(path, page(certificate))


def page(certificate: Certificate) -> str:
    """The whole HTML document."""
    rows = _rows(certificate)
    reasons = _reasons(certificate, rows)
    ruling = _RULINGS[certificate.trust]
    chip = certificate.stack.chip or certificate.device
    environment = sheet.environment(_HERE)
    environment.filters["number"] = _shown
    environment.filters["seconds"] = _seconds
    body = environment.get_template("page.html").render(
        certificate=certificate,
        chip=chip,
        ruling=ruling,
        reasons=reasons[:_REASONS],
        reasons_left_out=max(0, len(reasons) - _REASONS),
        tally=Counter(row.finding.result for row in rows),
        scope=_scope(certificate),
        rows=rows,
        evidence=sorted(filter(_has_evidence, rows), key=lambda r: _ORDER.index(r.finding.result)),
        tasks=_tasks(certificate, rows),
        results=_RESULTS,
        roles=list(Role),
        overview=plots.overview(row.finding for row in rows),
        pictures={row.id: plots.pictures(row.finding) for row in rows},
        draw=lambda picture: sheet.figure(picture.figure, picture.height),
        cases={row.id: [_case(measure) for measure in row.finding.measures] for row in rows},
    )
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return sheet.sheet(f"{ruling.words}: {chip} · Interlock", body, style)


def _rows(certificate: Certificate) -> list[CheckRow]:
    """Every finding, in its order, and then the checks of the table that nothing was found of."""
    rows = [CheckRow(f.check, CHECKS.get(f.check), f) for f in certificate.findings]
    found = {row.id for row in rows}
    return rows + [
        CheckRow(check.id, check, Finding(check.id, Result.UNKNOWN, _NOT_ASKED_FOR))
        for check in CHECKS.values()
        if check.id not in found
    ]


def _reasons(certificate: Certificate, rows: Sequence[CheckRow]) -> list[str]:
    """The certificate's reasons; the checks that nobody asked for are one of them."""
    left_out = {row.id for row in rows if row.finding.summary == _NOT_ASKED_FOR}
    reasons = [_clip(r, 300) for r in certificate.reasons if r.partition(" ")[0] not in left_out]
    if left_out:
        reasons.append(f"{len(left_out)} of {len(rows)} checks were not asked for")
    return reasons


def _scope(certificate: Certificate) -> dict[str, str]:
    """What the certificate is valid for; every part must match."""
    stack = certificate.stack
    issued = datetime.fromtimestamp(certificate.issued, UTC)
    return {
        "Chip": stack.chip or _BLANK,
        "Serial": stack.serial or _BLANK,
        "Device": f"{certificate.device} ({stack.kind})",
        "Driver": stack.driver or _BLANK,
        "Firmware": stack.firmware or _BLANK,
        "Runtime": stack.runtime or _BLANK,
        "torch": stack.torch or _BLANK,
        "Plugin": stack.plugin or _BLANK,
        "Libraries": stack.libraries or _BLANK,
        "vLLM": stack.vllm or _BLANK,
        "Interlock": _interlock(certificate),
        "Level of the checks": _LEVELS.get(certificate.level, certificate.level),
        "Processes in collectives": f"{certificate.world_size}",
        "Models whose sizes were tried": ", ".join(certificate.models) or _BLANK,
        "Issued": f"{issued:%Y-%m-%d %H:%M} UTC",
    }


def _interlock(certificate: Certificate) -> str:
    """ "0.1.0, commit 1965b7a, checks 30c1f0e0a1b2"."""
    stack = certificate.stack
    named = {"commit": certificate.commit[:7], "checks": stack.suite}
    parts = [stack.interlock, *(f"{name} {value}" for name, value in named.items() if value)]
    return ", ".join(filter(None, parts)) or _BLANK


def _tasks(certificate: Certificate, rows: Sequence[CheckRow]) -> list[tuple[str, str]]:
    """(what it is about, what to do), the failed checks first."""
    tasks = []
    failed = [row for row in rows if row.finding.result is Result.FAIL]
    for row in failed:
        remedy = row.check.remedy if row.check else "see the evidence below"
        advice = row.finding.figures.get("advice")
        tasks.append((row.id, f"{remedy}; {advice}" if advice else remedy))
    if certificate.trust is Trust.GENERATE:
        tasks.append(("meanwhile", "use it for generators, with the learner on another device"))
    again = certificates.remedy(certificate.device)
    not_run = sum(row.finding.result is Result.UNKNOWN for row in rows)
    if failed:
        tasks.append(("once mended", f"qualify it again, with every check; {again}"))
    elif not_run:
        lacking = "; of a check that could not run here, the table says what it lacks"
        tasks.append((f"{not_run} not run", f"let every check run; {again}{lacking}"))
    return tasks


def _has_evidence(row: CheckRow) -> bool:
    return bool(row.finding.figures or row.finding.measures)


def _case(measure: Measure) -> dict[str, Any]:
    """One line of the list of cases."""
    return {
        "name": _clip(measure.name, 300),
        "value": plots.number(measure.value),
        "limit": plots.number(measure.limit),
        "reference": _BLANK if measure.reference is None else plots.number(measure.reference),
        "share": plots.number(plots.share(measure)),
        "result": Result.FAIL if plots.failed(measure) else Result.PASS,
    }


def _shown(value: float | int | str) -> str:
    return _clip(value, _TEXT) if isinstance(value, str) else plots.number(value)


def _clip(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return f"{text[:length]}… ({len(text) - length:,} more characters)"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
