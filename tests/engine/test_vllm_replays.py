"""What vLLM tells of how it drew, as its 0.32 source has it, on a vLLM that is played.

Neither was run on the real one: the mask needs its second model runner, routes CUDA.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_vllm import CONFIG, VOCAB, Opened, opener

from interlock.engine.base import Request
from interlock.errors import ConfigError, TrainingError
from interlock.models.routes import packed, unpacked
from interlock.records.replay import MOST_KEPT, Replay, RouteShape, kept_tokens
from interlock.records.rl import Sampling

SHAPE = RouteShape(layers=2, per_token=2, experts=8)
MIXTURE = CONFIG | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "mlp_only_layers": [1],  # vLLM tells of dense layers, too, what is to be left out
    "head_dim": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
KEPT, ROUTES = Replay(kept=True), Replay(routes=SHAPE)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    return opener(tmp_path, monkeypatch, MIXTURE)


def asked(**changes: Any) -> Request:
    return replace(Request("p", [3, 1, 4], 1, Sampling(max_tokens=6), seed=5), **changes)


def masked(outputs: list[Any]) -> list[Any]:
    """The set of a token: itself and the two behind it, in the order of nothing."""
    for output in outputs:
        (answer,) = output.outputs
        sets = [[(t + 2) % VOCAB, t, (t + 1) % VOCAB] for t in answer.token_ids]
        answer.sampling_mask = SimpleNamespace(token_ids=sets)
    return outputs


def experts(layer: int, place: int) -> list[int]:
    """Of the token at a place of its text, as the played vLLM has it."""
    return [(layer + place) % 8, (layer + place + 1) % 8]


class Router:
    """A fault: requests that end tell the experts of all three layers, dense one included."""

    def __init__(self, vllm: Any, fewer: int = 0) -> None:
        self.vllm, self.fewer = vllm, fewer

    def __call__(self, outputs: list[Any]) -> list[Any]:
        for output in outputs:
            (answer,) = output.outputs
            answer.routed_experts = None
            request = self.vllm.requests[output.request_id]
            read = len(request.prompt) + len(request.tokens) - 1 - self.fewer
            if output.finished:
                rows = [[experts(layer, at) for layer in range(3)] for at in range(read)]
                answer.routed_experts = np.array(rows, np.uint8)
        return outputs


def test_kept_sets_are_those_of_the_mask_in_order(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), return_sampling_mask=True)
    vllm.fault = masked
    rule = Sampling(top_p=0.9, max_tokens=6)
    engine.add("p", asked(sampling=rule, replay=KEPT))
    engine.add("plain", asked())
    engine.add("greedy", asked(sampling=Sampling(temperature=0.0, max_tokens=6)))
    found = {}
    while engine.pending:
        for progress in engine.step():
            found[progress.name] = progress.completion
            for each in vllm.requests.values():  # what vLLM wants of all requests
                assert each.params.temperature > 0 and 0 < each.params.top_k <= MOST_KEPT
    completion = found["p"]
    assert completion is not None and completion.kept is not None
    sets = [kept_tokens(each) for each in completion.kept.sets()]
    assert sets == [tuple(sorted([t, (t + 1) % VOCAB, (t + 2) % VOCAB])) for t in completion.tokens]
    assert found["plain"] is not None and found["plain"].kept is None
    assert engine.score([1, 2, 3]).logprobs
    for answer in ([], [[]], [list(range(2000))]):
        engine.add("p", asked(sampling=rule, replay=KEPT))
        vllm.fault = lambda outputs, sets=answer: _with(outputs, sets)
        with pytest.raises(TrainingError, match="vLLM told kept sets of"):
            engine.step()
        assert engine.score([1, 2]).logprobs and not engine.pending


def _with(outputs: list[Any], sets: list[list[int]]) -> list[Any]:
    for output in outputs:
        output.outputs[0].sampling_mask = SimpleNamespace(token_ids=sets)
    return outputs


@pytest.mark.parametrize("load", [False, True])
def test_routes_come_with_the_end_those_of_the_layers_that_have_experts(
    opened: Opened, letters: Any, load: bool
) -> None:
    engine, vllm = opened(letters(), enable_return_routed_experts=True)
    vllm.fault = Router(vllm)
    engine.add("p", asked(completions=2, replay=ROUTES))
    found = {}
    for step in range(20):
        if load and step == 2:
            engine.load({name: tensor + 1 for name, tensor in vllm.tensors.items()}, 1)
        for progress in engine.step() if engine.pending else []:
            found[progress.number] = progress.completion
    assert [each.prompt_routes == b"" for each in (found[0], found[1])] == [False, True]
    for completion in (found[0], found[1]):
        assert completion is not None and len(completion.segments) == 1 + load
        expected = [[experts(layer, at) for layer in (0, 2)] for at in range(3 + 6 - 1)]
        assert unpacked(completion.routes, SHAPE).tolist() == expected[2:]
    assert unpacked(found[0].prompt_routes, SHAPE).tolist() == expected[:2]
    assert packed(np.array(expected[2:]), SHAPE) == completion.routes


def test_an_end_without_its_routes_is_an_error(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), enable_return_routed_experts=True)
    vllm.fault = Router(vllm, fewer=1)
    engine.add("p", asked(replay=ROUTES))
    with pytest.raises(TrainingError, match="vLLM told routes of 7 of 8 tokens"):
        for _ in range(9):
            engine.step()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            asked(sampling=Sampling(top_k=3), replay=KEPT),
            r"set generator\.options\.return_sampling_mask = true",
        ),
        (asked(replay=ROUTES), r"set generator\.options\.enable_return_routed_experts = true"),
        (asked(replay=Replay(routes=RouteShape(3, 2, 8))), "asks for routes as RouteShape"),
    ],
)
def test_what_it_was_not_started_for_is_one_clear_line(
    opened: Opened, letters: Any, request_: Request, said: str
) -> None:
    engine, _ = opened(letters())
    with pytest.raises(ConfigError, match=said):
        engine.add("p", request_)
    routed, _ = opened(letters(), enable_return_routed_experts=True)
    with pytest.raises(ConfigError, match=r"routes and has sampling\.stop"):
        routed.add("p", asked(sampling=Sampling(stop=["x"]), replay=ROUTES))
