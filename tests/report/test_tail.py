"""Lines of a file that grows, as the live page reads them."""

from pathlib import Path

import pytest

from interlock.report.live import following
from interlock.report.live.following import Tail


def new_lines(tail: Tail) -> tuple[list[bytes], bool]:
    lines, another = tail.lines()
    return lines.each(), another


def test_a_line_counts_when_it_is_whole_and_a_repaired_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    tail = Tail(path)
    assert new_lines(tail) == ([], False)
    path.write_bytes(b"one\ntw")
    assert new_lines(tail) == ([b"one"], False)
    path.write_bytes(b"one\ntwo\n")
    assert new_lines(tail) == ([b"two"], False)
    path.write_bytes(b"one\n")
    assert new_lines(tail) == ([b"one"], True)


def test_a_file_in_the_place_of_another_is_read_anew_whatever_its_length(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")  # torn, then repaired and gone on with
    tail = Tail(path)
    assert new_lines(tail) == ([b"one", b"two"], False)
    path.write_bytes(b"one\ntwo\nfour\nfive\n")
    assert new_lines(tail) == ([b"one", b"two", b"four", b"five"], True)
    path.write_bytes(b"six\nsix\nseven\nsevn\n")  # another run's, of the same length
    assert new_lines(tail) == ([b"six", b"six", b"seven", b"sevn"], True)
    assert new_lines(tail) == ([], False)


@pytest.mark.parametrize("at_once", [1, 7, 100, 2**12])
def test_lines_are_those_of_the_file_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Against a plain split; and the buffer that they are in is no longer than needed."""
    monkeypatch.setattr(following, "_AT_ONCE", at_once)
    path, found = tmp_path / "lines", list[bytes]()
    parts = [b"a\n\nbc", b"", b"d\n" + b"x" * 300, b"y" * 50 + b"\nz\r\n", b"end"]
    tail = Tail(path)
    for part in parts:
        with path.open("ab") as file:
            file.write(part)
        while True:
            lines, another = tail.lines()
            found += lines.each()
            assert not another and lines.last(2) == lines.each()[-2:]
            assert len(tail._buffer) <= 2 * 350 + at_once
            if not tail.more:
                break
    assert found == b"".join(parts).split(b"\n")[:-1]
