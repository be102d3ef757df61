"""The live page: what is read of a growing run, and what is told over HTTP."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import DEADLINE, ENVIRONMENT

from interlock.records.metrics import RolloutMetrics, StepMetrics, StepSeconds
from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.report.live import following
from interlock.report.live.answers import changes, held_out, rollouts
from interlock.report.live.following import Following
from interlock.report.live.series import MOST
from interlock.rundir import RunDir

CONFIG = {
    "model": {"path": "m"},
    "stage": [
        {"kind": "sft", "steps": 2, "data": "x.jsonl"},
        {"kind": "grpo", "steps": 4, "task": [{"name": "arithmetic"}]},
    ],
}


def step(stage: int, number: int, reward: float | None = None) -> StepMetrics:
    return StepMetrics(
        stage=stage,
        step=number,
        rollout=RolloutMetrics(reward=reward),
        seconds=StepSeconds(step=2.0),
    )


def answered(problem: str, text: str, right: bool) -> ScoredGroup:
    asked = Problem(problem, [{"role": "user", "content": f"{problem}?"}], "42")
    completion = Completion.sampled([1], [-0.5], FinishReason.STOP, text, 0)
    return ScoredGroup(Group(asked, [5], [completion], "w"), [Verdict(float(right))])


# -- Following ------------------------------------------------------------------------------------


def test_speed_is_told_of_a_long_run_that_began_with_an_evaluation(tmp_path: Path) -> None:
    """Step 0 has seconds and no tokens: the buckets of the two do not begin at the same steps."""
    (tmp_path / "run").mkdir()
    rollout = RolloutMetrics(reward=1.0, tokens=500)
    with open(tmp_path / "run" / "metrics.jsonl", "wb") as file:
        file.write(msgspec.json.encode(step(0, 0)) + b"\n")
        for number in range(1, 3 * MOST):
            made = StepMetrics(stage=0, step=number, rollout=rollout, seconds=StepSeconds(step=2.0))
            file.write(msgspec.json.encode(made) + b"\n")
    following = Following(tmp_path / "run")
    while following.poll():
        pass
    speed = following.after(-1)["speed"]
    assert len(speed.x) > MOST / 2 and set(speed.y) == {250.0}
    assert following.newest()["speed"] == 250.0


def test_of_a_line_without_an_end_little_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AT_ONCE", 1000)
    monkeypatch.setattr(following, "_LONGEST", 3000)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(
        msgspec.json.encode(step(0, 1, 0.5)) + b"\n" + b"x" * 20_000 + b"\n"
        + msgspec.json.encode(step(0, 2, 0.75)) + b"\n"
    )  # fmt: skip
    run = Following(tmp_path / "run")
    while run.poll():
        assert len(run._metrics._rest) <= 3000
    assert run.after(-1)["rollout.reward"].y == [0.5, 0.75]
    assert run.trouble.count("metrics.jsonl has a damaged line") == 1
    assert "the last of" not in run.trouble


def test_every_damage_is_told_and_counted(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        run.log(step(0, 1, 0.5))
        run.event("resumed", "resumed")
    for name, bad in (("metrics", 3), ("events", 1)):
        with open(tmp_path / "run" / f"{name}.jsonl", "ab") as file:
            file.write(b"\xff\xfe\n" * bad + b'{"torn')
    (tmp_path / "run" / "config.json").write_text('{"stage": 5}')
    following = Following(tmp_path / "run")
    following.poll()
    config, metrics, events = following.trouble.split(" · ")
    assert "config.json: Expected `array`, got `int`" in config
    assert "metrics.jsonl has a damaged line" in metrics
    assert metrics.endswith("; delete that line, the last of 3")
    assert "events.jsonl has a damaged line" in events and "the last of" not in events
    assert following.status == "unreadable" and following.event_count == 1
    (tmp_path / "run" / "config.json").write_bytes(msgspec.json.encode(CONFIG))
    following.poll()
    assert following.status == "finished"
    assert following.trouble.split(" · ") == [
        metrics,
        events,
        "metrics.jsonl ends within a line, which is not shown",
        "events.jsonl ends within a line, which is not shown",
    ]
    following.close()


def test_a_run_that_is_gone_is_told_and_found_again(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        run.log(step(0, 1, 0.5))
    following = Following(tmp_path / "run")
    following.poll()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    before = following.version
    following.poll()
    assert following.status == "gone" and following.version > before
    assert following.trouble == (
        f"cannot read {tmp_path / 'run'} any more: No such file or directory; put it back, or "
        "watch it where it is now"
    )
    assert following.after(-1)["rollout.reward"].y == [0.5]
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    following.poll()
    assert (following.status, following.trouble) == ("finished", "")
    following.close()


def test_what_goes_wrong_with_one_run_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake of ours, too: whoever watches several goes on with the others."""

    def broken(view: object) -> int:
        raise ZeroDivisionError("as it happens")

    monkeypatch.setattr(following, "_length", broken)
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        run.log(step(0, 1, 0.5))
    followed = Following(tmp_path / "run")
    followed.poll()
    assert "cannot be followed (ZeroDivisionError: as it happens)" in followed.trouble
    assert followed.after(-1)["rollout.reward"].y == [0.5]
    followed.close()


def test_a_run_is_followed_over_stages_and_a_resume(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        following = Following(tmp_path / "run")
        for logged in (step(0, 0), step(0, 1), step(0, 2), step(1, 0), step(1, 1, 0.25)):
            run.log(logged)
        following.poll()
        assert (following.status, following.x, following.steps) == ("running", 4, 6)
        assert following.seconds_left == pytest.approx(3 * 2.0)
        assert following.after(-1)["rollout.reward"].x == [4.0]
        run.log(step(1, 2, 0.5))
        run.log(step(1, 3, 0.75))
        following.poll()
        before = following.generation
        run.log(step(1, 2, 0.6))  # killed behind a checkpoint, and resumed
        run.event("resumed", "resumed from stage 1 step 1")
        following.poll()
        reward = following.after(-1)["rollout.reward"]
        assert (reward.x, reward.y) == ([4.0, 5.0], [0.25, 0.6])
        assert following.generation == before + 1 and following.event_count == 1
        assert following.after(4)["rollout.reward"].x == [5.0]
    following.poll()
    assert following.status == "finished" and following.seconds_left is None
    following.close()


@pytest.mark.parametrize("damage", [b"{nonsense}", b'{"stage":0,"step":2,"more":' + b"[" * 5000])
def test_damage_is_told_and_what_was_read_stays(tmp_path: Path, damage: bytes) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        run.log(step(0, 1, 0.5))
        following = Following(tmp_path / "run")
        following.poll()
        with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
            file.write(damage + b"\n")
        following.poll()
        assert "metrics.jsonl has a damaged line" in following.trouble
        run.log(step(0, 2, 0.75))
        following.poll()
        following.poll()
        assert "metrics.jsonl has a damaged line" in following.trouble
        assert following.after(-1)["rollout.reward"].y == [0.5, 0.75]
        following.close()


@pytest.mark.parametrize("content", ["", "{", '{"status": 3}'])
def test_a_manifest_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    with RunDir.create(tmp_path / "run", {}, {}) as run:
        run.log(step(0, 1, 0.5))
    manifest = tmp_path / "run" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(content)
    following = Following(tmp_path / "run")
    following.poll()
    assert "manifest.json" in following.trouble and "\n" not in following.trouble
    assert following.after(-1)["rollout.reward"].y == [0.5]
    manifest.write_text(whole)
    following.poll()
    assert (following.trouble, following.status) == ("", "finished")
    following.close()


def test_memory_is_flat(tmp_path: Path) -> None:
    """Kept are buckets, not steps: twice as many steps are no more points."""
    (tmp_path / "run").mkdir()
    following, kept = Following(tmp_path / "run"), []
    for part in range(4):
        with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
            for number in range(5000 * part, 5000 * (part + 1)):
                file.write(msgspec.json.encode(step(0, number, 1.0)) + b"\n")
        while following.poll():
            pass
        kept.append(sum(len(points.x) for points in following.after(-1).values()))
    assert following.x == 19_999 and all(number < 2 * 2 * MOST for number in kept)


@pytest.mark.parametrize("blank", [b"\n", b"{\n}\n", b'{"stage":0,\n"step":2}\n'])
def test_what_is_json_and_yet_no_line_is_damage(tmp_path: Path, blank: bytes) -> None:
    """Among whole lines, which are read at a stroke."""
    (tmp_path / "run").mkdir()
    lines = [msgspec.json.encode(step(0, number, 0.5)) + b"\n" for number in (1, 3)]
    (tmp_path / "run" / "metrics.jsonl").write_bytes(lines[0] + blank + lines[1])
    run = Following(tmp_path / "run")
    run.poll()
    assert "metrics.jsonl has a damaged line" in run.trouble
    assert run.after(-1)["rollout.reward"].x == [1.0, 3.0]


# -- Answers --------------------------------------------------------------------------------------


def test_words_that_changed() -> None:
    assert changes(None, "7 + 5 = 11") == [("same", "7 + 5 = 11")]
    found = changes("7 + 5 = 11", "7 + 5 = 12")
    assert found == [("same", "7 + 5 = "), ("gone", "11"), ("new", "12")]
    assert changes("x", "\x1b[31m")[-1][1].startswith("␛")


@given(st.text(max_size=60), st.text(max_size=60))
def test_both_texts_can_be_read_out_of_the_changes(old: str, new: str) -> None:
    from interlock.text import visible

    found = changes(old, new)
    assert "".join(text for kind, text in found if kind != "new") == visible(old)
    assert "".join(text for kind, text in found if kind != "gone") == visible(new)


def test_answers_come_from_the_ledger(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        for number, text in ((0, "it is 41"), (2, "it is 42")):
            held = [answered("a", text, number == 2), answered("b", "no", False)]
            run.ledger.record_evaluation(1, number, held)
        for number in (1, 2, 3):
            group = answered(f"p{number}", f"t{number}", True)
            run.ledger.record(1, number, [group], [number])
        assert rollouts(run, 1, 99)["at"] == (1, 3)
        middle = rollouts(run, 1, 2)
        assert (middle["before"], middle["next"]) == ((1, 1), (1, 3))
        assert middle["groups"][0]["answers"][0]["text"] == "t2"
        told = held_out(run, 2)  # of two problems: the first again
        assert [(each["at"], each["right"]) for each in told["evaluations"]] == [
            ((1, 0), False),
            ((1, 2), True),
        ]
        assert ("new", "42") in told["evaluations"][1]["words"]


@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_of_a_run_whose_ledger_is_damaged_all_else_is_shown(tmp_path: Path, damage: str) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        for number in (1, 2):
            run.ledger.record(1, number, [answered("p", f"t{number}", True)], [number])
            run.log(step(1, number, number / 4))
    ledger = tmp_path / "run" / "ledger.sqlite"
    whole = ledger.read_bytes()
    ledger.write_bytes(b"no database" * 500 if damage == "garbage" else whole[: len(whole) // 2])
    following = Following(tmp_path / "run")
    for _ in range(3):  # and it is not read again and again
        following.poll()
        view = following.view
    assert following.poll() is False and following.view is view
    assert (following.status, following.steps) == ("finished", 6)
    assert following.after(-1)["rollout.reward"].y == [0.25, 0.5]
    assert following.trouble.startswith("no answers are shown: ") and "\n" not in following.trouble
    assert str(tmp_path / "run") in following.trouble and "ledger" in following.trouble
    assert view is not None and rollouts(view, 1, 1)["groups"] == []
    ledger.unlink()
    ledger.write_bytes(whole)  # put back
    following.poll()
    assert following.trouble == "" and following.view is not None
    assert rollouts(following.view, 1, 1)["groups"][0]["answers"][0]["text"] == "t1"
    following.close()


def test_a_damaged_answer_is_told_of_and_the_others_are_shown(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as run:
        groups = [answered(f"p{number}", f"t{number}", True) for number in range(3)]
        run.ledger.record(1, 1, groups, [0, 1, 2])
        for number in (0, 1):
            run.ledger.record_evaluation(1, number, [answered("held", f"h{number}", True)])
        with run.ledger.transaction() as database:
            for row in (
                "groups SET payload = x'00' WHERE position = 1",
                "evaluations SET sha256 = 'x' WHERE step = 0",
            ):
                database.execute(f"UPDATE {row}")
        told = rollouts(run, 1, 1)
        assert [group["answers"][0]["text"] for group in told["groups"]] == ["t0", "t2"]
        where = f"{run.path}/ledger.sqlite: groups, stage 1 step 1 position 1 is damaged"
        assert told["damage"].startswith(where)
        told = held_out(run, 0)
        assert [each["words"] for each in told["evaluations"]] == [[("same", "h1")]]
        assert "evaluations, stage 1 step 0 position 0 is damaged" in told["damage"]


# -- Over HTTP ------------------------------------------------------------------------------------


class Page:
    """`interlock watch` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "interlock.cli", "watch", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.split("/")[2].rpartition(":")[2])

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def json(self, path: str) -> Any:
        response = self.get(path)
        assert response.status == 200, response.read()
        return json.loads(response.read())

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "run", CONFIG, {}) as made:
        made.log(step(0, 0))
        made.log(step(0, 1, 0.5))
        yield made


def test_a_step_reaches_those_who_watch(run: RunDir) -> None:
    page = Page(str(run.path))
    try:
        had = [[-1, 0, 0]]
        stream = page.get(f"/stream?had={json.dumps(had).replace(' ', '')}")
        first = _message(stream)
        while not first.get("series"):  # it reads the file once it is up
            first = _message(stream)
        assert first["series"]["rollout.reward"] == {
            "x": [1.0],
            "y": [0.5],
            "low": [0.5],
            "high": [0.5],
        }
        run.log(step(0, 2, float("nan")))
        run.event("bad_step", "not finite: \x1b[31m<b>")
        told: dict[str, Any] = {}
        while not (told.get("events") and told.get("step") == 2):
            told = _message(stream)
        assert told["events"][-1]["message"] == "not finite: ␛[31m<b>"
        whole = page.json("/runs/0")
        assert (whole["step"], whole["status"], whole["steps"]) == (2, "running", 6)
        assert whole["series"]["seconds.step"]["x"] == [0.0, 1.0, 2.0]
        assert page.json("/runs/0/rollouts") == {"steps": 0, "groups": []}
        assert page.get("/runs/1").status == 404
        assert page.get("/stream?had=x").status == 400
    finally:
        page.end()


def test_it_answers_to_its_own_name_alone_and_lets_only_its_own_scripts_run(run: RunDir) -> None:
    page = Page(str(run.path))
    try:
        assert page.get("/runs", Host="elsewhere.example").status == 400
        response = page.get("/")
        assert response.status == 200 and b"uPlot" in response.read()
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert page.get("/openapi.json").status == 404
    finally:
        page.end()


def test_beyond_this_machine_it_asks_for_a_key(run: RunDir) -> None:
    page = Page(str(run.path), "--host", "0.0.0.0")
    try:
        assert page.get("/runs").status == 401
        assert page.get("/?key=wrong").status == 401
        entered = page.get("/" + page.url.rpartition("/")[2])
        cookie = entered.headers["Set-Cookie"]
        assert entered.status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert page.get("/runs", Cookie=cookie.partition(";")[0]).status == 200
    finally:
        page.end()


def test_one_beside_a_run_ends_with_it(run: RunDir) -> None:
    from interlock.cli.watching import beside

    with beside(run.path) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        connection.request("GET", "/runs")
        assert json.loads(connection.getresponse().read())[0]["name"] == "run"
        connection.close()
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/runs")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["/nowhere"], "there is no run at /nowhere; give the directory a run writes to"),
        (["RUN", "--port", "99999"], "--port 99999 is no port; give one from 0 to 65535"),
        (["RUN", "--host", "no.such.host.invalid"], "give another --host or --port"),
    ],
)
def test_mistakes_are_one_line(run: RunDir, arguments: list[str], why: str) -> None:
    command = [sys.executable, "-m", "interlock.cli", "watch"]
    command += [str(run.path) if each == "RUN" else each for each in arguments]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and why in line


def _message(stream: http.client.HTTPResponse) -> dict[str, Any]:
    """The next of a stream of events."""
    timer = threading.Timer(DEADLINE, stream.close)
    timer.start()
    try:
        while True:
            line = stream.readline()
            assert line, "the stream ended"
            if line.startswith(b"data: "):
                return dict(json.loads(line[6:]))
    finally:
        timer.cancel()
