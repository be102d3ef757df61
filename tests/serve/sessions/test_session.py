"""The tree of turns: what extends it, what begins a branch, what a learner is given of it."""

from pathlib import Path

import pytest
from session_talk import Talk, call

from interlock.errors import ConfigError, Overloaded
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Segment
from interlock.records.serving import Piece
from interlock.serve.sessions.record import TurnOrigin
from interlock.serve.sessions.session import SessionTerms
from interlock.serve.sessions.store import Sessions, SessionUnknown


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path, "qwen2.5")


def test_a_branch_is_the_segments_as_they_were_drawn(talk: Talk) -> None:
    draft = talk.begin("One")
    draft.take(Piece(0, [10, 11], [-0.25, -1e-300], version=3, replica="a", cached=4))
    draft.take(Piece(0, [12], [-0.1], version=4, replica="b"))
    draft.take(Piece(0, talk.end, [0.0], version=4, replica="b", finish=FinishReason.STOP))
    draft.answered(0, {"content": "x"}, "x")
    talk.messages.append({"role": "assistant", "content": "x"})
    follow = talk.begin("Two")
    given = follow.prompt[len(draft.prompt) + 4 :]
    talk.answer(follow, [13], version=5, finish=FinishReason.LENGTH)
    [branch] = talk.session.branches()
    assert branch.prompt_tokens == draft.prompt
    assert branch.completion.segments == [
        Segment([10, 11], [-0.25, -1e-300], 3),
        Segment([12, *talk.end], [-0.1, 0.0], 4),
        Segment(given),
        Segment([13], [-0.5], 5),
    ]
    assert talk.tokenizer.decode(given, skip_special=False) == (
        "\n<|im_start|>user\nTwo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (branch.completion.finish, branch.turns) == (FinishReason.LENGTH, [0, 1])
    assert branch.completion.weight_version == 3
    turn = talk.session.record.turns[0]
    assert (turn.cached, turn.answers[0].replicas) == (4, ["a", "b"])


def test_every_sampled_token_is_in_one_branch(talk: Talk) -> None:
    first, answer = talk.turn("One", "1")
    common = list(talk.messages)
    talk.turn("Two", "2")
    talk.messages = [*common]
    again = talk.begin("Another two")
    assert again.origin is TurnOrigin.AGAIN
    assert again.prompt[: len(first) + len(answer)] == first + answer
    other = talk.tokenizer.encode("22") + talk.end
    talk.answer(again, other)
    one, two = talk.session.branches()
    assert one.turns == [0, 1] and two.turns == [2]
    assert two.prompt_tokens == again.prompt
    assert two.completion.segments[0].tokens == other
    sampled = [token for each in (one, two) for token in each.completion.mask if token]
    drawn = [t for turn in talk.session.record.turns for a in turn.answers for t in a.tokens]
    assert len(sampled) == len(drawn)
    assert talk.session.record.origins == {"again": 1}


def test_choices_of_one_prompt_are_branches(talk: Talk) -> None:
    draft = talk.begin("Guess")
    ids = [talk.tokenizer.encode(text) + talk.end for text in ("he", "us", "he")]
    told = [talk.answer(draft, each, number=i) for i, each in enumerate(ids)]
    draft.close()
    talk.messages.append(told[1])
    follow = talk.begin("Sure?")
    assert follow.prompt[: len(draft.prompt) + len(ids[1])] == draft.prompt + ids[1]
    talk.answer(follow, talk.end)
    zero, two, one = talk.session.branches()
    assert [b.prompt_tokens for b in (zero, one, two)] == [draft.prompt] * 3
    assert zero.completion.tokens == ids[0] and two.completion.tokens == ids[2]
    assert one.turns == [0, 1] and talk.session.record.origins == {}


def test_equal_answers_are_told_apart_by_thinking_and_ids_of_calls(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "qwen3-tools")
    draft = talk.begin("Go")
    for number, thought in enumerate(("a", "b", "c")):
        ids = talk.tokenizer.encode(f"<think>{thought}</think>") + talk.end
        calls = [call("f", "{}", id=f"call_{thought}")]
        talk.answer(draft, ids, number, content=None, reasoning=thought, tool_calls=calls)
    result = {"role": "tool", "content": "7", "tool_call_id": "call_b"}
    for back in ({"reasoning": "b"}, {}):
        calls = [call("f", "{ }", id="call_b")]
        sent = {"role": "assistant", "content": None, "tool_calls": calls, **back}
        follow = talk.session.begin(talk.asked([*talk.messages, sent, result]))
        assert talk.tokenizer.decode(follow.prompt).count("<think>b</think>") == 1
    edited = sent | {"reasoning_content": "never thought", "reasoning": None}
    other = talk.session.begin(talk.asked([*talk.messages, edited, result]))
    assert other.origin is TurnOrigin.MESSAGES
    assert "never thought" in talk.tokenizer.decode(other.prompt)


@pytest.mark.parametrize(
    ("recorded", "sent"),
    [
        ('{"a": 1, "b": {"c": [1, 2], "d": "é"}}', '{"b":{"d":"\\u00e9","c":[1,2]},"a":1}'),
        ('{"a": 1}', {"a": 1}),
        ("{}", ""),
        ('{"a": fal', '{"a": fal'),
    ],
)
def test_arguments_may_come_back_written_otherwise(talk: Talk, recorded: str, sent: object) -> None:
    draft = talk.begin("Go")
    drawn = talk.tokenizer.encode("whatever") + talk.end
    talk.answer(draft, drawn, content="", tool_calls=[call("f", recorded)])
    back = {"role": "assistant", "content": None, "tool_calls": [call("f", sent)]}
    result = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
    follow = talk.session.begin(talk.asked([*talk.messages, back, result]))
    assert follow.prompt[: len(draft.prompt) + len(drawn)] == draft.prompt + drawn


@pytest.mark.parametrize(
    "edit",
    ["answer", "question", "system", "left out", "other call"],
)
def test_what_was_edited_begins_a_branch_of_its_own(talk: Talk, edit: str) -> None:
    talk.messages.append({"role": "system", "content": "S"})
    talk.turn("One", "1")
    calls = [call("f", '{"a": false}')]
    talk.turn("Two", "2", content="", tool_calls=calls)
    talk.messages.append({"role": "tool", "content": "r", "tool_call_id": "call_1"})
    told = [dict(message) for message in talk.messages]
    match edit:
        case "answer":
            told[2]["content"] = "one"
        case "question":
            told[1]["content"] = "One!"
        case "system":
            told[0]["content"] = "T"
        case "left out":
            del told[1:3]
        case "other call":
            told[4]["tool_calls"] = [call("f", '{"a": "False"}')]
    draft = talk.session.begin(talk.asked(told))
    assert draft.origin is TurnOrigin.MESSAGES
    if edit == "other call":  # what is before it was recorded, and stays
        turn = talk.session.record.turns[0]
        assert draft.prompt[: len(turn.prompt)] == turn.prompt
    else:
        assert draft.prompt == talk.tokenizer.chat(told)
    talk.answer(draft, talk.end)
    assert talk.session.record.origins == {"messages": 1}
    assert len(talk.session.branches()) == 2


def test_other_tools_begin_a_branch(talk: Talk) -> None:
    talk.turn("One", "1")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    draft = talk.begin("Two", tools=[tool])
    assert draft.origin is TurnOrigin.SETTINGS
    assert draft.prompt == talk.tokenizer.chat(talk.messages, tools=[tool])


def test_asking_the_same_again_is_a_branch(talk: Talk) -> None:
    talk.turn("One", "1")
    draft = talk.session.begin(talk.asked(talk.messages[:1]))
    assert draft.origin is TurnOrigin.AGAIN
    talk.answer(draft, talk.end)
    assert talk.session.record.origins == {"again": 1}
    one, two = talk.session.branches()
    assert one.prompt_tokens == two.prompt_tokens


def test_two_requests_at_a_time_are_told_apart_when_they_end(talk: Talk) -> None:
    one, two = talk.begin("One"), talk.begin()
    talk.answer(two, talk.end)
    talk.answer(one, talk.end)
    assert (two.origin, one.origin) == (TurnOrigin.FIRST, TurnOrigin.AGAIN)


def test_what_never_ended_is_counted_and_not_a_sample(talk: Talk) -> None:
    draft = talk.begin("One")
    draft.take(Piece(0, [1], [-1.0], version=1))
    draft.take(Piece(1, [1], [-1.0], version=1))
    assert talk.session.open == 1
    draft.close()
    draft.close()
    assert (talk.session.open, talk.session.record.broken) == (0, 2)
    assert talk.session.branches() == []


def test_seeds_differ_by_turn_and_are_those_of_the_session(tmp_path: Path) -> None:
    seeds = []
    for path, seed in (("a", 7), ("b", 7), ("c", 8)):
        talk = Talk(tmp_path / path, "chatml", seed=seed)
        seeds.append([talk.begin("x").seed, talk.begin("y").seed])
    assert seeds[0] == seeds[1] and len({*seeds[0], *seeds[2]}) == 4
    assert all(0 <= seed < 1 << 31 for pair in seeds for seed in pair)


def test_a_session_has_an_end(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "chatml", most_turns=2, most_tokens=40)
    talk.turn("One", "1")
    talk.turn("Two", "2")
    with pytest.raises(ConfigError, match="has had its 2 turns"):
        talk.begin("Three")
    short = Talk(tmp_path, "chatml", most_tokens=10)
    short.turn("One", "1")
    with pytest.raises(ConfigError, match="may hold 10"):
        short.begin("Two")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_sessions_are_bounded_in_number_age_and_memory(talk: Talk) -> None:
    clock = Clock()
    tokenizer = Tokenizer.load(talk.directory)
    sessions = Sessions(tokenizer, most=2, most_bytes=100, idle_s=10, clock=clock)
    one = sessions.create("alice")
    two = sessions.create("bob", SessionTerms(seed=3))
    with pytest.raises(Overloaded, match="there are 2 sessions"):
        sessions.create("carol")
    assert sessions.get(one.id, "alice") is one
    with pytest.raises(SessionUnknown):
        sessions.get(two.id, "alice")
    assert [sessions.owned("alice"), sessions.owned("carol")] == [[one], []]
    draft = two.begin(talk.asked([{"role": "user", "content": "x"}]))
    clock.now = 11.0
    with pytest.raises(SessionUnknown):
        sessions.get(one.id, "alice")
    assert sessions.for_turn(two.id, "bob") is two  # which is being answered
    talk.answer(draft, talk.end)
    draft.close()
    assert sessions.held_bytes == two.held_bytes == 20 * (len(draft.prompt) + 1)
    assert sessions.for_turn(two.id, "bob") is two  # they are weighed once a second
    clock.now += 1.5
    with pytest.raises(Overloaded, match="the sessions hold"):
        sessions.for_turn(two.id, "bob")
    sessions.delete(two.id, "bob")
    assert len(sessions) == 0
