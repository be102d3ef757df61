"""Small random models of every family that loads, made by transformers, which is the oracle."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SIZES = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_DEEPSEEK = _YARN | {"beta_fast": 8, "beta_slow": 1}
_MOE = {"num_experts_per_tok": 3, "moe_intermediate_size": 20}
_QWEN3_MOE = _MOE | {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 8}
_EXPERTS = _MOE | {"n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1}
_DEEPSEEK = _EXPERTS | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-llama3": ("llama", {"num_key_value_heads": 2, "rope_parameters": _LLAMA3}),
    "llama-linear": (
        "llama",
        {
            "head_dim": 12,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
        },
    ),
    "mistral": ("mistral", {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 60}),
    "ministral": (
        "ministral",
        {
            "num_key_value_heads": 2,
            "head_dim": 12,
            "sliding_window": 60,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "cwm": ("cwm", {"num_key_value_heads": 2, "head_dim": 12, "rope_parameters": _LLAMA3}),
    "smollm3": (
        "smollm3",
        {"num_key_value_heads": 2, "no_rope_layers": [1, 0, 1], "pad_token_id": None},
    ),
    "seed-oss": ("seed_oss", {"num_key_value_heads": 2, "head_dim": 12}),
    "qwen2-window": (
        "qwen2",
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 60,
            "max_window_layers": 1,
        },
    ),
    "qwen2": ("qwen2", {"num_key_value_heads": 2, "rope_parameters": _YARN}),
    "qwen3": ("qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
    "qwen3-moe": ("qwen3_moe", _QWEN3_MOE | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3-moe-sparse-step": (
        "qwen3_moe",
        _QWEN3_MOE | {"norm_topk_prob": False, "decoder_sparse_step": 2, "attention_bias": True},
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        _DEEPSEEK
        | {
            "q_lora_rank": None,
            "topk_method": "greedy",
            "rope_parameters": _YARN_DEEPSEEK | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek-v2": (
        "deepseek_v2",
        _DEEPSEEK
        | {
            "q_lora_rank": 16,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 4.0,
            "rope_parameters": _YARN_DEEPSEEK | {"mscale": 1.0, "mscale_all_dim": 0.6},
        },
    ),
    "deepseek-v3": (
        "deepseek_v3",
        _DEEPSEEK
        | {
            "q_lora_rank": 16,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": _YARN_DEEPSEEK | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "glm4-moe": (
        "glm4_moe",
        _EXPERTS
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 1.5,
        },
    ),
    "glm4-moe-lite": (
        "glm4_moe_lite",
        {key: value for key, value in _DEEPSEEK.items() if key != "first_k_dense_replace"}
        | {"q_lora_rank": 16, "n_group": 1, "topk_group": 1},
    ),
    "dots1": (
        "dots1",
        _EXPERTS
        | {"num_key_value_heads": 2, "head_dim": 16, "n_group": 4, "topk_group": 2}
        | {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
    ),
    "deepseek-v3-plain": (
        "deepseek_v3",
        _DEEPSEEK
        | {
            "q_lora_rank": None,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_interleave": False,
        },
    ),
}


def reference_model(family: str, **changes: Any) -> PreTrainedModel:
    """transformers' model of the family, with weights large enough to tell errors."""
    kind, settings = FAMILIES[family]
    settings = settings | changes
    # transformers completes the rope parameters in place.
    settings = {key: dict(v) if isinstance(v, dict) else v for key, v in settings.items()}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_SIZES | settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scale = 0.05 if name.endswith("e_score_correction_bias") else 0.2
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            tensor.normal_(mean, scale, generator=generator)
    return model
