"""Decisions on labelled rows: kept with every key, told apart by reviewer, exchanged exactly."""

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
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from running import DEADLINE, ENVIRONMENT

from interlock.config.drawing import DrawSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError, RunError
from interlock.label.marks import LabelAnswer
from interlock.label.review.decisions import Decisions, agreements, settled
from interlock.label.review.exchange import from_label_studio, to_label_studio, to_trl
from interlock.label.rows import LabelRow, Labels, LabelSetting, Review, read
from interlock.tasks.mixture import open_tasks

MARKS = ("disagreed", "too_hard", "useful", "flaky")


def rows() -> list[LabelRow]:
    return [
        LabelRow(
            id=f"jsonl:{place}",
            question=f"What is {place}? \x1b[31m",
            answer=str(place),
            mark=mark,  # type: ignore[arg-type]
            why="because",
            samples=[LabelAnswer("<b>7</b>", False, 3)],
        )
        for place, mark in enumerate(MARKS)
    ]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.jsonl"
    setting = LabelSetting(
        measured={}, model="m", weights="w", samples=1, temperature=1, top_p=1, max_tokens=9, seed=0
    )
    labels = Labels(path, setting)
    for row in rows():
        labels.add(row)
    return path


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


reviews = st.one_of(
    st.builds(Review, st.just("accept"), st.none(), st.text(max_size=9)),
    st.builds(Review, st.just("reject"), st.none(), st.text(max_size=9)),
    st.builds(Review, st.just("correct"), st.text("0123456789", min_size=1), st.just("")),
)


@given(st.lists(st.dictionaries(st.sampled_from(["ann@x", "bob@x"]), reviews), max_size=4))
def test_label_studio_there_and_back(said: list[dict[str, Review]]) -> None:
    some = [msgspec.structs.replace(row, reviews=of) for row, of in zip(rows(), said, strict=False)]
    exported = msgspec.json.encode(to_label_studio(some))
    back = from_label_studio(exported, some)
    assert back == {row.id: row.reviews for row in some if row.reviews}
    # Label Studio refuses an import with the name of an annotator that is no account of it.
    assert b"completed_by" not in exported


def test_what_label_studio_exports_is_read() -> None:
    """As version 1.23.2 wrote it: one by its page, one by its interface for programs, one that was
    imported with a reviewer's name, and one that was cancelled.
    """

    def annotation(decision: str, *texts: tuple[str, str], **more: Any) -> dict[str, Any]:
        kinds = [("decision", "choices", {"choices": [decision]})]
        kinds += [(name, "textarea", {"text": [text]}) for name, text in texts]
        result = [
            {"from_name": name, "to_name": "question", "type": kind, "value": value}
            | {"id": "H3z9nHGhmB", "origin": "manual"}
            for name, kind, value in kinds
        ]
        return {"id": 25, "completed_by": 1, "was_cancelled": False, "result": result} | more

    exported = [
        {
            "id": 1,
            "data": {"id": "jsonl:0"},
            "annotations": [annotation("correct", ("answer", "7"))],
        },
        {
            "id": 2,
            "data": {"id": "jsonl:1"},
            "annotations": [
                annotation("accept", ("reviewer", "ann")),
                annotation("reject", ("note", "no"), completed_by={"id": 2, "email": "b@c.d"}),
                annotation("accept", was_cancelled=True, completed_by=3),
            ],
        },
        {"id": 3, "data": {"id": "jsonl:2"}, "annotations": []},
    ]
    assert from_label_studio(msgspec.json.encode(exported), rows()) == {
        "jsonl:0": {"1": Review("correct", "7")},
        "jsonl:1": {"ann": Review("accept"), "b@c.d": Review("reject", note="no")},
    }


def studio(*decisions: str, reference: str = "0", **texts: str) -> bytes:
    """An export of one task, with an annotation for each decision."""

    def result(decision: str) -> list[dict[str, Any]]:
        said = [{"from_name": name, "value": {"text": [text]}} for name, text in texts.items()]
        return [{"from_name": "decision", "value": {"choices": [decision]}}, *said]

    annotations = [{"result": result(each)} for each in decisions]
    data = {"id": "jsonl:0", "reference": reference}
    return json.dumps([{"data": data, "annotations": annotations}]).encode()


def result_of(*values: dict[str, Any]) -> bytes:
    """An export of one task, whose decision has these values."""
    result = [{"from_name": "decision", "value": value} for value in values]
    annotations = [{"result": result}]
    return json.dumps([{"data": {"id": "jsonl:0"}, "annotations": annotations}]).encode()


def test_what_says_nothing_in_an_export_is_passed_over() -> None:
    """A byte order mark, a relation between regions, a note that is null."""
    [task] = json.loads(studio("accept"))
    [annotation] = task["annotations"]
    annotation["result"] += [
        {"type": "relation", "from_id": "a", "to_id": "b"},
        {"from_name": "note", "value": {"text": None}},
    ]
    exported = b"\xef\xbb\xbf" + json.dumps([task]).encode()
    assert from_label_studio(exported, rows()) == {
        "jsonl:0": {"label studio": Review("accept", note="")}
    }


def test_the_same_twice_is_one_decision() -> None:
    accepted = {"jsonl:0": {"label studio": Review("accept")}}
    assert from_label_studio(studio("accept", "accept", answer="0"), rows()) == accepted


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "no JSON export of Label Studio"),
        (
            studio("accept", answer="7"),
            "its decision is 'accept', beside the answer '7'; make that a correction",
        ),
        (studio("reject", answer="7"), "its decision is 'reject', beside the answer '7'"),
        (
            studio("accept", reference="1"),
            "it shows the reference '1', where jsonl:0 now has '0'",
        ),
        (studio("accept", "reject"), "label studio says two things of jsonl:0; keep one"),
        (studio("accept", reviewer="a\nb"), "a reviewer has a name of at most 100"),
        (b'[{"data": {"id": "other"}}]', "task 1 of the export is not fit: it is of the row"),
        (b'[{"data": {"id": "jsonl:0"}, "annotations": [{"result": []}]}]', "task 1"),
        (
            b'[{"data": {"id": "jsonl:0"}, "annotations": [{"result": [{"from_name": "decision",'
            b' "value": {"choices": ["maybe"]}}]}]}]',
            "its decision",
        ),
        (b'[{"id": 1, "question": "q", "decision": "accept"}]', "export the project as JSON .not"),
        (b"id,question,decision", "export the project as JSON .not JSON-MIN"),
        (b'[{"data": {"id": "jsonl:0"}, "annotations": {}}]', "Expected `array`, got `object`"),
        (result_of({"choices": ["accept", "reject"]}), "has 2 decisions; choose one of accept"),
        (result_of({"choices": []}), "has 0 decisions; choose one"),
        (result_of({"text": ["accept"]}), "has no decisions; choose one"),
        (
            result_of({"choices": ["accept"]}, {"choices": ["reject"]}),
            "has two different decisions; keep one",
        ),
        (studio("correct", answer=7), r"its answer is .7., no text"),  # type: ignore[arg-type]
    ],
)
def test_an_export_that_is_not_fit(content: bytes, why: str) -> None:
    with pytest.raises(RunError, match=why):
        from_label_studio(content, rows())


def test_trl_has_what_is_settled() -> None:
    accepted, corrected, rejected, disputed = (
        msgspec.structs.replace(row, reviews=said)
        for row, said in zip(
            rows(),
            [
                {"a": Review("accept")},
                {"a": Review("correct", "99")},
                {"a": Review("reject")},
                {"a": Review("accept"), "b": Review("reject")},
            ],
            strict=True,
        )
    )
    found, left_out = to_trl([accepted, corrected, rejected, disputed])
    assert [each["solution"] for each in found] == ["0", "99"] and left_out == 1
    assert found[0]["prompt"] == [{"role": "user", "content": accepted.question}]


def test_a_pass_rate_goes_with_the_solution_that_it_is_of_to_where_it_is_drawn_by(
    tmp_path: Path,
) -> None:
    first, second, third, last = rows()
    accepted = replace(first, pass_rate=0.25, reviews={"ann": Review("accept")})
    corrected = replace(second, pass_rate=0.5, reviews={"ann": Review("correct", "99")})
    found, _ = to_trl([accepted, corrected, third, replace(last, pass_rate=0.75)])
    assert [each.get("pass_rate") for each in found] == [0.25, None, None, 0.75]
    path = tmp_path / "trl.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in found))
    task = TaskSettings("jsonl", options={"path": str(path)}, held_out=1, draw=DrawSettings())
    tasks = open_tasks([task])
    told = {"0": 0.25, "3": 0.75}
    held_out = tasks.held_out(1)[0].answer
    left = [rate for answer, rate in told.items() if answer != held_out]
    counts = tasks.standing()["jsonl"]
    assert counts.untried == 3 - len(left)
    assert (counts.rates["to 25%"], counts.rates["to 75%"]) == (left.count(0.25), left.count(0.75))


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


def test_exchange_by_command(file: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "interlock.cli", "review", str(file), *arguments]
        return subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE
        )

    studio = tmp_path / "studio.json"
    assert run("--to-label-studio", str(studio)).returncode == 0
    tasks = json.loads(studio.read_text())
    choice = {"from_name": "decision", "type": "choices", "value": {"choices": ["reject"]}}
    tasks[2]["annotations"] = [{"completed_by": 3, "result": [choice]}]
    studio.write_text(json.dumps(tasks))
    taken = run("--from-label-studio", str(studio))
    assert taken.stdout == f"1 rows have decisions of {studio}: 1 reject\n"
    done = run("--to-trl", str(tmp_path / "trl.jsonl"))
    assert "3 rows; 1 rejected, 0 disputed: left out" in done.stdout
    assert run("--to-trl", str(tmp_path / "trl.jsonl")).stdout == done.stdout, "its own, once more"
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "2 + 2?", "answer": "4"}\n')
    for option in ("--to-trl", "--to-label-studio"):
        kept = run(option, str(data))
        told = f"interlock: {data} is there already and holds something else; give a new name\n"
        assert kept.returncode == 2 and kept.stderr == told
    assert data.read_text().startswith('{"question"') and not Path(f"{data}.xml").exists()
    before = file.read_bytes()
    for out in (file, file.with_name("labels.jsonl.setting.json"), tmp_path):
        refused = run("--to-trl", str(out))
        assert refused.returncode == 2 and "the labels themselves" in refused.stderr
    tasks[2]["annotations"] *= 2  # the same again is one
    studio.write_text(json.dumps(tasks))
    assert run("--from-label-studio", str(studio)).stdout == taken.stdout
    assert file.read_bytes() == before
    choice["value"]["choices"] = ["accept"]
    studio.write_text(json.dumps(tasks))
    replaced = run("--from-label-studio", str(studio))
    assert replaced.stdout == (
        f"1 rows have decisions of {studio}: 1 accept; "
        "1 in place of what its reviewer had decided\n"
    )
    before = file.read_bytes()
    choice["value"]["choices"] = ["correct"]
    studio.write_text(json.dumps(tasks))
    refused = run("--from-label-studio", str(studio))
    assert refused.returncode == 2 and "says no other answer than the row has" in refused.stderr
    assert file.read_bytes() == before
    refused = run("--from-label-studio", str(file))
    assert refused.stderr.startswith(f"interlock: {file}: this is no JSON export of Label Studio")
    assert refused.returncode == 2 and file.read_bytes() == before
    missing = run("--from-label-studio", "/nowhere.json")
    assert missing.returncode == 2 and missing.stderr.startswith("interlock: cannot read /nowhere")
