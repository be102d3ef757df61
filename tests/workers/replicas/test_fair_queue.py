"""Who is given something next, counted to the request."""

from collections import Counter

from interlock.records.rl import Sampling
from interlock.records.serving import Generation
from interlock.workers.replicas.jobs import LiveGeneration, LivePart
from interlock.workers.replicas.queue import FairQueue


def put(queue: FairQueue, key: str, tokens: int = 10, priority: int = 0, prompt: int = 10) -> None:
    sampling = Sampling(max_tokens=tokens)
    asked = Generation([1] * prompt, sampling, 0, key=key, priority=priority)
    queue.add(LiveGeneration(0, asked, lambda told: None, 0.0).parts[0])


def taken(queue: FairQueue, count: int) -> list[str]:
    found = []
    for _ in range(count):
        part = queue.first()
        assert isinstance(part, LivePart)
        queue.take(part)
        found.append(part.job.generation.key)
    return found


def test_keys_take_turns_however_many_each_has() -> None:
    queue = FairQueue()
    for _ in range(100):
        put(queue, "greedy")
    for _ in range(3):
        put(queue, "modest")
    assert Counter(taken(queue, 6)) == {"greedy": 3, "modest": 3}
    assert queue.sequences == 97


def test_shares_are_of_tokens_and_not_of_requests() -> None:
    queue = FairQueue()
    for _ in range(100):
        put(queue, "short", tokens=10)  # 20 tokens with its prompt
        put(queue, "long", tokens=90)  # 100
    assert Counter(taken(queue, 60)) == {"short": 50, "long": 10}


def test_priority_goes_first_and_is_fair_in_itself() -> None:
    queue = FairQueue()
    for key in ("a", "b"):
        for _ in range(5):
            put(queue, key)
            put(queue, key, priority=1)
    first = taken(queue, 10)
    assert [sum(part.job.generation.priority for part in queue)] == [0]
    assert Counter(first) == {"a": 5, "b": 5}


def test_nobody_saves_up_while_away() -> None:
    queue = FairQueue()
    put(queue, "a")
    put(queue, "b")
    for _ in range(100):
        put(queue, "a")
    assert Counter(taken(queue, 52)) == {"a": 51, "b": 1}
    for _ in range(40):
        put(queue, "b")
    assert Counter(taken(queue, 40))["b"] in (20, 21)


def test_one_key_is_served_in_order() -> None:
    queue = FairQueue()
    for tokens in (1, 2, 3):
        put(queue, "a", tokens=tokens)
    found = []
    while (part := queue.first()) is not None:
        queue.take(part)
        found.append(part.job.generation.sampling.max_tokens)
    assert found == [1, 2, 3]


def test_removed_from_the_middle() -> None:
    queue = FairQueue()
    for key in "aab":
        put(queue, key)
    parts = list(queue)
    queue.remove(parts[1])
    assert list(queue) == [parts[0], parts[2]]
    assert queue.sequences == 2
