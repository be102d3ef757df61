"""vLLM's side of engine/vllm in a page: the same calls, and a rule instead of a model.

Its keys and values are one number per request, made of every token it has read and of the weights
that it was read under, an adapter's among them. So a memory kept over a load, or a token left out,
shows in all that is drawn after it; `draw` says what should have been.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interlock.config.schema import GeneratorSettings
from interlock.engine.vllm import options
from interlock.engine.vllm.engine import VllmEngine
from interlock.engine.vllm.requests import noise_seed
from interlock.engine.vllm.slots import AdapterSlots
from interlock.models.adapters import adapter_shapes
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.records.adapters import AdapterForm

VOCAB = 64
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
Opened = Callable[..., tuple[VllmEngine, "FakeVllm"]]


def _hash(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def _read(memory: int, tokens: Sequence[int], weights: float) -> int:
    for token in tokens:
        memory = _hash(memory, token, weights)
    return memory


def _drawn(memory: int, seed: int, place: int) -> tuple[int, float]:
    """Token `place` of a generator, and its log-probability."""
    return _hash(memory, seed, place) % VOCAB, -(1 + memory % 997) / 100


def draw(
    weights: float, prompt: Sequence[int], key: tuple[int, str, int], begun: int, count: int
) -> list[tuple[int, float]]:
    """`count` tokens with logprobs behind a prompt; key: (seed, problem id, number); `begun`: how
    many of the prompt's last tokens the sequence had drawn before."""
    memory, seed = _read(0, prompt, weights), noise_seed(*key, begun)
    found = []
    for place in range(count):
        found.append(_drawn(memory, seed, place))
        memory = _read(memory, [found[-1][0]], weights)
    return found


@dataclass
class _Request:
    name: str
    prompt: list[int]
    params: Any
    adapter: Any = None
    tokens: list[int] = field(default_factory=list)
    memory: int = 0
    read: bool = False


class FakeVllm:
    """What engine/vllm calls of an LLMEngine.

    `fault` may do something to what a step gives, until all keys and values are forgotten.
    """

    def __init__(self, tensors: dict[str, Any], wanted: Mapping[str, Any]) -> None:
        self.tensors, self.sequences = tensors, wanted["max_num_seqs"]
        self.rank = wanted["max_lora_rank"] if wanted.get("enable_lora") else 0
        self.slots: dict[str, Tensor] = {}  # of the one adapter that there is room for
        self.adapter: Any = None  # its request
        self.tears = False  # an adapter is taken, and then an error
        self.requests: dict[str, _Request] = {}
        self.steps = 0
        self.most = 0  # requests it ever held at once
        self.salts: list[str | None] = []  # of every request, for the prefix cache
        self.adapters: list[Any] = []  # of every request
        self.ignored: list[str] = []  # tensors that a load is to leave out
        self.fault: Callable[[list[Any]], list[Any]] = _none

    def weights(self, adapter: Any) -> float:
        """That a request with this adapter, or None, is computed by."""
        assert adapter is None or adapter == self.adapter, "vLLM has no such adapter"
        slots = self.slots.values() if adapter else ()
        return sum(tensor.double().sum().item() for tensor in (*self.tensors.values(), *slots))

    def add_lora(self, request: Any) -> bool:
        """PEFT's files, A and B each in the upper corner of zeros, and B times the scale."""
        assert self.adapter is None, "one at a time"
        config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
        given = load_file(Path(request.lora_path) / "adapter_model.safetensors")
        self.slots = self._zeros()
        for name, tensor in given.items():
            slot, own = self.slots[name], tensor.to(torch.float32)
            own *= config["lora_alpha"] / config["r"] if ".lora_B." in name else 1
            slot[: own.shape[0], : own.shape[1]] = own
        self.adapter = request
        if self.tears:
            raise RuntimeError("no memory\nfor it")
        return True

    def remove_lora(self, number: int) -> bool:
        assert self.adapter.lora_int_id == number and not self.requests
        self.adapter, self.slots = None, {}
        return True

    def _zeros(self) -> dict[str, Tensor]:
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        form = AdapterForm(rank=self.rank)
        return {name: torch.zeros(shape) for name, shape in adapter_shapes(shapes, form).items()}

    def add_request(
        self, name: str, prompt: dict[str, Any], params: Any, lora_request: Any = None
    ) -> None:
        assert name not in self.requests
        self.salts.append(prompt.get("cache_salt"))
        self.adapters.append(lora_request)
        self.requests[name] = _Request(name, prompt["prompt_token_ids"], params, lora_request)
        self.most = max(self.most, len(self.requests))

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.requests.pop(name, None)

    def step(self) -> list[Any]:
        self.steps += 1
        running = list(self.requests.values())[: self.sequences]
        outputs = self.fault([self._advance(request) for request in running])
        self.abort_request([each.request_id for each in outputs if each.finished])
        return outputs

    def _advance(self, request: _Request) -> Any:
        scored, weights = None, self.weights(request.adapter)
        if not request.read:
            request.read, request.memory = True, _read(0, request.prompt, weights)
            if request.params.prompt_logprobs is not None:
                scored = [None, *(self._scored(request, n) for n in range(1, len(request.prompt)))]
        token, logprob = _drawn(request.memory, request.params.seed, len(request.tokens))
        request.tokens.append(token)
        request.memory = _read(request.memory, [token], weights)
        finish = "length" if len(request.tokens) == request.params.max_tokens else None
        entry = _beside(token, logprob, request.params)
        answer = SimpleNamespace(token_ids=[token], logprobs=[entry], finish_reason=finish)
        return SimpleNamespace(
            request_id=request.name,
            outputs=[answer],
            prompt_logprobs=scored,
            finished=finish is not None,
        )

    def _scored(self, request: _Request, place: int) -> dict[int, Any]:
        """Of one token: as given, and the first of a rank of all, from VOCAB - 1 downwards."""
        given = request.prompt[place]
        ranks = {given: VOCAB - given}
        ranks |= {VOCAB - 1 - n: n + 1 for n in range(request.params.prompt_logprobs)}
        return {
            token: SimpleNamespace(rank=rank, logprob=-float(rank)) for token, rank in ranks.items()
        }

    def collective_rpc(self, name: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if name == "interlock_slots":
            return [{name: list(slot.shape) for name, slot in self._zeros().items()}]
        if name == "interlock_shapes":
            return [({name: list(tensor.shape) for name, tensor in self.tensors.items()}, {})]
        if name == "interlock_forget":
            assert not self.requests, "keys and values are needed"
            self.fault = _none
            return [None]
        path = args[0]
        if name == "interlock_save":
            assert args[1] == (self.adapter and self.adapter.lora_int_id)
            save_file(self.tensors | self.slots, path)
            return [None]
        assert name == "interlock_load"
        given = load_file(path)
        self.tensors = self.tensors | {n: t for n, t in given.items() if n not in self.ignored}
        return [list(self.ignored)]

    def reset_prefix_cache(self) -> bool:
        return not any(request.read for request in self.requests.values())


def _beside(token: int, logprob: float, params: Any) -> dict[int, Any]:
    """The drawn token and `logprobs` others, the first of a ranking in which it is the second;
    all but the first three have no probability."""
    others = [(token + 1 + n) % VOCAB for n in range(params.logprobs or 0)]
    ranks = [1, *range(3, VOCAB + 1)]
    entry = {
        other: SimpleNamespace(logprob=-float(rank) if rank <= 3 else -math.inf, rank=rank)
        for other, rank in zip(others, ranks, strict=False)
    }
    return entry | {token: SimpleNamespace(logprob=logprob, rank=2)}


def _none(outputs: list[Any]) -> list[Any]:
    return outputs


class SamplingParams:
    """vLLM's, as far as it is used."""

    def __init__(self, **given: Any) -> None:
        self.prompt_logprobs: int | None = None
        self.logprobs: int | None = None
        self.seed: int | None = None
        self.__dict__.update(given)


def not_finite(outputs: list[Any]) -> list[Any]:
    """A fault: the logits of the last request are NaN."""
    (answer,) = outputs[-1].outputs
    for entry in answer.logprobs:
        for value in entry.values():
            value.logprob = math.nan
    return outputs


def scores_not_finite(outputs: list[Any]) -> list[Any]:
    """A fault: the log-probabilities of a text that is scored are NaN."""
    for scored in (each.prompt_logprobs for each in outputs if each.prompt_logprobs):
        for value in (value for entry in scored[1:] for value in entry.values()):
            value.logprob = math.nan
    return outputs


def given_up(outputs: list[Any]) -> list[Any]:
    """A fault: vLLM ends a request of its own accord."""
    outputs[-1].finished, outputs[-1].outputs[0].finish_reason = True, "abort"
    return outputs


def opener(
    model: Path, patch: pytest.MonkeyPatch, config: Mapping[str, Any] | None = None
) -> Opened:
    """What opens an engine of so many slots on a fake vLLM that has room for adapters of rank 2 or
    8; its vocabulary may end completions.
    """
    (model / "config.json").write_text(json.dumps(config or CONFIG))
    params: Any = ModuleType("vllm.sampling_params")
    params.SamplingParams = SamplingParams
    params.RequestOutputKind = SimpleNamespace(DELTA="delta")
    patch.setitem(sys.modules, "vllm", params)
    patch.setitem(sys.modules, "vllm.sampling_params", params)
    request: Any = ModuleType("vllm.lora.request")
    request.LoRARequest = lambda *given: SimpleNamespace(
        **dict(zip(("lora_name", "lora_int_id", "lora_path"), given, strict=True))
    )
    patch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
    patch.setitem(sys.modules, "vllm.lora.request", request)
    patch.setattr(os, "environ", dict(os.environ))
    with torch.device("meta"):
        views = Decoder(read_architecture(model)).tensors()

    def open_(
        vocabulary: Any, slots: int = 4, adapter: AdapterForm | None = None, **options_: Any
    ) -> tuple[VllmEngine, FakeVllm]:
        started: list[FakeVllm] = []

        def start(
            wanted: dict[str, Any], given: Mapping[str, Any], kind: str, slots: AdapterSlots
        ) -> tuple[FakeVllm, str]:
            wanted |= slots.arguments([2, 8], kind, wanted["dtype"])
            started.append(FakeVllm(filled(1.0, views), wanted | dict(given)))
            return started[0], "vllm fake"

        patch.setattr(options, "start", start)
        settings = GeneratorSettings(dtype="float32", slots=slots, options=options_)
        engine = VllmEngine(model, settings, vocabulary, adapter)
        return engine, started[0]

    return open_


def filled(value: float, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full(view.shape, value, device="cpu") for name, view in like.items()}
