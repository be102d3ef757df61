"""A healthy chip that rounds otherwise: the simulated device, every operator a little off.

It stands for what real chips do differently: other orders of summation, fused multiply-adds, exp
and rsqrt that are good to a few units in the last place. It is worse than they are, since every
element of every result is disturbed.

    python other_rounding.py MODULE:FUNCTION LEVEL [DEVICE]    one check on it, or on DEVICE; prints
                                                               the Evidence as msgpack
"""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch._ops import OpOverload

from interlock.chips import device
from interlock.chips.sim import defects
from interlock.chips.sim.faults.fault import Run
from interlock.qualify.check import Level, Subject
from interlock.records.trust import Trust

NAME = "other-rounding"
_aten = torch.ops.aten
_INEXACT = {
    *(_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm),
    *(_aten.exp, _aten.exp_, _aten.log, _aten.rsqrt, _aten.sin, _aten.cos, _aten.sigmoid),
    *(_aten._softmax, _aten._log_softmax, _aten.silu, _aten.sum, _aten.mean, _aten.expm1),
    *(_aten._softmax_backward_data, _aten._log_softmax_backward_data, _aten.silu_backward),
    *(_aten.embedding_dense_backward, _aten.linalg_vector_norm, _aten.cumsum, _aten.lerp),
    *(
        _aten._scaled_dot_product_flash_attention_for_cpu,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward,
    ),
    *(_aten._foreach_norm, _aten._foreach_addcdiv_, _aten._foreach_lerp_, _aten.addcdiv_),
}
_UNITS = 2.0  # in the last place of float32
_FLIPPED = 0.05  # share of bfloat16 results on the other side of a rounding


_noise = torch.Generator().manual_seed(0)


def other_rounding(run: Run, op: OpOverload, args: Any, kwargs: Any) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in _INEXACT:
        for tensor in _tensors(args[0] if found is None else found):
            _disturb(tensor)
    return found


def _tensors(found: Any) -> Iterator[Tensor]:
    for each in found if isinstance(found, tuple | list) else [found]:
        if isinstance(each, Tensor) and each.dtype in (torch.float32, torch.bfloat16):
            yield each


def _disturb(tensor: Tensor) -> None:
    off = 2 * torch.rand(tensor.shape, generator=_noise) - 1
    if tensor.dtype == torch.bfloat16:
        off = off.sign() * (torch.rand(tensor.shape, generator=_noise) < _FLIPPED)
    unit = torch.finfo(tensor.dtype).eps / 2 * (_UNITS if tensor.dtype == torch.float32 else 2)
    tensor.copy_(tensor.float() * (1 + off * unit))


if __name__ == "__main__":
    function, level, *place = sys.argv[1:]
    defects.DEFECTS[NAME] = defects.Defect(11, "rounds otherwise", Trust.TRAIN, other_rounding)
    module, _, name = function.partition(":")
    subject = Subject(device.claim(place[0] if place else f"sim:{NAME}"), Level(level))
    evidence = getattr(importlib.import_module(module), name)(subject)
    sys.stdout.buffer.write(msgspec.msgpack.encode(evidence))
