"""One decoding step of the torch engine, at many sizes, against what the machine allows.

    python bench/decode.py [--rows 1 8 64 256] [--contexts 128 1024 4096] [--json result.json]

A step is the decoder with cached attention, the vocabulary projection and sampling, for as many
sequences as --rows. Every sequence has a prompt of its own of --contexts tokens, with random keys
and values, and --own tokens of its own. With --group G, G sequences share a prompt, and its keys
and values; with --group 1 each has its own, as in engines without sharing.

The bound is the longer of two times: all multiplications at the speed of a square product, and all
weights, keys and values at the speed of reading memory, both measured here. Settings whose keys and
values exceed --memory GB are left out, and named.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from environment import environment
from interlock.chips import device, heap
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.records import Sampling
from interlock.rollout.cache import Arena, Decode, Shared
from interlock.rollout.packed import packed
from interlock.rollout.sampler import Noise, sample


def arena(decoder: Decoder, rows: int, length: int) -> Arena:
    """Random keys and values."""
    arch = decoder.arch
    shape = (arch.layers, 1, arch.kv_heads, length)
    k = torch.randn(*shape, arch.head_dim).to(decoder.dtype)
    v = torch.randn(*shape, arch.value_dim).to(decoder.dtype)
    made = Arena(k, v)
    made.reserve(rows, length)
    for row in range(rows):
        made.append(row, k, v)
    return made


def step_of(
    decoder: Decoder, rows: int, context: int, own: int, group: int
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    prompts = arena(decoder, rows // group, context)
    members = [list(range(first, first + group)) for first in range(0, rows, group)]
    past = arena(decoder, rows, own)
    past.reserve(rows, own + 1)
    tokens = torch.arange(1000, 1000 + rows)
    positions = torch.full((rows,), context + own)
    rules, noise = [Sampling()] * rows, [Noise(0, "bench", row).at(own) for row in range(rows)]

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        shared = Shared(prompts, [context] * len(members), members)
        hidden = decoder(tokens, positions, Decode(past, [own] * rows, [shared]))
        return sample(decoder.logits(hidden), rules, noise)

    return step


def bytes_kept(decoder: Decoder, rows: int, context: int, own: int, group: int) -> int:
    """Of keys and values."""
    arch = decoder.arch
    token = arch.layers * arch.kv_heads * (arch.head_dim + arch.value_dim)
    return token * decoder.dtype.itemsize * (rows // group * context + rows * own)


def bound_s(
    decoder: Decoder, rows: int, context: int, own: int, group: int, speed: float, bandwidth: float
) -> float:
    """Seconds that the machine needs for the step; speed in multiply-adds, bandwidth in bytes."""
    arch = decoder.arch
    weights = sum(p.numel() for p in decoder.parameters() if p.ndim == 2)
    attention = arch.layers * arch.heads * (arch.head_dim + arch.value_dim) * (context + own)
    read = weights * decoder.dtype.itemsize + bytes_kept(decoder, rows, context, own, group)
    return max(rows * (weights + attention) / speed, read / bandwidth)


def median_s(run: Callable[[], Any], rounds: int) -> float:
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def machine(dtype: torch.dtype) -> tuple[float, float]:
    """Multiply-adds a second of a square product, bytes a second of a sum over 512 MiB."""
    x = torch.randn(2048, 2048).to(dtype)
    block = torch.ones(1 << 27)
    return 2048**3 / median_s(lambda: x @ x, 5), 4 * (1 << 27) / median_s(block.sum, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--own", type=int, default=32, help="tokens of each sequence alone")
    parser.add_argument("--group", type=int, default=1, help="sequences that share a prompt")
    parser.add_argument("--memory", type=float, default=13.0, help="GB of keys and values, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    heap.keep_freed()
    torch.set_num_threads(given.threads)
    place = torch.device("cpu")
    given.dtype = device.settled_dtype(given.dtype, place)
    dtype = device.dtype(given.dtype)
    decoder = load_decoder(find_model(given.model, print), dtype, place).requires_grad_(False)
    print(f"{given.dtype}, {given.threads} threads, torch {torch.__version__}")
    print("| sequences | context | ms a step | tokens/s | bound, ms | share | keys and values |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for rows in given.rows:
        for context in given.contexts:
            shape = (rows, context, given.own, min(given.group, rows))
            kept = bytes_kept(decoder, *shape) / 1e9
            if kept > given.memory:
                print(f"| {rows} | {context} | not run | | | | {kept:.1f} GB |", flush=True)
                continue
            speed, bandwidth = machine(dtype)
            with torch.inference_mode(), packed(decoder, rows, 1000):
                taken = median_s(step_of(decoder, *shape), given.rounds)
            bound = bound_s(decoder, *shape, speed, bandwidth)
            found.append({"rows": rows, "context": context, "seconds": taken, "bound": bound})
            print(
                f"| {rows} | {context} | {1e3 * taken:.0f} | {rows / taken:.0f} "
                f"| {1e3 * bound:.0f} | {bound / taken:.0%} | {kept:.2f} GB |",
                flush=True,
            )
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": found}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
