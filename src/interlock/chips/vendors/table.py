"""The rows. A vendor's name stands nowhere else in the code.

Where the facts are from: Ascend/pytorch's environment variables, torch's documents on MPS and on
autoloading, intel/torch-xpu-ops, vllm-ascend, docs.habana.ai, and the threads that traps name; the
files and tools are the vendors' own. Nothing but the CPU and the simulated device was tried.
"""

from interlock.chips.vendors import codes
from interlock.chips.vendors.vendor import Setting, Told, Trap, Vendor

_ASCEND = "/usr/local/Ascend"
_TOOLKIT = ("$ASCEND_TOOLKIT_HOME/", f"{_ASCEND}/ascend-toolkit/latest/")
# The toolkit's version has moved between files from release to release.
_CANN_FILES = ("compiler/version.info", "runtime/version.info", "version.info", "version.cfg")
# In lines as "Version=8.5.0" or "runtime_running_version=[7.1:8.5.0]".
_VALUE = r"version\s*=\s*\[?(?:[\w.]*:)?([\w.]+)"
_CHOOSE = "install the build for it that https://pytorch.org/get-started names"
_ELSEWHERE = "a missing operator is computed on the CPU in silence"


def _unset(variable: str) -> str:
    return f"unset {variable}"


def _export(variable: str, value: str) -> str:
    return f"export {variable}={value}"


# Of every vendor whose devices come by a plugin.
OF_PLUGINS = (
    Setting("TORCH_DEVICE_BACKEND_AUTOLOAD", "1?", "torch loads no plugin by itself",
            _unset("TORCH_DEVICE_BACKEND_AUTOLOAD")),
)  # fmt: skip

_NVIDIA = Vendor(
    name="cuda",
    kind="cuda",
    build="cuda",
    fused_adamw=True,
    wide_sums=True,  # torch's document of mm
    ordered_sums="NCCL_ALGO=^NVLS",
    short_products=("backends.cudnn.allow_tf32",),
    variables=("CUBLAS", "CUDA_", "CUDNN", "NCCL_", "NVIDIA_TF32"),
    visible="CUDA_VISIBLE_DEVICES",
    vllm_graphs=True,
    settings=(
        Setting("NVIDIA_TF32_OVERRIDE", "0?", "products of float32 keep 10 bits of each factor",
                _unset("NVIDIA_TF32_OVERRIDE")),
        Setting("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "0?",
                "products of float32 keep 10 bits of each factor",
                _unset("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")),
        Setting("CUDA_LAUNCH_BLOCKING", "0?", "every kernel waits for the one before it",
                _unset("CUDA_LAUNCH_BLOCKING")),
        Setting("PYTORCH_NO_CUDA_MEMORY_CACHING", "", "every tensor is allocated by the driver",
                _unset("PYTORCH_NO_CUDA_MEMORY_CACHING")),
    ),
    traps=(
        Trap("NeMo-RL#2895", "decoding goes on with old weights after an update, while the "
             "log-probabilities of prompts are right", part="vllm",
             remedy="a run's canary finds it; the worker is quarantined"),
    ),
    codes=codes.NVIDIA,
    versions_command=("nvidia-smi", "--query-gpu=driver_version,vbios_version",
                      "--format=csv,noheader"),
    versions_of_one="--id=GPU-",
    power_command=("nvidia-smi", "--query-gpu=uuid,power.draw", "--format=csv,noheader,nounits"),
    power=r"GPU-(?P<device>[\w-]+), (?P<watts>[\d.]+)",
    driver=(Told(r"\A([\d.]+), "), Told(r"Module\s+(\d[\d.]*)", "/proc/driver/nvidia/version")),
    firmware=(Told(r"\A[\d.]+, (.+)$"),),
    runtime_name="CUDA",
    libraries=r"nvidia-(cudnn|nccl|cublas)(?:-cu\d+)?",
    library_names={"cublas": "cuBLAS", "cudnn": "cuDNN", "nccl": "NCCL"},
    nodes=r"nvidia\d+",
    bus=r"10de:03\d\d",
    container="docker run --gpus all …",
    get_driver="install Nvidia's driver (Linux: the package nvidia-driver or nvidia-open)",
    get_torch=f"{_CHOOSE}; on Linux, pip install --force-reinstall torch brings it",
)  # fmt: skip

_AMD = Vendor(
    name="rocm",
    kind="cuda",
    build="hip",
    fused_adamw=True,
    ordered_sums=_NVIDIA.ordered_sums,
    short_products=_NVIDIA.short_products,
    variables=("HIP", "HSA_", "MIOPEN", "NCCL_", "RCCL_", "ROCBLAS", "ROCR_"),
    visible="HIP_VISIBLE_DEVICES",
    vllm_graphs=True,
    settings=(
        # ROCm/legacy-rocm-build#2048
        Setting("HSA_OVERRIDE_GFX_VERSION", "", "kernels of another chip run on it, and have been "
                "seen to compute wrong numbers", _unset("HSA_OVERRIDE_GFX_VERSION")),
        *(Setting(name, "(?!.*expandable_segments:true).*",
                  "training in bfloat16 has given NaN (pytorch#195202)", _unset(name))
          for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")),
        Setting("AMD_SERIALIZE_KERNEL", "0?", "every kernel waits for the one before it",
                _unset("AMD_SERIALIZE_KERNEL")),
    ),
    traps=(
        Trap("ROCm/rocm-libraries#9055", "products of bfloat16 with many terms are partly NaN",
             "runtime", ">=7.12,<7.14", "use ROCm 7.2, or one later than 7.13"),
        Trap("pytorch#190828", "rms_norm has far too large gradients of its weight in bfloat16",
             "torch", "==2.12.*", "train in float32, or take another torch"),
        Trap("pytorch#182952", "gradients are wrong where values are right",
             remedy="interlock qualify compares them with the CPU's"),
    ),
    codes=codes.AMD,
    versions_command=("amd-smi", "version"),
    power_command=("rocm-smi", "--showpower", "--json"),
    power=r'"card(?P<device>\d+)":\s*\{[^}]*Power \(W\)":\s*"(?P<watts>[\d.]+)"',
    driver=(Told(r"^([\d.]+)", "/sys/module/amdgpu/version"),
            Told(r"amdgpu version:\s*([\d.]+)")),
    runtime=(Told(r"^([\d.]+)", "/opt/rocm/.info/version"),),
    runtime_name="ROCm",
    nodes=r"kfd",
    bus=r"1002:(?:0380|1200)",
    group="render",
    container="docker run --device /dev/kfd --device /dev/dri --group-add render …",
    get_driver="install AMD's driver (amdgpu-dkms) and ROCm",
    get_torch=_CHOOSE,
)  # fmt: skip

_HUAWEI = Vendor(
    name="npu",
    kind="npu",
    plugin="torch_npu",
    plugin_module="torch_npu",
    plugin_follows_torch=True,
    plain_torch=True,
    ordered_sums="HCCL_DETERMINISTIC=true",
    strict_env={"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"},
    short_products=("npu.conv.allow_hf32", "npu.matmul.allow_hf32"),
    variables=(
        *("ACL_", "ASCEND_", "CANN_", "HCCL_", "INF_NAN_MODE", "LCCL_", "NPU_", "TASK_QUEUE"),
    ),
    visible="ASCEND_RT_VISIBLE_DEVICES",
    settings=(
        Setting("ASCEND_TOOLKIT_HOME", ".+", "CANN's libraries are not found",
                f"source {_ASCEND}/ascend-toolkit/set_env.sh"),
        Setting("TORCH_NPU_FALLBACK_CPU_DISABLE", "1", _ELSEWHERE,
                _export("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")),
        Setting("INF_NAN_MODE_ENABLE", "1?", "what overflows is the largest number, not infinite, "
                "and no check sees it", _unset("INF_NAN_MODE_ENABLE")),
        Setting("INF_NAN_MODE_FORCE_DISABLE", "0?", "what overflows is the largest number, not "
                "infinite, and no check sees it", _unset("INF_NAN_MODE_FORCE_DISABLE")),
        Setting("ASCEND_LAUNCH_BLOCKING", "0?", "every operator waits for the one before it",
                _unset("ASCEND_LAUNCH_BLOCKING")),
        Setting("PYTORCH_NO_NPU_MEMORY_CACHING", "", "every tensor is allocated by the driver",
                _unset("PYTORCH_NO_NPU_MEMORY_CACHING")),
    ),
    traps=(
        Trap("vllm-ascend#15503", "fused attention ignores a mask of [1, 1, 1, keys] beyond 512 "
             "keys", "torch_npu", ">=2.10", "interlock qualify sweeps the lengths"),
        Trap("vllm-ascend#13699", "fused attention without a mask leaves softmax out (TND)",
             "torch_npu", ">=2.10", "use no vision encoder there"),
        Trap("vllm-ascend#16322", "copy_ into a tensor of no elements does nothing", "torch_npu",
             remedy="interlock qualify copies into what was empty"),
        Trap("vllm-ascend#7473", "old weights stay in use after an update", "vllm-ascend",
             remedy="Interlock sets VLLM_ASCEND_ENABLE_NZ=0; a run's canary finds the rest"),
    ),
    codes=codes.ASCEND,
    vllm_env={"VLLM_ASCEND_ENABLE_NZ": "0"},  # that layout cannot be updated in place
    versions_command=("npu-smi", "info"),
    power_command=("npu-smi", "info"),
    power=r"(?m)^\|\s*(?P<device>\d+)\s+\w+\s*\|\s*\w+\s*\|\s*(?P<watts>\d+(?:\.\d+)?)\s+\d+\s",
    driver=(Told(_VALUE, f"{_ASCEND}/driver/version.info"), Told(r"Version:\s*([\w.]+)")),
    firmware=(Told(_VALUE, f"{_ASCEND}/firmware/version.info"),),
    runtime=tuple(Told(_VALUE, home + file) for home in _TOOLKIT for file in _CANN_FILES),
    runtime_name="CANN",
    nodes=r"davinci\d+",
    bus=r"19e5:1200",
    group="HwHiAiUser",
    container="docker run --device /dev/davinci0 --device /dev/davinci_manager --device "
    f"/dev/devmm_svm --device /dev/hisi_hdc -v {_ASCEND}/driver:{_ASCEND}/driver …",
    get_driver="install Ascend's driver and firmware (the Ascend-hdk packages)",
    get_torch="install the CPU build of torch: the plugin cannot share a process with another "
    "accelerator",
)  # fmt: skip

_INTEL = Vendor(
    name="xpu",
    kind="xpu",
    build="xpu",
    fused_adamw=True,
    strict_env={"PYTORCH_ENABLE_XPU_FALLBACK": "0"},
    variables=("SYCL_", "XPU", "ZE_"),
    visible="ZE_AFFINITY_MASK",
    settings=(
        Setting("PYTORCH_ENABLE_XPU_FALLBACK", "0?", _ELSEWHERE,
                _unset("PYTORCH_ENABLE_XPU_FALLBACK")),
        Setting("PYTORCH_XPU_FALLBACK_OP", "", "the operators named there are computed on the CPU",
                _unset("PYTORCH_XPU_FALLBACK_OP")),
    ),
    traps=(
        Trap("intel/torch-xpu-ops#4396", "nonzero, and indexing by a mask, drop elements", "torch",
             "==2.13.*", "update the compute runtime, as the thread says"),
        Trap("trl#6786", "collectives hang or add up wrongly",
             remedy="interlock qualify tries them in processes that can be killed"),
    ),
    codes=codes.INTEL,
    runtime_name="oneAPI",
    bus=r"8086:(?:0380|1200)",  # data center's; an Arc looks as the graphics of any laptop
    group="render",
    container="docker run --device /dev/dri --group-add render …",
    get_driver="install Intel's compute runtime (libze-intel-gpu1, intel-opencl-icd)",
    get_torch=_CHOOSE,
)  # fmt: skip

_APPLE = Vendor(
    name="mps",
    kind="mps",
    numbered=False,
    chip_name="backends.mps.get_name",
    memory_used="current_allocated_memory",
    memory_total="recommended_max_memory",
    strict_env={"PYTORCH_ENABLE_MPS_FALLBACK": "0"},
    settings=(
        Setting("PYTORCH_ENABLE_MPS_FALLBACK", "0?", _ELSEWHERE,
                _unset("PYTORCH_ENABLE_MPS_FALLBACK")),
        Setting("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "(?!0(?:\\.0*)?$).*",
                "the whole machine may run out of memory, and swap",
                _unset("PYTORCH_MPS_HIGH_WATERMARK_RATIO")),
        Setting("PYTORCH_MPS_FAST_MATH", "0?", "functions are computed less exactly",
                _unset("PYTORCH_MPS_FAST_MATH")),
    ),
    traps=(
        Trap("pytorch#177116", "gradients are wrong beyond 32,768 elements",
             remedy="train on the CPU, or look at the check `backward` of interlock qualify"),
        Trap("pytorch#197636", "bmm, and its gradients, are wrong beyond 2**32 elements",
             remedy="smaller batches"),
    ),
    codes=codes.APPLE,
    versions_command=("sw_vers", "-productVersion"),
    runtime=(Told(r"\A([\d.]+)"),),
    runtime_name="macOS",
    system="Darwin arm64",
    get_torch="pip install --force-reinstall torch, by a Python for arm64",
)  # fmt: skip

_CAMBRICON = Vendor(
    name="mlu",
    kind="mlu",
    plugin="torch_mlu",
    plugin_module="torch_mlu",
    short_products=("backends.cnnl.allow_tf32", "backends.mlu.matmul.allow_tf32"),
    variables=("MLU", "CNCL_", "TORCH_MLU"),
    visible="MLU_VISIBLE_DEVICES",
    settings=(
        Setting("NEUWARE_HOME", ".+", "the libraries of CNToolkit may not be found",
                _export("NEUWARE_HOME", "/usr/local/neuware")),
    ),
    codes=codes.CAMBRICON,
    versions_command=("cnmon",),
    driver=(Told(r"Driver\s+v?(\d[\d.]*)"), Told(r"CNMON\s+v?(\d[\d.]*)")),
    runtime=(Told(r"version\s*[:=]?\s*v?(\d[\d.]*)", "$NEUWARE_HOME/version.txt"),),
    runtime_name="Neuware",
    nodes=r"cambricon_dev\d+",
    bus=r"cabc:\d{4}",
    container="docker run --device /dev/cambricon_dev0 --device /dev/cambricon_ctl …",
    get_driver="install Cambricon's driver",
    get_torch="take Cambricon's image: torch and torch_mlu are built for each other",
)  # fmt: skip

_MOORE_THREADS = Vendor(
    name="musa",
    kind="musa",
    plugin="torch_musa",
    plugin_module="torch_musa",
    short_products=("backends.mudnn.allow_tf32",),
    variables=("MUSA_", "MCCL_"),
    visible="MUSA_VISIBLE_DEVICES",
    traps=(
        Trap("MooreThreads/torch_musa#83", "it does not load beside a MUSA SDK of another version "
             "(libmusa.so…: cannot open shared object file)", "torch_musa",
             remedy="install the SDK that its README names"),
    ),
    codes=codes.MOORE_THREADS,
    versions_command=("mthreads-gmi",),
    driver=(Told(r"Driver Version:\s*(\d[\d.]*)"),),
    runtime=(Told(r'"version":\s*"([\d.]+)"', "/usr/local/musa/version.json"),),
    runtime_name="MUSA",
    nodes=r"mtgpu\.?\d+",
    bus=r"1ed5:\d{4}",
    container="docker run --device /dev/mtgpu.0 --device /dev/dri …",
    get_driver="install Moore Threads' driver and MUSA SDK",
    get_torch="take Moore Threads' image: torch and torch_musa are built for each other",
)  # fmt: skip

_GAUDI = Vendor(
    name="hpu",
    kind="hpu",
    plugin="habana-torch-plugin",
    plugin_module="habana_frameworks.torch",
    strict_env={"PT_HPU_PLACE_ON_CPU": "none"},
    variables=("HABANA_", "HCCL_", "HCL_", "PT_ENABLE_", "PT_HPU_"),
    visible="HABANA_VISIBLE_MODULES",
    settings=(
        Setting("PT_HPU_PLACE_ON_CPU", "none", _ELSEWHERE,
                _export("PT_HPU_PLACE_ON_CPU", "none")),
        Setting("PT_ENABLE_INT64_SUPPORT", "1", "integers of 64 bits are computed in 32",
                _export("PT_ENABLE_INT64_SUPPORT", "1")),
        # 1 is the default of 1.19, and 0 of the newest.
        Setting("PT_HPU_LAZY_MODE", "0", "operators are put off, and run as graphs",
                _export("PT_HPU_LAZY_MODE", "0")),
    ),
    traps=(
        Trap("HabanaAI/gaudi-pytorch-bridge#2", "operators that it lacks (EmbeddingBag) run on the "
             "CPU", "habana-torch-plugin", remedy=_export("PT_HPU_PLACE_ON_CPU", "none")),
    ),
    codes=codes.GAUDI,
    versions_command=("hl-smi", "-Q", "driver_version", "-f", "csv,noheader"),
    power_command=("hl-smi", "-Q", "index,power.draw", "-f", "csv,noheader"),
    power=r"(?m)^\s*(?P<device>\d+),\s*(?P<watts>[\d.]+)",
    driver=(Told(r"^\s*(\d[\w.-]*)"),),
    nodes=r"(?:accel/accel|hl)\d+",
    bus=r"1da3:\d{4}",
    container="docker run --runtime habana -e HABANA_VISIBLE_DEVICES=all …",
    get_driver="install Gaudi's driver: habanalabs-installer.sh install --type base",
    get_torch="take Gaudi's image, or habanalabs-installer.sh install --type pytorch",
)  # fmt: skip

_HOSTS = (
    Vendor(
        name="cpu",
        kind="cpu",
        host=True,
        fused_adamw=True,
        variables=("MKL_", "ONEDNN"),
    ),
    Vendor(
        name="sim",
        kind="sim",
        host=True,
        numbered=False,
        plugin_follows_torch=True,
        collectives="gloo",
        fused_adamw=True,
    ),
)

ROWS = (
    *_HOSTS,
    *(_NVIDIA, _AMD, _HUAWEI, _INTEL, _APPLE, _CAMBRICON, _MOORE_THREADS, _GAUDI),
)
