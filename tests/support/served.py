"""`interlock serve` as a process of its own, its workers, and clients that read its streams.

Served ── starts, signals ──> interlock serve ──> workers, by the names of their replicas
Caller ── token ids, a stream ──> /inference/v1/generate ──> Heard
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from live_pool import EXACT

DEADLINE_S = 240.0  # of every wait
API, ADMIN = "k" * 20, "a" * 20
REPLICA = f"""
[[replica]]
name = "{{name}}"
dtype = "{{dtype}}"
kernel = "torch"
fused_attention_above = 512
slots = 8
env = {{{{ OMP_NUM_THREADS = "1", PYTHONPATH = {json.dumps(EXACT.env["PYTHONPATH"])} }}}}
"""
FLEET = """
[fleet]
kind = "local"
backoff_s = 0.1
failures = 100
silence_s = 5
"""


def settings(replicas: dict[str, str], more: str = "") -> str:
    """A serve.toml with replicas of these dtypes; `more`: what stands before all tables."""
    tables = [REPLICA.format(name=name, dtype=dtype) for name, dtype in replicas.items()]
    return f"drain_s = {DEADLINE_S}\n" + more + "".join(tables) + FLEET


class Served:
    """The running server."""

    def __init__(self, model: Path, toml: Path, *more: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "interlock.cli", "serve", str(model)]
        command += ["--config", str(toml), "--port", str(port), *more]
        keys = {"INTERLOCK_API_KEY": API, "INTERLOCK_ADMIN_KEY": ADMIN}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | keys
        )
        self.said: list[str] = []
        self.url, self._known = "", threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"is served at (http://\S+?:\d+)", line):
                self.url = found[1]
                self._known.set()
        self._known.set()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = API) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)

    def facts(self) -> dict[str, dict[str, Any]]:
        """Of every replica, by its name."""
        with self.client() as client:
            model = client.get("/v1/models").json()["data"][0]
        return {each["name"]: each for each in model["replicas"]}

    def until(self, met: Callable[[dict[str, dict[str, Any]]], object]) -> None:
        """Wait until the facts of the replicas make it so."""
        end = time.monotonic() + DEADLINE_S
        while not met(facts := self.facts()):
            assert time.monotonic() < end, (facts, "".join(self.said))
            time.sleep(0.02)

    def ready(self, count: int) -> "Served":
        """Once so many replicas serve."""
        assert self._known.wait(DEADLINE_S) and self.url, "".join(self.said)
        self.until(lambda facts: [f["state"] for f in facts.values()].count("ready") >= count)
        return self

    def idle(self) -> None:
        """Once nothing runs or waits."""
        self.until(lambda facts: not any(each["running"] for each in facts.values()))
        with self.client(ADMIN) as client:
            assert client.get("/admin/replicas").json()["waiting"] == 0

    def worker(self, name: str) -> int | None:
        """The process of a replica; None: it has none now."""
        for pid in children(self.process.pid):
            try:
                log = os.readlink(f"/proc/{pid}/fd/2")
            except OSError:
                continue
            if Path(log).name == f"{name}.log":
                return pid
        return None

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """However it is."""
        below = children(self.process.pid)
        self.process.kill()
        self.process.wait(DEADLINE_S)
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in task.read_text().split()]
        except OSError:
            continue
    return found


@dataclass
class Heard:
    """One answer, or why there is none."""

    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    replicas: list[str] = field(default_factory=list)
    moved: int = 0
    done: bool = False
    error: str = ""

    def take(self, line: str) -> None:
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line[6:])
        if "error" in event:
            self.error = str(event["error"])
            return
        for choice in event["choices"]:
            self.tokens += choice["token_ids"]
            self.versions += choice["versions"]
        if told := event.get("interlock"):
            self.replicas, self.moved = told["replicas"], told["moved"]


class Caller:
    """Threads of clients, each of which asks again as soon as it was answered."""

    def __init__(
        self, url: str, streams: int, body: Callable[[int], dict[str, Any]], key: str = API
    ) -> None:
        """`body` makes the n-th request."""
        self.heard: dict[int, Heard] = {}  # by the number of the request
        self._url, self._body, self._key = url, body, key
        self._numbers, self._lock = iter(range(1 << 60)), threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(streams)]
        for thread in self._threads:
            thread.start()

    def ended(self) -> dict[int, Heard]:
        """Ask nothing more, and wait for what is under way."""
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        return self.heard

    def _ask_on(self) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(headers=headers, timeout=DEADLINE_S) as client:
            while not self._over.is_set():
                with self._lock:
                    number = next(self._numbers)
                heard = hear(client, self._url, self._body(number))
                with self._lock:
                    self.heard[number] = heard


def hear(client: httpx.Client, url: str, body: dict[str, Any]) -> Heard:
    """All of one stream."""
    found = Heard()
    asked = body | {"stream": True}
    try:
        with client.stream("POST", f"{url}/inference/v1/generate", json=asked) as answer:
            if answer.status_code != 200:
                found.error = f"{answer.status_code} {answer.read().decode()}"
            for line in answer.iter_lines() if not found.error else ():
                found.take(line)
    except httpx.HTTPError as error:
        found.error = f"{type(error).__name__}: {error}"
    return found


def asking(number: int, tokens: int, temperature: float = 1.0) -> dict[str, Any]:
    """A request that is a function of its number."""
    rules = {"max_tokens": tokens, "temperature": temperature, "seed": number, "ignore_eos": True}
    return {"token_ids": [1 + number % 200, 2, 3], "sampling_params": rules | {"logprobs": 0}}
