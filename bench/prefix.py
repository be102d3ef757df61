"""What an engine that serves gains by what it knows, and what a long prompt costs those that run.

    python bench/prefix.py [--turn 2000] [--chunks 0 128 256 512] [--rounds 5] [--json result.json]

    first token   of a question behind a system turn of --turn tokens that was asked before, from
                  its arrival, with a prefix cache and without, in turns
    longest gap   between two tokens of --streams that run, while such a prompt that is not known
                  arrives, and the first token of that; for every --chunks, tokens of prompts
                  computed beside a step (0: whole prompts)

One engine, in this process. Tokens are random, but the same in every round.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from environment import environment
from figures import summary
from interlock.chips import device, heap, probe
from interlock.config.schema import Dtype, GeneratorSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.schedule import SERVING, Schedule
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling

QUESTION, ANSWER = 20, 16  # tokens


class Bench:
    """Engines of one decoder, which differ by their schedule."""

    def __init__(self, model: str, dtype: Dtype, turn: int) -> None:
        directory = find_model(model, print)
        self.how = probe.settled(GeneratorSettings(dtype=dtype), torch.device("cpu"))
        self._decoder: Decoder = load_decoder(
            directory, device.dtype(self.how.dtype), torch.device("cpu")
        )
        self._vocabulary = Tokenizer.load(directory)
        self._noise = torch.Generator().manual_seed(1)
        self.turn = self.tokens(turn)

    def engine(self, schedule: Schedule, slots: int) -> PortableEngine:
        attention = self.how.fused_attention_above
        return PortableEngine(
            self._decoder, self._vocabulary, slots, self.how.kernel, attention, False, schedule
        )

    def tokens(self, count: int) -> list[int]:
        return torch.randint(100, 40_000, (count,), generator=self._noise).tolist()


def asked(name: str, text: list[int], tokens: int) -> Request:
    return Request(name, text, 1, Sampling(temperature=0, max_tokens=tokens), 0)


def first_token_s(engine: PortableEngine, text: list[int]) -> tuple[float, int]:
    """Seconds to it, and the tokens that were known."""
    engine.add("q", asked("q", text, ANSWER))
    start = time.perf_counter()
    while not (found := engine.step()):
        pass
    taken = time.perf_counter() - start
    engine.abort("q")
    return taken, found[0].cached


def repeated(bench: Bench, rounds: int) -> dict[str, Any]:
    """First tokens behind one system turn."""
    engines = {
        "known": bench.engine(SERVING, 4),
        "computed": bench.engine(Schedule(patience=0, prefill_chunk=SERVING.prefill_chunk), 4),
    }
    taken: dict[str, list[float]] = {name: [] for name in engines}
    known: dict[str, int] = {}
    for number in range(rounds + 1):
        text = bench.turn + bench.tokens(QUESTION)
        for name, engine in sorted(engines.items(), reverse=number % 2 == 0):
            seconds, known[name] = first_token_s(engine, text)
            if number:
                taken[name].append(seconds)
    return {name: summary(each) | {"cached": known[name]} for name, each in taken.items()}


def disturbed(bench: Bench, chunk: int, streams: int) -> dict[str, float]:
    """Seconds: of a step before, the longest between two tokens, and to the newcomer's first."""
    engine = bench.engine(Schedule(patience=0, prefill_chunk=chunk), streams + 1)
    for number in range(streams):
        engine.add(str(number), asked(str(number), bench.tokens(QUESTION), 400))
    while sum(each.name != "late" for each in engine.step()) < streams:
        pass
    quiet, gaps = time.perf_counter(), []
    for _ in range(8):
        engine.step()
    quiet = (time.perf_counter() - quiet) / 8
    engine.add("late", asked("late", bench.turn, ANSWER))
    began = last = time.perf_counter()
    while True:
        names = [each.name for each in engine.step()]
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
        if "late" in names:
            break
    for name in [*map(str, range(streams)), "late"]:
        engine.abort(name)
    return {"step_s": quiet, "longest_gap_s": max(gaps), "first_token_s": last - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turn", type=int, default=2000, help="tokens of the system turn")
    parser.add_argument("--chunks", type=int, nargs="*", default=[0, 128, 256, 512])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()

    heap.keep_freed()
    torch.set_num_threads(given.threads)
    bench = Bench(given.model, given.dtype, given.turn)
    print(f"{bench.how.dtype}, {given.threads} threads, torch {torch.__version__}")
    found: dict[str, Any] = {"repeated": repeated(bench, given.rounds)}
    for name, each in found["repeated"].items():
        print(
            f"first token, {name}: median {each['median']:.3f} s, {each['min']:.3f} to "
            f"{each['max']:.3f}; {each['cached']} tokens from the cache",
            flush=True,
        )
    rounds: dict[int, list[dict[str, float]]] = {chunk: [] for chunk in given.chunks}
    for _ in range(given.rounds):
        for chunk, each in rounds.items():
            each.append(disturbed(bench, chunk, given.streams))
    found["disturbed"] = {
        chunk: {name: summary([one[name] for one in each]) for name in each[0]}
        for chunk, each in rounds.items()
    }
    for chunk, each in found["disturbed"].items():
        told = ", ".join(
            f"{name} {one['median']:.3f} ({one['min']:.3f} to {one['max']:.3f})"
            for name, one in each.items()
        )
        print(f"chunk {chunk}: {told}", flush=True)
    if given.json is not None:
        setting = {name: str(value) for name, value in vars(given).items()}
        figures = {"environment": environment(), "setting": setting, "result": found}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
