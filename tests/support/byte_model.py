"""Two random layers and a tokenizer with a token per byte: a whole model in 40 kB."""

import json
from pathlib import Path

import torch
from chat_templates import PLAIN
from safetensors.torch import save_file

from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.preflight import random_model


def make_model(directory: Path, **changes: object) -> Path:
    """Random weights of a two-layer Llama, as a Hugging Face directory without a tokenizer."""
    settings = {
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(settings | changes))
    decoder = Decoder(read_architecture(directory))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.2 * drawn)
    tensors = dict(decoder.published(torch.float32))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_tokenizer(directory: Path) -> None:
    random_model.write_tokenizer(directory, PLAIN)
