"""The catalogue against published counts of parameters, and what lies within what was tried."""

import pytest

from interlock.models.catalogue import ModelRecord, catalogue, largest, most, within
from interlock.records.trust import Sizes

# Billions of parameters, as their publishers give them.
PARAMETERS = {
    "SmolLM2-135M": 0.135,
    "SmolLM2-360M": 0.362,
    "SmolLM2-1.7B": 1.71,
    "Qwen2.5-0.5B": 0.49,
    "Qwen2.5-1.5B": 1.54,
    "Qwen2.5-Math-1.5B": 1.54,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1.78,  # its projection is its own
    "Qwen2.5-3B": 3.09,
    "Qwen2.5-Math-7B": 7.61,
    "Qwen2.5-14B": 14.7,
    "Qwen2.5-32B": 32.5,
    "Qwen2.5-72B": 72.7,
    "Qwen2.5-7B": 7.61,
    "Qwen3-1.7B": 1.7,
    "Qwen3-4B": 4.0,
    "Qwen3-14B": 14.8,
    "Qwen3-0.6B": 0.6,
    "Qwen3-8B": 8.2,
    "Qwen3-32B": 32.8,
    "Qwen3-30B-A3B": 30.5,
    "Qwen3-235B-A22B": 235.0,
    "Llama-3.1-8B": 8.03,
    "Llama-3.1-70B": 70.6,
    "DeepSeek-V3": 671.0,
    "DeepSeek-R1": 671.0,
    "Gemma-3-1B": 1.0,
    "Gemma-3-27B": 27.0,
    "Mistral-7B-v0.3": 7.25,
    "Mistral-Small-24B": 23.6,
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
}


def parameters(model: ModelRecord) -> int:
    """Of the matrices: attention, gated layers, experts, embedding and projection."""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = model.hidden * (2 * q + 2 * kv)
    if model.kv_rank:  # 128 of keys and of values, 64 rotated
        up = model.kv_rank * model.heads * 256
        attention = model.hidden * (model.q_rank + model.kv_rank + 64) + model.q_rank * q + up
        attention += model.heads * 128 * model.hidden
    dense = 3 * model.hidden * model.inner
    experts = 3 * model.hidden * model.expert_inner * model.experts + model.hidden * model.experts
    routed = model.layers - (3 if model.kv_rank else 0) if model.experts else 0
    shared = 3 * model.hidden * model.expert_inner if model.kv_rank else 0
    layers = model.layers * attention + routed * (experts + shared)
    layers += (model.layers - routed) * dense
    return layers + model.vocab * model.hidden * (1 if model.tied else 2)


@pytest.mark.parametrize("model", catalogue(), ids=lambda model: model.name)
def test_the_sizes_give_the_published_number_of_parameters(model: ModelRecord) -> None:
    assert parameters(model) / 1e9 == pytest.approx(PARAMETERS[model.name], rel=0.02)


def test_names_and_repositories_are_there_once() -> None:
    names = [model.name for model in catalogue()]
    assert len(names) == len(set(names)) == len({model.repository for model in catalogue()})
    assert set(names) == set(PARAMETERS)


def test_what_lies_within_what_was_tried() -> None:
    assert within(most()) == [model.name for model in catalogue()]
    assert within(Sizes()) == []
    small = Sizes(vocab=151_936, context=40_960, hidden=4096, inner=12_288, heads=32, kv_heads=8,
                  head_dim=128)  # fmt: skip
    assert set(within(small)) == {
        *("SmolLM2-135M", "SmolLM2-360M", "Qwen2.5-0.5B", "Qwen2.5-Math-1.5B", "Qwen2.5-3B"),
        *("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"),
    }
    assert Sizes(vocab=5, heads=2).beyond(Sizes(vocab=4, heads=2)) == ["vocab 5, tried to 4"]
    assert largest([Sizes(vocab=5, heads=1), Sizes(heads=2)]) == Sizes(vocab=5, heads=2)
