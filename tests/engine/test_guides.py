"""Logit bias, grammars and thinking budgets on the torch engine, with a token per byte."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import byte_model
import numpy as np
import pytest
import torch
from llguidance import LLMatcher

from interlock.engine import grammars
from interlock.engine.base import Progress, Request
from interlock.engine.grammars import KEPT, Grammars, words
from interlock.engine.guides import Guides, apply
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.schedule import Schedule
from interlock.errors import ConfigError
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, FinishReason, Sampling, Segment
from interlock.records.serving import Rules

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SIZE = 300  # the model's vocabulary: 256 bytes, the end token, and rows of no token


def of_schema(schema: object) -> str:
    compact = {"whitespace_flexible": False} if isinstance(schema, dict) else None
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)


GRAMMAR = of_schema(SCHEMA)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = byte_model.make_model(tmp_path_factory.mktemp("model"))
    byte_model.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)


@pytest.fixture(scope="module")
def engine(model: Path, tokenizer: Tokenizer) -> PortableEngine:
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    return PortableEngine(decoder, tokenizer, slots=8)


@pytest.fixture(autouse=True)
def nothing_is_left(engine: PortableEngine) -> Iterator[None]:
    yield
    left = engine.pending
    engine.abort("bad")
    assert not left


def asked(tokenizer: Tokenizer, rules: Rules, tokens: int = 120, **changes: object) -> Request:
    rule = Sampling(max_tokens=tokens)
    request = Request("p", tokenizer.encode("Who?"), 1, rule, seed=1, rules=rules)
    return replace(request, **changes)


def one(engine: PortableEngine, request: Request) -> Completion:
    return engine.generate([request])[0][0]


def cut(whole: Completion, at: int) -> list[Segment]:
    return [Segment(whole.tokens[:at], whole.logprobs[:at], 0)]


def assert_every_cut_goes_on(engine: PortableEngine, request: Request, whole: Completion) -> None:
    cuts = range(1, len(whole.tokens))
    again = engine.generate([replace(request, drawn=cut(whole, at)) for at in cuts])
    assert [found.tokens for (found,) in again] == [whole.tokens] * len(cuts)
    assert {found.finish for (found,) in again} == {whole.finish}


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


# Grammars


def test_answers_keep_to_their_schema_whatever_the_model_says(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    """A random model: without the grammar none of it is JSON."""
    rules = Rules(grammar=GRAMMAR)
    warm = Sampling(temperature=2.0, max_tokens=120)
    wanted = [asked(tokenizer, rules, seed=n, sampling=warm) for n in range(40)]
    wanted += [asked(tokenizer, rules, sampling=Sampling(temperature=0, max_tokens=120))]
    plain = asked(tokenizer, Rules(), seed=99)
    *found, (free,) = engine.generate([*wanted, plain])
    texts = set()
    for (each,) in found:
        assert each.finish is FinishReason.STOP and each.tokens[-1] in tokenizer.eos_ids
        answer = json.loads(each.text)
        assert list(answer) == ["name", "age", "likes"] and len(answer["name"]) <= 5
        assert 0 <= answer["age"] <= 120 and set(answer["likes"]) <= {"tea", "rain"}
        texts.add(each.text)
    assert len(texts) > 30
    assert free.tokens == one(engine, plain).tokens, "a row saw the rules of its neighbours"


def test_the_answers_to_one_prompt_are_guided_each_on_its_own(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    request = asked(tokenizer, Rules(grammar=GRAMMAR), completions=11, first=2)
    (found,) = engine.generate([request])
    assert len({each.text for each in found}) == 11
    for number, each in enumerate(found):
        assert set(json.loads(each.text)) == {"name", "age", "likes"}
        alone = replace(request, completions=1, first=2 + number)
        assert one(engine, alone).tokens == each.tokens


def test_the_logprobs_are_of_what_the_grammar_left(
    engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    """Against a mask made by hand: `a` or `b`, then the end."""
    found = one(engine, asked(tokenizer, Rules(grammar='start: "a" | "b"', top_logprobs=4)))
    assert len(found.tokens) == 2 and found.text in ("a", "b")
    prompt = tokenizer.encode("Who?")
    every = dict(engine.score([*prompt, 0], top_k=SIZE).top[-1])
    ids = [tokenizer.encode(letter)[0] for letter in "ab"]
    share = torch.tensor([every[token] for token in ids]).log_softmax(0)
    assert found.logprobs[0] == pytest.approx(share[ids.index(found.tokens[0])].item(), abs=1e-5)
    assert found.logprobs[1] == 0.0


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


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#"}, "cannot be used"),
        ({"$ref": "http://127.0.0.1/x"}, "retrieving it failed"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "widget"}, "widget"),
        (False, "schema is false"),
        ({"anyOf": [{"enum": [f"{n}-{m}" for m in range(400)]} for n in range(400)]}, "too big"),
    ],
)
def test_a_grammar_that_cannot_be_kept_is_refused_when_it_is_asked_for(
    schema: object, says: str, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        engine.add("bad", asked(tokenizer, Rules(grammar=of_schema(schema))))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert not engine.pending


@pytest.mark.parametrize("grammar", ["start: (", '{"grammars": []}', "x" * 100_000])
def test_what_is_no_grammar_is_refused(
    grammar: str, engine: PortableEngine, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        engine.add("bad", asked(tokenizer, Rules(grammar=grammar)))


def test_a_grammar_that_gives_up_ends_its_own_sequence_alone(
    engine: PortableEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ambiguous one, whose ways of being read are more with every letter."""
    many = 'start: a a a a a\na: "x" | "y" a | b b\nb: "z" | a "z"'
    other = asked(tokenizer, Rules(grammar=GRAMMAR), seed=7)
    alone = one(engine, other)
    monkeypatch.setitem(grammars.LIMITS, "step_max_items", 40)
    broken, whole = engine.generate([asked(tokenizer, Rules(grammar=many), tokens=200), other])
    assert whole[0].tokens == alone.tokens and whole[0].text == alone.text
    (found,) = broken
    assert found.finish is FinishReason.LENGTH and found.tokens[-1] in tokenizer.eos_ids
    assert 1 < len(found.tokens) < 200 and found.logprobs[-1] == 0.0
    assert set(found.text) <= set("xyz")


def test_a_lexer_that_is_full_is_replaced_under_all_who_read_with_it(
    model: Path, engine: PortableEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of this regular expression double with every letter behind an `a`."""
    bomb = of_schema({"type": "string", "pattern": "^(.*a.{0,200}b)*c$"})
    rules = Rules(grammar=bomb, logit_bias=dict.fromkeys(tokenizer.encode("ab"), 4.0))
    wanted = [asked(tokenizer, rules, tokens=25, seed=seed) for seed in range(8)]
    expected = [found.tokens for (found,) in engine.generate(wanted)]
    assert all(len(tokens) == 25 for tokens in expected)
    monkeypatch.setitem(grammars.LIMITS, "max_lexer_states", 900)
    compiled = list[str]()
    monkeypatch.setattr(Grammars, "_compile", counted(Grammars._compile, compiled))
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    again = PortableEngine(decoder, tokenizer, slots=8).generate(wanted)
    assert [found.tokens for (found,) in again] == expected
    assert 1 < len(compiled) < 8, "anew, and once for all of them"


def counted(compile_: Any, compiled: list[str]) -> Any:
    def counting(self: Grammars, grammar: str) -> Any:
        compiled.append(grammar)
        return compile_(self, grammar)

    return counting


def test_a_grammar_is_compiled_once_for_all_who_ask(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, compiled = Grammars(tokenizer, SIZE), list[str]()
    monkeypatch.setattr(Grammars, "_compile", counted(Grammars._compile, compiled))
    first = kept.matcher(GRAMMAR)
    first.take(tokenizer.encode("{")[0])
    bits = np.zeros((2, words(SIZE)), np.int32)
    first.fill(bits[0])
    again = kept.matcher(GRAMMAR)  # at the beginning, whatever the first has read
    again.fill(bits[1])
    assert compiled == [GRAMMAR]
    flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    assert [np.flatnonzero(row).tolist() for row in flags] == [
        tokenizer.encode('"'),
        tokenizer.encode("{"),
    ]
    others = [f'start: "{n}"' for n in range(KEPT)]
    for each in others:
        kept.matcher(each)
    kept.matcher(others[0])
    kept.matcher(GRAMMAR)
    assert compiled == [GRAMMAR, *others, GRAMMAR]


def test_without_llguidance_the_remedy_is_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'interlock\[serve\]'"):
        Guides(tokenizer, SIZE).check(asked(tokenizer, Rules(grammar='start: "a"')))


# Thinking


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
