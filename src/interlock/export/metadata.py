"""What a GGUF file says of its model, key for key as llama.cpp's converter writes it.

    config.json, Architecture ──> <arch>.block_count, <arch>.rope.freq_base, …
    directory, card ──gguf.Metadata──> general.name, general.license, …

What llama.cpp would compute otherwise than the model is refused here, by name.
"""

from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, Metadata, RopeScalingType, size_label
from gguf.constants import GGML_QUANT_VERSION, GGUFType

from interlock.errors import ModelError
from interlock.models.architecture import Architecture, LinearRope, YarnRope
from interlock.models.files import inside, read_object
from interlock.text import error_line

KINDS = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE,
}


_SAMPLERS = (
    *("sequence", "top_k", "top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("penalty_last_n", "penalty_repeat", "mirostat", "mirostat_tau", "mirostat_eta"),
)


def kind_of(arch: Architecture, directory: Path) -> MODEL_ARCH:
    """llama.cpp's architecture for it.

    Raises ModelError when llama.cpp has none that computes the same.
    """
    if arch.family not in KINDS:
        raise ModelError(
            f"{directory}: model_type {arch.family!r} cannot be made a GGUF file here, only "
            f"{', '.join(KINDS)}; use --to hf"
        )
    if reason := _otherwise(arch):
        raise ModelError(f"{directory}: llama.cpp has no {arch.family} {reason}; use --to hf")
    return KINDS[arch.family]


def _otherwise(arch: Architecture) -> str | None:
    """What of the model llama.cpp does not compute, if anything."""
    rope, routing = arch.rope, arch.routing
    if isinstance(rope, YarnRope) and (
        not rope.truncate or {rope.attention_factor, rope.mscale, rope.mscale_all_dim} != {None}
    ):
        return "with attention_factor, mscale or truncate in its rope parameters"
    if arch.family != "llama" and arch.out_bias:
        return "with attention_bias"
    if routing is None:
        return None
    if not routing.normalize:
        return "whose norm_topk_prob is false"
    if len(routing.layers) < arch.layers:
        return "with dense layers among those of experts"
    return None


def add_general(writer: GGUFWriter, directory: Path, name: str, card: dict[str, Any]) -> None:
    """Its name, licence and the like, from the card's front matter and the files.

    Raises ModelError when these are not what they should be.
    """
    total, shared, expert, experts = writer.get_total_parameter_count()
    generation = read_object(directory, "generation_config.json") or {}
    config = read_object(directory, "config.json") or {}
    try:
        found = Metadata.apply_metadata_heuristic(Metadata(), card, config, Path(name), total)
        _add_sampling(found, generation)
        found.name = found.name or name
        found.size_label = found.size_label or size_label(total, shared, expert, experts)
        writer.add_type(GGUFType.MODEL)
        found.set_gguf_meta_model(writer)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"the card or generation_config.json of {directory} is damaged ({error_line(error)}); "
            "mend it, or remove it"
        ) from None


def _add_sampling(found: Metadata, generation: dict[str, Any]) -> None:
    """What generation_config.json recommends, under the names of llama.cpp's samplers."""
    for name in _SAMPLERS:
        setattr(found, f"sampling_{name}", generation.get(name))
    found.sampling_temp = generation.get("temperature")
    if found.sampling_penalty_repeat is None:
        found.sampling_penalty_repeat = generation.get("repetition_penalty")


def add_sizes(
    writer: GGUFWriter, arch: Architecture, directory: Path, file_type: LlamaFileType
) -> None:
    """The numbers that the model computes with."""
    config = read_object(directory, "config.json") or {}
    writer.add_block_count(arch.layers)
    writer.add_context_length(arch.context)
    writer.add_embedding_length(arch.hidden)
    writer.add_feed_forward_length(arch.inner)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    _add_rope(writer, arch, config)
    writer.add_layer_norm_rms_eps(arch.norm_eps)
    if arch.routing is not None:
        writer.add_expert_count(arch.routing.experts)
        writer.add_expert_used_count(arch.routing.per_token)
    if arch.family != "qwen2" or config.get("head_dim") is not None:
        writer.add_key_length(arch.head_dim)
        writer.add_value_length(arch.head_dim)
    writer.add_file_type(file_type)
    if arch.family == "llama":
        writer.add_vocab_size(arch.vocab)
        writer.add_rope_dimension_count(arch.head_dim)
    if arch.routing is not None:
        writer.add_expert_feed_forward_length(arch.routing.inner)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_rope(writer: GGUFWriter, arch: Architecture, config: dict[str, Any]) -> None:
    """Llama 3's scaling is a tensor: see tensors.py."""
    rope = arch.rope
    if isinstance(rope, LinearRope):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    if isinstance(rope, YarnRope):
        given = config.get("rope_scaling") or config.get("rope_parameters") or {}
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
        if "beta_fast" in given:
            writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        if "beta_slow" in given:
            writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)
    writer.add_rope_freq_base(rope.rope_theta)


def check_card(directory: Path) -> dict[str, Any]:
    """The front matter of the model's own README.md; {} where it has none. Raises ModelError."""
    if inside(directory, "README.md") is None:
        return {}
    try:
        return Metadata.load_model_card(directory) or {}
    except Exception as error:  # yaml's own, and of the text
        raise ModelError(
            f"the front matter of {directory}/README.md is no YAML ({error_line(error, 100)}); "
            "mend it, or remove it"
        ) from None
