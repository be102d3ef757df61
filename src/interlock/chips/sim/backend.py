"""A second accelerator without the hardware: what torch calls "npu", computed by the CPU.

    operator ─ torch ─> execute ─ CPU tensors ─> run ─ a fault, if planted ─> the CPU's operator
                           │                                                            │
       SimulatedTensor <───┴── CPU tensors <────────────────────────────────────────────┘

A `SimulatedTensor` stands for memory of the device: torch sees a tensor on npu:0, whose operators
all end up in `execute`, be it in the forward pass, in autograd's threads, in optimizers or in
collectives. Without a defect every number is the CPU's, bit for bit. Memory is counted against a
budget, and mixing devices is refused.

It rests on torch's experimental Python backends, which a process can set up once and never take
down. What it cannot do: FSDP2, streams, autocast, pinned memory, its own `torch.Generator`, and
gradients in a process that took some before the device was set up: that is when torch's autograd
counts the devices.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from interlock.chips.sim import defects
from interlock.chips.sim.accelerator import CHIP, Block, Chip, NpuModule, check_index
from interlock.errors import ConfigError

DEVICE = torch.device("privateuseone:0")  # "npu:0" once torch knows that name
_aten = torch.ops.aten
# Operators that may mix devices: copies, and indices, which torch moves by itself.
_MIXING = {
    _aten.copy_.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
# Operators that the fallback is not enough for: under a dispatch mode torch wants the first three
# by name, and the others it would take apart on a device, though never on a CPU.
_WHOLE = (
    _aten.empty.memory_format,
    _aten.empty_strided.default,
    _aten._to_copy.default,
    _aten.silu_backward.default,
    _aten.mish_backward.default,
    _aten.native_channel_shuffle.default,
)
_ATTENTION = _aten.scaled_dot_product_attention.default

_chip: Chip | None = None
_libraries: list[torch.library.Library] = []  # torch forgets what nobody holds
_composite: dict[OpOverload, bool] = {}


def activate(names: list[str]) -> torch.device:
    """Set the device up in this process, with the defects called `names` (defects.py).

    Raises ConfigError on an unknown defect, when this process has the device with other defects,
    and when a real plugin has its place.
    """
    global _chip
    defects.check(names)
    wanted = defects.device_name(names)
    if _chip is not None:
        if set(names) != set(_chip.planted):
            raise ConfigError(
                f"device {wanted!r} cannot be used here: this process has "
                f"{defects.device_name(_chip.planted)!r} already; start another process"
            )
        return DEVICE
    taken = torch._C._get_privateuse1_backend_name()
    if taken != "privateuseone":
        raise ConfigError(
            f"device {wanted!r} cannot be used here: the plugin of {taken!r} has its place in this "
            "process; start one without it (TORCH_DEVICE_BACKEND_AUTOLOAD=0)"
        )
    from torch.utils import backend_registration

    _chip = Chip(names)
    backend_registration._setup_privateuseone_for_python_backend("npu", NpuModule(_chip))
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_fallback, "PrivateUse1")
    some = torch.library.Library("aten", "IMPL")
    some.impl("_copy_from", _copy_from, "PrivateUse1")  # torch.tensor's, which no fallback sees
    some.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    for op in _WHOLE:
        some.impl(op.name().removeprefix("aten::"), partial(_fallback, op), "PrivateUse1")
    _libraries.extend([everything, some])
    return DEVICE


def active() -> bool:
    """Whether this process has the device."""
    return _chip is not None


def planted() -> tuple[str, ...]:
    """The defects of the device."""
    return _here().planted


def plugin() -> str:
    """What the device's plugin says of itself, "simulated 2.13.0"."""
    return _here().plugin


def _here() -> Chip:
    assert _chip is not None
    return _chip


class SimulatedTensor(Tensor):
    """Memory of the device, of any shape and dtype; `host` holds its numbers on the CPU."""

    host: Tensor
    block: Block

    @staticmethod
    def __new__(cls, host: Tensor) -> "SimulatedTensor":
        if host.layout is not torch.strided:
            raise NotImplementedError(f"{CHIP} has no {host.layout} tensors")
        made = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        made.block = _here().memory.block(host)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _reached(op, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{repr(self.host)[:-1]}, device='{DEVICE}')"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("only leaves of the graph support the deepcopy protocol")
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copied
        return memo[id(self)]

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, SimulatedTensor):
            raise RuntimeError(f"incompatible tensor type: .data of {DEVICE} takes one of its own")
        _take_over(self, value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} tensor to numpy. Use Tensor.cpu() first")

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()


def _take_over(old: SimulatedTensor, new: SimulatedTensor) -> None:
    """Make `old` the tensor that `new` is; autograd keeps what it knows of it."""
    Tensor.data.__set__(old, new)  # type: ignore[attr-defined]
    old.host, old.block = new.host, new.block


def _fallback(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    device = kwargs.get("device")
    if device is not None and device.type == DEVICE.type:
        check_index(device.index)
    return _reached(op, args, kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return execute(_aten.copy_.default, (target, source), {})


class _Refusal:
    """What an operator returns that cannot raise: torch says that this is no tensor, as a
    RuntimeError with the message in it."""

    def __init__(self, error: Exception) -> None:
        self._message = f"{type(error).__name__}: {error}"

    def __str__(self) -> str:
        return self._message


def _reached(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """`execute`, for torch to call.

    torch 2.13 ends the process when a Python backend raises in autograd's thread of a device: with
    the exception still pending, it asks the backend's guard for its type.
    """
    try:
        return execute(op, args, kwargs)
    except Exception as error:
        if torch._C._current_autograd_node() is None:
            raise
        count = len(op._schema.returns)
        return _Refusal(error) if count == 1 else (_Refusal(error),) * count


def execute(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operator of the device. Raises RuntimeError on tensors of the host, as devices do."""
    if _is_composite(op):  # in inference mode torch leaves it to the device to take it apart
        return _attention(*args, **kwargs) if op is _ATTENTION else op.decompose(*args, **kwargs)
    chip = _here()
    known: dict[int, Tensor] = {}
    host_args = _to_host(args, known)
    host_kwargs = {name: _to_host(value, known) for name, value in kwargs.items()}
    target = kwargs.get("device")
    leaves = target is not None and target.type != DEVICE.type
    enters = any(_on_host(tensor) for tensor in known.values())
    ours = any(isinstance(tensor, SimulatedTensor) for tensor in known.values())
    if enters and ours and op not in _MIXING:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu! ({op})"
        )
    try:
        found = chip.run(op, host_args, host_kwargs)
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # the host's own limit came first
            raise chip.memory.exhausted(str(error)) from None
        raise
    if leaves:
        return found
    return _to_device(found, known)


def _is_composite(op: OpOverload) -> bool:
    """Whether torch defines it by other operators, on the CPU as well."""
    if op not in _composite:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        _composite[op] = has(op.name(), "CompositeImplicitAutograd") and not has(op.name(), "CPU")
    return _composite[op]


def _to_host(value: Any, known: dict[int, Tensor]) -> Any:
    """Arguments for the CPU; enters in `known`, by the id of the CPU's tensor, the caller's."""
    if isinstance(value, SimulatedTensor):
        known[id(value.host)] = value
        return value.host
    if isinstance(value, Tensor):
        known[id(value)] = value
        return value
    if type(value) in (list, tuple):
        return type(value)(_to_host(each, known) for each in value)
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == DEVICE.type else value
    return value


def _to_device(value: Any, known: dict[int, Tensor]) -> Any:
    """Results for the caller, who gets back its own tensors from operators that work in place."""
    if isinstance(value, Tensor):
        given = known.get(id(value))
        if given is None:
            return _wrapped(value)
        if isinstance(given, SimulatedTensor) and (
            given.shape != value.shape or given.stride() != value.stride()
        ):
            _take_over(given, SimulatedTensor(value))
            given.block.resize()
        return given
    if type(value) in (list, tuple):
        return type(value)(_to_device(each, known) for each in value)
    return value


def _wrapped(host: Tensor) -> SimulatedTensor:
    # torch must not be left with a conjugate still to be taken that it does not know of.
    host = host.resolve_conj().resolve_neg()
    # A view is a tensor of inference mode, or not, as what it looks at is, whatever the mode now.
    if host.is_inference() == torch.is_inference_mode_enabled():
        return SimulatedTensor(host)
    with torch.inference_mode(host.is_inference()):
        return SimulatedTensor(host)


def _on_host(tensor: Tensor) -> bool:
    """Numbers, tensors of no dimension, may be anywhere."""
    return not isinstance(tensor, SimulatedTensor) and tensor.dim() > 0


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention, by the kernel that it would choose for the CPU."""
    fused = torch._fused_sdp_choice(
        _to_host(query, {}),
        _to_host(key, {}),
        _to_host(value, {}),
        _to_host(attn_mask, {}),
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, zero, -torch.inf)
    if fused and not (attn_mask is not None and attn_mask.requires_grad):
        return _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return _aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
