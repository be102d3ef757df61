"""Which replica a generation goes to, by work and speed, and by what it has read."""

import pytest
from scripted_replicas import VOCAB, Replicas

from interlock.fleet.base import Lost
from interlock.workers.replicas.speed import ReplicaSpeed


def known(replicas: Replicas, **tokens_per_s: float) -> None:
    """As if each had been measured: so many tokens a second at full slots."""
    for name, speed in tokens_per_s.items():
        handle = replicas.handle(name)
        handle.speed = ReplicaSpeed()
        for _ in range(100):
            handle.speed.saw_step(handle.slots, handle.slots, handle.slots / speed)
            handle.speed.prompt_s = 1 / speed / 10


def prompt(number: int, size: int = 8) -> list[int]:
    return [(number * 17 + place) % VOCAB for place in range(size)]


def test_work_is_shared_by_speed_and_not_by_count() -> None:
    r = Replicas("fast", "slow").up("fast", "slow")
    known(r, fast=300.0, slow=100.0)
    for number in range(4):
        r.ask(prompt=prompt(number), max_tokens=90)
    assert (len(r.streams("fast")), len(r.streams("slow"))) == (3, 1)


def test_equal_replicas_are_given_as_much() -> None:
    r = Replicas("a", "b").up("a", "b")
    known(r, a=100.0, b=100.0)
    for number in range(6):
        r.ask(prompt=prompt(number), max_tokens=90)
    assert (len(r.streams("a")), len(r.streams("b"))) == (3, 3)


def test_long_answers_count_as_more_work_than_short_ones() -> None:
    r = Replicas("a", "b").up("a", "b")
    known(r, a=100.0, b=100.0)
    r.ask(prompt=prompt(1), max_tokens=400)
    for number in range(2, 6):
        r.ask(prompt=prompt(number), max_tokens=50)
    assert (len(r.streams("a")), len(r.streams("b"))) == (1, 4)


def test_a_prompt_goes_where_its_beginning_was_read() -> None:
    r = Replicas("a", "b").up("a", "b")
    known(r, a=100.0, b=100.0)
    system = prompt(1, 128)
    r.ask(seed=1, prompt=[*system, 1, 2], max_tokens=2)
    home = "a" if r.streams("a") else "b"
    other = "b" if home == "a" else "a"
    r.draw(home, 2)
    for turn in range(5):
        r.ask(seed=turn, prompt=[*system, 3, turn], max_tokens=2)
        assert r.seeds(home) == [turn]
        r.draw(home, 2)
    r.ask(prompt=prompt(9, 128), max_tokens=4)
    r.hear(home, Lost("signal 9"))
    r.wait(1.1, other)
    r.up(home)
    r.draw(other, 4)
    r.draw(home, 4)
    r.ask(seed=77, prompt=[*system, 9], max_tokens=2)
    assert r.seeds("a") + r.seeds("b") == [77]


def test_affinity_gives_way_to_work() -> None:
    r = Replicas("a", "b").up("a", "b")
    known(r, a=100.0, b=100.0)
    system = prompt(1, 64)
    r.ask(seed=1, prompt=system, max_tokens=300)
    home = "a" if r.streams("a") else "b"
    other = "b" if home == "a" else "a"
    r.ask(seed=2, prompt=system, max_tokens=300)
    # 64 tokens of prompt are 0.064 s; 3 s of answers are ahead of it at home.
    assert r.seeds(other) == [2]


def test_an_equal_replica_goes_on_with_what_was_drawn() -> None:
    from interlock.config.schema import GeneratorSettings

    half = GeneratorSettings(dtype="bfloat16", kernel="torch", slots=4)
    r = Replicas("a", "half", "b", half=half).up("a", "half", "b")
    known(r, a=100.0, half=1000.0, b=10.0)
    r.handle("half").put_aside = r.handle("b").put_aside = True
    r.ask(seed=1, max_tokens=9)
    r.draw("a", 2)
    r.handle("half").put_aside = r.handle("b").put_aside = False
    r.hear("a", Lost("signal 9"))
    assert r.seeds("b") == [1]


def test_speed_at_full_slots_is_told_from_steps_of_several_sizes() -> None:
    speed = ReplicaSpeed()
    for _ in range(50):
        for sequences in (1, 8, 32):
            speed.saw_step(sequences, sequences, 0.010 + 0.001 * sequences)
    assert speed.step_s(64) == pytest.approx(0.074)
    assert speed.at(64) == pytest.approx(64 / 0.074)


def test_one_stream_is_taken_to_leave_room_for_more() -> None:
    speed = ReplicaSpeed()
    for _ in range(10):
        speed.saw_step(1, 1, 0.02)
    assert speed.tokens_per_s == pytest.approx(50)
    assert speed.at(64) == pytest.approx(64 / 0.02)


def test_a_prompt_s_time_is_what_its_step_took_longer() -> None:
    speed = ReplicaSpeed()
    for _ in range(50):
        speed.saw_step(4, 4, 0.02)
    speed.saw_prompts(1000, 4, 4, 1.02)
    assert speed.prompt_s == pytest.approx(1e-3)
