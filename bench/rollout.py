"""Tokens per second of the torch engine against transformers' `generate` and vLLM, side by side.

    python bench/rollout.py [--model DIR] [--rounds 5] [--vllm .venv-vllm/bin/python]

All sides answer the same prompts with the same weights on the same threads, and make exactly the
same number of tokens: end tokens end nothing. They take turns inside every round, so that a busy
machine slows both; the ratio is taken per round. A short round of each goes before, uncounted.
"Ready" is after opening the model; vLLM, a process of its own, begins with its imports.
--dtype auto is what Interlock would choose for the device; both sides use it.
"""

import argparse
import atexit
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from environment import environment
from interlock.chips import device, heap, probe
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import open_engine
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Detokenizer, Tokenizer
from interlock.records.rl import Sampling

Side = Callable[[int, int], int]  # (new tokens per completion, seed) -> tokens made


class Endless:
    """A tokenizer none of whose tokens ends a completion."""

    eos_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def stream(self) -> Detokenizer:
        return self._tokenizer.stream()

    def definition(self) -> str:
        return self._tokenizer.definition()


def prompts_of(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Chat prompts of about 40 tokens."""
    questions = [f"What is {100 + 7 * i} + {90 + 3 * i}?" for i in range(count)]
    return [tokenizer.chat([{"role": "user", "content": text}]) for text in questions]


def interlock_side(
    model: Path, prompts: list[list[int]], group: int, slots: int, place: torch.device, dtype: str
) -> Side:
    tokenizer = Tokenizer.load(model)
    settings = GeneratorSettings(device=device.name(place), dtype=dtype, slots=slots)  # type: ignore[arg-type]
    engine = open_engine(settings, model, Endless(tokenizer))

    def run(new_tokens: int, seed: int) -> int:
        rule = Sampling(max_tokens=new_tokens)
        requests = [Request(str(i), ids, group, rule, seed) for i, ids in enumerate(prompts)]
        done = engine.generate(requests)
        return sum(len(answer.tokens) for answers in done for answer in answers)

    return run


def transformers_side(
    model: Path, prompts: list[list[int]], group: int, place: torch.device, dtype: str
) -> Side:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=device.dtype(dtype)
    )
    reference.to(place).eval()
    width = max(len(ids) for ids in prompts)
    padded = [[0] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    tokens, seen = torch.tensor(padded, device=place), torch.tensor(mask, device=place)
    # The model's own settings would end completions, and sample by top-k.
    reference.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None
    )

    def run(new_tokens: int, seed: int) -> int:
        torch.manual_seed(seed)
        out = reference.generate(
            tokens, attention_mask=seen, max_new_tokens=new_tokens, num_return_sequences=group
        )
        return out[:, width:].numel()

    return run


def vllm_side(
    python: Path, model: Path, prompts: list[list[int]], group: int, threads: int, dtype: str
) -> tuple[Side, str]:
    """vLLM's processes, stopped while it is not their turn, and its version."""
    child = subprocess.Popen(
        [python, Path(__file__).with_name("vllm_side.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        start_new_session=True,
    )
    atexit.register(end, child)

    def ask(question: object) -> str:
        assert child.stdin is not None and child.stdout is not None
        os.killpg(child.pid, signal.SIGCONT)
        child.stdin.write(json.dumps(question) + "\n")
        child.stdin.flush()
        if not (answer := child.stdout.readline()):
            raise SystemExit(f"vLLM ended early, exit code {child.wait()}")
        os.killpg(child.pid, signal.SIGSTOP)
        return answer

    version = ask(
        {
            "model": str(model),
            "dtype": dtype,
            "prompts": prompts,
            "group": group,
            "threads": threads,
        }
    )
    return lambda new_tokens, _: int(ask(new_tokens)), version.strip()


def end(child: subprocess.Popen[str]) -> None:
    """Stopped processes would outlive this one."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def measure(sides: dict[str, Side], rounds: int, new_tokens: int) -> dict[str, list[float]]:
    """Tokens per second of each side in each round; who begins alternates."""
    for side in sides.values():
        side(4, 0)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    made: set[int] = set()
    for number in range(1, rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            start = time.perf_counter()
            count = sides[name](new_tokens, number)
            speeds[name].append(count / (time.perf_counter() - start))
            made.add(count)
        row = "  ".join(f"{name} {speed[-1]:7.1f} tok/s" for name, speed in speeds.items())
        print(f"round {number}: {row}", flush=True)
    assert len(made) == 1, f"the sides made different numbers of tokens: {made}"
    return speeds


def summary(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Median, minimum and maximum of each side, and of the ratios round by round."""
    (_, ours), *others = speeds.items()
    rows = speeds | {
        f"ratio to {name}": [a / b for a, b in zip(ours, theirs, strict=True)]
        for name, theirs in others
    }
    return {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v), "rounds": v}
        for name, v in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=1, help="completions per prompt")
    parser.add_argument("--slots", type=int, default=64, help="completions we decode at a time")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vllm", type=Path, help="interpreter of an environment that has vLLM")
    parser.add_argument("--vllm-dtype", choices=["bfloat16", "float32"], help="else as the others")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    heap.keep_freed()  # for transformers too, which shares the process
    torch.set_num_threads(options.threads)
    model, place = find_model(options.model, print), device.claim(options.device)
    options.dtype = probe.settled(GeneratorSettings(dtype=options.dtype), place).dtype
    prompts = prompts_of(Tokenizer.load(model), options.prompts)
    lengths = sorted(len(ids) for ids in prompts)
    print(
        f"{options.prompts} prompts of {lengths[0]}-{lengths[-1]} tokens x {options.group}, "
        f"{options.new_tokens} new tokens, {options.dtype}, {options.threads} threads, {place}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    shape, facts, ready = (model, prompts, options.group), environment(), {}
    start = time.perf_counter()
    sides = {"interlock": interlock_side(*shape, options.slots, place, options.dtype)}
    ready["interlock"] = time.perf_counter() - start
    start = time.perf_counter()
    sides["transformers"] = transformers_side(*shape, place, options.dtype)
    ready["transformers"] = time.perf_counter() - start
    if options.vllm is not None:
        dtype = options.vllm_dtype or options.dtype
        start = time.perf_counter()
        sides["vllm"], facts["vllm"] = vllm_side(options.vllm, *shape, options.threads, dtype)
        ready["vllm"] = time.perf_counter() - start
    for name, seconds in ready.items():
        print(f"{name} is ready after {seconds:.1f} s", flush=True)
    result = summary(measure(sides, options.rounds, options.new_tokens))
    for name, row in result.items():
        unit = "x" if name.startswith("ratio") else " tok/s"
        print(
            f"{name}: median {row['median']:.2f}{unit}, {row['min']:.2f} to {row['max']:.2f}{unit}"
        )
    if options.json is not None:
        setting = {name: str(value) for name, value in vars(options).items()}
        figures = {"environment": facts, "setting": setting, "ready_s": ready, "result": result}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
