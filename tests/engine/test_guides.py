"""Logit bias, thinking budgets and alternatives on the torch engine, with a token per byte."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from guided import GRAMMAR, SIZE, asked, assert_every_cut_goes_on, one
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.engine.base import Progress
from interlock.engine.grammars import words
from interlock.engine.guides import Guides, apply
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.schedule import Schedule
from interlock.errors import ConfigError
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Sampling, Segment
from interlock.records.serving import Rules

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# Logit bias


def test_a_bias_is_added_to_the_logits_and_told_in_the_logprob(tokenizer: Tokenizer) -> None:
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0)).bfloat16()
    guides = Guides(tokenizer, SIZE)
    rules = Rules(logit_bias={5: 1.5, 299: -2.25})
    rows = [None, guides.open(asked(tokenizer, rules)), None]
    expected = logits.float()
    expected[1, 5] += 1.5
    expected[1, 299] -= 2.25
    assert apply(logits.clone(), rows).equal(expected)
    assert apply(logits, [None, None, None]) is logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_a_hundred_chooses_and_of_minus_a_hundred_bans(
    temperature: float, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    rule = Sampling(temperature=temperature, max_tokens=30)
    chosen = one(engine, asked(tokenizer, Rules(logit_bias={65: 100}), sampling=rule))
    assert chosen.tokens == [65] * 30 and chosen.logprobs == pytest.approx([0] * 30, abs=1e-6)
    plain = one(engine, asked(tokenizer, Rules(), sampling=rule))
    banned = Rules(logit_bias=dict.fromkeys(plain.tokens, -100.0))
    found = one(engine, asked(tokenizer, banned, sampling=rule))
    assert not set(found.tokens) & set(plain.tokens)


# Grammars and thinking


def test_a_grammar_behind_the_thinking_begins_there(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    end = tokenizer.encode("</think>")
    rules = Rules(
        grammar=GRAMMAR, grammar_after=end, thinking_budget=20, thinking_end=end, thinks=True
    )
    request = asked(tokenizer, rules, tokens=160)
    whole = one(engine, request)
    assert whole.tokens[20:28] == end and whole.logprobs[20:28] == [0.0] * 8
    assert not set(whole.tokens[:20]) & tokenizer.eos_ids
    assert set(json.loads(tokenizer.decode(whole.tokens[28:]))) == {"name", "age", "likes"}
    assert whole.finish is FinishReason.STOP
    assert_every_cut_goes_on(engine, request, whole)


def test_no_end_comes_before_the_grammar_has_begun(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    (eos,) = tokenizer.eos_ids
    after = [299, 299]  # which it never says
    rules = Rules(grammar=GRAMMAR, grammar_after=after, logit_bias={eos: 100})
    found = one(engine, asked(tokenizer, rules, tokens=40))
    assert eos not in found.tokens and found.finish is FinishReason.LENGTH


def test_an_end_token_is_drawn_where_it_is_forced_or_the_grammar_is_of_nothing(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    """Though none may be drawn before the grammar has begun."""
    (eos,) = tokenizer.eos_ids
    rules = Rules(
        grammar=GRAMMAR, grammar_after=[7, 7], thinking_end=[9, eos], thinking_budget=2, thinks=True
    )
    found = one(engine, asked(tokenizer, rules))
    assert found.tokens[2:] == [9, eos] and found.logprobs[2:] == [0.0, 0.0]
    empty = Rules(
        grammar='start: "a"?', grammar_after=[7, 7], thinking_begin=[8], logit_bias={eos: 100}
    )
    assert one(engine, asked(tokenizer, empty)).tokens == [eos]


@pytest.mark.parametrize("begins", [True, False])
def test_a_model_free_to_think_decides_with_its_first_token(
    begins: bool, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    begin, end = tokenizer.encode("<think>"), tokenizer.encode("</think>")
    rules = Rules(
        logit_bias={begin[0]: 100.0 if begins else -100.0},
        grammar=GRAMMAR,
        grammar_after=end,
        thinking_begin=begin,
        thinking_end=end,
        thinking_budget=4,
    )
    request = asked(tokenizer, rules)
    whole = one(engine, request)
    if begins:
        # It thinks four times "<", the last of which is the first token of the end already.
        assert whole.tokens[:7] == begin and whole.tokens[10:18] == end
        assert whole.logprobs[1:7] == [0.0] * 6 and whole.logprobs[11:18] == [0.0] * 7
    told = whole.tokens[18:] if begins else whole.tokens
    assert set(json.loads(tokenizer.decode(told))) == {"name", "age", "likes"}
    assert_every_cut_goes_on(engine, request, whole)


def test_ignored_end_tokens_follow_the_end_of_the_grammar(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    (eos,) = tokenizer.eos_ids
    rules = Rules(grammar='start: "ab"', ignore_eos=True)
    found = one(engine, asked(tokenizer, rules, tokens=6))
    assert found.tokens == [*tokenizer.encode("ab"), *[eos] * 4]
    assert found.finish is FinishReason.LENGTH and found.text == "ab"


def test_every_cut_of_a_guided_answer_goes_on_alike(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    request = asked(tokenizer, Rules(grammar=GRAMMAR, logit_bias={65: 3.0}))
    whole = one(engine, request)
    assert_every_cut_goes_on(engine, request, whole)
    greedy = replace(request, sampling=Sampling(temperature=0, max_tokens=120))
    assert_every_cut_goes_on(engine, greedy, one(engine, greedy))
    odd = [Segment(tokenizer.encode("no"), [0.0, 0.0], 0)]
    with pytest.raises(ConfigError, match="no beginning of a text of its grammar"):
        engine.add("odd", replace(request, drawn=odd))
    assert not engine.pending


def test_an_engine_that_serves_guides_alike(
    model: Path, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    """Several rules in one batch, prompts in parts, and what was known of them before."""
    end = tokenizer.encode("</think>")
    think = Rules(thinking_budget=9, thinking_end=end, thinks=True, ignore_eos=True)
    long = tokenizer.encode("Who is it? " * 6)
    wanted = [
        asked(tokenizer, rules, 60, problem_id=f"{n}", prompt_tokens=long)
        for n, rules in enumerate(
            [Rules(grammar=GRAMMAR), think, Rules(ignore_eos=True), Rules(logit_bias={65: 5.0})]
        )
    ]
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    chunks = Schedule(patience=0, prefill_chunk=16, prefix_cache_mb=8)
    serving = PortableEngine(decoder, tokenizer, 3, schedule=chunks)
    expected = [one(engine, request).tokens for request in wanted]
    for _ in range(2):
        assert [found.tokens for (found,) in serving.generate(wanted)] == expected
    assert_every_cut_goes_on(serving, wanted[0], one(engine, wanted[0]))


def test_a_grammar_outlives_new_weights(engine: PortableEngine, tokenizer: Tokenizer) -> None:
    request = asked(tokenizer, Rules(grammar=GRAMMAR))
    whole = one(engine, request)
    engine.add("p", request)
    told = [each for _ in range(7) for each in engine.step()]
    engine.load({name: view.clone() for name, view in engine.decoder.tensors().items()}, 4)
    while engine.pending:
        told += engine.step()
    done = told[-1].completion
    assert done is not None and done.tokens == whole.tokens and done.weight_versions == [0, 4]
    engine.load({name: view.clone() for name, view in engine.decoder.tensors().items()}, 0)


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_the_end_of_thinking_is_forced_at_the_limit(
    budget: int, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    end = tokenizer.encode("\n</think>\n")
    rules = Rules(thinking_budget=budget, thinking_end=end, thinks=True, ignore_eos=True)
    request = asked(tokenizer, rules, tokens=40)
    whole = one(engine, request)
    assert whole.tokens[budget : budget + len(end)] == end
    assert whole.logprobs[budget : budget + len(end)] == [0.0] * len(end)
    plain = one(engine, asked(tokenizer, Rules(ignore_eos=True), tokens=40))
    assert whole.tokens[:budget] == plain.tokens[:budget]
    assert_every_cut_goes_on(engine, request, whole)


def test_all_blocks_of_thinking_share_the_budget_and_what_is_there_is_not_repeated(
    tokenizer: Tokenizer,
) -> None:
    begin, end = [1, 2], [3, 4, 5]
    rules = Rules(thinking_budget=5, thinking_begin=begin, thinking_end=end)
    guide = Guides(tokenizer, SIZE).open(asked(tokenizer, rules))
    assert guide is not None

    def forced() -> Iterator[int]:
        while guide.chooses:
            bits = np.zeros(words(SIZE), np.int32)
            guide.fill(bits)
            (token,) = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            yield int(token)
            guide.push(int(token))

    def pushed(tokens: list[int]) -> None:
        for token in tokens:
            assert not guide.chooses
            guide.push(token)

    pushed([9, 9, 1, 2, 9, 3, 4, 5])  # thinks of three tokens: 9 and two of its end
    pushed([9, 9, 9, 9, 1, 2, 9, 3])  # and of the two that are left
    assert list(forced()) == [4, 5]
    pushed([9, 9, 1, 2])
    assert list(forced()) == [3, 4, 5]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(logit_bias={300: 1.0}), "logit_bias .* vocabulary of 300"),
        (Rules(logit_bias={-1: 1.0}), "logit_bias .* vocabulary of 300"),
        (Rules(thinking_budget=3), "no thinking_end"),
        (Rules(grammar_after=[999]), "grammar_after"),
    ],
)
def test_rules_that_fit_no_model_are_refused(
    rules: Rules, says: str, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match=says):
        engine.add("bad", asked(tokenizer, rules))


MARKS = st.lists(st.sampled_from([60, 61, 62, 256]), max_size=3)


@settings(max_examples=80, deadline=None)
@given(
    grammar=st.sampled_from(["", 'start: "ab"* | "c"', 'start: "<"? /[=>]{2,4}/']),
    after=MARKS,
    begin=MARKS,
    end=MARKS.filter(bool),
    budget=st.one_of(st.none(), st.integers(0, 6)),
    thinks=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_some_token_may_always_be_drawn_and_what_was_drawn_says_which(
    grammar: str,
    after: list[int],
    begin: list[int],
    end: list[int],
    budget: int | None,
    thinks: bool,
    seed: int,
    request: pytest.FixtureRequest,
) -> None:
    """Of few tokens, so that marks come about, whole and in part, in places that nobody expects."""
    tokenizer = request.getfixturevalue("tokenizer")
    rules = Rules(
        logit_bias={60: 2.0},
        grammar=grammar,
        grammar_after=after,
        thinking_begin=begin,
        thinking_end=end,
        thinking_budget=budget,
        thinks=thinks,
    )
    guides, rng = Guides(tokenizer, SIZE), np.random.default_rng(seed)
    asks = asked(tokenizer, rules)
    guide, drawn, rows = guides.open(asks), list[int](), list[torch.Tensor]()
    likely = torch.full((1, SIZE), -20.0)
    likely[0, [60, 61, 62, 64, 65, 66, 256]] = 0.0
    for _ in range(25):
        assert guide is not None
        row = apply(likely.clone(), [guide])[0]
        assert row.isfinite().any() and not row.isnan().any()
        rows.append(row)
        drawn.append(int(rng.choice(SIZE, p=row.double().softmax(0).numpy())))
        guide.push(drawn[-1])
        assert not guide.broken
    for at in (1, 7, 24):
        again = guides.open(replace(asks, drawn=[Segment(drawn[:at], [0.0] * at, 0)]))
        assert apply(likely.clone(), [again])[0].equal(rows[at])


# Alternatives


def test_alternatives_are_the_best_of_the_distribution_that_was_drawn_from(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    asks = [
        asked(tokenizer, Rules(top_logprobs=5), tokens=8, problem_id="a"),
        asked(
            tokenizer,
            Rules(top_logprobs=3, logit_bias={65: 4.0}),
            problem_id="b",
            sampling=Sampling(temperature=0.5, max_tokens=8),
        ),
        asked(
            tokenizer,
            Rules(top_logprobs=64),
            problem_id="c",
            sampling=Sampling(top_k=4, max_tokens=8),
        ),
        asked(
            tokenizer,
            Rules(top_logprobs=2),
            problem_id="d",
            sampling=Sampling(temperature=0, max_tokens=8),
        ),
        asked(tokenizer, Rules(), tokens=8, problem_id="e"),
    ]
    told: dict[str, list[Progress]] = {}
    for request in asks:
        engine.add(request.problem_id, request)
    while engine.pending:
        for progress in engine.step():
            told.setdefault(progress.name, []).append(progress)
    for request in asks:
        found = told[request.problem_id]
        done = found[-1].completion
        assert done is not None
        if request.problem_id == "e":
            assert all(not each.top for each in found)
            continue
        scores = engine.score([*request.prompt_tokens, *done.tokens], top_k=SIZE)
        rows = scores.top[len(request.prompt_tokens) - 1 :]
        for progress, row in zip(found, rows, strict=True):
            ((token,), (logprob,), (top,)) = progress.tokens, progress.logprobs, progress.top
            logits = torch.full((SIZE,), -torch.inf)
            for index, value in row:
                logits[index] = value + request.rules.logit_bias.get(index, 0.0)
            logits /= request.sampling.temperature or 1.0
            if request.sampling.top_k:
                logits[logits < logits.topk(4).values[-1]] = -torch.inf
            exact = logits.log_softmax(0)
            count = min(request.rules.top_logprobs, request.sampling.top_k or SIZE)
            best = exact.topk(count)
            assert [index for index, _ in top] == best.indices.tolist()
            assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert logprob == pytest.approx(exact[token].item(), abs=1e-4)
            assert dict(top).get(token, logprob) == logprob
