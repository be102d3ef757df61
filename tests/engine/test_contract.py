"""The engine's contract on the torch engine: streams join, leave, and outlive new weights."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from draws import Drawn, assert_drawn
from engine_contract import Collector, alone, joined, reloaded
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_close, in_float64

from interlock.engine.base import Request
from interlock.engine.portable import scheduler
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError, TrainingError
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling

Tiny = Callable[..., Decoder]
Prompt = Callable[[int], list[int]]


def other_weights(tiny: Tiny, family: str = "llama") -> Decoder:
    other = tiny(family)
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.2)
    return other


@pytest.fixture
def exact_tiny(tiny: Tiny) -> Iterator[Tiny]:
    """Like `tiny`; all that the test computes is computed in float64."""
    with in_float64(tiny()) as exact:
        yield lambda family="llama": copy.deepcopy(exact)


def requests(prompt: Prompt, lengths: list[int], group: int, tokens: int) -> list[Request]:
    rule = Sampling(max_tokens=tokens)
    return [Request(f"p{i}", prompt(n), group, rule, seed=5) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("slots", [2, 5, 64])
def test_streams_that_join_and_leave_are_what_they_are_alone(
    family: str, slots: int, tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    first = requests(prompt, [5, 90, 40], 3, 20)
    late = Request("late", prompt(33), 2, Sampling(max_tokens=24), seed=7)
    out = Request("out", prompt(12), 4, Sampling(max_tokens=30), seed=8)
    run = joined(PortableEngine(tiny(family), letters(), slots), first, late, out)
    assert {name for name, _ in run.done} == {"p0", "p1", "p2", "late"}
    drawn = []
    for request in (*first, late):
        for number, expected in enumerate(
            alone(PortableEngine(tiny(family), letters(), 8), request)
        ):
            found = run.done[request.problem_id, number]
            assert found.tokens == expected.tokens
            drawn.append(Drawn(tiny(family), request, number, found.tokens, found.logprobs))
            assert found.finish is expected.finish and found.text == expected.text
    assert_drawn(drawn)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("slots", [2, 4, 64])
@pytest.mark.parametrize("after", [1, 2, 9])
def test_what_runs_goes_on_under_new_weights_as_if_it_had_begun_with_them(
    family: str, slots: int, after: int, tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    """Every token is that of a plain pass under the weights its segment names."""
    old, new = tiny(family), other_weights(tiny, family)
    asked = requests(prompt, [5, 90, 40], 2, 18)
    asked += [Request("lone", prompt(7), 1, Sampling(max_tokens=15), seed=3)]
    run = reloaded(PortableEngine(tiny(family), letters(), slots), asked, new.tensors(), after)
    mixed, drawn = 0, []
    for request in asked:
        for number in range(request.completions):
            found = run.done[request.problem_id, number]
            assert found.weight_versions in ([0], [0, 9], [9])
            begun: list[int] = []
            for segment in found.segments:
                weights = old if segment.weight_version == 0 else new
                tokens, logprobs = segment.tokens, segment.logprobs
                drawn.append(Drawn(weights, request, number, tokens, logprobs, list(begun)))
                begun += tokens
            assert found.tokens == begun and len(begun) == request.sampling.max_tokens
            mixed += len(found.segments) == 2
    assert mixed >= min(slots, 7)
    assert_drawn(drawn)


def test_what_runs_is_computed_anew_in_passes_of_bounded_length(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, engine = tiny(), other_weights(tiny), PortableEngine(tiny(), letters(), 5)
    (request,) = requests(prompt, [40], 5, 18)
    run, passes, forward = Collector(engine), list[int](), engine.decoder.forward

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(tokens))
        return forward(tokens, *rest)

    engine.add("p0", request)
    run.step(12)  # of which eleven tokens are stored
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 30)
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "forward", counted)
        engine.load(new.tensors(), 9)
    assert passes == [40 + 22, 40 + 22, 40 + 11]
    run.finish()
    drawn = []
    for number in range(5):
        before, after = run.done["p0", number].segments
        drawn.append(Drawn(old, request, number, before.tokens, before.logprobs))
        drawn.append(Drawn(new, request, number, after.tokens, after.logprobs, before.tokens))
    assert_drawn(drawn)


def test_a_version_on_every_token_and_the_oldest_counts(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    (request,) = requests(prompt, [6], 1, 10)
    run = reloaded(PortableEngine(tiny(), letters(), 1), [request], tiny().tensors(), 4)
    (found,) = run.done.values()
    assert [(len(s.tokens), s.weight_version) for s in found.segments] == [(4, 0), (6, 9)]
    assert found.weight_version == 0 and found.mask == [True] * 10
    # The same weights under another version: the very same tokens.
    ((plain,),) = PortableEngine(tiny(), letters(), 1).generate([request])
    assert found.tokens == plain.tokens


def test_an_engine_that_was_emptied_gives_the_bits_of_a_new_one(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    asked = requests(prompt, [30, 3, 50, 8], 3, 20)
    fresh = PortableEngine(tiny(), letters(), 6).generate(asked)
    used = PortableEngine(tiny(), letters(), 6)
    run = Collector(used)
    used.add("long", Request("long", prompt(200), 6, Sampling(max_tokens=40), 1))
    run.step(30)
    used.abort("long")
    assert used.generate(asked) == fresh


def test_scores_name_the_most_likely_tokens_and_disturb_nothing(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine, asked = PortableEngine(tiny(), letters(), 4), requests(prompt, [9, 20], 2, 12)
    text = prompt(17)
    run = Collector(engine)
    for request in asked:
        engine.add(request.problem_id, request)
    run.step(5)
    scores = engine.score(text, top_k=3)
    run.finish()
    undisturbed = PortableEngine(tiny(), letters(), 4).generate(asked)
    for request, expected in zip(asked, undisturbed, strict=True):
        assert [run.done[request.problem_id, n] for n in range(2)] == expected
    plain = every_logprob(tiny(), text)
    with in_float64(tiny()) as decoder:
        exact = every_logprob(decoder, text)
    places = torch.arange(16), torch.tensor(text[1:])
    assert_close(scores.logprobs, exact[places], plain[places])
    assert [[token for token, _ in top] for top in scores.top] == exact.topk(3).indices.tolist()
    best = torch.tensor([[value for _, value in top] for top in scores.top])
    assert_close(best, exact.topk(3).values, plain.topk(3).values)
    assert engine.score(text).top == [[]] * 16
    long = [5] * (engine.limits.context + 1)
    for odd, top_k, says in (
        ([], 0, "text to score is empty"),
        ([5, 600], 0, "vocabulary of 600"),
        (long, 0, f"give it at most {engine.limits.context}"),
        (text, 601, "top_k = 601"),
    ):
        with pytest.raises(ConfigError, match=says):
            engine.score(odd, top_k)


@torch.no_grad()
def every_logprob(decoder: Decoder, text: list[int]) -> torch.Tensor:
    """Of what may follow each token but the last, [len(text) - 1, V]."""
    attend = causal(len(text), torch.device("cpu"))
    logits = decoder.logits(decoder(torch.tensor(text), attend.positions, attend))
    return logits[:-1].double().log_softmax(-1)


def test_a_step_that_fails_leaves_an_empty_engine(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    engine = PortableEngine(tiny(), letters(), 2)
    good = {name: view.clone() for name, view in engine.decoder.tensors().items()}
    engine.add("a", requests(prompt, [6], 3, 8)[0])
    engine.step()
    engine.load({name: view * torch.nan for name, view in good.items()}, 1)
    with pytest.raises(TrainingError, match="weight version 1 are not finite"):
        engine.step()
    assert engine.pending == 0 and engine.step() == []
    engine.load(good, 2)
    assert len(engine.generate(requests(prompt, [6], 1, 8))[0][0].tokens) == 8


def test_a_load_that_fails_halfway_leaves_an_empty_engine(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for the second prompt's keys and values, say: the first's are of new weights."""
    engine = PortableEngine(tiny(), letters(), 4)
    good = {name: view.clone() for name, view in engine.decoder.tensors().items()}
    for name, length in (("a", 6), ("b", 9)):
        engine.add(name, requests(prompt, [length], 2, 8)[0])
    engine.step()
    compute, left = engine._scheduler._recompute, iter([True])

    def fails(*given: Any) -> Any:
        if next(left, False):
            return compute(*given)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._scheduler, "_recompute", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.load(good, 1)
    assert engine.pending == 0 and engine.step() == []
    assert len(engine.generate(requests(prompt, [6], 1, 8))[0][0].tokens) == 8


def test_a_refused_request_leaves_the_others_alone(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine, run = PortableEngine(tiny(context=64), letters(), 2), None
    (good,) = requests(prompt, [6], 2, 8)
    engine.add("good", good)
    run = Collector(engine)
    run.step(2)
    with pytest.raises(ConfigError, match="context of 64"):
        engine.add("bad", dataclasses.replace(good, prompt_tokens=prompt(60)))
    run.finish()
    assert sorted(run.done) == [("good", 0), ("good", 1)]


@settings(max_examples=25, deadline=None)
@given(
    plan=st.lists(
        st.tuples(
            st.integers(1, 60),  # prompt tokens
            st.integers(1, 4),  # completions
            st.integers(1, 20),  # of how many tokens
            st.integers(0, 6),  # steps before it is added
            st.one_of(st.none(), st.integers(1, 8)),  # steps after which it is aborted
        ),
        min_size=1,
        max_size=7,
    ),
    slots=st.integers(1, 9),
    load_at=st.integers(0, 25),
)
def test_any_order_of_joining_leaving_and_loading(
    plan: list[tuple[int, int, int, int, int | None]], slots: int, load_at: int, request: Any
) -> None:
    """Everything that was not aborted is finished once, with as many tokens as it asked for; the
    tokens before and after new weights are those that it draws alone with the load at its place.

    In float64: in float32 the noise of one token in a million falls between two of them.
    """
    tiny, prompt = request.getfixturevalue("exact_tiny"), request.getfixturevalue("prompt")
    letters = request.getfixturevalue("letters")
    new = other_weights(tiny)
    engine = PortableEngine(tiny(), letters(), slots)
    run, clock = Collector(engine), 0
    asked: dict[str, Request] = {}
    aborts: dict[int, list[str]] = {}
    arrivals: dict[int, list[tuple[str, int | None]]] = {}
    when = 0
    for index, (length, group, tokens, wait, leaves) in enumerate(plan):
        name = f"p{index}"
        asked[name] = Request(name, prompt(length), group, Sampling(max_tokens=tokens), 4)
        when += wait
        arrivals.setdefault(when, []).append((name, leaves))
    aborted = set()
    while arrivals or engine.pending:
        for name, leaves in arrivals.pop(clock, []):
            engine.add(name, asked[name])
            if leaves is not None:
                aborts.setdefault(clock + leaves, []).append(name)
        for name in aborts.pop(clock, []):
            if engine.abort(name):
                aborted.add(name)
        if clock == load_at:
            engine.load(new.tensors(), 9)
        run.step()
        clock += 1
        assert clock < 2000
    run.check()
    for name, wanted in asked.items():
        if name in aborted:
            continue
        for number in range(wanted.completions):
            found = run.done[name, number]
            assert len(found.tokens) == wanted.sampling.max_tokens
            before = sum(len(s.tokens) for s in found.segments if s.weight_version == 0)
            single = PortableEngine(tiny(), letters(), wanted.completions)
            if not before:
                single.load(new.tensors(), 9)
                expected = alone(single, wanted)[number]
            elif before == len(found.tokens):
                expected = alone(single, wanted)[number]
            else:
                expected = reloaded(single, [wanted], new.tensors(), before).done[name, number]
            assert found.tokens == expected.tokens
