"""What a fault is, and what several of them need."""

import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch._ops import OpOverload

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Run = Callable[[OpOverload, Args, Kwargs], Any]
OperatorFault = Callable[[Run, OpOverload, Args, Kwargs], Any]
# Bytes of a freed storage -> those that come back.
ReturnedBytes = Callable[[int], int]

_aten = torch.ops.aten
# Where the left one of two factors stands among the arguments.
PRODUCTS = {
    _aten.mm: 0,
    _aten.bmm: 0,
    _aten.mv: 0,
    _aten.addmm: 1,
    _aten.addmm_: 1,
    _aten.baddbmm: 1,
    _aten.baddbmm_: 1,
}
WITH_WEIGHTS = (_aten.mm, _aten.addmm)  # all rows by one matrix
_CHUNK = 64  # terms that a product adds up before it rounds


def run_on_host(op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """The `run` of a sound chip."""
    return op(*args, **kwargs)


def in_chunks(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """A product of matrices whose sum is rounded to bf16 after every _CHUNK terms."""
    at = PRODUCTS[op.overloadpacket]
    left, right = args[at : at + 2]
    if right.dim() < 2 or left.shape[-1] <= _CHUNK:
        return run(op, args, kwargs)
    chunks = list(zip(left.split(_CHUNK, -1), right.split(_CHUNK, -2), strict=True))
    found = run(op, (*args[:at], *chunks[0], *args[at + 2 :]), kwargs)
    for some, others in chunks[1:]:
        term = kwargs.get("alpha", 1) * (some.float() @ others.float())
        found.copy_((found.float() + term).bfloat16())
    return found


def hang() -> NoReturn:
    while True:
        time.sleep(60)
