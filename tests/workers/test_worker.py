"""The worker's loop with a real engine: what joins, what is answered when, what new weights do."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from draws import Drawn, assert_drawn
from real_workers import CANARY, SETTINGS, SLOTS, RealWorker, Weights
from rounding import allowed, assert_close, in_both
from scripted_pool import NPU, make_certificate

from interlock.chips import certificates
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import SyncError, TrainingError, UserError
from interlock.mismatch import mismatch
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.replay import Replay
from interlock.records.rl import Completion, Problem, Sampling
from interlock.records.trust import Stack
from interlock.workers import protocol, worker
from interlock.workers.generator import open_generator
from interlock.workers.generators import Purpose, Work
from interlock.workers.protocol import (
    Abort,
    Answered,
    Applied,
    Apply,
    Failed,
    Failure,
    Generate,
    Loaded,
    Opened,
    Record,
    Recorded,
    Room,
    Scored,
    ScoreTexts,
    Take,
    Taken,
    Text,
    Trace,
    Traced,
    Weigh,
    Weighed,
    Where,
)
from interlock.workers.replies import refusal

SEED = 6


def problem(name: str) -> Problem:
    return Problem(name, [{"role": "user", "content": f"Tell me of {name}."}], "")


def generate(ask: int, *names: str, number: int = 0, **more: Any) -> Generate:
    rule = Sampling(max_tokens=more.pop("tokens", 60))
    problems = [problem(name) for name in names]
    return Generate(number, problems, more.pop("completions", 1), rule, SEED, id=ask, **more)


@pytest.fixture
def opened(weights: Weights) -> RealWorker:
    own = RealWorker()
    own.ask(weights.open())
    own.turn()
    own.watch()
    return own


def answered(own: RealWorker) -> list[Answered]:
    return [said for said in own.said if isinstance(said, Answered)]


def completions(own: RealWorker, ask: int) -> list[Completion]:
    """One of each problem, in the order of the problems."""
    found = {said.index: said.completions[0] for said in answered(own) if said.id == ask}
    return [found[place] for place in sorted(found)]


def test_it_opens_tells_its_room_and_answers_each_problem_as_it_is_finished(
    opened: RealWorker, chatty: Path
) -> None:
    first, room = opened.said
    assert isinstance(first, Opened) and first.id == 1 and first.device == "cpu"
    assert room == Room(SLOTS + SLOTS // 4, after=0)
    names = [f"n{index}" for index in range(SLOTS)]
    opened.ask(generate(7, *names))
    opened.finish()
    lengths = [len(said.completions[0].tokens) for said in answered(opened)]
    assert lengths == sorted(lengths) and len(set(lengths)) >= 4, "short before long"
    assert sum(lengths) > 2 * min(lengths) * SLOTS
    expected = open_generator(SETTINGS, chatty, None, "w").generate(
        [problem(name) for name in names], 1, Sampling(max_tokens=60), SEED
    )
    drawn = completions(opened, 7)
    assert [each.segments for each in drawn] == [g.completions[0].segments for g in expected]
    assert {each.text for each in drawn} == {""}, "the learner reads the tokens itself"
    for said in answered(opened):
        assert said.prompt_tokens == expected[said.index].prompt_tokens and said.id == 7
    assert opened.said[-1] == Room(SLOTS + SLOTS // 4, after=7)


def test_it_tells_the_sets_that_were_drawn_from_where_it_is_asked(
    opened: RealWorker, chatty: Path
) -> None:
    rule, asks = Sampling(max_tokens=20, top_p=0.7), Replay(kept=True)
    ask = msgspec.structs.replace(generate(7, "a", "b"), sampling=rule, replay=asks)
    opened.ask(ask)
    opened.finish()
    expected = open_generator(SETTINGS, chatty, None, "w").generate(
        ask.problems, 1, rule, SEED, replay=asks
    )
    assert [each.segments for each in completions(opened, 7)] == [
        group.completions[0].segments for group in expected
    ]
    work = Work(Purpose.TRAIN, (0, 1), tuple(ask.problems), 1, rule, SEED, False, replay=asks)
    for said in answered(opened):
        assert refusal(said, work, expected[said.index].prompt_tokens, [0], 600) is None


def test_callers_join_in_the_middle_and_get_what_they_would_get_alone(
    opened: RealWorker, weights: Weights
) -> None:
    opened.ask(generate(2, "a", "b", "c", completions=2))
    opened.turn(5)
    opened.ask(generate(3, "d", tokens=12))
    opened.turn(2)
    opened.ask(generate(4, "e", "f", completions=3))
    opened.finish()
    assert {said.id for said in answered(opened)} == {2, 3, 4}
    for said in answered(opened):
        name = {2: "abc", 3: "d", 4: "ef"}[said.id][said.index]
        for number, own in enumerate(said.completions):
            rule = Sampling(max_tokens=12 if said.id == 3 else 60)
            check_plain(weights, said.prompt_tokens, name, number, own, rule)


def check_plain(
    weights: Weights, prompt: list[int], name: str, number: int, own: Completion, rule: Sampling
) -> None:
    """Every token is that of the plain loop under the weights that its segment names."""
    request = Request(name, prompt, number + 1, rule, SEED)
    begun: list[int] = []
    for segment in own.segments:
        assert segment.weight_version is not None
        decoder = weights.decoder(segment.weight_version)
        tokens, logprobs = segment.tokens, segment.logprobs
        assert_drawn([Drawn(decoder, request, number, tokens, logprobs, begun)])
        begun = begun + segment.tokens


def test_an_exact_unit_has_the_bits_of_a_generator_called_directly(
    opened: RealWorker, chatty: Path
) -> None:
    """More sequences than slots, behind other work that is done: all of it is the same again."""
    names = [f"n{index}" for index in range(9)]
    opened.ask(generate(2, "x", "y"))
    opened.finish()
    opened.ask(generate(3, *names, completions=4, exact=True))
    opened.finish()
    whole = open_generator(SETTINGS, chatty, None, "w").generate(
        [problem(name) for name in names], 4, Sampling(max_tokens=60), SEED
    )
    found = {said.index: said.completions for said in answered(opened) if said.id == 3}
    drawn = [[each.segments for each in found[index]] for index in range(9)]
    assert drawn == [[each.segments for each in group.completions] for group in whole]


def test_it_says_when_it_could_take_more(opened: RealWorker) -> None:
    """Its slots and a quarter of them; what it was told of since is the coordinator's to count."""
    opened.ask(generate(2, *(f"n{index}" for index in range(6))))
    opened.turn()
    opened.ask(generate(3, *(f"m{index}" for index in range(9))))
    opened.finish()
    known, left, asked = 10, 0, {0: 0, 2: 6, 3: 9}
    told = [said for said in opened.said if isinstance(said, Room | Answered)][1:]
    last = 0
    for said in told:
        if isinstance(said, Answered):
            left -= 1
            continue
        heard = sum(count for ask, count in asked.items() if last < ask <= said.after)
        known, left, last = known - heard, left + heard, said.after
        assert said.sequences == 10 - left > max(known, 0)
        known = said.sequences
    assert told[-1] == Room(10, after=3) and left == 0 and len(told) > 15


def canary_logprobs(decoder: Decoder) -> torch.Tensor:
    tokens = torch.tensor(CANARY.text)
    attend = causal(len(tokens), tokens.device)
    logits = decoder.logits(decoder(tokens, attend.positions, attend))
    return logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


def test_new_weights_are_loaded_under_what_runs(opened: RealWorker, weights: Weights) -> None:
    """The loop goes on while they are fetched and while they are proven."""
    names = [f"n{index}" for index in range(SLOTS)]
    opened.ask(generate(2, *names, tokens=200))
    opened.turn(6)
    opened.ask(weights.load(5, ask=3))
    opened.turn()
    opened.fetched()
    before = len(opened.busy)
    opened.turn(3)
    assert opened.engine.version == 5 and len(opened.busy) == before + 3
    opened.finish()
    (proof,) = (said for said in opened.said if isinstance(said, Loaded))
    assert (proof.number, proof.id, proof.digest) == (5, 3, weights.versions[5].digest)
    exact, plain = in_both(weights.decoder(5), canary_logprobs)
    assert_close(proof.text, exact, plain)
    assert mismatch(weights.target(0).text, proof.text).k3 > 0.1, "the versions differ"
    assert proof.decode == pytest.approx(proof.prefill, abs=2 * allowed(exact, plain).max().item())
    assert len(CANARY.prompts) <= len(proof.decode) <= len(CANARY.prompts) * CANARY.tokens
    mixed = 0
    for name, said in zip(names, sorted(answered(opened), key=lambda s: s.index), strict=True):
        (own,) = said.completions
        assert own.weight_versions in ([0], [0, 5])
        check_plain(weights, said.prompt_tokens, name, 0, own, Sampling(max_tokens=200))
        mixed += own.weight_versions == [0, 5]
    assert mixed >= 2


def test_what_is_finished_before_the_proof_comes_behind_it(
    opened: RealWorker, weights: Weights
) -> None:
    names = [f"n{index}" for index in range(SLOTS - 1)]
    opened.ask(generate(2, *names, tokens=40))
    opened.turn(2)
    load = weights.load(5, ask=3)
    opened.ask(load)
    opened.turn()
    opened.fetched()
    opened.finish()
    kinds = [type(said) for said in opened.said]
    proven = kinds.index(Loaded)
    for place, said in enumerate(opened.said):
        if isinstance(said, Answered):
            versions = said.completions[0].weight_versions
            assert (5 in versions) <= (place > proven)
    # While it was being proven some were finished: they were sent at once behind it.
    assert kinds[proven + 1] is Answered


def test_the_proof_takes_the_first_slots_that_fall_free(
    opened: RealWorker, weights: Weights
) -> None:
    """Whatever waits."""
    opened.ask(generate(2, *(f"n{index}" for index in range(40)), tokens=30))
    opened.turn(2)
    opened.ask(weights.load(5, ask=3))
    opened.turn()
    opened.fetched()
    opened.finish()
    place = next(i for i, said in enumerate(opened.said) if isinstance(said, Loaded))
    later = [said for said in opened.said[place:] if isinstance(said, Answered)]
    assert len(later) >= 20


def test_weights_that_cannot_be_fetched_leave_what_runs_alone(
    opened: RealWorker, weights: Weights, tmp_path: Path
) -> None:
    load = weights.load(5, ask=3)
    for payload in (tmp_path / "store").glob("*.anchor"):
        payload.unlink()
    opened.ask(generate(2, "a", "b"), load)
    opened.turn()
    opened.fetched()
    opened.finish()
    (failed,) = (said for said in opened.said if isinstance(said, Failed))
    assert failed.kind is Failure.LINK and failed.ids == [3]
    assert [own.weight_versions for own in completions(opened, 2)] == [[0], [0]]


def test_weights_that_are_not_finite_lose_all_that_runs_and_good_ones_mend_it(
    opened: RealWorker, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = weights.decoder

    def broken(number: int) -> Any:
        decoder = honest(number)
        if number == 5:
            with torch.no_grad():
                decoder.norm.weight.fill_(torch.nan)
        return decoder

    monkeypatch.setattr(weights, "decoder", broken)
    opened.ask(generate(2, "a", "b"))
    opened.turn(3)
    opened.ask(weights.load(5, ask=3))
    opened.turn()
    opened.fetched()
    opened.ask(generate(4, "c"))
    opened.finish()
    failed = [said for said in opened.said if isinstance(said, Failed)]
    assert failed[0].kind is Failure.FAULT and sorted(failed[0].ids) == [2, 3, 4]
    assert "weight version 5 are not finite" in failed[0].reason
    opened.ask(generate(6, "d", number=5))  # sent before that was heard of
    opened.finish()
    last = opened.said[-2]
    assert last == Failed("its weights are not proven", Failure.FAULT, [6])
    assert answered(opened) == []
    opened.ask(weights.load(7, ask=8))
    opened.turn()
    opened.fetched()
    opened.finish()
    opened.ask(generate(9, "d", number=7))
    opened.finish()
    assert [own.weight_versions for own in completions(opened, 9)] == [[7]]


def test_an_engine_that_cannot_score_has_proven_nothing(
    opened: RealWorker, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished meanwhile is lost with the proof."""

    def score(*_: Any) -> Any:
        raise TrainingError("device error 507035")

    monkeypatch.setattr(PortableEngine, "score", score)
    opened.ask(generate(2, "a", tokens=2), generate(4, "b", tokens=60))
    opened.ask(weights.load(5, ask=3))
    opened.turn(1)
    opened.fetched()
    opened.finish()
    failed = [said for said in opened.said if isinstance(said, Failed)]
    assert len(failed) == 1 and failed[0].reason == "device error 507035"
    told = {said.id for said in answered(opened)}
    assert set(failed[0].ids) | told == {2, 3, 4} and not told & set(failed[0].ids)
    assert not opened.engine.pending


def test_one_that_asks_for_too_much_disturbs_nobody(opened: RealWorker) -> None:
    long = Problem("long", [{"role": "user", "content": "x" * 600}], "")
    bad = generate(3, "b")
    opened.ask(generate(2, "a"))
    opened.turn(3)
    opened.ask(Generate(0, [*bad.problems, long], 1, bad.sampling, SEED, id=3))
    opened.finish()
    (failed,) = (said for said in opened.said if isinstance(said, Failed))
    assert failed.kind is Failure.MISTAKE and failed.ids == [3]
    assert "context of 512" in failed.reason
    assert {said.id for said in answered(opened)} == {2}


def test_other_weights_than_were_asked_for_answer_nothing(
    opened: RealWorker, weights: Weights
) -> None:
    opened.ask(weights.load(5, ask=2))
    opened.turn()
    opened.fetched()
    opened.finish()
    opened.ask(generate(3, "a", number=6), generate(4, "b", number=4, exact=True))
    opened.finish()
    failed = [said for said in opened.said if isinstance(said, Failed)]
    assert [(each.kind, each.ids) for each in failed] == [
        (Failure.FAULT, [3]),
        (Failure.FAULT, [4]),
    ]
    assert failed[0].reason == "asked for version 6, but it serves 5"
    opened.ask(generate(5, "c", number=4), generate(6, "c", number=5))  # or a later one
    opened.finish()
    assert completions(opened, 5) == completions(opened, 6)


def test_what_is_aborted_is_not_heard_of_again(opened: RealWorker, chatty: Path) -> None:
    opened.ask(generate(2, "a", "b", completions=4), generate(3, *(f"n{i}" for i in range(9))))
    opened.turn(2)
    opened.ask(Abort(id=2), Abort(id=99))
    opened.finish()
    assert {said.id for said in answered(opened)} == {3} and len(completions(opened, 3)) == 9
    place = next(i for i, each in enumerate(opened.said) if isinstance(each, Room) and each.after)
    left = 9 - sum(isinstance(each, Answered) for each in opened.said[:place])
    assert opened.said[place] == Room(10 - left, after=3), "its room is free at once"
    opened.ask(generate(4, "c"))
    opened.ask(Abort(id=4))  # before it began
    opened.finish()
    assert {said.id for said in answered(opened)} == {3}


def test_it_shows_its_inside_between_two_steps(opened: RealWorker, chatty: Path) -> None:
    """And what runs does not notice."""
    names = [f"n{index}" for index in range(SLOTS)]
    opened.ask(generate(2, *names, exact=True))
    opened.turn(3)
    text = Text([1, 2, 3], [4, 5], decode=True)
    where = Where(1, "embed", "layers.0.attention_norm")
    opened.ask(Weigh(id=3), ScoreTexts([[1, 2, 3], [4, 5]], id=4), Trace(text, "", "", id=5))
    opened.ask(Record(text, "", "", where, id=6), Take(0, id=7))
    opened.turn()
    told: dict[int, Any] = {said.id: said for said in opened.said if hasattr(said, "id")}
    assert isinstance(told[3], Weighed) and {t.error for t in told[3].tensors.values()} == {0.0}
    expected = [opened.engine.score(each).logprobs for each in ([1, 2, 3], [4, 5])]
    assert isinstance(told[4], Scored) and told[4].logprobs == expected
    assert isinstance(told[5], Traced) and told[5].points[:2] == ["angles", "embed"]
    assert isinstance(told[6], Recorded) and len(told[6].names) == 1
    assert isinstance(told[7], Taken) and "norm" in told[7].operator.name
    opened.ask(Apply(told[7].operator, exact=True, id=8))
    opened.turn()
    (applied,) = (said for said in opened.said if isinstance(said, Applied))
    assert applied.error == "" and applied.id == 8
    opened.finish()
    whole = open_generator(SETTINGS, chatty, None, "w").generate(
        [problem(name) for name in names], 1, Sampling(max_tokens=60), SEED
    )
    found = [each.segments for each in completions(opened, 2)]
    assert found == [group.completions[0].segments for group in whole]


@pytest.fixture
def cabinet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path))
    return tmp_path


def test_it_shows_what_is_filed(cabinet: Path) -> None:
    assert worker._filed(NPU) is None
    certificates.keep(make_certificate())
    assert worker._filed(NPU) == make_certificate()
    assert worker._filed(Stack("cpu")) is None


def test_a_damaged_file_is_no_certificate_and_says_why(
    cabinet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certificates.keep(make_certificate())
    assert path is not None
    path.write_text("{")
    assert worker._filed(NPU) is None
    told = capsys.readouterr().err
    assert told.startswith("no certificate to show: ") and f"{path} is no certificate" in told


def test_a_failure_is_one_line_and_says_what_can_be_done_about_it() -> None:
    assert protocol.failed(UserError("a\n b"), [3]) == Failed("a b", Failure.MISTAKE, [3])
    assert protocol.failed(SyncError("a"), []) == Failed("a", Failure.LINK, [])
    assert protocol.failed(TrainingError("a"), [1]) == Failed("a", Failure.FAULT, [1])
    assert len(protocol.failed(TrainingError("a" * 10**7), [1]).reason) == 2000
