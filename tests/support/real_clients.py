"""`interlock serve` as a user starts it, and programs of clients, each in its own environment."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PROGRAMS = Path(__file__).parents[1] / "clients"
ENVIRONMENTS = PROGRAMS.parents[1] / ".venv-clients"
MODEL = "smollm2-135m-instruct"


class Served(NamedTuple):
    """Where a server listens, and its keys."""

    url: str
    key: str
    admin: str
    model: str = MODEL

    def environment(self) -> dict[str, str]:
        """What a client's program is given, beside what it was started with."""
        given = {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": self.key}
        given |= {"INTERLOCK_ADMIN_KEY": self.admin, "INTERLOCK_MODEL": self.model}
        return given | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def metric(self, name: str) -> float:
        """The sum of a metric of /metrics over its labels."""
        headers = {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))


class Client:
    """One client: its program is run once, and its sections are asked of what it printed."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.told = cache(self._told)

    def __call__(self, environment: str, program: str, section: str) -> dict[str, Any]:
        found = self.told(environment, program)[section]
        assert "failed" not in found, found["failed"]
        return found

    def _told(self, environment: str, program: str) -> dict[str, Any]:
        return run(environment, program, self._served)


def run(environment: str, program: str, served: Served, *sections: str) -> dict[str, Any]:
    """What the program of a client printed."""
    done = subprocess.run(
        [*interpreter(environment), str(placed(program, environment)), *sections],
        env=os.environ | served.environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0 and lines, done.stderr[-4000:]
    return json.loads(lines[-1])


def interpreter(environment: str) -> list[str]:
    """Skips where `make client-environments` could not make it."""
    directory = ENVIRONMENTS / environment
    if not (directory / ".installed").exists():
        pytest.skip(f"no environment {directory}: make client-environments")
    if environment != "npm":
        return [str(directory / "bin/python")]
    if (node := shutil.which("node")) is None:
        pytest.skip("no node")
    return [node]


def placed(program: str, environment: str) -> Path:
    """A program of node finds its packages beside itself."""
    if environment != "npm":
        return PROGRAMS / program
    copy = ENVIRONMENTS / environment / program
    shutil.copyfile(PROGRAMS / program, copy)
    return copy


@contextmanager
def serving(
    model: str, log: Path, *settings: str, port: int = 0, wait: bool = True, key: str = ""
) -> Iterator[Served]:
    """`interlock serve`, as a user starts it; `wait`: until it says that it serves."""
    key, admin = key or secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    command = [sys.executable, "-m", "interlock.cli", "serve", model, "--port", str(port)]
    process = subprocess.Popen(
        [*command, f'chat_template="{PROGRAMS / "hermes.jinja"}"', *settings],
        env=os.environ | {"INTERLOCK_API_KEY": key, "INTERLOCK_ADMIN_KEY": admin},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    reading = _Reading(process, log)
    try:
        url = reading.url() if wait else f"http://127.0.0.1:{port}"
        yield Served(url, key, admin)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        reading.join()
    assert code == 0, log.read_text()[-3000:]
    assert "Traceback" not in log.read_text(), log.read_text()[-5000:]


class _Reading(threading.Thread):
    """Puts what a server says into a file, and finds where it serves."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        super().__init__(daemon=True)
        self._process, self._log = process, log
        self._found: str | None = None
        self._told = threading.Event()
        self.start()

    def run(self) -> None:
        assert self._process.stderr is not None
        with self._log.open("w", buffering=1) as written:
            for line in self._process.stderr:
                written.write(line)
                if found := re.search(r"served at (http://\S+)", line):
                    self._found = found[1]
                    self._told.set()
        self._told.set()

    def url(self) -> str:
        self._told.wait(120)
        assert self._found is not None, self._log.read_text()[-3000:]
        return self._found
