"""A Llama-architecture GGUF file, rewritten as a Hugging Face model directory.

    weights.gguf ──GGUFReader──┬─ tensors   ─ dequantise, un-permute, bf16 ─> model.safetensors
                               ├─ metadata  ─> config.json, generation_config.json
                               └─ vocabulary─> tokenizer.json, tokenizer_config.json

Reading and dequantisation are the `gguf` package's. Only what a file of the `llama` architecture
with a GPT-2 style byte-level BPE needs is here; anything else is refused, never guessed.

Shapes: H hidden size, N heads (query or key/value), D head size: a q or k projection is [N*D, H].
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from interlock.errors import ModelError

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_to_hugging_face(source: Path, directory: Path) -> None:
    """Write the model in `source` into the existing `directory`, weights as bf16.

    Raises ModelError when the file is damaged or is not a Llama-architecture model with a tokenizer
    known here; OSError when the disk refuses.
    """
    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is not a readable GGUF file: {error}") from None
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    try:
        tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
        config = _config(metadata, tied)
        tokenizer, tokenizer_config = _tokenizer(metadata)
    except KeyError as error:
        raise ModelError(f"{source} lacks the metadata key {error}; convert another file") from None
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = dict(_weight(tensor, heads) for tensor in reader.tensors)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}

    try:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", ids)
    _write_json(directory / "tokenizer_config.json", tokenizer_config)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM."""
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise ModelError(f"GGUF architecture {architecture!r} cannot be converted, only 'llama'")
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata.get("llama.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata["llama.rope.freq_base"]),
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": hidden**-0.5,
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 becomes 1e-05."""
    return float(str(np.float32(value)))


def _weight(tensor: ReaderTensor, heads: dict[str, int]) -> tuple[str, torch.Tensor]:
    """The Hugging Face name and the bf16 tensor; `heads` says which projections are permuted."""
    parts = tensor.name.removesuffix(".weight").split(".")
    match parts:
        case ["blk", layer, kind] if kind in _LAYER_TENSORS:
            name = f"model.layers.{layer}.{_LAYER_TENSORS[kind]}.weight"
        case [kind] if kind in _TENSORS:
            name = f"{_TENSORS[kind]}.weight"
        case _:
            raise ModelError(f"GGUF tensor {tensor.name!r} has no place in a Llama model")
    values = dequantize(tensor.data, tensor.tensor_type)
    if parts[-1] in heads:
        values = _unpermute(values, heads[parts[-1]])
    return name, torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of a q or k projection, [N*D, H] -> [N*D, H].

    llama.cpp rotates neighbouring pairs (2i, 2i+1), Hugging Face rotates (i, i + D/2); its
    converter therefore interleaves the two halves of every head (`LlamaModel.permute` in
    convert_hf_to_gguf.py).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(metadata: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its `tokenizer_config.json`."""
    kind = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ModelError(f"GGUF tokenizer {kind} cannot be converted, only ('gpt2', 'smollm')")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # llama.cpp's `smollm` pre-tokenizer: every digit alone, then GPT-2's regular expression.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [index for index, type_ in enumerate(types) if type_ == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(tokens[i], normalized=False) for i in special])

    def token(role: str) -> str:
        return tokens[metadata[f"tokenizer.ggml.{role}_token_id"]]

    return tokenizer, {
        # Loads tokenizer.json as it stands; transformers' GPT2Tokenizer would put its own
        # pre-tokenizer in place of this one and would no longer split digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "unk_token": token("unknown"),
        "pad_token": token("padding"),
        "added_tokens_decoder": {
            str(i): {
                "content": tokens[i],
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i in special
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }
