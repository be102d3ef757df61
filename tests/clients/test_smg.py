"""smg before two servers, as docs/clients.md tells: `make clients`.

openai ──> smg ──least_load──> interlock serve (two of them, one killed)
"""

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from real_clients import Served, interpreter, run, serving

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

KEY = "one-key-of-both-servers"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@contextmanager
def gateway(servers: list[Served], log: Path) -> Iterator[Served]:
    """The command of the document."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    (python,) = interpreter("smg")
    command = [str(Path(python).with_name("smg")), "launch", "--policy", "least_load"]
    command += ["--worker-urls", *(server.url for server in servers), "--api-key", KEY]
    command += ["--host", "127.0.0.1", "--port", ports[0]]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", ports[1]]
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
    found = Served(f"http://127.0.0.1:{ports[0]}", KEY, "", "tiny")
    try:
        until(lambda: answered(found, ASK | {"max_tokens": 1})[0] == 200, log)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def until(done: Any, log: Path) -> None:
    """Asked again and again, as a probe would, for at most a minute."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def answered(server: Served, body: dict[str, Any], key: str = KEY) -> tuple[int, Any]:
    """Status and tree of one chat request; 0: nobody listens."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = f"{server.url}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except urllib.error.URLError:
        return 0, None


def ended(server: Served) -> int:
    """Generations that its replica ended."""
    (replica,) = server.get("/v1/models")["data"][0]["replicas"]
    return int(replica["served"])


def many(front: Served, count: int) -> None:
    """Ask from so many threads at once; every one is to be answered."""
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(answered(front, ASK | {"max_tokens": 24})[0])

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * count


def test_smg_before_two_servers(tiny_model: Path, tmp_path: Path) -> None:
    interpreter("smg")
    settings = ["replica.dtype=float32", "replica.slots=8", 'names=["tiny"]']
    with ExitStack() as stack:
        stays = stack.enter_context(serving(str(tiny_model), tmp_path / "0", *settings, key=KEY))
        with ExitStack() as short:
            goes = short.enter_context(serving(str(tiny_model), tmp_path / "1", *settings, key=KEY))
            front = stack.enter_context(gateway([stays, goes], tmp_path / "smg.log"))
            found = run("openai", "openai_python.py", front, "chat", "stream", "logprobs", "models")
            assert found["chat"]["texts"][0] == found["stream"]["text"]
            assert found["chat"]["usage"]["total_tokens"] == 21
            assert found["logprobs"]["alternatives"] == [20] * 6
            assert found["models"]["ids"] == ["tiny"]

            # Its key is given to nobody, and what a server says arrives as it was said.
            assert answered(front, ASK | {"max_tokens": 1}, "nobody-s-key")[0] == 401
            status, told = answered(front, ASK | {"frequency_penalty": 1})
            assert (status, told["error"]["param"]) == (400, "frequency_penalty")
            status, told = answered(front, ASK | {"max_tokens": 1})
            assert (status, told["interlock"]["version"]) == (200, 0)

            before = ended(stays), ended(goes)
            many(front, 16)
            both = ended(stays), ended(goes)
            assert both[0] > before[0] and both[1] > before[1]
            assert sum(both) == sum(before) + 16
        many(front, 16)  # the one that is left has them all
        assert ended(stays) == both[0] + 16
