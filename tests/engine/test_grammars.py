"""Grammars on the torch engine, with a token per byte: kept to, refused, given up, shared."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided import GRAMMAR, SIZE, asked, of_schema, one

from interlock.engine import grammars
from interlock.engine.grammars import KEPT, Grammars, words
from interlock.engine.guides import Guides
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ConfigError
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Sampling
from interlock.records.serving import Rules

pytestmark = pytest.mark.usefixtures("nothing_is_left")


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
    assert found.finish is FinishReason.BROKEN and found.tokens[-1] in tokenizer.eos_ids
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


def test_an_end_token_that_the_tokenizer_has_not_takes_no_grammar_away(
    model: Path, tokenizer: Tokenizer
) -> None:
    """As a generation_config.json names one: a row of the embedding that stands for no token."""
    known, beyond = tokenizer.eos_ids, tokenizer.vocab_size + 7
    assert beyond < SIZE
    padded = Tokenizer.load(model)
    padded.eos_ids = known | {beyond}
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    for ends in (known, padded.eos_ids):
        padded.eos_ids = ends
        found = one(PortableEngine(decoder, padded, slots=2), asked(padded, Rules(grammar=GRAMMAR)))
        assert found.finish is FinishReason.STOP and found.tokens[-1] in known
        assert set(json.loads(found.text)) == {"name", "age", "likes"}
    padded.eos_ids = frozenset({beyond})
    with pytest.raises(ConfigError, match="no end token that its tokenizer knows"):
        Grammars(padded, SIZE).matcher(GRAMMAR)


def test_without_llguidance_the_remedy_is_named(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'interlock\[serve\]'"):
        Guides(tokenizer, SIZE).check(asked(tokenizer, Rules(grammar='start: "a"')))
