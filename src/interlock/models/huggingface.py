"""A Hugging Face config.json read into an Architecture.

    config.json ─ what we lack is refused ─ the family's struct ─ its function ─> Architecture
                                            (published.py)        (families.py)

Keys that neither the structs nor the tables name are settings of training or generation and change
no number of the forward pass.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from interlock.errors import ModelError
from interlock.models.architecture import Architecture, Llama3Rope, Rope
from interlock.models.blocks import read_blocks
from interlock.models.families import FAMILIES, check_made, check_sizes
from interlock.models.files import read_object
from interlock.text import one_line

# DeepSeek publishes its models with code of these names; the families here take its place.
_REPLACED_CODE = {"configuration_deepseek", "modeling_deepseek"}


def read_architecture(directory: Path) -> Architecture:
    """Read `directory`/config.json.

    Raises ModelError, naming the key, when the file is missing or damaged, when a key is missing or
    out of range, and when the family or one of its features would make the model compute something
    that the decoder does not.
    """
    path = directory / "config.json"
    config = _read_config(directory)
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        shown = one_line(repr(family), 60)
        raise ModelError(f"{path}: model_type {shown} is not supported; choose one of {known}")
    known_as = FAMILIES[family]
    _refuse_unsupported(config, family, path)
    try:
        settings = msgspec.convert(config, known_as.config)
        check_sizes(settings)
        if "sliding_attention" in (settings.layer_types or ()) and settings.window is None:
            raise msgspec.ValidationError(
                "layer_types has layers that slide, and no sliding_window is switched on"
            )
        arch = known_as.build(family, settings, _rope(config, known_as.config.theta))
        check_made(arch)
    except msgspec.ValidationError as error:
        problem = str(error).replace("Object missing", "missing").replace("$.", "")
        problem = one_line(problem, 200)
        raise ModelError(
            f"{path}: {problem}; use the config.json that came with the weights"
        ) from None
    return arch


def _read_config(directory: Path) -> dict[str, Any]:
    config = read_object(directory, "config.json")
    if config is None:
        raise ModelError(f"no {directory}/config.json; give a Hugging Face model directory")
    # transformers 5 writes this one key of Qwen3-MoE under another name.
    if "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    # In transformers 5 it stands among the rope parameters.
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("partial_rotary_factor") is not None:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return config


def _refuse_unsupported(config: dict[str, Any], family: str, path: Path) -> None:
    for key, allowed in FAMILIES[family].allowed.items():
        if key in config and config[key] not in allowed:
            value = one_line(json.dumps(config[key]), 60)
            raise ModelError(f"{path}: {key} {value} is not supported; choose a model without it")
    try:
        read_blocks(config)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"{path}: quantization_config: {one_line(str(error).replace('$.', ''), 120)}; only fp8 "
            "with a weight_block_size is read, choose a model with that or without quantisation"
        ) from None
    kinds = config.get("layer_types") or []
    attends = ("full_attention", "sliding_attention")
    if any(kind not in attends for kind in (kinds if isinstance(kinds, list) else [kinds])):
        raise ModelError(
            f"{path}: layer_types may hold only 'full_attention' and 'sliding_attention'; choose a "
            "model without others"
        )
    code = config.get("auto_map") or {}
    names = code.values() if isinstance(code, dict) else [code]
    modules = {str(name).partition(".")[0] for name in names}
    if foreign := modules - (_REPLACED_CODE if family.startswith("deepseek_") else set()):
        raise ModelError(
            f"{path}: auto_map asks to run code of the model "
            f"({one_line(', '.join(sorted(foreign)), 80)}), which is never done; choose a model "
            "that needs none"
        )


def _rope(config: dict[str, Any], theta: float) -> Rope:
    """Both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        shown = one_line(repr(given), 60)
        raise msgspec.ValidationError(f"rope parameters {shown} are not an object")
    rope = {key: value for key, value in given.items() if key != "type"}
    rope.setdefault("rope_type", given.get("type", "default"))
    given_theta = config.get("rope_theta")
    rope.setdefault("rope_theta", theta if given_theta is None else given_theta)
    rope.pop("partial_rotary_factor", None)
    if rope["rope_type"] in ("llama3", "yarn"):
        trained = "original_max_position_embeddings"
        rope.setdefault(trained, config["max_position_embeddings"])
        if config.get(trained) is not None:
            rope[trained] = config[trained]
    try:
        found: Rope = msgspec.convert(rope, Rope)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"rope parameters: {error}") from None
    if isinstance(found, Llama3Rope) and found.high_freq_factor <= found.low_freq_factor:
        raise msgspec.ValidationError("high_freq_factor is not above low_freq_factor")
    return found
