"""What the libraries of vendors say: when they fail, lack an operator, or compute it on the host.

The words are the vendors' own: CANN's runtime error codes (rt_error_codes.h), cudaError_t and Xid
of Nvidia, HIP and ROCr messages, Level Zero's, Metal's, those of CNNL, MTGPU and Synapse, and of
NCCL, HCCL and gloo. An origin is where to look first, not a proof: a kernel that writes out of
bounds and a broken chip may say the same.
"""

import re

from interlock.chips.vendors.vendor import Code, Origin

_HARDWARE, _LINK, _SOFTWARE = Origin.HARDWARE, Origin.LINK, Origin.SOFTWARE
_MEMORY, _PEER = Origin.MEMORY, Origin.PEER

_REPLACE = "take the chip out, and have the vendor replace it"
_RESET = "reset the device; if it comes back, take the chip out"
_CABLES = "look at the links, switches and cables between the devices; then try again"
_FIRST = "look for the first error of the other processes, then at the link to their devices"
_REPORT = "start the process again; if it comes back, report it to the vendor with this operator"
_LESS = "ask for less memory, or see who else uses the device"
_INSTALL = "install driver, runtime and plugin that belong together"
_RELEASE = "end the process that holds it"

# In each table the first that is found counts. What nothing else can be mistaken for is
# written as a number alone: digits that are a part of another number are no code.

NVIDIA = (
    Code(r"uncorrectable (?:\w+ )?ECC", _HARDWARE, "its memory holds a lasting error", _REPLACE),
    Code("cudaErrorECCUncorrectable", _HARDWARE, "its memory holds a lasting error", _REPLACE),
    Code(r"Xid\b.*?: (?:48|64|94|95|140)\b", _HARDWARE, "its memory fails", _REPLACE),
    Code(r"Xid\b.*?: 79\b", _HARDWARE, "the chip has left the bus", _RESET),
    Code(r"fallen off the bus", _HARDWARE, "the chip has left the bus", _RESET),
    Code(r"Xid\b.*?: (?:61|62)\b", _HARDWARE, "a controller on the chip stopped", _RESET),
    Code(r"Xid\b.*?: (?:119|120)\b", _HARDWARE, "the chip's own firmware (GSP) failed", _RESET),
    Code("hardware stack error", _HARDWARE, "the chip's own stack is corrupt", _RESET),
    Code(r"Xid\b.*?: 74\b", _LINK, "NVLink reports an error", _CABLES),
    Code(r"cudaErrorNvlink|NVLink.{0,40}error", _LINK, "NVLink reports an error", _CABLES),
    Code(r"Xid\b.*?: 31\b", _SOFTWARE, "a kernel touched memory it does not own", _REPORT),
    Code(r"Xid\b.*?: (?:13|43|45)\b", _SOFTWARE, "a kernel failed", _REPORT),
)  # fmt: skip

AMD = (
    Code("hipErrorECCNotCorrectable", _HARDWARE, "its memory holds a lasting error", _REPLACE),
    Code(r"HW Exception by GPU", _HARDWARE, "the chip reports an exception of its own", _RESET),
    Code(r"hipErrorIllegalAddress|Memory access fault by GPU|MEMORY_APERTURE_VIOLATION",
         _SOFTWARE, "a kernel touched memory it does not own", _REPORT),
    Code("hipErrorOutOfMemory", _MEMORY, "the memory of the device is full", _LESS),
)  # fmt: skip

ASCEND = (
    Code("507054", _HARDWARE, "several bits of its memory flipped (HBM ECC)", _REPLACE),
    Code("507053", _HARDWARE, "its memory holds an error that cannot be corrected", _REPLACE),
    Code("507055", _HARDWARE, "the memory of another device is in error", _REPLACE),
    Code("507010", _HARDWARE, "the chip's scheduler has no heartbeat any more", _RESET),
    Code("507013", _HARDWARE, "a copy between host and device failed in hardware", _RESET),
    Code("507033", _HARDWARE, "the device cannot be set up", _RESET),
    Code("507899", _HARDWARE, "the driver failed", _RESET),
    Code("507901", _HARDWARE, "the host has lost the device", _RESET),
    Code("507056", _LINK, "the link between two devices broke", _CABLES),
    Code("507057", _LINK, "another device of the job failed, or its link", _FIRST),
    Code("507904", _LINK, "a collective failed, and failed again when repeated", _CABLES),
    # vllm-ascend#16646, lmdeploy#3354
    Code(r"hccl fftsplus task timeout", _LINK, "a collective met its deadline", _FIRST),
    Code(r"\bEI000[26]\b", _LINK, "a collective met its deadline", _FIRST),
    # Almost always the software's, but a broken core says the same.
    # 507014: vllm-ascend#4972; 507018: #2105; 507034: #10299; 507035: #2349, Ascend/pytorch#66
    Code("507014", _SOFTWARE, "a kernel did not end (AI core timeout)", _REPORT),
    Code("507015", _SOFTWARE, "a kernel failed (AI core exception)", _REPORT),
    Code("507016", _SOFTWARE, "a kernel failed (AI core trap)", _REPORT),
    Code("507017", _SOFTWARE, "an operator did not end (AI CPU timeout)", _REPORT),
    Code("507018", _SOFTWARE, "an operator failed (AI CPU exception)", _REPORT),
    Code("507034", _SOFTWARE, "a kernel did not end (vector core timeout)", _REPORT),
    Code("507035", _SOFTWARE, "a kernel failed, often outside its memory (vector core)", _REPORT),
    Code("507036", _SOFTWARE, "a kernel failed (vector core trap)", _REPORT),
    Code("507046", _SOFTWARE, "the device did not finish in time (stream)", _REPORT),
    Code("507047", _SOFTWARE, "the device did not finish in time (event)", _REPORT),
    Code("507048", _SOFTWARE, "a task did not end (FFTS+ timeout)", _REPORT),
    Code("507049", _SOFTWARE, "a task failed (FFTS+ exception)", _REPORT),
    Code("507050", _SOFTWARE, "a task failed (FFTS+ trap)", _REPORT),
    Code("507011", _SOFTWARE, "a graph failed while it ran", _REPORT),
    Code("507900", _SOFTWARE, "an operator on the AI CPU failed", _REPORT),
    Code("207018", _MEMORY, "the memory of the device is full", _LESS),
    Code("207001", _MEMORY, "no memory could be had", _LESS),
)

INTEL = (
    Code(r"(?:UR|ZE)_RESULT_ERROR_DEVICE_LOST", _HARDWARE, "the host has lost the device", _RESET),
    Code(r"(?:UR|ZE)_RESULT_ERROR_OUT_OF_\w+", _MEMORY, "the memory of the device is full", _LESS),
)

APPLE = (
    Code("CommandBufferCallbackErrorHang", _SOFTWARE, "a kernel did not end", _REPORT),
    Code("CommandBufferCallbackErrorPageFault", _SOFTWARE,
         "a kernel touched memory it does not own", _REPORT),
    Code("CommandBufferCallbackErrorOutOfMemory", _MEMORY, "the memory of the device is full",
         _LESS),
)  # fmt: skip

CAMBRICON = (  # Cambricon/mlu-ops#237, #908
    Code(r"\bMLU unfinished", _SOFTWARE, "a kernel did not end, or failed", _REPORT),
    Code(r"\bCN(?:NL|RT)_\w*(?:NOMEM|ALLOC_FAILED)\w*", _MEMORY, "no memory could be had", _LESS),
    Code(r"\bCNNL_STATUS_(?!SUCCESS)\w+", _SOFTWARE, "a library failed", _REPORT),
)

MOORE_THREADS = (  # MooreThreads/torch_musa#75
    Code(r"(?:Guilty|Innocent) Lockup", _SOFTWARE, "a kernel did not end", _REPORT),
)

GAUDI = (
    Code(r"Device acquire failed|synStatus\W*8\b", _SOFTWARE,
         "another process holds the device, or there is none", _RELEASE),
    Code(r"\bsynStatus\W*(?!0\b)\d+", _SOFTWARE, "a graph could not be compiled or run", _REPORT),
)  # fmt: skip

# Of torch, of the libraries for collectives, and what several vendors say alike.
SHARED = (
    Code(r"HCCL.{0,80}time ?out", _LINK, "a collective met its deadline", _FIRST),
    Code(r"[Ww]atchdog caught collective", _LINK, "a collective met its deadline", _FIRST),
    Code(r"NCCL.{0,80}(?:time ?out|timed out)", _LINK, "a collective met its deadline", _FIRST),
    Code(r"nccl(?:System|Remote)Error|NCCL error", _LINK, "a collective failed", _FIRST),
    Code(r"illegal memory access", _SOFTWARE, "a kernel touched memory it does not own", _REPORT),
    Code(r"misaligned address", _SOFTWARE, "a kernel touched memory off its grid", _REPORT),
    Code(r"device-side assert", _SOFTWARE, "a kernel was given an index out of range", _REPORT),
    Code(r"illegal instruction", _SOFTWARE, "a kernel holds an unknown instruction", _REPORT),
    Code(r"unspecified launch failure", _SOFTWARE, "a kernel failed", _REPORT),
    Code(r"launch timed out", _SOFTWARE, "a kernel did not end", _REPORT),
    Code(r"(?:CUBLAS|HIPBLAS|CUDNN|MIOPEN)_STATUS_\w+", _SOFTWARE, "a library failed", _REPORT),
    Code(r"no kernel image|invalid device function", _SOFTWARE,
         "the software was not built for this chip", _INSTALL),
    Code(r"driver version is insufficient", _SOFTWARE, "the driver is too old", _INSTALL),
    Code(r"out of memory|OutOfMemoryError", _MEMORY, "the memory of the device is full", _LESS),
    # What the others say of a process that is gone: seldom the cause.
    Code(r"Connection closed by peer|Connection reset", _PEER, "another process is gone", _FIRST),
    Code(r"gloo.{0,200}(?:[Tt]imed out|timeout)", _PEER, "a collective met its deadline", _FIRST),
)  # fmt: skip

# How a backend says that it has no such operator, or not for this dtype, where it does not raise
# NotImplementedError, or torch wraps that in autograd's threads. "CPU fallback is disabled" is
# torch_npu's, which its row's `strict_env` asks for; "not implemented for DT_BFLOAT16" is of its
# kernels.
REFUSAL = re.compile(
    r"not (currently |yet )?(implemented|supported)|could not run 'aten::|NotImplementedError"
    r"|fallback is disabled",
    re.IGNORECASE,
)
# How it warns that the CPU computes one instead: "… is not currently supported on the MPS backend
# and will fall back to run on the CPU", "Aten Op fallback from XPU to CPU happends". A fallback
# from one kernel to another names no host.
FALLBACK = re.compile(r"fall\w*[ -]?(\w+ )?back.*\b(cpu|host)\b", re.IGNORECASE | re.DOTALL)
