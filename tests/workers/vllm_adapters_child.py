"""What test_vllm_adapters.py has an environment with vLLM do: one real worker, version by version.

vllm_adapters_child.py WORK    reads WORK/asked.json, Opens and Loads; writes WORK/told.json

Each worker takes its Loads in turn; behind each proof its engine draws and scores, and at the end
one adapter is loaded under what runs.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from real_workers import RealWorker

from interlock.engine.base import Engine, Request
from interlock.records.rl import Completion, Sampling, WeightVersion
from interlock.records.serving import Rules
from interlock.workers.protocol import Failed, Load, Loaded, Open

PROMPTS = [[5, 17, 200, 33], [40, 41, 42, 43, 44, 45, 46], [7]]
TEXT = list(range(60, 100))
TOKENS, BEFORE = 12, 5


def requests() -> list[Request]:
    sampling, rules = Sampling(max_tokens=TOKENS), Rules(ignore_eos=True)
    return [Request(f"p{n}", p, 2, sampling, 3, rules=rules) for n, p in enumerate(PROMPTS)]


def described(answers: list[list[Completion]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "segments": [[s.weight_version, s.tokens, s.logprobs] for s in answer.segments],
        }
        for prompt, group in zip(PROMPTS, answers, strict=True)
        for answer in group
    ]


def loaded(worker: RealWorker, asked: Load) -> dict[str, Any]:
    """The proof of a version, how long that took, and what the engine then draws and scores."""
    engine = worker.worker._opened.engine
    worker.ask(asked)
    worker.turn()
    began = time.perf_counter()
    worker.fetched()
    worker.finish()
    spent = time.perf_counter() - began
    (told,) = [each for each in worker.said[-4:] if isinstance(each, Loaded | Failed)][-1:]
    found = {"told": msgspec.to_builtins(told), "seconds": spent}
    if isinstance(told, Failed):
        return found
    drawn = engine.generate(requests())
    return found | {"drawn": described(drawn), "scored": engine.score(TEXT).logprobs}


def across(engine: Engine, worker: RealWorker, asked: Load) -> list[dict[str, Any]]:
    """What runs when an adapter is loaded: all of it, in the order of the requests."""
    found: dict[tuple[str, int], Completion] = {}

    def step() -> None:
        for each in engine.step():
            if each.completion is not None:
                found[each.name, each.number] = each.completion

    for request in requests():
        engine.add(request.problem_id, request)
    for _ in range(BEFORE):
        step()
    loader = worker.worker._loader
    assert loader is not None
    tensors = loader._replica.fetch(WeightVersion(asked.number, asked.digest))
    adapter = loader._replica.adapter
    assert adapter is not None
    engine.load_adapter(tensors, adapter.form, asked.number)
    while engine.pending:
        step()
    return described([[found[r.problem_id, n] for n in r.numbers] for r in requests()])


def main(work: Path) -> None:
    asked = json.loads((work / "asked.json").read_text())
    worker = RealWorker()
    began = time.perf_counter()
    worker.ask(msgspec.convert(asked["open"], Open))
    worker.turn()
    engine = worker.worker._opened.engine
    told: dict[str, Any] = {"start_s": time.perf_counter() - began, "engine": engine.description}
    told["loads"] = [loaded(worker, msgspec.convert(each, Load)) for each in asked["loads"]]
    if asked["across"] is not None:
        told["across"] = across(engine, worker, msgspec.convert(asked["across"], Load))
    (work / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
