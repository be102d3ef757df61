"""What a crash means: what a process said last, sorted into hardware, link or software.

    last words ──classify──> Fault: what it is, what to do
    device ──recovers──> a product in a new process ──> whether the device is still of use

The words are the vendors' own: CANN's runtime error codes (rt_error_codes.h), cudaError_t and Xid
of Nvidia, HIP and ROCr messages, Level Zero's, and those of NCCL, HCCL and gloo. A kind is where to
look first, not a proof: a kernel that writes out of bounds and a broken chip may say the same.
"""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum

from interlock.processes.channel import Channel
from interlock.processes.child import UNASKED_BYTES, Child, ChildError, inherited
from interlock.processes.deadline import Deadline
from interlock.text import one_line


class Origin(StrEnum):
    """Where to look first."""

    HARDWARE = "hardware"
    LINK = "link"
    SOFTWARE = "software"


@dataclass(frozen=True)
class Fault:
    """`code` is the vendor's, or the words by which it was known."""

    code: str
    kind: Origin
    meaning: str
    advice: str


_REPLACE = "take the chip out, and have the vendor replace it"
_RESET = "reset the device; if it comes back, take the chip out"
_LINK = "look at the links, switches and cables between the devices; then try again"
_PEER = "look for the first error of the other processes, then at the link to their devices"
_REPORT = "start the process again; if it comes back, report it to the vendor with this operator"
_LESS = "ask for less memory, or see who else uses the device"
_INSTALL = "install driver, runtime and plugin that belong together"

# The first that is found counts: what explains the others stands first.
_FAULTS: Sequence[tuple[str, Origin, str, str]] = (
    # Memory and the chip itself.
    ("507054", Origin.HARDWARE, "several bits of its memory flipped (HBM ECC)", _REPLACE),
    ("507053", Origin.HARDWARE, "its memory holds an error that cannot be corrected", _REPLACE),
    ("507055", Origin.HARDWARE, "the memory of another device is in error", _REPLACE),
    (r"uncorrectable (?:\w+ )?ECC", Origin.HARDWARE, "its memory holds a lasting error", _REPLACE),
    ("cudaErrorECCUncorrectable", Origin.HARDWARE, "its memory holds a lasting error", _REPLACE),
    (r"Xid\b.*?: (?:48|64|94|95|140)\b", Origin.HARDWARE, "its memory fails", _REPLACE),
    (r"Xid\b.*?: 79\b", Origin.HARDWARE, "the chip has left the bus", _RESET),
    (r"fallen off the bus", Origin.HARDWARE, "the chip has left the bus", _RESET),
    (r"HW Exception by GPU", Origin.HARDWARE, "the chip reports an exception of its own", _RESET),
    ("hardware stack error", Origin.HARDWARE, "the chip's own stack is corrupt", _RESET),
    ("507010", Origin.HARDWARE, "the chip's scheduler has no heartbeat any more", _RESET),
    ("507013", Origin.HARDWARE, "a copy between host and device failed in hardware", _RESET),
    ("507033", Origin.HARDWARE, "the device cannot be set up", _RESET),
    ("507899", Origin.HARDWARE, "the driver failed", _RESET),
    ("507901", Origin.HARDWARE, "the host has lost the device", _RESET),
    ("UR_RESULT_ERROR_DEVICE_LOST", Origin.HARDWARE, "the host has lost the device", _RESET),
    (r"ZE_RESULT_ERROR_DEVICE_LOST", Origin.HARDWARE, "the host has lost the device", _RESET),
    # Links.
    ("507056", Origin.LINK, "the link between two devices broke", _LINK),
    ("507057", Origin.LINK, "another device of the job failed, or its link", _PEER),
    ("507904", Origin.LINK, "a collective failed, and failed again when repeated", _LINK),
    (r"Xid\b.*?: 74\b", Origin.LINK, "NVLink reports an error", _LINK),
    (r"cudaErrorNvlink|NVLink.{0,40}error", Origin.LINK, "NVLink reports an error", _LINK),
    # vllm-ascend#16646, lmdeploy#3354
    (r"hccl fftsplus task timeout", Origin.LINK, "a collective met its deadline", _PEER),
    (r"\bEI000[26]\b|HCCL.{0,80}time ?out", Origin.LINK, "a collective met its deadline", _PEER),
    (r"[Ww]atchdog caught collective", Origin.LINK, "a collective met its deadline", _PEER),
    (r"NCCL.{0,80}(?:time ?out|timed out)", Origin.LINK, "a collective met its deadline", _PEER),
    (r"nccl(?:System|Remote)Error|NCCL error", Origin.LINK, "a collective failed", _PEER),
    # Kernels: almost always the software's, but a broken core says the same.
    # 507014: vllm-ascend#4972; 507018: #2105; 507034: #10299; 507035: #2349, Ascend/pytorch#66
    ("507014", Origin.SOFTWARE, "a kernel did not end (AI core timeout)", _REPORT),
    ("507015", Origin.SOFTWARE, "a kernel failed (AI core exception)", _REPORT),
    ("507016", Origin.SOFTWARE, "a kernel failed (AI core trap)", _REPORT),
    ("507017", Origin.SOFTWARE, "an operator did not end (AI CPU timeout)", _REPORT),
    ("507018", Origin.SOFTWARE, "an operator failed (AI CPU exception)", _REPORT),
    ("507034", Origin.SOFTWARE, "a kernel did not end (vector core timeout)", _REPORT),
    ("507035", Origin.SOFTWARE, "a kernel failed, often outside its memory (vector core)", _REPORT),
    ("507036", Origin.SOFTWARE, "a kernel failed (vector core trap)", _REPORT),
    ("507046", Origin.SOFTWARE, "the device did not finish in time (stream)", _REPORT),
    ("507047", Origin.SOFTWARE, "the device did not finish in time (event)", _REPORT),
    ("507048", Origin.SOFTWARE, "a task did not end (FFTS+ timeout)", _REPORT),
    ("507049", Origin.SOFTWARE, "a task failed (FFTS+ exception)", _REPORT),
    ("507050", Origin.SOFTWARE, "a task failed (FFTS+ trap)", _REPORT),
    ("507011", Origin.SOFTWARE, "a graph failed while it ran", _REPORT),
    ("507900", Origin.SOFTWARE, "an operator on the AI CPU failed", _REPORT),
    (r"illegal memory access", Origin.SOFTWARE, "a kernel touched memory it does not own", _REPORT),
    (r"hipErrorIllegalAddress|Memory access fault by GPU|MEMORY_APERTURE_VIOLATION",
     Origin.SOFTWARE, "a kernel touched memory it does not own", _REPORT),
    (r"misaligned address", Origin.SOFTWARE, "a kernel touched memory off its grid", _REPORT),
    (r"device-side assert", Origin.SOFTWARE, "a kernel was given an index out of range", _REPORT),
    (r"illegal instruction", Origin.SOFTWARE, "a kernel holds an unknown instruction", _REPORT),
    (r"unspecified launch failure", Origin.SOFTWARE, "a kernel failed", _REPORT),
    (r"launch timed out", Origin.SOFTWARE, "a kernel did not end", _REPORT),
    (r"(?:CUBLAS|HIPBLAS|CUDNN|MIOPEN)_STATUS_\w+", Origin.SOFTWARE, "a library failed", _REPORT),
    (r"no kernel image|invalid device function", Origin.SOFTWARE,
     "the software was not built for this chip", _INSTALL),
    (r"driver version is insufficient", Origin.SOFTWARE, "the driver is too old", _INSTALL),
    # Memory that is full. 207018 and 207001: CANN's.
    (r"out of memory|OutOfMemoryError|UR_RESULT_ERROR_OUT_OF_\w+", Origin.SOFTWARE,
     "the memory of the device is full", _LESS),
    ("207018", Origin.SOFTWARE, "the memory of the device is full", _LESS),
    ("207001", Origin.SOFTWARE, "no memory could be had", _LESS),
    # What the others say of a process that is gone: seldom the cause.
    (r"Connection closed by peer|Connection reset", Origin.LINK, "another process is gone", _PEER),
    (r"gloo.{0,200}(?:[Tt]imed out|timeout)", Origin.LINK, "a collective met its deadline", _PEER),
)  # fmt: skip


def classify(text: str) -> Fault | None:
    """The gravest fault that `text`, the words of a failed process, tells of; None: no known one.

    Digits that are only a part of another number are no code.
    """
    for pattern, kind, meaning, advice in _FAULTS:
        exact = rf"(?<![\w.]){pattern}(?!\w|\.\d)" if pattern.isdigit() else pattern
        if found := re.search(exact, text, re.IGNORECASE):
            code = one_line(found.group(), 60)
            return Fault(code, kind, meaning, advice)
    return None


def recovers(device_name: str, seconds: float) -> bool:
    """Whether a new process computes a product on the device, and rightly, within `seconds`."""
    deadline = Deadline(seconds)
    try:
        with closing(Child(__name__, inherited())) as child:
            return child.ask(device_name.encode(), deadline.left, UNASKED_BYTES) == b"right"
    except (ChildError, OSError):
        return False


def serve(channel: Channel) -> None:
    """The new process: a product of whole numbers, which is exact in any order of summation."""
    data = channel.receive()
    if data is None:
        return
    import torch

    from interlock.chips import device

    place = device.claim(data.decode())
    row = torch.arange(64.0).remainder(7)
    expected = row @ row
    x = row.repeat(64, 1).to(place)
    right = bool(((x @ x.mT).cpu() == expected).all())
    channel.send(b"right" if right else b"wrong")
