"""What VllmEngine makes of vLLM's steps, on a vLLM whose every token can be worked out.

tests/engine/test_vllm.py runs the same contract on the real one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import fake_vllm
import pytest
from engine_contract import Collector, joined, reloaded
from fake_vllm import VOCAB, FakeVllm, Opened, draw, filled, opener
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.engine.base import Request
from interlock.engine.vllm.engine import NO_VERSION
from interlock.errors import ConfigError, ModelError, SyncError, TrainingError
from interlock.records.rl import FinishReason, Sampling

GREW = 2.0  # what the weights of version 9 are filled with; those of version 0 with ones


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Opened:
    """Make an engine of so many slots on a fake vLLM; its vocabulary may end completions."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    return opener(tmp_path_factory.mktemp("model"), patch)


def asked(name: str, length: int, group: int, tokens: int, seed: int = 5) -> Request:
    prompt = [(7 * length + 3 * place) % VOCAB for place in range(length)]
    return Request(name, prompt, group, Sampling(max_tokens=tokens), seed)


def check(run: Collector, requests: Sequence[Request], vllm: FakeVllm) -> None:
    """Every token and logprob is that of a request which reads all that was before it under the
    weights that its segment names; and vLLM was left with nothing."""
    count = sum(tensor.numel() for tensor in vllm.tensors.values())
    weights = {0: 1.0 * count, 9: GREW * count}
    for request in requests:
        for number in range(request.completions):
            found, tokens = run.done[request.problem_id, number], list[int]()
            assert found.weight_versions in ([0], [0, 9], [9])
            for segment in found.segments:
                assert segment.weight_version is not None
                expected = draw(
                    weights[segment.weight_version],
                    [*request.prompt_tokens, *tokens],
                    (request.seed, request.problem_id, number),
                    len(tokens),
                    len(segment.tokens),
                )
                pairs = zip(segment.tokens, segment.logprobs, strict=True)
                assert list(pairs) == expected
                tokens += segment.tokens
            assert len(tokens) == request.sampling.max_tokens
    assert not vllm.requests


@pytest.mark.parametrize("slots", [1, 2, 5, 64])
def test_streams_that_join_and_leave_are_what_they_are_alone(
    slots: int, opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters(), slots)
    first = [asked(f"p{n}", n, 3, 20) for n in (5, 90, 40)]
    late, out = asked("late", 33, 2, 24, seed=7), asked("out", 12, 4, 30)
    run = joined(engine, first, late, out)
    assert {name for name, _ in run.done} == {"p5", "p90", "p40", "late"}
    check(run, [*first, late], vllm)
    assert vllm.most <= slots


@pytest.mark.parametrize("slots", [2, 4, 64])
@pytest.mark.parametrize("after", [1, 2, 9])
def test_what_runs_goes_on_under_new_weights_as_if_it_had_begun_with_them(
    slots: int, after: int, opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters(), slots)
    requests = [asked(f"p{n}", n, 2, 18) for n in (5, 90, 40)] + [asked("lone", 7, 1, 15)]
    new = filled(GREW, vllm.tensors)
    run = reloaded(engine, requests, new, after)
    check(run, requests, vllm)
    mixed = [each for each in run.done.values() if each.weight_versions == [0, 9]]
    assert len(mixed) == min(slots, 7)  # those that ran, and nothing else, are of both
    assert all(len(each.segments[0].tokens) == after for each in mixed)
    assert engine.version == 9


def test_a_load_puts_what_ran_before_what_waited(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2)
    run, requests = Collector(engine), [asked(name, 6, 1, 8) for name in "abcd"]
    for request in requests:
        engine.add(request.problem_id, request)
    run.step(2)
    engine.load(filled(GREW, vllm.tensors), 9)
    assert engine.pending == 4
    assert {progress.name for progress in run.step()} == {"a", "b"}
    run.finish()
    check(run, requests, vllm)


def test_a_text_is_scored_at_once_though_every_slot_is_taken(opened: Opened, letters: Any) -> None:
    """What runs draws on meanwhile, and that is told later: all of it, once."""
    engine, vllm = opened(letters(), slots=2)
    run, requests = Collector(engine), [asked("a", 6, 2, 5), asked("b", 9, 2, 5)]
    for request in requests:
        engine.add(request.problem_id, request)
    run.step(2)
    text, steps = [3, 1, 4, 1, 5], vllm.steps
    for _ in range(2):
        scores = engine.score(text, top_k=2)
    assert vllm.steps == steps + 2
    assert scores.logprobs == [-float(VOCAB - token) for token in text[1:]]
    assert scores.top == [[(VOCAB - 1, -1.0), (VOCAB - 2, -2.0)]] * 4
    assert engine.score(text).top == [[]] * 4  # ends both sequences of a
    assert engine.pending == 4  # two wait, and two have yet to be told
    told = run.step()
    assert {(each.name, each.number, len(each.tokens)) for each in told} == {
        ("a", 0, 3),
        ("a", 1, 3),
    }
    assert all(each.completion is not None for each in told)
    assert engine.pending == 2
    run.finish()
    check(run, requests, vllm)
    assert engine.pending == 0 and engine.step() == []


def test_a_request_that_leaves_while_something_is_untold_is_not_heard_of(
    opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters(), slots=4)
    run, kept = Collector(engine), asked("kept", 6, 2, 9)
    engine.add("kept", kept)
    engine.add("ended", asked("ended", 7, 1, 2))
    engine.add("out", asked("out", 8, 3, 9))
    run.step()
    engine.score([1, 2, 3])
    assert engine.pending == 6
    assert engine.abort("ended") and engine.pending == 5  # finished, but told to nobody
    assert engine.abort("out") and engine.pending == 2
    assert not engine.abort("ended") and not engine.abort("out")
    assert {progress.name for progress in run.step()} == {"kept"}
    run.finish()
    check(run, [kept], vllm)


def test_a_name_is_free_once_its_request_has_left(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2)
    engine.add("a", asked("a", 6, 3, 9))
    engine.step()
    with pytest.raises(AssertionError):
        engine.add("a", asked("a", 7, 1, 9))
    engine.abort("a")
    run, again = Collector(engine), asked("a", 7, 1, 9)
    engine.add("a", again)
    run.finish()
    check(run, [again], vllm)
    assert engine.generate([again])[0] == [run.done["a", 0]]


def test_a_stop_string_ends_what_vllm_would_go_on_with(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2)
    plain = asked("a", 6, 1, 40)
    ((whole,),) = engine.generate([plain])
    stop = whole.text[10:13]
    rule = Sampling(max_tokens=40, stop=[stop])
    ((found,),) = engine.generate([dataclasses.replace(plain, sampling=rule)])
    assert found.finish is FinishReason.STOP and not vllm.requests
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.tokens == whole.tokens[: len(found.tokens)]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (fake_vllm.not_finite, "logits of weight version 0 are not finite"),
        (fake_vllm.given_up, r"gave up a completion of 'b' after 3 tokens \(abort\)"),
        (lambda outputs: 1 / 0, "division by zero"),
    ],
)
@pytest.mark.parametrize("scoring", [False, True])
def test_a_step_that_fails_leaves_an_empty_engine(
    fault: Any, says: str, scoring: bool, opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters(), slots=3)
    engine.add("a", asked("a", 6, 2, 9))
    engine.add("b", asked("b", 7, 2, 9))
    engine.step()
    engine.step()
    vllm.fault = (lambda outputs: fault(outputs[:3])) if scoring else fault
    with pytest.raises((TrainingError, ZeroDivisionError), match=says):
        engine.score([1, 2, 3]) if scoring else engine.step()
    assert engine.pending == 0 and engine.step() == [] and not vllm.requests
    run, again = Collector(engine), asked("b", 7, 2, 9)
    engine.add("b", again)
    run.finish()
    check(run, [again], vllm)


def test_what_is_not_finite_is_forgotten_once_nobody_needs_what_lies_beside_it(
    opened: Opened, letters: Any
) -> None:
    engine, vllm = opened(letters(), slots=2)
    run, request = Collector(engine), asked("a", 6, 2, 9)
    engine.add("a", request)
    run.step(2)
    vllm.fault = fake_vllm.scores_not_finite
    assert all(map(math.isnan, engine.score([1, 2, 3]).logprobs))
    assert not all(map(math.isfinite, engine.score([1, 2, 3]).logprobs))  # as long as a runs
    engine.load(filled(GREW, vllm.tensors), 9)
    assert all(map(math.isfinite, engine.score([1, 2, 3]).logprobs))
    run.finish()
    check(run, [request], vllm)


def test_weights_that_are_not_the_models_or_cannot_be_written_change_nothing(
    opened: Opened, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, vllm = opened(letters(), slots=2)
    run, request = Collector(engine), asked("a", 6, 3, 9)
    engine.add("a", request)
    run.step(3)
    good = filled(GREW, vllm.tensors)
    (first, *_) = good
    with pytest.raises(ModelError, match="lack the tensor"):
        engine.load({name: each for name, each in good.items() if name != first}, 9)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/nowhere")
        with pytest.raises(SyncError, match="set TMPDIR"):
            engine.load(good, 9)
    assert engine.version == 0
    run.finish()
    check(run, [request], vllm)
    assert {tuple(each.weight_versions) for each in run.done.values()} == {(0,)}


def test_torn_weights_draw_nothing(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2)
    engine.add("a", asked("a", 6, 3, 9))
    engine.step()
    good = filled(GREW, vllm.tensors)
    vllm.ignored = [next(iter(good))]
    with pytest.raises(ModelError, match=f"version 9 does not set, {vllm.ignored[0]} first"):
        engine.load(good, 9)
    assert engine.version == NO_VERSION and engine.pending == 0 and engine.step() == []
    for call in (lambda: engine.add("a", asked("a", 6, 1, 9)), lambda: engine.score([1, 2])):
        with pytest.raises(SyncError, match="loaded half-way"):
            call()
    vllm.ignored = []
    engine.load(good, 9)
    run, again = Collector(engine), asked("a", 6, 3, 9)
    engine.add("a", again)
    run.finish()
    check(run, [again], vllm)


def test_what_it_refuses_leaves_the_others_alone(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2)
    run, good = Collector(engine), asked("good", 6, 2, 8)
    engine.add("good", good)
    run.step(2)
    with pytest.raises(ConfigError, match="context of 256"):
        engine.add("bad", asked("bad", 250, 1, 8))
    with pytest.raises(ConfigError, match=r"temperature = 0\.001"):
        engine.add("bad", dataclasses.replace(good, sampling=Sampling(temperature=0.001)))
    for text, says in (([1] * 256, "at most 255"), ([], "is empty"), ([VOCAB], "vocabulary of 64")):
        with pytest.raises(ConfigError, match=says):
            engine.score(text)
    run.finish()
    assert sorted(run.done) == [("good", 0), ("good", 1)]
    check(run, [good], vllm)


@settings(max_examples=50, deadline=None)
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
    score_at=st.sets(st.integers(0, 25), max_size=4),
)
def test_any_order_of_joining_leaving_loading_and_scoring(
    plan: list[tuple[int, int, int, int, int | None]],
    slots: int,
    load_at: int,
    score_at: set[int],
    request: Any,
) -> None:
    """What was not aborted is finished once, and is what it should be, token by token."""
    engine, vllm = request.getfixturevalue("opened")(request.getfixturevalue("letters")(), slots)
    run, clock, when = Collector(engine), 0, 0
    wanted: dict[str, Request] = {}
    arrivals: dict[int, list[str]] = {}
    aborts: dict[int, list[str]] = {}
    for index, (length, group, tokens, wait, leaves) in enumerate(plan):
        when += wait
        wanted[f"p{index}"] = asked(f"p{index}", length, group, tokens)
        arrivals.setdefault(when, []).append(f"p{index}")
        if leaves is not None:
            aborts.setdefault(when + leaves, []).append(f"p{index}")
    gone: set[str] = set()
    while arrivals or engine.pending:
        for name in arrivals.pop(clock, []):
            engine.add(name, wanted[name])
        if clock in score_at:
            assert len(engine.score([1, 2, 3]).logprobs) == 2
        gone |= {name for name in aborts.pop(clock, []) if engine.abort(name)}
        if clock == load_at:
            engine.load(filled(GREW, vllm.tensors), 9)
        known = {(name, n) for name in wanted for n in range(wanted[name].completions)}
        added = {key for key in known if not any(key[0] in names for names in arrivals.values())}
        unfinished = {key for key in added if key not in run.done and key[0] not in gone}
        assert engine.pending == len(unfinished)
        run.step()
        clock += 1
        assert clock < 2000
    run.check()
    check(run, [each for name, each in wanted.items() if name not in gone], vllm)
