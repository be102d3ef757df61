"""The contract of every engine, and what is asked of one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from interlock.errors import ConfigError, ModelError
from interlock.records.rl import Completion, Sampling

# Called with the index of a request, once all of its completions are there.
OnFinished = Callable[[int, list[Completion]], None]


class TextStream(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token: int) -> str: ...


class Vocabulary(Protocol):
    """What an engine needs of models.tokenizer.Tokenizer."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def stream(self) -> TextStream: ...


@dataclass(frozen=True)
class Request:
    """`completions` answers to one prompt. Their noise depends on seed and problem_id alone."""

    problem_id: str
    prompt_tokens: list[int]
    completions: int
    sampling: Sampling
    seed: int
    on_token: Callable[[int], None] | None = None  # called with each token as it is drawn


def check(request: Request, vocab: int, context: int) -> None:
    """Raise ConfigError on a request that no engine with this vocabulary and context can serve."""
    name, prompt, sampling = request.problem_id, request.prompt_tokens, request.sampling
    if not prompt:
        raise ConfigError(f"problem {name!r} has an empty prompt; give it at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise ConfigError(
            f"problem {name!r} has a token id outside the model's vocabulary of {vocab}; use the "
            "tokenizer that belongs to the model"
        )
    if len(prompt) + sampling.max_tokens > context:
        raise ConfigError(
            f"problem {name!r} has {len(prompt)} prompt tokens, which with max_tokens = "
            f"{sampling.max_tokens} is more than the model's context of {context}; lower "
            "max_tokens or leave the problem out"
        )
    if request.completions < 1 or sampling.max_tokens < 1:
        raise ConfigError(
            f"problem {name!r} asks for {request.completions} completions of at most "
            f"{sampling.max_tokens} tokens; ask for at least one of each"
        )
    if "" in sampling.stop:
        raise ConfigError("sampling.stop holds an empty string, which ends nothing; remove it")


class Engine(Protocol):
    """What runs the forward pass: engine/portable/engine.py (torch) or engine/vllm/engine.py."""

    version: int  # of the weights it serves

    @property
    def vocab(self) -> int: ...
    @property
    def description(self) -> str: ...  # with its version
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Serve other weights, all of them or, with ModelError, none."""

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """All completions of all requests, in order."""

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens[1:] at temperature 1, through prefill."""

    def held(self) -> Iterator[tuple[str, Tensor]] | None:
        """The weights as they are used, under Hugging Face names; None: they cannot be read."""


Shapes = dict[str, list[int]]  # of a model's tensors, by Hugging Face name


def check_weights(tensors: Mapping[str, Tensor], shapes: Shapes, version: int) -> None:
    """Raise ModelError unless `tensors` have these names and shapes."""
    if odd := sorted(shapes.keys() ^ tensors.keys()):
        state = "lack the" if odd[0] in shapes else "have an unknown"
        raise ModelError(
            f"the weights of version {version} {state} tensor {odd[0]!r} ({len(odd)} such "
            "names); publish them from the model that this engine was opened with"
        )
    for name, shape in shapes.items():
        if list(tensors[name].shape) != shape:
            raise ModelError(
                f"tensor {name!r} of version {version} has the shape "
                f"{list(tensors[name].shape)}, but the model's is {shape}; publish weights of the "
                "same model"
            )
