"""Weight versions of a worker's engine: fetched beside its work, loaded between two steps, proven.

    begin ──a thread──> Fetched, put into the worker's inbox ──apply──> engine.load
                                                                  └─> canaries join what runs
    take(progress) of the canaries ──the last is finished──> score ──> Loaded, or Failed

Between `apply` and the proof the version is `unproven`: nothing that it drew may leave the worker.
"""

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from interlock.engine.base import Engine, Progress, Request
from interlock.errors import TrainingError
from interlock.records.rl import Completion, Sampling, WeightVersion
from interlock.sync.codec import digest, tensor_digest
from interlock.sync.store import Replica
from interlock.workers.protocol import Canary, Load, Loaded

_NAME = "canary/"  # of its requests in the engine


class Fetched(NamedTuple):
    """The tensors of a version, or why they could not be had."""

    tensors: Mapping[str, Tensor]
    error: BaseException | None = None


class WeightLoader:
    """Belongs to the engine's thread, but for what `begin` starts."""

    def __init__(
        self, engine: Engine, store: str, canary: Canary, post: Callable[[Fetched], None]
    ) -> None:
        """`post` is called from another thread, once for every `begin`."""
        self.unproven = False  # what the engine serves since the last `apply`
        self._engine, self._canary, self._post = engine, canary, post
        self._store, self._replica = store, Replica(store, engine.shapes)
        self._asked: Load | None = None
        self._tensors: Mapping[str, Tensor] = {}
        self._fetched_bytes = 0
        self._requests: dict[str, Request] = {}  # of the canaries, by name
        self._drawn: dict[str, Completion] = {}

    @property
    def under_way(self) -> bool:
        return self._asked is not None

    @property
    def drains(self) -> bool:
        """What runs is to end under the old weights."""
        return self._asked is not None and self._asked.drained

    @property
    def asked(self) -> int:
        """Number of the Load that is under way."""
        assert self._asked is not None
        return self._asked.id

    def begin(self, asked: Load) -> None:
        assert self._asked is None, "one version at a time"
        self._asked = asked
        store = asked.store or self._store
        if store != self._store:  # a run that was resumed publishes elsewhere
            self._store, self._replica = store, Replica(store, self._engine.shapes)
        self._fetched_bytes = self._replica.fetched_bytes

        replica = self._replica

        def fetch() -> None:
            try:
                tensors = replica.fetch(WeightVersion(asked.number, asked.digest))
            except BaseException as error:  # raised again in the worker's own thread
                self._post(Fetched({}, error))
            else:
                self._post(Fetched(tensors))

        threading.Thread(target=fetch, name="fetch", daemon=True).start()

    def apply(self, fetched: Fetched) -> None:
        """Serve the fetched version, unproven, and begin to prove it. Raises what went wrong."""
        asked, engine, before = self._asked, self._engine, self._engine.version
        assert asked is not None
        if fetched.error is not None:
            raise fetched.error
        self._tensors = fetched.tensors
        try:
            engine.load(fetched.tensors, asked.number)
        except BaseException:
            self.unproven = engine.version != before  # it may have been torn
            raise
        self.unproven = True
        sampling = Sampling(temperature=1.0, max_tokens=self._canary.tokens)
        for index, prompt in enumerate(self._canary.prompts):
            name = f"{_NAME}{index}"
            self._requests[name] = Request(name, prompt, 1, sampling, seed=asked.number)
            engine.add(name, self._requests[name])

    def owns(self, name: str) -> bool:
        return name in self._requests

    def take(self, progress: Progress) -> Loaded | None:
        """The proof, once the last canary is finished. Raises InterlockError as `Engine.score`."""
        if progress.completion is not None:
            self._drawn[progress.name] = progress.completion
        if len(self._drawn) < len(self._requests):
            return None
        proof = self._proof()
        self.give_up()
        self.unproven = False
        return proof

    def give_up(self) -> list[int]:
        """Forget what was asked. -> its number, if there was any"""
        asked, self._asked = self._asked, None
        for name in self._requests:
            self._engine.abort(name)
        self._tensors, self._requests, self._drawn = {}, {}, {}
        return [] if asked is None else [asked.id]

    def _proof(self) -> Loaded:
        asked, score = self._asked, self._engine.score
        assert asked is not None
        decode: list[float] = []
        prefill: list[float] = []
        for name, request in self._requests.items():
            drawn, prompt = self._drawn[name], request.prompt_tokens
            decode += drawn.logprobs
            prefill += score(prompt + drawn.tokens).logprobs[len(prompt) - 1 :]
        if not len(decode) == len(prefill):
            raise TrainingError("the engine scored another number of tokens than it was given")
        return Loaded(
            number=asked.number,
            digest=_held(self._engine, self._tensors, self._replica.digests),
            text=score(self._canary.text).logprobs,
            decode=decode,
            prefill=prefill,
            fetched_bytes=self._replica.fetched_bytes - self._fetched_bytes,
            id=asked.id,
        )


def _held(engine: Engine, given: Mapping[str, Tensor], digests: Mapping[str, str]) -> str | None:
    """The digest of the weights the engine uses; None when it cannot show them.

    A tensor that equals the given one, in the engine's own dtype, counts as that one.
    """
    shown = engine.held()
    if shown is None:
        return None
    found = {}
    for name, tensor in shown:
        tensor = tensor.cpu()
        same = name in given and bool((tensor == given[name].to(tensor.dtype)).all())
        found[name] = digests[name] if same else tensor_digest(tensor)
    return digest(found)
