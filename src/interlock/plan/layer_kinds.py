"""Layers of which a plan knows no better than that they attend to all before them."""

from typing import Any

_WHOLE = ("full_attention", "attention")
_LISTS = ("layer_types", "layers_block_type")
# Of families that mix attention with a state, or with attention that is linear.
_MIXED = (
    *("full_attention_interval", "attn_layer_period", "hybrid_override_pattern"),
    *("linear_attn_config", "mamba_d_state", "ssm_state_size", "state_size"),
)


def counted_whole(tree: dict[str, Any]) -> str:
    """What a reader has to know of a config.json where some layers do otherwise; "" of others."""
    listed = [tree[name] for name in _LISTS if isinstance(tree.get(name), list)]
    other = any(kind not in _WHOLE for kinds in listed for kind in kinds)
    if not other and not any(tree.get(name) for name in _MIXED):
        return ""
    return "; not all layers attend to all before: counted as if they did"
