"""A decoder whose parameters are sharded over several devices: FSDP2 (torch's `fully_shard`).

    rank 0's CPU ── scatter ──> rows of every parameter on every rank, fp32
    forward, backward            a layer is whole only while it is computed, in the compute dtype
    gradients ── summed in fp32 ──> rows of every gradient
    published, gather            one parameter at a time ──> rank 0's CPU

A layer's weights are cast before they travel: the bits are those of a cast at their use. The root,
embedding, last norm and head, travels in fp32, because the gradients of an embedding and of a head
tied to it add up in the masters' dtype. The root stays whole from the forward pass until the end
of the backward pass, since the loss reads the head in between.

Expert biases, which no gradient moves, are whole on every rank and stay fp32 (models/moe.py).

torch's module for it is imported where it is used: that takes a second, in every process that
learns or generates, and most do so alone.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interlock.chips import device, probe
from interlock.config.schema import LearnerSettings
from interlock.learner.distributed.messages import ShardDecoder
from interlock.learner.distributed.ranks import Ranks
from interlock.models.architecture import Architecture
from interlock.models.decoder import Decoder
from interlock.models.moe import Experts


def shard(decoder: Decoder, settings: LearnerSettings, ranks: Ranks) -> Decoder:
    """On rank 0: shard `decoder`, fp32 on its CPU, over the devices of all ranks.

    Returns a decoder whose parameters are DTensors; `decoder` itself when alone. Frees the memory
    of the one that it is given as it goes.
    """
    if ranks.size == 1:
        return decoder
    assert ranks.device is not None
    command = ShardDecoder(decoder.arch, probe.settled(settings, ranks.device).dtype)
    with ranks.broadcast(command):
        return shard_from_rank0(command, decoder, ranks)


@torch.no_grad()
def shard_from_rank0(command: ShardDecoder, source: Decoder | None, ranks: Ranks) -> Decoder:
    """What `shard` does, on every rank: `source` is rank 0's decoder, and None on the others."""
    compute = device.dtype(command.dtype)
    decoder = _empty_shards(command.arch, torch.float32, compute, ranks)
    given = {} if source is None else dict(source.named_parameters())
    for name, parameter in decoder.named_parameters():
        scatter(parameter, given.get(name), ranks)
        if name in given:
            given[name].data = torch.empty(0)
    return decoder


def scatter(parameter: Tensor, whole: Tensor | None, ranks: Ranks) -> None:
    """Write into `parameter` this rank's part of `whole`, which rank 0 has: None on the others.

    A parameter that is no DTensor is whole on every rank. `whole` is on the CPU, but anywhere when
    alone.
    """
    if ranks.size == 1:
        assert whole is not None
        parameter.copy_(whole)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if whole is not None:
        memory.copy_(whole)
    if isinstance(parameter, DTensor):
        parameter.copy_(distribute_tensor(memory, parameter.device_mesh, parameter.placements))
    else:
        dist.broadcast(memory, 0)
        parameter.copy_(memory)


def published(decoder: Decoder, ranks: Ranks, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """As `decoder.published(dtype)`; of several ranks, on the CPU of rank 0 alone.

    A collective: every rank must run it to its end.
    """
    if ranks.size == 1:
        yield from decoder.published(dtype)
        return
    parts: dict[str, list[str]] = {}
    layout = decoder.layout()
    for name, (owner, _) in layout.items():
        parts.setdefault(owner, []).append(name)
    for owner, parameter in decoder.named_parameters():
        kept = dtype if parameter.requires_grad else parameter.dtype
        found = gather(parameter.detach().to(kept), ranks)
        for name in parts[owner] if found is not None else ():
            assert found is not None
            yield name, found[layout[name][1]].clone()


def gather(tensor: Tensor, ranks: Ranks) -> Tensor | None:
    """All of `tensor`: itself when alone; else on rank 0's CPU, and None on every other rank.

    A collective, where it is a DTensor.
    """
    if ranks.size == 1:
        return tensor
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.cpu() if ranks.rank == 0 else None


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's part."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def reshard(decoder: Decoder) -> None:
    """Free the root's gathered parameters, as a backward pass does by itself."""
    free = getattr(decoder, "reshard", None)
    if free is not None:
        free()


@torch.no_grad()
def frozen_copy(decoder: Decoder, ranks: Ranks) -> Decoder:
    """A copy, in its compute dtype, of a decoder of several ranks as it is now."""
    copy = _empty_shards(decoder.arch, decoder.dtype, decoder.dtype, ranks).requires_grad_(False)
    for ours, theirs in zip(copy.parameters(), decoder.parameters(), strict=True):
        local_shard(ours).copy_(local_shard(theirs))
    return copy


def all_reduce_loads(decoder: Decoder, ranks: Ranks) -> None:
    """Every rank counts the tokens of its own micro-batches; experts are balanced by all."""
    for experts in _experts(decoder) if ranks.size > 1 else ():
        assert experts.load is not None
        ranks.all_reduce(experts.load)


def discount_last_pass(decoder: Decoder) -> None:
    """Take the tokens of the last forward pass out of the experts' load again."""
    for experts in _experts(decoder):
        assert experts.load is not None and experts.routed is not None
        experts.load.sub_(experts.routed)


def _experts(decoder: Decoder) -> Iterator[Experts]:
    return (module for module in decoder.modules() if isinstance(module, Experts))


def _empty_shards(
    arch: Architecture, stored: torch.dtype, compute: torch.dtype, ranks: Ranks
) -> Decoder:
    """A decoder sharded over the ranks, its values still unwritten."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert ranks.mesh is not None and ranks.device is not None
    with torch.device("meta"):
        decoder = Decoder(arch)
    for parameter in decoder.parameters():
        if parameter.requires_grad:  # the others stay fp32, see models/decoder.py
            parameter.data = parameter.data.to(stored)
    replicated = {parameter for parameter in decoder.parameters() if not parameter.requires_grad}
    layers: list[nn.Module] = list(decoder.layers)
    for module in (*layers, decoder):
        cast = None if module is decoder else compute
        policy = MixedPrecisionPolicy(cast, torch.float32, cast_forward_inputs=False)
        sharded = fully_shard(
            module,
            mesh=ranks.mesh,
            mp_policy=policy,
            ignored_params=replicated,
            reshard_after_forward=module is not decoder,
        )
        # The loss is a sum over all tokens of the step, wherever they are computed.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    decoder.to_empty(device=ranks.device)
    decoder.dtype = compute
    return decoder
