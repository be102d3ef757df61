"""What runs inside vLLM's worker: other weights into the running model, its weights out of it.

    VllmEngine ──collective_rpc, by name──> worker of vLLM + WorkerExtension ──> its model
        └────────── safetensors file ───────────┘

The worker may be a process of its own, or several: arguments and answers are plain data.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interlock.engine.base import Shapes
from interlock.engine.vllm.parameters import read, write
from interlock.models.adapters import PEFT_NAME


class WorkerExtension:
    """vLLM makes this a base of its worker class (`worker_extension_cls`)."""

    model_runner: Any
    vllm_config: Any

    def interlock_load(self, path: str) -> list[str]:
        """Put the tensors of a safetensors file into the model.

        Returns the names of the parameters that this left as they were.
        """
        from vllm.config import set_current_vllm_config

        model = self.model_runner.get_model()
        unset = set(_parameters(model))
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            begin, end = _brackets(model, self.vllm_config.model_config)
            begin()
            loaded = model.load_weights(read(Path(path)))
            end()
        return sorted(unset - {_plain(name) for name in (unset if loaded is None else loaded)})

    def interlock_shapes(self) -> tuple[Shapes, dict[str, list[str]]]:
        """The shapes of all parameters, and which of them are several of a checkpoint's in one."""
        model = self.model_runner.get_model()
        shapes = {name: list(each.shape) for name, each in _parameters(model).items()}
        packed = getattr(model, "packed_modules_mapping", None) or {}
        return shapes, {name: list(parts) for name, parts in packed.items()}

    def interlock_slots(self) -> Shapes:
        """The shapes of what there is for an adapter, by PEFT's names."""
        return {name: list(each.shape) for name, each in _slots(self.model_runner, 0).items()}

    def interlock_save(self, path: str, adapter: int | None = None) -> None:
        """Write all parameters as they are to a safetensors file, and the slots of an adapter."""
        held = _parameters(self.model_runner.get_model())
        if adapter is not None:
            manager = self.model_runner.lora_manager._adapter_manager
            held |= _slots(self.model_runner, manager.lora_index_to_id.index(adapter))
        write(held, Path(path))

    def interlock_forget(self) -> None:
        """Zero all keys and values. Attention multiplies what it masks by zero, so what is not
        finite in a block would reach whoever is given the block next.
        """
        for cache in _tensors(self.model_runner.kv_caches):
            cache.zero_()


def _plain(name: str) -> str:
    """Of a parameter, as if it had no slots beside it: these wrap the layer that it is of."""
    return name.replace(".base_layer.", ".")


def _parameters(model: Any) -> dict[str, Tensor]:
    return {_plain(name): each for name, each in model.named_parameters()}


def _slots(runner: Any, index: int) -> dict[str, Tensor]:
    """A [most, in] and B [out, most] of slot `index`, by PEFT's names. A layer that is several of a
    checkpoint's in one has those of each.
    """
    manager = runner.lora_manager._adapter_manager
    found = {}
    for module, layer in manager.modules.items():
        parts = manager.packed_modules.get(module, [module])
        for which, stacks in (("A", layer.lora_a_stacked), ("B", layer.lora_b_stacked)):
            for part, stack in zip(parts, stacks, strict=True):
                found[PEFT_NAME.format(part, which)] = stack[index, 0]
    return found


def _tensors(held: Any) -> Iterator[Tensor]:
    """Those of a tree of lists: some layers keep several."""
    if isinstance(held, Tensor):
        yield held
    else:
        for each in held:
            yield from _tensors(each)


def _brackets(model: Any, model_config: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """What to call before and after the weights of a running model are loaded again."""
    try:
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )
    except ImportError:  # older: weights stay as loaded, but for what is derived from them
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        place = next(model.parameters()).device
        return lambda: None, lambda: process_weights_after_loading(model, model_config, place)
    return (
        lambda: initialize_layerwise_reload(model),
        lambda: finalize_layerwise_reload(model, model_config),
    )
