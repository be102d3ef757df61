"""What is known of a chip: its stack, what checks found of it, and the certificate that says so."""

from enum import StrEnum

import msgspec


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
    libraries: str = ""  # that torch brings for it: "cuDNN 9.10.2, NCCL 2.27.3"
    vllm: str = ""  # installed beside torch
    suite: str = ""  # the checks of `qualify`, as a digest of their sources


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


class Sizes(msgspec.Struct, frozen=True):
    """Of a model, those on which kernels depend; or the largest of each that were tried.

    In elements; 0: it has no such thing, or nothing was tried.
    """

    vocab: int = 0
    context: int = 0
    hidden: int = 0
    inner: int = 0  # of a dense layer
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    experts: int = 0  # of a layer
    per_token: int = 0
    expert_inner: int = 0
    q_rank: int = 0  # of latent attention
    kv_rank: int = 0

    def beyond(self, tried: "Sizes") -> list[str]:
        """What of this was not tried: "vocab 262144, tried to 151936"."""
        return [
            f"{name} {size}, tried to {most}"
            for name in self.__struct_fields__
            if (size := getattr(self, name)) > (most := getattr(tried, name))
        ]


class Certificate(msgspec.Struct, frozen=True):
    """What `interlock qualify` found of a stack."""

    stack: Stack
    device: str  # as it was asked for
    world_size: int  # processes that its collectives were proven with
    level: str  # "quick", "default" or "soak"
    trust: Trust
    reasons: list[str]  # why it is not trusted with more
    findings: list[Finding]
    issued: float  # seconds since 1970
    commit: str = ""  # of Interlock's sources, where that is known
    tried: Sizes = Sizes()  # the largest of each, one by one; nothing where `forward` did not pass
    models: list[str] = []  # none of whose sizes is beyond that
    checksum: str = ""  # of everything else in it: chips/certificates.py
