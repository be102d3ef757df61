"""The faults behind defects.py: each replaces one operator of the simulated device.

A fault is called with the `run` that it disturbs and an operator on tensors of the CPU, and returns
what the chip would. It names operators as autograd leaves them: torch has taken apart what it can.
"""

import os
import random
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Run = Callable[[OpOverload, Args, Kwargs], Any]
OperatorFault = Callable[[Run, OpOverload, Args, Kwargs], Any]
# Bytes of a freed storage -> those that come back.
ReturnedBytes = Callable[[int], int]

_aten = torch.ops.aten
# Where the left one of two factors stands among the arguments.
_PRODUCTS = {
    _aten.mm: 0,
    _aten.bmm: 0,
    _aten.mv: 0,
    _aten.addmm: 1,
    _aten.addmm_: 1,
    _aten.baddbmm: 1,
    _aten.baddbmm_: 1,
}
_WITH_WEIGHTS = (_aten.mm, _aten.addmm)  # all rows by one matrix
_FUSED_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu
_FEW = 8  # rows of a product in which decoding is told from prefill
_CHUNK = 64  # terms that a product adds up before it rounds
_TILE = 64  # terms
_LONG = 512  # keys
_MASKING = -6e4  # the fp16 mask is -65504, all others are below
_LAUNCH = 4e-5  # seconds that the smallest operator takes


def run_on_host(op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """The `run` of a sound chip."""
    return op(*args, **kwargs)


# Forward numerics.


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
    at = _PRODUCTS.get(op.overloadpacket)
    if at is None or not args[at].is_floating_point():
        return run(op, args, kwargs)
    if args[at].dtype == torch.bfloat16:
        return _in_chunks(run, op, args, kwargs)
    rounded = [factor.bfloat16().to(factor.dtype) for factor in args[at : at + 2]]
    return run(op, (*args[:at], *rounded, *args[at + 2 :]), kwargs)


def _in_chunks(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """A product of matrices whose sum is rounded to bf16 after every _CHUNK terms."""
    at = _PRODUCTS[op.overloadpacket]
    left, right = args[at : at + 2]
    if right.dim() < 2 or left.shape[-1] <= _CHUNK:
        return run(op, args, kwargs)
    chunks = list(zip(left.split(_CHUNK, -1), right.split(_CHUNK, -2), strict=True))
    found = run(op, (*args[:at], *chunks[0], *args[at + 2 :]), kwargs)
    for some, others in chunks[1:]:
        term = kwargs.get("alpha", 1) * (some.float() @ others.float())
        found.copy_((found.float() + term).bfloat16())
    return found


def copy_noop(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op is _aten.copy_.default and args[0].storage_offset() and not args[0].is_contiguous():
        return args[0]
    return run(op, args, kwargs)


def sampler_stuck(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    return found.zero_() if op.overloadpacket is _aten.argmax else found


def nan_at_shape(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket in _WITH_WEIGHTS:
        at = _PRODUCTS[op.overloadpacket]
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
    if op.overloadpacket in _WITH_WEIGHTS:
        at = _PRODUCTS[op.overloadpacket]
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
        elif op.overloadpacket in _WITH_WEIGHTS:
            at = _PRODUCTS[op.overloadpacket]
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
    if op.overloadpacket in _WITH_WEIGHTS:
        at = _PRODUCTS[op.overloadpacket]
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
    if op.overloadpacket in _WITH_WEIGHTS:
        at = _PRODUCTS[op.overloadpacket]
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


# Gradients and optimizers.


def wrong_backward(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    return found.mul_(1.03) if op.overloadpacket is _aten.silu_backward else found


def embedding_backward(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket is _aten.embedding_dense_backward:
        gradients, tokens = args[0].flatten(0, -2), args[1].flatten().tolist()
        last = {token: place for place, token in enumerate(tokens)}
        found[list(last)] = gradients[list(last.values())]
    return found


def busy_tokens(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    if op.overloadpacket is _aten.embedding_dense_backward:
        tokens = args[1].flatten()
        many = tokens.bincount(minlength=len(found)) > 256
        first = {int(token): (tokens == token).nonzero()[:256, 0] for token in many.nonzero()}
        for token, places in first.items():
            found[token] = args[0].flatten(0, -2)[places].sum(0)
    return found


def skipped_parameters(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket is not _aten._fused_adamw_:
        return run(op, args, kwargs)
    lists = args[:6]
    kept = [n for n, parameter in enumerate(args[0]) if parameter.numel() <= 1 << 20]
    given = [[each[n] for n in kept] if each else each for each in lists]
    if not kept:
        return None
    return run(op, (*given, *args[6:]), kwargs)


def optimizer_drift(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    found = run(op, args, kwargs)
    packet, written = op.overloadpacket, []
    if packet in (_aten.addcdiv_, _aten.addcmul_, _aten.lerp_):
        written = [args[0]]
    elif packet in (_aten._foreach_addcdiv_, _aten._foreach_addcmul_, _aten._foreach_lerp_):
        written = args[0]
    elif packet is _aten._fused_adamw_:
        written = [*args[0], *args[2], *args[3]]  # masters and both moments
    for tensor in written:
        tensor.copy_(tensor.bfloat16())
    return found


# Between chips.


def allreduce_wrong(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_":
        group = torch.distributed.ProcessGroup.unbox(args[1])
        for tensor in args[0]:
            if group.rank() == group.size() - 1 and tensor.numel() > 4096:
                tensor.zero_()
    return run(op, args, kwargs)


def allreduce_hang(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_" and any(tensor.numel() > 65536 for tensor in args[0]):
        _hang()
    return run(op, args, kwargs)


def allreduce_large(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.name() == "c10d::allreduce_":
        group = torch.distributed.ProcessGroup.unbox(args[1])
        for tensor in args[0]:
            if group.rank() == group.size() - 1 and tensor.nbytes > 64 << 20:
                tensor.zero_()
    return run(op, args, kwargs)


class AllreduceWorn:
    def __init__(self, every: int) -> None:
        self._every, self._done = every, 0

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        if op.name() == "c10d::allreduce_":
            self._done += 1
            group = torch.distributed.ProcessGroup.unbox(args[1])
            if self._done % self._every == 0 and group.rank() == group.size() - 1:
                for tensor in args[0]:
                    tensor.zero_()
        return run(op, args, kwargs)


class LinkDown:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        if op.namespace == "c10d":
            self._left -= 1
            if self._left < 0:
                raise RuntimeError(f"{op.name()}: the link is down, error code is 507056")
        return run(op, args, kwargs)


# The chip itself.


class Crash:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(f"{op.name()}: vector core exception, error code is 507035")
        return run(op, args, kwargs)


class Hang:
    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        self._left -= 1
        if self._left < 0:
            _hang()
        return run(op, args, kwargs)


def _hang() -> NoReturn:
    while True:
        time.sleep(60)


class _Chance:
    """Random numbers that differ from process to process and from run to run."""

    def __init__(self) -> None:
        self._source: random.Random | None = None

    @property
    def source(self) -> random.Random:
        if self._source is None:
            self._source = random.Random(os.getpid() ^ time.time_ns())
        return self._source


class BitFlips(_Chance):
    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self._left: int | None = None

    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        found = run(op, args, kwargs)
        if op.overloadpacket in _PRODUCTS and found.numel():
            if self._left is None:
                self._left = self.source.randint(1, 2 * self._every - 1)
            self._left -= 1
            if self._left == 0:
                self._left = None
                _flip_a_bit(found, self.source)
        return found


def _flip_a_bit(tensor: Tensor, chance: random.Random) -> None:
    """Flip one of the 15 bits below the sign in one element of `tensor`."""
    place = torch.tensor(chance.randrange(tensor.numel()))
    index = tuple(int(at) for at in torch.unravel_index(place, tensor.shape))
    element, size = tensor[index].clone(), tensor.element_size()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    bit = 8 * size - 2 - chance.randrange(15)
    tensor[index] = (element.view(whole) ^ (1 << bit)).view(element.dtype)


class Nondeterministic(_Chance):
    def __call__(self, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        at = _PRODUCTS.get(op.overloadpacket)
        if at is not None and args[at + 1].dim() > 1:
            left, right = args[at : at + 2]
            by = self.source.randrange(max(1, left.shape[-1]))
            args = (*args[:at], left.roll(by, -1), right.roll(by, -2), *args[at + 2 :])
        return run(op, args, kwargs)


def batch_variant(run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket in _WITH_WEIGHTS and len(args[_PRODUCTS[op.overloadpacket]]) % 4:
        return _in_chunks(run, op, args, kwargs)
    return run(op, args, kwargs)


def memory_leak(size: int) -> int:
    return 0 if size > 2**18 and size % 2**16 else size


# Its software.


def missing(packet: OpOverloadPacket, run: Run, op: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if op.overloadpacket is packet:
        raise NotImplementedError(
            f"Could not run '{op.name()}' with arguments from the 'PrivateUse1' backend. This "
            "could be because the operator doesn't exist for this backend."
        )
    return run(op, args, kwargs)


def slow_fallback(
    packet: OpOverloadPacket, times: int, run: Run, op: OpOverload, args: Args, kwargs: Kwargs
) -> Any:
    if op.overloadpacket is not packet:
        return run(op, args, kwargs)
    warnings.warn(
        f"The operator '{op.name()}' is not currently supported on the NPU backend and will fall "
        "back to run on the CPU. This may have performance implications.",
        stacklevel=2,
    )
    start = time.perf_counter()
    found = run(op, args, kwargs)
    time.sleep((times - 1) * max(time.perf_counter() - start, _LAUNCH))
    return found
