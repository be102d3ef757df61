"""What vLLM tells of how it drew, in our words: kept sets (0.28 and later) and routes.

    options.return_sampling_mask          ─> answer.sampling_mask, of each token that a step drew
    options.enable_return_routed_experts  ─> answer.routed_experts, at a request's end: of every
                                             token that was read, those of all layers

Both are arguments of the engine, and what refuses a setting is vLLM itself: the mask needs its
second model runner and routes a capture that no CPU has. Read in the source of 0.32, not run.

With the mask on, vLLM wants a temperature and a top-k of every request. So one that says none
draws from the likeliest MOST_KEPT, and a greedy one by top-k 1, whose logprob is then 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from interlock.engine.base import Request, check_routed
from interlock.engine.sequence import LiveSequence, TokenReplay
from interlock.errors import ConfigError, TrainingError
from interlock.models.architecture import Architecture
from interlock.models.routes import packed, route_shape
from interlock.records.replay import MOST_KEPT, kept_ids
from interlock.records.rl import Sampling

_MASK, _ROUTES = "return_sampling_mask", "enable_return_routed_experts"


class Replays:
    """What an engine that was started with `options` tells, of a model of `arch`."""

    def __init__(self, options: Mapping[str, Any], arch: Architecture) -> None:
        self.masks, self._routes = bool(options.get(_MASK)), bool(options.get(_ROUTES))
        self._shape = route_shape(arch)
        self._layers = sorted(arch.routing.layers) if arch.routing else []

    def check(self, request: Request) -> None:
        """Raise ConfigError on a request that is to tell what this engine does not."""
        check_routed(request, self._shape)
        routed = request.replay.routes is not None
        lacking = _MASK if request.most_kept and not self.masks else None
        lacking = _ROUTES if routed and not self._routes else lacking
        if lacking is not None:
            what = "kept sets" if lacking == _MASK else "routes"
            raise ConfigError(
                f"problem {request.problem_id!r} asks for {what}, which vLLM tells where it is "
                f"started so; set generator.options.{lacking} = true (not on CPUs), or leave them "
                "out of the stage's replay"
            )
        if routed and request.sampling.stop:
            raise ConfigError(
                f"problem {request.problem_id!r} asks for routes and has sampling.stop, which ends "
                "an answer behind vLLM's back, before it tells them; remove one of the two"
            )

    def drawing(self, sampling: Sampling) -> dict[str, Any]:
        """temperature and top_k of a request that draws."""
        if not self.masks:
            return {"temperature": sampling.temperature, "top_k": sampling.top_k}
        if sampling.temperature == 0:
            return {"temperature": 1.0, "top_k": 1}
        return {
            "temperature": sampling.temperature,
            "top_k": min(sampling.top_k or MOST_KEPT, MOST_KEPT),
        }

    def of_tokens(self, answer: Any, sequence: LiveSequence, finished: bool) -> list[TokenReplay]:
        """Of the tokens that a step drew; with the last of them, what the others lacked."""
        count = len(answer.token_ids)
        sets, routes = [b""] * count, [b""] * count
        if sequence.request.most_kept:
            sets = _sets(answer.sampling_mask, count, sequence.request.sampling.most_told)
        if sequence.request.replay.routes is not None and finished:
            rows = self._rows(answer.routed_experts, sequence, count)
            sequence.route(rows[: len(rows) - count])
            routes = rows[len(rows) - count :]
        return [TokenReplay(*each) for each in zip(sets, routes, strict=True)]

    def _rows(self, experts: Any, sequence: LiveSequence, count: int) -> list[bytes]:
        """Of every token of the text but the last; what was given or drawn under older weights
        was read again, by the newest."""
        shape = self._shape
        read = len(sequence.request.prompt_tokens) + len(sequence.tokens) + count - 1
        if experts is None or shape is None or len(experts) < read:
            known = 0 if experts is None else len(experts)
            raise TrainingError(f"vLLM told routes of {known} of {read} tokens that it had read")
        data, width = packed(experts[:read, self._layers], shape), shape.token_bytes
        return [data[first : first + width] for first in range(0, len(data), width)]


def _sets(mask: Any, count: int, most: int) -> list[bytes]:
    found: Sequence[Sequence[int]] = [] if mask is None else mask.token_ids
    if len(found) != count or any(not 0 < len(each) <= most for each in found):
        sizes = [len(each) for each in found][:3]
        raise TrainingError(
            f"vLLM told kept sets of {sizes} tokens for {count} tokens, where 1 to {most} each "
            "could be"
        )
    return [kept_ids(sorted(each)) for each in found]
