"""Low-rank adapters (LoRA) of a decoder: every linear layer but the vocabulary's, experts too.

    attach ──> an A and a B beside the weights, which are frozen: those alone have gradients
    adapter_tensors ── by PEFT's names ──> published, saved (peft_files.py), loaded
    merged ──> whole weights under Hugging Face names, for whoever takes no adapters

An adapter is known by its form, rank, alpha and targets, and by its base: the digest of the weights
that it stands beside. B begins as zeros, so a new one changes nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from interlock.errors import ModelError
from interlock.models.cells import narrowest, spread
from interlock.models.decoder import Decoder, Layout
from interlock.models.layers import Linear
from interlock.models.low_rank import LowRank, Span
from interlock.models.moe import Experts
from interlock.records.adapters import ALL_LINEAR, AdapterForm
from interlock.sync import identity

Shapes = dict[str, list[int]]
_WEIGHT = ".weight"
PEFT_NAME = "base_model.model.{}.lora_{}.weight"
_NOT_LINEAR = {"embed_tokens", "lm_head", "gate"}  # `gate` chooses experts


class _Part(NamedTuple):
    """What a published linear layer is of a parameter [out, in] or [E, out, in] of ours."""

    module: str  # of Hugging Face: model.layers.0.self_attn.q_proj
    rows: Span
    expert: int | None


def attach(
    decoder: Decoder, form: AdapterForm, dtype: torch.dtype, seed: int | None = None
) -> None:
    """Freeze the weights, and put an adapter beside them, in the place of one that is there.

    Args:
        dtype: of A and B.
        seed: A is drawn and B zero, as PEFT has them; None: their values are for the caller to set.

    Raises ModelError when the model has no linear layer of the form's targets.
    """
    decoder.drop_adapter()
    decoder.requires_grad_(False)
    noise = None if seed is None else torch.Generator().manual_seed(seed % 2**63)
    layout: Layout = {}
    for owner, parts in _adapted(decoder, form).items():
        place, weight = _place(decoder, owner)
        spans = [part.rows for part in parts if not part.expert]
        experts = None if parts[0].expert is None else len(weight)
        with torch.device("meta"):
            *_, outputs, inputs = weight.shape
            added = LowRank(inputs, outputs, spans, form.rank, form.scale, experts)
        added.to(dtype).to_empty(device=weight.device)
        if noise is not None:
            added.begin(noise)
        setattr(decoder.get_submodule(place[0]), place[1], added)
        layout |= _entries(".".join(filter(None, place)), added, parts)
    decoder.adapter, decoder.adapter_layout = form, layout


def adapter_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """PEFT's name -> a view into the parameter that holds it, outside of autograd."""
    own = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    return {name: own[owner][index] for name, (owner, index) in decoder.adapter_layout.items()}


def published_adapter(decoder: Decoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of the adapter in `dtype`, by PEFT's names."""
    return {name: each.to(dtype, copy=True) for name, each in adapter_tensors(decoder).items()}


@torch.no_grad()
def set_adapter(decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapter that is attached other values; `tensors` have its names and shapes."""
    for name, view in adapter_tensors(decoder).items():
        view.copy_(tensors[name])
    for module in decoder.modules():
        if isinstance(module, LowRank):
            module.keep()


def adapter_shapes(shapes: Mapping[str, Sequence[int]], form: AdapterForm) -> Shapes:
    """Of an adapter's tensors by PEFT's names; `shapes`: of the weights by Hugging Face names."""
    found: Shapes = {}
    for name, shape in shapes.items():
        module = name.removesuffix(_WEIGHT)
        if module != name and len(shape) == 2 and _chosen(module, form):
            found[PEFT_NAME.format(module, "A")] = [form.rank, shape[1]]
            found[PEFT_NAME.format(module, "B")] = [shape[0], form.rank]
    return found


def targets_of(adapter: Iterable[str]) -> list[str]:
    """The last words of the modules that these tensors, by PEFT's names, are of."""
    return sorted({name.rsplit(".", 3)[1] for name in adapter})


def merged(
    weights: Iterable[tuple[str, Tensor]],
    adapter: Mapping[str, Tensor],
    form: AdapterForm,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The weights, by Hugging Face names, with what the adapter adds. None is written to.

    What has an adapter is rounded once, to `dtype` (None: that of each), from anywhere in the cell
    that its weight lay in (cells.py): to nearest, most of what a small adapter adds were lost.
    """
    for name, weight in weights:
        module = name.removesuffix(_WEIGHT)
        a, b = (adapter.get(PEFT_NAME.format(module, which)) for which in "AB")
        if a is None or b is None:
            yield name, weight
            continue
        wide = weight.to(torch.float32, copy=True).contiguous()
        spread(wide, narrowest(dtype or weight.dtype), name)
        wide.addmm_(b.to(wide), a.to(wide), alpha=form.scale)
        yield name, wide.to(dtype or weight.dtype)


def merged_weights(decoder: Decoder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """As Decoder.published, with what the adapter adds as it is served, in the compute dtype."""
    assert decoder.adapter is not None
    served, exact = published_adapter(decoder, decoder.dtype), decoder.exact()
    for name, each in merged(decoder.published(torch.float32), served, decoder.adapter, dtype):
        yield name, each if name in exact else each.to(dtype)


def base_digest(decoder: Decoder) -> str:
    """Of the weights without the adapter: what sync.identity gives for them as they are held."""
    return identity.root(identity.specs(decoder.tensors()))


def adapter_share(decoder: Decoder) -> tuple[int, int]:
    """Elements of the adapter, and of the weights that it stands beside."""
    learned = sum(each.numel() for each in adapter_tensors(decoder).values())
    return learned, sum(each.numel() for each in decoder.tensors().values())


def check_targets(shapes: Mapping[str, Sequence[int]], form: AdapterForm) -> None:
    """Raise ModelError when a target is no linear layer of the model."""
    known = targets_of(adapter_shapes(shapes, AdapterForm(1, 1.0)))
    for target in () if form.targets == ALL_LINEAR else form.targets:
        if target not in known:
            raise ModelError(
                f"learner.lora.targets names {target!r}, which is no linear layer of this model; "
                f"choose of {', '.join(known)}"
            )


def _chosen(module: str, form: AdapterForm) -> bool:
    leaf = module.rpartition(".")[2]
    if leaf in _NOT_LINEAR:
        return False
    return form.targets == ALL_LINEAR or leaf in form.targets


def _adapted(decoder: Decoder, form: AdapterForm) -> dict[str, list[_Part]]:
    """Parameter of ours -> its parts that the form adapts, in their order. Raises ModelError."""
    found: dict[str, list[_Part]] = {}
    sizes = dict(decoder.named_parameters())
    for name, (owner, index) in decoder.layout().items():
        module = name.removesuffix(_WEIGHT)
        if module == name or not _is_linear(decoder, owner) or not _chosen(module, form):
            continue
        expert = next((each for each in index if isinstance(each, int)), None)
        rows = next((each for each in index if isinstance(each, slice)), slice(None))
        start, end, _ = rows.indices(sizes[owner].shape[-2])
        found.setdefault(owner, []).append(_Part(module, (start, end), expert))
    if not found:
        raise ModelError(f"no linear layer is named in learner.lora.targets = {form.targets}")
    return found


def _is_linear(decoder: Decoder, owner: str) -> bool:
    module, _, kind = owner.rpartition(".")
    found = decoder.get_submodule(module)
    if isinstance(found, Experts):
        return kind in ("gate_up", "down")
    return isinstance(found, Linear) and kind == "weight"


def _place(decoder: Decoder, owner: str) -> tuple[tuple[str, str], nn.Parameter]:
    """Where the adapter of a parameter goes, a module and its attribute, and the parameter."""
    module, _, kind = owner.rpartition(".")
    weight = decoder.get_parameter(owner)
    return (module, "adapter" if kind == "weight" else f"{kind}_adapter"), weight


def _entries(place: str, added: LowRank, parts: Sequence[_Part]) -> Layout:
    """PEFT's names of an adapter's tensors -> where they are."""
    found: Layout = {}
    rank, rows = added.rank, dict(zip(added.spans, added.rows, strict=True))
    for part in parts:
        number = added.spans.index(part.rows)
        lead = () if part.expert is None else (part.expert,)
        own = slice(number * rank, (number + 1) * rank)
        found[PEFT_NAME.format(part.module, "A")] = f"{place}.a", (*lead, own)
        found[PEFT_NAME.format(part.module, "B")] = f"{place}.b", (*lead, rows[part.rows])
    return found
