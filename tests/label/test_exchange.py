"""Reviews go to Label Studio and TRL and come back; a task that is not fit is named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled import rows
from msgspec.structs import replace
from running import DEADLINE, ENVIRONMENT

from interlock.config.drawing import DrawSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import RunError
from interlock.label.review.exchange import from_label_studio, to_label_studio, to_trl
from interlock.label.rows import Review
from interlock.tasks.mixture import open_tasks

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
