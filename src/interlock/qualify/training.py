"""A few hundred steps of a small model, held against the same steps on the CPU.

    seed ─> weights, groups ─┬─ Learner on the device ──────────> curve ─┐
                             ├─ Learner on the CPU ─────────────> curve ─┴─> apart, at horizons
                             └─ the same, rounded otherwise ────> curve, apart likewise: the band

Curves of several seeds differ by per cents, so a band made of them hides an optimizer that loses
bits. The same seed on both sides differs by rounding alone, which the CPU shows without any device:
in float32 by masters that are nudged by a unit in the last place before every step, in bfloat16 by
how far that is from float32. Measured on the CPU over 200 steps: nudged 1e-5 of the way the weights
went, updates rounded to bfloat16 4e-4. The band is made anew each time: it belongs to this torch.

Checks for NaN alone miss nearly all silent corruption; so the curve has three figures. The loss
says whether it learns, the gradient norm whether backward is right, and the distance of the weights
sees what the others forgive. How a single operator is off is for numerics.py to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import Dtype, LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.qualify import tiny_model
from interlock.qualify.check import Evidence, Level, Subject, judged
from interlock.records.trust import Measure

_CPU = torch.device("cpu")
_VOCAB = 31
_ROWS, _TOKENS = 8, 32  # sequences of a step, and tokens of each
_SEEN = 4  # tokens of a prompt: enough to tell how the row goes on
# Gradients are clipped to norm 1, about 6e-3 per weight. Below eps a gradient counts in proportion,
# so that one which is nothing but rounding cannot turn a whole update around.
_OPTIMIZER = OptimizerSettings(lr=3e-3, eps=1e-3, warmup_steps=5)
# Of the extreme steps: the sampler thought every token this unlikely, so that ratios reach e^80;
# float32 ends at e^88. The weights bring the losses down to 2^20, beyond what float16 holds.
_RARE = -80.0
_EXTREME = -(2.0 ** (20 - 115))
_NUDGE = 2.0**-23  # one unit in the last place of float32


@dataclass(frozen=True)
class _TrainingPlan:
    """How a dtype is tried. `horizons`: steps after which the curves are compared."""

    dtype: Dtype
    horizons: Sequence[int]
    margin: float  # how many times the CPU's own spread a device may be off
    least: float  # of the spread, relative: a spread of few steps may be small by chance


@dataclass(frozen=True)
class _Curve:
    losses: Sequence[float]
    norms: Sequence[float]  # of the gradient, before clipping
    skipped: int  # steps that were not finite
    masters: dict[int, Tensor]  # by horizon, 0 among them; fp64 on the CPU, all in one vector


def band(subject: Subject) -> Evidence:
    """Learn from text in float32 and bfloat16, and from extreme samples for a few steps."""
    seed, device = subject.seed, subject.device
    measures: list[Measure] = []
    ends = {}
    for extreme in (True, False):
        single, half = _plans(subject.level, extreme)
        steps = sorted({*single.horizons, *half.horizons})
        exact = _train(_CPU, single.dtype, steps, seed, extreme)
        own = {
            single: [_train(_CPU, single.dtype, steps, seed, extreme, n) for n in (1, 2)],
            half: [_train(_CPU, half.dtype, half.horizons, seed, extreme)],
        }
        for plan, curves in own.items():
            found = _train(device, plan.dtype, plan.horizons, seed, extreme)
            case = plan.dtype + (", extreme samples" if extreme else "")
            measures += _compared(case, found, exact, curves, plan)
            ends[case] = found.losses[-1]
    return judged(
        measures,
        "a small model learns as on the reference, step by step, up to rounding",
        "a small model does not learn as on the reference: {count} of {total} figures leave the "
        "band, worst: {worst}",
        {
            "steps in float32": len(exact.losses),
            "loss of the first step": exact.losses[0],
            "loss of the last step, reference": exact.losses[-1],
            "loss of the last step": ends["float32"],
        },
    )


def _plans(level: Level, extreme: bool) -> tuple[_TrainingPlan, _TrainingPlan]:
    single: Sequence[int]
    half: Sequence[int]
    if extreme:
        single, half = (1, 5), (5,)
    elif level is Level.QUICK:
        single, half = (1, 5, 30), (5, 10)
    else:
        single, half = (1, 5, 25, 100, 200), (5, 20, 60)
    return _TrainingPlan("float32", single, 8.0, 2e-7), _TrainingPlan("bfloat16", half, 6.0, 1e-3)


def _train(
    device: torch.device,
    dtype: Dtype,
    horizons: Sequence[int],
    seed: int,
    extreme: bool = False,
    nudge: int = 0,
) -> _Curve:
    """`nudge`: the seed of the noise, 0 for none. `extreme`: learn from a sampler that is far off
    (policy_loss with "bypass") instead of from text.
    """
    arch = tiny_model.architecture(hidden=32, vocab=_VOCAB)
    masters = tiny_model.decoder(arch, tiny_model.weights(arch, seed), device, torch.float32)
    steps = max(horizons)
    # A curve that ends early is evidence; the learner's own stop would leave none.
    settings = LearnerSettings(dtype=dtype, max_bad_steps=steps + 1)
    learner = Learner(masters, settings, _OPTIMIZER, steps)
    noise = torch.Generator().manual_seed(nudge)
    losses, norms, kept = [], [], {0: _snapshot(learner)}
    for number, rows in enumerate(_rows(steps, seed), start=1):
        if nudge:
            _perturb(learner, noise)
        loss = LossSettings(correction="bypass") if extreme else None
        result = learner.step([_group(row, extreme) for row in rows], loss)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if number in horizons:
            kept[number] = _snapshot(learner)
    return _Curve(losses, norms, learner.bad_steps, kept)


def _rows(steps: int, seed: int) -> Iterator[list[list[int]]]:
    """Of each step; every token of a row is the sum of the two before it, modulo the vocabulary."""
    noise = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, _VOCAB, (_ROWS, _TOKENS), generator=noise).tolist()
        for row in rows:
            for place in range(2, _TOKENS):
                row[place] = (row[place - 1] + row[place - 2]) % _VOCAB
        yield rows


def _group(row: list[int], extreme: bool) -> TrainingGroup:
    count = _TOKENS - _SEEN
    weight = (_EXTREME if extreme else 1.0) / (_ROWS * count)
    sampler = [[_RARE] * count] if extreme else None
    return TrainingGroup(row[:_SEEN], [row[_SEEN:]], [[weight] * count], sampler)


@torch.no_grad()
def _perturb(learner: Learner, noise: torch.Generator) -> None:
    for parameter in learner.parameters.values():
        parameter.mul_(1 + _NUDGE * (2 * torch.rand(parameter.shape, generator=noise) - 1))


def _snapshot(learner: Learner) -> Tensor:
    masters = [parameter.detach().flatten().cpu() for parameter in learner.parameters.values()]
    return torch.cat(masters).double()


def _compared(
    case: str, found: _Curve, exact: _Curve, own: Sequence[_Curve], plan: _TrainingPlan
) -> Iterator[Measure]:
    """`found` against `exact`, held against the widest of `own` at the same horizon."""
    yield Measure(f"{case}: steps that were not finite", found.skipped, 0)
    for horizon in sorted(found.masters.keys() - {0}):
        values = _apart(found, exact, horizon)
        spreads = [_apart(curve, exact, horizon) for curve in own]
        for figure, value in values.items():
            spread = max(each[figure] for each in spreads)
            limit = plan.margin * max(spread, plan.least)
            yield Measure(f"{case}, {horizon} steps: {figure}", value, limit, spread)


def _apart(curve: _Curve, exact: _Curve, horizon: int) -> dict[str, float]:
    """How far they are apart after `horizon` steps; losses and norms: at the worst step so far."""
    start, end = exact.masters[0], exact.masters[horizon]
    return {
        "loss, relative": _furthest(curve.losses, exact.losses, horizon),
        "gradient norm, relative": _furthest(curve.norms, exact.norms, horizon),
        "distance of the weights, as a share of their way": (
            (curve.masters[horizon] - end).norm() / (end - start).norm()
        ).item(),
    }


def _furthest(values: Sequence[float], exact: Sequence[float], horizon: int) -> float:
    pairs = zip(values[:horizon], exact[:horizon], strict=True)
    ratios = torch.tensor([value / reference - 1 for value, reference in pairs])
    return ratios.abs().nan_to_num(torch.inf).max().item()
