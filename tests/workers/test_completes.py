"""What a real worker draws token by token, beside whatever else it is asked."""

from pathlib import Path
from typing import Any

import pytest
from byte_model import make_model, write_tokenizer
from msgspec.structs import replace
from real_workers import RealWorker, Weights

from interlock.engine.base import Request
from interlock.engine.grammars import Grammars
from interlock.errors import ConfigError, TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Problem, Sampling, Segment
from interlock.records.serving import Generation, Rules
from interlock.workers import protocol, sizes
from interlock.workers.protocol import (
    Abort,
    Answered,
    Brought,
    Complete,
    Drawn,
    Failed,
    Failure,
    Generate,
    Loaded,
    Opened,
    Prompted,
    Scored,
    ScoreTexts,
    Stretch,
)

ENDLESS = Rules(ignore_eos=True)


@pytest.fixture
def worker(weights: Weights) -> RealWorker:
    made = RealWorker()
    made.ask(weights.open())
    made.turn()
    return made


def asked(number: int, max_tokens: int = 5, version: int = 0, **changes: Any) -> Complete:
    generation = Generation([1, 2, number], Sampling(max_tokens=max_tokens), number, rules=ENDLESS)
    return Complete(version, replace(generation, **changes), id=number)


def told(worker: RealWorker, ask: int, choice: int = 0) -> list[Stretch]:
    drawn = [each for said in worker.said if isinstance(said, Drawn) for each in said.stretches]
    return [each for each in drawn if (each.ask, each.number) == (ask, choice)]


def tokens(worker: RealWorker, ask: int, choice: int = 0) -> list[int]:
    return [token for each in told(worker, ask, choice) for token in each.tokens]


def of(worker: RealWorker, kind: type) -> list[Any]:
    return [each for each in worker.said if isinstance(each, kind)]


def alone(worker: RealWorker, complete: Complete) -> list[list[int]]:
    """What the engine draws for it with nothing beside."""
    given = complete.generation
    request = Request(
        given.noise,
        given.prompt,
        given.choices,
        given.sampling,
        given.seed,
        rules=given.rules,
        first=given.first,
    )
    return [each.tokens for each in worker.engine.generate([request])[0]]


def test_one_message_a_step_tells_what_was_drawn_for_all(worker: RealWorker) -> None:
    completes = [asked(2), asked(3, choices=2), asked(4)]
    worker.ask(*completes)
    worker.finish()
    drawn = of(worker, Drawn)
    assert max(len(each.stretches) for each in drawn) == 4
    assert sum(len(each.stretches) for each in drawn) == 4 * 5
    assert len(drawn) < 4 * 5 / 2
    assert {each.version for each in drawn} == {0}
    for complete in completes:
        wanted = alone(worker, complete)
        found = [tokens(worker, complete.id, n) for n in range(complete.generation.choices)]
        assert found == wanted
        assert told(worker, complete.id)[-1].finish is FinishReason.LENGTH
        assert {each.finish for each in told(worker, complete.id)[:-1]} == {None}


def test_beside_a_generate(worker: RealWorker) -> None:
    problem = Problem("p", [{"role": "user", "content": "hello"}], "")
    worker.ask(Generate(0, [problem], 3, Sampling(max_tokens=7), 1, id=2), asked(3, 9))
    worker.finish()
    assert len(of(worker, Answered)) == 1
    assert tokens(worker, 3) == alone(worker, asked(3, 9))[0]


def test_one_that_cannot_be_served_fails_alone(worker: RealWorker) -> None:
    worker.ask(asked(2), asked(3, 10_000), asked(4))
    worker.finish()
    (failed,) = of(worker, Failed)
    assert (failed.ids, failed.kind) == ([3], Failure.MISTAKE)
    assert [len(tokens(worker, ask)) for ask in (2, 3, 4)] == [5, 0, 5]


def test_one_that_is_forgotten_is_not_told_of_again(worker: RealWorker) -> None:
    worker.ask(asked(2, 50), asked(3, 20))
    worker.turn(5)
    before = len(tokens(worker, 2))
    worker.ask(Abort(id=2), Abort(id=77))
    worker.finish()
    assert 0 < before < 50
    assert len(tokens(worker, 2)) == before
    assert len(tokens(worker, 3)) == 20
    assert worker.engine.pending == 0


def test_going_on_behind_what_was_drawn_draws_the_same(worker: RealWorker) -> None:
    worker.ask(asked(2, 12, choices=3))
    worker.finish()
    whole = told(worker, 2, 1)
    begun = [token for each in whole[:5] for token in each.tokens]
    logprobs = [value for each in whole[:5] for value in each.logprobs]
    rest = asked(2, 12, first=1, drawn=[Segment(begun, logprobs, 0)])
    worker.ask(replace(rest, id=3))
    worker.finish()
    assert begun + tokens(worker, 3, 1) == tokens(worker, 2, 1)
    assert told(worker, 3, 1)[-1].finish is FinishReason.LENGTH


def test_the_prompt_s_scores_come_first(worker: RealWorker) -> None:
    worker.ask(asked(2, prompt_logprobs=2, rules=replace(ENDLESS, top_logprobs=3)))
    worker.finish()
    kinds = [type(each) for each in worker.said if isinstance(each, Prompted | Drawn)]
    assert kinds == [Prompted] + [Drawn] * 5
    (prompted,) = of(worker, Prompted)
    scores = worker.engine.score([1, 2, 2], 2)
    assert prompted.logprobs == pytest.approx(scores.logprobs, abs=1e-6)
    assert [[t for t, _ in each] for each in prompted.top] == [
        [t for t, _ in each] for each in scores.top
    ]
    for stretch in told(worker, 2):
        assert [len(each) for each in stretch.top] == [3]


def test_scores_come_with_alternatives(worker: RealWorker) -> None:
    worker.ask(ScoreTexts([[1, 2, 3], [4, 5]], top_k=2, id=2))
    worker.finish()
    (scored,) = of(worker, Scored)
    assert [len(each) for each in scored.top] == [2, 1]
    assert all(len(token) == 2 for text in scored.top for token in text)


def test_weights_wait_for_what_runs_under_the_old_ones(
    worker: RealWorker, weights: Weights
) -> None:
    weights.publish(1)
    worker.ask(asked(2, 30))
    worker.turn(3)
    worker.ask(replace(weights.load(1, 3), drained=True))
    worker.turn()
    worker.fetched()
    worker.turn()
    assert [each.id for each in of(worker, Brought)] == [3]
    worker.ask(asked(4, 5))  # was on its way
    worker.finish()
    assert (len(tokens(worker, 2)), len(tokens(worker, 4))) == (30, 5)
    drawn = of(worker, Drawn)
    assert {each.version for each in drawn} == {0}
    assert [each.number for each in of(worker, Loaded)] == [1]
    assert worker.said.index(of(worker, Loaded)[0]) > worker.said.index(drawn[-1])
    worker.ask(asked(5, 4, version=1), asked(6, 4, version=0))
    worker.finish()
    assert {each.version for each in of(worker, Drawn)[len(drawn) :]} == {1}
    assert len(tokens(worker, 5)) == 4
    (failed,) = of(worker, Failed)
    assert (failed.ids, failed.kind) == ([6], Failure.FAULT)


def test_weights_are_loaded_at_once_where_nothing_runs(
    worker: RealWorker, weights: Weights
) -> None:
    weights.publish(1)
    worker.ask(replace(weights.load(1, 3), drained=True))
    worker.turn()
    worker.fetched()
    worker.finish()
    assert [type(each) for each in of(worker, Brought | Loaded)] == [Brought, Loaded]


def test_what_an_engine_gives_up_is_named(worker: RealWorker) -> None:
    worker.ask(asked(2, 50), asked(3, 50))
    worker.turn(3)

    def broken() -> None:
        raise TrainingError("the logits are not finite")

    worker.engine.step = broken  # type: ignore[method-assign, assignment]
    worker.turn()
    (failed,) = of(worker, Failed)
    assert (sorted(failed.ids), failed.kind) == ([2, 3], Failure.FAULT)


def test_no_step_says_more_than_it_may() -> None:
    worst, most = -1.2345678901234567e300, 64
    rules = Rules(top_logprobs=20)
    generation = Generation([1], Sampling(max_tokens=10**6), 0, rules=rules, choices=8)
    top = [[(2**31 - 1, worst)] * 20] * most
    stretches = [
        Stretch(2**31, 2**31, [2**31 - 1] * most, [worst] * most, FinishReason.LENGTH, 2**31, top)
        for _ in range(8)
    ]
    size = len(protocol.encode(Drawn(2**31, stretches)))
    room = sizes.step_bytes(generation)
    assert size - 100 < room < 1.5 * size


def test_nor_do_the_scores_of_a_prompt() -> None:
    worst = -1.2345678901234567e300
    generation = Generation([1] * 5000, Sampling(max_tokens=1), 0, prompt_logprobs=8)
    said = Prompted([worst] * 4999, [[(2**31 - 1, worst)] * 8] * 4999, id=2**31)
    size = len(protocol.encode(said))
    room = sizes.step_bytes(generation)
    assert size - 100 < room < 1.5 * size


def test_what_one_key_asked_another_key_does_not_find(weights: Weights) -> None:
    worker = RealWorker()
    opened = weights.open()
    worker.ask(replace(opened, settings=replace(opened.settings, prefix_cache_mb=64)))
    worker.turn()
    prompt = list(range(1, 41))  # two blocks of 16 tokens, and some
    for number, key in ((1, "key-1"), (2, "key-2"), (3, "key-1")):
        worker.ask(asked(number, prompt=prompt, key=key))
        worker.finish()
    assert [told(worker, number)[0].cached for number in (1, 2, 3)] == [0, 0, 32]


def test_a_vocabulary_is_read_for_grammars_before_a_worker_that_serves_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path)
    weights = Weights(make_model(tmp_path), tmp_path / "store")
    worker, read = RealWorker(), []
    plain = Grammars._read

    def counted(grammars: Grammars, library: Any) -> Any:
        read.append(len(worker.raw))
        return plain(grammars, library)

    monkeypatch.setattr(Grammars, "_read", counted)
    worker.ask(replace(weights.open(), serves=True))
    worker.turn()
    assert read == [0], "before it said anything"
    worker.ask(asked(2, rules=Rules(grammar='start: "ab"')))
    worker.finish()
    assert tokens(worker, 2)[:2] == Tokenizer.load(tmp_path).encode("ab")
    assert read == [0]


def test_a_worker_that_does_not_serve_reads_no_vocabulary(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grammars, "_read", lambda *_: pytest.fail("read"))
    worker = RealWorker()
    worker.ask(weights.open())
    worker.turn()
    assert of(worker, Opened)


def test_a_vocabulary_without_grammars_opens_all_the_same(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise ConfigError("grammars cannot be used with this model's tokenizer")

    monkeypatch.setattr(Grammars, "_read", refused)
    worker = RealWorker()
    worker.ask(replace(weights.open(), serves=True))
    worker.ask(asked(2, rules=Rules(grammar='start: "ab"')), asked(3))
    worker.finish()
    (failed,) = of(worker, Failed)
    assert failed.ids == [2] and "cannot be used" in failed.reason
    assert len(tokens(worker, 3)) == 5
