"""A small model with random weights and a tokenizer of bytes: nothing is fetched for it."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture

_CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
_TEMPLATE = "{% for turn in messages %}{{ turn.content }}\n{% endfor %}"


def write(directory: Path) -> Path:
    """Make a model directory; the same weights every time."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    write_tokenizer(directory, _TEMPLATE)
    decoder, noise = Decoder(read_architecture(directory)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            scaled = drawn * 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else scaled)
    tensors = dict(decoder.published(torch.float32))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_tokenizer(directory: Path, template: str) -> None:
    """A token for each byte, and one that ends an answer."""
    letters = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<end>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
