"""What config.json may say, and what is refused rather than computed wrongly."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from interlock.errors import ModelError
from interlock.models.architecture import DefaultRope, LinearRope, Llama3Rope, YarnRope
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
}
# As published, with the sizes cut down.
V3 = LLAMA | {
    "model_type": "deepseek_v3",
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "attention_bias": False,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "moe_intermediate_size": 16,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "v_head_dim": 12,
}
GLM = V3 | {
    "model_type": "glm4_moe",
    "head_dim": 32,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "auto_map": None,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
V2 = V3 | {
    "model_type": "deepseek_v2",
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "topk_method": "greedy",
}


def write(directory: Path, config: Any) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (directory / "config.json").write_text(text)
    return directory


def test_deepseek_v3_as_published(tmp_path: Path) -> None:
    arch = read_architecture(write(tmp_path, V3))
    assert (arch.head_dim, arch.rope_dim, arch.value_dim, arch.kv_heads) == (24, 8, 12, 4)
    assert arch.latent is not None and arch.latent.interleaved
    assert arch.rope == YarnRope(
        rope_theta=10000,
        factor=40,
        original_max_position_embeddings=4096,
        mscale=1.0,
        mscale_all_dim=1.0,
    )
    routing = arch.routing
    assert routing is not None and routing.layers == {1} and routing.corrected
    assert (routing.groups, routing.kept_groups, routing.group_top) == (4, 2, 2)
    assert routing.shared_inner == 16


def test_deepseek_v3_and_r1_have_the_parameters_that_are_published(tmp_path: Path) -> None:
    """671 thousand million, of which a token passes 37 (arXiv 2412.19437, section 4.2)."""
    published = V3 | {
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 163840,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "topk_group": 4,
        "v_head_dim": 128,
        "quantization_config": FP8,
    }
    arch = read_architecture(write(tmp_path, published))
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in Decoder(arch).parameters())
    idle = (256 - 8) * 58 * 3 * 7168 * 2048
    assert total // 10**9 == 671
    assert (total - idle) // 10**9 == 37


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({}, DefaultRope(rope_theta=10_000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, DefaultRope(rope_theta=5e5)),
        ({"model_type": "smollm3"}, DefaultRope(rope_theta=2e6)),
        (
            {"rope_theta": 7, "rope_scaling": {"type": "linear", "factor": 2}},
            LinearRope(rope_theta=7, factor=2),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}},
            LinearRope(rope_theta=7, factor=2),
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 512,
                }
            },
            Llama3Rope(
                factor=8,
                low_freq_factor=1,
                high_freq_factor=4,
                original_max_position_embeddings=512,
            ),
        ),
        (
            {"rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0}},
            YarnRope(factor=4, original_max_position_embeddings=2048),
        ),
    ],
)
def test_both_spellings_of_rope(tmp_path: Path, keys: dict[str, Any], rope: Any) -> None:
    assert read_architecture(write(tmp_path, LLAMA | keys)).rope == rope


@pytest.mark.parametrize(
    ("keys", "context"),
    [
        ({"model_type": "mistral"}, 1000),  # without the key, transformers' default of 4096
        ({"model_type": "mistral", "sliding_window": None}, 1000),
        ({"model_type": "mistral", "sliding_window": 64}, 64),
        ({"model_type": "ministral", "sliding_window": 64}, 64),
        (
            {"model_type": "ministral", "sliding_window": 64, "layer_types": ["full_attention"]},
            1000,
        ),
        ({"model_type": "cwm", "sliding_window": 64, "rope_scaling": LINEAR}, 64),
        ({"model_type": "qwen2", "sliding_window": 64}, 1000),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 1000),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            64,
        ),
        ({"model_type": "llama", "sliding_window": 64}, 1000),
    ],
)
def test_a_window_that_slides_is_the_context(
    tmp_path: Path, keys: dict[str, Any], context: int
) -> None:
    config = LLAMA | {"max_position_embeddings": 1000} | keys
    assert read_architecture(write(tmp_path, config)).context == context


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"model_type": "mamba"}, "model_type 'mamba' is not supported"),
        ({}, "model_type None"),
        (LLAMA | {"model_type": ["llama"]}, "model_type"),
        ("{", "cannot read"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "cannot read"),
        (LLAMA | {"quantization_config": {"quant_method": "fp8"}}, "`weight_block_size`"),
        (LLAMA | {"quantization_config": FP8 | {"quant_method": "awq"}}, "'awq'"),
        (LLAMA | {"quantization_config": FP8 | {"fmt": "e5m2"}}, "'e5m2'"),
        (LLAMA | {"quantization_config": FP8 | {"weight_block_size": [128]}}, "length 2"),
        (LLAMA | {"quantization_config": FP8 | {"weight_block_size": [0, 128]}}, ">= 1"),
        (LLAMA | {"quantization_config": FP8 | {"weight_block_size": [128.5, 1]}}, "float"),
        (LLAMA | {"quantization_config": FP8 | {"weight_block_size": None}}, "null"),
        (LLAMA | {"quantization_config": [1]}, "quantization_config"),
        (LLAMA | {"auto_map": {"AutoModel": "modeling_evil.Model"}}, "modeling_evil"),
        (LLAMA | {"auto_map": {"AutoModel": "modeling_deepseek.Model"}}, "modeling_deepseek"),
        (V3 | {"auto_map": {"AutoModel": "else/where--modeling_deepseek.Model"}}, "where"),
        (LLAMA | {"auto_map": "modeling_evil"}, "auto_map"),
        (LLAMA | {"hidden_act": "gelu"}, 'hidden_act "gelu"'),
        (LLAMA | {"mlp_bias": True}, "mlp_bias true"),
        (LLAMA | {"attention_dropout": 0.1}, "attention_dropout 0.1"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA | {"use_sliding_window": True}, "use_sliding_window true"),
        (LLAMA | {"layer_types": ["linear_attention"]}, "layer_types may hold only"),
        (LLAMA | {"model_type": "qwen2", "layer_types": ["sliding_attention"]}, "layer_types"),
        (LLAMA | {"model_type": "mistral", "attention_bias": True}, "attention_bias true"),
        (LLAMA | {"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        (LLAMA | {"model_type": "cwm"}, "rope_scaling is missing"),
        (LLAMA | {"model_type": "smollm3", "no_rope_layers": [1]}, "names 1 of 2 layers"),
        (LLAMA | {"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers"),
        (GLM | {"partial_rotary_factor": 0.3}, "rotary dimension of 9"),
        (GLM | {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA | {"layer_types": 5}, "layer_types"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "`factor`"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}}, "`odd`"),
        (LLAMA | {"rope_scaling": "yarn"}, "rope"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        (LLAMA | {"rope_theta": 0}, "rope_theta"),
        (LLAMA | {"rope_theta": math.inf}, "rope_theta"),
        (LLAMA | {"rms_norm_eps": math.inf}, "rms_norm_eps"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 1e300}}, "factor"),
        (V3 | {"routed_scaling_factor": math.nan}, "routed_scaling_factor"),
        (
            LLAMA
            | {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },
            "high_freq_factor",
        ),
        (YARN | {"original_max_position_embeddings": 10**400}, "original_max_position"),
        (YARN | {"max_position_embeddings": 10**400}, "max_position_embeddings"),
        (LLAMA | {"rope_scaling": YARN["rope_scaling"] | {"beta_fast": 5e-324}}, "beta_fast"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 1e-38}}, "factor"),
        (LLAMA | {"rope_scaling": YARN["rope_scaling"] | {"o\nd": 1}}, "unknown field `o d`"),
        (LLAMA | {"rope_scaling": "x\n" * 9999}, "are not an object"),
        (LLAMA | {"model_type": "x" * 9999}, "is not supported"),
        (LLAMA | {"auto_map": "modeling\n" + "x" * 9999}, "modeling xxx"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size"),
        (LLAMA | {"hidden_size": 0}, "hidden_size"),
        (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        (LLAMA | {"num_key_value_heads": 3}, "3 key/value heads"),
        (LLAMA | {"head_dim": 15}, "rotary dimension of 15"),
        (LLAMA | {"hidden_size": 66}, "hidden_size 66"),
        (LLAMA | {"model_type": "qwen3"}, "`head_dim`"),
        (QWEN3_MOE | {"num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        (V3 | {"n_group": 3}, "n_group 3"),
        (V3 | {"n_group": 16}, "n_group 16"),
        (V3 | {"topk_group": 5}, "topk_group 5"),
        (V3 | {"num_experts_per_tok": 9}, "num_experts_per_tok 9"),
        (V3 | {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        (V3 | {"attention_bias": True}, "attention_bias true"),
        (V3 | {"scoring_func": "softmax"}, 'scoring_func "softmax"'),
        (V3 | {"topk_method": "greedy"}, 'topk_method "greedy"'),
        (V2 | {"norm_topk_prob": True}, "norm_topk_prob true"),
        (V2 | {"topk_method": "noaux_tc"}, "topk_method"),
        (V3 | {"num_key_value_heads": 2}, "num_key_value_heads"),
    ],
)
def test_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ModelError) as raised:
        read_architecture(write(tmp_path, config))
    told = str(raised.value)
    assert message in told and "\n" not in told and len(told) < len(str(tmp_path)) + 400


@pytest.mark.parametrize("config", [LLAMA, QWEN3_MOE, V2, V3], ids=lambda c: c["model_type"])
def test_a_missing_key_is_named(tmp_path: Path, config: dict[str, Any]) -> None:
    may_miss = {
        "model_type", "auto_map", "attention_bias", "ep_size", "moe_layer_freq", "rope_scaling",
        "num_nextn_predict_layers", "rope_theta", "scoring_func",
    }  # fmt: skip
    may_miss |= {"topk_method"} if config is V3 else {"n_group", "topk_group", "norm_topk_prob"}
    if config is QWEN3_MOE:
        may_miss.discard("norm_topk_prob")
    for key in config.keys() - may_miss:
        rest = {name: value for name, value in config.items() if name != key}
        with pytest.raises(ModelError, match=f"missing required field `{key}`"):
            read_architecture(write(tmp_path, rest))


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give a Hugging Face model directory"):
        read_architecture(tmp_path / "absent")
