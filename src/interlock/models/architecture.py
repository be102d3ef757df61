"""What a decoder is made of, in our words. Data only; huggingface.py reads it from a config.json.

Sizes are in elements. `Rope` is one of four structs, whose fields keep their published names: they
are read straight from a config.json, and the formulas of rope.py are known by them.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LARGEST = 2.0**127  # of a setting: it is computed with in float32
# By less than this no model divides; what comes of it stays within float32.
PositiveFloat = Annotated[float, Meta(ge=2.0**-64, le=LARGEST)]
FiniteFloat = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
ContextLength = Annotated[int, Meta(gt=0, le=2**40)]


class _RopeBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="rope_type"):
    """Base of the variants. An unknown parameter is an error: it could change every position."""

    rope_theta: Annotated[float, Meta(gt=1, le=LARGEST)] = 10_000.0


class DefaultRope(_RopeBase, frozen=True, tag="default"):
    """Positions as trained, without an extension (arXiv 2104.09864)."""


class LinearRope(_RopeBase, frozen=True, tag="linear", kw_only=True):
    """Positions divided by `factor` (arXiv 2306.15595)."""

    factor: PositiveFloat


class Llama3Rope(_RopeBase, frozen=True, tag="llama3", kw_only=True):
    """Only slow frequencies divided by `factor` (Llama 3.1, arXiv 2407.21783)."""

    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_position_embeddings: ContextLength


class YarnRope(_RopeBase, frozen=True, tag="yarn", kw_only=True):
    """A ramp between the two, and a factor on the softmax (arXiv 2309.00071)."""

    factor: PositiveFloat
    original_max_position_embeddings: ContextLength
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: FiniteFloat | None = None
    mscale: FiniteFloat | None = None
    mscale_all_dim: FiniteFloat | None = None
    truncate: bool = True


Rope = DefaultRope | LinearRope | Llama3Rope | YarnRope


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention: keys and values come from one low-rank vector per token."""

    q_rank: int | None  # None: queries are projected directly
    kv_rank: int
    interleaved: bool  # rotated pairs are (2i, 2i+1), not (i, i + D/2)


class Routing(msgspec.Struct, frozen=True):
    """A mixture of experts: which layers have one, and how a token chooses."""

    layers: frozenset[int]  # the others are dense
    experts: int
    per_token: int
    inner: int  # of each routed expert
    shared_inner: int  # of the expert that every token passes; 0: none
    gate: Literal["softmax", "sigmoid"]
    corrected: bool  # a bias per expert joins the choice, not the weight
    groups: int  # of experts; a token may choose only from the best `kept_groups`
    kept_groups: int
    group_top: int  # a group is as good as the sum of this many of its best experts
    normalize: bool  # the chosen weights are made to sum to one
    scale: float  # and then multiplied by this

    @property
    def routed(self) -> int:
        """Experts of all layers, shared ones apart."""
        return len(self.layers) * self.experts


class Architecture(msgspec.Struct, frozen=True):
    """The shape of one decoder."""

    family: str  # config.json's model_type
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    value_dim: int  # of values
    inner: int  # of a dense layer
    norm_eps: float
    context: int  # positions the model was trained for, and every layer sees
    tied: bool  # the vocabulary projection is the embedding
    rope: Rope
    rope_dim: int  # how many elements of each query and key are rotated
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    unrotated: frozenset[int] = frozenset()  # layers whose attention knows no positions
    latent: Latent | None = None
    routing: Routing | None = None
