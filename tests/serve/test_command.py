"""`interlock serve` as a user starts it: a process, a real model of random weights, a signal."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from byte_model import make_model, write_tokenizer

from interlock.config.reading import load_serving
from interlock.config.schema import GeneratorSettings
from interlock.config.serving import ReplicaSettings, ServeSettings
from interlock.errors import ConfigError
from interlock.serve.command import access, name_of, terms_of, url_of, versions_of
from interlock.workers.generator import open_generator
from interlock.workers.replicas.crew import PoolTerms

DEADLINE = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "small"
    directory.mkdir()
    make_model(directory)
    write_tokenizer(directory)
    return directory


class Command:
    """The running process."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "interlock.cli", "serve", *map(str, arguments)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("INTERLOCK_")}
        probed = {k: v for k, v in os.environ.items() if k == "INTERLOCK_PROBE"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=clean | probed | environment
        )
        self.said: list[str] = []

    def until(self, mark: str) -> str:
        """The line with `mark` in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if mark in line:
                return line
        raise AssertionError("".join(self.said))

    def end(self, *signals: signal.Signals) -> int:
        for each in signals:
            self.process.send_signal(each)
        _, rest = self.process.communicate(timeout=DEADLINE)
        self.said.append(rest)
        return self.process.returncode


@pytest.fixture
def serving(model: Path) -> Iterator[Command]:
    command = Command(model, "--port", 0, "--dtype", "float32", "replica.slots=4")
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait(DEADLINE)


@pytest.mark.slow
def test_it_says_where_answers_scores_a_prompt_and_ends_at_a_signal(
    serving: Command, model: Path
) -> None:
    line = serving.until("is served at")
    told = re.search(r"small is served at (http://127\.0\.0\.1:\d+)/#key=(\S{32})\n", line)
    assert told, line
    headers = {"Authorization": f"Bearer {told[2]}"}
    with httpx.Client(base_url=told[1], headers=headers, timeout=DEADLINE) as client:
        assert client.get("/health").status_code == 200
        ids = [5, 17, 200, 33, 4, 90]
        ask = {"model": "small", "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1}
        answer = client.post("/v1/completions", json=ask | {"temperature": 0}).json()
        scored = answer["choices"][0]["logprobs"]["token_logprobs"]
        talk = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "seed": 7}
        same = [client.post("/v1/chat/completions", json=talk).json() for _ in range(2)]
    engine = open_generator(
        GeneratorSettings(dtype="float32", slots=1), model, chat_template=None, name="oracle"
    ).engine
    assert scored[0] is None and len(scored) == len(ids) + 1
    assert scored[1:-1] == pytest.approx(engine.score(ids).logprobs, abs=1e-4)
    first, second = (each["choices"][0]["message"]["content"] for each in same)
    assert first == second and first
    logs = re.search(r"their logs are in (\S+)", "".join(serving.said))
    assert logs and (Path(logs[1]) / "replica-0.log").is_file()
    assert serving.end(signal.SIGTERM) == 0, "".join(serving.said)
    assert not Path(logs[1]).exists()
    assert told[2] not in "".join(serving.said[len(serving.said) - 1 :])


@pytest.mark.slow
def test_a_signal_while_it_starts_ends_it(serving: Command) -> None:
    serving.until("starting replica-0; their logs are in")
    assert serving.end(signal.SIGTERM) in (0, 130), "".join(serving.said)


def test_a_port_that_is_taken_is_told(model: Path) -> None:
    from interlock.listening import bound

    taken = bound("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"cannot listen at 127.0.0.1 port {port}"):
        bound("127.0.0.1", port)
    taken.close()


def test_keys_that_open_both_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERLOCK_API_KEY", raising=False)
    monkeypatch.setenv("INTERLOCK_ADMIN_KEY", "z" * 20)
    made = access(None, None)
    assert made.made and made.keys.whose(made.made.encode()) == "key-1"
    assert made.admin.whose(b"z" * 20) == "admin-1"
    file = tmp_path / "keys"
    file.write_text("z" * 20)
    with pytest.raises(ConfigError, match="both an API key and an admin key"):
        access(file, None)


def test_replicas_have_names_of_their_own() -> None:
    tables = [ReplicaSettings(count=2), ReplicaSettings(name="npu", device="npu")]
    assert list(ServeSettings(replica=tables).replicas()) == ["replica-0-0", "replica-0-1", "npu"]


def test_names_and_urls(tmp_path: Path) -> None:
    assert name_of("hf:org/name@main") == "org/name"
    assert name_of(str(tmp_path)) == tmp_path.name
    assert name_of("smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert url_of("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert url_of("::", 1) == "http://[::1]:1" and url_of("::2", 1) == "http://[::2]:1"


def test_what_a_run_publishes_is_found(tmp_path: Path) -> None:
    assert versions_of("s3://bucket/x") == "s3://bucket/x"
    assert versions_of(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing to follow at .*/typo': give the directory"):
        versions_of(str(tmp_path / "typo"))
    assert not (tmp_path / "typo").exists()
    (tmp_path / "manifest.json").write_text(json.dumps({"created": 1764412345.4}))
    (tmp_path / "config.json").write_text(json.dumps({"sync": {"url": None}}))
    with pytest.raises(ConfigError, match="publishes no weights"):
        versions_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"sync": {"url": "s3://b/w"}}))
    assert versions_of(str(tmp_path)) == f"s3://b/w/{tmp_path.name}-1764412345"
    (tmp_path / "sync").mkdir()
    assert versions_of(str(tmp_path)) == str(tmp_path / "sync")


def test_every_term_of_the_pool_can_be_set() -> None:
    given = ["queue=5", "examine_s=2", "load_drain_s=3", "stall_s=4", "unqualified=true"]
    settings = load_serving(None, [*given, "replica.count=2", "reference=replica-0-1"])
    assert terms_of(settings) == PoolTerms(5, 2.0, 3.0, 4.0, True, "replica-0-1")
    assert terms_of(ServeSettings()) == PoolTerms()
