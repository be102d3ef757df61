"""What every engine must do, in terms of the contract alone.

Used for the torch engine in its tests, and for vLLM in its own environment (vllm_child.py).

Each function drives an engine and returns what came of it, to be compared with what the same
requests give alone.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from interlock.engine.base import Engine, Progress, Request
from interlock.records.rl import Completion

Drawn = dict[tuple[str, int], list[int]]  # tokens by request and number


class Collector:
    """Steps an engine and keeps what it says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: Drawn = {}
        self.logprobs: dict[tuple[str, int], list[float]] = {}
        self.done: dict[tuple[str, int], Completion] = {}

    def step(self, times: int = 1) -> list[Progress]:
        found = []
        for _ in range(times):
            for progress in self.engine.step():
                key = progress.name, progress.number
                assert progress.tokens and key not in self.done
                self.tokens.setdefault(key, []).extend(progress.tokens)
                self.logprobs.setdefault(key, []).extend(progress.logprobs)
                if progress.completion is not None:
                    self.done[key] = progress.completion
                found.append(progress)
        return found

    def finish(self) -> None:
        while self.engine.pending:
            self.step()

    def check(self) -> None:
        """What was told on the way is what the completions hold."""
        for key, completion in self.done.items():
            assert completion.tokens == self.tokens[key]
            assert completion.logprobs == self.logprobs[key]


def joined(engine: Engine, first: Sequence[Request], late: Request, out: Request) -> Collector:
    """`late` joins what runs, `out` is aborted in the middle."""
    run = Collector(engine)
    for request in (*first, out):
        engine.add(request.problem_id, request)
    run.step(3)
    engine.add(late.problem_id, late)
    run.step(2)
    before = engine.pending
    assert engine.abort(out.problem_id) and not engine.abort(out.problem_id)
    assert engine.pending < before
    told = len(run.tokens.get((out.problem_id, 0), []))
    run.finish()
    assert len(run.tokens.get((out.problem_id, 0), [])) == told, "heard of it once more"
    run.check()
    return run


def reloaded(
    engine: Engine, requests: Sequence[Request], weights: Mapping[str, Tensor], after: int
) -> Collector:
    """Other weights, version 9, are loaded after so many steps."""
    run = Collector(engine)
    for request in requests:
        engine.add(request.problem_id, request)
    run.step(after)
    engine.load(weights, 9)
    run.finish()
    run.check()
    return run


def alone(engine: Engine, request: Request) -> list[Completion]:
    return engine.generate([request])[0]
