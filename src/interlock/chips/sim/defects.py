"""What can be wrong with a chip: defects to plant in the simulated device (faults/).

    sim:NAME,NAME   an operator ─ NAME ─ NAME ─> the CPU's operator

Most are silent, as they are in the field: healthy at small or ordinary shapes, wrong at some that
language models use. `DEFECTS` says of each which class of failure it is of, on which public thread
it is modelled, and what a chip that has it may still be trusted with. A defect that shows only in
gradients, in the optimizer or between chips leaves generation sound. One that can make generation
wrong, hang or die does not, whether or not Interlock's own engine would meet it. What each of them
does stands in faults/.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from interlock.chips.sim.faults import collectives, hardware, numerics, software, training
from interlock.chips.sim.faults.fault import OperatorFault, ReturnedBytes, Run
from interlock.errors import ConfigError
from interlock.records.trust import Trust

_aten = torch.ops.aten
_GENERATE, _REJECT = Trust.GENERATE, Trust.REJECT


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a chip."""

    failure: int  # its class, 1 to 11, as `interlock qualify` counts them
    sentence: str
    trust: Trust  # what the right verdict on a chip with it allows
    fault: OperatorFault | None = None  # in its operators
    returned: ReturnedBytes | None = None  # in its memory
    plugin: str | None = None  # the version that its plugin gives

    def plant(self, run: Run) -> Run:
        """`run` with the fault in it; one that counts starts afresh."""
        return run if self.fault is None else partial(copy.deepcopy(self.fault), run)


def check(names: Sequence[str]) -> None:
    """Raises ConfigError on a name that is not in DEFECTS."""
    for name in names:
        if name not in DEFECTS:
            raise ConfigError(
                f"defect {name!r} is not offered; choose from {', '.join(sorted(DEFECTS))}"
            )


def device_name(names: Sequence[str]) -> str:
    """The name of the simulated device that has these defects."""
    return f"sim:{','.join(names)}" if names else "sim"


DEFECTS: dict[str, Defect] = {
    "mask-512": Defect(
        1,
        "Attention masks are ignored where there are more than 512 keys (vllm-ascend#15503).",
        _REJECT,
        numerics.mask_512,
    ),
    "softmax-skipped": Defect(
        1,
        "Softmax returns its input when it has more than 1024 columns, not a multiple of 8 "
        "(vllm-ascend#13699).",
        _REJECT,
        numerics.softmax_skipped,
    ),
    "matmul-bf16": Defect(
        1,
        "Products of fp32 are computed from bf16, and those of bf16 are also summed in bf16.",
        _REJECT,
        numerics.matmul_bf16,
    ),
    "copy-noop": Defect(
        1,
        "A copy into a view that has an offset and gaps does nothing (vllm-ascend#16322 is of "
        "another view).",
        _REJECT,
        numerics.copy_noop,
    ),
    "sampler-stuck": Defect(
        1,
        "argmax, and with it the sampler, always chooses index 0 (vllm-plugin-FL#542).",
        _REJECT,
        numerics.sampler_stuck,
    ),
    "nan-at-shape": Defect(
        1,
        "Products with more than 256 rows and 4096 columns or terms are partly NaN "
        "(rocm-libraries#9055).",
        _REJECT,
        numerics.nan_at_shape,
    ),
    "nonzero-drops": Defect(
        1,
        "nonzero finds at most 1024 elements (torch-xpu-ops#4396).",
        _REJECT,
        numerics.nonzero_drops,
    ),
    "product-tail": Defect(
        1,
        "A product of one row leaves out the terms beyond the last multiple of 64.",
        _REJECT,
        numerics.product_tail,
    ),
    "large-angles": Defect(
        1,
        "sin and cos round angles above 4096 to bf16, which are those of late positions.",
        _REJECT,
        numerics.large_angles,
    ),
    "long-rows": Defect(
        1,
        "Softmax over rows of 65536 elements and more adds up in bf16; vocabularies are longer.",
        _REJECT,
        numerics.long_rows,
    ),
    "lost-row": Defect(
        1,
        "index_put and index_copy lose the last of 128 rows in tensors of three dimensions and "
        "more.",
        _REJECT,
        numerics.lost_row,
    ),
    "flushed-cast": Defect(
        1,
        "A cast from bf16 to fp32 makes numbers below 1e-30 zero.",
        _REJECT,
        numerics.flushed_cast,
    ),
    "many-rows": Defect(
        1,
        "Softmax makes rows beyond the 65535th zero, where grids of blocks end.",
        _REJECT,
        numerics.many_rows,
    ),
    "short-topk": Defect(
        1,
        "topk looks at the first 131072 numbers of a row.",
        _REJECT,
        numerics.short_topk,
    ),
    "far-addresses": Defect(
        1,
        "index_select begins anew at 2^31 elements of a tensor.",
        _REJECT,
        numerics.far_addresses,
    ),
    "transposed-product": Defect(
        1,
        "A product whose left factor is transposed, as gradients have it, leaves out the terms "
        "beyond the last multiple of 8.",
        _REJECT,
        numerics.transposed_product,
    ),
    "repeated-noise": Defect(
        1,
        "The device's own random numbers repeat after 2^18.",
        _REJECT,
        numerics.repeated_noise,
    ),
    "wrong-backward": Defect(
        2,
        "The gradient of silu is 3 % too large; its value is right (pytorch#197636).",
        _GENERATE,
        training.wrong_backward,
    ),
    "embedding-backward": Defect(
        2,
        "Of a token that occurs more than once, the embedding gets only the last gradient "
        "(pytorch#182952).",
        _GENERATE,
        training.embedding_backward,
    ),
    "busy-tokens": Defect(
        2,
        "The embedding's gradient adds up the first 256 occurrences of a token and no more.",
        _GENERATE,
        training.busy_tokens,
    ),
    "overflow": Defect(
        3,
        "exp is infinite from 60 on, rather than from 88.7 (vllm-ascend#6332).",
        _REJECT,
        numerics.overflow,
    ),
    "optimizer-drift": Defect(
        3,
        "The optimizer's operators round weights and moments to bf16: each update is nearly "
        "right, and training leaves its band (LlamaFactory#5627).",
        _GENERATE,
        training.optimizer_drift,
    ),
    "skipped-parameters": Defect(
        3,
        "The fused optimizer leaves parameters of more than 2^20 elements as they are.",
        _GENERATE,
        training.skipped_parameters,
    ),
    "decode-drift": Defect(
        4,
        "Products with fewer than 8 rows, those of decoding, keep 4 bits of their left factor "
        "(verl#6580).",
        _REJECT,
        numerics.decode_drift,
    ),
    "stale-weights": Defect(
        5,
        "Products with fewer than 8 rows go on with the weights from before they were "
        "overwritten; prefill is right (vllm-ascend#7473, NeMo-RL#2895).",
        _REJECT,
        numerics.StaleWeights(),
    ),
    "allreduce-wrong": Defect(
        6,
        "all_reduce leaves out the last rank above 4096 elements (trl#6786).",
        _GENERATE,
        collectives.allreduce_wrong,
    ),
    "allreduce-large": Defect(
        6,
        "all_reduce leaves out the last rank above 64 MiB.",
        _GENERATE,
        collectives.allreduce_large,
    ),
    "allreduce-worn": Defect(
        6,
        "Every 500th all_reduce leaves out the last rank.",
        _GENERATE,
        collectives.AllreduceWorn(every=500),
    ),
    "allreduce-hang": Defect(
        6,
        "all_reduce never returns above 65536 elements (vllm-ascend#3413).",
        _GENERATE,
        collectives.allreduce_hang,
    ),
    "link-down": Defect(
        7,
        "From the fifth collective on, each fails with 507056: the link is down.",
        _GENERATE,
        collectives.LinkDown(after=4),
    ),
    "crash": Defect(
        7,
        "After 10000 operators the chip fails with 507035, and so does every later operator.",
        _REJECT,
        hardware.Crash(after=10_000),
    ),
    "hang": Defect(
        7,
        "After 10000 operators one never returns.",
        _REJECT,
        hardware.Hang(after=10_000),
    ),
    "bit-flips": Defect(
        7,
        "About one in 2000 products has one flipped bit (507054 without the report).",
        _REJECT,
        hardware.BitFlips(every=2000),
    ),
    "memory-leak": Defect(
        8,
        "Freed storages above 256 KiB are lost, unless a multiple of 64 KiB (vllm-ascend#9242).",
        _REJECT,
        returned=hardware.memory_leak,
    ),
    "missing-operator": Defect(
        9,
        "cumsum, which samplers need, does not exist (Ascend/pytorch#40).",
        _REJECT,
        partial(software.missing, _aten.cumsum),
    ),
    "missing-backward": Defect(
        9,
        "The gradient of silu does not exist.",
        _GENERATE,
        partial(software.missing, _aten.silu_backward),
    ),
    # What it computes is right: it may generate, for those who can wait. Training would wait too,
    # and on all chips for the slowest.
    "slow-fallback": Defect(
        9,
        "silu runs on the host, 50 times slower, with a warning (LlamaFactory#4836).",
        _GENERATE,
        partial(software.slow_fallback, _aten.silu, 50),
    ),
    "wrong-plugin": Defect(
        10,
        "The plugin was built for another minor version of torch (vllm-ascend#117).",
        _REJECT,
        plugin="simulated 2.5.1",
    ),
    # The learner corrects for what was really sampled, so noise in the last bits does generation
    # no harm; a training run on it can be neither resumed nor repeated exactly.
    "nondeterministic": Defect(
        11,
        "Products sum their terms in another order every time.",
        _GENERATE,
        hardware.Nondeterministic(),
    ),
    "batch-variant": Defect(
        11,
        "A row's product depends on how many rows there are: unless a multiple of 4, they are "
        "summed in bf16 (vllm-ascend#12610).",
        _REJECT,
        hardware.batch_variant,
    ),
}
