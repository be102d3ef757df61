"""One decoder for the model families Interlock trains and serves, in basic operators only.

    tokens [N] ─ embed ─ x ─┬─ norm ─ attention ─┬─ + ─┬─ norm ─ mlp or experts ─┬─ + ─ … ─ norm
                            └────────────────────┘     └─────────────────────────┘           │
    logits [N, V] <─ head ─ hidden [N, d] <──────────────────────────────────────────────────┘

It knows nothing of batches, caches or padding: tokens come as one flat stream with their positions,
and an `Attend` (attention.py) decides who sees whom. `layout` says which part of which parameter
every Hugging Face tensor is; loading, publishing and saving all go through it.

Legend: N tokens, d hidden size, V vocabulary, H query heads, K key/value heads, D head size
"""

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interlock.chips import products
from interlock.chips.products import Product
from interlock.errors import ModelError
from interlock.models.architecture import Architecture
from interlock.models.attention import Attend
from interlock.models.latent import LatentAttention
from interlock.models.layers import LayoutEntry, Linear, Mlp, ParameterSlice, RMSNorm
from interlock.models.moe import Experts
from interlock.models.rope import Angles, Rotary, rotate
from interlock.records.adapters import AdapterForm

# Hugging Face name -> (parameter name, index into it)
Layout = dict[str, ParameterSlice]


class Attention(nn.Module):
    """Grouped-query attention; rotary positions, biases (Qwen2) and QK-norm (Qwen3) if any."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = arch.heads, arch.kv_heads, arch.head_dim
        rows = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
        self.qkv = Linear(arch.hidden, rows, bias=arch.qkv_bias)
        self.out = Linear(arch.heads * arch.head_dim, arch.hidden, bias=arch.out_bias)
        self.q_norm = RMSNorm(arch.head_dim, arch.norm_eps) if arch.qk_norm else None
        self.k_norm = RMSNorm(arch.head_dim, arch.norm_eps) if arch.qk_norm else None
        self.scale = arch.head_dim**-0.5
        self.rotates = layer not in arch.unrotated

    def forward(self, x: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """x [N, d] -> [N, d]."""
        qkv = self.qkv(x).view(len(x), -1, self.head_dim)  # [N, H + 2K, D]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=1)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=1)
        qk = rotate(qk, angles) if self.rotates else qk
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        return self.out(attend(self.layer, q, k, v, self.scale).flatten(1))

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """Where each tensor of the Hugging Face module `theirs` is in our module `ours`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {f"{theirs}.q_proj": q, f"{theirs}.k_proj": kv, f"{theirs}.v_proj": kv}
        yield from self.qkv.stacked(f"{ours}.qkv", rows)
        yield from self.out.layout(f"{ours}.out", f"{theirs}.o_proj")
        if self.q_norm is not None and self.k_norm is not None:
            yield from self.q_norm.layout(f"{ours}.q_norm", f"{theirs}.q_norm")
            yield from self.k_norm.layout(f"{ours}.k_norm", f"{theirs}.k_norm")


class Layer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(arch.hidden, arch.norm_eps)
        self.attention = (LatentAttention if arch.latent else Attention)(arch, index)
        self.mlp_norm = RMSNorm(arch.hidden, arch.norm_eps)
        self.mlp: Mlp | Experts = Mlp(arch.hidden, arch.inner)
        if arch.routing is not None and index in arch.routing.layers:
            self.mlp = Experts(arch.hidden, arch.routing)

    def forward(
        self,
        x: Tensor,
        angles: Angles,
        attend: Attend,
        dtype: torch.dtype,
        route: Tensor | None = None,
    ) -> Tensor:
        """x [N, d] -> [N, d], both as wide as fp32; between them all is computed in `dtype`.

        route [N, k]: the experts to pass, of a layer that has some (moe.py).
        """
        normed = self.attention_norm(x, dtype).to(dtype)
        x = x + self.attention(normed, angles, attend).to(x.dtype)
        normed = self.mlp_norm(x, dtype).to(dtype)
        out = self.mlp(normed, route) if isinstance(self.mlp, Experts) else self.mlp(normed)
        return x + out.to(x.dtype)

    def layout(self, ours: str, theirs: str) -> Iterator[LayoutEntry]:
        """As Attention's."""
        yield from self.attention.layout(f"{ours}.attention", f"{theirs}.self_attn")
        yield from self.mlp.layout(f"{ours}.mlp", f"{theirs}.mlp")
        yield from self.attention_norm.layout(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        yield from self.mlp_norm.layout(f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm")


class Decoder(nn.Module):
    """The model. Parameters are left uninitialised: checkpoint.py fills every one of them.

        decoder = load_decoder(directory, torch.float32, device)
        attend = causal(len(tokens), device)  # one plain sequence
        hidden = decoder(tokens, attend.positions, attend)  # [N, d]
        logprobs = decoder.logits(hidden).log_softmax(-1)  # [N, V], of what follows each token

    One with requires_grad False is not trained by gradient, and stays fp32 (see moe.py).
    `dtype` is what weights are rounded to, and what products and attention are computed in. What
    the layers add to, x, and the logits are fp32 at least: decoding and prefill, or two engines,
    which add up in different orders, are then a quarter as far apart as with both in bfloat16
    (docs/performance.md). With `checkpointing`, only the input of each layer is kept for the
    backward pass, which computes the rest again.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.rotary = Rotary(arch.rope, arch.rope_dim)
        self.embed = nn.Parameter(torch.empty(arch.vocab, arch.hidden))
        self.layers = nn.ModuleList(Layer(arch, index) for index in range(arch.layers))
        self.norm = RMSNorm(arch.hidden, arch.norm_eps)
        self.unembed = None if arch.tied else nn.Parameter(torch.empty(arch.vocab, arch.hidden))
        self.product: Product = F.linear  # see `use`
        self.head_product: Product = products.wide  # an engine may lend a packed one
        self.dtype = torch.float32
        self.checkpointing = False
        self.predictor: nn.Module | None = None  # models/predictor.py, where one is trained
        # Of the adapter that stands beside the weights, which are frozen then (models/adapters.py);
        # its tensors by PEFT's names.
        self.adapter: AdapterForm | None = None
        self.adapter_layout: Layout = {}

    @property
    def head(self) -> nn.Parameter:
        """The vocabulary projection [V, d]; the embedding itself when the model ties them."""
        return self.embed if self.unembed is None else self.unembed

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, routes: Tensor | None = None
    ) -> Tensor:
        """tokens [N] int64, positions [N] int64 -> hidden [N, d] after the last norm, fp32 (with
        `dtype` float64, that).

        routes [N, L, k]: of L layers with experts, those to pass; -1: as the router chooses.
        """
        learning = torch.is_grad_enabled()
        wide = torch.promote_types(self.dtype, torch.float32)
        x = F.embedding(tokens, self.embed).to(self.dtype).to(wide)
        angles = self.rotary(positions)
        each = iter(() if routes is None else routes.unbind(1))
        for layer in self.layers:
            assert isinstance(layer, Layer)
            route = next(each, None) if isinstance(layer.mlp, Experts) else None
            if learning and self.checkpointing:
                x = checkpoint(
                    *(layer, x, angles, attend, self.dtype, route),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x = layer(x, angles, attend, self.dtype, route)
        if learning:
            for experts in self._experts():
                experts.count()
        return self.norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., d] -> logits [..., V], in hidden's dtype."""
        return self.head_product(hidden, self.head.to(self.dtype), None)

    def use(self, kernel: str) -> None:
        """From now on multiply by `kernel`, one of chips/products.py that is offered here."""
        self.product = products.plain(kernel)
        for module in self.modules():
            if isinstance(module, Linear | Experts):
                module.product = self.product

    def shared(self) -> "Decoder":
        """Another decoder of the very same weights, outside of autograd: they change together.
        Of an adapter it has none.
        """
        own = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()}
        other = copy.deepcopy(self, memo=own)
        other.drop_adapter()
        return other

    def drop_adapter(self) -> None:
        """Compute by the weights alone; they stay frozen, if they are."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.adapter = None
            elif isinstance(module, Experts):
                module.gate_up_adapter = module.down_adapter = None
        self.adapter, self.adapter_layout = None, {}

    def routes(self) -> Tensor:
        """The experts that each token of the last forward pass took, [N, L, k] int64."""
        return torch.stack([each.choice for each in self._experts() if each.choice is not None], 1)

    def expert_loads(self) -> list[Tensor]:
        """Of every layer of experts, the tokens that each had since they were last forgotten, [E].

        Those of forward passes made while gradients were recorded; [] before the first.
        """
        return [each.load for each in self._experts() if each.load is not None]

    def forget_loads(self) -> None:
        """Begin to count anew."""
        for experts in self._experts():
            experts.load = None

    def balance_experts(self, speed: float) -> None:
        """Move each expert's bias by `speed` against the load it had since the last call (moe.py).

        The load counts the forward passes made while gradients were recorded. Raises ModelError
        when the family has no such bias.
        """
        family, routing = self.arch.family, self.arch.routing
        if routing is None or not routing.corrected:
            raise ModelError(f"{family} has no expert bias to balance; leave balancing off")
        for experts in self._experts():
            experts.balance(speed)

    def layout(self) -> Layout:
        """Which part of which parameter every Hugging Face tensor is, in checkpoint order."""
        layout: Layout = {"model.embed_tokens.weight": ("embed", ())}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            layout.update(layer.layout(f"layers.{index}", f"model.layers.{index}"))
        layout["model.norm.weight"] = ("norm.weight", ())
        if self.unembed is not None:
            layout["lm_head.weight"] = ("unembed", ())
        return layout

    def tensors(self) -> dict[str, Tensor]:
        """Hugging Face name -> a view into the parameter that holds it, outside of autograd."""
        parameters = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {name: parameters[owner][index] for name, (owner, index) in self.layout().items()}

    def published(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face name and a copy in `dtype`, one at a time; what moe.py keeps fp32 stays."""
        exact = self.exact()
        for name, view in self.tensors().items():
            yield name, view.to(torch.float32 if name in exact else dtype, copy=True)

    def exact(self) -> set[str]:
        """The tensors that are fp32 whatever the others are in, by Hugging Face names."""
        owners = self.layout().items()
        return {name for name, (owner, _) in owners if owner.endswith("router.correction")}

    def _experts(self) -> Iterator[Experts]:
        """Those of the layers: a predictor's are not balanced."""
        return (module for module in self.layers.modules() if isinstance(module, Experts))
