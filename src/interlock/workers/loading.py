"""Weight versions of a worker's engine: fetched beside its work, loaded between two steps, proven.

    begin ──a thread──> Fetched, put into the worker's inbox ──apply──> engine.load, load_adapter
                                                                  └─> canaries join what runs
    take(progress) of the canaries ──the last is finished──> score ──> Loaded, or Failed

A version that is an adapter needs the weights that it is of, which are fetched and loaded where the
engine has others. One that does not take it is given both merged, and the proof says why.

Between `apply` and the proof the version is `unproven`: nothing that it drew may leave the worker.
"""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor

from interlock.engine.base import Engine, Progress, Request
from interlock.errors import TrainingError
from interlock.models.adapters import adapter_shapes, merged
from interlock.records.adapters import Adapted
from interlock.records.rl import Completion, Sampling, WeightVersion
from interlock.sync.identity import tensor_digest
from interlock.sync.manifest import below, version_digest
from interlock.sync.replica import Replica
from interlock.workers.protocol import Canary, Load, Loaded

_NAME = "canary/"  # of its requests in the engine


class Fetched(NamedTuple):
    """The tensors of a version, or why they could not be had."""

    tensors: Mapping[str, Tensor]
    error: BaseException | None = None
    adapter: Adapted | None = None  # what they are, where they are not whole weights


class WeightLoader:
    """Belongs to the engine's thread, but for what `begin` starts."""

    def __init__(
        self, engine: Engine, store: str, canary: Canary, post: Callable[[Fetched], None]
    ) -> None:
        """`post` is called from another thread, once for every `begin`."""
        self.unproven = False  # what the engine serves since the last `apply`
        self._engine, self._canary, self._post = engine, canary, post
        self._follow(store)
        self._holds: WeightVersion | None = (
            None  # the whole weights in the engine, if of an adapter
        )
        self._asked: Load | None = None
        self._given = _Given({}, {})
        self._before = 0  # bytes fetched before the Load that is under way
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
            self._follow(store)
        self._before = self._fetched
        replica, base = self._replica, self._base

        def fetch() -> None:
            try:
                tensors = replica.fetch(WeightVersion(asked.number, asked.digest))
                if replica.adapter is not None:
                    base.fetch(replica.adapter.base)
            except BaseException as error:  # raised again in the worker's own thread
                self._post(Fetched({}, error))
            else:
                self._post(Fetched(tensors, adapter=replica.adapter))

        threading.Thread(target=fetch, name="fetch", daemon=True).start()

    def apply(self, fetched: Fetched) -> None:
        """Serve the fetched version, unproven, and begin to prove it. Raises what went wrong."""
        asked, engine, before = self._asked, self._engine, self._engine.version
        assert asked is not None
        if fetched.error is not None:
            raise fetched.error
        try:
            self._given = self._load(fetched, asked.number)
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
        self._given, self._requests, self._drawn = _Given({}, {}), {}, {}
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
            digest=self._held(),
            text=score(self._canary.text).logprobs,
            decode=decode,
            prefill=prefill,
            fetched_bytes=self._fetched - self._before,
            merged=self._given.merged,
            id=asked.id,
        )

    def _follow(self, store: str) -> None:
        shapes = self._engine.shapes
        self._store = store
        self._replica = Replica(store, shapes, partial(adapter_shapes, shapes))
        self._base = Replica(below(store), shapes)

    @property
    def _fetched(self) -> int:
        """Bytes since the store is followed."""
        return self._replica.fetched_bytes + self._base.fetched_bytes

    def _load(self, fetched: Fetched, number: int) -> "_Given":
        """Have the engine serve it. -> what it was given"""
        engine, adapter, added = self._engine, fetched.adapter, fetched.tensors
        if adapter is None:
            self._holds = None
            engine.load(added, number)
            return _Given(added, self._replica.digests)
        base = self._base.fetch(adapter.base)
        if why := engine.merges(adapter.form):
            self._holds = None
            whole = dict(merged(base.items(), added, adapter.form))
            engine.load(whole, number)
            return _Given(whole, self._base.digests, why)
        if self._holds != adapter.base:
            self._holds = None
            engine.load(base, number)
            self._holds = adapter.base
        engine.load_adapter(added, adapter.form, number)
        return _Given({**base, **added}, {**self._base.digests, **self._replica.digests})

    def _held(self) -> str | None:
        """The digest of the weights the engine uses; None when it cannot show them.

        A tensor that equals the given one, in the engine's own dtype, counts as that one; so what
        was merged here counts as the weights and the adapter that it was merged from.
        """
        shown = self._engine.held()
        if shown is None:
            return None
        found = {name: self._given.digest(name, tensor.cpu()) for name, tensor in shown}
        adapter = self._replica.adapter
        if adapter is None:
            return version_digest(found, None)
        added = {name: found.pop(name, was) for name, was in self._replica.digests.items()}
        base = WeightVersion(adapter.base.number, version_digest(found, None))
        return version_digest(added, Adapted(adapter.form, base))


class _Given(NamedTuple):
    """What an engine was given, and the digests that it counts as."""

    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]
    merged: str = ""  # why an adapter was

    def digest(self, name: str, held: Tensor) -> str:
        given = self.tensors.get(name)
        same = given is not None and bool((held == given.to(held.dtype)).all())
        return self.digests[name] if same else tensor_digest(held)
