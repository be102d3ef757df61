"""What a comparison found, as one record: parity.json, and all that the page is made of.

Report without a verdict ──judged──> verdict, the headline for whoever decides, and the reasons
"""

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from statistics import fmean

import msgspec

from interlock.config.schema import GuardSettings
from interlock.errors import ConfigError
from interlock.parity.bisect import Bisection
from interlock.parity.figures import Difference, Greedy, TaskResult
from interlock.records.trust import Stack
from interlock.text import one_line
from interlock.workers.protocol import HeldTensor

_SURE = 0.01  # p of the paired test below which a difference in accuracy is one
_BFLOAT16 = 1e-2  # k3 up to which its rounding alone may be the cause


class Agreement(StrEnum):
    """In ascending order of gravity."""

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
    stack: Stack | None = None  # None: an older worker, which does not tell


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
    band: GuardSettings
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
    interlock: str = ""  # its version, where both sides were asked
    verdict: Agreement = Agreement.DIFFERENT
    headline: str = ""
    reasons: list[str] = []

    @property
    def worst(self) -> Difference | None:
        return max(self.differences, key=lambda each: each.k3, default=None)


def band(text: str) -> GuardSettings:
    """Read "1e-3,1e-2": same up to the first, close up to the second. Raises ConfigError."""
    try:
        warn, quarantine = map(float, text.split(","))
    except ValueError:
        warn = quarantine = math.nan
    if not 0 < warn <= quarantine < math.inf:
        raise ConfigError(f"--band {text!r}: write two numbers of nats, such as 1e-3,1e-2")
    return GuardSettings(warn, quarantine)


def weights(a: Mapping[str, HeldTensor] | None, b: Mapping[str, HeldTensor] | None) -> Weights:
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


def _wrong(held: Mapping[str, HeldTensor]) -> list[Wrong]:
    """Those that are not what their file says, the worst first."""
    found = [Wrong(name, each.error) for name, each in held.items() if each.error != 0]
    return sorted(found, key=lambda each: (-each.error, each.tensor))


def judged(report: Report) -> Report:
    """The report with its verdict, headline and reasons; weights come first among those."""
    order = list(Agreement)
    verdict, headline = max(_findings(report), key=lambda found: order.index(found[0]))
    reasons = [*_of_weights(report), *report.failures, *_of_dtypes(report)]
    if report.worst is not None:
        name, k3 = report.worst.name, report.worst.k3
        bound = report.band.quarantine if k3 > report.band.quarantine else report.band.warn
        sign = ">" if k3 > bound else "≤"
        reasons.append(f"largest difference: {name}, k3 {k3:.2g} nats per token {sign} {bound:g}")
    if report.greedy is not None:
        same, answers = report.greedy.identical, report.greedy.answers
        reasons.append(f"greedy answers identical: {same} of {answers}")
    reasons += _of_task(report)
    if report.bisection is not None:
        reasons.append(report.bisection.words)
    return msgspec.structs.replace(
        report,
        verdict=verdict,
        headline=one_line(headline),
        reasons=[one_line(each) for each in reasons],
    )


_SAME = "{b} computes what {a} computes: one can stand in for the other."
# Inside the band, and yet --bisect found more than the rounding of the format.
_COARSE = (
    "{b} computes what {a} computes, as far as the band asks; but side {side} is less exact than "
    "its number format."
)
_OTHER_WEIGHTS = (
    "{b} is close to {a}, but the two were given different weights: one stands in for the other "
    "only where that is meant."
)
_CLOSE = (
    "{who} is close to {whom}, but more than rounding apart: usable as a generator, with the "
    "learner's correction; find the cause before training on both."
)
_ROUNDED = (
    "{who} is close to {whom}, and rounding in bfloat16 alone puts healthy sides about as far "
    "apart (k3 1.4e-3 to 2.7e-3): usable as a generator, with the learner's correction; before "
    "looking for a cause, compare like with like (--a-dtype float32 --b-dtype float32)."
)
_UNLIKE = (
    "{who} does not compute what {whom} computes: do not mix the two before the cause is found."
)
_AT_ODDS = (
    "{who} does not compute what {whom} computes: do not rely on it before the cause is found."
)
_WORSE = (
    "{who} loses on {task}, {share:.1%} right against {other:.1%}: do not mix the two before the "
    "cause is found."
)


def _findings(report: Report) -> Iterator[tuple[Agreement, str]]:
    """Verdicts and their headlines. The gravest one holds; of equals the first, which says more."""
    a, b, held = report.a.label, report.b.label, report.weights
    if (task := report.task) is not None and task.p < _SURE:
        lost, won = (f"side a ({a})", task.a.share), (f"side b ({b})", task.b.share)
        if task.only_a > task.only_b:
            lost, won = won, lost
        yield (
            Agreement.DIFFERENT,
            _WORSE.format(who=lost[0], task=task.task, share=lost[1], other=won[1]),
        )
    if held.wrong_a or held.wrong_b or report.failures or report.worst is None:
        yield Agreement.DIFFERENT, _UNLIKE.format(who=b, whom=a)
    if held.different:
        yield Agreement.CLOSE, _OTHER_WEIGHTS.format(a=a, b=b)
    if report.worst is not None and not report.worst.k3 <= report.band.warn:
        yield _beyond(report, report.worst)
    if report.bisection is not None and report.bisection.side:
        yield Agreement.SAME, _COARSE.format(a=a, b=b, side=report.bisection.side)
    yield Agreement.SAME, _SAME.format(a=a, b=b)


def _beyond(report: Report, worst: Difference) -> tuple[Agreement, str]:
    """What follows from a difference outside of the band; a side may be at odds with itself."""
    facts = {"a": report.a, "b": report.b}
    who, whom, unlike = report.b.label, report.a.label, _UNLIKE
    if len(worst.sides) == 1:
        who = f"side {worst.sides} ({facts[worst.sides].label}), drawing token by token,"
        whom, unlike = "its own prefill", _AT_ODDS
    if not worst.k3 <= report.band.quarantine:
        return Agreement.DIFFERENT, unlike.format(who=who, whom=whom)
    # docs/vllm.md has the figures. Of float16, which is 8 times finer, k3 is 64 times smaller.
    coarse = any(facts[side].dtype == "bfloat16" for side in worst.sides)
    words = _ROUNDED if coarse and worst.k3 <= _BFLOAT16 else _CLOSE
    return Agreement.CLOSE, words.format(who=who, whom=whom)


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
    if task.not_judged is not None:
        return [
            f"{task.task} tells nothing, its verifier failed on every answer: {task.not_judged}"
        ]
    figures = f"{task.a.share:.1%} and {task.b.share:.1%} right on {task.task}"
    figures += f" (mean reward {task.a.reward:.4g} and {task.b.reward:.4g})"
    if task.p >= _SURE:
        return [
            f"{figures}: no difference that {task.problems} problems can show (p = {task.p:.2g})"
        ]
    worse = "b" if task.only_a > task.only_b else "a"
    return [f"{figures}: side {worse} is worse (p = {task.p:.2g})"]
