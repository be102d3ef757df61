"""What a worker says is believed only as far as it can be checked: every refusal, one by one."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.records.replay import KeptTokens, Replay, RouteShape, kept_ids
from interlock.records.rl import (
    Completion,
    FinishReason,
    Problem,
    Sampling,
    Segment,
    WeightVersion,
)
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Answered, Canary, Loaded
from interlock.workers.replies import Target, doubt, refusal

VOCAB, LONGEST = 50, 6
VERSIONS = [7, 8, 10]  # served when the unit was given, and proven since


def make_work(problems: int, completions: int) -> Work:
    keys = tuple(range(problems))
    asked = tuple(Problem(f"p{key}", [], "") for key in keys)
    sampling = Sampling(max_tokens=LONGEST)
    return Work(Purpose.TRAIN, keys, asked, completions, sampling, 1, exact=False)


def prompt(place: int) -> list[int]:
    return [place + 1, 2, 3]


def segment(tokens: Sequence[int], version: int | None = 7) -> Segment:
    return Segment(list(tokens), [-0.5] * len(tokens), version)


def completion(*segments: Segment) -> Completion:
    return Completion(list(segments), FinishReason.STOP, "text")


# Of three versions, the second and third of which were loaded under it.
GOOD = completion(segment([3, 4]), segment([5], 8), segment([6, 7], 10))


def answered(work: Work, place: int, good: Completion = GOOD) -> Answered:
    return Answered(place, prompt(place), [good] * work.completions)


def why(answer: Answered, work: Work) -> str | None:
    return refusal(answer, work, prompt(answer.index), VERSIONS, VOCAB)


# Each takes a good answer and makes one thing of it wrong; the text is a part of the refusal.
FAULTS: dict[str, tuple[Callable[[Answered], Answered], str]] = {
    "other prompt token": (
        lambda a: replace(a, prompt_tokens=[*a.prompt_tokens[:-1], 9]),
        "the tokenizers differ",
    ),
    "longer prompt": (lambda a: replace(a, prompt_tokens=[*a.prompt_tokens, 3]), "tokenizers"),
    "no prompt": (lambda a: replace(a, prompt_tokens=[]), "tokenizers"),
    "another problem's": (lambda a: replace(a, prompt_tokens=[9, 2, 3]), "tokenizers"),
    "a completion less": (lambda a: replace(a, completions=a.completions[1:]), "completions"),
    "a completion more": (
        lambda a: replace(a, completions=[*a.completions, a.completions[0]]),
        "completions",
    ),
}
SEGMENTS_FAULTS: dict[str, tuple[Callable[[list[Segment]], list[Segment]], str]] = {
    "nothing": (lambda s: [], "a completion of 0 tokens, not 1 to 6"),
    "too long": (lambda s: [*s, segment([1, 1], 10)], "7 tokens, not 1 to 6"),
    "too long in one": (lambda s: [segment([1] * 7)], "7 tokens, not 1 to 6"),
    "older weights": (lambda s: [segment([1], 6), *s], "version 6 instead of 7 to 10"),
    "weights of another": (lambda s: [*s[:1], segment([1], 9), *s[2:]], "version 9 instead of"),
    "newer weights": (lambda s: [*s, segment([1], 11)], "version 11 instead of 7 to 10"),
    "backwards": (lambda s: [*s, segment([1], 8)], "version 8 behind those of 10"),
    "given": (lambda s: [*s, Segment([1])], "tokens that nobody sampled"),
    "all given": (lambda s: [Segment([1, 2])], "tokens that nobody sampled"),
    "an empty stretch": (lambda s: [*s, segment([], 10)], "a stretch of no tokens"),
}
SEGMENT_FAULTS: dict[str, tuple[Callable[[Segment], Segment], str]] = {
    "a logprob less": (lambda s: replace(s, logprobs=s.logprobs[1:]), "logprobs for"),
    "a logprob more": (lambda s: replace(s, logprobs=[*s.logprobs, -1.0]), "logprobs for"),
    "negative token": (lambda s: replace(s, tokens=[-1, *s.tokens[1:]]), "vocabulary of 50"),
    "token beyond the vocabulary": (
        lambda s: replace(s, tokens=[*s.tokens[:-1], VOCAB]),
        "vocabulary of 50",
    ),
    "nan": (lambda s: replace(s, logprobs=[*s.logprobs[:-1], math.nan]), "of nan"),
    "inf": (lambda s: replace(s, logprobs=[math.inf, *s.logprobs[1:]]), "of inf"),
    "minus inf": (lambda s: replace(s, logprobs=[-math.inf, *s.logprobs[1:]]), "of -inf"),
    "positive": (lambda s: replace(s, logprobs=[0.01, *s.logprobs[1:]]), "of 0.01"),
    # What no token that was drawn can have; in fp32, where the learner computes, it is -inf.
    "too unlikely": (lambda s: replace(s, logprobs=[*s.logprobs[:-1], -1e39]), "of -1e+39"),
    "just too unlikely": (lambda s: replace(s, logprobs=[-10001.0, *s.logprobs[1:]]), "-10001.0"),
}


def with_segments(answer: Answered, index: int, segments: list[Segment]) -> Answered:
    answers = list(answer.completions)
    answers[index] = replace(answers[index], segments=segments)
    return replace(answer, completions=answers)


def spoilt(answer: Answered, index: int, at: int, fault: str) -> Answered:
    """`index` of the completion, `at` of its segment, where the fault is in one."""
    if fault in FAULTS:
        return FAULTS[fault][0](answer)
    segments = list(answer.completions[index].segments)
    if fault in SEGMENTS_FAULTS:
        return with_segments(answer, index, SEGMENTS_FAULTS[fault][0](segments))
    segments[at] = SEGMENT_FAULTS[fault][0](segments[at])
    return with_segments(answer, index, segments)


@pytest.mark.parametrize("fault", [*FAULTS, *SEGMENTS_FAULTS, *SEGMENT_FAULTS])
def test_a_wrong_answer_is_refused(fault: str) -> None:
    work = make_work(2, 3)
    found = why(spoilt(answered(work, 1), 2, 1, fault), work)
    assert found is not None and found.startswith("problem 'p1'")
    assert (FAULTS | SEGMENTS_FAULTS | SEGMENT_FAULTS)[fault][1] in found


NARROW = Sampling(max_tokens=LONGEST, top_k=3)
SETS = [[3], [1, 4, 5], [2, 5]]


def narrow_work(asks: bool = True) -> Work:
    return dataclasses.replace(make_work(1, 1), sampling=NARROW, replay=Replay(kept=asks))


def narrow_answer(kept: KeptTokens | None) -> Completion:
    return completion(replace(segment([3, 4, 5]), kept=kept))


def kept_of(sets: Sequence[Sequence[int]]) -> KeptTokens | None:
    return KeptTokens.of([kept_ids(each) for each in sets])


HOSTILE: dict[str, tuple[KeptTokens | None, str]] = {
    "none": (None, "tokens without the sets that they were drawn from"),
    "of one none": (kept_of([[3], [], [2, 5]]), "a token without the set"),
    "fewer": (kept_of(SETS[:2]), "kept sets in 4 bytes for 3 tokens"),
    "more": (kept_of([*SETS, [1]]), "kept sets in 8 bytes for 3 tokens"),
    "larger": (
        kept_of([range(516), *SETS[1:]]),
        "a kept set of 516 tokens, where 515 are the most",
    ),
    "odd counts": (KeptTokens(b"\1\0\1", b""), "kept sets in 3 bytes"),
    "ids cut off": (KeptTokens(b"\1\0\1\0\1\0", b"\1\0\0\0\1"), "kept sets of 3 ids in 5 bytes"),
    "another's": (kept_of([[3], [1, 5], [2, 5]]), "a token 4 that is not of its kept set"),
    "twice": (kept_of([[3, 3], *SETS[1:]]), "or a set out of order"),
    "descends": (kept_of([[3], [4, 1], [2, 5]]), "out of order"),
    "unknown": (kept_of([[3, VOCAB], *SETS[1:]]), "outside the vocabulary of 50"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_kept_set_is_refused_in_one_line(fault: str) -> None:
    kept, said = HOSTILE[fault]
    found = why(answered(narrow_work(), 0, narrow_answer(kept)), narrow_work())
    assert found is not None and said in found and "\n" not in found


def test_kept_sets_are_taken_where_they_were_asked_for() -> None:
    good = narrow_answer(kept_of(SETS))
    assert why(answered(narrow_work(), 0, good), narrow_work()) is None
    unasked = why(answered(narrow_work(False), 0, good), narrow_work(False))
    assert unasked == "problem 'p0': kept sets that nobody asked for"
    budget = dataclasses.replace(narrow_work(), sampling=replace(NARROW, thinking_budget=1))
    given = completion(
        replace(segment([3]), kept=kept_of([[3]])), Segment([9], kept=KeptTokens(b"\0\0", b""))
    )
    assert (
        why(answered(budget, 0, given), budget) == "problem 'p0': kept sets that nobody asked for"
    )


SHAPE = RouteShape(layers=2, per_token=2, experts=8)
ROUTE = bytes([0, 1, 2, 7])  # of a token


def routed_work() -> Work:
    return dataclasses.replace(make_work(1, 2), replay=Replay(routes=SHAPE))


def routed_answer(of_prompt: int = 2, of_second: int = 0, row: bytes = ROUTE) -> Answered:
    """Two completions of a prompt of three tokens; how many of its routes each tells."""
    answers = [
        replace(
            completion(
                replace(segment([3, 4]), routes=2 * ROUTE), replace(segment([5], 8), routes=row)
            ),
            prompt_routes=count * ROUTE,
        )
        for count in (of_prompt, of_second)
    ]
    return Answered(0, prompt(0), answers)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (routed_answer(of_prompt=1), "routes of 4 bytes where 2 tokens have 4 each"),
        (routed_answer(of_second=2), "routes of 8 bytes where 0 tokens have 4 each"),
        (routed_answer(row=b""), "routes of 0 bytes where 1 tokens have 4 each"),
        (routed_answer(row=ROUTE[:3]), "routes of 3 bytes where 1 tokens have 4 each"),
        (routed_answer(row=bytes([0, 1, 2, 8])), "a route through expert 8, where there are 8"),
        (routed_answer(row=bytes([0, 1, 3, 3])), "a route through one expert twice"),
    ],
)
def test_hostile_routes_are_refused_in_one_line(answer: Answered, said: str) -> None:
    assert why(answer, routed_work()) == f"problem 'p0': {said}"


def test_routes_are_taken_where_they_were_asked_for() -> None:
    assert why(routed_answer(), routed_work()) is None
    unasked = why(routed_answer(), make_work(1, 2))
    assert unasked == "problem 'p0': routes that nobody asked for"


def test_given_tokens_are_refused_but_where_thinking_has_a_budget() -> None:
    """Whether they are those of it is looked at when the answer is read (test_reading.py)."""
    plain = make_work(1, 1)
    budget = dataclasses.replace(plain, sampling=Sampling(max_tokens=LONGEST, thinking_budget=1))
    amid = completion(segment([1]), Segment([2, 3]), segment([4], 10))
    assert why(answered(plain, 0, amid), plain) == "problem 'p0': tokens that nobody sampled"
    assert why(answered(budget, 0, amid), budget) is None
    alone = completion(Segment([1, 2]))
    assert why(answered(budget, 0, alone), budget) == "problem 'p0': tokens that nobody sampled"
    weighed = completion(segment([1]), segment([2, 3], None), segment([4]))
    assert (
        why(answered(budget, 0, weighed), budget)
        == "problem 'p0': logprobs of tokens that were given"
    )


def test_with_one_version_the_refusal_names_it() -> None:
    work = make_work(1, 1)
    answer = answered(work, 0, completion(segment([1], 8)))
    found = refusal(answer, work, prompt(0), [7], VOCAB)
    assert found == "problem 'p0': weights of version 8 instead of 7"


def test_what_is_just_within_the_limits_is_accepted() -> None:
    work = make_work(1, 1)
    for tokens, logprobs in [
        ([0], [0.0]),
        ([VOCAB - 1] * LONGEST, [-1e4] * LONGEST),
        ([1, 2], [5e-4, -0.0]),  # a rounding error above 0
    ]:
        for version in VERSIONS:
            only = completion(Segment(tokens, logprobs, version))
            assert why(answered(work, 0, only), work) is None
    assert why(answered(work, 0, completion(segment([1], 7), segment([2], 7))), work) is None


def test_a_refusal_is_of_bounded_length() -> None:
    work = make_work(1, 1)
    long = replace(work.problems[0], id="x" * 10**5)
    named = dataclasses.replace(work, problems=(long,))
    found = refusal(answered(work, 0), named, [1], VERSIONS, VOCAB)
    assert found is not None and len(found) <= 320


@st.composite
def good_answers(draw: st.DrawFn) -> tuple[Work, Answered]:
    work = make_work(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    place = draw(st.integers(0, len(work.keys) - 1))
    drawn = []
    for _ in range(work.completions):
        versions = sorted(draw(st.sets(st.sampled_from(VERSIONS), min_size=1)))
        lengths = [draw(st.integers(1, LONGEST // len(versions))) for _ in versions]
        drawn.append(
            completion(
                *(
                    Segment(
                        draw(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n)),
                        draw(st.lists(st.floats(-40, 0), min_size=n, max_size=n)),
                        version,
                    )
                    for n, version in zip(lengths, versions, strict=True)
                )
            )
        )
    return work, replace(answered(work, place), completions=drawn)


@given(good_answers(), st.data())
def test_any_one_fault_in_a_good_answer_is_refused(
    case: tuple[Work, Answered], data: st.DataObject
) -> None:
    work, good = case
    assert why(good, work) is None
    fault = data.draw(st.sampled_from([*FAULTS, *SEGMENTS_FAULTS, *SEGMENT_FAULTS]))
    index = data.draw(st.integers(0, work.completions - 1))
    segments = good.completions[index].segments
    assume(fault != "backwards" or max(s.weight_version or 0 for s in segments) > 8)
    assume(fault != "too long" or sum(len(s.tokens) for s in segments) > LONGEST - 2)
    at = data.draw(st.integers(0, len(segments) - 1))
    assert why(spoilt(good, index, at, fault), work) is not None


CANARY = Canary(text=[5, 6, 7, 8], prompts=[[1], [2]], tokens=2)
OLD = Target(WeightVersion(3, "old"), [-1.0, -1.0, -1.0])
NEW = Target(WeightVersion(4, "new"), [-1.0, -2.0, -1.0])
PROOF = Loaded(
    number=4,
    digest="new",
    text=[-1.0, -2.0, -1.0],
    decode=[-0.5, -0.6, -0.7],
    prefill=[-0.5, -0.6, -0.7],
    fetched_bytes=0,
)


def doubted(before: Target | None = OLD, limit: float = 1e-2, **change: object) -> str | None:
    return doubt(replace(PROOF, **change), NEW, before, CANARY, limit)


def test_a_good_proof_is_believed() -> None:
    assert doubted() is None
    assert doubted(before=None) is None
    assert doubted(digest=None) is None  # the engine cannot show its weights; all else still counts
    assert doubted(decode=[-1.0] * 4, prefill=[-1.0] * 4) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 3}, "version 3 instead of 4"),
        ({"number": 3, "digest": "old", "text": OLD.text}, "version 3 instead of 4"),
        ({"digest": "old"}, "not those of version 4"),
        ({"digest": ""}, "not those of version 4"),
        ({"text": [-1.0, -2.0]}, "another canary"),
        ({"text": [-1.0, -2.0, -1.0, -1.0]}, "another canary"),
        ({"text": []}, "another canary"),
        ({"decode": [-0.5] * 3, "prefill": [-0.5] * 2}, "another canary"),
        ({"decode": [], "prefill": []}, "another canary"),
        ({"decode": [-0.5], "prefill": [-0.5]}, "another canary"),  # of two prompts
        ({"decode": [-0.5] * 5, "prefill": [-0.5] * 5}, "another canary"),  # 2 x 2 at most
        ({"text": [-1.0, math.nan, -1.0]}, "log-probabilit"),
        ({"decode": [-0.5, -math.inf]}, "another canary"),
        ({"decode": [-0.5, -math.inf, -0.7]}, "log-probabilit"),
        ({"prefill": [-0.5, math.inf, -0.7]}, "log-probabilit"),
        ({"text": OLD.text}, "still serves version 3 instead of 4"),
        # 0.3 from the old text, 0.7 from the new one
        ({"text": [-1.0, -1.3, -1.0]}, "still serves version 3"),
        ({"decode": [-0.5, -0.6, -1.7]}, "decode and prefill disagree at version 4"),
    ],
)
def test_a_bad_proof_is_doubted(change: dict[str, object], words: str) -> None:
    found = doubted(**change)  # type: ignore[arg-type]
    assert found is not None and words in found


def test_stale_means_twice_as_close_to_the_old_text() -> None:
    assert doubted(text=[-1.0, -1.4, -1.0]) is None  # 0.4 against 0.6: rounding could do it
    assert doubted(text=[-1.0, -1.3, -1.0], before=None) is None
    # The engine's own rounding is large, but it is as far from both: it holds the new weights.
    assert doubted(text=[-1.4, -1.5, -1.4]) is None


def test_weights_that_barely_moved_are_not_called_stale() -> None:
    same = Target(WeightVersion(3, "old"), NEW.text)
    assert doubted(before=same) is None
    assert doubted(before=same, text=[-1.01, -2.01, -1.01]) is None


def test_decode_and_prefill_may_differ_by_the_limit() -> None:
    # One of three tokens is off by d: k3 = (e^d - d - 1) / 3; 0.005 / 3 at d = 0.0983…
    change = {"prefill": [-0.5, -0.6, -0.6]}
    expected = (math.exp(0.1) - 0.1 - 1) / 3
    assert doubted(limit=expected * 1.01, **change) is None  # type: ignore[arg-type]
    found = doubted(limit=expected * 0.99, **change)  # type: ignore[arg-type]
    assert found is not None and "k3 0.0017" in found


def test_numbers_that_are_off_in_prefill_too_are_no_matter_of_what_is_served() -> None:
    apart = {"prefill": [-0.5, -0.6, -1.6], "text": [-1.0, -2.0, -1.5]}
    limit = (math.exp(0.5) - 0.5 - 1) / 3  # one of three tokens of the text is off by 0.5
    assert doubted(None, limit * 0.99, **apart) is None  # type: ignore[arg-type]
    found = doubted(None, limit * 1.01, **apart)  # type: ignore[arg-type]
    assert found is not None and "decode and prefill disagree" in found


@pytest.mark.parametrize("value", [-1.7e308, -1.1e4, 2e-3, 1.7e308])
@pytest.mark.parametrize("part", ["text", "decode", "prefill"])
def test_finite_nonsense_is_doubted(part: str, value: float) -> None:
    """Also numbers so large that their sum is not a float any more."""
    for before in (OLD, None):
        found = doubted(before=before, **{part: [value] * 3})  # type: ignore[arg-type]
        assert found == f"its canary has a log-probability of {value}"


def test_a_canary_just_within_the_limits_is_weighed() -> None:
    assert doubted(before=None, decode=[-1e4] * 3, prefill=[-1e4] * 3) is None
    assert doubted(before=None, text=[1e-3, -1e4, 0.0]) is None  # the pool measures how far off


@given(st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=5), st.data())
def test_kept_sets_are_refused_as_one_by_one(sets: list[list[int]], data: st.DataObject) -> None:
    """Against a plain loop over the tokens."""
    tokens = data.draw(st.lists(st.integers(0, 7), min_size=len(sets), max_size=len(sets)))
    kept = KeptTokens.of([kept_ids(each) for each in sets]) or KeptTokens(bytes(2 * len(sets)), b"")
    good = all(
        not each or (token in each and each == sorted(set(each)) and max(each) < 7)
        for token, each in zip(tokens, sets, strict=True)
    )
    assert (kept.problem(tokens, vocab=7) is None) == good
