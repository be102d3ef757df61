"""Streams cut anywhere, and lengths that nobody asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.processes.frames import HEADER, MAX_MESSAGE_BYTES, FrameReader, header


def stream(messages: list[bytes]) -> bytes:
    return b"".join(header(message) + message for message in messages)


@given(st.lists(st.binary(max_size=30)), st.lists(st.integers(1, 20), min_size=1))
def test_messages_come_out_whole_however_they_are_cut(
    messages: list[bytes], sizes: list[int]
) -> None:
    reader, data = FrameReader(30), stream(messages)
    found: list[bytes] = []
    for turn in range(len(data)):
        size = sizes[turn % len(sizes)]
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == messages and reader.fault is None


def test_a_header_is_eight_bytes_the_highest_first() -> None:
    assert header(b"x" * 258) == b"\0\0\0\0\0\0\1\2"


def test_a_message_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    reader = FrameReader(5)
    assert reader.feed(stream([b"12345", b"", b"123456", b"ok"])) == [b"12345", b""]
    assert reader.fault == "sent a message of 6 bytes, where 5 are the most"
    assert reader.feed(stream([b"ok"])) == []  # nothing is believed any more


@pytest.mark.parametrize("length", [2**64 - 1, MAX_MESSAGE_BYTES + 1])
def test_no_limit_is_above_the_highest(length: int) -> None:
    reader = FrameReader(2**63)
    assert reader.feed(HEADER.pack(length)) == []
    assert reader.fault == f"sent a message of {length:,} bytes, where 1,073,741,824 are the most"


def test_a_message_that_is_too_long_is_refused_by_its_header() -> None:
    reader = FrameReader(1000)
    assert reader.feed(HEADER.pack(10**9) + bytes(100)) == []
    assert reader.fault and len(reader._held) == 0


def test_a_limit_counts_for_what_begins_after_it_was_set() -> None:
    reader, data = FrameReader(10), stream([b"0123456789", b"abc", b"abcd"])
    assert reader.feed(data[:9]) == []  # the header, and a byte
    reader.limit = 3
    assert reader.feed(data[9:]) == [b"0123456789", b"abc"]
    assert reader.fault == "sent a message of 4 bytes, where 3 are the most"
