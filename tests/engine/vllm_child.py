"""What test_vllm.py has an environment with vLLM do: one engine, and everything asked of it.

vllm_child.py MODEL WORK DTYPE    reads WORK/tensors-*.safetensors, writes WORK/result.json
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engine_contract import Collector, alone, joined, reloaded
from safetensors.torch import load_file, save_file

from interlock.config.schema import GeneratorSettings
from interlock.engine.base import Request
from interlock.engine.vllm import parameters
from interlock.engine.vllm.engine import VllmEngine
from interlock.errors import InterlockError
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Sampling, Segment
from interlock.records.serving import Rules

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
SLOTS = 8
LEFT_OUT = "model.norm.weight"


def refusal(call: Callable[[], Any]) -> str:
    """What an error says that was raised on purpose; "" when there was none."""
    try:
        call()
    except InterlockError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def described(answer: Completion) -> dict[str, Any]:
    names = ("tokens", "logprobs", "finish", "text", "weight_version")
    segments = [(len(each.tokens), each.weight_version) for each in answer.segments]
    return {name: getattr(answer, name) for name in names} | {"segments": segments}


def collected(run: Collector) -> dict[str, Any]:
    return {f"{name}/{number}": described(each) for (name, number), each in run.done.items()}


def each_alone(engine: VllmEngine, requests: Iterable[Request]) -> dict[str, Any]:
    return {
        f"{request.problem_id}/{number}": described(answer)
        for request in requests
        for number, answer in enumerate(alone(engine, request))
    }


class Child:
    """An engine with the weights of MODEL as version 0, and what is asked of it again and again."""

    def __init__(self, model: Path, work: Path, dtype: str, options: Mapping[str, Any]) -> None:
        self.model, self.work = model, work
        self.tokenizer = Tokenizer.load(model)
        settings = GeneratorSettings(engine="vllm", dtype=dtype, slots=SLOTS, options=dict(options))
        self.engine = VllmEngine(model, settings, self.tokenizer)
        self.prompts = [self.tokenizer.chat(turns) for turns in CONVERSATIONS]
        self.requests = [
            Request(f"p{index}-{rule}", prompt, 2, sampling, 5)
            for index, prompt in enumerate(self.prompts)
            for rule, sampling in enumerate(RULES)
        ]

    def answers(self, of: list[Request]) -> Any:
        return [[described(answer) for answer in group] for group in self.engine.generate(of)]

    def keep_held(self, version: int) -> None:
        shown = self.engine.held()
        assert shown is not None
        save_file(dict(shown), self.work / f"held-{version}.safetensors")

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.work / f"{name}.safetensors")

    def load(self, name: str, version: int) -> None:
        self.engine.load(self.tensors(f"tensors-{name}"), version)

    def asked(self, name: str, prompt: int, group: int, rule: Sampling) -> Request:
        return Request(name, self.prompts[prompt], group, rule, seed=len(name))


def versions(child: Child) -> dict[str, Any]:
    """What it answers under its own weights and under version 7, and what it refuses to load."""
    engine, requests = child.engine, child.requests
    found: dict[str, Any] = {"own": child.answers(requests)}
    child.keep_held(0)
    began = time.perf_counter()
    child.load("7", 7)
    loaded = time.perf_counter()
    child.keep_held(7)
    found |= {"load_s": loaded - began, "held_s": time.perf_counter() - loaded}
    found["answers"] = child.answers(requests)
    found["scores"] = [
        [engine.score(request.prompt_tokens + answer["tokens"]).logprobs for answer in group]
        for request, group in zip(requests, found["answers"], strict=True)
    ]
    found["alone"] = child.answers(requests[4:5])
    found["refused"] = {
        name: refusal(lambda name=name: child.load(name, 8))
        for name in ("missing", "unknown", "shape")
    }
    found["version_after_refusals"] = engine.version
    found["after_refusals"] = child.answers(requests)
    return found


def ruled(child: Child) -> dict[str, Any]:
    """Bias, min-p and alternatives, and a greedy answer that goes on behind its first tokens."""
    prompt, engine, tops = child.prompts[0], child.engine, list[Any]()
    rule = Sampling(temperature=0.8, top_p=0.6, min_p=0.1, max_tokens=12)
    rules = Rules(logit_bias={prompt[-3]: 3.5, prompt[-2]: -4.0}, top_logprobs=5)
    engine.add("ruled", Request("ruled", prompt, 1, rule, 5, rules=rules))
    while engine.pending:
        for progress in engine.step():
            tops += progress.top
            done = progress.completion
    assert done is not None
    (whole,) = alone(engine, Request("drawn", prompt, 1, RULES[2], 5))
    begun = [Segment(whole.tokens[:5], whole.logprobs[:5], engine.version)]
    (further,) = alone(engine, Request("drawn", prompt, 1, RULES[2], 5, drawn=begun))
    told = described(done) | {"top": tops, "bias": list(rules.logit_bias.items())}
    return {"ruled": told, "whole": described(whole), "further": described(further)}


def endings(child: Child, greedy: Mapping[str, Any]) -> dict[str, Any]:
    """What ends an answer, who is told first, and what is refused; `greedy` answers request 2."""
    engine, tokenizer, requests = child.engine, child.tokenizer, child.requests
    stop, last = greedy["text"][7:13], greedy["tokens"][6]
    rule = Sampling(temperature=0.0, max_tokens=12, stop=["no such text", stop])
    found: dict[str, Any] = {"stop": stop, "eos": last}
    found["stopped"] = child.answers([Request("s", requests[2].prompt_tokens, 1, rule, 0)])[0][0]
    usual, tokenizer.eos_ids = tokenizer.eos_ids, frozenset({last})
    found["ended"] = child.answers(requests[2:3])[0][0]
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
    found["crowd"], found["one"] = child.answers(crowd[:1])[0], child.answers(crowd[1:])[0]

    def fail(index: int, _: Any) -> None:
        raise InterlockError(f"stop at {index}")

    found["interrupted"] = refusal(lambda: engine.generate(requests, fail))
    found["after_interruption"] = child.answers(requests[4:5])
    context, cold = engine.limits.context, Sampling(temperature=0.001)
    found["unservable"] = [
        refusal(lambda: engine.generate([Request("x", [1] * context, 1, RULES[0], 0)])),
        refusal(lambda: engine.generate([Request("x", [1], 1, cold, 0)])),
        refusal(lambda: engine.score([1] * context)),
        refusal(lambda: opened_with(child, {"max_len": 1})),
        refusal(lambda: opened_with(child, {"dtype": "half"})),
    ]
    return found


def opened_with(child: Child, options: dict[str, Any]) -> None:
    VllmEngine(child.model, GeneratorSettings(options=options), child.tokenizer)


def streams(child: Child) -> dict[str, Any]:
    """Requests that join what runs and leave it, with more sequences than slots."""
    first = [
        child.asked("a", 0, 2, Sampling(max_tokens=16)),
        child.asked("bb", 1, 3, Sampling(temperature=0.7, top_p=0.9, max_tokens=20)),
        child.asked("ccc", 2, 1, Sampling(temperature=0.0, max_tokens=16)),
    ]
    out = child.asked("out", 1, 3, Sampling(max_tokens=24))  # one of them waits
    late = child.asked("late", 2, 3, Sampling(max_tokens=18))
    found: dict[str, Any] = {"joined": collected(joined(child.engine, first, late, out))}
    again = child.asked("out", 0, 2, Sampling(max_tokens=6))  # another request of that name
    found["joined_alone"] = each_alone(child.engine, [*first, late])
    found["name_again"] = each_alone(child.engine, [again])
    return found


def across_loads(child: Child) -> dict[str, Any]:
    """Version 9 is loaded under sequences of version 0, twice; and what each gives alone."""
    rules = [Sampling(max_tokens=14), RULES[1], Sampling(temperature=0.0, max_tokens=14)]
    groups = (3, 3, 4)  # so that two of the last wait for a slot
    requests = [child.asked(f"r{i}", i, groups[i], rule) for i, rule in enumerate(rules)]
    own, new = child.tensors("held-0"), child.tensors("tensors-7")
    found: dict[str, Any] = {"reload_prompts": {r.problem_id: r.prompt_tokens for r in requests}}
    child.engine.load(own, 0)
    found["old_alone"] = each_alone(child.engine, requests)
    found["reloaded"] = collected(reloaded(child.engine, requests, new, after=5))
    found["new_alone"] = each_alone(child.engine, requests)
    child.engine.load(own, 0)
    found["reloaded_again"] = collected(reloaded(child.engine, requests, new, after=5))
    return found


def scored_meanwhile(child: Child) -> dict[str, Any]:
    """A text is scored while every slot is taken and more wait; one request then leaves."""
    engine, run = child.engine, Collector(child.engine)
    requests = [child.asked("a", 0, 4, Sampling(max_tokens=7)), child.asked("bb", 1, 6, RULES[0])]
    for request in (*requests, child.asked("out", 2, 2, RULES[0])):
        engine.add(request.problem_id, request)
    run.step(6)
    text = child.prompts[2]
    scores = engine.score(text, top_k=3)  # the seventh token of what runs; all of a end
    found: dict[str, Any] = {"text": text, "given": scores.logprobs, "top": scores.top}
    found["pending"] = [engine.pending, engine.abort("out"), engine.pending]
    found["told"] = len(run.step())
    run.finish()
    run.check()
    found["wide"] = [len(place) for place in engine.score(text, top_k=200).top]
    found["scored_while"] = collected(run)
    found["scored_alone"] = each_alone(engine, requests)
    return found


def broken(child: Child) -> dict[str, Any]:
    """Weights that are not finite, and weights that were torn, each followed by good ones."""
    engine, requests = child.engine, child.requests
    good = child.tensors("tensors-7")
    found: dict[str, Any] = {"before": child.answers(requests)}
    engine.add("x", requests[0])
    engine.step()
    engine.load({name: tensor * torch.nan for name, tensor in good.items()}, 10)
    found["not_finite"] = [refusal(engine.step), engine.pending, engine.step()]
    engine.load(good, 9)
    found["after_not_finite"] = child.answers(requests)

    def torn(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        save_file({name: each for name, each in tensors.items() if name != LEFT_OUT}, path)

    engine.add("x", requests[0])
    engine.step()
    with patch.object(parameters, "write", torn):
        found["torn"] = [refusal(lambda: engine.load(good, 11)), engine.version, engine.pending]
    found["torn"] += [
        refusal(lambda: engine.add("x", requests[0])),
        refusal(lambda: engine.score([1, 2])),
    ]
    engine.load(good, 9)
    found["after_torn"] = child.answers(requests)
    return found


def main(model: Path, work: Path, dtype: str, **options: Any) -> None:
    began = time.perf_counter()
    child = Child(model, work, dtype, options)
    engine = child.engine
    found: dict[str, Any] = {"start_s": time.perf_counter() - began}
    found["says"] = [engine.description, engine.device, engine.dtype, *engine.limits]
    found["prompts"] = [request.prompt_tokens for request in child.requests]
    found |= versions(child)
    found |= ruled(child)
    found |= endings(child, found["answers"][2][0])
    found |= streams(child)
    found |= across_loads(child)
    found |= scored_meanwhile(child)
    found |= broken(child)
    engine.load(child.tensors("held-0"), 9)
    found["own_again"] = child.answers(child.requests)
    (work / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    model, work, dtype, *options = sys.argv[1:]
    main(Path(model), Path(work), dtype, **json.loads(options[0] if options else "{}"))
