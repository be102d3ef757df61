"""What device.py says of the CPU, and of accelerators that lack what others have."""

import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace

import interlock
from interlock.chips import device, vendors
from interlock.errors import ConfigError

CPU = torch.device("cpu")
GPU = torch.device("cuda:1")


def test_the_cpu_is_there() -> None:
    assert device.claim("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "cuda:99", "meta", "npu:0", "cpu:x", "\0"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        device.claim(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "\n" not in message


def test_an_unknown_defect_is_refused_before_anything_is_set_up() -> None:
    with pytest.raises(ConfigError, match=r"defect 'colour' is not offered.*mask-512"):
        device.claim("sim:crash,colour")
    assert not hasattr(torch, "npu")


def test_dtypes_by_name() -> None:
    assert device.dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="'int8'"):
        device.dtype("int8")


def test_the_cpu_answers_everything() -> None:
    assert (device.name(CPU), device.kind(CPU), device.count(CPU)) == ("cpu", "cpu", 1)
    assert device.available()[-1] == "cpu"
    assert device.backend(CPU) == "gloo"
    assert device.has_fused_adamw(CPU)
    device.synchronize(CPU)
    device.empty_cache(CPU)


def test_the_stack_of_the_cpu() -> None:
    stack = device.stack(CPU)
    assert stack.kind == "cpu" and stack.chip == device.chip(CPU) != ""
    assert stack.torch == torch.__version__
    assert stack.interlock == interlock.__version__
    assert (stack.driver, stack.firmware, stack.plugin) == ("", "", "")
    assert device.plugin_mismatch(stack) is None


def test_memory_of_the_cpu_is_what_this_process_holds() -> None:
    before = device.memory(CPU)
    held = mmap.mmap(-1, 256 << 20)  # of its own, where torch might use what it had before
    held.write(b"1" * len(held))
    after = device.memory(CPU)
    held.close()
    assert after.used - before.used > 128 << 20
    assert 0 < after.used < after.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < after.free <= after.total


@pytest.mark.parametrize(
    ("plugin", "fits"),
    [
        ("torch_npu 2.13.0", True),
        ("torch_npu 2.13.1.post2", True),
        ("torch_npu 2.13.0rc1", True),
        ("torch_npu 2.1.3", False),
        ("torch_npu 2.12.0", False),
        ("simulated 3.13.0", False),
        ("of no number", False),
        ("", True),
    ],
)
def test_a_plugin_belongs_to_one_minor_version_of_torch(plugin: str, fits: bool) -> None:
    stack = replace(device.stack(CPU), kind="npu", plugin=plugin, torch="2.13.0+cpu")
    mismatch = device.plugin_mismatch(stack)
    assert (mismatch is None) is fits
    assert fits or (mismatch is not None and plugin in mismatch and "2.13" in mismatch)


@pytest.mark.parametrize(
    ("plugin", "fits"),
    [
        ("torch_mlu 1.24.1+torch2.13.0", True),
        ("torch_mlu 1.24.1+torch2.5.0", False),
        ("torch_mlu 1.24.1", True),
        ("torch_musa 2.0.1", True),
    ],
)
def test_a_plugin_with_numbers_of_its_own_may_name_its_torch(plugin: str, fits: bool) -> None:
    stack = replace(device.stack(CPU), kind="mlu", plugin=plugin, torch="2.13.0")
    assert (device.plugin_mismatch(stack) is None) is fits


class Accelerator:
    """A whole plugin, which writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def get_device_name(self, place: torch.device) -> str:
        return f"chip {place.index}"

    def synchronize(self, place: torch.device) -> None:
        self.asked.append(("synchronize", place))

    def empty_cache(self) -> None:
        self.asked.append("empty_cache")

    def mem_get_info(self, place: torch.device) -> tuple[int, int]:
        return 300, 1000

    def memory_allocated(self, place: torch.device) -> int:
        return 600


def _no(*arguments: object) -> None:
    raise RuntimeError("not here")


def test_a_whole_plugin_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Accelerator()
    monkeypatch.setattr(torch, "cuda", plugin)
    assert device.available() == ["cuda:0", "cuda:1", "cpu"]
    assert device.name(GPU) == "cuda:1"
    assert device.count(GPU) == 2
    assert device.chip(GPU) == "chip 1"
    assert device.memory(GPU) == (600, 300, 1000)
    device.synchronize(GPU)
    device.empty_cache(GPU)
    assert plugin.asked == [("synchronize", GPU), "empty_cache"]


@pytest.mark.parametrize(
    "plugin",
    [
        SimpleNamespace(),
        SimpleNamespace(is_available=lambda: False),
        SimpleNamespace(is_available=_no, device_count=_no, mem_get_info=_no, get_device_name=_no),
        SimpleNamespace(device_count=7, get_device_name=None),
    ],
)
def test_what_a_plugin_lacks_stays_empty(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", plugin)
    monkeypatch.setattr(vendors, "software", lambda vendor, serial: vendors.Software())
    assert device.available() == ["cpu"]
    assert device.count(GPU) == 1
    assert device.chip(GPU) == ""
    assert device.memory(GPU) == (0, 0, 0)
    device.empty_cache(GPU)
    stack = device.stack(GPU)
    assert (stack.kind, stack.chip, stack.driver, stack.plugin) == ("cuda", "", "", "")


def test_what_the_device_did_not_tell_yet_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(synchronize=_no))
    with pytest.raises(RuntimeError, match="not here"):
        device.synchronize(GPU)


def test_apples_devices_have_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    apple = SimpleNamespace(
        is_available=lambda: True,
        synchronize=lambda: asked.append("synchronize"),
        current_allocated_memory=lambda: 3,
        recommended_max_memory=lambda: 10,
    )
    monkeypatch.setattr(torch, "mps", apple)
    assert device.available() == ["mps", "cpu"]
    device.synchronize(torch.device("mps"))
    assert asked == ["synchronize"]
    assert device.memory(torch.device("mps")) == (3, 7, 10)


def test_apples_chip_has_its_name_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4 Pro", raising=False)
    assert device.chip(torch.device("mps")) == "Apple M4 Pro"
    monkeypatch.delattr(torch.backends.mps, "get_name")
    assert device.chip(torch.device("mps")) == ""


def test_room_is_likely_where_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, room in [((0, 0, 0), 4 << 30), ((5, 0, 100), 0), ((5, 60, 100), 60)]:
        monkeypatch.setattr(device, "memory", lambda place, told=told: device.Memory(*told))
        assert device.room(GPU) == room


class OneOfTwo:
    """A torch whose tensors are on the second of two devices."""

    def __init__(self, happened: list[Any]) -> None:
        self.happened = happened

    def is_available(self) -> bool:
        return True

    def set_device(self, index: int) -> None:
        self.happened.append(index)


@pytest.mark.parametrize(("name", "made"), [("cuda:1", [1, "ones"]), ("cuda", ["ones"])])
def test_a_device_becomes_the_current_one_and_has_its_number(
    name: str, made: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[Any] = []

    def ones(size: int, device: torch.device) -> Any:
        happened.append("ones")
        return SimpleNamespace(device=GPU, sum=lambda: torch.tensor(1.0))

    monkeypatch.setattr(torch, "cuda", OneOfTwo(happened))
    monkeypatch.setattr(torch, "ones", ones)
    assert device.claim(name) == GPU
    assert happened == made


def test_products_of_float32_are_kept_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch and every vendor who is there; the others are not invented."""
    before = torch.get_float32_matmul_precision()
    ascend = SimpleNamespace(
        conv=SimpleNamespace(allow_hf32=True), matmul=SimpleNamespace(allow_hf32=True)
    )
    cudnn = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch, "npu", ascend, raising=False)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    try:
        torch.set_float32_matmul_precision("high")
        device.claim("cpu")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    assert cudnn.allow_tf32 is False
    assert (ascend.conv.allow_hf32, ascend.matmul.allow_hf32) == (False, False)
    assert not hasattr(torch.backends, "cnnl")


def test_switches_that_are_frozen_keep_no_device_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen:
        allow_tf32 = property(lambda self: True, _no)

    monkeypatch.setattr(torch.backends, "cudnn", Frozen())
    assert device.claim("cpu") == CPU


def test_collectives_are_those_of_the_vendor() -> None:
    assert device.backend(GPU) == "cpu:gloo,cuda:nccl"
    with pytest.raises(ConfigError, match="'xla' has no collectives"):
        device.backend(torch.device("xla"))


def test_a_plugin_that_torch_does_not_load_by_itself_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="it needs habana-torch-plugin, its vendor's plugin"):
        device.claim("hpu:0")
    package = tmp_path / "habana_frameworks" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libSynapse.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(ConfigError, match=r"cannot be used here: libSynapse\.so: cannot open"):
            device.claim("hpu:0")
    finally:  # Ray looks for it, too
        sys.modules.pop("habana_frameworks", None)
