"""Where two torch engines part: the first point of the decoder, and the operator before it.

    text ──> side a, side b ─────────────── Trace ──┐
         └─> the CPU in float64 ──────────── Trace ──┼─> error of each point ──first beyond──> point
         └─> the CPU in the sides' dtypes ── Trace ──┘
                                                                                │
    the CPU records the operators before that point ──inputs──> side, CPU, CPU in float64
                                                                              v
                                         first operator whose error is beyond: the culprit

An error is that against float64, and is held against the CPU's own error in the same dtype: what
that dtype rounds by at that depth. Of a point or an operator's output it is the worst row's: the
norm of the difference over the row's norm, or over the median one where the row is smaller.

Inputs come from the CPU, not from the side that is believed: nobody has to say which that is, and
all run the operator on the same bits. An operator that is right on these inputs, in a point that is
wrong, means that its inputs were wrong (a cache, say) or that rounding flipped a choice; the result
then names no operator.
"""

import math
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from interlock.errors import TrainingError
from interlock.parity.sides import Sides
from interlock.workers.inspection.operators import unpacked
from interlock.workers.protocol import (
    Applied,
    Apply,
    Record,
    Recorded,
    Take,
    Taken,
    Text,
    Trace,
    Traced,
    Where,
)

REFERENCE = "reference"
# Two right implementations differ in the order of their sums; measured between CPU kernels, their
# errors are within a factor of two, and in a deep network of four.
MARGIN = 8.0
_ULPS = 4.0  # what an operator that the CPU happens to round exactly may be off by, in eps


class Depth(msgspec.Struct, frozen=True):
    """Errors at one point; `own`: of the CPU in that side's dtype, `limit`: what that allows."""

    point: str
    a: float
    b: float
    own_a: float
    own_b: float
    limit_a: float
    limit_b: float


class Tried(msgspec.Struct, frozen=True):
    """One operator on the CPU's inputs. `said`: what the device said instead of an answer."""

    title: str
    error: float
    own: float
    limit: float
    said: str = ""

    @property
    def parts(self) -> bool:
        return not self.error <= self.limit


class Bisection(msgspec.Struct, frozen=True):
    decode: bool  # token by token behind a prefilled prompt; else one prefill
    tokens: int
    depths: list[Depth]
    side: str  # "a", "b"; "" when no point is beyond its limit
    point: str
    step: int  # of the decoding, 0 in a prefill
    operators: list[Tried]
    words: str  # the result, in one sentence


class Part(NamedTuple):
    side: str
    at: int  # index of the point
    row: int  # the first token beyond the limit


def bisect(
    sides: Sides, model: str, dtypes: dict[str, str], prefill: Text, decode: Text
) -> Bisection:
    """Look for the first difference in `prefill` and, when there is none, in `decode`.

    `dtypes`: of sides "a" and "b", which are open. Starts a process of its own for the CPU.
    """
    sides.start(REFERENCE, "torch:cpu")
    found = _look(sides, model, dtypes, prefill)
    if found.side:
        return found
    later = _look(sides, model, dtypes, decode)
    return later if later.side else found


def _look(sides: Sides, model: str, dtypes: dict[str, str], text: Text) -> Bisection:
    points, traces = _traces(sides, model, dtypes, text)
    exact = traces["float64"]
    errors = {name: rows(trace, exact) for name, trace in traces.items()}  # [M, N] each
    worst = {name: error.amax(1).tolist() for name, error in errors.items()}
    depths = [
        _depth(point, {name: values[index] for name, values in worst.items()}, dtypes)
        for index, point in enumerate(points)
    ]
    tokens = exact.shape[1]
    part = _first(depths, errors)
    if part is None:
        words = f"No point of the decoder is off by more than {MARGIN:g} times the CPU's rounding."
        return Bisection(text.decode, tokens, depths, "", "", 0, [], words)
    point = points[part.at]
    # The angles are computed before the embedding is handed on: both begin with the pass.
    before = points[part.at - 1] if part.at > 1 else ""
    where = Where(part.row + 1 if text.decode else 0, before, point)
    tried = _operators(sides, Record(text, model, dtypes[part.side], where), part.side)
    words = _words(part, depths[part.at], tried)
    return Bisection(text.decode, tokens, depths, part.side, point, where.step, tried, words)


def _traces(
    sides: Sides, model: str, dtypes: dict[str, str], text: Text
) -> tuple[list[str], dict[str, Tensor]]:
    """Sketches of a and b, and of the CPU under the names of its dtypes."""
    replies: dict[str, Traced] = {}
    for dtype in ("float64", *sorted(set(dtypes.values()))):
        request = {REFERENCE: Trace(text, model, dtype)}
        replies[dtype] = sides.ask(request, Traced)[REFERENCE]
    exact = replies["float64"]
    replies |= sides.ask({side: Trace(text, model, "") for side in dtypes}, Traced, like=exact)
    points = exact.points
    if odd := next((name for name, reply in replies.items() if reply.points != points), None):
        raise TrainingError(f"side {odd} runs another version of Interlock; install the same one")
    return points, {name: unpacked(each.sketches)["sketches"] for name, each in replies.items()}


def rows(sketch: Tensor, exact: Tensor) -> Tensor:
    """Sketches [M, N, R + 1] -> the relative error of each token at each point [M, N]."""
    return _relative((sketch - exact)[..., :-1].norm(dim=-1), exact[..., -1])


def _relative(apart: Tensor, norms: Tensor) -> Tensor:
    scale = torch.maximum(norms, norms.median(-1, keepdim=True).values)
    error = apart / scale.clamp(min=torch.finfo(torch.float64).tiny)
    return error.nan_to_num(nan=math.inf, posinf=math.inf)


def limit(own: float, dtype: str) -> float:
    """Beyond this error, a point or an operator has parted from the exact result."""
    return max(MARGIN * own, _ULPS * torch.finfo(getattr(torch, dtype)).eps)


def _depth(point: str, worst: dict[str, float], dtypes: dict[str, str]) -> Depth:
    own_a, own_b = worst[dtypes["a"]], worst[dtypes["b"]]
    limits = limit(own_a, dtypes["a"]), limit(own_b, dtypes["b"])
    return Depth(point, worst["a"], worst["b"], own_a, own_b, *limits)


def _first(depths: list[Depth], errors: dict[str, Tensor]) -> Part | None:
    """The first point at which a side is beyond its limit; of two sides, the one further off."""
    for index, depth in enumerate(depths):
        excess = {"a": depth.a / depth.limit_a, "b": depth.b / depth.limit_b}
        side = max(excess, key=lambda name: excess[name])
        if excess[side] > 1:
            allowed = depth.limit_a if side == "a" else depth.limit_b
            return Part(side, index, int((errors[side][index] > allowed).nonzero()[0]))
    return None


def _operators(sides: Sides, record: Record, side: str) -> list[Tried]:
    """Every operator of the part, run by the side, by the CPU, and by the CPU in float64."""
    titles = sides.ask({REFERENCE: record}, Recorded)[REFERENCE].names
    tried = []
    for index, title in enumerate(titles):
        operator = sides.ask({REFERENCE: Take(index)}, Taken)[REFERENCE].operator
        plain = Apply(operator, exact=False)
        exact = sides.ask({REFERENCE: Apply(operator, exact=True)}, Applied)[REFERENCE]
        if exact.error:
            continue  # an operator that the CPU lacks proves nothing
        found = sides.ask({REFERENCE: plain, side: plain}, Applied, like=exact)
        if found[REFERENCE].error:
            continue
        wanted = unpacked(exact.outputs)
        own = output_error(unpacked(found[REFERENCE].outputs), wanted)
        said = found[side].error
        error = math.inf if said else output_error(unpacked(found[side].outputs), wanted)
        tried.append(Tried(title, error, own, limit(own, record.dtype), said))
    return tried


def output_error(outputs: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest relative error of any row of any output; inf for another shape."""
    if outputs.keys() != exact.keys():
        return math.inf
    return max((_output_error(outputs[name], exact[name]) for name in exact), default=0.0)


def _output_error(output: Tensor, exact: Tensor) -> float:
    if output.shape != exact.shape:
        return math.inf
    if output.numel() == 0:
        return 0.0
    found, wanted = (
        each.double().reshape(-1, each.shape[-1] if each.ndim else 1) for each in (output, exact)
    )
    equal = (found == wanted) | (found.isnan() & wanted.isnan())  # infinities, too
    apart = torch.where(equal, 0.0, found - wanted).norm(dim=1)
    norms = torch.where(wanted.isfinite(), wanted, 0.0).norm(dim=1)
    return _relative(apart, norms).max().item()


def _words(part: Part, depth: Depth, tried: list[Tried]) -> str:
    where = named(depth.point)
    error, own = (depth.a, depth.own_a) if part.side == "a" else (depth.b, depth.own_b)
    culprit = next((each for each in tried if each.parts), None)
    if culprit is None:
        return (
            f"Side {part.side} parts at {where}: relative error {error:.2g}, the CPU's own "
            f"{own:.2g}. No single operator there is wrong on the CPU's inputs."
        )
    found = culprit.said or f"relative error {culprit.error:.2g}, the CPU's own {culprit.own:.2g}"
    return f"Side {part.side} parts at {where}: {culprit.title}: {found}."


def named(point: str) -> str:
    """ "layers.7.attention.attended" as "layer 7, attention.attended"."""
    head, _, rest = point.partition(".")
    if head != "layers":
        return point
    layer, _, inside = rest.partition(".")
    return f"layer {layer}, {inside or 'output'}"
