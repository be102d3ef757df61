"""An operator that travels gives what it gave, bit for bit; in float64 it is exact."""

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.workers.inspection.operators import Call, Doubled, Recording, applied, unpacked
from interlock.workers.protocol import Operator

CPU = torch.device("cpu")


def travelled(call: Call) -> Operator:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(call.operator()), type=Operator)


def test_every_operator_of_a_computation_can_be_repeated_elsewhere() -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, generator=noise)
    wide = torch.randn(6, generator=noise).expand(4, 6)
    results: list[Tensor] = []
    with torch.inference_mode(), Recording() as recording:
        recording.on = True
        turned = x.transpose(1, 2)
        results.append(turned @ x)  # strides of a transposed view
        results.append(torch.cat([wide, x[0]]))  # an expanded input, and a list of tensors
        results.append(x.softmax(-1, dtype=torch.float64))
        results.append(x.masked_fill(x > 0, -torch.inf))
        y = x.clone()
        results.append(y[:, 1:3].mul_(2.0))  # in place, on a view
        results.append(torch.arange(5, device=CPU))
        results.append(x.bfloat16())
        results += x[0].topk(2)
        recording.on = False
        x.exp()
    names = [call.name for call in recording.calls]
    assert names == [
        *("aten.matmul.default", "aten.cat.default", "aten.softmax.int"),
        *("aten.gt.Scalar", "aten.masked_fill.Scalar", "aten.clone.default"),
        *("aten.mul_.Tensor", "aten.arange.default", "aten.to.dtype", "aten.topk.default"),
    ]
    outputs = [
        list(applied(travelled(call), CPU, exact=False).values()) for call in recording.calls
    ]
    kept = {"aten.gt.Scalar", "aten.clone.default"}
    found = [
        out for name, outs in zip(names, outputs, strict=True) if name not in kept for out in outs
    ]
    assert len(found) == len(results)
    for ours, theirs in zip(found, results, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    taken = recording.calls[0].operator()
    assert taken.strides[0] == [24, 1, 6] and recording.calls[0].title.endswith("[3, 6, 4] float32")


def test_exact_means_float64_throughout() -> None:
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode(), Recording() as recording:
        recording.on = True
        x.softmax(-1, dtype=torch.float32)
    (found,) = applied(recording.calls[0].operator(), CPU, exact=True).values()
    assert found.dtype == torch.float64
    assert torch.equal(found, F.softmax(x.double(), -1))


def test_doubled_keeps_float64_where_float32_is_asked_for() -> None:
    x = torch.tensor([1 / 3], dtype=torch.float64)
    with torch.inference_mode(), Doubled():
        assert x.float().dtype == torch.float64 and x.to(torch.bfloat16).dtype == torch.float64
        assert torch.ones(1).bfloat16().dtype == torch.bfloat16


def test_only_aten_operators_are_called() -> None:
    odd = Operator("os.system.default", [], {}, b"", [])
    with pytest.raises(ValueError, match="no aten operator"):
        applied(msgspec.structs.replace(odd, tensors=_empty()), CPU, exact=False)


def _empty() -> bytes:
    from interlock.workers.inspection.operators import packed

    assert unpacked(packed({})) == {}
    return packed({})
