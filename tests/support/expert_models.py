"""How tokens find their experts in the tiny models of tests: two of four, in the second layer."""

import torch
from msgspec.structs import replace

from interlock.models.architecture import Architecture, DefaultRope, Routing
from interlock.models.decoder import Decoder

ROUTING = Routing(
    layers=frozenset([1]),
    experts=4,
    per_token=2,
    inner=8,
    shared_inner=0,
    gate="softmax",
    corrected=False,
    groups=1,
    kept_groups=1,
    group_top=1,
    normalize=True,
    scale=1.0,
)


def mixture(seed: int = 0, **routing: object) -> Decoder:
    """A random decoder of four layers, the last three with 16 experts, four of them per token."""
    own = replace(ROUTING, layers=frozenset([1, 2, 3]), experts=16, per_token=4, inner=16)
    arch = Architecture(
        family="qwen3_moe",
        vocab=61,
        hidden=32,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=8,
        value_dim=8,
        inner=48,
        norm_eps=1e-5,
        context=128,
        tied=False,
        rope=DefaultRope(),
        rope_dim=8,
        routing=replace(own, **routing),
    )
    decoder = Decoder(arch)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.3 * drawn)
    return decoder
