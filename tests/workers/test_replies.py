"""What a worker says is believed only as far as it can be checked: every refusal, one by one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.records.rl import Completion, FinishReason, Group, Problem, Sampling, WeightVersion
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import Canary, Loaded
from interlock.workers.replies import Target, doubt, refusal

VOCAB, LONGEST, VERSION, WORKER = 50, 6, 7, "w"


def problem(name: str) -> Problem:
    return Problem(name, [{"role": "user", "content": name}], f"answer to {name}")


def make_work(problems: int, completions: int) -> Work:
    keys = tuple(range(problems))
    asked = tuple(problem(f"p{key}") for key in keys)
    sampling = Sampling(max_tokens=LONGEST)
    return Work(Purpose.TRAIN, keys, asked, completions, sampling, seed=1)


def prompts(work: Work) -> list[list[int]]:
    return [[key + 1, 2, 3] for key in work.keys]


def completion(tokens: Sequence[int], logprobs: Sequence[float] | None = None) -> Completion:
    given = [-0.5] * len(tokens) if logprobs is None else list(logprobs)
    return Completion.sampled(list(tokens), given, FinishReason.STOP, "text", VERSION)


def changed(good: Completion, **fields: Any) -> Completion:
    names = ("tokens", "logprobs", "finish", "text", "weight_version")
    return Completion.sampled(**{name: getattr(good, name) for name in names} | fields)


def answer(work: Work, tokens: Sequence[int] = (3, 4)) -> list[Group]:
    return [
        Group(asked, prompt, [completion(tokens)] * work.completions, WORKER)
        for asked, prompt in zip(work.problems, prompts(work), strict=True)
    ]


def why(groups: Sequence[Group], work: Work) -> str | None:
    return refusal(groups, work, prompts(work), VERSION, WORKER, VOCAB)


# Each takes a good group and makes one thing of it wrong; the text is a part of the refusal.
GROUP_FAULTS: dict[str, tuple[Callable[[Group], Group], str]] = {
    "other problem": (lambda g: replace(g, problem=problem("stranger")), "'stranger'"),
    "other worker": (lambda g: replace(g, worker="another"), "'another'"),
    "other prompt token": (
        lambda g: replace(g, prompt_tokens=[*g.prompt_tokens[:-1], 9]),
        "the tokenizers differ",
    ),
    "longer prompt": (lambda g: replace(g, prompt_tokens=[*g.prompt_tokens, 3]), "tokenizers"),
    "no prompt": (lambda g: replace(g, prompt_tokens=[]), "tokenizers"),
    "a completion less": (lambda g: replace(g, completions=g.completions[1:]), "completions"),
    "a completion more": (
        lambda g: replace(g, completions=[*g.completions, g.completions[0]]),
        "completions",
    ),
}
COMPLETION_FAULTS: dict[str, tuple[Callable[[Completion], Completion], str]] = {
    "older weights": (lambda c: changed(c, weight_version=VERSION - 1), "version 6 instead of 7"),
    "newer weights": (lambda c: changed(c, weight_version=VERSION + 1), "version 8 instead of 7"),
    "empty": (lambda c: changed(c, tokens=[], logprobs=[]), "0 tokens, not 1 to 6"),
    "too long": (
        lambda c: changed(c, tokens=[1] * (LONGEST + 1), logprobs=[-1.0] * (LONGEST + 1)),
        "7 tokens, not 1 to 6",
    ),
    "a logprob less": (lambda c: changed(c, logprobs=c.logprobs[1:]), "logprobs for"),
    "a logprob more": (lambda c: changed(c, logprobs=[*c.logprobs, -1.0]), "logprobs for"),
    "negative token": (lambda c: changed(c, tokens=[-1, *c.tokens[1:]]), "vocabulary of 50"),
    "token beyond the vocabulary": (
        lambda c: changed(c, tokens=[*c.tokens[:-1], VOCAB]),
        "vocabulary of 50",
    ),
    "nan": (lambda c: changed(c, logprobs=[*c.logprobs[:-1], math.nan]), "of nan"),
    "inf": (lambda c: changed(c, logprobs=[math.inf, *c.logprobs[1:]]), "of inf"),
    "minus inf": (lambda c: changed(c, logprobs=[-math.inf, *c.logprobs[1:]]), "of -inf"),
    "positive": (lambda c: changed(c, logprobs=[0.01, *c.logprobs[1:]]), "of 0.01"),
    # What no token that was drawn can have; in fp32, where the learner computes, it is -inf.
    "too unlikely": (lambda c: changed(c, logprobs=[*c.logprobs[:-1], -1e39]), "of -1e+39"),
    "just too unlikely": (lambda c: changed(c, logprobs=[-10001.0, *c.logprobs[1:]]), "-10001.0"),
}


def spoil_group(groups: list[Group], at: int, fault: str) -> list[Group]:
    return [*groups[:at], GROUP_FAULTS[fault][0](groups[at]), *groups[at + 1 :]]


def spoil_completion(groups: list[Group], at: int, index: int, fault: str) -> list[Group]:
    answers = list(groups[at].completions)
    answers[index] = COMPLETION_FAULTS[fault][0](answers[index])
    return [*groups[:at], replace(groups[at], completions=answers), *groups[at + 1 :]]


@pytest.mark.parametrize("fault", GROUP_FAULTS)
def test_a_wrong_group_is_refused(fault: str) -> None:
    work = make_work(2, 3)
    found = why(spoil_group(answer(work), 1, fault), work)
    assert found is not None and found.startswith("problem 'p1'")
    assert GROUP_FAULTS[fault][1] in found


@pytest.mark.parametrize("fault", COMPLETION_FAULTS)
def test_a_wrong_completion_is_refused(fault: str) -> None:
    work = make_work(2, 3)
    found = why(spoil_completion(answer(work), 1, 2, fault), work)
    assert found is not None and found.startswith("problem 'p1'")
    assert COMPLETION_FAULTS[fault][1] in found


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_groups_is_refused(count: int) -> None:
    work = make_work(2, 2)
    groups = (answer(work) * 2)[:count]
    assert why(groups, work) == f"{count} groups for 2 problems"


def test_groups_in_another_order_are_refused() -> None:
    work = make_work(2, 2)
    assert why(answer(work)[::-1], work) == "problem 'p0': an answer to 'p1' by 'w'"


def test_what_is_just_within_the_limits_is_accepted() -> None:
    work = make_work(1, 1)
    for tokens, logprobs in [
        ([0], [0.0]),
        ([VOCAB - 1] * LONGEST, [-1e4] * LONGEST),
        ([1, 2], [5e-4, -0.0]),  # a rounding error above 0
    ]:
        groups = [replace(answer(work)[0], completions=[completion(tokens, logprobs)])]
        assert why(groups, work) is None


def test_a_refusal_is_of_bounded_length() -> None:
    work = make_work(1, 1)
    group = replace(answer(work)[0], problem=problem("x" * 10**5), worker="y" * 10**5)
    found = why([group], work)
    assert found is not None and len(found) <= 320


@st.composite
def answered(draw: st.DrawFn) -> tuple[Work, list[Group]]:
    work = make_work(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    one = st.lists(
        st.tuples(st.integers(0, VOCAB - 1), st.floats(-40, 0)), min_size=1, max_size=LONGEST
    )
    groups = []
    for group in answer(work):
        drawn = [draw(one) for _ in group.completions]
        answers = [completion([t for t, _ in each], [p for _, p in each]) for each in drawn]
        groups.append(replace(group, completions=answers))
    return work, groups


@given(answered(), st.data())
def test_any_one_fault_in_a_good_answer_is_refused(
    case: tuple[Work, list[Group]], data: st.DataObject
) -> None:
    work, good = case
    assert why(good, work) is None
    at = data.draw(st.integers(0, len(good) - 1))
    fault = data.draw(st.sampled_from([*GROUP_FAULTS, *COMPLETION_FAULTS]))
    if fault in GROUP_FAULTS:
        bad = spoil_group(good, at, fault)
    else:
        bad = spoil_completion(good, at, data.draw(st.integers(0, work.completions - 1)), fault)
    assert why(bad, work) is not None


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
