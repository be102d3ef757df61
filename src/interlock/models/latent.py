"""Multi-head latent attention: DeepSeek-V2, arXiv 2405.04434, section 2.1; the same in V3 and R1.

    x ─ down ─┬─ query latent ─ norm ─ query_up ─> per head: plain part, rotated part ────> q
              ├─ key/value latent ─ norm ─ up ───> per head: plain part of k, and v ─┬────> k, v
              └─ one rotated key ────────────────> shared by all heads ──────────────┘

Without a query latent (V2-Lite) `down` gives the queries themselves. An `Attend` is handed whole
keys and values per head, so caching them costs what full multi-head attention costs.

Legend: N tokens, d hidden size, H heads, P plain and R rotated elements of a query or key head,
        E value head size
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from interlock.models.architecture import Architecture
from interlock.models.attention import Attend
from interlock.models.layers import LayoutEntry, Linear, RMSNorm
from interlock.models.rope import Angles, rotate, rotate_interleaved, softmax_factor

# Neither the published code nor transformers uses the config's epsilon for these two norms.
_LATENT_EPS = 1e-6


class LatentAttention(nn.Module):
    """Attention whose keys and values are projected up from one low-rank vector per token."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        latent = arch.latent
        assert latent is not None
        self.layer, self.heads = layer, arch.heads
        self.rotated, self.plain = arch.rope_dim, arch.head_dim - arch.rope_dim
        self.value_dim = arch.value_dim
        queries = arch.heads * arch.head_dim
        self.down_rows = [latent.q_rank or queries, latent.kv_rank, arch.rope_dim]
        self.down = Linear(arch.hidden, sum(self.down_rows))
        self.query_norm = RMSNorm(latent.q_rank, _LATENT_EPS) if latent.q_rank else None
        self.query_up = Linear(latent.q_rank, queries) if latent.q_rank else None
        self.norm = RMSNorm(latent.kv_rank, _LATENT_EPS)
        self.up = Linear(latent.kv_rank, arch.heads * (self.plain + arch.value_dim))
        self.out = Linear(arch.heads * arch.value_dim, arch.hidden)
        self.rotate = rotate_interleaved if latent.interleaved else rotate
        self.scale = arch.head_dim**-0.5 * softmax_factor(arch.rope)

    def forward(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [N, d] -> [N, d]."""
        query, latent, shared = self.down(x).split(self.down_rows, dim=-1)
        if self.query_norm is not None and self.query_up is not None:
            query = self.query_up(self.query_norm(query))
        query = query.view(len(x), self.heads, -1)  # [N, H, P + R]
        plain_q, rotated_q = query.split([self.plain, self.rotated], dim=-1)
        q = torch.cat([plain_q, self.rotate(rotated_q, angles)], dim=-1)
        up = self.up(self.norm(latent)).view(len(x), self.heads, -1)  # [N, H, P + E]
        plain_k, v = up.split([self.plain, self.value_dim], dim=-1)
        rotated_k = self.rotate(shared[:, None], angles).expand(-1, self.heads, -1)  # [N, H, R]
        k = torch.cat([plain_k, rotated_k], dim=-1)
        return self.out(attend(self.layer, q, k, v, self.scale).flatten(1))

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """As Attention's in decoder.py."""
        query, *shared = self.down_rows
        first = "q_proj" if self.query_up is None else "q_a_proj"
        rows = {f"{theirs}.{first}": query, f"{theirs}.kv_a_proj_with_mqa": sum(shared)}
        yield from self.down.stacked(f"{ours}.down", rows)
        if self.query_norm is not None and self.query_up is not None:
            yield from self.query_norm.layout(f"{ours}.query_norm", f"{theirs}.q_a_layernorm")
            yield from self.query_up.layout(f"{ours}.query_up", f"{theirs}.q_b_proj")
        yield from self.norm.layout(f"{ours}.norm", f"{theirs}.kv_a_layernorm")
        yield from self.up.layout(f"{ours}.up", f"{theirs}.kv_b_proj")
        yield from self.out.layout(f"{ours}.out", f"{theirs}.o_proj")
