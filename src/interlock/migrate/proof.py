"""Whether a run may go on on a device: its certificate, and what it makes of the run's own updates.

    device ── certificate ──> admitted, or nothing more is asked of it
    recipes/repeat.py, a process of its own ── exact, own, target ──bands.py──> Finding …

What the run logged of these updates decides nothing: where the device agrees with the exact figures
and the log does not, it is the old device, or its checkpoint, that was wrong.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple, get_args

import msgspec

from interlock.chips import admission, certificates
from interlock.chips.rounding import MARGIN
from interlock.errors import RunError, TrainingError, UserError
from interlock.migrate import bands
from interlock.processes.child import Child, ChildError, ChildLate, inherited
from interlock.records.coding import from_bytes
from interlock.records.metrics import StepMetrics
from interlock.records.moves import DeviceOpened, NotRepeated, Repeat, RepeatAnswer, Repeated, Side
from interlock.records.trust import Finding, Measure, Result, Role, Stack
from interlock.rundir import RunView
from interlock.text import error_line

CERTIFICATE, RECORDED = "certificate", "recorded"
_MODULE = "interlock.recipes.repeat"
_MOST_BYTES = 256 << 20  # log-probabilities of some updates are a thousandth
_OPENING_S = 600.0  # for the device, and to read the run
Tell = Callable[[str], None]
Sides = dict[tuple[Side, str], Repeated]  # by dtype too


class Proof(NamedTuple):
    """What a device has shown."""

    opened: DeviceOpened
    trust: str  # of its certificate; "cpu", which needs none; or "unqualified"
    findings: list[Finding]

    def refused(self, unqualified: bool) -> list[str]:
        """Why the run may not go on there, a line each."""
        mild = {RECORDED, CERTIFICATE} if unqualified else {RECORDED}
        return [
            f"{each.check}: {each.summary}"
            for each in self.findings
            if each.result is not Result.PASS and each.check not in mild
        ]


def prove(
    run: RunView, asked: Repeat, role: Role, unqualified: bool, side_s: float, tell: Tell
) -> Proof:
    """Ask the device, for at most `side_s` seconds a side.

    Raises UserError where the run cannot be repeated, and TrainingError where the CPU fails
    and not the device.
    """
    try:
        child = Child(_MODULE, inherited())
    except OSError as error:
        raise TrainingError(f"no process can be started: {error}") from None
    with closing(child):
        tell(f"opening {asked.device}")
        child.send(msgspec.msgpack.encode(asked))
        opened = _opened(_answer(child, _OPENING_S), asked.device)
        trust, certified = _certified(opened.stack, asked.device, role)
        if certified.result is not Result.PASS and not unqualified:
            return Proof(opened, trust, [certified])
        sides, failed = _sides(child, opened, asked.device, side_s, tell)
    if failed is not None:
        return Proof(opened, trust, [certified, failed])
    stage = run.checkpoints()[-1].stage
    lines = {line.step: line for line in run.metrics() if line.stage == stage}
    return Proof(opened, trust, [certified, *_judged(sides, opened, lines)])


def _opened(answer: RepeatAnswer | ChildError, device: str) -> DeviceOpened:
    match answer:
        case DeviceOpened():
            return answer
        case NotRepeated(reason, users):
            raise UserError(reason) if users else TrainingError(reason)
    raise RunError(f"{device} cannot be opened: {answer}; see `interlock doctor`")


def _certified(stack: Stack, device: str, role: Role) -> tuple[str, Finding]:
    """The trust in the device, and whether it is enough for the role."""
    if not admission.needs_certificate(stack.kind):
        told = f"{certificates.described(stack)} needs none: it is the reference"
        return stack.kind, Finding(CERTIFICATE, Result.PASS, told)
    try:
        filed = certificates.find(stack)
    except RunError as error:
        return admission.UNQUALIFIED, Finding(CERTIFICATE, Result.UNKNOWN, error_line(error))
    found = admission.admit(stack, filed, role, device=device)
    if found.why is not None:
        return found.trust, Finding(CERTIFICATE, Result.FAIL, found.why)
    assert filed is not None
    figures: dict[str, float | int | str] = {"level": filed.level, "issued": filed.issued}
    figures["checksum"] = filed.checksum
    told = f"{certificates.described(stack)} is certified to {filed.trust}"
    return found.trust, Finding(CERTIFICATE, Result.PASS, told, figures=figures)


def _sides(
    child: Child, opened: DeviceOpened, device: str, side_s: float, tell: Tell
) -> tuple[Sides, Finding | None]:
    """All sides; or how the device failed. Raises TrainingError when the CPU does."""
    found: Sides = {}
    order: list[tuple[Side, str]] = []
    for dtype in opened.dtypes:
        order += [("exact", dtype), ("own", dtype), ("target", dtype)]
    where = {"exact": "the CPU in float64", "own": "the CPU", "target": device}
    for side, dtype in order:
        in_dtype = f", for {dtype}" if side == "exact" else f" in {dtype}"
        count = len(opened.steps)
        what = f"{count} update{'s' * (count != 1)} on {where[side]}{in_dtype}"
        tell(what)
        match answer := _answer(child, side_s):
            case Repeated():
                found[side, dtype] = answer
                continue
            case NotRepeated(reason, users=True) if side != "target":
                raise UserError(reason)  # of the run's files, which the CPU reads first
            case NotRepeated(reason):
                why = f"it raised {reason}"
            case ChildLate():
                hangs = side == "target" and not answer.deadline.busy
                why = f"{answer}" + (": it hangs, or is too slow" if hangs else "; raise --timeout")
            case _ if child.was_killed:  # by no fault of the device
                raise TrainingError(
                    f"{what}: the process was killed, as where memory is short; free some, or "
                    "lower --tokens"
                )
            case _:
                why = f"its process died: {answer}"
        if side == "target":
            return found, Finding("updates", Result.FAIL, f"{what}: {why}")
        raise TrainingError(f"{what}: {why}")
    return found, None


def _answer(child: Child, seconds: float) -> RepeatAnswer | ChildError:
    try:
        found: RepeatAnswer = from_bytes(child.receive(seconds, _MOST_BYTES), RepeatAnswer)
    except ChildError as error:
        return error
    except ValueError as error:
        return ChildError(f"it sent what is no answer ({error_line(error, 200)})")
    return found


def _judged(sides: Sides, opened: DeviceOpened, lines: Mapping[int, StepMetrics]) -> list[Finding]:
    updates, canary = list[Measure](), list[Measure]()
    for dtype in opened.dtypes:
        exact, own, target = (sides[side, dtype] for side in get_args(Side))
        updates += bands.updates(exact, own, target)
        margin = MARGIN[dtype]
        canary += bands.logprobs(dtype, exact.canary, own.canary, target.canary, margin)
    dtype = opened.dtypes[0]
    exact, own, target = (sides[side, dtype] for side in get_args(Side))
    logged = bands.recorded(lines, exact, own, target) if opened.recorded else []
    steps = ", ".join(map(str, opened.steps))
    findings = [
        _finding("updates", updates, f"updates of steps {steps} are the reference's"),
        _finding("canary", canary, "the canary's log-probabilities are the reference's"),
    ]
    if logged:
        findings.append(_finding(RECORDED, logged, "they are those that the run recorded"))
        return findings
    why = "of these updates at the checkpoint's weights the run recorded nothing to compare with"
    return [*findings, Finding(RECORDED, Result.UNKNOWN, why)]


def _finding(check: str, measures: list[Measure], right: str) -> Finding:
    failed = [each for each in measures if not each.value <= each.limit]
    others = [each for each in measures if each.value <= each.limit]
    ordered = sorted(failed, key=lambda each: each.value / each.limit, reverse=True) + others
    if not failed:
        return Finding(check, Result.PASS, f"{right}, up to rounding", measures=ordered)
    worst = ordered[0]
    told = (
        f"{len(failed)} of {len(measures)} figures are beyond rounding, worst: {worst.name} "
        f"{worst.value:.3g}, at most {worst.limit:.3g}"
    )
    return Finding(check, Result.FAIL, told, measures=ordered)
