"""What a dispatcher and a generator worker say to each other: msgpack, one message a frame.

    dispatcher ── Open, Load, Prefetch, Generate ────────────────────> worker
               <── Opened, Loaded, Finished, Failed │ Alive every few s ──
               ── Qualify ──> the same device, another program (qualify/worker.py)
               <── Qualified, Failed │ Alive ──

A worker does one thing at a time, in the order asked. Importing this needs no torch.
"""

import threading
import time
from typing import Any

import msgspec

from interlock.config.schema import GeneratorSettings
from interlock.errors import InterlockError, UserError
from interlock.processes.channel import Channel
from interlock.processes.child import UNASKED_BYTES
from interlock.records.rl import Group, Problem, Sampling
from interlock.records.trust import Certificate, Stack
from interlock.text import error_line

BEAT_S = 2.0


class _Message(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True):
    pass


class Canary(msgspec.Struct, frozen=True):
    """What a worker is asked with every weight version, to prove that it serves it."""

    text: list[int]  # to be scored through prefill; the learner scores it too
    prompts: list[list[int]]  # to be continued (decode), then scored (prefill)
    tokens: int  # of each continuation


class Open(_Message, frozen=True, tag="open"):
    """Start the engine with the model's own weights."""

    name: str  # of the worker, put on every group
    model: str  # directory
    chat_template: str | None
    settings: GeneratorSettings
    store: str  # fsspec URL of the weight versions
    canary: Canary


class Load(_Message, frozen=True, tag="load"):
    """Serve weight version `number`, whose digest is `digest`."""

    number: int
    digest: str


class Prefetch(_Message, frozen=True, tag="prefetch"):
    """Download what `Load` of this version will need, while the engine works. Has no reply."""

    number: int
    digest: str


class Generate(_Message, frozen=True, tag="generate"):
    """Answer `problems` together, with weights of version `number`."""

    unit: int
    number: int
    problems: list[Problem]
    completions: int
    sampling: Sampling
    seed: int


class Qualify(_Message, frozen=True, tag="qualify"):
    """Find out what the device called `device` may be trusted with."""

    device: str
    level: str


class Opened(_Message, frozen=True, tag="opened"):
    engine: str  # "torch 2.13.0", "vllm 0.32.0"
    device: str
    dtype: str
    stack: Stack | None = None  # None: an older worker, which does not tell
    certificate: Certificate | None = None  # as filed on the worker's machine


class Loaded(_Message, frozen=True, tag="loaded"):
    """The version is served. `digest` is of the tensors as the engine holds them."""

    number: int
    digest: str | None  # None: the engine keeps them in a form that cannot be read back
    text: list[float]  # logprobs of canary.text[1:], through prefill
    decode: list[float]  # logprobs of the continuations as they were drawn
    prefill: list[float]  # of the same tokens, through prefill
    fetched_bytes: int


class Finished(_Message, frozen=True, tag="finished"):
    unit: int
    groups: list[Group]


class Qualified(_Message, frozen=True, tag="qualified"):
    certificate: Certificate


class Failed(_Message, frozen=True, tag="failed"):
    """A message could not be carried out. `permanent`: trying again changes nothing."""

    reason: str
    permanent: bool


class Alive(_Message, frozen=True, tag="alive"):
    """A sign of life, whatever else the worker is doing."""


Request = Open | Load | Prefetch | Generate | Qualify
Reply = Opened | Loaded | Finished | Qualified | Failed | Alive


_NUMBER_BYTES = 9  # of a float64; of a token's id, 5
# Of a sampled token: id, log-probability, text. The longest tokens of today's vocabularies are runs
# of 128 blanks, and a byte that is no text becomes three.
_TOKEN_BYTES = 5 + _NUMBER_BYTES + 256
_COMPLETION_BYTES = 1 << 12  # of all else in a completion
_PROMPT_BYTES = 1 << 16  # of what a chat template says beside a problem's messages
_CERTIFICATE_BYTES = 8 << 20


def reply_bytes(request: Request, canary: Canary) -> int | None:
    """The longest message that may answer a request, generously; None: it has no reply.

    `canary`: that of the worker's Open. Failures and signs of life pass as well.
    """
    match request:
        case Open() | Qualify():
            return _CERTIFICATE_BYTES
        case Load():
            drawn = len(canary.prompts) * canary.tokens
            return UNASKED_BYTES + _NUMBER_BYTES * (len(canary.text) + 2 * drawn)
        case Generate():
            count = len(request.problems)
            completion = request.sampling.max_tokens * _TOKEN_BYTES + _COMPLETION_BYTES
            # Each problem comes back, and its prompt: a byte of it is a token at the most.
            echoed = (1 + 5) * len(encode(request.problems)) + count * 5 * _PROMPT_BYTES
            return UNASKED_BYTES + echoed + count * request.completions * completion
        case Prefetch():
            return None


def encode(message: Any) -> bytes:
    return msgspec.msgpack.encode(message)


def request(data: bytes) -> Request:
    """Raises ValueError or RecursionError when the bytes are no request."""
    return msgspec.msgpack.decode(data, type=Request)


def reply(data: bytes) -> Reply:
    """Raises ValueError or RecursionError when the bytes are no reply."""
    return msgspec.msgpack.decode(data, type=Reply)


def failed(error: InterlockError) -> Failed:
    """In one line. What the user has to mend is permanent."""
    return Failed(error_line(error), permanent=isinstance(error, UserError))


def beat(channel: Channel) -> None:
    """Give signs of life from now on, from a thread of its own, until the process ends."""

    def work() -> None:
        while True:
            time.sleep(BEAT_S)
            channel.send(encode(Alive()))

    threading.Thread(target=work, name="beat", daemon=True).start()
