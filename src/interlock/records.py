"""What flows between rooms and processes: small frozen records, as msgpack bytes, never pickled.

    Task ── Problem ──> Generator ── Group(Completion × G) ──> verifier ── rewards ──> learner
                             ^                                                       │
                             └───────────────────── WeightVersion ───────────────────┘

Token ids are plain lists of int. Log-probabilities are natural logs of the distribution that was
really sampled from (after temperature, top-k and top-p), one per completion token.
"""

from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

Record = TypeVar("Record", bound=msgspec.Struct)


class Problem(msgspec.Struct, frozen=True):
    """One prompt with what its verifier needs to judge an answer."""

    id: str  # stable over runs: equal ids mean the same problem; seeds the sampling noise
    messages: list[dict[str, str]]  # chat turns, {"role": …, "content": …}
    answer: str  # the reference answer, in whatever form the task's verifier reads
    meta: dict[str, Any] = {}


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How completions are drawn. temperature 0 is greedy; top_k 0 and top_p 1.0 are off."""

    temperature: Annotated[float, Meta(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    max_tokens: Annotated[int, Meta(gt=0)] = 64
    stop: list[str] = []


class FinishReason(StrEnum):
    STOP = "stop"  # the end-of-turn token or a stop string
    LENGTH = "length"  # max_tokens reached


class Completion(msgspec.Struct, frozen=True):
    """One sampled answer. `tokens` includes the end-of-turn token when that ended it."""

    tokens: list[int]
    logprobs: list[float]
    finish: FinishReason
    text: str  # decoded, without special tokens
    weight_version: int


class Group(msgspec.Struct, frozen=True):
    """The G completions of one problem."""

    problem: Problem
    prompt_tokens: list[int]
    completions: list[Completion]
    worker: str


class Verdict(msgspec.Struct, frozen=True):
    """What a verifier said of one completion; `error` when it crashed, hung or misbehaved."""

    reward: float
    error: str | None = None


class ScoredGroup(msgspec.Struct, frozen=True):
    """A group with its verdicts, index by index: what the ledger keeps."""

    group: Group
    verdicts: list[Verdict]

    @property
    def rewards(self) -> list[float]:
        return [verdict.reward for verdict in self.verdicts]


class WeightVersion(msgspec.Struct, frozen=True):
    """A set of named tensors, identified by number and content digest."""

    number: int
    digest: str  # sha256 over the names, dtypes, shapes and bits of the published tensors


class Role(StrEnum):
    """What a chip does in a run."""

    TRAIN = "train"
    GENERATE = "generate"


class Trust(StrEnum):
    """What a chip with its software may be used for. `train` includes `generate`."""

    TRAIN = "train"
    GENERATE = "generate"
    REJECT = "reject"
    UNKNOWN = "unknown"  # a check that decides did not run


class Result(StrEnum):
    """Of one check. What did not run proves nothing: it is UNKNOWN, and never certifies."""

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Stack(msgspec.Struct, frozen=True):
    """What a certificate is of: a chip and its software. "": it has none, or does not tell."""

    kind: str  # as torch calls it: "cpu", "cuda", "npu", …; "sim" for the simulated device
    chip: str = ""  # the name that its driver gives
    driver: str = ""
    firmware: str = ""
    runtime: str = ""  # "CUDA 13.0", "CANN 8.5", …
    torch: str = ""
    plugin: str = ""  # "torch_npu 2.13.0"
    interlock: str = ""
    serial: str = ""  # tells it from others of its kind: a certificate is of one chip


class Measure(msgspec.Struct, frozen=True):
    """One figure with what it is held against: a point of a plot, a line of a table."""

    name: str  # of the case: "mm bf16 [511, 4096] @ [4096, 11008]"
    value: float  # as measured on the device
    limit: float  # a larger value fails
    reference: float | None = None  # the same figure of the reference, where there is one


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    check: str  # its id
    result: Result
    summary: str  # one sentence, for someone who has never seen the check
    seconds: float = 0.0
    figures: dict[str, float | int | str] = {}  # the evidence, by name with its unit
    measures: list[Measure] = []  # the evidence, case by case; the failed ones first


class Certificate(msgspec.Struct, frozen=True):
    """What `interlock qualify` found of a stack, sealed by the digest of everything else in it."""

    stack: Stack
    device: str  # as it was asked for
    world: int  # processes that its collectives were proven with
    level: str  # "quick", "default" or "soak"
    trust: Trust
    reasons: list[str]  # why it is not trusted with more
    findings: list[Finding]
    issued: float  # seconds since 1970
    digest: str = ""  # chips/certificates.py


def to_bytes(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


def from_bytes(data: bytes, kind: type[Record]) -> Record:
    """Decode one record. Raises msgspec.ValidationError when the bytes are not a `kind`."""
    return msgspec.msgpack.decode(data, type=kind)
