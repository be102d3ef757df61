"""What foreign text may not do: act on a terminal, hide, fill a page, or run on."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.text import (
    described,
    error_headline,
    error_line,
    first_line,
    label,
    last_line,
    one_line,
    visible,
)

ANY = st.text(st.characters(exclude_categories=[]))  # lone surrogates as well
ATTACK = "\x1b]0;x\x07 \x9b2J\r\nSAME: all is well\u202e"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@given(ANY)
def test_visible_text_prints_and_can_be_written(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert all(unicodedata.category(x)[0] != "C" or x in "\n\t" for x in shown)
    assert visible(shown) == shown


def test_what_acts_or_hides_is_shown_and_lines_stay() -> None:
    assert visible("a\x1b[2Jb\r\n\tc\u202e\x7f\ud800") == "a␛[2Jb␍\n\tc⟨U+202E⟩⟨U+007F⟩⟨U+D800⟩"


@given(ANY, st.integers(1, 30))
def test_one_line_is_one_visible_line_of_bounded_length(text: str, limit: int) -> None:
    for line in (one_line(text, limit), first_line(text, limit), last_line(text, limit)):
        assert len(line) <= limit and line == visible(line) and len(line.splitlines()) <= 1
    assert one_line(one_line(text)) == one_line(text)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        (ATTACK, None, "␛]0;x␇ ⟨U+009B⟩2J SAME: all is well⟨U+202E⟩"),
        ("  two\n\n lines\t", 9, "two lines"),
        ("two lines and more", 9, "two line…"),
        ("\x00\x00\x00", 2, "␀…"),
        (" " * 1000 + "word", 10, "…"),  # what lies beyond what is looked at
        ("", 10, ""),
    ],
)
def test_one_line(text: str, limit: int | None, expected: str) -> None:
    assert one_line(text, limit) == expected


def test_the_first_and_the_last_line_that_say_something() -> None:
    text = "\n  \nCUDA error:  busy\n\x1b[1mtrace\nof it\r\n\n"
    assert (first_line(text), last_line(text)) == ("CUDA error: busy", "of it")
    assert first_line(" \n\t\n") == last_line("") == ""


def test_errors_in_words() -> None:
    long = RuntimeError("CUDA error: busy\nException raised from f at c.cpp:1\n  frame 0")
    assert error_line(long) == "CUDA error: busy Exception raised from f at c.cpp:1 frame 0"
    assert error_headline(long) == "CUDA error: busy"
    assert described(long, 27) == "RuntimeError: CUDA error: …"
    for silent in (ValueError(), ValueError(" \n")):
        assert error_line(silent) == error_headline(silent) == described(silent) == "ValueError"
    gone = FileNotFoundError(2, "No such file or directory", "x.toml")
    assert error_line(gone) == "No such file or directory: 'x.toml'"
    assert described(OSError(27, "File too large")) == "OSError: File too large"
    assert error_line(ValueError("[Errno 2] is mine")) == "[Errno 2] is mine"
    assert error_line(Unspeakable()) == described(Unspeakable()) == "Unspeakable"


def test_plotly_sees_no_tag() -> None:
    assert label('<a href="x">\n&') == "&lt;a href=&quot;x&quot;&gt; &amp;"
    assert label("y" * 300) == "y" * 199 + "…"


def test_a_long_text_is_not_looked_through() -> None:
    text = "\x1b" * 50_000_000
    began = time.perf_counter()
    assert one_line(text, 100) == "␛" * 99 + "…"
    assert time.perf_counter() - began < 0.5
