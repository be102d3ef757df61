"""Sequences that go on behind tokens drawn before draw what the undisturbed run draws."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.schedule import EXACT, SERVING, Schedule
from interlock.engine.sequence import Ending
from interlock.errors import ConfigError
from interlock.models.decoder import Decoder
from interlock.records.rl import Completion, FinishReason, Sampling, Segment

Tiny = Callable[..., Decoder]
Prompt = Callable[[int], list[int]]


def cut(whole: Completion, at: int) -> list[Segment]:
    """The first `at` tokens of a completion of one segment."""
    (segment,) = whole.segments
    return [Segment(segment.tokens[:at], segment.logprobs[:at], segment.weight_version)]


@pytest.mark.parametrize("length", [5, 140], ids=["in its own row", "in a prompt's"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("schedule", [EXACT, SERVING], ids=["exact", "serving"])
def test_every_cut_goes_on_with_the_tokens_of_the_undisturbed_run(
    length: int,
    temperature: float,
    schedule: Schedule,
    tiny: Tiny,
    prompt: Prompt,
    letters: Any,
) -> None:
    rule = Sampling(temperature=temperature, max_tokens=24)
    asked = Request("p", prompt(length), 1, rule, seed=5, first=3)
    engine = PortableEngine(tiny(), letters(), 4, schedule=schedule)
    ((whole,),) = engine.generate([asked])
    assert len(whole.tokens) == 24
    cuts = [replace(asked, drawn=cut(whole, at)) for at in range(1, 24)]
    for found in engine.generate(cuts):
        assert [each.tokens for each in found] == [whole.tokens]
        assert [len(segment.tokens) for segment in found[0].segments] == [24]
        assert found[0].logprobs == pytest.approx(whole.logprobs, abs=1e-4)
        assert (found[0].text, found[0].finish) == (whole.text, whole.finish)


def test_a_stop_string_over_the_cut_ends_it_at_its_place(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine, rule = PortableEngine(tiny(), letters(), 4), Sampling(max_tokens=40)
    ((plain,),) = engine.generate([Request("p", prompt(9), 1, rule, seed=2)])
    pieces = [letters().push(token) for token in plain.tokens]
    stop = "".join(pieces[6:10])
    asked = Request("p", prompt(9), 1, Sampling(max_tokens=40, stop=[stop]), seed=2)
    ((whole,),) = engine.generate([asked])
    assert whole.finish is FinishReason.STOP and len(whole.tokens) == 10
    for found in engine.generate([replace(asked, drawn=cut(whole, at)) for at in range(1, 10)]):
        assert found[0].tokens == whole.tokens and found[0].text == whole.text
        assert found[0].finish is FinishReason.STOP
    with pytest.raises(ConfigError, match="ends with its token 10"):
        engine.add("over", replace(asked, drawn=cut(whole, 10)))
    assert not engine.pending


def test_what_others_drew_and_what_was_given_keeps_its_segments(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    before = [Segment([7, 8], [-1.0, -2.0], 4), Segment([9]), Segment([10], [-0.5], 5)]
    asked = Request("p", prompt(9), 1, Sampling(max_tokens=6), seed=2, drawn=before)
    engine = PortableEngine(tiny(), letters(), 4)
    ((found,),) = engine.generate([asked])
    assert found.segments[:3] == before and found.weight_versions == [4, 5, 0]
    plain = Request("p", [*prompt(9), 7, 8, 9, 10], 1, Sampling(max_tokens=6), seed=2)
    engine.add("p", asked)
    engine.load(tiny().tensors(), 6)
    told = [each for _ in range(2) for each in engine.step()]
    assert [each.number for each in told] == [0, 0] and told[0].tokens == found.tokens[4:5]
    assert told[1].completion is not None and told[1].completion.tokens == found.tokens
    # Behind the same text; other noise only because its place in the answer is another.
    greedy = replace(asked, sampling=Sampling(temperature=0, max_tokens=6))
    ((other,),) = engine.generate([greedy])
    ((same,),) = engine.generate([replace(plain, sampling=Sampling(temperature=0, max_tokens=2))])
    assert other.tokens[4:] == same.tokens


def test_new_weights_in_the_middle_find_what_was_drawn_before(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    asked = Request("p", prompt(9), 1, Sampling(max_tokens=20), seed=2)
    engine = PortableEngine(tiny(), letters(), 4)
    ((whole,),) = engine.generate([asked])
    engine.add("p", replace(asked, drawn=cut(whole, 7)))
    told = [each for _ in range(4) for each in engine.step()]
    engine.load(tiny().tensors(), 1)
    while engine.pending:
        told += engine.step()
    done = told[-1].completion
    assert done is not None and done.tokens == whole.tokens
    assert [(len(s.tokens), s.weight_version) for s in done.segments] == [(11, 0), (9, 1)]


def test_sequences_are_numbered_from_the_first(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    engine = PortableEngine(tiny(), letters(), 4)
    asked = Request("p", prompt(9), 3, Sampling(max_tokens=5), seed=2)
    (all_three,) = engine.generate([asked])
    (last,) = engine.generate([replace(asked, completions=2, first=1)])
    assert [each.tokens for each in last] == [each.tokens for each in all_three[1:]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"completions": 2}, "one at a time"),
        ({"drawn": [Segment([1] * 6, [0.0] * 6, 0)]}, "nothing is left to draw"),
        ({"drawn": [Segment([1, 2], [0.0], 0)]}, "2 tokens with 1 logprobs"),
        ({"drawn": [Segment([600], [0.0], 0)]}, "vocabulary of 600"),
    ],
)
def test_what_cannot_be_gone_on_behind_is_refused(
    changes: dict[str, Any], says: str, tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    drawn = [Segment([1], [0.0], 0)]
    asked = Request("p", prompt(9), 1, Sampling(max_tokens=6), seed=2, drawn=drawn)
    engine = PortableEngine(tiny(), letters(), 4)
    with pytest.raises(ConfigError, match=says):
        engine.add("p", replace(asked, **changes))
    assert not engine.pending


def test_end_tokens_that_are_ignored_end_nothing_but_stop_ids_do(letters: Any) -> None:
    vocabulary = letters(frozenset({3}))
    ending = Ending(Sampling(max_tokens=4), vocabulary, frozenset({5}), ignore_eos=True)
    assert [ending.push(token) for token in (3, 1, 5)] == [None, None, FinishReason.STOP]
    ending = Ending(Sampling(max_tokens=2), vocabulary, ignore_eos=True)
    assert [ending.push(3), ending.push(3)] == [None, FinishReason.LENGTH]
