"""vLLM as the engine: its CPU, CUDA and Ascend builds, in an environment of their own.

    add ──check──> waiting ──a slot is free──> a request of vLLM's each ──step──> Progress
                      ^──── load: withdrawn, to go on under the new weights ──┘
    load ──compared with the model──> file ──extension.py, in vLLM's worker──> its model
    load_adapter ──> PEFT's files ──slots.py──> a slot beside it
    held, score <── the parameters themselves <──────────────────────────────┘

Only this folder imports vllm, and only when an engine is opened. vLLM gets token ids and gives
token ids: it has no tokenizer here, and where an answer ends is found by the same `LiveSequence` as
in the torch engine. Nothing of an older version is used again: no request of vLLM's outlives its
weights, and a prefix cache, if asked for, is emptied with every version.

What differs between versions of vLLM is asked for, not assumed. docs/vllm.md says what was run.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlock.chips import device, probe
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import (
    Engine,
    Limits,
    Progress,
    Request,
    Scores,
    Shapes,
    check_request,
    check_scored,
    check_weights,
)
from interlock.engine.sequence import LiveSequence
from interlock.engine.vllm import options, parameters, requests
from interlock.engine.vllm.replays import Replays
from interlock.engine.vllm.slots import AdapterSlots
from interlock.engine.vocabulary import Vocabulary
from interlock.errors import ConfigError, ModelError, SyncError, TrainingError
from interlock.models.adapters import adapter_shapes
from interlock.models.checkpoint import in_blocks
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.records.adapters import AdapterForm
from interlock.text import error_line

NO_VERSION = -1  # of an engine whose weights are not whole


class VllmEngine(Engine):
    """Generates with vLLM; see engine/base.py for the contract.

    vLLM draws from a generator per request. So after a load, the noise of what runs is a function
    of (seed, problem id, number, tokens drawn before it), and the same in every run that loads at
    that place; but the same weights loaded again give other tokens than no load.

    When a load fails half-way `version` is NO_VERSION: what was pending is aborted, and `add` and
    `score` raise SyncError until a load succeeds.
    """

    def __init__(
        self,
        model: Path,
        settings: GeneratorSettings,
        vocabulary: Vocabulary,
        adapter: AdapterForm | None = None,
    ) -> None:
        """Start vLLM on the weights in the directory `model`, as version 0; takes a minute.
        `adapter`: the form that versions will have, where they are adapters.

        Raises ConfigError when vLLM is not installed, is too old, or refuses a setting; ModelError
        when the model is of a family that Interlock does not know, or stored in fp8.
        """
        if in_blocks(model):  # vLLM keeps fp8, into which no published weights go
            raise ModelError(
                f"{model} is stored in fp8, whose weights vLLM cannot replace; write it out first "
                "(interlock export --to hf), and give that directory"
            )
        with torch.device("meta"):
            decoder = Decoder(read_architecture(model))
        self._shapes = {name: list(view.shape) for name, view in decoder.tensors().items()}
        self._vocabulary = vocabulary
        context = int(settings.options.get("max_model_len", decoder.arch.context))
        self.limits = Limits(decoder.arch.vocab, context, settings.slots)
        self.device = options.settle(settings)
        self.dtype = probe.settled(settings, device.claim(settings.device)).dtype
        wanted = options.arguments(model, settings, self.device, self.dtype, context)
        self._slots = AdapterSlots(decoder.arch, self._shapes, adapter, settings.options)
        begun = options.start(wanted, settings.options, self.device, self._slots)
        self._engine, self.description = begun
        if self._slots.enabled:
            self._slots.opened(self._engine.collective_rpc("interlock_slots"))
        self._waiting: deque[LiveSequence] = deque()
        self._running: dict[str, LiveSequence] = {}  # by the name of vLLM's request
        # Told to nobody yet: drawn while something was scored. By name and number.
        self._early: dict[tuple[str, int], Progress] = {}
        self._named = 0  # requests of vLLM's so far
        self._tainted = False  # its keys and values may hold what is not finite
        self._replays = Replays(settings.options, decoder.arch)
        self._refuse_packed()
        self.version = 0

    @property
    def shapes(self) -> Shapes:
        return self._shapes

    @property
    def pending(self) -> int:
        ended = sum(each.completion is not None for each in self._early.values())
        return len(self._waiting) + len(self._running) + ended

    def add(self, name: str, request: Request) -> None:
        self._check_whole()
        assert name not in self._names(), name
        check_request(request, self.limits)
        requests.check_temperature(request)
        requests.check_rules(request)
        self._replays.check(request)
        added = [LiveSequence(name, request, n, self._vocabulary) for n in request.numbers]
        self._waiting += added
        self._early |= {(name, each.number): each.give() for each in added if each.owed}

    def step(self) -> list[Progress]:
        if self._early:
            progress, self._early = list(self._early.values()), {}
            return progress
        try:
            self._cleanse()
            while self._waiting and len(self._running) < self.limits.slots:
                self._submit(self._waiting.popleft())
            outputs = self._engine.step() if self._running else []
            return [each for output in outputs if (each := self._push(output)) is not None]
        except BaseException:
            self._clear()
            raise

    def abort(self, name: str) -> bool:
        found = name in self._names()
        self._waiting = deque(each for each in self._waiting if each.name != name)
        self._early = {key: each for key, each in self._early.items() if each.name != name}
        self._withdraw([key for key, each in self._running.items() if each.name == name])
        return found

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Besides what the contract says, raises SyncError, with nothing changed, when the weights
        cannot be written down for vLLM's worker; ModelError, and the engine holds no version, when
        vLLM did not take all of them.
        """
        check_weights(tensors, self._shapes, version)
        with parameters.room() as path:
            parameters.write({name: tensors[name] for name in self._shapes}, path)
            self._serve(version, lambda: self._replace(path, version))

    def merges(self, form: AdapterForm) -> str:
        return self._slots.merges(form)

    def load_adapter(self, tensors: Mapping[str, Tensor], form: AdapterForm, version: int) -> None:
        """Besides what the contract says, raises as `load`."""
        assert not self.merges(form)
        check_weights(tensors, adapter_shapes(self._shapes, form), version)
        with parameters.room() as path:
            directory = path.parent
            parameters.write_adapter(tensors, form, directory)
            engine = self._engine
            self._serve(version, lambda: self._slots.put(engine, directory, tensors, form))

    def _serve(self, version: int, change: Callable[[], None]) -> None:
        """What runs goes on as version `version`, which `change` makes of the weights."""
        running = self._withdraw(list(self._running))
        self.version = NO_VERSION
        try:
            change()
            if self._engine.reset_prefix_cache() is False:
                raise TrainingError("vLLM kept its prefix cache, which belongs to older weights")
        except BaseException:
            self._clear()
            raise
        self.version = version
        self._waiting.extendleft(reversed(running))

    def score(self, tokens: Sequence[int], top_k: int = 0) -> Scores:
        """What runs meanwhile is drawn on; the next step tells.

        Raises ConfigError when there is no room in the context for the one token that vLLM draws
        behind every prompt; and what `step` raises, with what was pending aborted.
        """
        self._check_whole()
        check_scored(tokens, top_k, self.limits, room=1)
        self._cleanse()
        key = self._next_name()
        try:
            self._engine.add_request(
                key,
                {"prompt_token_ids": list(tokens)},
                requests.scoring(top_k, self._replays),
                lora_request=self._slots.request,
            )
        except ValueError as error:
            raise ConfigError(f"vLLM refuses to score a text: {error_line(error)}") from None
        try:
            found = self._prefilled(key)
        except BaseException:
            self._engine.abort_request([key])
            self._clear()
            raise
        places = list(zip(tokens[1:], found[1:], strict=True))
        given = [entry[token].logprob for token, entry in places]
        self._tainted |= not all(map(math.isfinite, given))
        return Scores(given, [requests.most_likely(entry, top_k) for _, entry in places])

    def held(self) -> Iterator[tuple[str, Tensor]] | None:
        """The weights as vLLM's products read them, under Hugging Face names, and by PEFT's the
        adapter in its slot.

        None when they cannot be read back: sharded over several workers, or stored by vLLM in an
        order of its own (experts of a mixture, latent attention, quantised weights).
        """
        found = self._engine.collective_rpc("interlock_shapes")
        where = parameters.places(self._shapes, *found[0]) if len(found) == 1 else None
        return None if where is None else self._read(where)

    def _names(self) -> set[str]:
        """Of the requests that are pending."""
        sequences = (*self._waiting, *self._running.values())
        return {each.name for each in sequences} | {name for name, _ in self._early}

    def _next_name(self) -> str:
        self._named += 1
        return str(self._named)

    def _submit(self, sequence: LiveSequence) -> None:
        """Give vLLM a sequence to begin, or to go on with where it has drawn tokens already."""
        key = self._next_name()
        tokens = [*sequence.request.prompt_tokens, *sequence.tokens]
        params = requests.drawing(sequence, self._vocabulary.eos_ids, self._replays)
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if owner := sequence.request.owner:  # its prefix cache keeps owners apart by that
            prompt["cache_salt"] = owner
        self._engine.add_request(key, prompt, params, lora_request=self._slots.request)
        self._running[key] = sequence

    def _withdraw(self, keys: Iterable[str]) -> list[LiveSequence]:
        """Take these of vLLM's requests back, with what it has computed for them."""
        taken = {key: self._running.pop(key) for key in keys}
        self._engine.abort_request(list(taken))
        return list(taken.values())

    def _clear(self) -> None:
        self._tainted = True
        self._waiting.clear()
        self._early.clear()
        self._withdraw(list(self._running))

    def _cleanse(self) -> None:
        """Forget what is not finite once nothing needs what lies beside it."""
        if self._tainted and not self._running:
            self._engine.reset_prefix_cache()
            self._engine.collective_rpc("interlock_forget")
            self._tainted = False

    def _push(self, output: Any) -> Progress | None:
        """Give a sequence its next tokens; None when there are none, or it has left."""
        sequence = self._running.get(output.request_id)
        if sequence is None:
            return None
        (answer,) = output.outputs
        made: Progress | None = None
        more = self._replays.of_tokens(answer, sequence, output.finished)
        drawn = zip(answer.token_ids, answer.logprobs or (), more, strict=True)
        for token, entry, told in drawn:
            logprob = entry[token].logprob
            if not math.isfinite(logprob):
                raise TrainingError(
                    f"the logits of weight version {self.version} are not finite: training broke "
                    "the weights, or the generator's dtype is too narrow for them"
                )
            top = requests.alternatives(entry, sequence.request.rules)
            made = _then(made, sequence.push(token, logprob, self.version, top, told))
            if sequence.owed and sequence.finish is None:
                made = _then(made, sequence.give())
                self._go_on(output, sequence)
                return made
            if sequence.finish is not None:
                break
        if sequence.finish is not None:
            del self._running[output.request_id]
            if not output.finished:  # a stop string, of which vLLM knows nothing
                self._engine.abort_request([output.request_id])
        elif output.finished:
            raise TrainingError(
                f"vLLM gave up a completion of {sequence.request.problem_id!r} after "
                f"{len(sequence.tokens)} tokens ({answer.finish_reason})"
            )
        return made

    def _go_on(self, output: Any, sequence: LiveSequence) -> None:
        """It was given tokens, of which vLLM knows nothing: begin anew behind them."""
        del self._running[output.request_id]
        if not output.finished:
            self._engine.abort_request([output.request_id])
        if sequence.finish is None:
            self._waiting.appendleft(sequence)

    def _prefilled(self, key: str) -> list[Any]:
        """Step until the text of a request is computed; what vLLM says of its tokens."""
        found: list[Any] | None = None
        finished = False
        while not finished:
            for output in self._engine.step():
                if output.request_id == key:
                    found, finished = output.prompt_logprobs or found, output.finished
                elif (made := self._push(output)) is not None:
                    place = made.name, made.number
                    self._early[place] = _then(self._early.get(place), made)
        if found is None:
            raise TrainingError("vLLM gave up a text that it was to score")
        return found

    def _replace(self, path: Path, version: int) -> None:
        self._slots.drop(self._engine)
        left = self._engine.collective_rpc("interlock_load", args=(str(path),))
        if missing := sorted({name for names in left for name in names}):
            raise ModelError(
                f"vLLM has weights that version {version} does not set, {missing[0]} first; use "
                'engine = "torch" for this model'
            )

    def _check_whole(self) -> None:
        if self.version == NO_VERSION:
            raise SyncError(
                "the last weight version was loaded half-way, so vLLM holds none; load one"
            )

    def _refuse_packed(self) -> None:
        """Raise ConfigError when vLLM hid weights behind handles: an update may leave those on the
        old ones.
        """
        for shapes, _ in self._engine.collective_rpc("interlock_shapes"):
            for name, shape in shapes.items():
                if 0 in shape:
                    raise ConfigError(
                        f"{self.description} packed {name} away, so weights cannot be updated; on "
                        "a CPU, leave tensor_parallel_size at 1"
                    )

    def _read(self, where: Mapping[str, parameters.Place]) -> Iterator[tuple[str, Tensor]]:
        with parameters.room() as path:
            self._engine.collective_rpc("interlock_save", args=(str(path), self._slots.number))
            yield from parameters.read_places(path, where.items())
            if places := self._slots.places:
                yield from self._slots.held(parameters.read_places(path, places))


def open_engine(
    settings: GeneratorSettings,
    model: Path,
    vocabulary: Vocabulary,
    adapter: AdapterForm | None = None,
) -> VllmEngine:
    """The engine that `settings` ask for, with the weights in the directory `model`, version 0."""
    return VllmEngine(model, settings, vocabulary, adapter)


def _then(before: Progress | None, after: Progress) -> Progress:
    """What two steps did for one sequence, as if it were one."""
    if before is None:
        return after
    tokens, logprobs = before.tokens + after.tokens, before.logprobs + after.logprobs
    return after._replace(tokens=tokens, logprobs=logprobs, top=[*before.top, *after.top])
