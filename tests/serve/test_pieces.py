"""Text of tokens: whole characters, and nothing of a stop string."""

import pytest
from endpoints import tokenizer_in
from hypothesis import given
from hypothesis import strategies as st

from interlock.engine.sequence import Ending
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Sampling
from interlock.records.serving import Piece
from interlock.serve.reading.pieces import ChoiceText, StopHold


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


def told(tokenizer: Tokenizer, text: str, stops: list[str]) -> tuple[list[str], str]:
    """What is shown, piece by piece, where the engine's own rule ends the answer; and its text."""
    ending = Ending(Sampling(max_tokens=1000, stop=stops), tokenizer)
    choice, shown = ChoiceText(tokenizer, stops, told=True), []
    for token in [*tokenizer.encode(text), tokenizer.eos_id or 0]:
        finish = ending.push(token)
        bit = choice.push(Piece(0, [token], [-1.0], finish=finish))
        shown.append(bit.text)
        if finish is not None:
            return shown, ending.text
    raise AssertionError("it never ended")


def test_a_character_of_four_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    assert told(tokenizer, "a😀b", [])[0] == ["a", "", "", "", "😀", "b", ""]


def test_what_may_begin_a_stop_string_waits(tokenizer: Tokenizer) -> None:
    shown, text = told(tokenizer, "one\nTw\nTwo", ["\nTwo"])
    assert shown == ["o", "n", "e", "", "", "", "\nTw", "", "", ""]
    assert text == "one\nTw"


def test_what_was_held_comes_when_nothing_follows(tokenizer: Tokenizer) -> None:
    assert told(tokenizer, "one\nTw", ["\nTwo"])[0] == ["o", "n", "e", "", "", "", "\nTw"]


@given(
    text=st.text("abc😀", max_size=30),
    stops=st.lists(st.text("abc😀", min_size=1, max_size=4), max_size=4),
)
def test_the_text_is_the_engines_and_no_stop_string_is_ever_shown(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    shown, whole = told(tokenizer, text, stops)
    assert "".join(shown) == whole
    for end in range(len(shown)):
        so_far = "".join(shown[: end + 1])
        assert whole.startswith(so_far) and not any(stop in so_far for stop in stops)


def test_tokens_that_a_stop_string_cuts_off_are_not_told(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, ["xy"], told=True)
    tokens = tokenizer.encode("axy")
    bits = [choice.push(Piece(0, [token], [-1.0])) for token in tokens[:2]]
    bits.append(choice.push(Piece(0, tokens[2:], [-1.0], finish=FinishReason.STOP)))
    assert [[t.token for t in bit.tokens] for bit in bits] == [tokens[:1], [], []]


def test_the_earliest_of_several_stops_cuts() -> None:
    hold = StopHold(["bc", "abcd"])
    assert [hold.push(each) for each in ("x", "a", "b", "c")] == ["x", "", "", "a"]
    assert hold.over and hold.push("d") == ""
