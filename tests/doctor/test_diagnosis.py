"""What doctor says of recorded machines: no hardware is asked here."""

from typing import Any

import pytest
from msgspec.structs import replace
from packaging.specifiers import SpecifierSet

from interlock.chips.vendors import Software
from interlock.doctor.diagnosis import diagnose
from interlock.doctor.finding import Diagnosis, State, fits
from interlock.doctor.machine import DeviceFile, Machine, Torch

REQUIREMENTS = [
    "msgspec>=0.19",
    "torch<2.14,>=2.11; extra == 'model'",
    "numpy>=1.26; extra == 'model'",
    "ray<3,>=2.59; extra == 'ray'",
    "winonly>=1; sys_platform == 'win32' and extra == 'ray'",
    "pytest>=8; extra == 'test'",
]
CPU = Machine(
    python="3.11.9",
    system="Linux x86_64",
    interlock="0.1.0",
    torch=Torch(version="2.13.0+cpu", devices=["cpu"]),
    packages={"torch": "2.13.0+cpu", "numpy": "2.3.1", "ray": "2.60.0"},
    requirements=REQUIREMENTS,
    cores=16,
    memory=64 << 30,
    shared_memory=32 << 30,
    cache="/home/a/.cache/interlock",
    cache_free=200 << 30,
    runs_free=200 << 30,
    sandbox="bubblewrap",
)


def on(machine: Machine, **changes: Any) -> Machine:
    """A machine like another, with more packages and variables."""
    for name in ("packages", "env", "software"):
        changes[name] = {**getattr(machine, name), **changes.get(name, {})}
    return replace(machine, **changes)


NVIDIA = on(
    CPU,
    torch=Torch(version="2.13.0", built={"cuda": "13.0"}, devices=["cuda:0", "cuda:1", "cpu"]),
    files=[DeviceFile("nvidia0"), DeviceFile("nvidia1")],
    bus=["10de:0302", "10de:0302"],
    software={"cuda": Software("580.82.07", "96.00", "CUDA 13.0", "NCCL 2.27.3")},
)
AMD = on(
    CPU,
    torch=Torch(version="2.13.0+rocm7.2", built={"hip": "7.2.5"}, devices=["cuda:0", "cpu"]),
    files=[DeviceFile("kfd")],
    bus=["1002:1200"],
    software={"rocm": Software("6.12.12", runtime="ROCm 7.2.53211-e1a6bc5663")},
)
ASCEND = on(
    CPU,
    system="Linux aarch64",
    torch=Torch(version="2.13.0+cpu", devices=["npu:0", "cpu"]),
    files=[DeviceFile("davinci0")],
    bus=["19e5:1200"],
    software={"npu": Software("24.1.rc2", "7.3", "CANN 8.5.0")},
    packages={"torch-npu": "2.13.0"},
    env={
        "ASCEND_TOOLKIT_HOME": "/usr/local/Ascend/ascend-toolkit/latest",
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
    },
)
MAC = on(
    CPU,
    system="Darwin arm64",
    torch=Torch(version="2.13.0", devices=["mps", "cpu"]),
    software={"mps": Software(runtime="macOS 26.3")},
)
GAUDI = on(
    CPU,
    torch=Torch(version="2.11.0+hpu", devices=["hpu:0", "cpu"]),
    files=[DeviceFile("accel/accel0", maker="1da3")],
    bus=["1da3:1200"],
    software={"hpu": Software("1.24.0-1")},
    packages={"habana-torch-plugin": "1.24.0.1", "torch": "2.11.0"},
    env={
        "PT_HPU_PLACE_ON_CPU": "none",
        "PT_ENABLE_INT64_SUPPORT": "1",
        "PT_HPU_LAZY_MODE": "0",
    },
)
SOUND = {"cpu": CPU, "cuda": NVIDIA, "rocm": AMD, "npu": ASCEND, "mps": MAC, "hpu": GAUDI}


def states(machine: Machine, state: State, asked: str | None = None) -> list[Diagnosis]:
    return [line for line in diagnose(machine, asked) if line.state is state]


def wrong(machine: Machine, asked: str | None = None) -> Diagnosis:
    """The only thing that is wrong with a machine."""
    (found,) = states(machine, State.WRONG, asked)
    assert found.remedy
    return found


@pytest.mark.parametrize("name", SOUND)
def test_of_a_sound_machine_nothing_is_wrong_or_missing(name: str) -> None:
    machine = SOUND[name]
    assert states(machine, State.WRONG) == states(machine, State.MISSING) == []
    topics = {line.topic for line in diagnose(machine)}
    assert topics & {*SOUND, "xpu", "mlu", "musa"} == {name} - {"cpu"}


def test_every_line_that_is_not_ok_has_a_remedy() -> None:
    for machine in SOUND.values():
        for bare in (machine, replace(machine, torch=Torch(), env={}, packages={}, software={})):
            assert all(bool(line.remedy) is (line.state is not State.OK) for line in diagnose(bare))


def test_an_nvidia_machine_with_a_torch_for_cpus_alone() -> None:
    found = wrong(on(NVIDIA, torch=CPU.torch))
    assert (found.topic, found.text) == ("cuda", "torch 2.13.0+cpu is not built for it")
    assert "pip install --force-reinstall torch" in found.remedy


def test_a_torch_for_cuda_on_a_machine_without_is_no_mistake() -> None:
    lines = diagnose(
        on(CPU, torch=Torch(version="2.13.0", built={"cuda": "13.0"}, devices=["cpu"]))
    )
    assert Diagnosis("torch", State.OK, "torch 2.13.0, built for CUDA 13.0") in lines
    assert all(line.state is State.OK for line in lines)


def test_a_card_without_its_driver_or_not_handed_to_the_container() -> None:
    bare = on(NVIDIA, files=[], torch=replace(NVIDIA.torch, devices=["cpu"]))
    found = wrong(bare)
    assert "on the bus (PCI 10de:0302)" in found.text
    assert "driver" in found.remedy and "docker run --gpus all" in found.remedy


def test_all_is_there_and_torch_finds_none() -> None:
    blind = on(NVIDIA, torch=replace(NVIDIA.torch, devices=["cpu"]))
    assert wrong(blind).text == "torch finds none, though all is there"
    hidden = wrong(on(blind, env={"CUDA_VISIBLE_DEVICES": ""}))
    assert (hidden.text, hidden.remedy) == (
        "CUDA_VISIBLE_DEVICES= hides all devices",
        "unset CUDA_VISIBLE_DEVICES",
    )
    chosen = on(NVIDIA, env={"CUDA_VISIBLE_DEVICES": "1"})
    assert states(chosen, State.WRONG) == []


def test_a_plugin_of_another_minor_version_of_torch() -> None:
    found = wrong(on(ASCEND, packages={"torch-npu": "2.12.0.post1"}))
    assert found.text == "torch_npu 2.12.0.post1 is made for torch 2.12, not for 2.13.0+cpu"
    assert found.remedy == "pip install 'torch_npu==2.13.*'"


def test_an_ascend_machine_without_its_plugin() -> None:
    bare = replace(ASCEND, packages=CPU.packages, torch=CPU.torch)
    found = wrong(bare)
    assert found.text == "its plugin torch_npu is not installed"
    assert found.remedy == "pip install 'torch_npu==2.13.*'"


def test_a_plugin_that_refuses_a_torch_for_other_devices() -> None:
    found = wrong(on(ASCEND, torch=replace(ASCEND.torch, built={"cuda": "13.0"})))
    assert "built for CUDA 13.0, which torch_npu refuses" in found.text
    assert "CPU build" in found.remedy


def test_a_plugin_that_keeps_torch_from_being_imported() -> None:
    failed = Torch(version="2.13.0+cpu", error="libhccl.so: cannot open shared object file")
    found = wrong(on(ASCEND, torch=failed))
    assert "libhccl.so" in found.text and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in found.remedy
    assert "force-reinstall" in wrong(on(CPU, torch=failed)).remedy


def test_variables_that_must_be_set_and_those_set_against_us() -> None:
    bare = replace(ASCEND, env={})
    assert states(bare, State.WRONG) == []
    assert {line.remedy for line in states(bare, State.MISSING)} == {
        "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
        "export TORCH_NPU_FALLBACK_CPU_DISABLE=1",
    }
    cases = [
        (ASCEND, "INF_NAN_MODE_ENABLE", "0"),
        (ASCEND, "TORCH_DEVICE_BACKEND_AUTOLOAD", "0"),
        (MAC, "PYTORCH_ENABLE_MPS_FALLBACK", "1"),
        (NVIDIA, "NVIDIA_TF32_OVERRIDE", "1"),
        (AMD, "HSA_OVERRIDE_GFX_VERSION", "10.3.0"),
        (AMD, "PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        (GAUDI, "PT_HPU_LAZY_MODE", "1"),
    ]
    for machine, variable, value in cases:
        found = wrong(on(machine, env={variable: value}))
        assert found.text.startswith(f"{variable}={value}: ") and variable in found.remedy
    for machine, variable, value in [
        (MAC, "PYTORCH_ENABLE_MPS_FALLBACK", "0"),
        (AMD, "PYTORCH_ALLOC_CONF", "expandable_segments:False"),
        (NVIDIA, "INF_NAN_MODE_ENABLE", "0"),  # of another vendor
        (NVIDIA, "TORCH_DEVICE_BACKEND_AUTOLOAD", "0"),  # there is no plugin
    ]:
        assert states(on(machine, env={variable: value}), State.WRONG) == []


def test_traps_are_told_of_the_versions_that_have_them() -> None:
    def threads(machine: Machine) -> set[str]:
        return {line.text.rpartition("(")[2].rstrip(")") for line in states(machine, State.TRAP)}

    assert "ROCm/rocm-libraries#9055" not in threads(AMD)
    newer = on(AMD, software={"rocm": Software("6.12", runtime="ROCm 7.13.26183-444cadec35")})
    assert "ROCm/rocm-libraries#9055" in threads(newer)
    assert "vllm-ascend#15503" in threads(ASCEND)
    older = on(ASCEND, packages={"torch-npu": "2.9.0"}, torch=replace(ASCEND.torch, version="2.9"))
    assert "vllm-ascend#15503" not in threads(older)
    assert "vllm-ascend#7473" not in threads(ASCEND)  # vllm-ascend is not installed
    assert "vllm-ascend#7473" in threads(on(ASCEND, packages={"vllm-ascend": "0.18.0"}))
    assert threads(CPU) == set()


def test_a_device_file_that_this_user_may_not_open() -> None:
    found = wrong(on(AMD, files=[DeviceFile("kfd", opens=False)]))
    assert found.text == "/dev/kfd does not open for this user"
    assert found.remedy.startswith("sudo usermod -aG render $USER")


def test_two_vendors_of_one_kind_are_told_apart() -> None:
    assert {line.topic for line in diagnose(AMD)} & {"cuda", "rocm"} == {"rocm"}
    other = on(AMD, torch=NVIDIA.torch)  # AMD's card, a torch for Nvidia's
    assert [line.topic for line in states(other, State.WRONG)] == ["rocm"]
    assert "not built for it" in states(other, State.WRONG)[0].text
    for machine, name in [(AMD, "rocm"), (NVIDIA, "cuda"), (CPU, "cuda")]:
        asked = replace(machine, torch=replace(machine.torch, refused="no"))
        assert name in {line.topic for line in diagnose(asked, "cuda:0")}


def test_an_accelerator_file_of_another_maker_is_not_gaudis() -> None:
    laptop = on(CPU, files=[DeviceFile("accel/accel0", maker="8086")])
    assert states(laptop, State.WRONG) == []
    unknown = on(CPU, files=[DeviceFile("accel/accel0")])
    assert states(unknown, State.WRONG) != []


def test_a_driver_without_a_version() -> None:
    (found,) = states(on(NVIDIA, software={"cuda": Software()}), State.MISSING)
    assert "driver's version" in found.text and "nvidia-smi" in found.remedy


def test_only_what_was_asked_for_is_looked_at() -> None:
    broken = on(NVIDIA, torch=CPU.torch)
    assert states(broken, State.WRONG, "cpu") == []
    assert Diagnosis("cpu", State.OK, "it computes") in diagnose(broken, "cpu")
    refused = on(CPU, torch=replace(CPU.torch, refused="it needs torch_npu"))
    texts = [line.text for line in states(refused, State.WRONG, "npu:0")]
    assert texts == [
        "there is no such device here",
        "its plugin torch_npu is not installed",
        "it needs torch_npu",
    ]


def test_torch_itself() -> None:
    assert "pip install" in wrong(on(CPU, torch=Torch())).remedy
    old = on(CPU, torch=Torch(version="2.9.1", devices=["cpu"]))
    assert wrong(old).remedy == "pip install 'torch<2.14,>=2.11'"
    assert states(on(old, packages={"vllm": "0.21"}), State.WRONG) == []  # it brings its own


@pytest.mark.parametrize(
    ("cores", "quota", "threads", "remedy"),
    [
        (16, 0.0, None, None),
        (16, 0.0, "", None),
        (16, 0.0, "16", None),
        (16, 0.0, "4,2", None),
        (2, 0.0, "64", "export OMP_NUM_THREADS=2"),
        (64, 2.0, None, "export OMP_NUM_THREADS=2"),
        (64, 1.5, None, "export OMP_NUM_THREADS=2"),
        (64, 0.5, "4", "export OMP_NUM_THREADS=1"),
        (64, 2.0, "2", None),
        (4, 8.0, None, None),
        (4, 0.0, "many", "export OMP_NUM_THREADS=4"),
        (4, 0.0, "0", "export OMP_NUM_THREADS=4"),
    ],
)
def test_threads_against_cores(
    cores: int, quota: float, threads: str | None, remedy: str | None
) -> None:
    env = {} if threads is None else {"OMP_NUM_THREADS": threads}
    found = states(on(CPU, cores=cores, quota=quota, env=env), State.WRONG)
    assert [line.remedy for line in found] == ([] if remedy is None else [remedy])


def test_little_room_is_told_and_stands_in_no_way() -> None:
    small = on(CPU, memory=1 << 30, shared_memory=64 << 20, cache_free=1 << 20, runs_free=1 << 20)
    assert states(small, State.WRONG) == []
    found = states(small, State.MISSING)
    assert [line.topic for line in found] == ["memory", "memory", "disk", "disk"]
    assert "--shm-size" in found[1].remedy and "INTERLOCK_CACHE" in found[2].remedy


def test_no_sandbox() -> None:
    bare = on(CPU, sandbox="", sandbox_fault="nothing here isolates (a: b); allow user namespaces")
    (found,) = states(bare, State.MISSING)
    assert found.text == "nothing here isolates (a: b)" and "user namespaces" in found.remedy


def test_packages_of_the_extras() -> None:
    (whole,) = [line for line in diagnose(CPU) if line.topic == "packages"]
    assert whole.text == "installed: model, ray"  # neither tests nor what another system needs
    lacking = replace(CPU, packages={"torch": "2.13.0", "numpy": "1.20", "ray": "2.10.0"})
    found = states(lacking, State.MISSING)
    assert [(line.text, line.remedy) for line in found] == [
        ("model: numpy 1.20 is not >=1.26", "pip install 'interlock[model]'"),
        ("ray: ray 2.10.0 is not <3,>=2.59", "pip install 'interlock[ray]'"),
    ]
    (none,) = states(on(CPU, requirements=[]), State.MISSING)
    assert "sources" in none.text


def test_nothing_foreign_acts_or_tells_secrets() -> None:
    failed = Torch(version="2.13.0", error="\x1b[2J see https://me:word@host/x?token=abc\nmore")
    (line,) = states(on(CPU, torch=failed), State.WRONG)
    assert "\x1b" not in line.text and "\n" not in line.text
    assert "word" not in line.text and "abc" not in line.text


def test_versions_of_vendors_are_compared_by_their_numbers() -> None:
    assert fits("7.13.26183-444cadec35", SpecifierSet(">=7.12,<7.14"))
    assert fits("CANN 8.5.RC1", SpecifierSet("==8.5"))
    assert not fits("", SpecifierSet(">=1")) and not fits("unknown", SpecifierSet())
