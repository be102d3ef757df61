"""Other weights for replicas that serve: by turns, and never two versions in one answer."""

from scripted_replicas import TERMS, Replicas, answer_of

from interlock.fleet.base import Lost
from interlock.records.rl import WeightVersion
from interlock.records.serving import Ended, EndKind, ReplicaState
from interlock.workers.protocol import Failure

DONE = Ended(EndKind.DONE)
V1, V2 = WeightVersion(1, "1" * 64), WeightVersion(2, "2" * 64)


def test_one_replica_alone_lets_requests_wait_while_it_loads() -> None:
    r = Replicas("a").up("a")
    before = r.ask(seed=1, max_tokens=3)
    r.crew.changes.target = V1
    r.attend()
    r.load("a")
    meanwhile = r.ask(seed=2, max_tokens=3)
    assert r.crew.desk.waiting == 1
    r.draw("a", 3)
    r.load("a")
    r.draw("a", 3)
    assert [{p.version for p in r.pieces(t)} for t in (before, meanwhile)] == [{0}, {1}]
    assert [r.ended(t) for t in (before, meanwhile)] == [DONE, DONE]


def test_what_takes_too_long_moves_to_one_that_still_serves_its_weights() -> None:
    r = Replicas("a", "b").up("a", "b")
    r.crew.changes.target = V1
    r.attend()
    (first,) = (name for name in "ab" if r.loads(name))
    other = "b" if first == "a" else "a"
    r.handle(other).put_aside = True
    ticket = r.ask(seed=3, max_tokens=6)
    r.draw(first, 2)
    r.load(first)
    r.wait(TERMS.drain_s - 1, "a", "b")
    r.handle(other).put_aside = False
    assert r.seeds(first) == [3]
    r.wait(2, "a", "b")
    assert (r.seeds(first), r.seeds(other)) == ([], [3])
    r.load(first)
    r.draw(other, 4)
    assert r.tokens(ticket) == answer_of(3, 0, 6)
    assert {p.version for p in r.pieces(ticket)} == {0}
    assert r.facts(first).version == 1


def test_new_weights_are_applied_one_replica_at_a_time_and_never_within_an_answer() -> None:
    r = Replicas("a", "b").up("a", "b")
    old = [r.ask(seed=n, max_tokens=6) for n in (1, 2)]
    r.draw("a")
    r.draw("b")
    r.crew.changes.target = V1
    r.attend()
    loads = {name: len(r.loads(name)) for name in "ab"}
    assert sorted(loads.values()) == [0, 1]
    first = max(loads, key=loads.__getitem__)
    other = "b" if first == "a" else "a"
    r.load(first)  # fetched; it has something to finish
    assert r.facts(first).state is ReplicaState.DRAINING
    new = r.ask(seed=9, max_tokens=2)
    assert 9 in r.seeds(other)  # on the old weights, as nobody serves the new ones yet
    r.draw(first, 5)
    assert r.facts(first).state is ReplicaState.LOADING
    r.load(first)
    assert r.facts(first).version == 1
    assert r.facts(first).state is ReplicaState.READY
    newest = r.ask(seed=10, max_tokens=2)
    assert r.seeds(first) == [10]
    assert len(r.loads(other)) == 1
    r.draw(other, 5)
    r.draw(first, 2)
    r.load(other)
    for ticket, version in ((old[0], 0), (old[1], 0), (new, 0), (newest, 1)):
        assert {piece.version for piece in r.pieces(ticket)} == {version}
        assert r.ended(ticket) == DONE
    assert [r.facts(name).version for name in "ab"] == [1, 1]


def test_an_answer_goes_on_under_its_own_weights_alone() -> None:
    r = Replicas("a", "b", "c").up("a", "b", "c")
    r.crew.changes.target = V1
    r.attend()
    (first,) = (name for name in "abc" if r.loads(name))
    r.load(first)
    (second,) = (name for name in "abc" if r.loads(name) and name != first)
    (third,) = set("abc") - {first, second}
    assert [r.facts(name).version for name in (first, second, third)] == [1, 0, 0]
    r.handle(first).put_aside = True
    r.handle(third).put_aside = True
    ticket = r.ask(seed=3, max_tokens=5)  # on the one that serves old weights
    r.draw(second, 2)
    r.handle(first).put_aside = r.handle(third).put_aside = False
    r.hear(second, Lost("signal 9"))
    assert r.seeds(first) == []
    assert r.seeds(third) == [3]
    r.load(third)  # once it has nothing else
    assert r.facts(third).state is ReplicaState.DRAINING
    r.draw(third, 3)
    assert {piece.version for piece in r.pieces(ticket)} == {0}
    assert r.tokens(ticket) == answer_of(3, 0, 5)


def test_lost_weights_are_loaded_again_for_an_answer_that_needs_them() -> None:
    r = Replicas("a", target=V1)
    r.open("a")
    r.load("a")
    ticket = r.ask(seed=3, max_tokens=4)
    r.draw("a", 2)
    r.crew.changes.target = V2
    r.hear("a", Lost("signal 9"))
    r.wait(1.1)
    r.open("a")
    assert r.loading("a").number == 1
    r.load("a")
    r.draw("a", 2)
    assert r.tokens(ticket) == answer_of(3, 0, 4)
    assert {piece.version for piece in r.pieces(ticket)} == {1}
    r.load("a")
    assert r.facts("a").version == 2


def test_an_answer_whose_weights_nobody_can_load_is_lost() -> None:
    r = Replicas("a", target=V1)
    r.open("a")
    r.load("a")
    ticket = r.ask(seed=3, max_tokens=4)
    r.draw("a", 2)
    r.crew.changes.target = V2
    r.hear("a", Lost("signal 9"))
    r.wait(1.1)
    r.open("a")
    for _ in range(3):
        r.fail("a", r.loading("a").id, kind=Failure.LINK)
        r.wait(30, "a")
    ended = r.ended(ticket)
    assert ended is not None
    assert ended.kind is EndKind.LOST
    assert "version 1" in ended.reason


def test_a_version_of_another_model_is_not_served_and_nobody_suffers() -> None:
    r = Replicas("a").up("a")
    r.crew.changes.target = V1
    r.attend()
    r.fail("a", r.loading("a").id, kind=Failure.MISTAKE)
    assert r.facts("a").state is ReplicaState.READY
    r.wait(100, "a")
    assert r.loads("a") == []
    assert "weights_unfit" in r.kinds()
    ticket = r.ask()
    r.draw("a", 4)
    assert r.ended(ticket) == DONE


def test_no_own_weights_are_served_where_versions_are_followed() -> None:
    r = Replicas("a", target=V1)
    r.open("a")
    ticket = r.ask()
    assert r.streams("a") == {}
    r.load("a")
    r.draw("a", 4)
    assert {piece.version for piece in r.pieces(ticket)} == {1}


def test_nobody_is_left_behind_where_versions_come_fast() -> None:
    r = Replicas("a", "b", "c").up("a", "b", "c")
    loaded = []
    for number in range(1, 7):
        r.crew.changes.target = WeightVersion(number, f"{number}" * 64)
        r.wait(1, "a", "b", "c")
        (name,) = (name for name in "abc" if r.loads(name))
        r.load(name)
        loaded.append((name, number))
        r.now += 1
    first = [name for name, _ in loaded[:3]]
    assert sorted(first) == ["a", "b", "c"]
    assert sorted(r.facts(name).version or 0 for name in "abc")[0] >= 3


def test_a_replica_that_merges_adapters_says_why_once() -> None:
    r = Replicas("a").up("a")
    r.merged["a"] = "no slots"
    for target in (V1, V2):
        r.crew.changes.target = target
        r.attend()
        r.load("a")
    assert r.facts("a").version == 2
    told = [message for kind, message, _ in r.notes if kind == "adapter_merged"]
    assert told == ["a has adapters merged: no slots"]
