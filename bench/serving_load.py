"""A client that keeps so many streams of chat completions open, and what they saw.

    load(url, …, streams, requests) ──aiohttp──> /v1/chat/completions, stream ──> Seen

Every stream asks again as soon as its answer has ended. All that is counted are tokens by the
server's own `usage`, and when text arrived.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_ANSWER_S = 900.0
_LINE_BYTES = 1 << 20


@dataclass
class Seen:
    """Of one load: seconds until the first text, between texts, and of it all."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {
            "tokens_per_s": self.tokens / self.seconds,
            "first_p50_s": percentile(self.first, 50),
            "first_p99_s": percentile(self.first, 99),
            "between_p50_s": percentile(self.between, 50),
            "between_p99_s": percentile(self.between, 99),
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "failures": len(self.failures),
        }


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile; infinite where nothing came."""
    if not values:
        return float("inf")
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share / 100))]


def load(url: str, key: str, streams: int, bodies: list[dict[str, Any]]) -> Seen:
    """Send every body once, `streams` at a time."""
    return asyncio.run(_load(url, key, streams, bodies))


async def _load(url: str, key: str, streams: int, bodies: list[dict[str, Any]]) -> Seen:
    seen, left = Seen(), list(reversed(bodies))
    headers = {"Authorization": f"Bearer {key}"}
    connections = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_ANSWER_S)
    async with aiohttp.ClientSession(
        connector=connections, timeout=timeout, headers=headers, read_bufsize=_LINE_BYTES
    ) as session:

        async def stream() -> None:
            while left:
                await _ask(session, f"{url}/v1/chat/completions", left.pop(), seen)

        begun = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(streams)))
        seen.seconds = time.perf_counter() - begun
    return seen


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], seen: Seen) -> None:
    begun = last = time.perf_counter()
    done = False
    async with session.post(url, json=body) as answer:
        if answer.status != 200:
            seen.failures.append(f"{answer.status}: {(await answer.text())[:300]}")
            return
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                seen.failures.append(str(event["error"])[:300])
                return
            now = time.perf_counter()
            if any(choice["delta"].get("content") for choice in event["choices"]):
                if last == begun:
                    seen.first.append(now - begun)
                else:
                    seen.between.append(now - last)
                last = now
            if usage := event.get("usage"):
                seen.tokens += usage["completion_tokens"]
                seen.prompt_tokens += usage["prompt_tokens"]
    if not done:
        seen.failures.append("the stream ended without [DONE]")
