"""A run on a mixture with a layer for multi-token prediction: trained and resumed, or left out."""

import json
from pathlib import Path

import pytest
import torch
from chat_models import write_model
from chat_templates import CHATML
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, ModelError
from interlock.models.checkpoint import load_decoder, save_model
from interlock.models.predictor import Predictor, published_predictor
from interlock.recipes.train import train
from interlock.rundir import RunDir

BEHIND = "model.layers.2."


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """DeepSeek-V3's shape with random weights and such a layer."""
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=24,
        qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, n_routed_experts=8, n_group=2,
        topk_group=1, num_experts_per_tok=2, moe_intermediate_size=20, first_k_dense_replace=1,
        max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(plain)
    told = json.loads((plain / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (plain / "config.json").write_text(json.dumps(told))
    write_model(plain, CHATML)
    decoder = load_decoder(plain, torch.float32, torch.device("cpu"))
    decoder.predictor = Predictor(decoder.arch)
    for parameter in decoder.predictor.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    tensors = [*decoder.published(torch.float32), *published_predictor(decoder, torch.float32)]
    save_model(tensors, whole, plain, torch.float32, predict=True)
    return whole


def recipe(model: Path, steps: int, weight: float, tmp_path: Path) -> Path:
    rows = [{"text": f"{word} and {word} again " * 3} for word in ("red", "blue", "black")]
    texts, path = tmp_path / "texts.jsonl", tmp_path / "recipe.toml"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(
        f"""
checkpoint_every = 2
model.path = "{model}"
learner.dtype = "float32"
learner.mtp_weight = {weight}
[[stage]]
kind = "pretrain"
data = "{texts}"
steps = {steps}
batch_size = 2
row_tokens = 16
optimizer.lr = 1e-2
optimizer.schedule = "constant"
"""
    )
    return path


def test_it_is_trained_resumed_and_saved(mixture: Path, tmp_path: Path) -> None:
    train(load_recipe(recipe(mixture, 2, 0.3, tmp_path)), tmp_path / "run")
    longer = load_recipe(recipe(mixture, 5, 0.3, tmp_path))
    train(longer, tmp_path / "run", resume=True)
    train(longer, tmp_path / "straight")
    runs = [load_file(tmp_path / run / "weights/model.safetensors") for run in ("run", "straight")]
    assert runs[0].keys() == load_file(mixture / "model.safetensors").keys()
    assert all(torch.equal(runs[0][name], tensor) for name, tensor in runs[1].items())
    lines = RunDir.read(tmp_path / "straight").metrics()[-5:]
    losses = [line.update.mtp_loss or 0.0 for line in lines]
    assert losses[-1] < losses[0]
    loads = [(line.update.expert_load, line.update.experts_idle) for line in lines]
    assert all(load is not None and 1 <= load <= 4 and idle is not None for load, idle in loads)
    config = json.loads((tmp_path / "run/weights/config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1


def test_left_out_the_others_are_the_same_bits(mixture: Path, tmp_path: Path) -> None:
    for weight in (0.0, 0.3):
        train(load_recipe(recipe(mixture, 2, weight, tmp_path)), tmp_path / f"run-{weight}")
    without, beside = (
        load_file(tmp_path / f"run-{weight}/weights/model.safetensors") for weight in (0.0, 0.3)
    )
    assert not [name for name in without if name.startswith(BEHIND)]
    assert all(torch.equal(beside[name], tensor) for name, tensor in without.items())


def test_a_model_without_one_and_stages_that_cannot(
    tiny_model: Path, mixture: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no layer for multi-token prediction"):
        train(load_recipe(recipe(tiny_model, 1, 0.3, tmp_path)), tmp_path / "run")
    path = recipe(mixture, 1, 0.3, tmp_path)
    path.write_text(path.read_text() + f'from = "{tiny_model}"\n')
    with pytest.raises(ConfigError, match=r"learner\.mtp_weight goes with no stage that begins"):
        load_recipe(path)
