"""Computes prompts: what every way has to do, and the plain one.

    add ──> PromptsToCompute ──step: forward passes──> Filled: keys and values, hidden states
                WholePrompts   all of it in the next step, what is of about one length together
                PromptChunks   in parts, and from what is known (chunks.py)

Legend: Y layers, A prompts, K key/value heads, P longest prompt, D head size, E value head size,
        N tokens of the stream, d hidden size
"""

import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from interlock.engine.portable.kv_cache import Prefill
from interlock.engine.portable.passes import Forward, last_routes
from interlock.engine.portable.prefix_cache import Span
from interlock.engine.portable.prompts import Prompt, length_class
from interlock.models.decoder import Decoder

PREFILL_TOKENS = 2048  # of one forward pass, padding included; a longer prompt goes alone


class Filled(NamedTuple):
    """Prompts of one length class that were computed, last hidden states in place."""

    prompts: Sequence[Prompt]
    k: torch.Tensor  # [Y, A, K, P, D], padded on the right
    v: torch.Tensor  # [Y, A, K, P, E]


class PromptsToCompute(ABC):
    """Prompts that were given slots and have no keys and values yet."""

    @property
    @abstractmethod
    def sequences(self) -> int:
        """Of all these prompts."""

    @abstractmethod
    def add(self, prompt: Prompt) -> None: ...

    @abstractmethod
    def step(self, decoder: Decoder, forward: Forward) -> Iterator[Filled]:
        """Compute as much as belongs into one step, and hand over what is whole. `forward` is the
        decoder's, or what takes others along (passes.py).
        """

    @abstractmethod
    def forget(self, prompt: Prompt) -> None:
        """It is not wanted any more. Nothing happens if it is not here."""

    @abstractmethod
    def renew(self) -> None:
        """Keys and values are worth nothing any more: the weights are others."""

    @abstractmethod
    def clear(self) -> None:
        """Forget everything."""

    @abstractmethod
    def keep(self, tokens: Sequence[int], owner: str, span: Span, routes: Sequence[bytes]) -> None:
        """A text of `owner` is finished, and its keys and values are about to go. `routes`: of all
        its tokens; or none."""


class WholePrompts(PromptsToCompute):
    """All that were added are computed in the next step, those of a length class together."""

    def __init__(self, fused_above: int) -> None:
        self._fused_above = fused_above
        self._fresh: list[Prompt] = []

    @property
    def sequences(self) -> int:
        return sum(prompt.unfinished for prompt in self._fresh)

    def add(self, prompt: Prompt) -> None:
        self._fresh.append(prompt)

    def step(self, decoder: Decoder, forward: Forward) -> Iterator[Filled]:
        fresh, self._fresh = self._fresh, []
        classes: dict[int, list[Prompt]] = defaultdict(list)
        for prompt in fresh:
            classes[length_class(prompt.length)].append(prompt)
        for longest, members in classes.items():
            together = max(1, PREFILL_TOKENS // longest)
            for start in range(0, len(members), together):
                yield self._compute(decoder, forward, members[start : start + together])

    def _compute(self, decoder: Decoder, forward: Forward, fresh: Sequence[Prompt]) -> Filled:
        """One forward pass over prompts of similar length."""
        texts = [prompt.text for prompt in fresh]
        common = _common(texts)
        rests = [tokens[common:] for tokens in texts]
        place = decoder.embed.device
        attend = Prefill(common, [len(rest) for rest in rests], place, self._fused_above)
        stream = torch.tensor([*texts[0][:common], *itertools.chain(*rests)], device=place)
        hidden = forward(stream, attend.positions, attend)  # [N, d]
        for prompt, last in zip(fresh, hidden[attend.last], strict=True):
            prompt.hidden = last
        if any(prompt.routed for prompt in fresh):
            told = last_routes(decoder, len(hidden))
            ends = itertools.accumulate(map(len, rests), initial=common)
            for prompt, (first, end) in zip(fresh, itertools.pairwise(ends), strict=True):
                prompt.routes = told[:common] + told[first:end]
        return Filled(fresh, *attend.stored())

    def forget(self, prompt: Prompt) -> None:
        self._fresh = [other for other in self._fresh if other is not prompt]

    def renew(self) -> None:
        """Nothing is kept from step to step."""

    def clear(self) -> None:
        self._fresh.clear()

    def keep(self, tokens: Sequence[int], owner: str, span: Span, routes: Sequence[bytes]) -> None:
        """Who computes anew what is not the same bits keeps nothing."""


def _common(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share; each keeps one of its own. None for a lone one."""
    if len(prompts) == 1:
        return 0
    # What the first and the last in order share is shared by all between them.
    pairs = zip(min(prompts), max(prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(shared, min(len(tokens) for tokens in prompts) - 1)
