"""Kept sets as the engine tells them: exactly what it drew from, whatever happens on the way."""

import math
from collections.abc import Callable, Sequence

import msgspec
import pytest
import torch

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.sampler import draw, sample
from interlock.models.decoder import Decoder
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.replay import MOST_KEPT, KeptTokens, Replay, joined, kept_ids, kept_tokens
from interlock.records.rl import Completion, FinishReason, Sampling, Segment

KEPT = Replay(kept=True)


def told(kept: Sequence[bytes]) -> list[tuple[int, ...]]:
    return [kept_tokens(each) for each in kept]


def test_what_is_told_is_what_has_a_probability() -> None:
    noise = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 600, generator=noise) * 3
    rules = [
        Sampling(top_p=0.9),
        Sampling(top_k=7),
        Sampling(min_p=0.1),
        Sampling(temperature=0.5, top_p=0.9, top_k=40, min_p=0.01),
        Sampling(),
        Sampling(top_p=0.5),  # does not ask
    ]
    most = [each.most_kept for each in rules[:-1]] + [0]
    uniforms = [(0.37, 0.61)] * 6
    tokens, logprobs, tops, kept = draw(logits, rules, uniforms, [600] * 6, most)
    plain = sample(logits, rules, uniforms)
    assert tokens.equal(plain[0]) and logprobs.equal(plain[1])
    sets = told(kept)
    assert most[4] == 0 and sets[4] == sets[5] == ()
    for row in range(4):
        top = tops[row]
        assert top is not None and set(sets[row]) == {token for token, _ in top}
        words = list(sets[row])
        temperature = rules[row].temperature
        exact = (logits[row].double() / temperature)[words].log_softmax(0)
        at = words.index(int(tokens[row]))
        assert logprobs[row].item() == pytest.approx(exact[at].item(), abs=1e-5)
    assert len(sets[1]) == 7


def test_no_more_is_drawn_from_than_travels_and_of_equals_the_first() -> None:
    flat = torch.zeros(2, 2000)
    flat[1, 1500] = 1.0
    rules = [Sampling(top_p=0.99), Sampling(top_k=3)]
    most = [each.most_kept for each in rules]
    assert most == [MOST_KEPT, 3]
    tokens, logprobs, _, kept = draw(flat, rules, [(0.999, 0.999)] * 2, [0, 0], most)
    assert told(kept) == [tuple(range(MOST_KEPT)), (0, 1, 1500)]
    assert logprobs.tolist() == pytest.approx([-math.log(MOST_KEPT), -math.log(2 / math.e + 1)])
    assert tokens.tolist() == [MOST_KEPT - 1, 1500]


def test_top_p_is_a_share_of_what_the_likeliest_have_together() -> None:
    """As of an engine that has a top-k of as many: of 2,000 falling weights, half of 512's."""
    falling = [math.exp(-place / 1000) for place in range(2000)]
    wanted, reached = 0, 0.0
    while reached < 0.5 * sum(falling[:MOST_KEPT]):
        reached, wanted = reached + falling[wanted], wanted + 1
    rule = Sampling(top_p=0.5)
    logits = torch.arange(2000)[None] / -1000
    (kept,) = told(draw(logits, [rule], [(0.5, 0.5)], [0], [rule.most_kept]).kept)
    assert kept == tuple(range(wanted)) and wanted == 224
    of_all = draw(logits, [Sampling(top_p=0.5, top_k=MOST_KEPT)], [(0.5, 0.5)], [0], [MOST_KEPT])
    assert told(of_all.kept) == [kept]


@pytest.mark.parametrize("slots", [2, 8])
def test_sets_ride_on_the_segments_through_new_weights_and_a_new_start(
    tiny: Callable[..., Decoder], letters: type, prompt: Callable[[int], list[int]], slots: int
) -> None:
    sampling = Sampling(top_k=5, max_tokens=12)
    request = Request("p", prompt(9), 3, sampling, seed=4, replay=KEPT)
    engine = PortableEngine(tiny(), letters(), slots)
    engine.add("a", request)
    found: dict[int, Completion] = {}
    for step in range(60):
        if step == 5:
            engine.load(tiny().tensors(), 1)
        for progress in engine.step():
            if progress.completion is not None:
                found[progress.number] = progress.completion
    assert len(found) == 3
    assert {len(each.segments) for each in found.values()} >= {2}
    for completion in found.values():
        for segment in completion.segments:
            assert segment.kept is not None and set(segment.kept.sizes) == {5}
            assert segment.kept.problem(segment.tokens, 600, 5) is None
    whole = found[0]
    assert whole.kept is not None
    part = Segment(whole.tokens[:4], whole.logprobs[:4], 0, KeptTokens.of(whole.kept.sets()[:4]))
    again = PortableEngine(tiny(), letters(), slots)
    more = Request("p", prompt(9), 1, sampling, 4, drawn=[part], replay=KEPT)
    (later,) = again.generate([more])[0]
    assert (later.tokens, later.kept) == (whole.tokens, whole.kept)


def test_nothing_is_told_unasked_or_where_nothing_is_left_out(
    tiny: Callable[..., Decoder], letters: type, prompt: Callable[[int], list[int]]
) -> None:
    engine = PortableEngine(tiny(), letters(), 4)
    rules = [Sampling(max_tokens=3), Sampling(temperature=0, top_k=3, max_tokens=3)]
    asked = [Request("p", prompt(5), 1, rule, 0, replay=KEPT) for rule in rules]
    asked.append(Request("p", prompt(5), 1, Sampling(top_k=3, max_tokens=3), 0))
    assert [each.kept for answers in engine.generate(asked) for each in answers] == [None] * 3


def test_sets_survive_as_bytes_and_are_joined_over_what_was_given() -> None:
    drawn = KeptTokens.of([kept_ids([1, 2]), kept_ids([7])])
    segments = [Segment([2, 7], [-0.5, 0.0], 3, drawn), Segment([9]), Segment([4], [-1.0], 4)]
    completion = Completion(segments, FinishReason.STOP, "")
    assert from_bytes(to_bytes(completion), Completion) == completion
    assert completion.kept is not None
    assert told(completion.kept.sets()) == [(1, 2), (7,), (), ()]
    assert joined([(3, None), (2, None)]) is None
    # As a run of before has it, that told no sets.
    old = {"tokens": [2], "logprobs": [-0.5], "weight_version": 3}
    assert from_bytes(msgspec.msgpack.encode(old), Segment) == Segment([2], [-0.5], 3)
