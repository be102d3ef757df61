"""A Hugging Face config.json read into an Architecture.

    config.json ─ what we lack is refused ─ the family's struct ─ its function ─> Architecture
                                            (types, ranges)

Each family has one struct, which says what its config.json must and may hold, and one function.
Keys that neither the structs nor the tables name are settings of training or generation and change
no number of the forward pass.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from interlock.errors import ModelError
from interlock.models.architecture import Architecture, Latent, Llama3Rope, Rope, Routing
from interlock.models.blocks import read_blocks
from interlock.models.files import read_object
from interlock.text import one_line

# The upper bounds are far above any published model: a lying config must not keep us building.
Size = Annotated[int, Meta(gt=0, le=2**24)]
Count = Annotated[int, Meta(gt=0, le=2**12)]
LayerCount = Annotated[int, Meta(gt=0, le=2**10)]
CountOrZero = Annotated[int, Meta(ge=0, le=2**12)]
_MOST_EXPERTS = 2**15  # of all layers

# key -> the only values under which a model computes what ours does
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0, None),
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "use_sliding_window": (False, None),
}
_SUPPORTED_BY_FAMILY: dict[str, dict[str, tuple[Any, ...]]] = {
    "deepseek_v2": {
        "attention_bias": (False, None),
        "moe_layer_freq": (1,),
        # With true, the published code leaves out the scaling factor and transformers does not.
        "norm_topk_prob": (False,),
        "scoring_func": ("softmax",),
    },
    "deepseek_v3": {
        "attention_bias": (False, None),
        "moe_layer_freq": (1,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
}
# DeepSeek publishes its models with code of these names; the families here take its place.
_REPLACED_CODE = {"configuration_deepseek", "modeling_deepseek"}


class _Config(msgspec.Struct, kw_only=True):
    """What all families share. A missing optional key means what it means to transformers."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Count
    rms_norm_eps: Annotated[float, Meta(ge=0)]
    max_position_embeddings: Annotated[int, Meta(gt=0)]
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False


class _Qwen3Config(_Config, kw_only=True):
    head_dim: Count  # pyright: ignore[reportIncompatibleVariableOverride]


class _Qwen3MoeConfig(_Qwen3Config, kw_only=True):
    num_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Size
    norm_topk_prob: bool
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None


class _DeepSeekConfig(_Config, kw_only=True):
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    n_routed_experts: Count
    n_shared_experts: CountOrZero | None
    num_experts_per_tok: Count
    moe_intermediate_size: Size
    first_k_dense_replace: CountOrZero
    routed_scaling_factor: float


class _DeepSeekV2Config(_DeepSeekConfig, kw_only=True):
    topk_method: Literal["greedy", "group_limited_greedy"]
    n_group: Count | None = None
    topk_group: Count | None = None


class _DeepSeekV3Config(_DeepSeekConfig, kw_only=True):
    n_group: Count
    topk_group: Count
    norm_topk_prob: bool
    rope_interleave: bool = True


def read_architecture(directory: Path) -> Architecture:
    """Read `directory`/config.json.

    Raises ModelError, naming the key, when the file is missing or damaged, when a key is missing or
    out of range, and when the family or one of its features would make the model compute something
    that the decoder does not.
    """
    path = directory / "config.json"
    config = _read_config(directory)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ModelError(f"{path}: model_type {family!r} is not supported; choose one of {known}")
    _refuse_unsupported(config, family, path)
    schema, build = _FAMILIES[family]
    try:
        settings = msgspec.convert(config, schema)
        _check_attention(settings)
        arch = build(family, settings, _rope(config))
        if arch.routing is not None:
            _check_routing(arch.routing)
    except msgspec.ValidationError as error:
        problem = str(error).replace("Object missing", "missing").replace("$.", "")
        raise ModelError(
            f"{path}: {problem}; use the config.json that came with the weights"
        ) from None
    return arch


def _read_config(directory: Path) -> dict[str, Any]:
    config = read_object(directory, "config.json")
    if config is None:
        raise ModelError(f"no {directory}/config.json; give a Hugging Face model directory")
    # transformers 5 writes this one key of Qwen3-MoE under another name.
    if "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    return config


def _refuse_unsupported(config: dict[str, Any], family: str, path: Path) -> None:
    for key, allowed in (_SUPPORTED | _SUPPORTED_BY_FAMILY.get(family, {})).items():
        if key in config and config[key] not in allowed:
            value = one_line(json.dumps(config[key]), 60)
            raise ModelError(f"{path}: {key} {value} is not supported; choose a model without it")
    try:
        read_blocks(config)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"{path}: quantization_config: {one_line(str(error).replace('$.', ''), 120)}; only fp8 "
            "with a weight_block_size is read, choose a model with that or without quantisation"
        ) from None
    kinds = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in (kinds if isinstance(kinds, list) else [kinds])):
        raise ModelError(
            f"{path}: layer_types may hold only 'full_attention'; choose a model without others"
        )
    code = config.get("auto_map") or {}
    names = code.values() if isinstance(code, dict) else [code]
    modules = {str(name).partition(".")[0] for name in names}
    if foreign := modules - (_REPLACED_CODE if family.startswith("deepseek_") else set()):
        raise ModelError(
            f"{path}: auto_map asks to run code of the model ({', '.join(sorted(foreign))}), which "
            "is never done; choose a model that needs none"
        )


def _rope(config: dict[str, Any]) -> Rope:
    """Both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise msgspec.ValidationError(f"rope parameters {given!r} are not an object")
    rope = {key: value for key, value in given.items() if key != "type"}
    rope.setdefault("rope_type", given.get("type", "default"))
    if config.get("rope_theta") is not None:
        rope.setdefault("rope_theta", config["rope_theta"])
    if rope.get("partial_rotary_factor") == 1:
        del rope["partial_rotary_factor"]
    if rope["rope_type"] in ("llama3", "yarn"):
        trained = "original_max_position_embeddings"
        rope.setdefault(trained, config["max_position_embeddings"])
        if config.get(trained) is not None:
            rope[trained] = config[trained]
    try:
        found: Rope = msgspec.convert(rope, Rope)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"rope parameters: {error}") from None
    if isinstance(found, Llama3Rope) and found.high_freq_factor <= found.low_freq_factor:
        raise msgspec.ValidationError("high_freq_factor is not above low_freq_factor")
    return found


def _dense(family: str, config: _Config, rope: Rope) -> Architecture:
    """Llama and SmolLM2, Qwen2 and Qwen2.5, Qwen3."""
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
        context=config.max_position_embeddings,
        tied=config.tie_word_embeddings,
        rope=rope,
        rope_dim=head_dim,
        qkv_bias=config.attention_bias or family == "qwen2",
        out_bias=config.attention_bias and family != "qwen2",
        qk_norm=isinstance(config, _Qwen3Config),
    )


def _qwen3_moe(family: str, config: _Qwen3MoeConfig, rope: Rope) -> Architecture:
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
    return msgspec.structs.replace(_dense(family, config, rope), routing=routing)


def _deepseek(family: str, config: _DeepSeekConfig, rope: Rope) -> Architecture:
    """Multi-head latent attention (arXiv 2405.04434) and the expert layout that V2 and V3 share."""
    shared = config.n_shared_experts or 0
    routing = Routing(
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
    return msgspec.structs.replace(
        _dense(family, config, rope),
        kv_heads=config.num_attention_heads,
        head_dim=config.qk_nope_head_dim + config.qk_rope_head_dim,
        value_dim=config.v_head_dim,
        rope_dim=config.qk_rope_head_dim,
        latent=Latent(config.q_lora_rank, config.kv_lora_rank, interleaved=True),
        routing=routing,
    )


def _deepseek_v2(family: str, config: _DeepSeekV2Config, rope: Rope) -> Architecture:
    arch = _deepseek(family, config, rope)
    if config.topk_method == "greedy":
        return arch
    assert arch.routing is not None
    groups, kept = config.n_group or 1, config.topk_group or 1
    routing = msgspec.structs.replace(arch.routing, groups=groups, kept_groups=kept)
    return msgspec.structs.replace(arch, routing=routing)


def _deepseek_v3(family: str, config: _DeepSeekV3Config, rope: Rope) -> Architecture:
    """arXiv 2412.19437, section 2.1.2."""
    arch = _deepseek(family, config, rope)
    assert arch.routing is not None
    routing = msgspec.structs.replace(
        arch.routing,
        gate="sigmoid",
        corrected=True,
        groups=config.n_group,
        kept_groups=config.topk_group,
        group_top=2,
        normalize=config.norm_topk_prob,
    )
    latent = Latent(config.q_lora_rank, config.kv_lora_rank, config.rope_interleave)
    return msgspec.structs.replace(arch, routing=routing, latent=latent)


def _check_attention(config: _Config) -> None:
    """Raise msgspec.ValidationError if the sizes do not fit together."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if isinstance(config, _DeepSeekConfig):
        rotated = config.qk_rope_head_dim
        if kv_heads not in (heads, None):
            raise msgspec.ValidationError(f"num_key_value_heads {kv_heads} should be {heads}")
    else:
        if config.head_dim is None and config.hidden_size % heads:
            raise msgspec.ValidationError(
                f"hidden_size {config.hidden_size} is not a multiple of the {heads} attention heads"
            )
        rotated = config.head_dim or config.hidden_size // heads
    if heads % (kv_heads or heads):
        raise msgspec.ValidationError(
            f"{heads} attention heads cannot share {kv_heads} key/value heads evenly"
        )
    if rotated == 0 or rotated % 2:
        raise msgspec.ValidationError(f"a rotary dimension of {rotated} is not even and positive")


def _check_routing(routing: Routing) -> None:
    """Raise msgspec.ValidationError if the numbers do not fit together."""
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


_FAMILIES: dict[str, tuple[type[_Config], Callable[[str, Any, Rope], Architecture]]] = {
    "llama": (_Config, _dense),
    "qwen2": (_Config, _dense),
    "qwen3": (_Qwen3Config, _dense),
    "qwen3_moe": (_Qwen3MoeConfig, _qwen3_moe),
    "deepseek_v2": (_DeepSeekV2Config, _deepseek_v2),
    "deepseek_v3": (_DeepSeekV3Config, _deepseek_v3),
}
