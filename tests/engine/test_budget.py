"""A thinking that has used its budget is given its end: token by token as a plain loop has it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_models
import pytest
import torch
from chat_templates import CHATML, DEEPSEEK_R1, QWEN3
from engine_contract import Collector
from fake_vllm import draw, opener
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.engine.base import Request
from interlock.engine.budget import ThinkingBudget, ThinkingMeter, budget_of
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.sampler import Noise, sample
from interlock.errors import ConfigError
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Sampling, Segment

Tiny = Callable[..., Decoder]
Prompt = Callable[[int], list[int]]
QWEN3_WORDS = (
    "Considering the limited time by the user, I have to give the solution based on the thinking "
    "directly now."
)
TURNS = [{"role": "user", "content": "1 + 3?"}]
# Letters writes 0 "a", 1 "b", 2 "cd", 3 "e f", 4 "", 5 "xyz", 6 "\n", 7 "b\n", and so on.
MARKS = {
    "a token each": ThinkingBudget(3, [6, 0, 3], "?", "?", begin_id=1, end_id=0),
    "spelt in several": ThinkingBudget(3, [6, 0, 2, 0, 3], "b", "acda"),
    "inside of tokens": ThinkingBudget(3, [6, 2], "xy", "d"),
}


def state(tokens: Sequence[int], budget: ThinkingBudget, letters: Any) -> tuple[bool, int, str]:
    """Whether these tokens end in thinking, how many of them are thought, and the text since the
    last mark: from the whole text, over and over.
    """
    inside, thought, since = budget.inside, 0, ""
    for token in tokens:
        before, since = inside, since + letters.push(token)
        while True:
            mark, own = (budget.end, budget.end_id) if inside else (budget.begin, budget.begin_id)
            if own is not None:
                met, since = token == own, since if token != own else ""
                token = -1
            else:
                met = mark in since
                since = since[since.index(mark) + len(mark) :] if met else since
            if not met:
                break
            inside = not inside
        thought += before and inside
    return inside, thought, since


def is_owed(tokens: Sequence[int], budget: ThinkingBudget, letters: Any) -> bool:
    inside, thought, since = state(tokens, budget, letters)
    starts = [budget.end[:n] for n in range(1, len(budget.end))] if budget.end_id is None else []
    return inside and thought >= budget.tokens and not since.endswith(tuple(starts) or "\0")


def plain(
    decoder: Decoder, asked: Request, budget: ThinkingBudget, number: int, letters: Any
) -> tuple[list[int], list[bool], list[float]]:
    """Tokens, whether each was sampled, and logprobs: a whole forward pass for each."""
    tokens: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    noise, owed = Noise(asked.seed, asked.problem_id, number), list[int]()
    while len(tokens) < asked.sampling.max_tokens:
        if not owed and is_owed(tokens, budget, letters):
            owed = list(budget.close)
        if owed:
            tokens.append(owed.pop(0))
            mask.append(False)
            logprobs.append(0.0)
            continue
        text = torch.tensor(asked.prompt_tokens + tokens)
        attend = causal(len(text), text.device)
        with torch.no_grad():
            logits = decoder.logits(decoder(text, attend.positions, attend))[-1:].float()
        token, logprob = sample(logits, [asked.sampling], [noise.at(len(tokens))])
        tokens.append(int(token))
        mask.append(True)
        logprobs.append(float(logprob))
    return tokens, mask, logprobs


@pytest.mark.parametrize("inside", [False, True], ids=["open", "inside"])
@pytest.mark.parametrize("limit", [0, 1, 6])
@pytest.mark.parametrize("marks", MARKS)
def test_tokens_masks_and_logprobs_are_those_of_a_plain_loop(
    marks: str, limit: int, inside: bool, tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    engine = PortableEngine(tiny(), letters(), 4)
    free = Request("p", prompt(7), 3, Sampling(max_tokens=30), seed=5)
    (unbounds,) = engine.generate([free])
    budget = replace(MARKS[marks], tokens=limit, inside=inside)
    if budget.end_id is not None:  # of 600 tokens, those that are drawn
        begin, end = unbounds[0].tokens[2], unbounds[0].tokens[12]
        budget = replace(budget, begin_id=begin, end_id=end, close=[6, end, 3])
    asked, cut = replace(free, budget=budget), 0
    (answers,) = engine.generate([asked])
    for number, (answer, unbound) in enumerate(zip(answers, unbounds, strict=True)):
        tokens, mask, logprobs = plain(tiny(), asked, budget, number, letters())
        assert answer.tokens == tokens
        assert answer.mask == mask
        assert answer.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert all(s.logprobs == [] for s in answer.segments if not s.sampled)
        first = mask.index(False) if not all(mask) else len(mask)
        assert tokens[:first] == unbound.tokens[:first]  # up to there nobody was disturbed
        cut += first < len(mask)
    assert cut  # else nothing was tested


def test_every_cut_of_an_answer_goes_on_alike(tiny: Tiny, prompt: Prompt, letters: Any) -> None:
    budget = replace(MARKS["spelt in several"], inside=True)
    asked = Request("p", prompt(7), 1, Sampling(max_tokens=30), seed=5, budget=budget)
    engine = PortableEngine(tiny(), letters(), 4)
    ((whole,),) = engine.generate([asked])
    assert not all(whole.mask)
    for at in range(1, 30):
        ((found,),) = engine.generate([replace(asked, drawn=beginning(whole, at))])
        assert [(s.tokens, s.weight_version) for s in found.segments] == [
            (s.tokens, s.weight_version) for s in whole.segments
        ]


def beginning(whole: Completion, at: int) -> list[Segment]:
    found: list[Segment] = []
    for segment in whole.segments:
        if kept := segment.tokens[:at]:
            found.append(Segment(kept, segment.logprobs[:at], segment.weight_version))
        at -= len(kept)
    return found


def test_new_weights_amid_what_is_owed_change_none_of_it(
    tiny: Tiny, prompt: Prompt, letters: Any
) -> None:
    budget = replace(MARKS["spelt in several"], inside=True)
    engine = PortableEngine(tiny(), letters(), 4)
    tensors = {name: view.clone() for name, view in engine.decoder.tensors().items()}
    engine.add("p", Request("p", prompt(7), 1, Sampling(max_tokens=30), seed=5, budget=budget))
    given_before = 0
    for step in range(1, 31):
        for progress in engine.step():
            given_before += progress.logprobs == [0.0]
            done = progress.completion
        if given_before == 2 and engine.version == 0:
            engine.load(tensors, step)  # the same weights, as a later version
    assert done is not None and engine.version > 0
    close = [s for s in done.segments if not s.sampled]
    assert close[0].tokens == budget.close
    before = done.segments[: done.segments.index(close[0])]
    assert {s.weight_version for s in before} == {0}
    assert done.segments[len(before) + 1].weight_version == engine.version


@pytest.mark.parametrize("limit", [0, 4])
def test_vllm_goes_on_behind_what_it_was_given(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: Any
) -> None:
    engine, vllm = opener(tmp_path, monkeypatch)(letters(), 2)
    budget = replace(MARKS["spelt in several"], tokens=limit, inside=True)
    prompt = list(range(5))
    run = Collector(engine)
    requests = [
        Request(name, prompt, 2, Sampling(max_tokens=24), 5, budget=budget) for name in "pq"
    ]
    for request in requests:
        engine.add(request.problem_id, request)
    run.finish()
    weights = 1.0 * sum(tensor.numel() for tensor in vllm.tensors.values())
    for (name, number), found in run.done.items():
        key, tokens = (5, name, number), list[int]()
        assert not all(found.mask)
        for segment in found.segments:
            if segment.sampled:
                count = len(segment.tokens)
                expected = draw(weights, [*prompt, *tokens], key, len(tokens), count)
                assert list(zip(segment.tokens, segment.logprobs, strict=True)) == expected
            else:
                assert is_owed(tokens, budget, letters())
                assert segment.tokens == budget.close[: 24 - len(tokens)]
            tokens += segment.tokens
        assert len(tokens) == 24
    run.check()
    assert not vllm.requests


@settings(max_examples=100)
@given(st.lists(st.integers(0, 15), max_size=40), st.integers(0, 6), st.sampled_from(list(MARKS)))
def test_a_meter_says_what_the_whole_text_says(drawn: list[int], limit: int, marks: str) -> None:
    class Pieces:
        pieces = ("a", "b", "cd", "e f", "", "xyz", "\n", "b\n")

        def stream(self) -> "Pieces":
            return self

        def push(self, token: int) -> str:
            return self.pieces[token % 8]

    budget, letters = replace(MARKS[marks], tokens=limit), Pieces()
    meter, tokens = ThinkingMeter(budget, letters), list[int]()
    for token in drawn:
        given_now = bool(meter.owed)
        if not given_now:
            assert not is_owed(tokens, budget, letters)
        tokens.append(meter.owed[0] if given_now else token)
        meter.push(tokens[-1])
        if not given_now:
            assert bool(meter.owed) == is_owed(tokens, budget, letters)


def written(tmp_path: Path, template: str, **more: Any) -> Tokenizer:
    return Tokenizer.load(chat_models.write_model(tmp_path / "model", template, **more))


def test_the_end_of_thinking_is_qwen3s_to_the_token(tmp_path: Path) -> None:
    tokenizer = written(tmp_path, QWEN3)
    rule = Sampling(max_tokens=400, thinking_budget=9, thinking_words=QWEN3_WORDS)
    budget = budget_of(rule, tokenizer, TURNS, {"enable_thinking": True})
    assert budget is not None and not budget.inside
    text = f"\n\n{QWEN3_WORDS}\n</think>\n\n"
    oracle = chat_models_oracle(tmp_path)
    assert budget.close == oracle.encode(text, add_special_tokens=False)
    assert budget.end_id == oracle.convert_tokens_to_ids("</think>") in budget.close
    assert budget.begin_id == oracle.convert_tokens_to_ids("<think>")


def chat_models_oracle(tmp_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("template", "told", "inside"),
    [
        (QWEN3, {}, False),
        (QWEN3, {"enable_thinking": False}, False),  # an empty block, which is over
        (DEEPSEEK_R1, {}, True),
        (CHATML, {}, False),
    ],
)
def test_a_prompt_that_begins_to_think_is_inside(
    template: str, told: dict[str, Any], inside: bool, tmp_path: Path
) -> None:
    tokenizer = written(tmp_path, template)
    budget = budget_of(Sampling(max_tokens=99, thinking_budget=9), tokenizer, TURNS, told)
    assert budget is not None and budget.inside is inside
    assert tokenizer.decode(budget.close) == "\n</think>\n\n"


def test_a_budget_that_leaves_no_answer_is_refused(tmp_path: Path) -> None:
    tokenizer = written(tmp_path, QWEN3)
    assert budget_of(Sampling(max_tokens=9), tokenizer) is None
    close = len(tokenizer.encode("\n</think>\n\n"))
    assert budget_of(Sampling(max_tokens=6 + close, thinking_budget=5), tokenizer) is not None
    with pytest.raises(ConfigError, match="leaves 3 of max_tokens = 8 for the 3 tokens that end"):
        budget_of(Sampling(max_tokens=8, thinking_budget=5), tokenizer)
    for bad in (
        Sampling(max_tokens=99, thinking_budget=5, stop=["\n\n"]),
        Sampling(max_tokens=99, thinking_budget=5, thinking_words="So.<|im_end|>"),
    ):
        with pytest.raises(ConfigError, match="ends the answer too"):
            budget_of(bad, tokenizer)
