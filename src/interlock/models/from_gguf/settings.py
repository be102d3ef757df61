"""The config.json of a GGUF file: its metadata in the words of Hugging Face.

    <arch>.block_count, <arch>.rope.freq_base, … ──> num_hidden_layers, rope_theta, …

It is the way back of export/metadata.py. Whether the numbers fit together is huggingface.py's
business, which reads what is written here, and whether the tensors are of these sizes weights.py's.
"""

from math import isfinite
from typing import Any

import numpy as np

from interlock.errors import ModelError
from interlock.models.from_gguf.header import GgufFile, told
from interlock.text import one_line

ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp's architecture -> model_type, class
KNOWN = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
_SCALINGS = ("none", "linear", "yarn")
# What else llama.cpp would have of a scaling, and the values under which it changes nothing.
_PLAIN = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0}


class GgufKeys:
    """The metadata, asked for by key and type."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str:
        return str(self._found(key, str))

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of the architecture's own; without a default it must be there."""
        return int(self._found(f"{self.architecture}.{key}", int, default))

    def number(self, key: str, default: float | None = None) -> float:
        """As `whole`, any number that is finite."""
        value = self._found(f"{self.architecture}.{key}", (int, float), default)
        if not isfinite(value):
            raise self.file.error(f"{self.architecture}.{key} is {value}, which is not read here")
        return shortest(value)

    def said(self, key: str, kind: Any) -> Any:
        """What stands there; None: nothing."""
        return told(self.file, f"{self.architecture}.{key}", kind)

    def _found(self, key: str, kind: Any, default: Any = None) -> Any:
        value = told(self.file, key, kind, default)
        if value is None:
            raise self.file.error(f"it lacks the metadata key {key!r}")
        return value


def hugging_face_config(file: GgufFile) -> dict[str, Any]:
    """Raises ModelError for an architecture or a feature that is not known here."""
    keys = GgufKeys(file)
    if keys.architecture not in KNOWN:
        raise ModelError(
            f"{file.path}: GGUF architecture {one_line(keys.architecture, 40)!r} is not read, only "
            f"{', '.join(KNOWN)}; give its Hugging Face directory"
        )
    if told(file, "split.count", int, 1) not in (0, 1):
        raise ModelError(
            f"{file.path} is one of several files of a model; make one of them first "
            "(llama-gguf-split --merge)"
        )
    family, class_ = KNOWN[keys.architecture]
    hidden, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", hidden // max(heads, 1))
    _check_rotation(keys, head_dim)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise file.error("it lacks the tensor 'token_embd.weight'")
    config = {
        "architectures": [class_],
        "model_type": family,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(keys),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": hidden**-0.5 if hidden > 0 else None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "use_cache": True,
    }
    return config | _experts(keys) | _window(keys)


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 becomes 1e-05."""
    return float(str(np.float32(value)))


def _check_rotation(keys: GgufKeys, head_dim: int) -> None:
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := keys.whole(key, head_dim)) != head_dim:
            raise keys.file.error(
                f"{keys.architecture}.{key} is {size}, where heads have {head_dim}"
            )


def _experts(keys: GgufKeys) -> dict[str, Any]:
    if KNOWN[keys.architecture][0] != "qwen3_moe":
        if keys.whole("expert_count", 0):
            raise ModelError(
                f"{keys.file.path}: a GGUF {keys.architecture} with experts (Mixtral) is not read"
            )
        return {}
    return {
        "num_experts": keys.whole("expert_count"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,  # as llama.cpp computes every model of the kind
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _window(keys: GgufKeys) -> dict[str, Any]:
    """llama.cpp calls Mistral's a llama, with a window where it slides."""
    window = keys.whole("attention.sliding_window", 0)
    if not window:
        return {}
    if keys.architecture != "llama":
        raise keys.file.error(f"{keys.architecture}.attention.sliding_window is not read here")
    return {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": window,
    }


def _scaling(keys: GgufKeys) -> dict[str, Any] | None:
    """`rope_scaling`: by metadata, or Llama 3's, which is a tensor of factors.

    A factor without a type is linear, as llama.cpp reads it, under its older name too.
    """
    factor_key = "rope.scaling.factor"
    if keys.said(factor_key, (int, float)) is None:
        factor_key = "rope.scale_linear"
    scaled = keys.number(factor_key, 0) not in (0, 1)
    kind = keys.said("rope.scaling.type", str) or ("linear" if scaled else "none")
    for name, plain in _PLAIN.items():
        if (value := keys.number(f"rope.scaling.{name}", plain)) != plain:
            raise ModelError(
                f"{keys.file.path}: {keys.architecture}.rope.scaling.{name} is {value:g}, which is "
                "not read; give its Hugging Face directory"
            )
    if kind not in _SCALINGS:
        raise keys.file.error(f"rope.scaling.type is {one_line(repr(kind), 40)}")
    if ROPE_FACTORS in keys.file.tensors:
        if kind != "none":
            raise keys.file.error(f"it has {ROPE_FACTORS} and rope.scaling.type {kind}")
        return _llama3(keys)
    if kind == "none":
        return None
    found = {"rope_type": kind, "factor": keys.number(factor_key)}
    if kind == "yarn":
        trained = "rope.scaling.original_context_length"
        found["original_max_position_embeddings"] = keys.whole(trained)
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if keys.said(f"rope.scaling.{theirs}", (int, float)) is not None:
                found[ours] = keys.number(f"rope.scaling.{theirs}")
    return found


def _llama3(keys: GgufKeys) -> dict[str, Any]:
    """The parameters whose factors those of the file are (Llama 3.1: 8, 3.2: 32).

    The file has the factors alone. low_freq_factor and high_freq_factor are 1 and 4 in every model
    that was published; factors that these do not give are refused.
    """
    file = keys.file
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.type.name != "F32" or len(tensor.shape) != 1:
        raise file.error(f"{ROPE_FACTORS} is stored as {tensor.type.name} {list(tensor.shape)}")
    stored = file.rows(tensor).view(np.float32)[0].astype(np.float64)
    theta = keys.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise file.error(f"{keys.architecture}.rope.freq_base is {theta:g}, and not above 1")
    sound = bool(np.isfinite(stored).all()) and stored.min() > 0
    for trained in _contexts(stored, theta) if sound else ():
        found = {
            "rope_type": "llama3",
            "factor": shortest(float(stored.max())),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": trained,
        }
        if np.allclose(_factors(found, theta, len(stored)), stored, rtol=1e-4):
            return found
    raise ModelError(
        f"{file.path}: {ROPE_FACTORS} scales positions otherwise than Llama 3.1 does; give its "
        "Hugging Face directory"
    )


def _contexts(stored: np.ndarray, theta: float) -> list[int]:
    """Candidates for the trained context: what a factor between the ends tells, or any."""
    most = stored.max()
    (between,) = np.nonzero((stored > 1 + 1e-5) & (stored < most * (1 - 1e-5)))
    if not len(between):
        return [8192, *(2**exponent for exponent in range(5, 21))]
    pair = between[len(between) // 2]
    kept = (1 / stored[pair] - 1 / most) / (1 - 1 / most)
    turns = 1 + kept * (4 - 1)
    return [max(1, round(float(turns * 2 * np.pi * theta ** (pair / len(stored)))))]


def _factors(scaling: dict[str, Any], theta: float, pairs: int) -> np.ndarray:
    """By what every frequency is divided (Llama 3.1, arXiv 2407.21783), [pairs]."""
    turns = scaling["original_max_position_embeddings"] / (2 * np.pi)
    turns = turns * theta ** -(np.arange(pairs) / max(pairs, 1))
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])
