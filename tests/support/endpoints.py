"""The endpoint on loopback, by a real server in a thread, over replicas that a test steers."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from fake_replicas import FakeReplicas, Script

from interlock.config.reading import load_serving
from interlock.listening import bound
from interlock.models.tokenizer import Tokenizer
from interlock.preflight import random_model
from interlock.records.serving import Generation
from interlock.serve.app import guarded, make_app
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.keys import Keys
from interlock.serve.http.server import DrainingServer

KEY, ADMIN = "k" * 20, "a" * 20
NAME = "tiny"
TEMPLATE = "{% for turn in messages %}{{ turn.role }}:{{ turn.content }}\n{% endfor %}"


def tokenizer_in(directory: Path) -> Tokenizer:
    """A token per byte, and <end>."""
    random_model.write_tokenizer(directory, TEMPLATE)
    return Tokenizer.load(directory)


def saying(tokenizer: Tokenizer, *texts: str) -> Script:
    """Choice n says the n-th text, and ends."""
    end = [tokenizer.eos_id or 0]

    def script(generation: Generation, number: int) -> list[int]:
        return tokenizer.encode(texts[number % len(texts)]) + end

    return script


@dataclass
class Loopback:
    """A running endpoint."""

    endpoint: Endpoint
    replicas: FakeReplicas
    server: DrainingServer
    url: str
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread

    def client(self, key: str | None = KEY, **more: Any) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **more)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)


@contextmanager
def listening(
    endpoint: Endpoint,
) -> Iterator[tuple[DrainingServer, str, asyncio.AbstractEventLoop, threading.Thread]]:
    """The server of an endpoint at its URL, in a thread that has ended afterwards."""
    app = guarded(make_app(endpoint), endpoint, Keys([KEY, "second-" * 3]), Keys([ADMIN]))
    server = DrainingServer(app, endpoint)
    listener = bound("127.0.0.1", 0)
    loops: list[asyncio.AbstractEventLoop] = []
    began = threading.Event()

    async def run(sockets: list[socket.socket]) -> None:
        loops.append(asyncio.get_running_loop())
        loops[0].call_soon(began.set)
        await server.serve(sockets)

    thread = threading.Thread(target=lambda: asyncio.run(run([listener])), daemon=True)
    thread.start()
    assert began.wait(20)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.listen()
    try:
        yield server, url, loops[0], thread
    finally:
        if thread.is_alive():
            loops[0].call_soon_threadsafe(server.stop)
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def loopback(
    directory: Path,
    script: Callable[[Tokenizer], Script] = lambda tokenizer: saying(tokenizer, "Hello."),
    settings: list[str] | None = None,
    loading: bool = False,
) -> Iterator[Loopback]:
    """`script` is made for the tokenizer; `loading`: the replicas are not there yet."""
    tokenizer = tokenizer_in(directory)
    replicas = FakeReplicas(tokenizer, script(tokenizer))
    chosen = load_serving(None, settings or [])
    endpoint = Endpoint([NAME, "other/name"], tokenizer, chosen)
    endpoint.replicas = None if loading else replicas
    with listening(endpoint) as (server, url, loop, thread):
        try:
            yield Loopback(endpoint, replicas, server, url, loop, thread)
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(server.stop)
            replicas.go()
            thread.join(20)
            replicas.close(0)
