"""How far a device may be from the exact figures of a run's own updates.

    exact, own ──> what rounding alone does in this dtype ── times MARGIN ──> limit
    exact, target ──────────────────────────────────────────────────────────> value

No limit is a number of ours but the margin, which is that of `interlock qualify`.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from interlock.chips.rounding import MARGIN
from interlock.mismatch import mismatch
from interlock.records.metrics import StepMetrics
from interlock.records.moves import Repeated, RepeatedUpdate
from interlock.records.trust import Measure

_ULP = 2.0**-23  # relative, of float32, in which log-probabilities and masters are kept
_WORST = 3  # tensors shown


def updates(exact: Repeated, own: Repeated, target: Repeated) -> list[Measure]:
    """What the device made of the updates. Their steps are the same on all sides."""
    margin, name = MARGIN[target.dtype], target.dtype
    found: list[Measure] = []
    limits = update_limits(exact, own)
    for truth, ours, made in zip(exact.updates, own.updates, target.updates, strict=True):
        case = f"{name}, step {made.step}"
        found += logprobs(case, truth.logprobs, ours.logprobs, made.logprobs, margin)
        loss, norm = abs(made.loss - truth.loss), _relative(made.grad_norm, truth.grad_norm)
        found.append(
            Measure(f"{case}: loss", _number(loss), limits[0], abs(ours.loss - truth.loss))
        )
        own_norm = _relative(ours.grad_norm, truth.grad_norm)
        found.append(Measure(f"{case}: gradient norm, relative", norm, limits[1], own_norm))
    found += _gradients(name, own, target, margin)
    if own.moved is not None:
        moved = _number(target.moved)
        limit = margin * max(own.moved, _ULP)
        found.append(Measure(f"{name}: how the weights moved, relative", moved, limit, own.moved))
    return found


def update_limits(exact: Repeated, own: Repeated) -> tuple[float, float]:
    """Of a loss, and of a gradient's norm relative to it.

    One number may be right by luck: a loss errs by its tokens' mean error times their weights, and
    a norm by as much as the gradient.
    """
    margin = MARGIN[own.dtype]
    pairs = list(zip(exact.updates, own.updates, strict=True))
    losses = [abs(ours.loss - truth.loss) for truth, ours in pairs]
    tokens = [truth.weight * _mean_error(truth, ours) for truth, ours in pairs]
    norms = [_relative(ours.grad_norm, truth.grad_norm) for truth, ours in pairs]
    every = own.gradients.get("", 0.0)
    return margin * max(*losses, *tokens, _ULP), margin * max(*norms, every, _ULP)


def logprobs(
    case: str,
    exact: Sequence[float],
    own: Sequence[float],
    target: Sequence[float],
    margin: float,
) -> Iterator[Measure]:
    """k3 grows with the square of the difference, and so does its margin."""
    ours, made = mismatch(own, exact), mismatch(target, exact)
    least = _ULP * max(1.0, *map(abs, exact))
    k3 = margin**2 * max(ours.k3, least**2 / 2)
    yield Measure(f"{case}: k3 of the log-probabilities", made.k3, k3, ours.k3)
    most = margin * max(ours.max, least)
    yield Measure(f"{case}: largest difference of these", made.max, most, ours.max)


def recorded(
    lines: Mapping[int, StepMetrics], exact: Repeated, own: Repeated, target: Repeated
) -> list[Measure]:
    """What the device made of the updates against what the run logged of them.

    `lines`: by step. Both sides round, so that the limits are twice as wide. In another dtype than
    float32 only the first is of the run's own weights: all sides begin with rounded ones.
    """
    found = []
    loss_limit, norm_limit = (2 * limit for limit in update_limits(exact, own))
    for made in target.updates if target.dtype == "float32" else target.updates[:1]:
        logged = lines[made.step].update if made.whole and made.step in lines else None
        if logged is None or logged.loss is None or logged.grad_norm is None:
            continue
        case = f"{target.dtype}, step {made.step}"
        found.append(Measure(f"{case}: loss", _number(abs(made.loss - logged.loss)), loss_limit))
        norm = _relative(made.grad_norm, logged.grad_norm)
        found.append(Measure(f"{case}: gradient norm, relative", norm, norm_limit))
        if made.k3 is not None and logged.mismatch is not None:
            found.append(_of_sampler(case, made, logged.mismatch.k3, exact, own))
    return found


def _of_sampler(
    case: str, made: RepeatedUpdate, logged: float, exact: Repeated, own: Repeated
) -> Measure:
    """Mismatch with what sampled the tokens. Its root is a distance: those of two learners from one
    sampler differ by no more than the learners are apart.
    """
    margin = MARGIN[own.dtype]
    pairs = zip(exact.updates, own.updates, strict=True)
    rounding = max(mismatch(ours.logprobs, truth.logprobs).k3 for truth, ours in pairs)
    limit = (logged**0.5 + 2 * margin * max(rounding, _ULP**2) ** 0.5) ** 2
    return Measure(f"{case}: k3 against the sampler", _number(made.k3), limit, logged)


def _gradients(name: str, own: Repeated, target: Repeated, margin: float) -> list[Measure]:
    """Of the first update: of all together, and of the tensors that are worst."""
    every = own.gradients.get("", 0.0)
    found = []
    for tensor, ours in own.gradients.items():
        value = _number(target.gradients.get(tensor, target.gradients.get("")))
        limit = margin * max(ours, every if tensor else 0.0, _ULP)
        of = f" of {tensor}" if tensor else ""
        found.append(Measure(f"{name}: gradient{of}, relative", value, limit, ours))
    found.sort(key=lambda each: each.value / each.limit, reverse=True)
    return found[:_WORST]


def _mean_error(truth: RepeatedUpdate, ours: RepeatedUpdate) -> float:
    pairs = zip(truth.logprobs, ours.logprobs, strict=True)
    return fmean(abs(one - other) for one, other in pairs)


def _relative(found: float, exact: float) -> float:
    return _number(abs(found - exact) / abs(exact)) if exact else _number(abs(found))


def _number(value: float | None) -> float:
    """What is no number is infinitely far off."""
    return float("inf") if value is None or value != value else value
