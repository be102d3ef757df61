"""One decoding step of the torch engine, at many sizes, against what the machine allows.

    python bench/decode.py [--rows 1 8 64 256] [--contexts 128 1024 4096] [--json result.json]

A step is the decoder with cached attention, the vocabulary projection and sampling, for as many
sequences as --rows. Every sequence has a prompt of its own of --contexts tokens, with random keys
and values, and --own tokens of its own. With --group G, G sequences share a prompt, and its keys
and values; with --group 1 each has its own, as in engines without sharing. Several G take turns.

The bound is the longer of two times: all multiplications at the speed of a square product, and all
weights, keys and values at the speed of reading memory, both measured here. Settings whose keys and
values, of all groups together, exceed --memory GB are left out, and named.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from environment import environment
from interlock.chips import device, heap, probe
from interlock.config.schema import GeneratorSettings
from interlock.engine.portable.kv_cache import Decode, KVCache, SharedPrompts
from interlock.engine.portable.prepacked import PackedProducts
from interlock.engine.portable.prompts import LONE_PROMPT
from interlock.engine.portable.sampler import Noise, sample
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.records.rl import Sampling


def kv_cache(decoder: Decoder, rows: int, length: int) -> KVCache:
    """Random keys and values."""
    arch = decoder.arch
    shape = (arch.layers, 1, arch.kv_heads, length)
    k = torch.randn(*shape, arch.head_dim).to(decoder.dtype)
    v = torch.randn(*shape, arch.value_dim).to(decoder.dtype)
    made = KVCache(k, v)
    made.reserve(rows, length)
    for row in range(rows):
        made.append(row, k, v)
    return made


def step_of(
    decoder: Decoder, rows: int, context: int, own: int, group: int
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    members = [list(range(first, first + group)) for first in range(0, rows, group)]
    if group == 1 and context <= LONE_PROMPT:  # the engine keeps these as one
        before, prompts = context + own, None
    else:
        before, prompts = own, kv_cache(decoder, rows // group, context)
    past = kv_cache(decoder, rows, before)
    past.reserve(rows, before + 1)
    tokens = torch.arange(1000, 1000 + rows)
    positions = torch.full((rows,), context + own)
    rules, noise = [Sampling()] * rows, [Noise(0, "bench", row).at(own) for row in range(rows)]

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        shared = (
            [] if prompts is None else [SharedPrompts(prompts, [context] * len(members), members)]
        )
        hidden = decoder(tokens, positions, Decode(past, [before] * rows, shared))
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


def in_turns(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each in every round; one of each goes before, uncounted."""
    for run in runs:
        run()
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for at in range(len(runs))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            runs[at]()
            taken[at].append(time.perf_counter() - start)
    return taken


def median_s(run: Callable[[], Any], rounds: int) -> float:
    return statistics.median(in_turns([run], rounds)[0])


def machine(dtype: torch.dtype) -> tuple[float, float]:
    """Multiply-adds a second of a square product, bytes a second of a sum over 512 MiB."""
    x = torch.randn(2048, 2048).to(dtype)
    block = torch.ones(1 << 27)
    return 2048**3 / median_s(lambda: x @ x, 5), 4 * (1 << 27) / median_s(block.sum, 5)


def figures_of(
    shape: tuple[int, int, int, int], kept: int, taken: list[float], bound: float
) -> dict[str, Any]:
    """Of one setting: seconds a step, in the median and in every round, beside the bound's."""
    rows, context, _, group = shape
    return {
        "rows": rows,
        "group": group,
        "context": context,
        "seconds": statistics.median(taken),
        "rounds": taken,
        "bound": bound,
        "kept_bytes": kept,
    }


def show(row: dict[str, Any]) -> str:
    return (
        f"| {row['rows']} | {row['group']} | {row['context']} | {1e3 * row['seconds']:.0f} "
        f"| {row['rows'] / row['seconds']:.0f} | {1e3 * row['bound']:.0f} "
        f"| {row['bound'] / row['seconds']:.0%} | {row['kept_bytes'] / 1e9:.2f} GB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096])
    parser.add_argument("--own", type=int, default=32, help="tokens of each sequence alone")
    parser.add_argument("--group", type=int, nargs="+", default=[1], help="share a prompt")
    parser.add_argument("--memory", type=float, default=13.0, help="GB of keys and values, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    heap.keep_freed()
    torch.set_num_threads(given.threads)
    place = torch.device("cpu")
    how = probe.settled(GeneratorSettings(dtype=given.dtype), place)
    given.dtype = how.dtype
    dtype = device.dtype(given.dtype)
    decoder = load_decoder(find_model(given.model, print), dtype, place).requires_grad_(False)
    print(f"{given.dtype}, {given.threads} threads, torch {torch.__version__}")
    heads = ["sequences", "group", "context", "ms a step", "tokens/s", "bound, ms", "share"]
    heads += ["keys and values"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|", flush=True)
    found = []
    for rows in given.rows:
        for context in given.contexts:
            groups = sorted({min(group, rows) for group in given.group})
            shapes = [(rows, context, given.own, group) for group in groups]
            kept = [bytes_kept(decoder, *shape) for shape in shapes]
            if sum(kept) > given.memory * 1e9:
                row = {"rows": rows, "context": context, "kept_bytes": sum(kept)}
                found.append(row | {"seconds": None})
                print(f"| {rows} | | {context} | not run | | | | {sum(kept) / 1e9:.1f} GB |")
                continue
            speed, bandwidth = machine(dtype)
            products = PackedProducts(decoder, how.kernel)
            with torch.inference_mode():
                products.begin(rows, 1000)
                rounds = in_turns([step_of(decoder, *shape) for shape in shapes], given.rounds)
                products.end()
            for shape, size, values in zip(shapes, kept, rounds, strict=True):
                bound = bound_s(decoder, *shape, speed, bandwidth)
                found.append(figures_of(shape, size, values, bound))
                print(show(found[-1]), flush=True)
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": found}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
