"""What is asked of a worker and what it answers: msgpack, one message a frame.

    coordinator ── Open ──────> worker                                 ──> Opened
                ── Load ──────> fetched beside the work, then proven   ──> Loaded
                ── Generate ──> joins what runs           each problem ──> Answered
                ── Complete ──> joins what runs           each step ─────> Drawn
                ── Abort ─────> a Generate or Complete is forgotten
                ── Weigh, ScoreTexts, Trace, Record, Take, Apply ────────> one reply each
                ── Qualify ───> another program (qualify/worker.py)    ──> Qualified
                                                instead of one of these ──> Failed
                                                            at any time ──> Room, Alive

A worker takes messages between two steps of its engine and holds what many callers ask for at
once. The number of an ask, which its replies carry, is the caller's. Importing this needs no torch.
"""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from interlock.config.schema import GeneratorSettings
from interlock.errors import InterlockError, SyncError, UserError
from interlock.processes.channel import Channel
from interlock.records.adapters import AdapterForm
from interlock.records.coding import from_bytes
from interlock.records.cost import MemoryPeak
from interlock.records.replay import NO_REPLAY, Replay
from interlock.records.rl import Completion, FinishReason, Problem, Sampling
from interlock.records.serving import Alternatives, Generation
from interlock.records.trust import Certificate, Stack
from interlock.text import error_line

BEAT_S = 2.0
_REASON_CHARACTERS = 2000


class _Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", forbid_unknown_fields=True):
    id: int = 0  # not that of another ask that has not been answered


class _Reply(msgspec.Struct, frozen=True, kw_only=True, tag_field="is", forbid_unknown_fields=True):
    id: int = 0  # of the ask that it answers


class _Sign(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True):
    """What a worker says unasked."""


class Canary(msgspec.Struct, frozen=True):
    """What a worker is asked with every weight version, to prove that it serves it."""

    text: list[int]  # to be scored through prefill; the learner scores it too
    prompts: list[list[int]]  # to be continued (decode), then scored (prefill)
    tokens: int  # of each continuation


class Open(_Ask, frozen=True, tag="open"):
    """Start the engine with the model's own weights."""

    name: str
    model: str  # directory
    settings: GeneratorSettings
    chat_template: str | None = None
    store: str | None = None  # fsspec URL of the weight versions; None: Load will not be asked
    canary: Canary | None = None  # as `store`
    clock: datetime | None = None  # that the template is told; None: it asks its own machine
    serves: bool = False  # Completes will come: what a first one would wait for is made before
    adapter: AdapterForm | None = None  # that versions will have; None: not known, or none


class Load(_Ask, frozen=True, tag="load"):
    """Serve weight version `number`, whose digest is `digest`. One at a time.

    It is fetched while the engine works and loaded between two steps; what runs goes on under the
    new weights. What is finished while they are being proven is sent behind the proof.
    """

    number: int
    digest: str
    # What runs ends under the old weights: it says Brought, and loads when no Complete is open.
    drained: bool = False
    store: str | None = None  # fsspec URL; None: that of Open


class Generate(_Ask, frozen=True, tag="generate"):
    """Answer `problems`, beside whatever else runs, with weights of version `number` or later."""

    number: int
    problems: list[Problem]
    completions: int  # of each problem
    sampling: Sampling
    seed: int
    exact: bool = False  # the worker holds nothing else, and loads nothing: the same bits each time
    replay: Replay = NO_REPLAY  # what completions are to tell


class Complete(_Ask, frozen=True, tag="complete"):
    """Draw the choices of a generation, beside whatever else runs, with version `number` alone.

    Has no reply of its own, but with prompt_logprobs a Prompted: see Drawn.
    """

    number: int
    generation: Generation


class Abort(_Ask, frozen=True, tag="abort"):
    """Forget the Generate or Complete of this number: whoever asked is gone. Has no reply."""


class Weigh(_Ask, frozen=True, tag="weigh"):
    """Compare the weights that the engine uses with the files of the model."""


class ScoreTexts(_Ask, frozen=True, tag="score"):
    texts: list[list[int]]
    top_k: int = 0  # alternatives told of every token


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


class Trace(_Ask, frozen=True, tag="trace"):
    """Run a text and sketch what every module gives.

    `dtype` "": with the engine's own decoder; else with one of that dtype on the CPU, loaded for
    the purpose from `model`.
    """

    text: Text
    model: str
    dtype: str


class Record(_Ask, frozen=True, tag="record"):
    """As Trace, but keep the operators of one part, with their inputs, for Take."""

    text: Text
    model: str
    dtype: str
    where: Where


class Take(_Ask, frozen=True, tag="take"):
    index: int  # of a recorded operator


class Operator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of an aten operator. How its arguments are written: inspection/operators.py."""

    name: str  # "aten.softmax.int"
    args: list[Any]
    kwargs: dict[str, Any]
    tensors: bytes  # safetensors, by number
    strides: list[list[int]]  # of each tensor


class Apply(_Ask, frozen=True, tag="apply"):
    """Run one operator on the engine's device, or without one on the CPU; `exact`: in float64."""

    operator: Operator
    exact: bool


class Qualify(_Ask, frozen=True, tag="qualify"):
    """Find out what the device called `device` may be trusted with."""

    device: str
    level: str


class Opened(_Reply, frozen=True, tag="opened"):
    engine: str  # "torch 2.13.0", "vllm 0.32.0"
    device: str
    dtype: str
    stack: Stack | None = None  # None: an older worker, which does not tell
    certificate: Certificate | None = None  # as filed on the worker's machine
    vocab: int = 0  # the engine's limits; 0: an older worker, which does not tell
    context: int = 0
    slots: int = 0


class Loaded(_Reply, frozen=True, tag="loaded"):
    """The version is served. `digest` is of the tensors as the engine holds them."""

    number: int
    digest: str | None  # None: the engine keeps them in a form that cannot be read back
    text: list[float]  # logprobs of canary.text[1:], through prefill
    decode: list[float]  # logprobs of the continuations as they were drawn
    prefill: list[float]  # of the same tokens, through prefill
    fetched_bytes: int
    merged: str = ""  # why an adapter was merged into its weights; "": it was not


class Brought(_Reply, frozen=True, tag="brought"):
    """The weights of a Load are there. It is to be given no Complete before they are proven."""


class Answered(_Reply, frozen=True, tag="answered"):
    """All completions of one problem, as soon as the last is there. Problems come in any order.

    The tokens count: their text is left out, and read from them by whoever asked (reading.py).
    """

    index: int  # of the problem in its Generate
    prompt_tokens: list[int]
    completions: list[Completion]


class HeldTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor as an engine holds it. `digest` is the file's when that is what it holds."""

    digest: str
    error: float  # largest difference from the file, over the file's largest value; inf: not finite


class Weighed(_Reply, frozen=True, tag="weighed"):
    tensors: dict[str, HeldTensor] | None  # None: the engine cannot show them


class Scored(_Reply, frozen=True, tag="scored"):
    logprobs: list[list[float]]  # of each text but its first token
    top: list[list[Alternatives]] = []  # of the same, where top_k asked for them


class Prompted(_Reply, frozen=True, tag="prompted"):
    """Of the prompt of a Complete that asked for it; told before anything is drawn."""

    logprobs: list[float]
    top: list[Alternatives]


class Stretch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one step drew for one choice of a Complete."""

    ask: int  # number of the Complete
    number: int  # of the choice
    tokens: list[int]
    logprobs: list[float]
    finish: FinishReason | None = None
    cached: int = 0  # of its prompt, that were not computed; told with its first tokens
    top: list[Alternatives] = []


class Drawn(_Sign, frozen=True, tag="drawn"):
    """What one step drew for all Completes: one message a step, however many there are."""

    version: int
    stretches: list[Stretch]


class Traced(_Reply, frozen=True, tag="traced"):
    """`sketches`: safetensors of "sketches" [points, tokens, R + 1] float64 (trace.py)."""

    points: list[str]  # in the order in which they were computed
    sketches: bytes


class Recorded(_Reply, frozen=True, tag="recorded"):
    names: list[str]  # of the operators, with shapes and dtype


class Taken(_Reply, frozen=True, tag="taken"):
    operator: Operator


class Applied(_Reply, frozen=True, tag="applied"):
    outputs: bytes  # safetensors, by number
    error: str  # what the device said instead; "": nothing


class Qualified(_Reply, frozen=True, tag="qualified"):
    certificate: Certificate


class Failure(StrEnum):
    """What the caller can do about it."""

    MISTAKE = "mistake"  # nothing: the user has to mend it
    LINK = "link"  # ask again: the weights could not be fetched, and nothing has changed
    FAULT = "fault"  # ask again, or another worker: engine, device or weights are at fault


class Failed(_Sign, frozen=True, tag="failed"):
    """What was asked could not be done, and is forgotten, all of it at once."""

    reason: str  # one line
    kind: Failure
    ids: list[int]  # of the asks that come to nothing


class Room(_Sign, frozen=True, tag="room"):
    """The engine could take more than it was given, what is to wait for a slot included."""

    sequences: int
    after: int  # the number of the last Generate that came before this was said; 0: none


class Alive(_Sign, frozen=True, tag="alive"):
    """A sign of life, whatever else the worker is doing."""

    peak: MemoryPeak = MemoryPeak()  # of its memory, since the last one


Inspection = Weigh | ScoreTexts | Trace | Record | Take | Apply
Inspected = Weighed | Scored | Traced | Recorded | Taken | Applied
Ask = Open | Load | Generate | Complete | Abort | Inspection | Qualify
Reply = (
    Opened
    | Brought
    | Loaded
    | Answered
    | Prompted
    | Drawn
    | Inspected
    | Qualified
    | Failed
    | Room
    | Alive
)


def encode(message: Ask | Reply) -> bytes:
    """The message as msgpack: what `ask` and `reply` read."""
    return msgspec.msgpack.encode(message)


def ask(data: bytes) -> Ask:
    """Raises ValueError when the bytes are no ask."""
    found: Ask = from_bytes(data, Ask)
    return found


def reply(data: bytes) -> Reply:
    """Raises ValueError when the bytes are no reply."""
    found: Reply = from_bytes(data, Reply)
    return found


def failed(error: InterlockError, ids: Sequence[int]) -> Failed:
    """What a worker says when it could not do the requests `ids`: why, and whose fault that is."""
    kind = Failure.FAULT
    if isinstance(error, UserError):
        kind = Failure.MISTAKE
    elif isinstance(error, SyncError):
        kind = Failure.LINK
    return Failed(error_line(error, _REASON_CHARACTERS), kind, list(ids))


def beat(channel: Channel, look: Callable[[], MemoryPeak] = MemoryPeak) -> None:
    """Give signs of life from now on, from a thread of its own, until the process ends.

    `look`: at the process's memory, since the last look.
    """

    def work() -> None:
        while True:
            time.sleep(BEAT_S)
            channel.send(encode(Alive(look())))

    threading.Thread(target=work, name="beat", daemon=True).start()
