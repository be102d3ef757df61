"""A GGUF file, rewritten as a Hugging Face model directory.

    weights.gguf ──header──┬─ metadata ──> config.json, generation_config.json
                           ├─ vocabulary > tokenizer.json, tokenizer_config.json
                           └─ tensors, one by one ─ dequantise ──> model.safetensors

Nothing is written before the header was found sound. Quantised weights are written as bfloat16,
whose rounding is finer than theirs; float32 and float16 ones as float32, exact.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from interlock.errors import ModelError
from interlock.models.checkpoint import write_tensors
from interlock.models.decoder import Decoder
from interlock.models.from_gguf.header import GgufFile, read_gguf
from interlock.models.from_gguf.settings import hugging_face_config
from interlock.models.from_gguf.vocabulary import tokenizer_of
from interlock.models.from_gguf.weights import places, stored_dtype, weights
from interlock.models.huggingface import read_architecture


def gguf_to_hugging_face(source: Path, directory: Path) -> None:
    """Write the model in `source` into the existing `directory`.

    Raises ModelError when the file is damaged or is not of a family with a tokenizer known here;
    OSError when the disk refuses.
    """
    file = read_gguf(source)
    config = hugging_face_config(file)
    tokenizer, tokenizer_config, ids = tokenizer_of(file)
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise file.error(
            f"it has {tokenizer.get_vocab_size()} tokens and {config['vocab_size']} rows of them"
        )
    _check_count(file, config)
    _write_json(directory / "config.json", config | ids)
    try:
        arch = read_architecture(directory)
    except ModelError as error:
        raise file.error(f"as a config.json it is refused ({error})") from None
    with torch.device("meta"):
        decoder = Decoder(arch)
    shapes = {name: list(view.shape) for name, view in decoder.tensors().items()}
    found = places(file, shapes, arch, str(file.metadata["general.architecture"]))
    dtype = stored_dtype(found)
    named = {"dtype": str(dtype).removeprefix("torch.")}
    _write_json(directory / "config.json", config | ids | named)
    _write_json(directory / "generation_config.json", ids)
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    tokenizer.save(str(directory / "tokenizer.json"))
    try:
        write_tensors(weights(file, found, dtype), directory)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _check_count(file: GgufFile, config: dict[str, Any]) -> None:
    """Before a model is laid out of which the file holds but a small part."""
    if (layers := config["num_hidden_layers"]) > len(file.tensors):
        raise file.error(f"it says that it has {layers} layers, in {len(file.tensors)} tensors")
    size = file.tensors["token_embd.weight"].shape[-1]
    if (said := config["hidden_size"]) != size:
        raise file.error(f"its embedding has rows of {size}, where its metadata say {said}")


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
