"""The engine against one plain pass over what it drew, without a cache, batch or shortcut."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import Drawn, assert_drawn

from interlock.chips import threads
from interlock.engine.base import Request
from interlock.engine.portable import stored
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.kv_cache import KVCache
from interlock.engine.portable.prompts import LONE_PROMPT
from interlock.engine.portable.schedule import Schedule
from interlock.errors import ConfigError, ModelError, TrainingError
from interlock.models.decoder import Decoder
from interlock.records.rl import Completion, FinishReason, Sampling

Tiny = Callable[..., Decoder]
Prompt = Callable[[int], list[int]]


def _requests(prompt: Prompt, lengths: list[int], group: int, rule: Sampling) -> list[Request]:
    return [Request(f"p{i}", prompt(n), group, rule, seed=5) for i, n in enumerate(lengths)]


def _check(done: list[list[Completion]], requests: list[Request], decoder: Decoder) -> None:
    assert [len(completions) for completions in done] == [each.completions for each in requests]
    drawn = [
        Drawn(decoder, request, number, completion.tokens, completion.logprobs)
        for request, completions in zip(requests, done, strict=True)
        for number, completion in enumerate(completions)
    ]
    assert_drawn(drawn)
    for each, completion in zip(drawn, itertools.chain(*done), strict=True):
        assert len(each.tokens) == each.request.sampling.max_tokens
        assert completion.finish is FinishReason.LENGTH


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize(
    "rule",
    [
        Sampling(temperature=0, max_tokens=6),
        Sampling(max_tokens=7),
        Sampling(temperature=0.8, top_k=50, top_p=0.9, max_tokens=5),
        Sampling(max_tokens=18),
    ],
    ids=["greedy", "plain", "narrowed", "packed"],
)
def test_tokens_and_logprobs_are_those_of_a_plain_pass(
    family: str,
    slots: int,
    rule: Sampling,
    tiny: Tiny,
    prompt: Prompt,
    letters: Any,
) -> None:
    decoder = tiny(family)
    # Three length classes; one and three slots cannot hold a group, 64 hold everything.
    requests = _requests(prompt, [5, 90, 1, 40], 4, rule)
    done = PortableEngine(decoder, letters(), slots).generate(requests)
    _check(done, requests, decoder)


def test_requests_of_different_sizes_and_rules_share_a_batch(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    decoder = tiny()
    rules = [
        Sampling(max_tokens=1),
        Sampling(temperature=0, max_tokens=40),  # past one block of the cache
        Sampling(temperature=0.5, max_tokens=3),
        Sampling(top_k=5, max_tokens=9),
    ]
    requests = [
        Request(f"p{i}", prompt(1 + 7 * i), 1 + i % 3, rules[i % 4], seed=i) for i in range(12)
    ]
    requests += [Request("long", prompt(LONE_PROMPT + 1), 1, rules[3], seed=12)]
    _check(PortableEngine(decoder, letters(), 5).generate(requests), requests, decoder)


def test_the_same_call_gives_the_same_bits(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    decoder = tiny().bfloat16()
    decoder.dtype = torch.bfloat16
    engine = PortableEngine(decoder, letters(), 6)
    requests = _requests(prompt, [30, 3, 50, 8], 3, Sampling(max_tokens=12))
    assert engine.generate(requests) == engine.generate(requests)


def test_a_completion_does_not_depend_on_its_company(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine = PortableEngine(tiny(), letters(), 5)
    requests = _requests(prompt, [30, 3, 50, 8, 12], 3, Sampling(max_tokens=12))
    together = engine.generate(requests)
    backwards = engine.generate(requests[::-1])[::-1]
    for index, request in enumerate(requests):
        (alone,) = engine.generate([request])
        (fewer,) = engine.generate([dataclasses.replace(request, completions=2)])
        tokens = [completion.tokens for completion in together[index]]
        assert [completion.tokens for completion in alone] == tokens
        assert [completion.tokens for completion in fewer] == tokens[:2]
        assert [completion.tokens for completion in backwards[index]] == tokens
    assert len({tuple(c.tokens) for completions in together for c in completions}) == 15


def test_seed_and_problem_make_the_noise(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    engine = PortableEngine(tiny(), letters(), 4)
    base = Request("a", prompt(9), 1, Sampling(max_tokens=8), seed=1)
    others = [dataclasses.replace(base, seed=2), dataclasses.replace(base, problem_id="b")]
    drawn = engine.generate([base, *others, base])
    tokens = [completions[0].tokens for completions in drawn]
    assert tokens[0] == tokens[3]
    assert len({tuple(each) for each in tokens}) == 3


def test_a_prompt_is_computed_once_and_only_running_rows_are_decoded(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny()
    streams: list[list[int]] = []
    projected: list[int] = []
    forward, logits = decoder.forward, decoder.logits

    def counted_forward(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        streams.append(tokens.tolist())
        return forward(tokens, *rest)

    def counted_logits(hidden: torch.Tensor) -> torch.Tensor:
        projected.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(decoder, "forward", counted_forward)
    monkeypatch.setattr(decoder, "logits", counted_logits)
    engine = PortableEngine(decoder, letters(), 4)
    short, long = Sampling(max_tokens=2), Sampling(max_tokens=4)
    requests = [Request("a", prompt(20), 3, short, 0), Request("b", prompt(30), 3, long, 0)]
    engine.generate(requests)
    # Four slots: three of a, one of b; when a ends after two tokens, the rest of b starts.
    assert projected == [4, 4, 3, 3, 2, 2]
    # Both prompts in one pass; then every token but the last of each completion.
    assert [len(stream) for stream in streams] == [50, 4, 1, 3, 2, 2]
    assert streams[0] == prompt(20) + prompt(30)


def test_what_prompts_begin_with_in_common_is_computed_once(
    tiny: Tiny,
    prompt: Prompt,
    letters: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = tiny()
    passes: list[int] = []
    forward = decoder.forward

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(tokens))
        return forward(tokens, *rest)

    turns = [[], prompt(3), prompt(7), prompt(6)]  # the first prompt is the beginning of all others
    requests = [
        Request(f"p{i}", prompt(25) + turn, 2, Sampling(max_tokens=5), 0)
        for i, turn in enumerate(turns)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "forward", counted)
        done = PortableEngine(decoder, letters(), 8).generate(requests)
    # Each prompt keeps a token of its own: 24 shared, and 1 more of the first.
    assert passes == [24 + 1 + 4 + 8 + 7] + [8] * 4
    _check(done, requests, decoder)


def test_prompts_wait_until_a_slot_is_free(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny()
    passes: list[int] = []
    forward = decoder.forward

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(tokens))
        return forward(tokens, *rest)

    monkeypatch.setattr(decoder, "forward", counted)
    requests = _requests(prompt, [33] * 300, 1, Sampling(max_tokens=1))
    assert len(PortableEngine(decoder, letters(), 10).generate(requests)) == 300
    # The prompts are equal: all but the last token is computed once for ten of them.
    assert passes == [42] * 30


def test_one_that_finds_a_slot_waits_some_steps_for_others_and_then_starts_alone(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine, long = PortableEngine(tiny(), letters(), 32), Sampling(max_tokens=60)
    for request in _requests(prompt, [5] * 10, 3, long):
        engine.add(request.problem_id, request)
    engine.step()
    engine.add("late", _requests(prompt, [6], 1, long)[0])
    waited = next(n for n in range(60) if any(each.name == "late" for each in engine.step()))
    assert waited == Schedule().patience
    engine.add("more", _requests(prompt, [7], 1, long)[0])  # the last slot
    waited = next(n for n in range(60) if any(each.name == "more" for each in engine.step()))
    assert waited == Schedule().patience
    engine.add("next", _requests(prompt, [8], 1, long)[0])
    assert all(each.name != "next" for _ in range(20) for each in engine.step())
    assert engine.pending == 33


def test_one_long_completion_does_not_make_the_steps_of_all_after_it_longer(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step attends over rows as long as the longest; that is none of the past."""
    lengths: list[int] = []
    decode = stored.Decode

    def noted(own: KVCache, *rest: Any) -> Any:
        lengths.append(own.length)
        return decode(own, *rest)

    monkeypatch.setattr(stored, "Decode", noted)
    engine = PortableEngine(tiny(), letters(), 4)
    engine.add("long", _requests(prompt, [1], 1, Sampling(max_tokens=200))[0])
    for step in range(260):
        name = f"s{step}"
        if engine.pending < 4:
            engine.add(name, _requests(prompt, [3], 1, Sampling(max_tokens=10))[0])
        engine.step()
    assert max(lengths) >= 200 and lengths[-1] == 16


def test_groups_are_handed_over_as_soon_as_they_are_complete(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    rules = [Sampling(max_tokens=9), Sampling(max_tokens=2), Sampling(max_tokens=5)]
    requests = [Request(f"p{i}", prompt(5), 2, rule, 0) for i, rule in enumerate(rules)]
    seen: list[tuple[int, list[Completion]]] = []
    done = PortableEngine(tiny(), letters(), 6).generate(
        requests, lambda index, completions: seen.append((index, completions))
    )
    assert seen == [(1, done[1]), (2, done[2]), (0, done[0])]


def test_an_end_token_ends_a_completion_and_is_part_of_it(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    decoder = tiny()
    (request,) = _requests(prompt, [12], 1, Sampling(temperature=0, max_tokens=8))
    ((free,),) = PortableEngine(decoder, letters(), 1).generate([request])
    end = next(token for token in free.tokens[2:] if token not in free.tokens[:2])
    at = free.tokens.index(end)
    vocabulary = letters(frozenset({end, 599}))
    ((ended,),) = PortableEngine(decoder, vocabulary, 1).generate([request])
    assert ended.tokens == free.tokens[: at + 1]
    assert ended.logprobs == free.logprobs[: at + 1]
    assert ended.finish is FinishReason.STOP
    assert ended.text == letters().decode(free.tokens[:at])


def test_a_stop_string_may_span_tokens(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    decoder = tiny()
    (request,) = _requests(prompt, [12], 1, Sampling(max_tokens=30))
    ((free,),) = PortableEngine(decoder, letters(), 1).generate([request])
    pieces = [letters().push(token) for token in free.tokens]
    assert sum(map(bool, pieces[10:14])) >= 2
    stop = "".join(pieces[10:14])
    cut = free.text.index(stop)
    # The first token by which the whole stop string is there.
    used = next(n for n in range(31) if stop in "".join(pieces[:n]))
    rule = Sampling(max_tokens=30, stop=["not there", stop])
    ((stopped,),) = PortableEngine(decoder, letters(), 1).generate(
        [dataclasses.replace(request, sampling=rule)]
    )
    assert stopped.tokens == free.tokens[:used]
    assert stopped.logprobs == free.logprobs[:used]
    assert stopped.finish is FinishReason.STOP
    assert stopped.text == free.text[:cut]


def test_a_stop_token_ends_its_own_request_alone(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    decoder = tiny()
    (request,) = _requests(prompt, [12], 1, Sampling(max_tokens=30))
    ((free,),) = PortableEngine(decoder, letters(), 1).generate([request])
    stop = free.tokens[9]
    asked = dataclasses.replace(request, stop_ids=frozenset({stop}))
    engine = PortableEngine(decoder, letters(), 1)
    (stopped,), (other,) = engine.generate([asked, request])
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert stopped.finish is FinishReason.STOP and other.tokens == free.tokens


def test_of_two_stop_strings_the_text_ends_before_the_earlier(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    decoder = tiny()
    (request,) = _requests(prompt, [12], 1, Sampling(max_tokens=30))
    ((free,),) = PortableEngine(decoder, letters(), 1).generate([request])
    pieces = [letters().push(token) for token in free.tokens]
    at = next(n for n, piece in enumerate(pieces) if len(piece) == 3)  # "e f" or "xyz"
    rule = Sampling(max_tokens=30, stop=[pieces[at][2], pieces[at][1]])
    used = next(n for n in range(30) if set(rule.stop) & set("".join(pieces[: n + 1])))
    ((stopped,),) = PortableEngine(decoder, letters(), 1).generate(
        [dataclasses.replace(request, sampling=rule)]
    )
    text = "".join(pieces[: used + 1])
    assert stopped.text == text[: min(text.find(s) for s in rule.stop if s in text)]
    assert stopped.tokens == free.tokens[: used + 1]


@pytest.mark.parametrize(
    ("length", "changes", "message"),
    [
        (0, {}, "prompt of problem 'p0' is empty"),
        (61, {}, "'p0' has 61 prompt tokens, which with max_tokens = 4 .* context of 64"),
        (5, {"prompt_tokens": [1, 600]}, "'p0' has a token id outside .* vocabulary of 600"),
        (5, {"completions": 0}, "'p0' asks for 0 completions"),
        (5, {"sampling": Sampling(max_tokens=4, stop=["a", ""])}, "empty string"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_any_work(
    length: int, changes: dict[str, Any], message: str, tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine = PortableEngine(tiny(context=64), letters(), 2)
    (request,) = _requests(prompt, [length], 1, Sampling(max_tokens=4))
    good = Request("good", prompt(60), 1, Sampling(max_tokens=4), 0)
    finished: list[int] = []
    with pytest.raises(ConfigError, match=message):
        engine.generate(
            [good, dataclasses.replace(request, **changes)], lambda i, _: finished.append(i)
        )
    assert finished == []
    assert len(engine.generate([good])[0][0].tokens) == 4


def test_no_requests_give_no_completions(tiny: Tiny, letters: Any) -> None:
    assert PortableEngine(tiny(), letters(), 2).generate([]) == []


def test_loaded_weights_are_served_and_their_version_is_on_every_completion(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine = PortableEngine(tiny(), letters(), 2)
    other = tiny()
    noise = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.2)
    requests = _requests(prompt, [6], 2, Sampling(max_tokens=6))
    before = engine.generate(requests)
    assert [completion.weight_version for completion in before[0]] == [0, 0]
    engine.load(other.tensors(), 7)
    assert engine.version == 7
    after = engine.generate(requests)
    assert [completion.weight_version for completion in after[0]] == [7, 7]
    assert [c.tokens for c in before[0]] != [c.tokens for c in after[0]]
    _check(after, requests, other)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_of_another_model_change_nothing(fault: str, tiny: Tiny, letters: Any) -> None:
    engine = PortableEngine(tiny(), letters(), 2)
    before = {name: tensor.clone() for name, tensor in engine.decoder.tensors().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    name = "model.layers.1.mlp.down_proj.weight"
    match fault:
        case "missing":
            del tensors[name]
        case "unknown":
            tensors["model.extra"] = tensors[name]
        case "shape":
            tensors[name] = tensors[name].T
    pattern = {"missing": f"lack the .*{name}", "unknown": "unknown .*model.extra", "shape": name}
    with pytest.raises(ModelError, match=pattern[fault]):
        engine.load(tensors, 3)
    assert engine.version == 0
    for name, tensor in engine.decoder.tensors().items():
        assert tensor.equal(before[name])


def test_broken_weights_stop_the_run(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    decoder = tiny()
    with torch.no_grad():
        decoder.norm.weight[3] = math.nan
    with pytest.raises(TrainingError, match="weight version 0 are not finite"):
        PortableEngine(decoder, letters(), 2).generate(
            _requests(prompt, [6], 1, Sampling(max_tokens=2))
        )


def test_fewer_threads_draw_the_same_and_leave_as_many_as_there_were(
    tiny: Tiny, prompt: Prompt, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "WINDOW_S", 0.0)
    monkeypatch.setattr(threads, "processors", lambda: 2)
    torch.set_num_threads(2)
    requests = _requests(prompt, [5, 40], 2, Sampling(max_tokens=20))
    found, used = [], []
    try:
        for held in (0.0, 1.0):
            monkeypatch.setattr(threads.Others, "held", lambda self, held=held: held)
            engine = PortableEngine(tiny(), letters(), 4)
            found.append(engine.generate(requests))
            used.append((engine.threads, torch.get_num_threads()))
    finally:
        torch.set_num_threads(before)
    assert used == [(2, 2), (1, 2)]
    texts = [[(c.tokens, c.logprobs) for each in done for c in each] for done in found]
    assert texts[0] == texts[1]
