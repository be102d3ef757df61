"""What recording a session costs a turn, beside the engine.

    python bench/sessions.py [--turns 40] [--rounds 5] [--json result.json]

    plain    /v1/chat/completions with the whole conversation, as any client sends it
    session  the same conversation to a recorded session
    begin    of that, in the process: which turns are recorded, the template, the tokens that follow
    prompt   what `begin` takes the place of: the template, and the tokens of the whole conversation
    record   of that: the pieces that were drawn, and the answer

The engine is replaced by one that draws a fixed answer, a token a piece, at once. Both sides send
the same turns over a connection that is kept, and take turns at being first. What is reported is
milliseconds a turn, and session minus plain of the same turn of the same round.
"""

import argparse
import asyncio
import http.client
import json
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environment import environment
from interlock.config.reading import load_serving
from interlock.engine.base import Limits
from interlock.listening import bound
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason
from interlock.records.serving import (
    Ended,
    EndKind,
    Generation,
    Piece,
    ReplicaFacts,
    ReplicaState,
)
from interlock.serve.app import guarded, make_app
from interlock.serve.endpoint import Endpoint
from interlock.serve.http.keys import Keys
from interlock.serve.http.server import DrainingServer
from interlock.serve.sessions.chat import asked_of
from interlock.workers.replicas.base import Take
from workload import MODEL

KEY = "a-key-for-the-benchmark"
QUESTION = "Look at the result of step {0} and say what to do next, in one or two sentences. " * 3
ANSWER = "We read the file again, count its lines and compare them with the ones before. " * 4
SIDES = ("plain", "session")


class AtOnce:
    """Replicas that draw one answer, as soon as they are asked."""

    version = 1
    waiting = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [*tokenizer.encode(ANSWER), max(tokenizer.eos_ids)]
        self.limits = Limits(tokenizer.vocab_size, 1 << 20, 64)
        self._asked: queue.SimpleQueue[Take | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pieces(self) -> Iterator[Piece]:
        last = len(self.tokens) - 1
        for i, token in enumerate(self.tokens):
            finish = FinishReason.STOP if i == last else None
            yield Piece(0, [token], [-0.5], version=1, finish=finish, replica="a")

    def begin(self, generation: Generation, take: Take, deadline_s: float) -> int:
        self._asked.put(take)
        return 0

    def cancel(self, ticket: int) -> None: ...

    def facts(self) -> list[ReplicaFacts]:
        return [ReplicaFacts("a", ReplicaState.READY)]

    def drain(self, name: str, on: bool) -> None: ...

    def pin(self, version: int | None) -> None: ...

    def close(self, drain_s: float) -> None:
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (take := self._asked.get()) is not None:
            for piece in self.pieces():
                take(piece)
            take(Ended(EndKind.DONE))


@contextmanager
def served(endpoint: Endpoint) -> Iterator[int]:
    """The endpoint on loopback; yields its port."""
    app = guarded(make_app(endpoint), endpoint, Keys([KEY]), Keys([]))
    server = DrainingServer(app, endpoint)
    listener = bound("127.0.0.1", 0)
    listener.listen()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.stop()
        thread.join(30)


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    told = response.read()
    assert response.status in (200, 201), told
    return json.loads(told)


def over_http(port: int, turns: int, number: int) -> dict[str, list[float]]:
    """Seconds of every turn of one conversation, of either side."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    base = post(connection, "/sessions", {"seed": number})["base_url"]
    paths = {"plain": "/v1/chat/completions", "session": f"{base}/chat/completions"}
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": QUESTION.format(turn)})
        body = {"model": "m", "messages": messages}
        for side in SIDES if (turn + number) % 2 else reversed(SIDES):
            began = time.perf_counter()
            told = post(connection, paths[side], body)
            found[side].append(time.perf_counter() - began)
        messages.append(told["choices"][0]["message"])
    connection.close()
    return found


def in_process(endpoint: Endpoint, replicas: AtOnce, turns: int) -> dict[str, list[float]]:
    """Seconds of the parts of every turn."""
    session = endpoint.sessions.create("bench")
    found: dict[str, list[float]] = {"prompt": [], "begin": [], "record": []}
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": QUESTION.format(turn)})
        began = time.perf_counter()
        plain = endpoint.form.prompt(messages).tokens
        found["prompt"].append(time.perf_counter() - began)
        began = time.perf_counter()
        draft = session.begin(asked_of(endpoint.form.conversation(messages)))
        found["begin"].append(time.perf_counter() - began)
        assert draft.prompt == plain
        told = {"role": "assistant", "content": ANSWER}
        pieces = list(replicas.pieces())
        began = time.perf_counter()
        for piece in pieces:
            draft.take(piece)
        draft.answered(0, told, ANSWER)
        draft.close()
        found["record"].append(time.perf_counter() - began)
        messages.append(told)
    assert len(session.branches()) == 1
    return found


def figures(values: list[float]) -> list[float]:
    """The least, the median, and the 99th of a hundred; in milliseconds."""
    ordered = sorted(values)
    most = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return [round(1e3 * each, 2) for each in (ordered[0], statistics.median(ordered), most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(find_model(MODEL, lambda line: None))
    replicas = AtOnce(tokenizer)
    endpoint = Endpoint(["m"], tokenizer, load_serving(None, []))
    endpoint.replicas = replicas
    seconds: dict[str, list[float]] = {}
    differences: list[float] = []
    last: list[float] = []
    with served(endpoint) as port:
        over_http(port, 2, 0)  # the process of templates is started
        for number in range(arguments.rounds):
            found = over_http(port, arguments.turns, number)
            apart = [b - a for a, b in zip(*(found[side] for side in SIDES), strict=True)]
            differences += apart
            last.append(apart[-1])
            for name, values in (found | in_process(endpoint, replicas, arguments.turns)).items():
                seconds.setdefault(name, []).extend(values)
    replicas.close(0)
    turn = len(tokenizer.encode(QUESTION)) + len(replicas.tokens)
    told = {
        "environment": environment(),
        "turns": arguments.turns,
        "rounds": arguments.rounds,
        "tokens a turn": turn,
        "ms a turn: least, median, p99": {name: figures(each) for name, each in seconds.items()},
        "session minus plain, ms: least, median, p99": figures(differences),
        "of the last turn": figures(last),
    }
    print(json.dumps(told, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
