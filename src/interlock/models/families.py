"""The families that load: what each has in its config.json, and the decoder that this makes.

    config.json ──published.py──> Config ──build──> Architecture

docs/models.md lists them with the tests that show each; to add one is a struct, a function or a
reuse of one, and a row of FAMILIES.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from interlock.models.architecture import Architecture, DefaultRope, Latent, Rope, Routing
from interlock.models.published import (
    Config,
    CwmConfig,
    DeepSeekConfig,
    DeepSeekV2Config,
    DeepSeekV3Config,
    Dots1Config,
    ExpertsConfig,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    MistralConfig,
    MixedWindowConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedConfig,
    SmolLM3Config,
    SwitchedWindowConfig,
)

_MOST_EXPERTS = 2**15  # of all layers

# key -> the only values under which a model computes what ours does
Allowed = Mapping[str, tuple[Any, ...]]
_EVERYWHERE: Allowed = {
    "attention_dropout": (0, None),
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "residual_dropout": (0, None),
    "use_sliding_window": (False, None),
}
_NO_BIAS: Allowed = {"attention_bias": (False, None)}
_V2: Allowed = {
    **_NO_BIAS,
    "moe_layer_freq": (1,),
    # With true, the published code leaves out the scaling factor and transformers does not.
    "norm_topk_prob": (False,),
    "scoring_func": ("softmax",),
}
_V3: Allowed = {
    **_NO_BIAS,
    "moe_layer_freq": (1,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
}
_DOTS: Allowed = {"moe_layer_freq": (1,), "scoring_func": ("sigmoid", "noaux_tc")}


class DecoderFamily(NamedTuple):
    """One value of config.json's model_type."""

    config: type[Config]
    build: Callable[[str, Any, Rope], Architecture]
    only: Allowed = MappingProxyType({})  # besides what holds for all
    reads: Sequence[str] = ()  # keys that its function reads, so that all values may stand there

    @property
    def allowed(self) -> Allowed:
        """key -> the values that may stand there."""
        common = {key: values for key, values in _EVERYWHERE.items() if key not in self.reads}
        return common | dict(self.only)


def _dense(family: str, config: Config, rope: Rope) -> Architecture:
    """What a decoder without experts is made of.

    A window that slides changes nothing for texts that fit into it, and so is the context: within
    it the model is what it was trained to be.
    """
    heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // heads
    return Architecture(
        family=family,
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        head_dim=head_dim,
        value_dim=head_dim,
        inner=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        context=min(config.max_position_embeddings, config.window or 2**63),
        tied=config.tie_word_embeddings,
        rope=rope,
        rope_dim=head_dim,
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias,
    )


def _qwen2(family: str, config: SwitchedWindowConfig, rope: Rope) -> Architecture:
    """Biases of queries, keys and values, whatever attention_bias says."""
    return msgspec.structs.replace(_dense(family, config, rope), qkv_bias=True, out_bias=False)


def _qwen3(family: str, config: Qwen3Config, rope: Rope) -> Architecture:
    return msgspec.structs.replace(_dense(family, config, rope), qk_norm=True)


def _qwen3_moe(family: str, config: Qwen3MoeConfig, rope: Rope) -> Architecture:
    dense = set(config.mlp_only_layers or [])
    step = config.decoder_sparse_step
    routing = Routing(
        layers=frozenset(range(step - 1, config.num_hidden_layers, step)) - dense,
        experts=config.num_experts,
        per_token=config.num_experts_per_tok,
        inner=config.moe_intermediate_size,
        shared_inner=0,
        gate="softmax",
        corrected=False,
        groups=1,
        kept_groups=1,
        group_top=1,
        normalize=config.norm_topk_prob,
        scale=1.0,
    )
    return msgspec.structs.replace(_qwen3(family, config, rope), routing=routing)


def _seed(family: str, config: SeedConfig, rope: Rope) -> Architecture:
    arch = _dense(family, config, rope)
    return msgspec.structs.replace(arch, out_bias=config.attention_out_bias)


def _cwm(family: str, config: CwmConfig, rope: Rope) -> Architecture:
    if isinstance(
        rope, DefaultRope
    ):  # transformers would then take Llama 3's, with its own figures
        raise msgspec.ValidationError("rope_scaling is missing")
    return _dense(family, config, rope)


def _smollm3(family: str, config: SmolLM3Config, rope: Rope) -> Architecture:
    rotating = config.rotating
    if len(rotating) < config.num_hidden_layers:
        raise msgspec.ValidationError(
            f"no_rope_layers names {len(rotating)} of {config.num_hidden_layers} layers"
        )
    still = frozenset(i for i in range(config.num_hidden_layers) if not rotating[i])
    return msgspec.structs.replace(_dense(family, config, rope), unrotated=still)


def _shared_words(config: ExpertsConfig) -> Routing:
    """A softmax over the experts, the best of all, as DeepSeek-V2 has it at its simplest."""
    shared = config.n_shared_experts or 0
    return Routing(
        layers=frozenset(range(config.first_k_dense_replace, config.num_hidden_layers)),
        experts=config.n_routed_experts,
        per_token=config.num_experts_per_tok,
        inner=config.moe_intermediate_size,
        shared_inner=shared * config.moe_intermediate_size,
        gate="softmax",
        corrected=False,
        groups=1,
        kept_groups=1,
        group_top=1,
        normalize=False,
        scale=config.routed_scaling_factor,
    )


def _balanced(config: DeepSeekV3Config | Glm4MoeConfig | Dots1Config) -> Routing:
    """DeepSeek-V3's: a bias that balances joins the choice (arXiv 2412.19437, section 2.1.2)."""
    return msgspec.structs.replace(
        _shared_words(config),
        gate="sigmoid",
        corrected=True,
        groups=config.n_group or 1,
        kept_groups=config.topk_group or 1,
        group_top=2,
        normalize=config.norm_topk_prob,
    )


def _latent(family: str, config: DeepSeekConfig, rope: Rope) -> Architecture:
    """Multi-head latent attention (arXiv 2405.04434)."""
    return msgspec.structs.replace(
        _dense(family, config, rope),
        kv_heads=config.num_attention_heads,
        head_dim=config.qk_nope_head_dim + config.qk_rope_head_dim,
        value_dim=config.v_head_dim,
        rope_dim=config.qk_rope_head_dim,
        latent=Latent(config.q_lora_rank, config.kv_lora_rank, interleaved=True),
    )


def _deepseek_v2(family: str, config: DeepSeekV2Config, rope: Rope) -> Architecture:
    routing = _shared_words(config)
    if config.topk_method == "group_limited_greedy":
        groups, kept = config.n_group or 1, config.topk_group or 1
        routing = msgspec.structs.replace(routing, groups=groups, kept_groups=kept)
    return msgspec.structs.replace(_latent(family, config, rope), routing=routing)


def _deepseek_v3(family: str, config: DeepSeekV3Config, rope: Rope) -> Architecture:
    latent = Latent(config.q_lora_rank, config.kv_lora_rank, config.rope_interleave)
    return msgspec.structs.replace(
        _latent(family, config, rope), latent=latent, routing=_balanced(config)
    )


def _glm4_moe_lite(family: str, config: Glm4MoeLiteConfig, rope: Rope) -> Architecture:
    arch = _deepseek_v3(family, config, rope)
    kinds = config.mlp_layer_types
    if kinds is None or arch.routing is None:
        return arch
    sparse = frozenset(i for i, kind in enumerate(kinds[: arch.layers]) if kind == "sparse")
    routing = msgspec.structs.replace(arch.routing, layers=sparse)
    return msgspec.structs.replace(arch, routing=routing)


def _glm4_moe(family: str, config: Glm4MoeConfig, rope: Rope) -> Architecture:
    return msgspec.structs.replace(
        _dense(family, config, rope),
        out_bias=False,
        qk_norm=config.use_qk_norm,
        rope_dim=int(config.head_dim * config.partial_rotary_factor),
        routing=_balanced(config),
    )


def _dots1(family: str, config: Dots1Config, rope: Rope) -> Architecture:
    arch = _dense(family, config, rope)
    return msgspec.structs.replace(arch, qk_norm=True, routing=_balanced(config))


def check_sizes(config: Config) -> None:
    """Raise msgspec.ValidationError if the sizes do not fit together."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if isinstance(config, DeepSeekConfig):
        if kv_heads not in (heads, None):
            raise msgspec.ValidationError(f"num_key_value_heads {kv_heads} should be {heads}")
    elif config.head_dim is None and config.hidden_size % heads:
        raise msgspec.ValidationError(
            f"hidden_size {config.hidden_size} is not a multiple of the {heads} attention heads"
        )
    if heads % (kv_heads or heads):
        raise msgspec.ValidationError(
            f"{heads} attention heads cannot share {kv_heads} key/value heads evenly"
        )


def check_made(arch: Architecture) -> None:
    """Raise msgspec.ValidationError if the numbers of what was made do not fit together."""
    if arch.rope_dim == 0 or arch.rope_dim % 2:
        raise msgspec.ValidationError(
            f"a rotary dimension of {arch.rope_dim} is not even and positive"
        )
    routing = arch.routing
    if routing is None:
        return
    if routing.routed > _MOST_EXPERTS:
        raise msgspec.ValidationError(f"{routing.routed} experts are more than {_MOST_EXPERTS}")
    size, remainder = divmod(routing.experts, routing.groups)
    kept, chosen = routing.kept_groups, routing.per_token
    if remainder or size < routing.group_top:
        raise msgspec.ValidationError(
            f"n_group {routing.groups} does not fit {routing.experts} experts"
        )
    if kept > routing.groups:
        raise msgspec.ValidationError(f"topk_group {kept} is more than n_group {routing.groups}")
    if chosen > kept * size:
        raise msgspec.ValidationError(f"num_experts_per_tok {chosen} is more than {kept * size}")


_SWITCH = ("use_sliding_window",)
FAMILIES: dict[str, DecoderFamily] = {
    "llama": DecoderFamily(Config, _dense),
    "smollm3": DecoderFamily(SmolLM3Config, _smollm3, reads=_SWITCH),
    "mistral": DecoderFamily(MistralConfig, _dense, _NO_BIAS),
    "ministral": DecoderFamily(MixedWindowConfig, _dense, _NO_BIAS),
    "cwm": DecoderFamily(CwmConfig, _cwm, _NO_BIAS),
    # Its dropout is of its training; here there is none.
    "seed_oss": DecoderFamily(SeedConfig, _seed, reads=("attention_dropout", "residual_dropout")),
    "qwen2": DecoderFamily(SwitchedWindowConfig, _qwen2, reads=_SWITCH),
    "qwen3": DecoderFamily(Qwen3Config, _qwen3, reads=_SWITCH),
    "qwen3_moe": DecoderFamily(Qwen3MoeConfig, _qwen3_moe, reads=_SWITCH),
    "deepseek_v2": DecoderFamily(DeepSeekV2Config, _deepseek_v2, _V2),
    "deepseek_v3": DecoderFamily(DeepSeekV3Config, _deepseek_v3, _V3),
    "glm4_moe": DecoderFamily(Glm4MoeConfig, _glm4_moe, reads=("partial_rotary_factor",)),
    "glm4_moe_lite": DecoderFamily(Glm4MoeLiteConfig, _glm4_moe_lite, _V3),
    "dots1": DecoderFamily(Dots1Config, _dots1, _DOTS),
}
