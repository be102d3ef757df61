"""What befalls replicas, with scripted workers: who draws what then, to the token."""

import math

import pytest
from scripted_replicas import SETTINGS, TERMS, Replicas, answer_of

from interlock.errors import Overloaded
from interlock.fleet.base import Lost
from interlock.records.rl import FinishReason
from interlock.records.serving import Ended, EndKind, PromptScores, ReplicaState
from interlock.workers.protocol import Alive, Drawn, Failure, Stretch

DONE = Ended(EndKind.DONE)


def test_an_answer_is_told_step_by_step_and_ends() -> None:
    r = Replicas("a").up("a")
    ticket = r.ask(seed=5, choices=2, max_tokens=3)
    r.draw("a", 3)
    assert r.tokens(ticket, 0) == answer_of(5, 0, 3)
    assert r.tokens(ticket, 1) == answer_of(5, 1, 3)
    assert [len(piece.tokens) for piece in r.pieces(ticket)] == [1] * 6
    assert r.ended(ticket) == DONE
    assert {piece.replica for piece in r.pieces(ticket)} == {"a"}
    facts = r.facts("a")
    assert (facts.served, facts.generated_tokens, facts.prompt_tokens) == (1, 6, 3)
    assert (facts.running, facts.outstanding_tokens) == (0, 0)


def test_what_has_no_token_runs_again_and_what_has_some_goes_on_behind_them() -> None:
    r = Replicas("a", "b").up("a", "b")
    r.crew.replicas[1].put_aside = True
    begun, fresh = r.ask(seed=2, choices=2, max_tokens=5), 0
    r.draw("a", 2)
    fresh = r.ask(seed=3, max_tokens=2)
    assert r.seeds("a") == [2, 3]
    r.crew.replicas[1].put_aside = False
    r.hear("a", Lost("signal 9"))
    asked = list(r.streams("b").values())
    assert [(a.generation.seed, a.generation.first, a.generation.choices) for a in asked] == [
        (2, 0, 1),
        (2, 1, 1),
        (3, 0, 1),
    ]
    assert [[s.tokens for s in a.generation.drawn] for a in asked] == [
        [answer_of(2, 0, 2)],
        [answer_of(2, 1, 2)],
        [],
    ]
    r.draw("b", 3)
    for number in (0, 1):
        assert r.tokens(begun, number) == answer_of(2, number, 5)
    assert r.tokens(fresh) == answer_of(3, 0, 2)
    assert r.ended(begun) == Ended(EndKind.DONE, moved=1)
    assert [piece.replica for piece in r.pieces(begun)] == ["a"] * 4 + ["b"] * 6


def test_choices_of_which_none_was_drawn_move_together() -> None:
    r = Replicas("a", "b").up("a", "b")
    ticket = r.ask(choices=3, max_tokens=2)
    first = "a" if r.streams("a") else "b"
    other = "b" if first == "a" else "a"
    r.hear(first, Lost("signal 9"))
    (asked,) = r.streams(other).values()
    assert (asked.generation.first, asked.generation.choices) == (0, 3)
    r.draw(other, 2)
    assert r.ended(ticket) == Ended(EndKind.DONE, moved=1)


KINDS = {
    "silent": "worker_silent",
    "stalled": "worker_late",
    "garbage": "worker_garbage",
    "failed": "worker_failed",
    "token": "worker_garbage",
    "version": "worker_garbage",
}


@pytest.mark.parametrize("how", KINDS)
def test_whatever_befalls_a_replica_its_answers_go_on(how: str) -> None:
    r = Replicas("a", "b").up("a", "b")
    r.crew.replicas[1].put_aside = True
    ticket = r.ask(seed=4, max_tokens=4)
    r.draw("a")
    r.crew.replicas[1].put_aside = False
    (number,) = r.streams("a")
    match how:
        case "silent":
            r.wait(SETTINGS.silence_s + 1, "b")
        case "stalled":
            r.wait(TERMS.stall_s + 1, "a", "b")
        case "garbage":
            r.hear("a", b"\xc1")
        case "failed":
            r.fail("a", number)
        case "token":
            r.hear("a", Drawn(0, [Stretch(number, 0, [100], [-0.5])]))
        case "version":
            r.hear("a", Drawn(1, [Stretch(number, 0, [1], [-0.5])]))
    assert r.facts("a").state in (ReplicaState.RESTARTING, ReplicaState.STARTING)
    assert r.kinds()[-1] == KINDS[how]
    r.draw("b", 3)
    assert r.tokens(ticket) == answer_of(4, 0, 4)
    assert r.ended(ticket) == Ended(EndKind.DONE, moved=1)


BAD = {
    "lengths": Stretch(0, 0, [1], [-0.5, -0.5]),
    "nan": Stretch(0, 0, [1], [math.nan]),
    "positive": Stretch(0, 0, [1], [0.5]),
    "none": Stretch(0, 0, [], []),
    "many": Stretch(0, 0, [1] * 5, [-0.5] * 5),
    "choice": Stretch(0, 1, [1], [-0.5]),
    "endless": Stretch(0, 0, [1] * 4, [-0.5] * 4),
}


@pytest.mark.parametrize("what", BAD)
def test_garbage_is_never_told(what: str) -> None:
    r = Replicas("a").up("a")
    ticket = r.ask(max_tokens=4)
    (number,) = r.streams("a")
    bad = BAD[what]
    r.hear("a", Drawn(0, [Stretch(number, bad.number, bad.tokens, bad.logprobs)]))
    assert r.told[ticket] == []
    assert r.kinds()[-1] == "worker_garbage"


def test_a_restarted_replica_shows_itself_before_it_is_given_anything() -> None:
    r = Replicas("a").up("a")
    ticket = r.ask(seed=6, max_tokens=4)
    r.draw("a", 2)
    r.hear("a", Lost("signal 9"))
    assert r.crew.desk.waiting == 1
    r.wait(1.1)
    assert r.fleet.starts["a"] == 2
    r.open("a")
    assert r.streams("a") == {}
    r.canary("a")
    r.draw("a", 2)
    assert r.tokens(ticket) == answer_of(6, 0, 4)
    assert r.facts("a").restarts == 1


def test_a_request_that_kills_one_replica_after_another_is_given_up() -> None:
    r = Replicas("a", "b", "c", "d").up("a", "b", "c", "d")
    ticket = r.ask()
    for count in range(3):
        (name,) = (name for name in "abcd" if r.streams(name))
        assert r.ended(ticket) is None, count
        r.hear(name, Lost("signal 11"))
    ended = r.ended(ticket)
    assert ended is not None
    assert ended.kind is EndKind.LOST
    assert "3 replicas failed on it" in ended.reason
    assert "signal 11" in ended.reason
    assert sum(r.streams(name) != {} for name in "abcd") == 0
    assert len(r.fleet.alive) == 1


def test_one_that_was_drawn_meanwhile_is_not_to_blame() -> None:
    r = Replicas("a", "b").up("a", "b")
    ticket = r.ask(seed=8, max_tokens=20)
    for life in range(6):  # more than strikes, and fewer in a row than retire a replica
        for name in ("a", "b"):
            if r.streams(name):
                r.draw(name)
                r.hear(name, Lost("signal 9"))
                r.wait(61)
                r.up(name)
                other = r.ask(seed=100 + life, max_tokens=1)
                r.draw("a")
                r.draw("b")
                assert r.ended(other) is not None
    while r.ended(ticket) is None:
        r.draw("a")
        r.draw("b")
    assert r.tokens(ticket) == answer_of(8, 0, 20)


def test_a_suspect_is_alone_until_it_is_drawn() -> None:
    r = Replicas("a", "b", "c").up("a", "b", "c")
    ticket = r.ask(seed=1)
    for _ in range(2):
        (name,) = (name for name in "abc" if r.streams(name))
        r.hear(name, Lost("signal 9"))
    (name,) = (name for name in "abc" if r.streams(name))
    other = r.ask(seed=2)
    assert r.seeds(name) == [1]
    r.draw(name)
    r.attend()
    assert r.seeds(name) == [1, 2]
    r.draw(name, 4)
    assert r.ended(ticket) == Ended(EndKind.DONE, moved=2)
    assert r.ended(other) == DONE


def test_a_mistake_ends_that_request_alone() -> None:
    r = Replicas("a").up("a")
    bad, good = r.ask(seed=1), r.ask(seed=2)
    number = next(n for n, each in r.streams("a").items() if each.generation.seed == 1)
    r.fail("a", number, kind=Failure.MISTAKE)
    assert r.ended(bad) == Ended(EndKind.MISTAKE, "it broke")
    r.draw("a", 4)
    assert r.ended(good) == DONE
    assert r.facts("a").state is ReplicaState.READY


def test_what_one_engine_cannot_serve_another_is_asked() -> None:
    r = Replicas("v", "v2", "t")
    r.engines = {"v": "vllm 1", "v2": "vllm 1"}
    r.up("v", "v2", "t")
    r.handle("t").put_aside = r.handle("v2").put_aside = True
    ticket = r.ask(seed=7)
    r.handle("t").put_aside = r.handle("v2").put_aside = False
    r.fail("v", *r.streams("v"), kind=Failure.MISTAKE)
    assert (r.seeds("v"), r.seeds("v2"), r.seeds("t")) == ([], [], [7])
    r.draw("t", 4)
    assert r.tokens(ticket) == answer_of(7, 0, 4)
    assert r.ended(ticket) == DONE
    assert r.facts("v").state is ReplicaState.READY


def test_what_no_engine_can_serve_is_a_mistake() -> None:
    r = Replicas("v", "t")
    r.engines = {"v": "vllm 1"}
    r.up("v", "t")
    ticket = r.ask(seed=7)
    for _ in range(2):
        (name,) = (name for name in "vt" if r.streams(name))
        r.fail(name, *r.streams(name), kind=Failure.MISTAKE)
    assert r.ended(ticket) == Ended(EndKind.MISTAKE, "it broke")


def test_a_grammar_that_gives_up_ends_its_request_and_blames_no_replica() -> None:
    r = Replicas("a", "b").up("a", "b")
    r.handle("b").put_aside = True
    bad, good = r.ask(seed=1, choices=2, rules={"grammar": "g"}), r.ask(seed=2)
    r.draw("a")
    number = next(n for n, each in r.streams("a").items() if each.generation.seed == 1)
    broken = Stretch(number, 1, [9], [0.0], FinishReason.BROKEN)
    r.hear("a", Drawn(0, [broken, Stretch(number, 0, [5], [-0.5])]))
    ended = r.ended(bad)
    assert ended is not None and ended.kind is EndKind.MISTAKE
    assert "grammar or JSON schema came to its limits with token 2" in ended.reason
    assert ("a", number) in r.fleet.aborts and r.pieces(bad)[-1].finish is None
    r.draw("a", 3)
    assert r.ended(good) == DONE
    facts = r.facts("a")
    assert (facts.state, facts.restarts, r.handle("a").failures) == (ReplicaState.READY, 0, 0)
    assert "worker_garbage" not in r.kinds()


def test_an_end_by_a_grammar_that_was_not_asked_for_is_garbage() -> None:
    r = Replicas("a").up("a")
    r.ask()
    (number,) = r.streams("a")
    r.hear("a", Drawn(0, [Stretch(number, 0, [9], [0.0], FinishReason.BROKEN)]))
    assert r.kinds()[-1] == "worker_garbage"


def test_an_engine_that_tells_no_alternatives_is_not_restarted_for_it() -> None:
    r = Replicas("a", "b")
    r.engines = {"a": "vllm 1"}
    r.up("a", "b")
    r.handle("b").put_aside = True
    ticket = r.ask(seed=3, max_tokens=2, rules={"top_logprobs": 1})
    (number,) = r.streams("a")
    r.handle("b").put_aside = False
    r.draw("a")
    assert ("a", number) in r.fleet.aborts
    assert r.seeds("b") == [3] and r.pieces(ticket) == []
    r.draw("b")  # nor does this one
    ended = r.ended(ticket)
    assert ended is not None and ended.kind is EndKind.MISTAKE and "no alternatives" in ended.reason
    assert [r.facts(name).state for name in "ab"] == [ReplicaState.READY] * 2
    assert [r.handle(name).failures for name in "ab"] == [0, 0]


def test_keys_share_a_busy_replica() -> None:
    r = Replicas("a").up("a")
    greedy = [r.ask(seed=n, key="greedy", max_tokens=2) for n in range(12)]
    modest = [r.ask(seed=n, key="modest", max_tokens=2) for n in range(4)]
    r.draw("a", 2)  # the four that came before anybody else did
    r.draw("a", 4)
    done = [sum(r.ended(t) is not None for t in each) for each in (greedy, modest)]
    assert done == [4 + 4, 4]


def test_cancelled_in_every_state() -> None:
    r = Replicas("a", "b").up("a", "b")
    running = [r.ask(seed=n, max_tokens=9) for n in range(8)]
    queued = r.ask(seed=20)
    assert r.crew.desk.waiting == 1
    r.cancel(queued)
    assert r.crew.desk.waiting == 0
    r.draw("a")
    r.draw("b")
    r.hear("b", Lost("signal 9"))
    assert r.crew.desk.waiting == 4
    for ticket in running:
        r.cancel(ticket)
    assert (r.crew.desk.waiting, r.facts("a").running, r.facts("b").running) == (0, 0, 0)
    assert r.streams("a") == {}
    assert len(r.fleet.aborts) == 8  # those that had moved were given to `a` as slots fell free
    assert r.crew.desk.jobs == {}
    before = {ticket: len(r.told[ticket]) for ticket in running}
    r.hear("a", Drawn(0, [Stretch(r.fleet.aborts[0][1], 0, [1], [-0.5])]))
    assert {ticket: len(r.told[ticket]) for ticket in running} == before
    assert r.facts("a").state is ReplicaState.READY


def test_late_where_its_deadline_passed() -> None:
    r = Replicas("a").up("a")
    ticket = r.ask(deadline_s=10)
    r.draw("a")
    r.wait(11, "a")
    ended = r.ended(ticket)
    assert ended is not None
    assert ended.kind is EndKind.LATE
    assert r.facts("a").running == 0
    assert len(r.fleet.aborts) == 1


def test_the_queue_is_bounded() -> None:
    r = Replicas("a").up("a")
    for n in range(4 + TERMS.queue):
        r.ask(seed=n)
    assert r.crew.desk.waiting == TERMS.queue
    with pytest.raises(Overloaded) as caught:
        r.ask()
    assert caught.value.retry_s >= 1


def test_prompt_scores_are_told_once() -> None:
    r = Replicas("a", "b").up("a", "b")
    ticket = r.ask(max_tokens=3, prompt_logprobs=0)
    name = "a" if r.streams("a") else "b"
    r.draw(name)
    r.hear(name, Lost("signal 9"))
    other = "b" if name == "a" else "a"
    (asked,) = r.streams(other).values()
    assert asked.generation.prompt_logprobs is None
    r.draw(other, 2)
    assert r.told[ticket][0] == PromptScores([-2.0, -2.0])
    assert len(r.scores(ticket)) == 1
    assert r.ended(ticket) == Ended(EndKind.DONE, moved=1)


def test_when_all_are_gone_what_waits_ends_with_the_reasons() -> None:
    r = Replicas("a", refuses=["b"]).up("a")
    ticket = r.ask(max_tokens=2)
    for _ in range(SETTINGS.failures):
        r.hear("a", Lost("exit code 1"))
        r.wait(70)
        if "a" in r.fleet.alive:
            r.open("a")
    ended = r.ended(ticket)
    assert ended is not None
    assert ended.kind is EndKind.LOST
    assert "a: 5 failures in a row, last: exit code 1" in ended.reason


def test_signs_of_life_alone_keep_an_idle_replica() -> None:
    r = Replicas("a").up("a")
    r.wait(500, "a")
    assert r.facts("a").state is ReplicaState.READY
    r.hear("a", Alive())


def test_one_that_drains_takes_nothing_and_finishes_what_it_has() -> None:
    r = Replicas("a", "b").up("a", "b")
    ticket = r.ask(seed=1)
    name = "a" if r.streams("a") else "b"
    other = "b" if name == "a" else "a"
    r.handle(name).put_aside = True
    assert r.facts(name).state is ReplicaState.DRAINING
    for n in range(2, 5):
        r.ask(seed=n)
    assert r.seeds(name) == [1]
    assert r.seeds(other) == [2, 3, 4]
    r.draw(name, 4)
    assert r.ended(ticket) == DONE


def test_the_limit_of_a_message_counts_all_that_is_open() -> None:
    r = Replicas("a").up("a")
    r.ask(seed=1, rules={"top_logprobs": 5}, choices=2, max_tokens=64)
    one = r.fleet.limit["a"]
    r.ask(seed=2, rules={"top_logprobs": 5}, choices=2, max_tokens=64)
    two = r.fleet.limit["a"]
    assert one is not None
    assert two is not None
    assert two - one == 2 * (64 + 64 * (5 + 9 + 5 + 5 * (5 + 9 + 1)))
