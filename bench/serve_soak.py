"""Clients that leave whenever they like, for long: what is left of it in memory, slots and queue.

    python bench/serve_soak.py [--minutes 30] [--streams 64] [--model smollm2-135m-instruct]
        [--replicas 2] [--tokens 64] [--cache 512] [--json result.json]

Each of --streams asks again and again, and draws what it does with the answer:

    stays     reads all of it                       leaves    after some tokens
    slow      reads all of it, with pauses          at once   before the first token, or queued
    several   n = 3, reads all or leaves            stuck     reads nothing until it is dropped

There are half as many slots as streams, so half of them wait. There are few prompts, so what is
remembered of them is soon all; a prefix cache of --cache MB has to be filled in the first half, or
its filling is taken for growth. Memory of the server and of its
workers is looked at every --sample seconds: its growth is the slope over the last half of the run,
times that half, of its mean there. At the end nothing may run or wait, and whoever stayed has all
of its tokens.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

from environment import environment
from serving_process import KEY, free_port, memory, serving, state, wait_for_all, workers_of

WAYS = {"stays": 8, "slow": 2, "several": 2, "leaves": 4, "at once": 3, "stuck": 1}
PROMPTS = 200
STALL_S = 3.0  # then the server drops whoever reads nothing
EMPTY_S = 60.0  # for slots and queue at the end
ANSWER_S = 600.0
TOML = """
[limits]
stall_s = {stall}

[[replica]]
name = "replica"
count = {count}
slots = {slots}
prefix_cache_mb = {cache}

[fleet]
kind = "local"
"""


@dataclass
class Soaked:
    """What was seen."""

    ways: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)  # of those that stayed
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # seconds, bytes


async def soak(
    port: int, pid: int, streams: int, seconds: float, tokens: int, sample_s: float
) -> Soaked:
    seen, start = Soaked(), time.monotonic()
    end = start + seconds

    async def client(number: int) -> None:
        chosen = random.Random(number)
        while time.monotonic() < end:
            (way,) = chosen.choices(list(WAYS), list(WAYS.values()))
            seen.ways[way] += 1
            try:
                async with asyncio.timeout(ANSWER_S):
                    why = await ask(port, way, tokens, chosen)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                why = f"{type(error).__name__}: {error}"
            if why:
                seen.lost.append(f"{way}: {why}")

    async def look() -> None:
        names = {pid: "server"} | {w: f"worker-{n}" for n, w in enumerate(workers_of(pid))}
        while time.monotonic() < end:
            for each, name in names.items():
                found = time.monotonic() - start, memory(each)
                seen.memory.setdefault(name, []).append(found)
            await asyncio.sleep(sample_s)

    await asyncio.gather(look(), *(client(number) for number in range(streams)))
    return seen


async def ask(port: int, way: str, tokens: int, chosen: random.Random) -> str:
    """One request, and what is done with its answer. Why that is not whole, of who stays."""
    count = 3 if way == "several" else 1
    most = tokens * 20 if way == "stuck" else chosen.randint(tokens // 2, tokens)
    begun = random.Random(chosen.randrange(PROMPTS))
    prompt = [begun.randint(100, 200) for _ in range(begun.randint(4, 64))]
    rules = {"max_tokens": most, "n": count, "ignore_eos": True, "logprobs": 8}
    body = json.dumps({"token_ids": prompt, "stream": True, "sampling_params": rules}).encode()
    head = (
        f"POST /inference/v1/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}"
        f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        if way == "at once":
            await asyncio.sleep(chosen.choice([0.0, 0.01, 0.2]))
            return ""
        if way == "stuck":
            await asyncio.sleep(3 * STALL_S)
            return ""
        leaves = way == "leaves" or (way == "several" and chosen.random() < 0.5)
        stop = chosen.randint(1, most // 2) if leaves else None
        found = await read(reader, stop, 0.05 if way == "slow" else 0.0)
    finally:
        writer.transport.abort()  # at once, as a client that is killed
    return "" if leaves else whole(found, count * most)


def whole(found: tuple[int, bool, str], tokens: int) -> str:
    """Why an answer is not."""
    seen, done, error = found
    if error or not done or seen != tokens:
        return error or f"{seen} of {tokens} tokens, done {done}"
    return ""


async def read(
    reader: asyncio.StreamReader, stop: int | None, pause_s: float
) -> tuple[int, bool, str]:
    """Tokens of the answer until `stop` events were read, whether it came to its end, an error."""
    status = await reader.readline()
    if b" 200 " not in status:
        return 0, False, (status + await reader.read(2000)).decode(errors="replace")
    seen = events = 0
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            return seen, True, ""
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return seen, False, str(event["error"])
        seen += sum(len(choice["token_ids"]) for choice in event["choices"])
        events += 1
        if events == stop:
            break
        if pause_s:
            await asyncio.sleep(pause_s)
    return seen, False, ""


def growth(samples: list[tuple[float, int]]) -> float:
    """Over the last half: of the mean there."""
    last = samples[len(samples) // 2 :]
    times, sizes = [each[0] for each in last], [each[1] for each in last]
    slope = linear_regression(times, sizes).slope
    return slope * (times[-1] - times[0]) / mean(sizes)


def emptied(port: int) -> dict[str, Any]:
    """What runs and waits, once that is nothing, or the time for it is over."""
    until = time.monotonic() + EMPTY_S
    while True:
        found = state(port)
        left = {
            "waiting": found["waiting"],
            "running": sum(each["running"] for each in found["replicas"]),
            "outstanding_tokens": sum(each["outstanding_tokens"] for each in found["replicas"]),
        }
        if not any(left.values()) or time.monotonic() > until:
            restarts = sum(each["restarts"] for each in found["replicas"])
            return left | {"restarts": restarts}
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--cache", type=int, default=512, help="MB, of every replica's prefixes")
    parser.add_argument("--sample", type=float, default=5.0, help="seconds")
    parser.add_argument("--log", type=Path, default=Path("runs/bench/serve-soak.log"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    toml, port = given.log.with_suffix(".toml"), free_port()
    slots = max(1, given.streams // 2 // given.replicas)
    settings = {"stall": STALL_S, "count": given.replicas, "slots": slots, "cache": given.cache}
    toml.write_text(TOML.format(**settings))
    with serving(given.model, toml, port, given.log) as process:
        wait_for_all(port, given.replicas)
        seconds = given.minutes * 60
        seen = asyncio.run(
            soak(port, process.pid, given.streams, seconds, given.tokens, given.sample)
        )
        left = emptied(port)
    result = {
        "ways": dict(seen.ways),
        "lost": len(seen.lost),
        "why": Counter(seen.lost).most_common(5),
        "left": left,
        "growth": {name: growth(samples) for name, samples in seen.memory.items()},
        "memory_mb": {
            name: [round(size / 2**20, 1) for _, size in samples]
            for name, samples in seen.memory.items()
        },
    }
    print(json.dumps(result | {"memory_mb": None}, indent=2))
    if given.json:
        tree = {"environment": environment()} | result
        given.json.write_text(json.dumps(tree, indent=2))


if __name__ == "__main__":
    main()
