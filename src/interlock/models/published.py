"""What the config.json of each family must and may hold: one struct for each form.

A missing optional key means what it means to transformers. Keys that are not here are settings of
training or generation, or are looked at in families.py.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from interlock.models.architecture import LARGEST, ContextLength, FiniteFloat

# The upper bounds are far above any published model: a lying config must not keep us building.
Size = Annotated[int, Meta(gt=0, le=2**24)]
Count = Annotated[int, Meta(gt=0, le=2**12)]
LayerCount = Annotated[int, Meta(gt=0, le=2**10)]
CountOrZero = Annotated[int, Meta(ge=0, le=2**12)]
Share = Annotated[float, Meta(gt=0, le=1)]


class Config(msgspec.Struct, kw_only=True):
    """What all families share."""

    theta: ClassVar[float] = 10_000.0  # where neither rope_theta nor the rope parameters have it

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Count
    rms_norm_eps: Annotated[float, Meta(ge=0, le=LARGEST)]
    max_position_embeddings: ContextLength
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None

    @property
    def window(self) -> int | None:
        """How many positions a token of the layers that slide sees, itself among them; None: no
        layer does."""
        return None

    def _slides(self, otherwise: bool) -> bool:
        """Whether any layer does; `otherwise`: where layer_types does not say."""
        kinds = self.layer_types
        return otherwise if kinds is None else "sliding_attention" in kinds


class SwitchedWindowConfig(Config, kw_only=True):
    """Qwen2 and Qwen3: a window that most of them name and switch off."""

    use_sliding_window: bool = False
    sliding_window: Size | None = 4096
    max_window_layers: int = 28  # the first that slides

    @property
    def window(self) -> int | None:
        upper = self.max_window_layers < self.num_hidden_layers
        slides = self.use_sliding_window and self._slides(upper)
        return self.sliding_window if slides else None


class MistralConfig(Config, kw_only=True):
    """All layers slide, whatever layer_types says."""

    sliding_window: Size | None = 4096

    @property
    def window(self) -> int | None:
        return self.sliding_window


class MixedWindowConfig(MistralConfig, kw_only=True):
    """Ministral: layer_types says which layers slide, and without it all do."""

    @property
    def window(self) -> int | None:
        return self.sliding_window if self._slides(True) else None


class CwmConfig(MixedWindowConfig, kw_only=True):
    """Three layers of four slide where layer_types does not say which."""

    theta: ClassVar[float] = 1_000_000.0
    sliding_window: Size | None = 8192


class SeedConfig(Config, kw_only=True):
    head_dim: Count  # pyright: ignore[reportIncompatibleVariableOverride]
    attention_bias: bool = True
    attention_out_bias: bool = False


class SmolLM3Config(Config, kw_only=True):
    """Every fourth layer has no positions (NoPE) where no_rope_layers does not say which: 1 has
    them, 0 has none."""

    theta: ClassVar[float] = 2_000_000.0
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    sliding_window: Size | None = None
    no_rope_layers: list[Literal[0, 1]] | None = None
    no_rope_layer_interval: Count = 4

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window and self._slides(True) else None

    @property
    def rotating(self) -> Sequence[int]:
        """1 or 0 for each layer, and perhaps for more."""
        interval = self.no_rope_layer_interval
        every = [int((i + 1) % interval != 0) for i in range(self.num_hidden_layers)]
        return every if self.no_rope_layers is None else self.no_rope_layers


class Qwen3Config(SwitchedWindowConfig, kw_only=True):
    head_dim: Count  # pyright: ignore[reportIncompatibleVariableOverride]


class Qwen3MoeConfig(Qwen3Config, kw_only=True):
    num_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Size
    norm_topk_prob: bool
    decoder_sparse_step: Count = 1
    mlp_only_layers: list[int] | None = None


class ExpertsConfig(Config, kw_only=True):
    """The keys of a mixture in DeepSeek's words, which others took over."""

    n_routed_experts: Count
    n_shared_experts: CountOrZero | None
    num_experts_per_tok: Count
    moe_intermediate_size: Size
    first_k_dense_replace: CountOrZero
    routed_scaling_factor: FiniteFloat


class DeepSeekConfig(ExpertsConfig, kw_only=True):
    q_lora_rank: Size | None
    kv_lora_rank: Size
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count


class DeepSeekV2Config(DeepSeekConfig, kw_only=True):
    topk_method: Literal["greedy", "group_limited_greedy"]
    n_group: Count | None = None
    topk_group: Count | None = None


class DeepSeekV3Config(DeepSeekConfig, kw_only=True):
    n_group: Count
    topk_group: Count
    norm_topk_prob: bool
    rope_interleave: bool = True


class Glm4MoeLiteConfig(DeepSeekV3Config, kw_only=True):
    """GLM-4.7-Flash: DeepSeek-V3's shape. One dense layer where neither key says how many."""

    first_k_dense_replace: CountOrZero = 1
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None


class Glm4MoeConfig(ExpertsConfig, kw_only=True):
    """GLM-4.5, 4.6: DeepSeek-V3's experts behind grouped-query attention."""

    head_dim: Count  # pyright: ignore[reportIncompatibleVariableOverride]
    norm_topk_prob: bool
    n_group: Count = 1
    topk_group: Count = 1
    use_qk_norm: bool = False
    partial_rotary_factor: Share = 0.5


class Dots1Config(ExpertsConfig, kw_only=True):
    """dots.llm1: the same experts, norms of queries and keys, whole rotation."""

    norm_topk_prob: bool
    n_group: Count | None = 1
    topk_group: Count | None = 1
    sliding_window: Size | None = 4096
    max_window_layers: int | None = 62

    @property
    def window(self) -> int | None:
        first = self.num_hidden_layers if self.max_window_layers is None else self.max_window_layers
        return self.sliding_window if self._slides(first < self.num_hidden_layers) else None
