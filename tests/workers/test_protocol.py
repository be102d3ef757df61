"""How long an answer may be: enough for the longest honest one, and bounded by what was asked."""

import threading
from queue import SimpleQueue

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.config.schema import GeneratorSettings
from interlock.processes.child import UNASKED_BYTES
from interlock.records.cost import MemoryPeak
from interlock.records.replay import KeptTokens, Replay, RouteShape, kept_ids
from interlock.records.rl import Completion, FinishReason, Problem, Sampling, Segment
from interlock.workers import protocol, sizes
from interlock.workers.protocol import (
    Abort,
    Alive,
    Answered,
    Canary,
    Generate,
    Load,
    Loaded,
    Open,
    Qualify,
)

CANARY = Canary(text=[1, 2, 3], prompts=[[4], [5]], tokens=2)


def asked(problems: int, completions: int, tokens: int, words: int = 100) -> Generate:
    turn = {"role": "user", "content": "word " * words}
    each = [Problem(f"p{n}", [turn], "4", {"entry": "x" * 50}) for n in range(problems)]
    return Generate(7, each, completions, Sampling(max_tokens=tokens), 0, id=3)


@pytest.mark.parametrize(
    ("problems", "completions", "tokens", "words"),
    [(1, 1, 1, 1), (1, 64, 4096, 10), (64, 8, 16, 20_000), (3, 2, 2048, 100)],
)
def test_the_longest_honest_answer_passes(
    problems: int, completions: int, tokens: int, words: int
) -> None:
    request = asked(problems, completions, tokens, words)
    # Ids of four bytes, a prompt of a token per letter, and new weights under it 64 times.
    parts = min(64, tokens)
    drawn = [Segment([200_000] * (tokens // parts), [-1.25] * (tokens // parts), 10**9)] * parts
    answer = Completion(drawn, FinishReason.LENGTH, "")
    prompt = [200_000] * (5 * words + 2000)
    most = sizes.reply_bytes(request, CANARY)
    assert len(protocol.encode(Answered(0, prompt, [answer] * completions, id=3))) < most


@pytest.mark.parametrize("rule", [Sampling(top_k=20), Sampling(top_p=0.9)])
def test_the_largest_sets_pass_and_are_bounded_by_what_was_asked(rule: Sampling) -> None:
    rule = msgspec.structs.replace(rule, max_tokens=700)
    request = msgspec.structs.replace(asked(1, 2, 700), sampling=rule, replay=Replay(kept=True))
    sets = KeptTokens.of([kept_ids(range(200_000, 200_000 + rule.most_told))] * 700)
    segment = Segment([200_000] * 700, [-1.25] * 700, 10**9, sets)
    answer = Answered(0, [1] * 2000, [Completion([segment], FinishReason.LENGTH, "")] * 2, id=3)
    most = sizes.reply_bytes(request, CANARY)
    assert len(protocol.encode(answer)) < most
    plain = sizes.reply_bytes(asked(1, 2, 700), CANARY)
    assert most - plain == 2 * 700 * (2 + 4 * rule.most_told)
    assert protocol.reply(protocol.encode(answer)) == answer


def test_the_longest_routes_pass_and_are_bounded_by_what_was_asked() -> None:
    shape = RouteShape(layers=58, per_token=8, experts=256)
    request = msgspec.structs.replace(asked(1, 2, 700), replay=Replay(routes=shape))
    row = bytes(shape.token_bytes)
    drawn = Segment([200_000] * 700, [-1.25] * 700, 10**9, routes=700 * row)
    first = Completion([drawn], FinishReason.LENGTH, "", prompt_routes=2000 * row)
    answer = Answered(0, [1] * 2001, [first, Completion([drawn], FinishReason.LENGTH, "")], id=3)
    most = sizes.reply_bytes(request, CANARY)
    assert len(protocol.encode(answer)) < most < 64 << 20
    assert protocol.reply(protocol.encode(answer)) == answer


def test_an_answer_is_bounded_by_what_was_asked() -> None:
    most = sizes.reply_bytes(asked(8, 8, 64), CANARY)
    assert most < 3 << 20  # decoded, a message takes up to forty times its bytes
    few, many = (sizes.reply_bytes(asked(1, n, 1000), CANARY) for n in (1, 11))
    assert many - few == 10 * (1000 * (5 + 9) + 16384)


def test_a_proof_is_as_long_as_its_canary() -> None:
    wide = Canary(text=[1] * 50_000, prompts=[[1]] * 100, tokens=500)
    loaded = Loaded(7, "0" * 64, [-1.5] * 49_999, [-1.5] * 50_000, [-1.5] * 50_000, 10**12)
    most = sizes.reply_bytes(Load(7, ""), wide)
    assert most == UNASKED_BYTES + 9 * (50_000 + 2 * 50_000)
    assert len(msgspec.msgpack.encode(loaded)) < most


def test_what_has_no_reply_allows_no_more_than_signs_of_life() -> None:
    assert sizes.reply_bytes(Abort(id=7), CANARY) == UNASKED_BYTES
    for request in (Open("w", "", GeneratorSettings()), Qualify("cpu", "quick")):
        assert sizes.reply_bytes(request, CANARY) == 8 << 20


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
WHOLE = [
    msgspec.to_builtins(message)
    for message in (
        asked(1, 2, 3),
        Load(1, "digest", id=2),
        Answered(0, [1], [Completion.sampled([2], [-0.5], FinishReason.STOP, "", 3)], id=2),
        Loaded(1, None, [-0.5], [-0.5], [-0.5], 9, id=2),
        protocol.Failed("no", protocol.Failure.FAULT, [2]),
    )
]


@settings(max_examples=300)
@given(st.data())
def test_any_message_is_one_or_a_value_error(data: st.DataObject) -> None:
    """Any bytes, a real message with one value exchanged, and one with a byte that is another."""
    tree = dict(data.draw(st.sampled_from(WHOLE)))
    tree[data.draw(st.sampled_from(sorted(tree)))] = data.draw(VALUES)
    message = bytearray(msgspec.msgpack.encode(tree))
    if data.draw(st.booleans()):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    for sent in (bytes(message), data.draw(st.binary(max_size=40))):
        for read in (protocol.ask, protocol.reply):
            try:
                found = read(sent)
            except ValueError as error:
                assert "Traceback" not in str(error)
            else:
                assert read(protocol.encode(found)) == found or "nan" in repr(found)


def test_a_message_nested_without_end_is_a_value_error() -> None:
    for deep in (b"\x91" * 100_000, b"\x81\xa1a" * 100_000):
        for read in (protocol.ask, protocol.reply):
            with pytest.raises(ValueError, match=r"deep|truncated|Expected"):
                read(deep)


def test_signs_of_life_tell_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said: SimpleQueue[bytes] = SimpleQueue()
    enough = threading.Event()

    class Listening:
        def send(self, message: bytes) -> None:
            said.put(message)
            if said.qsize() >= 2:
                enough.set()
                threading.Event().wait()  # its thread says nothing more

    monkeypatch.setattr(protocol, "BEAT_S", 0.001)
    peaks = iter([MemoryPeak(5, 6), MemoryPeak(3, 4)])
    protocol.beat(Listening(), lambda: next(peaks))  # type: ignore[arg-type]
    assert enough.wait(60)
    found = [protocol.reply(said.get()) for _ in range(2)]
    assert found == [Alive(MemoryPeak(5, 6)), Alive(MemoryPeak(3, 4))]
