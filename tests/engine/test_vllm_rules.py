"""The rules of a request in vLLM's words, on a vLLM whose every token can be worked out."""

import math
from dataclasses import replace
from typing import Any

import pytest
from engine_contract import Collector
from fake_vllm import VOCAB, Opened, draw, opener

from interlock.engine.base import Request
from interlock.engine.vllm.requests import noise_seed
from interlock.errors import ConfigError
from interlock.records.rl import FinishReason, Sampling, Segment
from interlock.records.serving import Rules


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Opened:
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    return opener(tmp_path_factory.mktemp("model"), patch)


def asked(**changes: Any) -> Request:
    return replace(Request("p", [3, 1, 4], 1, Sampling(max_tokens=6), seed=5), **changes)


def test_bias_min_p_and_alternatives_are_asked_of_vllm(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(frozenset({9})))
    rules = Rules(logit_bias={5: -100.0, 7: 2.5}, top_logprobs=3)
    rule = Sampling(temperature=0.8, top_p=0.9, top_k=7, min_p=0.1, max_tokens=6)
    engine.add("p", asked(rules=rules, sampling=rule, stop_ids=frozenset({11})))
    engine.add("plain", asked())
    engine.step()
    params, plain = (each.params for each in vllm.requests.values())
    assert params.logit_bias == {5: -100.0, 7: 2.5} and params.min_p == 0.1
    assert (params.temperature, params.top_p, params.top_k) == (0.8, 0.9, 7)
    assert params.logprobs == 3 and params.stop_token_ids == [9, 11]
    assert plain.logit_bias is None and plain.min_p == 0 and plain.logprobs == 0


def test_a_prefix_cache_is_salted_with_who_asks(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(frozenset({9})))
    engine.add("p", asked(owner="key-1"))
    engine.add("plain", asked())
    engine.step()
    assert vllm.salts == ["key-1", None]


def test_alternatives_are_those_that_could_have_been_drawn_best_first(
    opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters())
    weights = float(sum(tensor.numel() for tensor in vllm.tensors.values()))
    for count in (1, 2, 4):
        engine.add("p", asked(rules=Rules(top_logprobs=count)))
        tops = []
        while engine.pending:
            for progress in engine.step():
                assert len(progress.top) == len(progress.tokens) == 1
                tops += progress.top
        drawn = draw(weights, [3, 1, 4], (5, "p", 0), 0, 6)
        # The drawn one is the second; all behind the third have no probability.
        assert tops == [
            [((token + 1) % VOCAB, -1.0), (token, logprob), ((token + 2) % VOCAB, -3.0)][:count]
            for token, logprob in drawn
        ]
        assert all(value > -math.inf for top in tops for _, value in top)
    engine.add("p", asked())
    assert all(not each.top for each in engine.step())
    engine.abort("p")


def test_what_was_drawn_while_a_text_was_scored_keeps_its_alternatives(
    opened: Opened, letters: Any
) -> None:
    engine, _ = opened(letters())
    engine.add("p", asked(rules=Rules(top_logprobs=1)))
    engine.step()
    engine.score([1, 2, 3])
    engine.score([1, 2, 3])
    (progress,) = engine.step()
    assert len(progress.tokens) == len(progress.top) == 2
    engine.abort("p")


def test_it_goes_on_behind_what_was_drawn_elsewhere(opened: Opened, letters: Any) -> None:
    """With the noise of a sequence that is continued there, the same in every run."""
    engine, vllm = opened(letters())
    weights = float(sum(tensor.numel() for tensor in vllm.tensors.values()))
    before = [Segment([8, 9], [-0.5, -0.25], 3)]
    run = Collector(engine)
    engine.add("p", asked(drawn=before, first=4))
    run.step()
    (request,) = vllm.requests.values()
    assert request.prompt == [3, 1, 4, 8, 9] and request.params.max_tokens == 4
    assert request.params.seed == noise_seed(5, "p", 4, 2)
    run.finish()
    found = run.done["p", 4]
    expected = draw(weights, [3, 1, 4, 8, 9], (5, "p", 4), 2, 4)
    tokens, logprobs = zip(*expected, strict=True)
    assert found.segments == [*before, Segment(list(tokens), list(logprobs), 0)]
    assert found.finish is FinishReason.LENGTH
    with pytest.raises(ConfigError, match="nothing is left to draw"):
        engine.add("p", asked(drawn=[Segment([1] * 6, [0.0] * 6, 3)]))


def test_end_tokens_that_are_ignored_are_not_vllms_either(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(frozenset(range(VOCAB))))
    run = Collector(engine)
    engine.add("p", asked(rules=Rules(ignore_eos=True)))
    run.step()
    (request,) = vllm.requests.values()
    assert request.params.stop_token_ids == []
    run.finish()
    assert len(run.done["p", 0].tokens) == 6
    assert run.done["p", 0].finish is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(grammar='start: "a"'), 'keeps no grammar .*; have a replica with engine = "torch"'),
        (Rules(thinking_budget=4, thinking_end=[5]), "knows no thinking budget"),
    ],
)
def test_what_vllm_cannot_keep_is_refused_and_nothing_is_taken(
    rules: Rules, says: str, opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters())
    with pytest.raises(ConfigError, match=says):
        engine.add("p", asked(rules=rules))
    assert engine.pending == 0 and not vllm.requests
