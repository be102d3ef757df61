"""Four unlike replicas under load, one of them killed every few seconds: what clients see.

    python bench/serve_faults.py [--minutes 5] [--every 20] [--streams 32] [--json result.json]
        [--vllm .venv-vllm/bin/python]

    even-0, even-1   torch, float32: equal, so a greedy stream that stays on them is to be the same
                     token for token as without any kill
    narrow           torch, bfloat16
    other            vLLM, eager, float32 (without --vllm: torch, float32 by another kernel)

Streams ask /inference/v1/generate again and again, half of them greedily. Lost is a request that
did not end with its tokens; broken a stream that ended in an error. Tokens of other replicas are
scored by the model in float32 here: their k3 is to be inside of the band.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from environment import environment
from interlock import mismatch as figures
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from serve import bodies
from serving_process import KEY, drain, facts, free_port, serving, wait_for_all, workers_of
from workload import MODEL

PROMPTS = 32
TOKENS = 96
EVEN = {"even-0", "even-1"}
OTHERS = ("narrow", "other")
TIE = 1e-3  # between the logprobs of two tokens: a batch of other company may round them over

TOML = """
[limits]
deadline_s = 900

[[replica]]
name = "even"
count = 2
dtype = "float32"
kernel = "torch"
slots = 16

[[replica]]
name = "narrow"
dtype = "bfloat16"
slots = 16
{other}
[guard]
warn = 0.01
quarantine = 0.1

[fleet]
kind = "local"
failures = 1000
"""
VLLM = """
[[replica]]
name = "other"
engine = "vllm"
python = "{python}"
dtype = "float32"
slots = 16
options = {{ max_model_len = 512 }}
"""
TORCH = """
[[replica]]
name = "other"
dtype = "float32"
kernel = "onednn"
slots = 16
"""


@dataclass
class Answer:
    """One stream that came to its end, or why it did not."""

    prompt: int
    greedy: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    replicas: list[str] = field(default_factory=list)
    moved: int = 0
    error: str = ""

    @property
    def even(self) -> bool:
        return set(self.replicas) <= EVEN


async def drive(
    port: int, prompts: list[list[int]], streams: int, seconds: float, pid: int, every: float
) -> tuple[list[Answer], list[str]]:
    """`streams` at a time until the time is over; with `every`, a kill so often."""
    url = f"http://127.0.0.1:{port}/inference/v1/generate"
    answers: list[Answer] = []
    killed: list[str] = []
    until = time.monotonic() + seconds
    chosen = random.Random(0)
    headers = {"Authorization": f"Bearer {KEY}"}
    limits = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=900)
    async with aiohttp.ClientSession(
        connector=limits, headers=headers, timeout=timeout, read_bufsize=1 << 20
    ) as session:
        numbers = iter(range(10**9))

        async def stream() -> None:
            while time.monotonic() < until:
                number = next(numbers)
                place = number % len(prompts)
                answers.append(await ask(session, url, place, prompts[place], number % 2 == 0))

        async def kill() -> None:
            while every and time.monotonic() + every < until:
                await asyncio.sleep(every)
                if found := workers_of(pid):
                    victim = chosen.choice(found)
                    os.kill(victim, signal.SIGKILL)
                    killed.append(str(victim))

        await asyncio.gather(kill(), *(stream() for _ in range(streams)))
    return answers, killed


async def ask(
    session: aiohttp.ClientSession, url: str, place: int, prompt: list[int], greedy: bool
) -> Answer:
    rules = {"max_tokens": TOKENS, "temperature": 0.0 if greedy else 1.0, "seed": place}
    rules |= {"ignore_eos": True, "logprobs": 0}
    body = {"model": MODEL, "token_ids": prompt, "stream": True, "sampling_params": rules}
    found, done = Answer(place, greedy), False
    try:
        async with session.post(url, json=body) as answer:
            if answer.status != 200:
                found.error = f"{answer.status}: {(await answer.text())[:200]}"
                return found
            async for line in answer.content:
                if line.startswith(b"data: [DONE]"):
                    done = True
                elif line.startswith(b"data: "):
                    take(json.loads(line[6:]), found)
    except (aiohttp.ClientError, TimeoutError) as error:
        found.error = f"{type(error).__name__}: {error}"
    if not found.error and (not done or len(found.tokens) != TOKENS):
        found.error = f"{len(found.tokens)} of {TOKENS} tokens, done {done}"
    return found


def take(event: dict[str, Any], into: Answer) -> None:
    if "error" in event:
        into.error = str(event["error"])[:300]
        return
    for choice in event["choices"]:
        into.tokens += choice["token_ids"]
        into.logprobs += choice["logprobs"]
    if more := event.get("interlock"):
        into.replicas, into.moved = more["replicas"], more["moved"]


class Judge:
    """The model in float32 here."""

    def __init__(self, prompts: list[list[int]], model: Path) -> None:
        import torch

        from interlock.engine.portable.engine import PortableEngine
        from interlock.models.checkpoint import load_decoder

        decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        self._prompts = prompts
        self._engine = PortableEngine(decoder, Tokenizer.load(model), 1)

    def mismatch(self, answers: list[Answer]) -> dict[str, Any]:
        """k3 of what was told of their tokens."""
        theirs: list[float] = []
        ours: list[float] = []
        for each in answers:
            prompt = self._prompts[each.prompt]
            ours += self._engine.score(prompt + each.tokens).logprobs[len(prompt) - 1 :]
            theirs += each.logprobs
        if not ours:
            return {"answers": 0}
        k3 = figures.mismatch(ours, theirs).k3
        return {"answers": len(answers), "tokens": len(ours), "k3": k3}

    def gap(self, answer: Answer, before: list[int]) -> float:
        """How far apart the two tokens are that they differ in first."""
        both = zip(answer.tokens, before, strict=True)
        place = next(place for place, (mine, other) in enumerate(both) if mine != other)
        text = self._prompts[answer.prompt] + before[:place]
        mine, other = (
            self._engine.score([*text, each[place]]).logprobs[-1]
            for each in (answer.tokens, before)
        )
        return abs(mine - other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--vllm")
    parser.add_argument("--log", type=Path, default=Path("runs/bench/serve-faults.log"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.log.parent.mkdir(parents=True, exist_ok=True)
    model = find_model(MODEL, print)
    tokenizer = Tokenizer.load(model)
    asked = [body["messages"] for body in bodies(MODEL, PROMPTS, 0)]
    prompts = [tokenizer.chat(messages) for messages in asked]
    other = VLLM.format(python=Path(given.vllm).absolute()) if given.vllm else TORCH
    toml, port = given.log.with_suffix(".toml"), free_port()
    toml.write_text(TOML.format(other=other))
    with serving(MODEL, toml, port, given.log) as process:
        wait_for_all(port, 4)
        print("four replicas are ready", flush=True)
        before = plain(asyncio.run(once(port, prompts)))
        print(f"{len(before)} greedy answers without a kill", flush=True)
        run = drive(port, prompts, given.streams, given.minutes * 60, process.pid, given.every)
        answers, killed = asyncio.run(run)
        left = [(each["name"], each["running"], each["restarts"]) for each in facts(port)]
    result = told(answers, killed, before, prompts, model) | {"replicas_after": left}
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps({"environment": environment()} | result, indent=2))


async def once(port: int, prompts: list[list[int]]) -> list[Answer]:
    """Every prompt greedily, by the even ones alone."""
    url = f"http://127.0.0.1:{port}/inference/v1/generate"
    headers = {"Authorization": f"Bearer {KEY}"}
    for name in OTHERS:
        drain(port, name, True)
    async with aiohttp.ClientSession(headers=headers, read_bufsize=1 << 20) as session:
        asked = (ask(session, url, place, each, True) for place, each in enumerate(prompts))
        found = await asyncio.gather(*asked)
    for name in OTHERS:
        drain(port, name, False)
    assert all(each.even and not each.error for each in found), found
    return found


def plain(answers: list[Answer]) -> dict[int, list[int]]:
    return {each.prompt: each.tokens for each in answers}


def told(
    answers: list[Answer],
    killed: list[str],
    before: dict[int, list[int]],
    prompts: list[list[int]],
    model: Path,
) -> dict[str, Any]:
    whole = [each for each in answers if not each.error]
    steady = [each for each in whole if each.even and each.greedy and each.prompt in before]
    same = [each for each in steady if each.tokens == before[each.prompt]]
    mixed = [each for each in whole if not each.even]
    judge = Judge(prompts, model)
    gaps = [judge.gap(each, before[each.prompt]) for each in steady if each not in same]
    return {
        "requests": len(answers),
        "kills": len(killed),
        "lost_or_broken": len(answers) - len(whole),
        "errors": Counter(each.error for each in answers if each.error).most_common(5),
        "moved": sum(each.moved > 0 for each in whole),
        "moved_on_the_even_pair": sum(each.moved > 0 for each in steady),
        "greedy_on_the_even_pair": len(steady),
        "of_these_the_same": len(same),
        "others_differ_first_where_two_tokens_tie": sum(gap < TIE for gap in gaps),
        "gaps": gaps,
        "others": judge.mismatch(mixed[:60]),
        "even": judge.mismatch([each for each in whole if each.even][:30]),
    }


if __name__ == "__main__":
    main()
