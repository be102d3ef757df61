"""A run publishes fifty versions under load: whatever is answered is of one of them."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from byte_model import make_model, write_tokenizer
from endpoints import ADMIN, KEY, NAME, listening
from live_pool import EXACT, LivePool
from served import DEADLINE_S, Caller, asking

from interlock.config.reading import load_serving
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling
from interlock.records.serving import Rules
from interlock.serve.endpoint import Endpoint
from interlock.sync.store import Publisher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VERSIONS, TOKENS, CLIENTS = 50, 60, 16
COMPARED = 30  # answers, with what an engine without neighbours draws


class Following:
    """The endpoint over a pool that follows a store, and the run that publishes to it."""

    def __init__(self, model: Path, directory: Path, stack: ExitStack) -> None:
        self.model, self._store = model, directory / "sync"
        self._own = dict(load_decoder(model, torch.float32, torch.device("cpu")).tensors())
        self._publisher = Publisher(str(self._store), 8)
        self.publish(1)
        names = dict.fromkeys(("a", "b", "c"), EXACT)
        follow = {"follow": str(self._store), "poll_s": 0.02}
        self.pool = LivePool(model, directory / "logs", names, **follow)
        stack.callback(self.pool.pool.close, 0.0)
        endpoint = Endpoint([NAME], Tokenizer.load(model), load_serving(None, []))
        endpoint.replicas = self.pool.pool
        _, self.url, _, _ = stack.enter_context(listening(endpoint))
        headers = {"Authorization": f"Bearer {ADMIN}"}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=DEADLINE_S)
        self.client = stack.enter_context(client)
        self.pool.ready(*names)

    def weights(self, number: int) -> dict[str, torch.Tensor]:
        return {name: self._own[name] * (1 + 0.01 * number) for name in self._own}

    def publish(self, number: int) -> None:
        self._publisher.publish(number, self.weights(number))

    def admin(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/admin/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def until(self, met: Callable[[list[int | None]], object]) -> None:
        """Wait until the versions that the replicas serve make it so."""
        end = time.monotonic() + DEADLINE_S
        while not met([each.version for each in self.pool.pool.facts()]):
            assert time.monotonic() < end, self.pool.pool.facts()
            time.sleep(0.01)

    def undisturbed(self, number: int, version: int) -> list[int]:
        decoder = load_decoder(self.model, torch.float32, torch.device("cpu"))
        with torch.no_grad():
            for name, tensor in decoder.tensors().items():
                tensor.copy_(self.weights(version)[name])
        engine = PortableEngine(decoder, Tokenizer.load(self.model), 1)
        prompt, rules = asking(number, TOKENS)["token_ids"], Sampling(max_tokens=TOKENS)
        asked = Request("", prompt, 1, rules, number, rules=Rules(ignore_eos=True))
        return engine.generate([asked])[0][0].tokens


@pytest.fixture
def following(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Following]:
    directory = tmp_path_factory.mktemp("endless")
    write_tokenizer(directory)
    with ExitStack() as stack:
        yield Following(make_model(directory, max_position_embeddings=1024), tmp_path, stack)


def test_no_answer_is_of_two_versions_while_fifty_are_published(following: Following) -> None:
    published, met = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        """As a run does, it waits for nobody, but for half of its versions."""
        try:
            for number in range(2, VERSIONS + 1):
                following.publish(number)
                if number % 2 == 0:
                    following.until(lambda served: max(v or 0 for v in served) == number)  # noqa: B023
                if number == VERSIONS // 2:
                    met.set()
                    assert published.wait(DEADLINE_S)
        except BaseException as error:
            failed.append(error)
            met.set()

    caller = Caller(following.url, CLIENTS, lambda n: asking(n, TOKENS), KEY)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert met.wait(DEADLINE_S) and not failed
        following.until(lambda served: served == [VERSIONS // 2] * 3)
        following.admin("pin", version=VERSIONS // 2 - 1)  # a roll-back, under load
        following.until(lambda served: served == [VERSIONS // 2 - 1] * 3)
        following.admin("drain", replica="b", on=True)
        published.set()
        following.pool.until(lambda: following.pool.facts("b").running == 0)
        following.admin("drain", replica="b", on=False)
        following.admin("unpin")
        thread.join(DEADLINE_S)
        assert not thread.is_alive() and not failed
        following.until(lambda served: served == [VERSIONS] * 3)
    finally:
        published.set()
        heard = caller.ended()
    assert [h for h in heard.values() if h.error or len(h.versions) != TOKENS] == []
    assert [h.versions for h in heard.values() if len(set(h.versions)) != 1] == []
    answers = Counter(each.versions[0] for each in heard.values())
    assert len(answers) >= VERSIONS // 2 and max(answers) == VERSIONS
    spread = sorted(heard)[:: max(1, len(heard) // COMPARED)]
    other = [n for n in spread if heard[n].tokens != following.undisturbed(n, heard[n].versions[0])]
    # Torn weights would change them all. What else is in a batch changes last bits, and a draw
    # that falls between them: measured, 2 of 2,153 answers.
    assert len(other) <= 1, other
