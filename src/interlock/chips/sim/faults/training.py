"""Faults of gradients and optimizers: what such a chip generates is right."""

from typing import Any

import torch
from torch._ops import OpOverload

from interlock.chips.sim.faults.fault import Args, Kwargs, Run

_aten = torch.ops.aten


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
