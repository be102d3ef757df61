"""The sizes that a config.json states, in one set of words whatever its family.

    config.json ──> the keys that families use ──> StatedSizes ──(shapes.py)──> ModelShape

A size that is missing, or that goes with no other, is refused: a plan would count it otherwise than
it is, and nobody would see that.
"""

from bisect import bisect_left
from typing import Any

import msgspec

from interlock.errors import ModelError
from interlock.text import one_line


class StatedSizes(msgspec.Struct, frozen=True):
    """A config.json in our words; 0: it has no such thing."""

    name: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0
    per_token: int = 0
    expert_inner: int = 0
    shared_inner: int = 0
    dense_layers: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0
    value_dim: int = 0
    tied: bool = False


# In our words -> the keys that families use, the usual one first.
_KEYS: dict[str, tuple[str, ...]] = {
    "vocab": ("vocab_size",),
    "hidden": ("hidden_size", "n_embd"),
    "inner": ("intermediate_size", "n_inner"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "experts": ("n_routed_experts", "num_experts", "num_local_experts"),
    "per_token": ("num_experts_per_tok", "top_k_experts"),
    "expert_inner": ("moe_intermediate_size",),
    "shared_inner": ("shared_expert_intermediate_size",),
    "dense_layers": ("first_k_dense_replace",),
    "q_rank": ("q_lora_rank",),
    "kv_rank": ("kv_lora_rank",),
    "rope_dim": ("qk_rope_head_dim",),
    "value_dim": ("v_head_dim",),
}
_NEEDED = ("vocab", "hidden", "layers", "heads")
_MOST = 2**26
_TIED = ("smollm3", "gemma", "cohere", "gpt2")  # where their config.json does not say


def of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that is of the language model, where it has several."""
    tree = config.get("text_config")
    return tree if isinstance(tree, dict) else config


def sizes_of(config: dict[str, Any], name: str) -> StatedSizes:
    """Of a config.json that was read. Raises ModelError where a size is missing, or cannot be."""
    tree = of_text(config)
    found = {ours: _number(tree, theirs, name) for ours, theirs in _KEYS.items()}
    for each in _NEEDED:
        if not found[each]:
            raise ModelError(f"{name}: its config.json has no {_KEYS[each][0]}; give a whole one")
    found["kv_heads"] = found["kv_heads"] or found["heads"]
    found["expert_inner"] = found["expert_inner"] or found["inner"]
    if not found["kv_rank"]:
        found["q_rank"] = 0
    nope = _number(tree, ("qk_nope_head_dim",), name)
    if found["kv_rank"] and nope:
        found["head_dim"] = nope + found["rope_dim"]
    # 0, which _wrong refuses, where heads do not share the width evenly.
    even = found["hidden"] % found["heads"] == 0
    found["head_dim"] = found["head_dim"] or even * found["hidden"] // found["heads"]
    if not found["shared_inner"]:
        found["shared_inner"] = _number(tree, ("n_shared_experts",), name) * found["expert_inner"]
    if found["experts"]:
        found["dense_layers"] = _dense_layers(tree, found, name)
    tied = tree.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is None:
        tied = str(tree.get("model_type", config.get("model_type"))).startswith(_TIED)
    sizes = StatedSizes(name=name, tied=bool(tied), **found)
    if wrong := _wrong(sizes, tree):
        raise ModelError(
            f"{name}: {wrong} in its config.json; a plan cannot tell its sizes: mend the file, or "
            "give --model another"
        )
    return sizes


def _dense_layers(tree: dict[str, Any], found: dict[str, int], name: str) -> int:
    """Layers of a mixture that have no experts."""
    layers, first = found["layers"], found["dense_layers"]
    step = _number(tree, ("decoder_sparse_step", "interleave_moe_layer_step"), name) or 1
    alone = tree.get("mlp_only_layers")
    listed = {each for each in alone if type(each) is int} if isinstance(alone, list) else set()
    routing = (every := range(step - 1, layers, step))[bisect_left(every, first) :]
    return layers - len(routing) + sum(each in routing for each in listed)


def _wrong(of: StatedSizes, tree: dict[str, Any]) -> str | None:
    """What would be counted otherwise than it is: sizes that are not there, or cannot be so."""
    if not of.experts:
        others = (key for key in tree if "experts" in key and type(tree[key]) is int)
        if unread := next((key for key in others if tree[key] > 1), None):
            return f"{one_line(unread, 60)} = {tree[unread]} beside no {_KEYS['experts'][0]}"
    if not of.inner and (of.dense_layers or not (of.experts and of.expert_inner)):
        return f"no {_KEYS['inner'][0]}"
    if of.experts and not 0 < of.per_token <= of.experts:
        return f"{of.per_token} experts a token (num_experts_per_tok) of {of.experts}"
    if of.heads > of.hidden and not of.head_dim:
        return f"more heads ({of.heads:,}) than hidden_size ({of.hidden:,})"
    if not of.head_dim:
        return f"no head_dim, and hidden_size = {of.hidden:,} is no multiple of {of.heads:,} heads"
    # Latent attention has no key/value heads, whatever their number says.
    if not of.kv_rank and of.heads % of.kv_heads:
        return (
            f"num_attention_heads = {of.heads:,} is no multiple of num_key_value_heads = "
            f"{of.kv_heads:,}"
        )
    if of.kv_rank and of.head_dim < (of.rope_dim or 64):
        return f"qk_rope_head_dim = {of.rope_dim or 64:,} of heads of {of.head_dim:,}"
    return None


def _number(tree: dict[str, Any], keys: tuple[str, ...], name: str) -> int:
    for key in keys:
        value = tree.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
            raise ModelError(
                f"{name}: {key} = {one_line(repr(value), 40)} in its config.json is "
                f"no size; give 0 to {_MOST:,}"
            )
        return value
    return 0
