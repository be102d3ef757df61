"""Seconds per update of the learner against transformers with AdamW, side by side.

    python bench/learner.py [--rounds 5] [--problems 8] [--completions 8] [--json result.json]

Both sides take the same step: forward, backward, clipping and fused AdamW on fp32 masters, for
groups of completions of one prompt, each token weighted. transformers computes every completion
with its prompt, in micro-batches of --micro-batch rows, and the logits of completion tokens only
(`logits_to_keep`); all rows are equally long, so it pads nothing. The learner computes a prompt
once. Tokens are counted as a user counts them: prompt and completion of every row.

They take turns inside every round. The share of the peak is of the multiplications that the
learner really makes, against square products measured in every round.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from environment import environment
from figures import summary
from interlock.chips import device, heap, probe
from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model

PEAK_SIZE = 2048  # of the square products


def groups_of(problems: int, completions: int, prompt: int, length: int) -> list[TrainingGroup]:
    """Random tokens with weights of both signs."""
    noise = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(1000, 40_000, (count,), generator=noise).tolist()

    share = 1 / (problems * completions * length)
    weights = [[share * (-1) ** row] * length for row in range(completions)]
    logprobs = [[-9.0] * length] * completions
    return [
        TrainingGroup(
            tokens(prompt), [tokens(length) for _ in range(completions)], weights, logprobs
        )
        for _ in range(problems)
    ]


def interlock_side(model: Path, groups: list[TrainingGroup], dtype: str) -> Callable[[], Any]:
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    settings = LearnerSettings(dtype=dtype)  # type: ignore[arg-type]
    learner = Learner(decoder, settings, OptimizerSettings(lr=1e-6), 1000)
    loss = LossSettings(correction="off")
    return lambda: learner.step(groups, loss)


def transformers_side(
    model: Path, groups: list[TrainingGroup], dtype: str, micro_batch: int
) -> Callable[[], Any]:
    net: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=True)
    rows = torch.tensor([g.prompt + c for g in groups for c in g.completions])
    weights = torch.tensor([w for g in groups for w in g.weights])
    length = weights.shape[1]
    narrow = dtype == "bfloat16"

    def step() -> None:
        for ids, weight in zip(rows.split(micro_batch), weights.split(micro_batch), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                logits = net(ids, logits_to_keep=length + 1, use_cache=False).logits[:, :-1]
            logprobs = torch.log_softmax(logits.float(), -1)
            chosen = logprobs.gather(2, ids[:, -length:, None])[..., 0]
            # The ratio to itself: its gradient is that of the policy.
            (-weight * (chosen - chosen.detach()).exp()).sum().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def multiplications(model: Path, groups: list[TrainingGroup]) -> int:
    """Of one update with weights, forward and backward; what attention adds is left out."""
    arch = load_decoder(model, torch.float32, torch.device("cpu")).arch
    qkv = (arch.heads + 2 * arch.kv_heads) * arch.head_dim
    each = arch.hidden * (qkv + 3 * arch.inner) + arch.heads * arch.head_dim * arch.hidden
    stream = sum(len(g.prompt) + sum(len(c) - 1 for c in g.completions) for g in groups)
    targets = sum(len(c) for g in groups for c in g.completions)
    return 3 * (stream * arch.layers * each + targets * arch.vocab * arch.hidden)


def peak(dtype: torch.dtype) -> float:
    """Multiply-adds per second of the fastest of three square products."""
    x = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    return PEAK_SIZE**3 / min(seconds(lambda: x @ x) for _ in range(3))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=40, help="tokens")
    parser.add_argument("--length", type=int, default=48, help="tokens of a completion")
    parser.add_argument("--micro-batch", type=int, default=8, help="rows, of transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    heap.keep_freed()  # for both sides, as they share the process
    torch.set_num_threads(given.threads)
    model = find_model(given.model, print)
    given.dtype = probe.settled(LearnerSettings(dtype=given.dtype), torch.device("cpu")).dtype
    groups = groups_of(given.problems, given.completions, given.prompt, given.length)
    tokens = given.problems * given.completions * (given.prompt + given.length)
    work = multiplications(model, groups)
    sides = {
        "interlock": interlock_side(model, groups, given.dtype),
        "transformers": transformers_side(model, groups, given.dtype, given.micro_batch),
    }
    print(
        f"{given.problems} x {given.completions} completions of {given.length} tokens after "
        f"{given.prompt}, {given.dtype}, {given.threads} threads; torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    for side in sides.values():
        side()
    found: dict[str, list[float]] = {n: [] for n in (*sides, "ratio", "share of peak")}
    for number in range(1, given.rounds + 1):
        limit = peak(device.dtype(given.dtype))
        taken = {n: seconds(sides[n]) for n in (list(sides) if number % 2 else list(sides)[::-1])}
        for name, value in taken.items():
            found[name].append(tokens / value)
        found["ratio"].append(taken["transformers"] / taken["interlock"])
        found["share of peak"].append(work / taken["interlock"] / limit)
        print(
            f"round {number}: interlock {taken['interlock']:.1f} s, transformers "
            f"{taken['transformers']:.1f} s, {2e-9 * limit:.0f} GFLOP/s at most",
            flush=True,
        )
    result = {name: summary(values) for name, values in found.items()}
    for name, row in result.items():
        unit = " tok/s" if name in sides else ""
        print(f"{name}: median {row['median']:.2f}{unit}, {row['min']:.2f} to {row['max']:.2f}")
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": result}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
