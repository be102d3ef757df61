"""Qualifies one device: every check in a process of its own, then the verdict.

    device ──Stack──> checks, one after another ──Finding …──> verdict.py ──> sealed Certificate
                          │ template.py forks one process for each
                          └─ crash, hang, exception: a finding; does a new process recover?

After a hang in a check that generation needs nothing can be gained any more, and each further one
may cost its whole deadline: the rest stays UNKNOWN. So it does where the machine is so busy that a
check met its deadline: that is UNKNOWN itself, for nothing is known of the device. With `fail_fast`
so it does after any failure in such a check.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import torch

from interlock.chips import certificates, threads, vendors, versions
from interlock.chips.verdict import judge
from interlock.errors import ConfigError
from interlock.models import catalogue
from interlock.processes.child import (
    Child,
    ChildEnded,
    ChildError,
    ChildGarbage,
    ChildLate,
    inherited,
)
from interlock.processes.fork import FORKS
from interlock.processes.scratch import Scratch
from interlock.qualify import faults
from interlock.qualify.check import Check, Evidence, Level
from interlock.qualify.checks import CHECKS
from interlock.qualify.probe import (
    Known,
    NotRun,
    ProbeReply,
    ProbeRequest,
    Raised,
    Shown,
    decode_reply,
)
from interlock.records.trust import Certificate, Finding, Result, Role, Sizes, Stack
from interlock.text import error_line, visible

_OPENING_S = 120.0  # for a device to say what it is
_RECOVERY_S = 60.0
_LOG_TAIL = 2000  # characters of a process's last words kept as evidence
_MODULE = "interlock.qualify.template"
_MOST_ANSWER_BYTES = 16 << 20  # a thousand measures with long names are a fiftieth of it


class Watch:
    """What the caller is told while checks run; nothing by default."""

    def begins(self, check: Check) -> None: ...
    def ended(self, finding: Finding) -> None: ...


def chosen(names: Sequence[str]) -> list[Check]:
    """The checks called `names`, all if there are none. Raises ConfigError on an unknown one."""
    if unknown := next((name for name in names if name not in CHECKS), None):
        raise ConfigError(f"there is no check {unknown!r}; choose from {', '.join(CHECKS)}")
    return [check for check in CHECKS.values() if not names or check.id in names]


def qualify(
    name: str,
    level: Level = Level.DEFAULT,
    *,
    checks: Sequence[Check] | None = None,
    minutes: float = 0.0,
    seed: int = 0,
    fail_fast: bool = False,
    model: tuple[str, Sizes] | None = None,
    watch: Watch | None = None,
) -> Certificate:
    """Run the checks on a device, and seal what they found. Files nothing.

    Args:
        name: of the device, as settings name it.
        checks: some of CHECKS; None: all.
        minutes: of soak, at Level.SOAK.
        seed: of the checks' data.
        fail_fast: stop once the device is rejected.
        model: the name and the sizes of one that is to be tried beside those of the catalogue.
        watch: is told what begins and ends.

    Raises:
        ConfigError: there is no such device.
    """
    chosen = list(CHECKS.values()) if checks is None else checks
    ask = ProbeRequest(name, level, minutes, seed, model=model[1] if model else None)
    with (
        Scratch("interlock-qualify-") as logs,
        closing(_Probes(logs / "log", ask, chosen, fail_fast)) as probes,
    ):
        stack, silent = probes.identify()
        given_up = silent.summary if silent else ""
        findings, world_size = probes.run(chosen, watch or Watch(), given_up)
    if silent:
        findings = [silent, *(finding for finding in findings if finding.check != silent.check)]
    trust, reasons = judge(findings)
    tried, models = _covered(findings, model)
    return certificates.seal(
        Certificate(
            stack,
            name,
            world_size,
            level,
            trust,
            reasons,
            findings,
            time.time(),
            versions.commit(),
            tried,
            models,
        )
    )


def _covered(
    findings: Sequence[Finding], model: tuple[str, Sizes] | None
) -> tuple[Sizes, list[str]]:
    """The largest sizes that the numbers were right at, and the models that have no larger ones."""
    if not any(each.check == "forward" and each.result is Result.PASS for each in findings):
        return Sizes(), []
    tried = catalogue.largest([catalogue.most(), *([model[1]] if model else [])])
    names = catalogue.within(tried)
    return tried, [*names, model[0]] if model and model[0] not in names else names


class _Probes:
    """The probes of one device: forks of one process, and of one more where checks are strict."""

    def __init__(
        self, log: Path, ask: ProbeRequest, checks: Sequence[Check], fail_fast: bool
    ) -> None:
        self._log, self._ask, self._fail_fast = log, ask, fail_fast
        modules = dict.fromkeys(check.function.partition(":")[0] for check in checks)
        self._modules = " ".join(modules).encode()
        self._strict_env = vendors.of(vendors.kind_of(ask.device)).strict_env
        # Beside others that hold processors, more threads than are left wait for one another.
        fit = threads.now(torch.device("cpu"))
        self._env = {} if fit == torch.get_num_threads() else {"OMP_NUM_THREADS": str(fit)}
        self._world_size = 1
        self._templates: dict[bool, Child] = {}  # by whether it is strict
        self._last_words = ""

    def close(self) -> None:
        for template in self._templates.values():
            template.close()

    def identify(self) -> tuple[Stack, Finding | None]:
        """What the device is; or nothing but its kind, and what that it does not say more shows."""
        match self._answer(self._ask, _OPENING_S):
            case Known(stack):
                return stack, None
            case NotRun(reason):
                raise ConfigError(reason)
            case answer:
                why, _ = _ending(answer)
                result = Result.UNKNOWN if _on_busy_machine(answer) else Result.FAIL
                silent = Finding("versions", result, f"when it was opened, {why}")
                return Stack(vendors.kind_of(self._ask.device)), silent

    def run(
        self, checks: Sequence[Check], watch: Watch, given_up: str = ""
    ) -> tuple[list[Finding], int]:
        """The findings, and the processes that the collectives were proven with.

        `given_up`: why none is to be run.
        """
        findings: list[Finding] = []
        for check in checks:
            watch.begins(check)
            if given_up:
                finding = Finding(check.id, Result.UNKNOWN, given_up)
            else:
                finding, late = self._find(check)
                final = late or (self._fail_fast and finding.result is Result.FAIL)
                if final and Role.GENERATE in check.needed:
                    failed = "hung" if late else "failed"
                    busy = finding.result is Result.UNKNOWN
                    why = "met its deadline on a busy machine" if busy else failed
                    given_up = f"not tried after {check.id} {why}"
            findings.append(finding)
            watch.ended(finding)
        return findings, self._world_size

    def _find(self, check: Check) -> tuple[Finding, bool]:
        """What the check found, and whether it had to be killed for it."""
        ask = msgspec.structs.replace(self._ask, function=check.function)
        seconds = check.deadline_s[ask.level] + 60 * ask.minutes * (check.id == "soak")
        began = time.monotonic()
        answer = self._answer(ask, seconds, check.strict and bool(self._strict_env))
        took = time.monotonic() - began
        match answer:
            case Shown(evidence):
                if evidence.passed:
                    self._world_size = max(self._world_size, evidence.world_size)
                return _finding(check, evidence, took), False
            case NotRun(reason):
                return Finding(check.id, Result.UNKNOWN, reason, took), False
        summary, trace = _ending(answer)
        late = isinstance(answer, ChildLate)
        if _on_busy_machine(answer):
            return Finding(check.id, Result.UNKNOWN, summary, took), late
        return self._failure(check, summary, trace, took), late

    def _failure(self, check: Check, summary: str, trace: str, took: float) -> Finding:
        """What is known of a check that did not come to its end."""
        told = trace or self._last_words
        figures: dict[str, float | int | str] = {"last words": told} if told else {}
        if fault := faults.classify(f"{summary}\n{told}"):
            summary = f"{summary} ({fault.kind}: {fault.meaning})"
            figures |= {"fault": fault.code, "kind of fault": fault.kind, "advice": fault.advice}
        recovers = faults.recovers(self._ask.device, _RECOVERY_S)
        figures["a new process can use the device"] = "yes" if recovers else "no"
        return Finding(check.id, Result.FAIL, summary, took, figures)

    def _answer(
        self, ask: ProbeRequest, seconds: float, strict: bool = False
    ) -> ProbeReply | ChildError:
        """What a probe says within the time, or why it says nothing. It is gone afterwards."""
        self._last_words = ""
        try:
            template = self._template(strict)
        except OSError as error:
            return ChildEnded(f"cannot be started: {error}")
        template.forget_words()
        answer: ProbeReply | ChildError
        try:
            data = template.ask(msgspec.msgpack.encode(ask), seconds, _MOST_ANSWER_BYTES)
            answer = decode_reply(data)
        except msgspec.MsgspecError as error:
            answer = ChildGarbage(f"it sent what is no answer: {error_line(error, 300)}")
        except ChildError as error:
            answer = error
        self._last_words = visible(template.last_words())[-_LOG_TAIL:]
        if isinstance(answer, ChildError) or not FORKS:
            del self._templates[strict]
            template.close()
        return answer

    def _template(self, strict: bool) -> Child:
        """The process at hand, or a new one. Raises OSError."""
        if strict not in self._templates:
            settings = self._env | (self._strict_env if strict else {})
            self._templates[strict] = Child(_MODULE, inherited(settings), log=self._log)
            self._templates[strict].send(self._modules)
        return self._templates[strict]


def _ending(answer: ProbeReply | ChildError) -> tuple[str, str]:
    """How a check that did not come to its end ended, and where in the code."""
    match answer:
        case Raised(error, trace):
            return f"it raised {error}", trace
        case ChildLate():
            hangs = "" if answer.deadline.busy else ": the device hangs, or is far too slow"
            return f"{answer}{hangs}", ""
        case ChildError():
            return f"its process died: {answer}", ""
    raise AssertionError(answer)


def _on_busy_machine(answer: ProbeReply | ChildError) -> bool:
    """Whether there is no answer, and the machine may be to blame."""
    return isinstance(answer, ChildLate) and answer.deadline.busy


def _finding(check: Check, evidence: Evidence, took: float) -> Finding:
    result = Result.PASS if evidence.passed else Result.FAIL
    return Finding(
        check.id, result, evidence.summary, took, evidence.figures, list(evidence.measures)
    )
