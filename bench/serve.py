"""`interlock serve` against vLLM's server and llama.cpp's, in turns.

    python bench/serve.py [--streams 1 16 64 256] [--rounds 3] [--dtype auto] [--json result.json]
        [--vllm .venv-vllm/bin/python] [--vllm-dtype bfloat16] [--llama PYTHON --gguf FILE]

All servers are up during the whole of it, so that rounds can be taken in turns; they idle
meanwhile. The client (serving_load.py) is this process. Every answer has TOKENS tokens, drawn at
temperature 1 from all of the vocabulary; end tokens end nothing. Prompts differ behind a short
common beginning. No seeds: with them vLLM 0.32's CPU build fails on chunked prompts ("CPU Generator
does not use offset").

    ours     interlock serve, with its defaults
    vllm     vLLM's OpenAI server, compiled, with its defaults, for sequences as long as these
    llama    llama.cpp's server in xllamacpp, with as many slots as there are streams
"""

import argparse
import json
import os
import secrets
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from environment import environment
from figures import summary
from interlock.models.fetch import find_model
from serving_load import Seen, load
from serving_process import INTERLOCK, READY_S, free_port, running
from workload import MODEL

TOKENS = 64
CONTEXT = 512
THREADS = len(os.sched_getaffinity(0))
STORY = (
    "A train leaves the station with {a} passengers. At the next stop {b} get on and {c} leave. "
)
QUESTION = "How many passengers are on the train now? Explain every step."


def bodies(model: str, count: int, first: int) -> list[dict[str, Any]]:
    """Requests that no other call has sent: a prefix cache knows their beginning at most."""
    found = []
    for number in range(first, first + count):
        stops = 1 + number % 4
        story = "".join(
            STORY.format(a=number * 7 + stop, b=number * 3 + stop, c=stop) for stop in range(stops)
        )
        found.append(
            {
                "model": model,
                "messages": [{"role": "user", "content": story + QUESTION}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": TOKENS,
                "temperature": 1.0,
                "top_p": 1.0,
                "ignore_eos": True,
            }
        )
    return found


@contextmanager
def server(command: list[str], port: int, log: Path, env: dict[str, str]) -> Iterator[float]:
    """A server while the block runs; the seconds until it was ready."""
    begun = time.perf_counter()
    with running(command, log, env) as process:
        while not _healthy(port):
            if process.poll() is not None or time.perf_counter() - begun > READY_S:
                sys.exit(f"{command[:3]} did not come up; see {log}")
            time.sleep(0.05)
        yield time.perf_counter() - begun


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def command_of(side: str, given: argparse.Namespace, model: Path, port: int) -> list[str]:
    most = max(given.streams)
    if side == "ours":
        return [
            *(str(INTERLOCK), "serve", str(model), "--port", str(port)),
            *("--dtype", given.dtype),
        ]
    if side == "vllm":
        return [
            *(given.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *("--served-model-name", MODEL, "--dtype", given.vllm_dtype, "--port", str(port)),
            *("--host", "127.0.0.1", "--max-model-len", str(CONTEXT)),
            *("--max-num-seqs", str(most), "--no-enable-log-requests"),
        ]
    here = str(Path(__file__).with_name("llama_side.py"))
    return [given.llama, here, given.gguf, *map(str, (port, most, CONTEXT, THREADS))]


def extras(side: str) -> dict[str, Any]:
    """What turns off the limits that a server sets by itself."""
    return {"llama": {"top_k": 0, "min_p": 0.0}, "vllm": {}, "ours": {}}[side]


def measure(port: int, key: str, side: str, streams: int, first: int) -> Seen:
    asked = bodies(MODEL, max(8, asked_of_each(streams) * streams), first)
    seen = load(f"http://127.0.0.1:{port}", key, streams, [body | extras(side) for body in asked])
    for failure in seen.failures[:3]:
        print(f"  {side}: {failure}", file=sys.stderr)
    return seen


def asked_of_each(streams: int) -> int:
    """Answers of every stream: enough that the beginning and the end count little."""
    return 1 if streams > 64 else 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="of ours")
    parser.add_argument("--vllm", help="the interpreter of vLLM's environment")
    parser.add_argument("--vllm-dtype", default="bfloat16")
    parser.add_argument("--llama", help="the interpreter of an environment with xllamacpp")
    parser.add_argument("--gguf", help="the model for llama.cpp: interlock export --to gguf")
    parser.add_argument("--logs", type=Path, default=Path("runs/bench/serve-logs"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sides = ["ours", *(["vllm"] if given.vllm else []), *(["llama"] if given.llama else [])]
    model, key = find_model(MODEL, print), secrets.token_urlsafe(16)
    given.logs.mkdir(parents=True, exist_ok=True)
    env = {"INTERLOCK_API_KEY": key, "OMP_NUM_THREADS": str(THREADS)}
    env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}
    result: dict[str, Any] = {"environment": environment(), "ready_s": {}, "load": {}}
    figures: dict[str, dict[int, list[dict[str, Any]]]] = {side: {} for side in sides}
    with ExitStack() as up:
        ports = {side: free_port() for side in sides}
        for side in sides:
            started = server(
                command_of(side, given, model, ports[side]),
                ports[side],
                given.logs / f"{side}.log",
                env,
            )
            result["ready_s"][side] = up.enter_context(started)
            print(f"{side} ready after {result['ready_s'][side]:.1f} s", flush=True)
            measure(ports[side], key, side, 4, 0)  # warm
        first = 1000
        for turn in range(given.rounds):
            for streams in given.streams:
                for side in sides:
                    seen = measure(ports[side], key, side, streams, first).figures()
                    first += 3 * streams + 8
                    figures[side].setdefault(streams, []).append(seen)
                    print(f"round {turn} streams {streams:>3} {side:<6}", _line(seen), flush=True)
    result["load"] = {
        side: {str(n): _summary(rounds) for n, rounds in by.items()} for side, by in figures.items()
    }
    _print(result, sides, given.streams)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2))


def _line(seen: dict[str, Any]) -> str:
    return (
        f"{seen['tokens_per_s']:7.0f} tok/s  first p50 {seen['first_p50_s']:.3f} "
        f"p99 {seen['first_p99_s']:.3f}  between p50 {seen['between_p50_s'] * 1000:.0f} "
        f"p99 {seen['between_p99_s'] * 1000:.0f} ms  failed {seen['failures']}"
    )


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: summary([each[name] for each in rounds]) for name in rounds[0]}


def _print(result: dict[str, Any], sides: list[str], counts: list[int]) -> None:
    ours = result["load"]["ours"]
    for side in sides[1:]:
        for streams in counts:
            pairs = zip(
                ours[str(streams)]["tokens_per_s"]["rounds"],
                result["load"][side][str(streams)]["tokens_per_s"]["rounds"],
                strict=True,
            )
            ratios = summary([mine / theirs for mine, theirs in pairs])
            result.setdefault("ratio", {}).setdefault(side, {})[str(streams)] = ratios
            print(
                f"{streams:>3} streams: {ratios['median']:.2f} times {side} "
                f"({ratios['min']:.2f}-{ratios['max']:.2f})"
            )


if __name__ == "__main__":
    main()
