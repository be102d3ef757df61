"""What test_vllm.py has an environment with vLLM do: one engine, and everything asked of it.

vllm_child.py MODEL WORK DTYPE    reads WORK/tensors-7.safetensors, writes WORK/result.json
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from interlock.config.schema import GeneratorSettings
from interlock.engine.base import Request
from interlock.engine.vllm.engine import VllmEngine
from interlock.errors import InterlockError
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Sampling

CONVERSATIONS = [
    [{"role": "user", "content": "Name three colours of the rainbow."}],
    [{"role": "user", "content": "What is 12 + 7?"}],
    [{"role": "user", "content": "Write one sentence about a locomotive."}],
]
RULES = [
    Sampling(temperature=1.0, max_tokens=12),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, max_tokens=12),
    Sampling(temperature=0.0, max_tokens=12),
]


def refusal(call: Callable[[], Any]) -> str:
    """What an error says that was raised on purpose; "" when there was none."""
    try:
        call()
    except InterlockError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def described(answer: Completion) -> dict[str, Any]:
    names = ("tokens", "logprobs", "finish", "text", "weight_version")
    return {name: getattr(answer, name) for name in names}


def main(model: Path, work: Path, dtype: str, **options: Any) -> None:
    tokenizer = Tokenizer.load(model)
    settings = GeneratorSettings(engine="vllm", dtype=dtype, slots=8, options=options)
    began = time.perf_counter()
    engine = VllmEngine(model, settings, tokenizer)
    found: dict[str, Any] = {"start_s": time.perf_counter() - began}
    found["says"] = [engine.description, engine.device, engine.dtype, *engine.limits[:2]]

    requests = [
        Request(f"p{index}-{rule}", tokenizer.chat(turns), 2, sampling, 5)
        for index, turns in enumerate(CONVERSATIONS)
        for rule, sampling in enumerate(RULES)
    ]
    found["prompts"] = [request.prompt_tokens for request in requests]

    def answers(of: list[Request]) -> Any:
        return [[described(answer) for answer in group] for group in engine.generate(of)]

    def held(version: int) -> None:
        shown = engine.held()
        assert shown is not None
        save_file(dict(shown), work / f"held-{version}.safetensors")

    def load(name: str, version: int) -> None:
        engine.load(load_file(work / f"tensors-{name}.safetensors"), version)

    found["own"] = answers(requests)
    held(0)
    began = time.perf_counter()
    load("7", 7)
    found["load_s"] = time.perf_counter() - began
    began = time.perf_counter()
    held(7)
    found["held_s"] = time.perf_counter() - began
    found["answers"] = answers(requests)
    found["scores"] = [
        [engine.score(request.prompt_tokens + answer["tokens"]).logprobs for answer in group]
        for request, group in zip(requests, found["answers"], strict=True)
    ]
    found["alone"] = answers(requests[4:5])

    found["refused"] = {
        name: refusal(lambda name=name: load(name, 8)) for name in ("missing", "unknown", "shape")
    }
    found["version_after_refusals"] = engine.version
    found["after_refusals"] = answers(requests)

    greedy = found["answers"][2][0]["text"]
    stop = greedy[7:13]
    rule = Sampling(temperature=0.0, max_tokens=12, stop=["no such text", stop])
    found["stop"] = stop
    found["stopped"] = answers([Request("s", requests[2].prompt_tokens, 1, rule, 0)])[0][0]

    last = found["answers"][2][0]["tokens"][6]
    usual, tokenizer.eos_ids = tokenizer.eos_ids, frozenset({last})
    found["eos"] = last
    found["ended"] = answers(requests[2:3])[0][0]
    tokenizer.eos_ids = usual

    order: list[int] = []
    long, short = (Sampling(max_tokens=count) for count in (20, 2))
    plain = tokenizer.encode("One two three")
    engine.generate(
        [Request("long", plain, 1, long, 1), Request("short", plain, 3, short, 1)],
        lambda index, _: order.append(index),
    )
    found["order"] = order

    # More prompt tokens at once than vLLM takes in a step of its own choosing.
    crowd = [Request("crowd", plain * 110, count, Sampling(max_tokens=2), 4) for count in (8, 1)]
    assert len(plain * 110) * 8 > 2048
    found["crowd"], found["one"] = answers(crowd[:1])[0], answers(crowd[1:])[0]

    def fail(index: int, _: Any) -> None:
        raise InterlockError(f"stop at {index}")

    found["interrupted"] = refusal(lambda: engine.generate(requests, fail))
    found["after_interruption"] = answers(requests[4:5])

    context = engine.limits.context
    cold = Sampling(temperature=0.001)
    found["unservable"] = [
        refusal(lambda: engine.generate([Request("x", [1] * context, 1, RULES[0], 0)])),
        refusal(lambda: engine.generate([Request("x", [1], 1, cold, 0)])),
        refusal(lambda: engine.score([1] * context)),
        refusal(lambda: VllmEngine(model, GeneratorSettings(options={"max_len": 1}), tokenizer)),
        refusal(lambda: VllmEngine(model, GeneratorSettings(options={"dtype": "half"}), tokenizer)),
    ]

    engine.load(load_file(work / "held-0.safetensors"), 9)
    found["own_again"] = answers(requests)
    found["loaded"] = sorted(
        name for name in ("transformers", "torch", "vllm", "rich", "plotly") if name in sys.modules
    )
    (work / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    model, work, dtype, *options = sys.argv[1:]
    main(Path(model), Path(work), dtype, **json.loads(options[0] if options else "{}"))
