"""What a comparison found, as one record: parity.json, and all that the page is made of.

Report without a verdict ──judged──> verdict, the headline for whoever decides, and the reasons
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from statistics import fmean

import msgspec

from interlock.config import Guard
from interlock.errors import ConfigError
from interlock.parity.bisect import Bisection
from interlock.parity.figures import Difference, Greedy, TaskResult
from interlock.parity.protocol import Held

_SURE = 0.01  # p of the paired test below which a difference in accuracy is reported as one


class Verdict(StrEnum):
    SAME = "same"
    CLOSE = "close"
    DIFFERENT = "different"


class How(StrEnum):
    """How an answer came about."""

    GREEDY = "greedy"
    DRAWN = "drawn"  # at temperature 1, in one batch with all others
    ALONE = "alone"  # likewise, but nothing else was computed: small shapes have other kernels


class SideFacts(msgspec.Struct, frozen=True):
    """One side as it reported itself."""

    label: str  # "torch:cpu"
    engine: str
    device: str
    dtype: str


class Wrong(msgspec.Struct, frozen=True):
    """A tensor that is not what it should be."""

    tensor: str
    error: float  # largest difference over the largest value; inf: shape, or not finite


class Weights(msgspec.Struct, frozen=True):
    """What the engines hold, against the files and against each other, bit by bit."""

    tensors: int  # compared
    wrong_a: list[Wrong]  # not what side A's files say
    wrong_b: list[Wrong]
    different: list[str]  # each as in its own files, but the two sides' files differ
    hidden: list[str]  # sides whose engine cannot show its weights


class Answer(msgspec.Struct, frozen=True):
    """One answer, and the log-probabilities of its tokens (natural, temperature 1)."""

    problem: str
    side: str  # that wrote it
    how: How
    prompt: list[int]
    tokens: list[int]
    decode: list[float]  # as the side that wrote it had them, token by token
    a: list[float] = []  # through A's prefill
    b: list[float] = []

    def scored(self, a: list[float], b: list[float]) -> "Answer":
        """With the scores of prompt and answer by both sides; only the answer's are kept."""
        first = len(self.prompt) - 1
        return msgspec.structs.replace(self, a=a[first:], b=b[first:])

    @property
    def apart(self) -> float:
        """Mean absolute difference of the two scores of a token that are furthest apart."""
        scores = zip(self.decode, self.a, self.b, strict=True)
        sizes = [max(each) - min(each) for each in scores]
        return fmean(sizes) if all(map(math.isfinite, sizes)) else math.inf


class Parted(msgspec.Struct, frozen=True):
    """Two greedy answers to one question that differ."""

    question: str
    a: str
    b: str


class Report(msgspec.Struct, frozen=True):
    model: str
    a: SideFacts
    b: SideFacts
    band: Guard
    weights: Weights
    failures: list[str]  # what a side said it could not do
    differences: list[Difference]  # empty when a side failed before
    greedy: Greedy | None
    parted: list[Parted]  # greedy answers that differ, the first few
    task: TaskResult | None
    bisection: Bisection | None
    answers: list[Answer]
    left_out: int  # shipped prompts longer than the model's context
    seconds: float
    created: float  # since 1970
    verdict: Verdict = Verdict.DIFFERENT
    headline: str = ""
    reasons: list[str] = []

    @property
    def worst(self) -> Difference | None:
        return max(self.differences, key=lambda each: each.k3, default=None)


def band(text: str) -> Guard:
    """Read "1e-3,1e-2": same up to the first, close up to the second. Raises ConfigError."""
    try:
        warn, quarantine = map(float, text.split(","))
    except ValueError:
        warn = quarantine = math.nan
    if not 0 < warn <= quarantine < math.inf:
        raise ConfigError(f"--band {text!r}: write two numbers of nats, such as 1e-3,1e-2")
    return Guard(warn, quarantine)


def weights(a: Mapping[str, Held] | None, b: Mapping[str, Held] | None) -> Weights:
    """Compare what both sides hold; a tensor that only one of them has is different."""
    hidden = [name for name, held in (("a", a), ("b", b)) if held is None]
    a, b = a or {}, b or {}
    wrong_a, wrong_b = _wrong(a), _wrong(b)
    blamed = {each.tensor for each in (*wrong_a, *wrong_b)}
    names = (a.keys() | b.keys()) if not hidden else set()
    different = [
        name
        for name in sorted(names - blamed)
        if name not in a or name not in b or a[name].digest != b[name].digest
    ]
    return Weights(len(a.keys() | b.keys()), wrong_a, wrong_b, different, hidden)


def _wrong(held: Mapping[str, Held]) -> list[Wrong]:
    """Those that are not what their file says, the worst first."""
    found = [Wrong(name, each.error) for name, each in held.items() if each.error != 0]
    return sorted(found, key=lambda each: (-each.error, each.tensor))


def judged(report: Report) -> Report:
    """The report with its verdict, headline and reasons; weights come first among those."""
    reasons = [*_of_weights(report), *report.failures, *_of_dtypes(report)]
    broken = bool(report.weights.wrong_a or report.weights.wrong_b or report.failures)
    worst = report.worst
    k3 = worst.k3 if worst else math.inf
    verdict = _verdict(k3, report.band, broken)
    if worst is not None:
        sign, band = "≤", report.band.warn
        if k3 > report.band.warn:
            band = report.band.quarantine if k3 > report.band.quarantine else report.band.warn
            sign = ">"
        reasons.append(
            f"largest difference: {worst.name}, k3 {k3:.2g} nats per token {sign} {band:g}"
        )
    if report.greedy is not None:
        same, answers = report.greedy.identical, report.greedy.answers
        reasons.append(f"greedy answers identical: {same} of {answers}")
    reasons += _of_task(report)
    if report.bisection is not None:
        reasons.append(report.bisection.words)
    headline = _HEADLINES[verdict].format(a=report.a.label, b=report.b.label)
    if verdict is Verdict.SAME and report.bisection is not None and report.bisection.side:
        headline = _COARSE.format(a=report.a.label, b=report.b.label, side=report.bisection.side)
    return msgspec.structs.replace(report, verdict=verdict, headline=headline, reasons=reasons)


_HEADLINES = {
    Verdict.SAME: "{b} computes what {a} computes: one can stand in for the other.",
    Verdict.CLOSE: "{b} is close to {a}, but more than rounding apart: usable as a generator, with "
    "the learner's correction; find the cause before training on both.",
    Verdict.DIFFERENT: "{b} does not compute what {a} computes: do not mix the two before the "
    "cause is found.",
}


# Inside the band, and yet --bisect found more than the rounding of the format.
_COARSE = (
    "{b} computes what {a} computes, as far as the band asks; but side {side} is less exact than "
    "its number format."
)


def _verdict(k3: float, band: Guard, broken: bool) -> Verdict:
    if broken or not k3 <= band.quarantine:
        return Verdict.DIFFERENT
    return Verdict.SAME if k3 <= band.warn else Verdict.CLOSE


def _of_weights(report: Report) -> list[str]:
    held = report.weights
    found = [
        f"side {side} ({facts.label}) does not hold what its files say: {wrong[0].tensor} is off "
        f"by {wrong[0].error:.2g} of its largest value ({len(wrong)} of {held.tensors} tensors)"
        for side, facts, wrong in (("a", report.a, held.wrong_a), ("b", report.b, held.wrong_b))
        if wrong
    ]
    if held.different:
        found.append(
            f"the two sides were given different weights: {held.different[0]} "
            f"({len(held.different)} of {held.tensors} tensors)"
        )
    found += [f"the engine of side {side} cannot show its weights" for side in held.hidden]
    return found


def _of_dtypes(report: Report) -> list[str]:
    a, b = report.a.dtype, report.b.dtype
    if a == b:
        return []
    return [f"the sides round differently: a computes in {a}, b in {b} (--a-dtype, --b-dtype)"]


def _of_task(report: Report) -> list[str]:
    task = report.task
    if task is None:
        return []
    figures = f"{task.a.share:.1%} and {task.b.share:.1%} right on {task.task}"
    if task.p >= _SURE:
        return [
            f"{figures}: no difference that {task.problems} problems can show (p = {task.p:.2g})"
        ]
    worse = "b" if task.only_a > task.only_b else "a"
    return [f"{figures}: side {worse} is worse (p = {task.p:.2g})"]
