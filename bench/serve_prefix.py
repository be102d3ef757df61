"""First token behind a system turn that was asked before, through `interlock serve`.

    python bench/serve_prefix.py [--turn 2000] [--rounds 7] [--dtype auto] [--json result.json]

Two servers, with a prefix cache and without, are asked in turns; each is idle meanwhile. Every
question behind the system turn is new. The time is from the request's beginning to the first text
of its stream, its connection included. prefix.py measures the same below HTTP.
"""

import argparse
import http.client
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from environment import environment
from figures import summary
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from serving_process import KEY, free_port, serving, wait_for_all
from workload import MODEL

CACHE_MB = {"known": 512, "computed": 0}
TOML = """
[[replica]]
dtype = "{dtype}"
prefix_cache_mb = {cache}
"""
RULE = "Rule {n}: whoever asks for item {n} of the ledger is told its name and its place. "


def system_turn(tokenizer: Tokenizer, tokens: int) -> str:
    """So many tokens, or a few less."""
    text, number = "", 0
    while len(tokenizer.encode(more := text + RULE.format(n=number))) <= tokens:
        text, number = more, number + 1
    return text


def first_token(port: int, turn: str, question: str) -> dict[str, float]:
    """Seconds to the first text; tokens of the prompt, and those from the cache."""
    talk = [{"role": "system", "content": turn}, {"role": "user", "content": question}]
    body = {"model": MODEL, "messages": talk, "stream": True, "max_tokens": 16, "temperature": 0}
    body |= {"stream_options": {"include_usage": True}}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data, begun, first = json.dumps(body), time.perf_counter(), 0.0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", data, headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    usage: dict[str, Any] = {}
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        usage = event.get("usage") or usage
        if not first and any(each["delta"].get("content") for each in event["choices"]):
            first = time.perf_counter() - begun
    connection.close()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {"seconds": first, "prompt": usage["prompt_tokens"], "cached": cached}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turn", type=int, default=2000, help="tokens of the system turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--logs", type=Path, default=Path("runs/bench/serve-prefix"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.logs.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.load(find_model(MODEL, print))
    turn = system_turn(tokenizer, given.turn)
    ports = {name: free_port() for name in CACHE_MB}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in CACHE_MB}
    with ExitStack() as up:
        for name, port in ports.items():
            toml = given.logs / f"{name}.toml"
            toml.write_text(TOML.format(dtype=given.dtype, cache=CACHE_MB[name]))
            up.enter_context(serving(MODEL, toml, port, given.logs / f"{name}.log"))
            wait_for_all(port, 1)
        for number in range(given.rounds + 1):
            for name, port in sorted(ports.items(), reverse=number % 2 == 0):
                found = first_token(port, turn, f"Where is item {number}?")
                if number:  # the first fills the cache
                    seen[name].append(found)
    result = {
        name: summary([each["seconds"] for each in rounds])
        | {key: rounds[-1][key] for key in ("prompt", "cached")}
        for name, rounds in seen.items()
    }
    for name, each in result.items():
        print(
            f"first token, {name}: median {each['median']:.3f} s, {each['min']:.3f} to "
            f"{each['max']:.3f}; {each['cached']} of {each['prompt']} tokens from the cache"
        )
    if given.json:
        given.json.write_text(json.dumps({"environment": environment(), "result": result}))


if __name__ == "__main__":
    main()
