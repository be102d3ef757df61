import os
import random
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.errors import RunError
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Verdict,
    VerdictStatus,
)
from interlock.rundir import Ledger

MakeGroup = Callable[..., ScoredGroup]


def group(problem: str, text: str = "4") -> Group:
    completion = Completion.sampled(
        [5, 6], [-0.5, -0.25], FinishReason.STOP, text, weight_version=3
    )
    return Group(Problem(problem, [], "4"), [1, 2, 3], [completion], worker="w0")


def test_groups_come_back_equal_and_in_order(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = [make_group("b", 1.0, 0.0), make_group("a", 0.0, 0.5)]
    ledger.record(0, 2, first, [7, 4])
    ledger.record(0, 10, [make_group("c", 1.0, 1.0)], [5])
    ledger.record(1, 1, [make_group("d", 0.0, 1.0)], [4])  # every stage has its own stream
    assert ledger.read(0, 2) == first
    assert [group.group.problem.id for group in ledger.read(0, 2)] == ["b", "a"]
    assert ledger.read(0, 3) == []
    assert ledger.steps() == [(0, 2), (0, 10), (1, 1)]
    assert ledger.count() == 4
    assert (ledger.sequences(0, 2), ledger.sequences(0, 3)) == ([7, 4], [])
    assert (ledger.used(0), ledger.used(1), ledger.used(2)) == ({4, 5, 7}, {4}, set())


def test_recording_again_changes_nothing_when_equal(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [make_group("a", 1.0), make_group("b", 0.0)]
    ledger.record(0, 1, groups, [0, 1])
    ledger.record(0, 1, groups, [0, 1])
    assert ledger.count() == 2


@pytest.mark.parametrize("change", ["reward", "fewer", "more", "order", "sequences"])
def test_recording_other_groups_is_refused(
    tmp_path: Path, make_group: MakeGroup, change: str
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    groups = [make_group("a", 1.0), make_group("b", 0.0)]
    others = {
        "reward": ([make_group("a", 1.0), make_group("b", 0.5)], [0, 1]),
        "fewer": (groups[:1], [0]),
        "more": ([*groups, make_group("c", 0.0)], [0, 1, 2]),
        "order": (groups[::-1], [1, 0]),
        "sequences": (groups, [0, 2]),
    }
    ledger.record(0, 1, groups, [0, 1])
    with pytest.raises(RunError, match="holds other groups for stage 0 step 1"):
        ledger.record(0, 1, *others[change])
    assert ledger.read(0, 1) == groups
    ledger.record(0, 2, groups, [2, 3])  # the refusal left no transaction open
    assert ledger.count() == 4


def test_evaluations_are_kept_apart_from_groups(tmp_path: Path, make_group: MakeGroup) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    before, after = [make_group("a", 0.0)], [make_group("a", 1.0)]
    ledger.record_evaluation(0, 40, after)
    ledger.record_evaluation(0, 0, before)
    ledger.record(0, 1, [make_group("z", 1.0)], [0])
    assert ledger.evaluation_steps() == [(0, 0), (0, 40)]
    assert ledger.read_evaluation(0, 0) == before
    assert ledger.read_evaluation(0, 40) == after
    assert ledger.steps() == [(0, 1)]


def test_a_reader_sees_what_a_writer_committed(tmp_path: Path, make_group: MakeGroup) -> None:
    path = tmp_path / "ledger.sqlite"
    writer = Ledger(path)
    writer.record(0, 1, [make_group("a", 1.0)], [0])
    reader = Ledger.read_only(path)
    assert reader.count() == 1
    writer.record(0, 2, [make_group("b", 1.0)], [1])
    assert reader.count() == 2
    with pytest.raises(RunError, match="read-only"):
        reader.record(0, 3, [make_group("c", 1.0)], [2])


def test_no_file_reads_as_empty_and_is_not_created(tmp_path: Path) -> None:
    ledger = Ledger.read_only(tmp_path / "ledger.sqlite")
    assert (ledger.count(), ledger.steps(), ledger.read_evaluation(0, 0)) == (0, [], [])
    assert (ledger.arrivals(0), ledger.used(0), ledger.set_asides(0)) == ([], set(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_changed_payload_is_noticed(tmp_path: Path, make_group: MakeGroup) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.record(0, 1, [make_group("a", 1.0), make_group("b", 1.0)], [0, 1])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE groups SET payload = X'00' WHERE position = 1")
    with pytest.raises(RunError, match="stage 0 step 1 position 1 is damaged"):
        ledger.read(0, 1)
    ledger.arrive(0, [(8, group("c"))])
    with sqlite3.connect(path) as database:
        database.execute("UPDATE arrivals SET payload = X'00'")
    with pytest.raises(RunError, match="arrivals, stage 0 sequence 8 is damaged"):
        ledger.arrivals(0)


def test_a_group_waits_from_its_arrival_until_it_is_used(
    tmp_path: Path, make_group: MakeGroup
) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    assert ledger.arrive(0, [(9, group("i")), (2, group("b")), (4, group("d"))]) == [9, 2, 4]
    assert ledger.arrive(1, [(2, group("other stage"))]) == [2]
    assert ledger.arrive(0, [(4, group("d", text="newer"))]) == [4]
    waiting = [(2, group("b")), (4, group("d", text="newer")), (9, group("i"))]
    assert ledger.arrivals(0) == Ledger.read_only(path).arrivals(0) == waiting
    ledger.record(0, 1, [make_group("i", 1.0), make_group("b", 0.0)], [9, 2])
    assert ledger.arrivals(0) == waiting[1:2]
    assert ledger.arrivals(1) == [(2, group("other stage"))]
    ledger.discard(0, [4, 77])
    assert ledger.arrivals(0) == []
    assert ledger.arrive(0, []) == []


def test_a_used_group_that_arrives_again_is_not_accepted(
    tmp_path: Path, make_group: MakeGroup
) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.record(0, 1, [make_group("a", 1.0)], [3])
    assert ledger.arrive(0, [(2, group("b")), (3, group("a")), (4, group("c"))]) == [2, 4]
    assert [sequence for sequence, _ in ledger.arrivals(0)] == [2, 4]
    assert ledger.arrive(1, [(3, group("a"))]) == [3]


def test_no_group_is_used_twice(tmp_path: Path, make_group: MakeGroup) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.arrive(0, [(5, group("e"))])
    ledger.record(0, 1, [make_group("a", 1.0), make_group("b", 0.0)], [3, 4])
    clash = [make_group("e", 1.0), make_group("b", 0.0)]
    with pytest.raises(RunError, match="stage 0 step 2 would use the group of problem 4 of the"):
        ledger.record(0, 2, clash, [5, 4])
    with pytest.raises(RunError, match="problem 6 of the stream a second time"):
        ledger.record(0, 2, clash, [6, 6])
    assert ledger.read(0, 2) == [] and ledger.used(0) == {3, 4}
    assert [sequence for sequence, _ in ledger.arrivals(0)] == [5]  # the refusal took nothing
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError):
        database.execute("INSERT INTO groups VALUES (0, 9, 0, 4, 'p', X'00', '')")
    with pytest.raises(ValueError):
        ledger.record(0, 2, clash, [7])


def test_problems_are_set_aside_for_their_first_reason(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.set_aside(0, 8, "lost 3 workers")
    ledger.set_aside(0, 2, "too long")
    ledger.set_aside(0, 8, "again")
    ledger.set_aside(1, 8, "elsewhere")
    ledger.close()
    assert Ledger(path).set_asides(0) == {2: "too long", 8: "lost 3 workers"}
    assert Ledger.read_only(path).set_asides(1) == {8: "elsewhere"}


def of_format_2(path: Path) -> None:
    """A ledger as it was written before completions had segments and verdicts a status."""
    problem = {"id": "p", "messages": [{"role": "user", "content": "q"}], "answer": "4", "meta": {}}
    answers = [
        {"tokens": [5, 6], "logprobs": [-0.5, -0.25], "finish": finish, "text": text,
         "weight_version": 3}
        for finish, text in (("stop", "4"), ("length", "5"), ("stop", "6"), ("stop", "7"))
    ]  # fmt: skip
    group = {"problem": problem, "prompt_tokens": [1], "completions": answers, "worker": "w0"}
    verdicts = [
        {"reward": 1.0, "error": None},
        {"reward": 0.0, "error": "no verdict within 5 s"},
        {"reward": 0.0, "error": "the verifier's process ended (signal 9)"},
        {"reward": 0.0, "error": "ValueError: odd"},
    ]
    with sqlite3.connect(path) as database:
        sealed = "problem_id TEXT NOT NULL, payload BLOB NOT NULL, sha256 TEXT NOT NULL"
        place = "stage INTEGER NOT NULL, step INTEGER NOT NULL, position INTEGER NOT NULL"
        database.execute(f"CREATE TABLE groups ({place}, sequence INTEGER NOT NULL, {sealed})")
        database.execute(f"CREATE TABLE evaluations ({place}, {sealed})")
        database.execute(f"CREATE TABLE arrivals (stage INTEGER, sequence INTEGER, {sealed})")
        database.execute("CREATE TABLE set_asides (stage INTEGER, sequence INTEGER, reason TEXT)")
        arrived = msgspec.msgpack.encode(group)
        scored = msgspec.msgpack.encode({"group": group, "verdicts": verdicts})
        kept, used = ((data, sha256(data).hexdigest()) for data in (arrived, scored))
        database.execute("INSERT INTO groups VALUES (0, 1, 0, 7, 'p', ?, ?)", used)
        database.execute("INSERT INTO evaluations VALUES (0, 0, 0, 'p', ?, ?)", used)
        database.execute("INSERT INTO arrivals VALUES (0, 9, 'p', ?, ?)", kept)
        database.execute("PRAGMA user_version = 2")


def test_a_ledger_of_format_2_is_read(tmp_path: Path) -> None:
    of_format_2(tmp_path / "ledger.sqlite")
    ledger = Ledger.read_only(tmp_path / "ledger.sqlite")
    [scored] = ledger.read(0, 1)
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    answers = [
        Completion.sampled([5, 6], [-0.5, -0.25], finish, text, weight_version=3)
        for finish, text in ((stop, "4"), (length, "5"), (stop, "6"), (stop, "7"))
    ]
    question = Problem("p", [{"role": "user", "content": "q"}], "4")
    assert scored.group == Group(question, [1], answers, "w0")
    assert scored.verdicts == [
        Verdict(1.0),
        Verdict.failed(VerdictStatus.TIMEOUT, "no verdict within 5 s"),
        Verdict.failed(VerdictStatus.CRASHED, "the verifier's process ended (signal 9)"),
        Verdict.failed(VerdictStatus.ERROR, "ValueError: odd"),
    ]
    assert scored.right == [True, False, False, False]
    assert ledger.read_evaluation(0, 0) == [scored]
    assert ledger.arrivals(0) == [(9, scored.group)]
    assert (ledger.steps(), ledger.used(0)) == ([(0, 1)], {7})


def test_a_ledger_of_format_2_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    of_format_2(path)
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"format 2, which .* finish the run with the version that"):
        Ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("row", [b"\x80", b"\x81\xa5group\x80", b"\xc0", b"\x90", b"\xff"])
def test_a_row_that_is_not_of_format_2_is_named(tmp_path: Path, row: bytes) -> None:
    of_format_2(tmp_path / "ledger.sqlite")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        digest = sha256(row).hexdigest()
        database.execute("UPDATE groups SET payload = ?, sha256 = ?", (row, digest))
    with pytest.raises(RunError, match="stage 0 step 1 position 0 was written by another version"):
        Ledger.read_only(tmp_path / "ledger.sqlite").read(0, 1)


@pytest.mark.parametrize("version", [0, 1, 99])
def test_a_ledger_of_another_format_is_refused_unchanged(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE groups (stage INTEGER)")
        database.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    for kind in (Ledger, Ledger.read_only):
        with pytest.raises(RunError, match=f"has ledger format {version}, and this version of"):
            kind(path)
    assert path.read_bytes() == before


def test_a_kill_before_the_first_table_leaves_a_ledger_to_begin(
    tmp_path: Path, make_group: MakeGroup
) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()
    assert Ledger.read_only(path).count() == 0
    assert path.read_bytes() == b""
    Ledger(path).record(0, 1, [make_group("a", 1.0)], [0])
    assert Ledger.read_only(path).count() == 1


def test_two_threads_share_a_ledger(tmp_path: Path, make_group: MakeGroup) -> None:
    """One lets groups arrive while the other uses them, as dispatcher and learner do."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    count, errors = 60, []

    def arrive() -> None:
        try:
            for sequence in range(count):
                assert ledger.arrive(0, [(sequence, group(f"p{sequence}"))]) == [sequence]
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=arrive)
    thread.start()
    step, deadline = 0, time.monotonic() + 60
    while len(ledger.used(0)) < count:
        assert time.monotonic() < deadline and not errors
        if waiting := ledger.arrivals(0):
            step += 1
            scored = [ScoredGroup(group, [Verdict(1.0)]) for _, group in waiting]
            ledger.record(0, step, scored, [sequence for sequence, _ in waiting])
    thread.join(timeout=60)
    assert not errors and ledger.arrivals(0) == []
    order = [sequence for _, step in ledger.steps() for sequence in ledger.sequences(0, step)]
    assert order == list(range(count))


# Groups arrive three at a time and are used two at a time; each call that returned is printed.
WRITER = """
import sys
from pathlib import Path
from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.rundir import Ledger

def group(sequence):
    completion = Completion.sampled([sequence], [-0.5], FinishReason.STOP, "x" * 5_000, 0)
    return Group(Problem(f"p{sequence}", [], "a"), [1], [completion], "w")

ledger = Ledger(Path(sys.argv[1]))
print("open", flush=True)
while True:
    waiting = ledger.arrivals(0)
    if len(waiting) < 2:
        known = ledger.used(0) | {sequence for sequence, _ in waiting}
        first = max(known, default=-1) + 1
        ledger.arrive(0, [(first + more, group(first + more)) for more in range(3)])
        print("arrived", first, first + 1, first + 2, flush=True)
    else:
        step = len(ledger.steps()) + 1
        scored = [ScoredGroup(group, [Verdict(1.0)]) for _, group in waiting[:2]]
        sequences = [sequence for sequence, _ in waiting[:2]]
        ledger.record(0, step, scored, sequences)
        print("used", *sequences, flush=True)
"""


def test_sigkill_loses_no_arrival_and_uses_none_twice(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    path, moments = tmp_path / "ledger.sqlite", random.Random(3)
    confirmed: dict[str, set[int]] = {"arrived": set(), "used": set()}
    for _ in range(8):
        process = child(WRITER, path)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        output, errors = process.communicate(timeout=60)
        assert errors == ""
        for line in output.splitlines(keepends=True):
            if line.endswith("\n"):
                kind, *sequences = line.split()
                confirmed[kind] |= set(map(int, sequences))
        ledger = Ledger.read_only(path)
        used = [s for stage, step in ledger.steps() for s in ledger.sequences(stage, step)]
        waiting = [sequence for sequence, _ in ledger.arrivals(0)]
        assert used + waiting == list(range(len(used) + len(waiting)))  # each exactly once
        assert confirmed["used"] <= set(used) and confirmed["arrived"] <= set(used + waiting)
        problems = [g.group.problem.id for _, step in ledger.steps() for g in ledger.read(0, step)]
        assert problems == [f"p{sequence}" for sequence in used]
    assert len(confirmed["used"]) > 20  # the kills hit a ledger that was getting somewhere


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "discard", "record"]),
        st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True),
        st.integers(1, 3),  # step
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(CALLS)
def test_any_calls_leave_what_a_dict_would(calls: list[tuple[str, list[int], int]]) -> None:
    waiting: dict[int, Group] = {}
    steps: dict[int, list[int]] = {}
    with TemporaryDirectory() as directory:
        ledger = Ledger(Path(directory, "ledger.sqlite"))
        for index, (call, sequences, step) in enumerate(calls):
            used = {sequence for own in steps.values() for sequence in own}
            scored = [ScoredGroup(group(f"p{x}"), [Verdict(1.0)]) for x in sequences]
            if call == "arrive":
                given_now = {x: group(f"p{x}", text=str(index)) for x in sequences}
                fresh = {x: found for x, found in given_now.items() if x not in used}
                assert ledger.arrive(0, list(given_now.items())) == list(fresh)
                waiting |= fresh
            elif call == "discard":
                ledger.discard(0, sequences)
                waiting = {x: found for x, found in waiting.items() if x not in sequences}
            elif steps.get(step, sequences) != sequences or (
                step not in steps and used & set(sequences)
            ):
                with pytest.raises(RunError):
                    ledger.record(0, step, scored, sequences)
            else:
                ledger.record(0, step, scored, sequences)
                steps[step] = sequences
                waiting = {x: found for x, found in waiting.items() if x not in sequences}
            assert ledger.arrivals(0) == sorted(waiting.items(), key=lambda item: item[0])
            assert {step: ledger.sequences(0, step) for _, step in ledger.steps()} == steps
        ledger.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, " * 100)
    for kind in (Ledger, Ledger.read_only):
        with pytest.raises(RunError, match="not an SQLite file"):
            kind(tmp_path / "ledger.sqlite")


def test_a_commit_waits_for_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    read = ledger._database.execute
    assert read("PRAGMA journal_mode").fetchone() == ("wal",)
    assert read("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.parametrize("open_ledger", [Ledger, Ledger.read_only])
def test_a_pipe_in_a_ledgers_place_is_refused_at_once(
    open_ledger: Callable[[Path], Ledger], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    os.mkfifo(path)  # which SQLite would open, and wait
    with pytest.raises(RunError, match="is no file"):
        open_ledger(path)
