"""All that Interlock knows of one vendor's devices and not of another's: a row for each, no torch.

    "npu:0" ── kind_of ──> "npu" ── of ──> Vendor, names in which others look up in torch

A kind is what torch calls a device: "cuda" is Nvidia's and AMD's, "npu" Huawei's, "xpu" Intel's,
"mps" Apple's, "mlu" Cambricon's, "musa" Moore Threads'. Two more are ours: "cpu", the reference,
and "sim", the simulated one, which torch takes for an "npu". A kind without a row is taken to have
nothing special, so a new vendor's devices work before anybody writes one.

Where a row's facts are from: Ascend/pytorch's environment variables, torch's documents on MPS,
intel/torch-xpu-ops, vllm-ascend; the files and tools are the vendors' own.
"""

import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

_DEADLINE_S = 5.0  # for a vendor's tool to answer
_ASCEND = Path("/usr/local/Ascend")
# Beginnings of environment variables of torch and of what vendors share.
_OF_ALL = ("DISABLE_ADDMM", "OMP_NUM", "PYTORCH_", "TORCH", "XLA_")


class Software(NamedTuple):
    """Versions of what lies below torch; "" where there is none or it cannot be found."""

    driver: str = ""
    firmware: str = ""
    runtime: str = ""  # with its name: "CUDA 13.0"
    libraries: str = ""  # that torch brings: "cuDNN 9.10.2, NCCL 2.27.3"


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """What is special about the devices of one kind.

    `software(serial, built)` never raises and takes a few seconds at most; `serial` is the device's
    (or ""), `built` the module `torch.version`.
    """

    kind: str
    host: bool = False  # computed by the CPU, at its speed
    numbered: bool = True  # a machine may have several, told apart by number: "cuda:1"
    plugin: str = ""  # the package that brings it to torch; "": torch has it
    plugin_follows_torch: bool = False  # its version is that of the torch it is made for
    collectives: str = ""  # backend of torch.distributed; "": the one that torch names
    ordered_sums: str = ""  # what has its collectives add up in one order
    fused_adamw: bool = False  # torch has AdamW in one pass for it
    # Where its driver's name for a chip is: an attribute below torch; "": get_device_name.
    chip_name: str = ""
    # Functions of torch's module for it that tell bytes; "": mem_get_info tells free and total.
    memory_used: str = "memory_allocated"
    memory_total: str = ""
    # Environment that makes an error of computing a missing operator on the CPU in silence; to be
    # set before torch is imported.
    strict_env: dict[str, str] = {}
    # Attributes below torch that let products of float32 keep 10 bits of each factor (TF32, HF32).
    # Convolutions have them on by default.
    short_products: tuple[str, ...] = ()
    # Beginnings of environment variables that change its numbers, or where they are computed.
    variables: tuple[str, ...] = ()
    visible: str = ""  # the environment variable that chooses which devices a process sees
    vllm_env: dict[str, str] = {}  # set before vLLM is imported
    vllm_graphs: bool = False  # vLLM is left to capture graphs and to compile
    software: Callable[[str, Any], Software] = lambda serial, built: Software()


def of(kind: str) -> Vendor:
    """The row of a kind; one of nothing special where there is none."""
    return VENDORS.get(kind) or Vendor(kind=kind)


def kind_of(device: str) -> str:
    """The kind of a device as settings name it: "npu" of "npu:0", "sim" of "sim:crash"."""
    return device.partition(":")[0]


def changes_numbers(variable: str) -> bool:
    """Whether an environment variable may change what some device, or torch, computes."""
    prefixes = [prefix for vendor in VENDORS.values() for prefix in vendor.variables]
    return variable.startswith((*_OF_ALL, *prefixes))


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


def _cuda(serial: str, built: Any) -> Software:
    """Nvidia's or AMD's, as torch was built for."""
    if built.hip is not None:
        driver = _text(Path("/sys/module/amdgpu/version")).strip()
        return Software(driver, runtime=_named("ROCm", built.hip))
    return Software(*_nvidia_smi(serial), _named("CUDA", built.cuda), _nvidia_libraries())


def _nvidia_libraries() -> str:
    """As the packages that torch depends on call them: nvidia-cudnn-cu13 and its like."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        name = re.fullmatch(r"nvidia-(cudnn|nccl|cublas)(-cu\d+)?", package.name or "")
        if name:
            found[name[1]] = package.version
    titles = {"cublas": "cuBLAS", "cudnn": "cuDNN", "nccl": "NCCL"}
    return ", ".join(f"{titles[name]} {found[name]}" for name in sorted(found))


def _nvidia_smi(serial: str) -> tuple[str, str]:
    """Versions of driver and video BIOS."""
    command = ["nvidia-smi", "--query-gpu=driver_version,vbios_version", "--format=csv,noheader"]
    if serial:
        command.append(f"--id=GPU-{serial.removeprefix('GPU-')}")
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S)
        driver, firmware = told.stdout.splitlines()[0].split(", ")
        return driver, firmware
    except (OSError, subprocess.SubprocessError, LookupError, ValueError):
        found = re.search(r"Module\s+(\d[\d.]*)", _text(Path("/proc/driver/nvidia/version")))
        return (found[1] if found else ""), ""


def _npu(serial: str, built: Any) -> Software:
    return Software(
        _value(_ASCEND / "driver" / "version.info"),
        _value(_ASCEND / "firmware" / "version.info"),
        _named("CANN", _cann()),
    )


def _cann() -> str:
    """The version of Ascend's toolkit, which has moved between files from release to release."""
    home = Path(os.environ.get("ASCEND_TOOLKIT_HOME", _ASCEND / "ascend-toolkit" / "latest"))
    places = ("compiler/version.info", "runtime/version.info", "version.info", "version.cfg")
    return next(filter(None, (_value(home / place) for place in places)), "")


def _xpu(serial: str, built: Any) -> Software:
    return Software(runtime=_named("oneAPI", getattr(built, "xpu", None)))


def _mps(serial: str, built: Any) -> Software:
    return Software(runtime=_named("macOS", platform.mac_ver()[0]))


def _named(name: str, version: str | None) -> str:
    return f"{name} {version}" if version else ""


def _value(file: Path) -> str:
    """The version in a file of lines "Version=8.5.0" or "runtime_running_version=[7.1:8.5.0]"."""
    found = re.search(r"version\s*=\s*\[?(?:[\w.]*:)?([\w.]+)", _text(file), re.IGNORECASE)
    return found[1] if found else ""


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""


_ALL = [
    Vendor(kind="cpu", host=True, fused_adamw=True, variables=("MKL_", "ONEDNN")),
    Vendor(
        kind="sim",
        host=True,
        numbered=False,
        plugin_follows_torch=True,
        collectives="gloo",
        fused_adamw=True,
    ),
    Vendor(
        kind="cuda",
        ordered_sums="NCCL_ALGO=^NVLS",
        fused_adamw=True,
        short_products=("backends.cudnn.allow_tf32",),
        variables=(
            *("CUBLAS", "CUDA_", "CUDNN", "NCCL_", "NVIDIA_TF32"),
            *("HIP", "HSA_", "MIOPEN", "RCCL_", "ROCBLAS"),
        ),
        visible="CUDA_VISIBLE_DEVICES",
        vllm_graphs=True,
        software=_cuda,
    ),
    Vendor(
        kind="npu",
        plugin="torch_npu",
        plugin_follows_torch=True,
        ordered_sums="HCCL_DETERMINISTIC=true",
        strict_env={"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"},
        short_products=("npu.conv.allow_hf32", "npu.matmul.allow_hf32"),
        variables=(
            *("ACL_", "ASCEND_", "CANN_", "HCCL_", "INF_NAN_MODE", "LCCL_", "NPU_", "TASK_QUEUE"),
        ),
        visible="ASCEND_RT_VISIBLE_DEVICES",
        vllm_env={"VLLM_ASCEND_ENABLE_NZ": "0"},  # that layout cannot be updated in place
        software=_npu,
    ),
    Vendor(
        kind="xpu",
        fused_adamw=True,
        strict_env={"PYTORCH_ENABLE_XPU_FALLBACK": "0"},
        variables=("SYCL_", "XPU", "ZE_"),
        visible="ZE_AFFINITY_MASK",
        software=_xpu,
    ),
    Vendor(
        kind="mps",
        numbered=False,
        chip_name="backends.mps.get_name",
        memory_used="current_allocated_memory",
        memory_total="recommended_max_memory",
        strict_env={"PYTORCH_ENABLE_MPS_FALLBACK": "0"},
        software=_mps,
    ),
    Vendor(
        kind="mlu",
        plugin="torch_mlu",
        short_products=("backends.cnnl.allow_tf32", "backends.mlu.matmul.allow_tf32"),
        variables=("MLU",),
        visible="MLU_VISIBLE_DEVICES",
    ),
    Vendor(
        kind="musa",
        plugin="torch_musa",
        short_products=("backends.mudnn.allow_tf32",),
        variables=("MUSA_",),
        visible="MUSA_VISIBLE_DEVICES",
    ),
]

VENDORS = {vendor.kind: vendor for vendor in _ALL}
