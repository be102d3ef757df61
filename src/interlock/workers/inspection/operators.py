"""Single aten operators: recorded with their inputs in one process, run again in another.

    forward pass under Recording ──> Call … ──operator()──> Operator (bytes) ──applied──> outputs

So that an operator is judged alone: whoever runs it gets the very same inputs, laid out in memory
in the same order. Views, which compute nothing, are left out, and so is memory that nobody filled.
In inference mode the recording sees operators before torch splits them up (aten.linear, not
aten.mm), which are the same on every device.

In `Operator.args`, {"tensor": i} is the i-th tensor, {"dtype": name} a dtype, and {"device": true}
the device of whoever runs it; all else is itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.workers.protocol import Operator

_NAME = re.compile(r"aten\.\w+\.\w+")
_NOTHING = re.compile(r"aten\.(empty\w*|new_empty\w*|detach_|lift_fresh\w*|alias|resize_)\.")
_PLACING = {"layout", "pin_memory", "memory_format", "non_blocking"}  # of a result, not its value


@dataclass(frozen=True)
class Call:
    """One recorded operator; `tensors` are copies, made before it ran."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    title: str = ""  # with the shape and dtype of its largest input of numbers

    def operator(self) -> Operator:
        named = {str(number): tensor for number, tensor in enumerate(self.tensors)}
        strides = [list(tensor.stride()) for tensor in self.tensors]
        return Operator(self.name, self.args, self.kwargs, packed(named), strides)


@dataclass
class Recording(TorchDispatchMode):
    """Keeps the operators called while it is `on`."""

    on: bool = False
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.on or not _NAME.fullmatch(str(func)) or _NOTHING.match(str(func)):
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        written = _written(args, tensors), _written(kwargs, tensors)
        mutates = func._schema.is_mutable
        copies = [_copied(tensor) for tensor in tensors] if mutates else []
        out = func(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        view = isinstance(out, Tensor) and out.untyped_storage().data_ptr() in given
        several = isinstance(out, list | tuple) and func._schema.returns[0].alias_info is not None
        is_value = not isinstance(out, Tensor | list | tuple)  # .item(), say: nothing to compare
        if not is_value and (mutates or not (view or several)):
            copies = copies or [_copied(tensor) for tensor in tensors]
            self.calls.append(Call(str(func), *written, copies, _title(str(func), tensors)))
        return out


class Doubled(TorchDispatchMode):
    """Computes in float64 what asks for a narrower format: the decoder's islands of float32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.name == "aten::_to_copy" or func._schema.name == "aten::to":
            tensor = args[0]
            if tensor.dtype == torch.float64:
                args, kwargs = _exact(list(args)), _exact(kwargs or {})
        return func(*args, **(kwargs or {}))


def applied(operator: Operator, place: torch.device, exact: bool) -> dict[str, Tensor]:
    """What the operator gives on `place`, on the CPU again, by number. `exact`: in float64.

    Raises RuntimeError or NotImplementedError as the device does; ValueError for no operator.
    """
    stored = unpacked(operator.tensors)
    tensors = [
        _laid_out(stored[str(number)], strides, place, exact)
        for number, strides in enumerate(operator.strides)
    ]
    read = _reader(tensors, place, exact)
    with torch.inference_mode():
        out = _function(operator.name)(*read(operator.args), **read(operator.kwargs))
    outputs = [out] if isinstance(out, Tensor) else list(out or [])
    return {str(n): each.detach().cpu() for n, each in enumerate(outputs) if each is not None}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def unpacked(data: bytes) -> dict[str, Tensor]:
    return load(data)


def _function(name: str) -> Callable[..., Any]:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no aten operator")
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _written(value: Any, tensors: list[Tensor]) -> Any:
    """`value` in plain types; its tensors are appended to `tensors`."""
    match value:
        case Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        case list() | tuple():
            return [_written(item, tensors) for item in value]
        case dict():
            kept = {key: item for key, item in value.items() if key not in _PLACING}
            return {key: _written(item, tensors) for key, item in kept.items()}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case torch.device():
            return {"device": True}
        case None | bool() | int() | float() | str():
            return value
    return None  # a layout or memory format given by place


def _reader(tensors: Sequence[Tensor], place: torch.device, exact: bool) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        match value:
            case {"tensor": int(number)}:
                return tensors[number]
            case {"dtype": str(name)}:
                dtype = getattr(torch, name)
                return torch.float64 if exact and dtype.is_floating_point else dtype
            case {"device": True}:
                return place
            case dict():
                return {key: read(item) for key, item in value.items()}
            case list():
                return [read(item) for item in value]
        return value

    return read


def _exact(value: Any) -> Any:
    """Every floating dtype among arguments, widened to float64."""
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    narrow = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float64 if narrow else value


def _laid_out(tensor: Tensor, strides: list[int], place: torch.device, exact: bool) -> Tensor:
    """A copy on `place` whose dimensions lie in memory in the order of `strides`; 0 is expanded."""
    if exact and tensor.is_floating_point():
        tensor = tensor.double()
    shape = list(tensor.shape)
    for dim, stride in enumerate(strides):
        if stride == 0 and shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    order = sorted(range(tensor.ndim), key=lambda dim: -strides[dim])
    back = sorted(range(tensor.ndim), key=lambda dim: order[dim])
    copy = tensor.permute(order).contiguous().clone().to(place)
    return copy.permute(back).expand(shape)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _title(name: str, tensors: Sequence[Tensor]) -> str:
    if not tensors:
        return name
    largest = max(tensors, key=lambda tensor: (tensor.is_floating_point(), tensor.numel()))
    dtype = str(largest.dtype).removeprefix("torch.")
    return f"{name} {list(largest.shape)} {dtype}"
