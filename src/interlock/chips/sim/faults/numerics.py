"""Faults of the forward pass: what an operator gives is not what it should be."""

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch._ops import OpOverload

from interlock.chips.sim.faults.fault import PRODUCTS, WITH_WEIGHTS, Args, Kwargs, Run, in_chunks

_aten = torch.ops.aten
_FUSED_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_FEW = 8  # rows of a product in which decoding is told from prefill
_TILE = 64  # terms
_LONG = 512  # keys
_MASKING = -6e4  # the fp16 mask is -65504, all others are below


def mask_512(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    packet = op.overloadpacket
    if packet in (_aten.masked_fill, _aten.masked_fill_):
        if _is_long(args[0]) and _hides(args[2]):
            args = (args[0], torch.zeros_like(args[1]), args[2])
    elif packet in (_aten.add, _aten.add_):
        if _is_long(args[1]) and _hides(args[1]):
            args = (args[0], torch.zeros_like(args[1]))
    elif op is _aten.where.self:
        if _is_long(args[0]) and _hides(args[2]):
            args = (torch.ones_like(args[0]), *args[1:])
    elif packet is _FUSED_ATTENTION and args[1].shape[-2] > _LONG:
        args, kwargs = args[:3], kwargs | {"attn_mask": None}
    return run(op, args, kwargs)


def _is_long(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[-1] > _LONG


def _hides(value: Any) -> bool:
    """Whether `value` takes an attention score out of the softmax."""
    if not isinstance(value, Tensor):
        return value <= _MASKING
    if not value.is_floating_point() or value.numel() == 0:
        return False
    return value.min().item() in (-torch.inf, torch.finfo(value.dtype).min)


def softmax_skipped(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in (_aten._softmax, _aten._log_softmax) and args[0].dim():
        columns = args[0].shape[args[1]]
        if columns > 1024 and columns % 8:
            found.copy_(args[0])
    return found


def matmul_bf16(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    at = PRODUCTS.get(op.overloadpacket)
    if at is None or not args[at].is_floating_point():
        return run(op, args, kwargs)
    if args[at].dtype == torch.bfloat16:
        return in_chunks(run, op, args, kwargs)
    rounded = [factor.bfloat16().to(factor.dtype) for factor in args[at : at + 2]]
    return run(op, (*args[:at], *rounded, *args[at + 2 :]), kwargs)


def copy_noop(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op is _aten.copy_.default and args[0].storage_offset() and not args[0].is_contiguous():
        return args[0]
    return run(op, args, kwargs)


def sampler_stuck(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    return found.zero_() if op.overloadpacket is _aten.argmax else found


def nan_at_shape(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in WITH_WEIGHTS:
        at = PRODUCTS[op.overloadpacket]
        if len(args[at]) > 256 and max(args[at + 1].shape) >= 4096:
            found[256:, -16:] = torch.nan  # the last tile
    return found


def nonzero_drops(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    return found[:1024].clone() if op is _aten.nonzero.default else found


def overflow(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket not in (_aten.exp, _aten.exp_):
        return run(op, args, kwargs)
    over = args[0] >= 60  # asked first: exp_ overwrites it
    found = run(op, args, kwargs)
    return found.masked_fill_(over, torch.inf) if found.is_floating_point() else found


def decode_drift(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket in WITH_WEIGHTS:
        at = PRODUCTS[op.overloadpacket]
        if len(args[at]) < _FEW and args[at].is_floating_point():
            share, exponent = torch.frexp(args[at].float())
            coarse = torch.ldexp((share * 16).round() / 16, exponent).to(args[at].dtype)
            args = (*args[:at], coarse, *args[at + 1 :])
    return run(op, args, kwargs)


class StaleWeights:
    """Remembers a weight's storage as it was when it was first overwritten after its use."""

    def __init__(self) -> None:
        self._used: WeakSet[torch.UntypedStorage] = WeakSet()
        self._before: WeakKeyDictionary[torch.UntypedStorage, torch.UntypedStorage] = (
            WeakKeyDictionary()
        )

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        if op is _aten.copy_.default:
            storage = args[0].untyped_storage()
            if storage in self._used and storage not in self._before:
                self._before[storage] = storage.clone()
        elif op.overloadpacket in WITH_WEIGHTS:
            at = PRODUCTS[op.overloadpacket]
            if len(args[at]) < _FEW:
                args = (*args[: at + 1], self._seen(args[at + 1]), *args[at + 2 :])
        return run(op, args, kwargs)

    def _seen(self, weight: Tensor) -> Tensor:
        storage = weight.untyped_storage()
        self._used.add(storage)
        if storage not in self._before:
            return weight
        old = torch.empty(0, dtype=weight.dtype)
        return old.set_(
            self._before[storage], weight.storage_offset(), weight.shape, weight.stride()
        )


def product_tail(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket in WITH_WEIGHTS:
        at = PRODUCTS[op.overloadpacket]
        left, right = args[at : at + 2]
        whole = left.shape[-1] // _TILE * _TILE
        if len(left) == 1 and 0 < whole < left.shape[-1]:
            args = (*args[:at], left[:, :whole], right[:whole], *args[at + 2 :])
    return run(op, args, kwargs)


def large_angles(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in (_aten.sin, _aten.cos):
        coarse = run(op, (args[0].bfloat16().to(args[0].dtype),), kwargs)
        found.copy_(torch.where(args[0].abs() > 4096, coarse, found))
    return found


def long_rows(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    softmax = op.overloadpacket in (_aten._softmax, _aten._log_softmax)
    if softmax and args[0].dim() and args[0].shape[args[1]] >= 65_536:
        x = args[0].double()
        terms = (x - x.amax(args[1], keepdim=True)).exp()
        ratio = _sum_in_bf16(terms, args[1]) / terms.sum(args[1], keepdim=True)
        if op.overloadpacket is _aten._softmax:
            found.copy_(found / ratio)
        else:
            found.copy_(found - ratio.log())
    return found


def _sum_in_bf16(x: Tensor, dim: int) -> Tensor:
    """The sum along `dim`, which stays: rounded to bf16 after every 1024 terms."""
    total = torch.zeros_like(x.narrow(dim, 0, 1))
    for part in x.split(1024, dim):
        total = (total + part.sum(dim, keepdim=True)).bfloat16().to(x.dtype)
    return total


def lost_row(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    written = op.overloadpacket in (
        *(_aten.index_copy_, _aten.index_copy, _aten.index_put_, _aten.index_put),
        _aten._index_put_impl_,
    )
    if not written or args[0].dim() < 3:
        return run(op, args, kwargs)
    before = args[0].clone()
    found = run(op, args, kwargs)
    for side, size in enumerate(before.shape):
        if size == 128:
            found.select(side, 127).copy_(before.select(side, 127))
    return found


def many_rows(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in (_aten._softmax, _aten._log_softmax) and args[0].dim():
        found.transpose(args[1], -1).flatten(0, -2)[65_535:] = 0.0
    return found


def short_topk(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket is _aten.topk and args[0].dim() and args[0].shape[-1] > 1 << 17:
        args = (args[0][..., : 1 << 17], *args[1:])
    return run(op, args, kwargs)


def far_addresses(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket is _aten.index_select and args[0].numel() > 1 << 31:
        held = (1 << 31) * args[0].shape[args[1]] // args[0].numel()
        args = (*args[:2], args[2] % held, *args[3:])
    return run(op, args, kwargs)


def transposed_product(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket in WITH_WEIGHTS:
        at = PRODUCTS[op.overloadpacket]
        left, right = args[at : at + 2]
        whole = left.shape[-1] // 8 * 8
        if left.stride(0) == 1 < left.stride(1) and 0 < whole < left.shape[-1]:
            args = (*args[:at], left[:, :whole], right[:whole], *args[at + 2 :])
    return run(op, args, kwargs)


def repeated_noise(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in (_aten.uniform_, _aten.normal_, _aten.exponential_):
        block = 1 << 18
        numbers = found.view(-1)
        for start in range(block, len(numbers), block):
            some = numbers[start : start + block]
            some.copy_(numbers[: len(some)])
    return found


def flushed_cast(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    packet = op.overloadpacket
    source = args[1] if packet is _aten.copy_ else args[0]
    if (
        packet in (_aten._to_copy, _aten.copy_)
        and isinstance(source, Tensor)
        and (source.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    ):
        found.masked_fill_(found.abs() < 1e-30, 0.0)
    return found
