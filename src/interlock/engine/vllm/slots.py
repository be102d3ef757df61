"""vLLM's adapter slots: whether it is started with them, what goes into one, what lies in it.

    arguments ──> LLMEngine with an A and a B of zeros beside its layers ──opened──> merges
    put ──PEFT's files──> LLMEngine.add_lora ──> the slot, which every request then names
    held <── A, and B times alpha / rank <──interlock_save, in vLLM's worker──┘

One adapter at a time: each version is another of vLLM's, and takes the place of the one before. The
vocabulary has no slot: vLLM would put one there, and could score no text beside it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from interlock.engine.base import Shapes
from interlock.engine.vllm.parameters import Place
from interlock.errors import ConfigError, ModelError, TrainingError
from interlock.models.adapters import adapter_shapes, targets_of
from interlock.models.architecture import Architecture
from interlock.records.adapters import AdapterForm
from interlock.text import error_line

ENABLE, RANK, TARGETS = "enable_lora", "max_lora_rank", "lora_target_modules"
_SPREAD = ("tensor_parallel_size", "pipeline_parallel_size")


def known_ranks() -> list[int]:
    """That slots of the vLLM which is installed may have; none, where it cannot load weights below
    them, or not leave the vocabulary without one.
    """
    from vllm import EngineArgs
    from vllm.config import lora
    from vllm.lora.layers import BaseLayerWithLoRA

    settings = {field.name for field in dataclasses.fields(EngineArgs)}
    if TARGETS not in settings or not hasattr(BaseLayerWithLoRA, "load_weights"):
        return []
    return sorted(get_args(getattr(lora, "MaxLoRARanks", None)))


class AdapterSlots:
    """Those of one engine."""

    def __init__(
        self,
        arch: Architecture,
        shapes: Shapes,
        form: AdapterForm | None,
        options: Mapping[str, Any],
    ) -> None:
        """`shapes`: of the model's weights; `form`: of the adapters that will come, if that is
        known; `options`: the recipe's own.
        """
        self._arch, self._shapes, self._form = arch, shapes, form
        self._options = options
        self._none = ""  # why there are none
        self._found: Shapes = {}  # by PEFT's names
        self._request: Any = None  # vLLM's name of the adapter in the slot
        self._given: tuple[Mapping[str, Tensor], AdapterForm] | None = None  # what was put there
        self._count = 0  # adapters so far

    def arguments(self, ranks: list[int], kind: str, dtype: str) -> dict[str, Any]:
        """What a vLLM that knows slots of these ranks is to be started with.

        Raises ConfigError when the recipe asks for slots that this one cannot have.
        """
        asked = self._options.get(ENABLE)
        self._none = self._why_none(ranks, kind, dtype)
        if self._none:
            if asked:
                raise ConfigError(f"generator.options.{ENABLE} = true: {self._none}; remove it")
            return {}
        if asked is None and self._form is None:
            self._none = f"vLLM was started without slots (generator.options.{ENABLE})"
            return {}
        form = self._form or AdapterForm()
        targets = targets_of(adapter_shapes(self._shapes, form))
        fitting = [rank for rank in ranks if rank >= form.rank]
        return {ENABLE: True, "max_loras": 1, RANK: (fitting or ranks)[0], TARGETS: targets}

    def _why_none(self, ranks: list[int], kind: str, dtype: str) -> str:
        rank = 1 if self._form is None else self._form.rank
        spread = [name for name in _SPREAD if self._options.get(name, 1) != 1]
        if self._options.get(ENABLE) is False:
            return f"generator.options.{ENABLE} is false"
        if self._arch.routing is not None or self._arch.latent is not None:
            what = "experts" if self._arch.routing is not None else "latent attention"
            return f"vLLM keeps the weights of {what} in an order of its own"
        if not ranks:
            return "this vLLM cannot replace weights below its slots"
        if spread:
            return f"with {spread[0]} above 1, what is in vLLM's slots cannot be read back"
        if kind != "cpu" and dtype == "float32":
            return "off the CPU, vLLM multiplies adapters in bfloat16 or float16, not in float32"
        if rank > ranks[-1]:
            return f"rank {rank} is above the highest of vLLM's slots, {ranks[-1]}"
        return ""

    def opened(self, found: list[Shapes]) -> None:
        """The slots that vLLM's workers have."""
        self._found = found[0]

    @property
    def enabled(self) -> bool:
        return not self._none

    def merges(self, form: AdapterForm) -> str:
        """See engine/base.py."""
        if self._none:
            return self._none
        for name, shape in adapter_shapes(self._shapes, form).items():
            slot, axis = self._found.get(name), _rank_axis(name)
            if slot is None or slot[1 - axis] != shape[1 - axis]:
                return f"vLLM has no slot for {name}"
            if slot[axis] < form.rank:
                return (
                    f"rank {form.rank} is above that of vLLM's slots, {slot[axis]} "
                    f"(generator.options.{RANK})"
                )
        return ""

    @property
    def request(self) -> Any:
        """What every request of vLLM's is to be given as `lora_request`."""
        return self._request

    @property
    def number(self) -> int | None:
        """By which vLLM knows the adapter in the slot; None: there is none."""
        return None if self._request is None else self._request.lora_int_id

    def put(
        self, engine: Any, directory: Path, tensors: Mapping[str, Tensor], form: AdapterForm
    ) -> None:
        """Have `engine`, an LLMEngine, serve the adapter that is written in `directory`; `tensors`
        are what it is read from.

        Raises ModelError when vLLM does not take it; there then is none.
        """
        from vllm.lora.request import LoRARequest

        self.drop(engine)
        self._count += 1
        request = LoRARequest(f"interlock-{self._count}", self._count, str(directory))
        try:
            why = "" if engine.add_lora(request) else "it says no more"
        except Exception as error:  # of whatever kind: vLLM's own are many
            why = error_line(error)
        if why:
            raise ModelError(
                f"vLLM does not take the adapter ({why}); set generator.options.{ENABLE} = false, "
                "and it is merged"
            )
        self._request, self._given = request, (tensors, form)

    def drop(self, engine: Any) -> None:
        """Have `engine` serve its weights alone."""
        if (number := self.number) is not None:
            self._request = self._given = None
            engine.remove_lora(number)

    @property
    def places(self) -> list[tuple[str, Place]]:
        """Of the slots, in what interlock_save writes."""
        names = self._found if self._request is not None else {}
        return [(name, (name, 0, names[name][0])) for name in names]

    def held(self, slots: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The adapter as it lies in the slots, without the scale that vLLM has put into B."""
        assert self._given is not None
        return unfolded(slots, *self._given)


def unfolded(
    slots: Iterable[tuple[str, Tensor]], given: Mapping[str, Tensor], form: AdapterForm
) -> Iterator[tuple[str, Tensor]]:
    """What of an adapter is in `slots`, by PEFT's names: A [most, in] and alpha / rank * B
    [out, most], with zeros beyond its rank.

    B divided by the scale may not be the B it was, where the scale is no power of two. So where the
    slot is what `given` becomes in it, it is that. Raises TrainingError when there is more in them.
    """
    missing = set(given)
    for name, slot in slots:
        axis, rank = _rank_axis(name), form.rank if name in given else 0
        own, beyond = slot.split([rank, slot.shape[axis] - rank], axis)
        if bool(beyond.any()):
            raise TrainingError(
                f"vLLM's slot for {name} holds more than the adapter that it serves"
            )
        if name in given:
            missing.remove(name)
            yield name, own if axis == 0 else _without_scale(own, given[name], form.scale)
    if missing:
        raise TrainingError(f"vLLM has no slot for {min(missing)} of the adapter")


def _rank_axis(name: str) -> int:
    """Of A [rank, in] and of B [out, rank]."""
    return 0 if name.endswith(".lora_A.weight") else 1


def _without_scale(held: Tensor, given: Tensor, scale: float) -> Tensor:
    own = given.to(held)
    folded = own if scale == 1 else own * scale
    return own if torch.equal(folded, held) else held / scale
