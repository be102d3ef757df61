"""Decisions on labelled rows: kept with every key, told apart by reviewer."""

import http.client
import json
import math
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from labelled import rows
from msgspec.structs import replace
from running import DEADLINE, ENVIRONMENT

from interlock.errors import ConfigError, RunError
from interlock.label.review.decisions import Decisions, agreements, settled
from interlock.label.rows import LabelRow, Labels, Review, read


def test_a_decision_is_on_the_disk_and_can_be_taken_back(file: Path) -> None:
    with Decisions(file) as decisions:
        decisions.decide("jsonl:1", " ann ", Review("correct", "11", "typo "))
        kept = read(file)[1][1].reviews["ann"]
        assert (kept.decision, kept.answer, kept.note) == ("correct", "11", "typo")
        decisions.decide("jsonl:1", "bob", Review("reject", "ignored"))
        assert read(file)[1][1].reviews["bob"].answer is None
        decisions.decide("jsonl:1", "ann", None)
        assert list(read(file)[1][1].reviews) == ["bob"]
    file.chmod(0o600)
    with Decisions(file) as decisions:
        decisions.decide("jsonl:1", "bob", Review("accept"))
    assert file.stat().st_mode & 0o777 == 0o600
    untouched = [row for row in read(file)[1] if row.id != "jsonl:1"]
    assert untouched == [row for row in rows() if row.id != "jsonl:1"]


EDITED = {
    "as it was": lambda data: data,
    "BOM": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "blank lines": lambda data: b"\n" + data.replace(b"\n", b"\n \n"),
    "no end of the last line": lambda data: data.removesuffix(b"\n"),
    "zeros behind it": lambda data: data + bytes(9),
}


@pytest.mark.parametrize("edited", EDITED)
def test_no_row_of_an_edited_file_is_lost(file: Path, edited: str) -> None:
    changed = EDITED[edited](file.read_bytes())
    file.write_bytes(changed)
    setting, found = read(file)
    assert found == rows()
    with Decisions(file) as decisions:
        decisions.decide("jsonl:3", "ann", Review("reject"))
    assert [row.id for row in read(file)[1]] == [row.id for row in rows()]
    file.write_bytes(changed)
    more = replace(rows()[0], id="jsonl:9")
    Labels(file, setting).add(more)
    assert read(file)[1] == [*rows(), more]


def with_entry(entry: str) -> Callable[[bytes], bytes]:
    """A change of a file: its first row says this, too."""
    return lambda data: data.replace(b'"mark"', entry.encode() + b',"mark"', 1)


def test_turns_without_words_are_shown(file: Path) -> None:
    """As of a call of a tool, whose turn has no content."""
    turns = b'[{"role":"user","content":"a"},{"role":"assistant"},{"content":"b"}]'
    file.write_bytes(file.read_bytes().replace(b'"What is 0? \\u001b[31m"', turns))
    assert read(file)[1][0].text == "user: a\n\nassistant: \n\n: b"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda data: data + data.splitlines(keepends=True)[1],
            "line 5 repeats the row jsonl:1 of",
        ),
        (lambda data: b"[" + data.replace(b"\n", b",")[:-1] + b"]", "ends in what is no row"),
        (lambda data: data + b"and so on", "ends in what is no row of labels"),
        (
            lambda data: data.decode().encode("utf-16"),
            "line 1 is not UTF-8; save the file as UTF-8",
        ),
        (lambda data: data.replace(b"because", b"\xe9"), "line 1 is not UTF-8"),
        (lambda data: data.replace(b"because", b'"', 1), "line 1 is damaged"),
        (with_entry('"pass_rate":1.5'), "line 1 is no row of labels .* `float` <= 1.0"),
        (with_entry('"answers":-1'), "line 1 is no row of labels .* `int` >= 0"),
        (with_entry('"reviews":{"ann":{"decision":"correct"}}'), "'correct' with the answer None"),
        (
            with_entry('"reviews":{"ann":{"decision":"accept","answer":"7"}}'),
            "ann says 'accept' with the answer '7': a correction has one",
        ),
    ],
)
def test_a_spoilt_file_is_refused_and_stays(
    file: Path, spoil: Callable[[bytes], bytes], why: str
) -> None:
    setting, _ = read(file)
    file.write_bytes(spoil(file.read_bytes()))
    before = file.read_bytes()
    for reader in (Decisions, lambda path: Labels(path, setting)):
        with pytest.raises(RunError, match=why) as refused:
            reader(file)
        assert "\n" not in str(refused.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "who", "review", "why"),
    [
        ("jsonl:9", "ann", Review("accept"), "there is no row 'jsonl:9'"),
        ("jsonl:1", "  ", Review("accept"), "a reviewer has a name"),
        ("jsonl:1", "a\x1b", Review("accept"), "a reviewer has a name"),
        ("jsonl:1", "ann", Review("correct", "1"), "a correction says another answer"),
        ("jsonl:1", "ann", Review("correct", " "), "a correction says another answer"),
    ],
)
def test_what_is_no_decision(file: Path, row: str, who: str, review: Review, why: str) -> None:
    before = file.read_bytes()
    with Decisions(file) as decisions, pytest.raises(ConfigError, match=why):
        decisions.decide(row, who, review)
    assert file.read_bytes() == before


def test_one_server_has_the_file(file: Path) -> None:
    with Decisions(file), pytest.raises(RunError, match="is being labelled or reviewed by another"):
        Decisions(file)
    with Decisions(file):
        pass


def test_what_reviewers_settle() -> None:
    row = rows()[0]

    def having(**said: Review) -> LabelRow:
        return msgspec.structs.replace(row, reviews=said)

    assert settled(row) == row
    assert settled(having(a=Review("accept"), b=Review("accept"))) is not None
    assert settled(having(a=Review("reject"))) is None
    corrected = settled(having(a=Review("correct", "8"), b=Review("correct", "8")))
    assert corrected is not None and corrected.answer == "8"
    for other in (Review("accept"), Review("correct", "9"), Review("reject")):
        with pytest.raises(ValueError, match="do not agree"):
            settled(having(a=Review("correct", "8"), b=other))


def test_agreement_by_hand() -> None:
    """Ten rows: both accept 4, both reject 3, they differ on 3: 0.7; by chance 0.5."""
    pairs = [("accept", "accept")] * 4 + [("reject", "reject")] * 3
    pairs += [("accept", "reject")] * 1 + [("reject", "accept")] * 2
    base = rows()[0]
    decided = [
        msgspec.structs.replace(base, reviews={"a": Review(one), "b": Review(other)})  # type: ignore[arg-type]
        for one, other in pairs
    ]
    [found] = agreements([*decided, base])
    chance = (5 * 6 + 5 * 4) / 100
    assert (found.first, found.second, found.rows) == ("a", "b", 10)
    assert found.share == pytest.approx(0.7)
    assert found.kappa == pytest.approx((0.7 - chance) / (1 - chance))
    [same] = agreements(decided[:4])
    assert same.share == 1 and math.isnan(same.kappa)


def test_what_another_program_wrote_meanwhile_is_not_overwritten(file: Path) -> None:
    with Decisions(file) as decisions:
        decisions.decide("jsonl:0", "ann", Review("accept"))
        edited = file.read_text().replace("because", "as I say")
        file.write_text(edited)
        with pytest.raises(RunError, match=r"labels\.jsonl was changed by another program"):
            decisions.decide("jsonl:1", "ann", Review("accept"))
        assert file.read_text() == edited
    with Decisions(file) as decisions:
        decisions.decide("jsonl:1", "ann", Review("accept"))
        decisions.decide("jsonl:2", "bob", Review("reject"))
    assert [list(row.reviews) for row in read(file)[1]] == [["ann"], ["ann"], ["bob"], []]
    assert {row.why for row in read(file)[1]} == {"as I say"}
    with Decisions(file) as decisions:
        file.unlink()
        with pytest.raises(RunError, match="was changed by another program"):
            decisions.decide("jsonl:1", "ann", None)
        assert not file.exists()


# -- Over HTTP ------------------------------------------------------------------------------------


class Server:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "interlock.cli", "review", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().split(":")[2].split("/")[0])

    def ask(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        body = None if content is None else json.dumps(content)
        kind = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, body, kind | headers)
        response = connection.getresponse()
        text = response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode()


@pytest.fixture
def server(file: Path) -> Iterator[Server]:
    made = Server(str(file))
    yield made
    made.process.terminate()
    made.process.communicate(timeout=DEADLINE)


def test_two_reviewers_decide_and_their_agreement_is_told(server: Server, file: Path) -> None:
    status, told = server.ask("GET", "/rows")
    assert status == 200 and told["all"] == 4
    assert [row["mark"] for row in told["rows"]] == ["disagreed", "too_hard", "flaky"]
    assert told["rows"][0]["question_shown"] == "What is 0? ␛[31m"
    for who, decision in (("ann", "accept"), ("bob", "reject")):
        said = {"reviewer": who, "review": {"decision": decision}}
        status, row = server.ask("POST", "/rows/jsonl%3A0/review", said)
        assert status == 200 and row["reviews"][who]["decision"] == decision
        seen = server.ask("GET", f"/rows?reviewer={who}")[1]["rows"][0]["reviews"]
        assert seen == row["reviews"]
    assert "reviews" not in server.ask("GET", "/rows?reviewer=cat")[1]["rows"][0]
    assert set(read(file)[1][0].reviews) == {"ann", "bob"}
    [agreement] = server.ask("GET", "/rows")[1]["agreements"]
    assert (agreement["rows"], agreement["share"]) == (1, 0.0)


def test_what_it_refuses(server: Server, file: Path) -> None:
    before, path = file.read_bytes(), "/rows/jsonl%3A0/review"
    good = {"reviewer": "ann", "review": {"decision": "accept"}}
    assert server.ask("POST", path, good, Host="elsewhere.example")[0] == 400
    assert server.ask("POST", path, good, **{"Content-Type": "text/plain"})[0] == 415
    assert server.ask("POST", path, {"reviewer": "ann", "review": {"decision": "no"}})[0] == 400
    assert server.ask("POST", path, {"reviewer": "", "review": {"decision": "accept"}})[0] == 400
    assert server.ask("POST", path, {"reviewer": "a" * 70_000})[0] == 413
    assert file.read_bytes() == before


def test_what_has_no_end_is_not_read_and_what_breaks_off_is_no_noise(file: Path) -> None:
    server, sent = Server(str(file)), 0

    def most() -> int:
        """kB that it ever had."""
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    assert server.ask("GET", "/rows")[0] == 200
    before = most()
    head = "POST /rows/jsonl%3A0/review HTTP/1.1\r\nHost: localhost\r\n"
    head += "Content-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as endless:
        endless.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(OSError):
            while sent < 64:  # MB
                endless.sendall(b"100000\r\n" + bytes(0x100000) + b"\r\n")
                sent += 1
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE) as broken:
        broken.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    assert server.ask("GET", "/rows")[0] == 200
    after = most()
    server.process.terminate()
    assert server.process.communicate(timeout=DEADLINE)[1] == "interlock: stopped\n"
    assert after - before < 20_000
