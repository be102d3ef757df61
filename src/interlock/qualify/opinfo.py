"""A sample of torch's own operator tests: OpInfo, the database its developers test backends with.

    op_db ─ ours: all of LANGUAGE, and some of the others ─ samples ─ numerics.compared ─> Measure

Its sample inputs are small and odd: no elements, one, views, broadcasts, every keyword. They find
what the shapes of language models in cases/ do not. Forward only. The database is a private module
of torch's wheel (torch.testing._internal).

Only LANGUAGE decides; a wrong number of another operator is told among the figures. An operator
that refuses is counted, not judged, while the device lives: a refusal is no wrong number, and the
`operators` checks judge of those that Interlock needs. But a device that refuses more than a tenth
of LANGUAGE has shown little.
"""

import random
import sys
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from interlock.errors import UserError
from interlock.qualify.check import Evidence, Subject, beyond, judged, short
from interlock.qualify.numerics import compared, nearby, placed
from interlock.records.trust import Measure
from interlock.text import described

DTYPES = (torch.float32, torch.bfloat16)
_CPU = torch.device("cpu")
_LARGEST = 1 << 20  # elements of an input
_NEARBY = (1, -1)
_REFUSED = 0.1

# What language models are made of, by the database's names.
_LANGUAGE = """
    __getitem__ abs add addbmm addcdiv addcmul addmm all any baddbmm bmm cat chunk clamp clamp_max
    clamp_min clone contiguous cos cumsum diff div.no_rounding_mode einsum eq exp exp2 expand expm1
    fill flip gather ge gt index_add index_copy index_fill index_put index_select isfinite isinf
    isnan le lerp linspace log log1p log2 log_softmax logaddexp logcumsumexp logical_and logical_not
    logical_or logsumexp lt masked_fill masked_scatter masked_select matmul max.binary
    max.reduction_with_dim maximum mean min.binary minimum mm mul mv narrow ne neg
    nn.functional.cross_entropy nn.functional.embedding nn.functional.gelu nn.functional.glu
    nn.functional.kl_div nn.functional.layer_norm nn.functional.linear nn.functional.logsigmoid
    nn.functional.mish nn.functional.mse_loss nn.functional.nll_loss nn.functional.normalize
    nn.functional.one_hot nn.functional.pad.constant nn.functional.relu nn.functional.rms_norm
    nn.functional.scaled_dot_product_attention nn.functional.silu nn.functional.softplus nonzero
    outer permute pow reciprocal repeat repeat_interleave reshape roll rsqrt rsub scatter
    scatter_add scatter_reduce.amax scatter_reduce.sum searchsorted select sigmoid sign sin slice
    softmax sort split sqrt square squeeze stack std sub sum take_along_dim tanh tensordot
    tile topk transpose tril triu unbind unflatten unique unsqueeze var where
"""
LANGUAGE = frozenset(_LANGUAGE.split())
# Parts of names that are left out, by reason.
_LEFT_OUT = {
    "random": (
        "rand bernoulli cauchy dropout exponential geometric log_normal multinomial normal. "
        "uniform fractional_max_pool rrelu lowrank"
    ),
    "nothing is computed": "empty resize_ broadcast_shapes jiterator",
    "several right answers": (
        "linalg. svd qr eig geqrf ormqr cholesky lu lstsq triangular_solve pinverse norm.nuc "
        "argmax argmin argsort mode allclose equal hash_tensor histogram"
    ),
    "complex, sparse or quantised": (
        "fft stft complex cfloat cdouble chalf polar view_as_real sparse _scaled_mm conj resolve_ "
        "angle real imag"
    ),
    "fp64 is asked for": "double logspace signal.windows float_power item",
    "convolutions, which chips round to fewer bits by default": "conv",
    "kernels of one vendor": "torch.ops.aten linear_cross_entropy triton",
    "no sum could be judged where functions have their poles": "special. polygamma mvlgamma igamma",
}
# Where values are equal, which of their places is told is the device's choice.
_PLACES = (
    "sort",
    "topk",
    "kthvalue",
    "median",
    "cummax",
    "cummin",
    "aminmax",
    "reduction_with_dim",
    "max_pool",
    "unique",
)
# What a healthy chip may round to the dtype on the way, where the CPU has one kernel in fp32.
_ROUNDINGS = 6.0


@dataclass
class _Tally:
    measures: list[Measure] = field(default_factory=list)
    astray: list[Measure] = field(default_factory=list)  # wrong, but outside of LANGUAGE
    refused: list[str] = field(default_factory=list)
    language: int = 0  # operators of LANGUAGE that were tried, in each dtype
    lacking: int = 0  # of these, those that refused
    skipped: int = 0


def sample(subject: Subject) -> Evidence:
    """All of LANGUAGE and a seeded sample of the rest, a few inputs of each.

    Raises UserError when the database cannot be imported.
    """
    database = torch_database()
    tally = _Tally()
    for operator in _chosen(database, subject):
        for dtype in DTYPES:
            if dtype in operator.dtypes:
                _judge(operator, dtype, subject, tally)
    if not tally.measures:
        raise RuntimeError(f"no operator ran: {'; '.join(tally.refused[:3])}")
    if tally.lacking:
        share = tally.lacking / tally.language
        tally.measures.append(Measure("share of operators that are refused", share, _REFUSED))
    figures: dict[str, float | int | str] = {
        "operators in the database": len(database),
        "operators that are missing or refuse": len(tally.refused),
        "wrong inputs of operators that do not decide": len(tally.astray),
        "inputs that cannot be judged": tally.skipped,
    }
    if tally.refused:
        figures["missing or refused"] = "; ".join(sorted(tally.refused)[:10])
    if tally.astray:
        figures["wrong, but not needed"] = "; ".join(each.name for each in tally.astray[:10])
    return judged(
        tally.measures,
        f"a sample of torch's own operator tests passes: {len(tally.measures)} inputs",
        "{count} of {total} inputs of torch's own operator tests go wrong, worst: {worst}",
        figures,
    )


def torch_database() -> list[Any]:
    """torch's own operators with samples of inputs. Raises UserError where torch lacks them.

    To be imported in the check's own process: it asks for devices, and freezes switches of torch.
    """
    _stand_in_for_expecttest()
    try:
        from torch.testing._internal import common_utils
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.opinfo import core
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"torch's operator tests cannot be imported ({error}); reinstall torch and numpy"
        ) from None
    # Each sample looks among its callers for the test that it is of, which there is none of: most
    # of the seconds that this check took.
    for module in (common_utils, core):
        module.extract_test_fn = lambda: None  # type: ignore[attr-defined]
    return op_db


def _stand_in_for_expecttest() -> None:
    """Let torch's test modules be imported where the package `expecttest` is not installed.

    They want nothing of it but a base for their own test classes, which are never run here
    (torch/testing/_internal/common_utils.py of torch 2.13). The database is the same without it.
    """
    if "expecttest" not in sys.modules and find_spec("expecttest") is None:
        stand_in = ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in


def _chosen(database: list[Any], subject: Subject) -> list[Any]:
    """The operators to test, by name: the same for the same seed."""
    named = {_name(operator): operator for operator in database}
    others = sorted(
        name
        for name in named.keys() - LANGUAGE
        if not any(part in name for parts in _LEFT_OUT.values() for part in parts.split())
        and not name.startswith("_")
    )
    picked = random.Random(subject.seed).sample(others, min(subject.at(30, 150), len(others)))
    return [named[name] for name in sorted(LANGUAGE & named.keys()) + sorted(picked)]


def _name(operator: Any) -> str:
    variant = operator.variant_test_name
    return f"{operator.name}.{variant}" if variant else operator.name


def _judge(operator: Any, dtype: torch.dtype, subject: Subject, tally: _Tally) -> None:
    """Run a few sample inputs of one operator, and add what came of them to the tally."""
    name = f"{_name(operator)} {short(dtype)}"
    decides = _name(operator) in LANGUAGE
    tally.language += decides
    for number, inputs in _samples(operator, dtype, subject):
        title = f"{name} #{number} {_shapes(inputs)}"
        try:
            expected = _expected(operator, inputs)
        except Exception:  # the CPU itself cannot
            expected = None
        if expected is None:
            tally.skipped += 1
            continue
        try:
            found = _outputs(operator, _moved(inputs, subject.device))
        except Exception as error:
            _alive(subject.device, title, error)
            tally.refused.append(f"{name}: {described(error, 200)}")
            tally.lacking += decides
            return
        measure = _measure(operator, title, inputs, found, *expected)
        wrong_elsewhere = beyond(measure) and not decides
        (tally.astray if wrong_elsewhere else tally.measures).append(measure)


def _alive(device: torch.device, title: str, error: Exception) -> None:
    """After an error: a device that computes nothing any more is a finding of its own."""
    try:
        alive = torch.ones(4, device=device).sum().item() == 4.0
    except Exception:
        alive = False
    if not alive:
        raise RuntimeError(f"the device is dead after {title}: {described(error, 200)}") from error


def _samples(operator: Any, dtype: torch.dtype, subject: Subject) -> Iterator[tuple[int, Any]]:
    """(number, (input, args, kwargs)) of some of the operator's sample inputs, on the CPU."""
    chance = random.Random(f"{subject.seed} {_name(operator)} {dtype}")
    random.seed(subject.seed)  # the database draws from the global generators
    torch.manual_seed(subject.seed)
    # The first ones: some operators have thousands.
    drawn = islice(operator.sample_inputs(_CPU, dtype, requires_grad=False), subject.at(10, 40))
    made = [(one.input, one.args, one.kwargs) for one in drawn]
    count = subject.at(1, 3) if _name(operator) not in LANGUAGE else subject.at(2, 6)
    for number in sorted(chance.sample(range(len(made)), min(count, len(made)))):
        yield number, made[number]


def _expected(operator: Any, inputs: Any) -> tuple[list[Tensor], list[Tensor]] | None:
    """Of the CPU in fp64 and in the inputs' dtype; None for what cannot be judged."""
    if any(not _plain(each) for each in pytree.tree_leaves(inputs)):
        return None
    if inputs[2].get("dropout_p") or inputs[2].get("p_dropout"):
        return None
    reference = _outputs(operator, _moved(inputs, _CPU))
    exact = _outputs(operator, _moved(inputs, _CPU, torch.float64))
    shapes = [each.shape for each in exact]
    if not reference or shapes != [each.shape for each in reference]:
        return None
    if any(each.dtype not in (*DTYPES, *_EXACT) for each in reference):
        return None
    return reference, exact


_EXACT = (torch.bool, torch.int32, torch.int64)


def _plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        ours = value.dtype in (*DTYPES, *_EXACT) and value.layout is torch.strided
        return ours and value.numel() <= _LARGEST
    return not isinstance(value, complex)


def _measure(
    operator: Any,
    title: str,
    inputs: Any,
    found: list[Tensor],
    reference: list[Tensor],
    exact: list[Tensor],
) -> Measure:
    sizes = (each.numel() for each in pytree.tree_leaves(inputs) if isinstance(each, Tensor))
    terms = max(2, *sizes, 2)  # any of them may be a sum, if only of two
    measure = compared(title, found, reference, exact, terms, _ROUNDINGS)
    if not beyond(measure):
        return measure
    # Sample inputs may sit on a pole or a step; then the right answer to a question nearby counts.
    near = [_outputs(operator, _wide(nearby(inputs, sign))) for sign in _NEARBY]
    return compared(title, found, reference, exact, terms, _ROUNDINGS, near)


def _outputs(operator: Any, inputs: Any) -> list[Tensor]:
    """All that is told of one call, on the CPU: tensors, and numbers as tensors."""
    first, args, kwargs = inputs
    with torch.no_grad():
        told = pytree.tree_leaves(operator.op(first, *args, **kwargs))
    kept = [each for each in told if isinstance(each, Tensor | bool | int | float)]
    tensors = [each.cpu() if isinstance(each, Tensor) else torch.tensor(each) for each in kept]
    if len(tensors) > 1 and any(part in _name(operator) for part in _PLACES):
        return [each for each in tensors if each.is_floating_point()] or tensors[:1]
    return tensors


def _moved(inputs: Any, device: torch.device, wide: torch.dtype | None = None) -> Any:
    """Copies on `device`; a device that is asked for by name is `device` as well."""
    there = placed(inputs, device, wide)
    there = pytree.tree_map(_turn(torch.device, lambda _: device), there)
    if "device" in there[2]:
        there[2]["device"] = device
    return there if wide is None else _wide(there)


def _wide(inputs: Any) -> Any:
    """fp64 where an output's dtype is asked for: the oracle computes as wide as it can."""
    return pytree.tree_map(
        _turn(torch.dtype, lambda dtype: torch.float64 if dtype.is_floating_point else dtype),
        inputs,
    )


def _turn(kind: type, new: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: new(value) if isinstance(value, kind) else value


def _shapes(inputs: Any) -> str:
    leaves = pytree.tree_leaves(inputs)
    return ", ".join(str(list(each.shape)) for each in leaves if isinstance(each, Tensor))
