import pytest
import torch

from interlock.chips import device
from interlock.errors import ConfigError


def test_the_cpu_is_there() -> None:
    assert device.resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:99", "meta", "npu:0", "cpu:x", "\0"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        device.resolve(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "\n" not in message


def test_dtypes_by_name() -> None:
    assert device.dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="'int8'"):
        device.dtype("int8")


def test_auto_settles_on_what_the_device_multiplies_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for tiles, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert device.settled_dtype("auto", cpu) == expected
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert device.settled_dtype("auto", cpu) == "float32"
    assert device.settled_dtype("auto", gpu) == "bfloat16"
    assert device.settled_dtype("float16", cpu) == "float16"
