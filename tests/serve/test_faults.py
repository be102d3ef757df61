"""Replicas that are killed, stopped and silenced below a server that answers: nobody sees it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest
import torch
from byte_model import make_model, write_tokenizer
from served import API, DEADLINE_S, Caller, Heard, Served, asking, hear, settings

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling
from interlock.records.serving import Rules

pytestmark = pytest.mark.slow
Start = Callable[..., Served]
EVEN = {"even-0": "float32", "even-1": "float32"}
TOKENS = 200


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("endless")
    write_tokenizer(directory)
    return make_model(directory, max_position_embeddings=4096)


@pytest.fixture
def start(endless: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(
            replicas: dict[str, str],
            *more: str,
            port: int = 0,
            top: str = "",
        ) -> Served:
            toml = tmp_path / "serve.toml"
            toml.write_text(settings(replicas, top))
            made = Served(endless, toml, *more, port=port)
            stack.callback(made.close)
            return made

        yield started


def undisturbed(model: Path, number: int) -> list[int]:
    """What one engine that holds nothing else draws of a request."""
    asked = asking(number, TOKENS)
    rules = Sampling(max_tokens=TOKENS, temperature=1.0)
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    engine = PortableEngine(decoder, Tokenizer.load(model), 1)
    request = Request("", asked["token_ids"], 1, rules, number, rules=Rules(ignore_eos=True))
    return engine.generate([request])[0][0].tokens


def whole(heard: dict[int, Heard], tokens: int = TOKENS) -> list[int]:
    """The numbers of those that are not."""
    return [n for n, h in heard.items() if h.error or not h.done or len(h.tokens) != tokens]


@pytest.mark.timeout(900)
def test_replicas_that_are_killed_by_turns_lose_and_break_nothing(
    start: Start, endless: Path
) -> None:
    served = start(EVEN | {"narrow": "bfloat16"}).ready(3)
    caller = Caller(served.url, 12, lambda number: asking(number % 40, TOKENS))
    for turn in range(9):
        name = ["even-0", "narrow", "even-1"][turn % 3]
        served.until(lambda facts: facts[name]["running"] > 0)  # noqa: B023
        pid = served.worker(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        restarts = 1 + turn // 3
        served.until(  # it serves again, and has ended something since
            lambda facts: facts[name]["restarts"] == restarts and facts[name]["state"] == "ready"  # noqa: B023
        )
    heard = caller.ended()
    bad = whole(heard)
    assert [heard[number] for number in bad] == []
    moved = [each for each in heard.values() if each.moved]
    assert moved, "nothing ran when they were killed"
    even = {n: h for n, h in heard.items() if set(h.replicas) <= EVEN.keys()}
    assert any(each.moved for each in even.values())
    oracle = {place: undisturbed(endless, place) for place in {n % 40 for n in even}}
    assert [n for n, h in even.items() if h.tokens != oracle[n % 40]] == []
    served.idle()
    assert served.end() == 0


@pytest.mark.timeout(600)
def test_streams_of_a_replica_that_hangs_go_on_elsewhere(start: Start, endless: Path) -> None:
    served = start(EVEN).ready(2)
    caller = Caller(served.url, 12, lambda number: asking(number % 20, TOKENS))
    served.until(lambda facts: facts["even-0"]["running"] > 0)
    pid = served.worker("even-0")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    served.until(lambda facts: facts["even-0"]["restarts"] == 1)
    served.until(lambda facts: facts["even-0"]["state"] == "ready")
    heard = caller.ended()
    assert [heard[number] for number in whole(heard)] == []
    assert any(each.moved for each in heard.values())
    oracle = {place: undisturbed(endless, place) for place in {n % 20 for n in heard}}
    assert [n for n, h in heard.items() if h.tokens != oracle[n % 20]] == []
    assert "no sign of life" in "".join(served.said)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(600)
def test_running_streams_end_at_a_signal_and_the_port_is_free_again(start: Start) -> None:
    first = start(EVEN).ready(2)
    heard: list[Heard] = []

    def listen() -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {API}"}, timeout=DEADLINE_S) as client:
            heard.append(hear(client, first.url, asking(7, 1500)))

    threads = [threading.Thread(target=listen) for _ in range(6)]
    for thread in threads:
        thread.start()
    first.until(lambda facts: sum(each["running"] for each in facts.values()) == 6)
    assert first.end() == 0, "".join(first.said)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [(each.error, each.done, len(each.tokens)) for each in heard] == [("", True, 1500)] * 6
    again = start(EVEN, port=first.port).ready(1)
    assert again.port == first.port
    with again.client() as client:
        assert hear(client, again.url, asking(7, 1500)).tokens == heard[0].tokens


@pytest.mark.timeout(600)
def test_who_is_told_to_ask_later_is_served_then(start: Start) -> None:
    served = start({"even-0": "float32"}, top="queue = 2\n").ready(1)
    turned_away: list[int] = []
    heard: list[Heard] = []

    def insist(number: int) -> None:
        with served.client() as client:
            while True:
                answer = client.post("/inference/v1/generate", json=asking(number, 400))
                if answer.status_code == 200:
                    heard.append(Heard(answer.json()["choices"][0]["token_ids"]))
                    return
                assert answer.status_code == 429, answer.text
                assert answer.json()["error"]["type"] == "rate_limit_error"
                turned_away.append(int(answer.headers["retry-after"]))
                over.wait(turned_away[-1])

    over = threading.Event()
    threads = [threading.Thread(target=insist, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [len(each.tokens) for each in heard] == [400] * 24
    assert turned_away and min(turned_away) >= 1
    served.idle()
