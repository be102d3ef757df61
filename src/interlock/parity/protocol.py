"""What the coordinator of a comparison and one of its sides say to each other: msgpack frames.

    coordinator ── Open, Weights, Generate, Score, Trace, Record, Take, Apply ──> side
                <── one reply to each, in order, or Failed ─────────────────────

Tensors travel inside messages as safetensors bytes. Importing this needs no torch.
"""

from typing import Any

import msgspec

from interlock.config.schema import GeneratorSettings
from interlock.records.rl import Group, Problem, Sampling
from interlock.workers.protocol import Failed


class _Message(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True):
    pass


class Open(_Message, frozen=True, tag="open"):
    """Start the engine on the weights in the directory `model`."""

    name: str
    model: str
    settings: GeneratorSettings


class Weights(_Message, frozen=True, tag="weights"):
    """Compare the weights that the engine uses with the files they came from."""


class Generate(_Message, frozen=True, tag="generate"):
    problems: list[Problem]
    completions: int
    sampling: Sampling
    seed: int


class Score(_Message, frozen=True, tag="score"):
    texts: list[list[int]]


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Forced tokens: through one prefill, or the answer token by token behind the prompt's."""

    prompt: list[int]
    answer: list[int]
    decode: bool


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a forward pass: what runs after one point has been computed, until the next has.

    `step` counts the forward passes of the text: 0 is the prefill, k the k-th token of the answer.
    """

    step: int
    after: str  # "": from the beginning
    until: str


class Trace(_Message, frozen=True, tag="trace"):
    """Run a text and sketch what every module gives.

    `dtype` "": with the engine's own decoder; else with one of that dtype on the CPU, loaded for
    the purpose from `model`.
    """

    text: Text
    model: str
    dtype: str


class Record(_Message, frozen=True, tag="record"):
    """As Trace, but keep the operators of one part, with their inputs, for Take."""

    text: Text
    model: str
    dtype: str
    where: Where


class Take(_Message, frozen=True, tag="take"):
    index: int  # of a recorded operator


class Operator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of an aten operator. How its arguments are written: operators.py."""

    name: str  # "aten.softmax.int"
    args: list[Any]
    kwargs: dict[str, Any]
    tensors: bytes  # safetensors, by number
    strides: list[list[int]]  # of each tensor


class Apply(_Message, frozen=True, tag="apply"):
    """Run one operator on the side's device; `exact`: in float64."""

    operator: Operator
    exact: bool


class Opened(_Message, frozen=True, tag="opened"):
    engine: str  # "torch 2.13.0", "vllm 0.32.0"
    device: str
    dtype: str


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor as an engine holds it. `digest` is the file's when that is what it holds."""

    digest: str
    error: float  # largest difference from the file, over the file's largest value; inf: not finite


class Weighed(_Message, frozen=True, tag="weighed"):
    tensors: dict[str, Held] | None  # None: the engine cannot show them


class Generated(_Message, frozen=True, tag="generated"):
    groups: list[Group]


class Scored(_Message, frozen=True, tag="scored"):
    logprobs: list[list[float]]  # of each text but its first token


class Traced(_Message, frozen=True, tag="traced"):
    """`sketches`: safetensors of "sketches" [points, tokens, R + 1] float64 (trace.py)."""

    points: list[str]  # in the order in which they were computed
    sketches: bytes


class Recorded(_Message, frozen=True, tag="recorded"):
    names: list[str]  # of the operators, with shapes and dtype


class Taken(_Message, frozen=True, tag="taken"):
    operator: Operator


class Applied(_Message, frozen=True, tag="applied"):
    outputs: bytes  # safetensors, by number
    error: str  # what the device said instead; "": nothing


Request = Open | Weights | Generate | Score | Trace | Record | Take | Apply
Reply = Opened | Weighed | Generated | Scored | Traced | Recorded | Taken | Applied | Failed


def encode(message: Request | Reply) -> bytes:
    return msgspec.msgpack.encode(message)


def request(data: bytes) -> Request:
    """Raises ValueError or RecursionError when the bytes are no request."""
    return msgspec.msgpack.decode(data, type=Request)


def reply(data: bytes) -> Reply:
    """Raises ValueError or RecursionError when the bytes are no reply."""
    return msgspec.msgpack.decode(data, type=Reply)
