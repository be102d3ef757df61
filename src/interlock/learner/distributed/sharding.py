"""A decoder whose parameters are dealt out to several devices: FSDP2 (torch's `fully_shard`).

    rank 0's CPU ── dealt_out ──> rows of every parameter on every rank, fp32
    forward, backward            a layer is whole only while it is computed, in the compute dtype
    gradients ── summed in fp32 ──> rows of every gradient
    published, whole             one parameter at a time ──> rank 0's CPU

A layer's weights are cast before they travel: the bits are those of a cast at their use. The root,
embedding, last norm and head, travels in fp32, because the gradients of an embedding and of a head
tied to it add up in the masters' dtype. The root stays whole from the forward pass until the end
of the backward pass, since the loss reads the head in between.

Expert biases, which no gradient moves, are whole on every rank and stay fp32 (models/moe.py).
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from interlock.chips import device
from interlock.config.schema import LearnerSettings
from interlock.learner.distributed.messages import Shard
from interlock.learner.distributed.ranks import World
from interlock.models.architecture import Architecture
from interlock.models.decoder import Decoder
from interlock.models.moe import Experts


def shard(decoder: Decoder, settings: LearnerSettings, world: World) -> Decoder:
    """`decoder`, fp32 on rank 0's CPU, dealt out to the devices of all ranks; itself when alone.

    Takes the memory of the one it is given as it goes.
    """
    if world.size == 1:
        return decoder
    assert world.device is not None
    command = Shard(decoder.arch, device.settled_dtype(settings.dtype, world.device))
    with world.lead(command):
        return dealt_out(command, decoder, world)


@torch.no_grad()
def dealt_out(command: Shard, source: Decoder | None, world: World) -> Decoder:
    """What `shard` does, on every rank; `source` is None on all but rank 0."""
    compute = device.dtype(command.dtype)
    decoder = _blank(command.arch, torch.float32, compute, world)
    given = {} if source is None else dict(source.named_parameters())
    for name, parameter in decoder.named_parameters():
        deal(parameter, given.get(name), world)
        if name in given:
            given[name].data = torch.empty(0)
    return decoder


def deal(parameter: Tensor, whole: Tensor | None, world: World) -> None:
    """Give every rank its part of `whole`, which rank 0 has; `parameter` is anywhere when alone."""
    if world.size == 1:
        assert whole is not None
        parameter.copy_(whole)
        return
    memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if whole is not None:
        memory.copy_(whole)
    if isinstance(parameter, DTensor):
        parameter.copy_(distribute_tensor(memory, parameter.device_mesh, parameter.placements))
    else:
        dist.broadcast(memory, 0)
        parameter.copy_(memory)


def published(decoder: Decoder, world: World) -> Iterator[tuple[str, Tensor]]:
    """As `decoder.published(decoder.dtype)`; of several ranks, on the CPU of rank 0 alone."""
    if world.size == 1:
        yield from decoder.published(decoder.dtype)
        return
    parts: dict[str, list[str]] = {}
    layout = decoder.layout()
    for name, (owner, _) in layout.items():
        parts.setdefault(owner, []).append(name)
    for owner, parameter in decoder.named_parameters():
        kept = decoder.dtype if parameter.requires_grad else parameter.dtype
        found = whole(parameter.detach().to(kept), world)
        for name in parts[owner] if found is not None else ():
            assert found is not None
            yield name, found[layout[name][1]].clone()


def whole(tensor: Tensor, world: World) -> Tensor | None:
    """All of `tensor`: itself when alone; else on rank 0's CPU, and None on every other rank."""
    if world.size == 1:
        return tensor
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.cpu() if world.rank == 0 else None


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def release(decoder: Decoder) -> None:
    """Give back the root's whole parameters, as a backward pass does by itself."""
    if isinstance(decoder, FSDPModule):
        decoder.reshard()


@torch.no_grad()
def frozen(decoder: Decoder, world: World) -> Decoder:
    """A copy as it is now of a decoder of several ranks, held in its compute dtype."""
    copy = _blank(decoder.arch, decoder.dtype, decoder.dtype, world).requires_grad_(False)
    for ours, theirs in zip(copy.parameters(), decoder.parameters(), strict=True):
        local(ours).copy_(local(theirs))
    return copy


def add_up_loads(decoder: Decoder, world: World) -> None:
    """Every rank counts the tokens of its own micro-batches; experts are balanced by all."""
    for experts in _experts(decoder) if world.size > 1 else ():
        assert experts.load is not None
        world.add_up(experts.load)


def uncount(decoder: Decoder) -> None:
    """Take the tokens of the last forward pass out of the experts' load again."""
    for experts in _experts(decoder):
        assert experts.load is not None and experts.routed is not None
        experts.load.sub_(experts.routed)


def _experts(decoder: Decoder) -> Iterator[Experts]:
    return (module for module in decoder.modules() if isinstance(module, Experts))


def _blank(arch: Architecture, held: torch.dtype, compute: torch.dtype, world: World) -> Decoder:
    """A decoder dealt out over the ranks, its values still unwritten."""
    assert world.mesh is not None and world.device is not None
    with torch.device("meta"):
        decoder = Decoder(arch)
    for parameter in decoder.parameters():
        if parameter.requires_grad:  # the others stay fp32, see models/decoder.py
            parameter.data = parameter.data.to(held)
    alike = {parameter for parameter in decoder.parameters() if not parameter.requires_grad}
    layers: list[nn.Module] = list(decoder.layers)
    for module in (*layers, decoder):
        cast = None if module is decoder else compute
        policy = MixedPrecisionPolicy(cast, torch.float32, cast_forward_inputs=False)
        sharded = fully_shard(
            module,
            mesh=world.mesh,
            mp_policy=policy,
            ignored_params=alike,
            reshard_after_forward=module is not decoder,
        )
        # The loss is a sum over all tokens of the step, wherever they are computed.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    decoder.to_empty(device=world.device)
    decoder.dtype = compute
    return decoder
