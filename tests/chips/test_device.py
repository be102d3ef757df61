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
