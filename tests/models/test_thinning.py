"""Every so many layers of a model; transformers, with the others taken out, is the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from interlock.errors import ModelError
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.thinning import thin


@pytest.fixture
def llama(reference: Callable[[str], PreTrainedModel], tmp_path: Path) -> Path:
    directory = tmp_path / "llama"
    model = reference("llama-llama3")
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", ["llama-llama3", "smollm3"])  # of which layers differ
@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_remains_is_the_model_without_the_other_layers(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path, every: int, family: str
) -> None:
    whole = tmp_path / "whole"
    reference(family).save_pretrained(whole)
    expected = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    layers = expected.model.layers
    expected.model.layers = layers[::every]
    for place, layer in enumerate(expected.model.layers):
        layer.self_attn.layer_idx = place
    (tmp_path / "thin").mkdir()
    thin(whole, tmp_path / "thin", every)
    decoder = load_decoder(tmp_path / "thin", torch.float32, torch.device("cpu"))
    assert decoder.arch.layers == len(layers[::every])
    tokens = torch.randint(0, decoder.arch.vocab, (12,), generator=torch.Generator().manual_seed(0))
    attend = causal(12, tokens.device)
    with torch.no_grad():
        ours = decoder.logits(decoder(tokens, attend.positions, attend))
        theirs = expected(tokens[None], use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_transformers_reads_what_was_written(llama: Path, tmp_path: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    kinds = ["full_attention"] * config["num_hidden_layers"]
    (llama / "config.json").write_text(json.dumps(config | {"layer_types": kinds}))
    thin(llama, tmp_path / "thin", 2)
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path / "thin", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    left = (config["num_hidden_layers"] + 1) // 2
    assert read.config.num_hidden_layers == left == len(read.config.layer_types)


def test_layers_with_experts_are_refused(
    reference: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    reference("qwen3-moe").save_pretrained(tmp_path / "moe")
    with pytest.raises(ModelError, match="layers with experts and layers without"):
        thin(tmp_path / "moe", tmp_path / "thin", 2)
