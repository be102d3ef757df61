"""Weights and caches of public models, against what their makers state or by hand."""

import json
from pathlib import Path

import pytest

from interlock.errors import ModelError, RunError
from interlock.plan.shapes import ModelShape, model_shape, named, of_config, of_counts
from interlock.records.adapters import AdapterForm


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # billions, of the model cards; active without the embedding, which is looked up
        ("SmolLM2-135M", 0.1345, 0.1345),
        ("Qwen3-8B", 8.19, 7.57),
        ("Qwen3-30B-A3B", 30.53, 3.04),
        ("Qwen3-235B-A22B", 235.1, 21.6),
        ("DeepSeek-V3", 671.0, 36.6),
        ("Llama-3.1-8B", 8.03, 7.50),
    ],
)
def test_weights_are_those_of_the_cards(name: str, total: float, active: float) -> None:
    shape = named(name)
    assert shape is not None
    assert shape.params / 1e9 == pytest.approx(total, rel=2e-3)
    assert shape.active / 1e9 == pytest.approx(active, rel=5e-3)


def test_a_small_dense_model_by_hand() -> None:
    config = {
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    shape = of_config(config, "tiny")
    # a layer: 2*8*8 for queries and output, 2*8*4 for keys and values, 3*8*16 = 576
    assert shape.params == 2 * 576 + 2 * 800
    assert shape.active == 2 * 576 + 800
    assert shape.kv_elements == 2 * 8
    assert shape.attention == 2 * 2 * 4
    assert shape.hit(10) == 0
    around, keys, inner = 2 * (8 + 8), 2 * (8 + 4), 2 * (8 + 16)
    assert shape.adapter(AdapterForm(rank=3)) == 3 * (2 * around + 2 * keys + 3 * inner)
    assert shape.adapter(None) == 0


def test_experts_and_latent_attention_by_hand() -> None:
    config = {
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "kv_lora_rank": 4,
        "q_lora_rank": 6,
        "qk_rope_head_dim": 2,
        "qk_nope_head_dim": 3,
        "v_head_dim": 5,
        "n_routed_experts": 4,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "tie_word_embeddings": True,
    }
    shape = of_config(config, "tiny")
    # queries 8*6 + 6*2*5, latent 8*(4+2), up 4*2*(3+5), output 2*5*8
    attention = 48 + 60 + 48 + 64 + 80
    experts = 2 * 4 * 3 * 8 * 2  # of two layers
    beside = 2 * (3 * 8 * 2 + 8 * 4)  # the shared one and the router
    assert shape.params == 3 * attention + 3 * 8 * 16 + experts + beside + 800
    assert shape.active == shape.params - experts * 3 / 4
    assert shape.routed == experts
    assert shape.kv_elements == 3 * 6
    assert shape.hit(1) == pytest.approx(experts / 4)
    # latent 8+6 and 4+2*(3+5), queries 8+6 and 6+2*5, output 2*5+8
    pairs = 14 + 20 + 14 + 16 + 18
    # one dense layer of 16; of two layers, four experts and the shared one, of 2
    inner = 24 + 2 * 5 * 10
    assert shape.adapter(AdapterForm(rank=3)) == 3 * (3 * pairs + 3 * inner)
    assert shape.hit(2) == pytest.approx(experts * (1 - 0.75**2))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("hf:Qwen/Qwen3-4B-Instruct-2507@main", "Qwen3-4B"),
        ("smollm2-135m-instruct", "SmolLM2-135M"),
        ("Qwen3-30B3A", "Qwen3-30B-A3B"),
        ("LLAMA3.1_8B", "Llama-3.1-8B"),
        ("DeepSeek-V3-Base", "DeepSeek-V3"),
    ],
)
def test_names_as_people_write_them(written: str, meant: str) -> None:
    shape = named(written)
    assert shape is not None and shape.name == meant


def test_a_directory_is_read_and_its_slips_are_told(tmp_path: Path) -> None:
    sizes = {"vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"intermediate_size": 8}))
    assert model_shape(str(tmp_path)).params == 4 * 16 + 3 * 4 * 8 + 2 * 40
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"hidden_size": "4"}))
    with pytest.raises(ModelError, match="hidden_size = '4'"):
        model_shape(str(tmp_path))
    del sizes["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ModelError, match="num_hidden_layers"):
        model_shape(str(tmp_path))


def test_a_run_is_what_it_left(tmp_path: Path) -> None:
    """Its own config.json holds the run's settings."""
    run, sizes = tmp_path / "mine", {"vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1}
    run.mkdir()
    for name in ("manifest.json", "ledger.sqlite"):
        (run / name).touch()
    (run / "config.json").write_text(json.dumps({"model": {"path": "smollm2-135m-instruct"}}))
    with pytest.raises(RunError, match=r"has no weights yet; go on with it first"):
        model_shape(str(run))
    (run / "weights").mkdir()
    sizes |= {"num_attention_heads": 1, "intermediate_size": 8}
    (run / "weights" / "config.json").write_text(json.dumps(sizes))
    shape = model_shape(str(run))
    assert (shape.name, shape.params) == ("mine", 4 * 16 + 3 * 4 * 8 + 2 * 40)


def test_a_gguf_file_is_refused_by_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"x\.gguf is a GGUF file.*; give --model, a name of"):
        model_shape(str(tmp_path / "x.gguf"))


DENSE = {
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
}
EXPERTS = DENSE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 3}


@pytest.mark.parametrize(
    ("config", "layers"),  # those that have experts
    [
        (EXPERTS, 6),
        (EXPERTS | {"decoder_sparse_step": 2}, 3),  # 1, 3, 5
        (EXPERTS | {"decoder_sparse_step": 4, "mlp_only_layers": [3, 5]}, 0),
        (EXPERTS | {"mlp_only_layers": [0, 0, 5]}, 4),
        (EXPERTS | {"interleave_moe_layer_step": 2, "first_k_dense_replace": 2}, 2),
        (EXPERTS | {"first_k_dense_replace": 7}, 0),
    ],
)
def test_experts_are_in_some_layers(config: dict[str, object], layers: int) -> None:
    shape = of_config(config, "tiny")
    assert shape.routed == layers * 4 * 3 * 4 * 3
    attention = 6 * 4 * 4 * 4
    dense = (6 - layers) * 3 * 4 * 8
    assert shape.params == attention + dense + shape.routed + layers * 4 * 4 + 2 * 40


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, False),
        ({"layer_types": ["full_attention"] * 4}, False),
        ({"layer_types": ["sliding_attention", "full_attention"] * 2}, True),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, True),
        ({"full_attention_interval": 4}, True),
        ({"mamba_d_state": 16, "attn_layer_period": 8}, True),
    ],
)
def test_layers_that_are_counted_as_others_are_told(changed: dict[str, object], told: bool) -> None:
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128}
    sizes |= {"num_hidden_layers": 4, "num_attention_heads": 4}
    source = of_config({**sizes, **changed}, "a").source
    assert source.startswith("config.json") and ("counted as if" in source) == told


def test_a_family_ties_its_embeddings_where_it_does_not_say() -> None:
    untied = of_config(DENSE, "tiny").params
    for family, tied in (("smollm3", True), ("gemma2", True), ("llama", False)):
        assert of_config(DENSE | {"model_type": family}, "tiny").params == untied - 40 * tied
    said = DENSE | {"model_type": "gemma2", "tie_word_embeddings": False}
    assert of_config(said, "tiny").params == untied


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"intermediate_size": None, "ffn_dim": 8}, "no intermediate_size"),
        ({"moe_num_experts": 64}, "moe_num_experts = 64 beside no n_routed_experts"),
        ({"num_experts": 4}, r"0 experts a token \(num_experts_per_tok\) of 4"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "5 experts a token"),
        ({"num_attention_heads": 5}, r"more heads \(5\) than hidden_size \(4\)"),
        ({"kv_lora_rank": 4, "qk_rope_head_dim": 6}, "qk_rope_head_dim = 6 of heads of 2"),
        ({"hidden_size": 5}, "no head_dim, and hidden_size = 5 is no multiple of 2 heads"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_attention_heads = 4 is no multiple of num_key_value_heads = 3",
        ),
        (
            {"num_key_value_heads": 4},
            "num_attention_heads = 2 is no multiple of num_key_value_heads = 4",
        ),
    ],
)
def test_sizes_that_would_be_miscounted_are_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ModelError, match=f"tiny: {told}.* in its config.json; .* mend the file"):
        of_config(DENSE | changed, "tiny")


def test_latent_attention_has_no_heads_to_share() -> None:
    latent = DENSE | {"kv_lora_rank": 4, "qk_rope_head_dim": 1}
    odd = of_config(latent | {"num_key_value_heads": 3}, "tiny")
    assert odd.params == of_config(latent, "tiny").params
    assert odd.kv_elements == of_config(latent, "tiny").kv_elements


def test_a_config_without_a_bottom_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ModelError) as caught:
        model_shape(str(path))
    assert str(caught.value) == f"cannot read {path}: nested too deeply; give a config.json"


def test_an_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"Qwen3-32B.*give --model config\.json"):
        model_shape("Qwen3-33B")


def test_counts_alone_scale_the_nearest_model() -> None:
    shape = of_counts("some", 72e9, 16e9)
    assert (shape.params, shape.active) == (72e9, 16e9)
    assert 0 < shape.routed < shape.params
    assert isinstance(shape, ModelShape) and shape.source.startswith("scaled from")
    dense = of_counts("other", 9e9, 9e9)
    assert dense.experts == 0 and dense.layers in range(30, 45)
