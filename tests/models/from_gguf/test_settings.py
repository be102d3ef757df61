"""config.json out of GGUF metadata that is odd: what llama.cpp reads of it, or one line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from interlock.errors import ModelError
from interlock.models.from_gguf.settings import hugging_face_config


def file(factors: list[float] | None = None, **changed: Any) -> Any:
    """What hugging_face_config asks of a file; `factors`: its rope_freqs."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.feed_forward_length": 96,
        "llama.block_count": 2,
        "llama.context_length": 256,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    kind = GGMLQuantizationType.F32
    tensors = {"token_embd.weight": SimpleNamespace(shape=(300, 64), type=kind)}
    if factors:
        tensors["rope_freqs.weight"] = SimpleNamespace(shape=(len(factors),), type=kind)
    return SimpleNamespace(
        path=Path("m.gguf"),
        metadata=metadata | {key.replace("__", "."): value for key, value in changed.items()},
        tensors=tensors,
        rows=lambda tensor: np.array([factors], np.float32).view(np.uint8),
        error=lambda told: ModelError(f"m.gguf: {told}"),
    )


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({}, None),
        ({"llama__rope__scaling__factor": 1.0}, None),
        ({"llama__rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama__rope__scale_linear": 2.5}, {"rope_type": "linear", "factor": 2.5}),
        ({"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}, None),
    ],
)
def test_a_factor_without_a_type_is_linear(
    said: dict[str, Any], scaling: dict[str, Any] | None
) -> None:
    assert hugging_face_config(file(**said))["rope_scaling"] == scaling


LIST = np.array([1, 2], np.int32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split__count": LIST}, "split.count is a list, which is not read here"),
        ({"llama__rope__scaling__type": LIST}, "scaling.type is a list, which is not read here"),
        ({"llama__rope__scaling__attn_factor": 2.0}, "attn_factor is 2, which is not read; give"),
        ({"llama__rope__freq_base": np.inf}, "rope.freq_base is inf, which is not read here"),
        ({"llama__rope__freq_base": np.nan}, "rope.freq_base is nan, which is not read here"),
    ],
)
def test_odd_metadata_are_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        hugging_face_config(file(**changed))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("base", [0.0, -1.0, 1.0])
def test_factors_of_an_impossible_base(base: float) -> None:
    with pytest.raises(ModelError, match=f"llama.rope.freq_base is {base:g}, and not above 1"):
        hugging_face_config(file([1.0, 1.0, 3.0, 8.0], llama__rope__freq_base=base))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [np.nan, np.inf, 0.0, -8.0])
def test_impossible_factors(odd: float) -> None:
    for factors in ([odd] * 4, [1.0, 1.0, 8.0, odd]):
        with pytest.raises(ModelError, match="scales positions otherwise"):
            hugging_face_config(file(factors))
