"""How vLLM's CPU build multiplies, where its own way is wrong here, or slow.

Called before an engine is started; for the rest of the process.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import linear


def keep_weights_plain() -> None:
    """Multiply with the parameters as they are.

    It would pack them away for oneDNN: not to be read back, and a vocabulary projection tied to the
    embedding would go on with the packed weights of the version before.
    """
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = plain


def multiply_adapters_at_once() -> None:
    """Multiply all tokens of a step by A and B at once, where all have one adapter.

    It would copy A and B for every token. A step of several adapters is left to it.
    """
    try:
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    except ImportError:  # too old for slots, see slots.py
        return
    usual = PunicaWrapperCPU.add_lora_linear

    def at_once(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **more: Any,
    ) -> None:
        _, _, numbers, adapters, *_ = self.prefill_metadata
        if self.no_lora or not self.is_prefill or adapters != 1 or more:
            usual(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, **more)
            return
        slot = int(numbers[0])
        add_low_rank(
            y,
            x,
            [(a[slot, 0], b[slot, 0]) for a, b in zip(lora_a_stacked, lora_b_stacked, strict=True)],
            output_slices,
            scale,
        )

    PunicaWrapperCPU.add_lora_linear = at_once


def add_low_rank(
    y: Tensor,
    x: Tensor,
    pairs: list[tuple[Tensor, Tensor]],
    widths: tuple[int, ...],
    scale: float,
) -> None:
    """Add scale * B A x to each stretch of y [tokens, widths and perhaps padding], in the dtype of
    x [tokens, in]; A [rank, in], B [width, rank].
    """
    rows, out, begin = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1]), 0
    for width, (a, b) in zip(widths, pairs, strict=True):
        added = linear(linear(rows, a.to(x.dtype)), b.to(x.dtype))
        out[:, begin : begin + width].add_(added, alpha=scale)
        begin += width
