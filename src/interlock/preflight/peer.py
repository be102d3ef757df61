"""The same shapes in transformers, where it is installed."""

from typing import Any

import torch

from interlock.models.architecture import Architecture


def model(arch: Architecture, dtype: torch.dtype, place: torch.device) -> Any:
    """A Qwen3 of this architecture with random weights. Raises ModuleNotFoundError without it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=arch.vocab,
        hidden_size=arch.hidden,
        intermediate_size=arch.inner,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        max_position_embeddings=arch.context,
        tie_word_embeddings=arch.tied,
    )
    with place:
        return Qwen3ForCausalLM(config).to(dtype)
