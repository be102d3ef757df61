"""Continuous batching: one call of `TorchEngine.generate`, from waiting requests to completions.

    waiting ──prefill: each prompt once──> starting ──a slot is free──> rows
                                                                          │
            ┌─────────────────────────────────────────────────────────────┘
            v
      hidden [B, d] ──vocabulary projection──> sample ──finished──> Completion, the slot is free
            ^                                    │
            └───────────── decode <──────────────┘

Computed are: each prompt once, and what prompts prefilled together begin with (a system turn, say)
once for all of them; one row per completion and token but the last; the vocabulary projection of
just the rows that sample. A prompt is prefilled when the first of its completions gets a slot and
forgotten with the last, so memory is bounded by the slots, not by the requests.

Legend: B rows, d hidden size, N tokens of the stream
"""

import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TypeVar

import torch

from interlock.engine.base import OnFinished, Request, Vocabulary
from interlock.engine.portable.kv_cache import Arena, Decode, Prefill, Shared
from interlock.engine.portable.sampler import sample
from interlock.engine.portable.sequence import Prompt, Row
from interlock.errors import TrainingError
from interlock.models.decoder import Decoder
from interlock.records.rl import Completion

PREFILL_TOKENS = 2048  # of one forward pass, padding included; a longer prompt goes alone
# Prompts are prefilled once this share of the slots lacks completions, so that several go together:
# larger matrix products, and what they begin with in common is computed once. A free slot costs no
# work meanwhile.
ADMIT_SHARE = 1 / 8
SHORTEST_CLASS = 32  # prompts up to this length share a shelf
# A prompt of one completion, if no longer than this, is kept in the completion's own row: one
# attention instead of two that are merged. All rows are as long as the longest, hence the bound.
LONE_PROMPT = 128

Item = TypeVar("Item", Prompt, Row)


class Shelf:
    """The live prompts of one length class, so that none is padded to more than twice its length.

    `prompts[i]` is row i of the arena.
    """

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.arena: Arena | None = None

    def add(self, prompts: Sequence[Prompt], k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep those of the prompts that are not lone; k and v [Y, A, K, P, *] are of all."""
        kept = [place for place, prompt in enumerate(prompts) if not prompt.lone]
        if not kept:
            return
        if self.arena is None:
            self.arena = Arena(k, v)
        self.arena.append(len(self.prompts), k[:, kept], v[:, kept])
        self.prompts += [prompts[place] for place in kept]

    def compact(self) -> None:
        """Forget the prompts whose completions are all finished."""
        self.prompts = _compact(
            self.prompts, [not prompt.done for prompt in self.prompts], self.arena
        )
        if not self.prompts:
            self.arena = None

    def shared(self, rows: dict[int, list[int]]) -> Shared | None:
        """The prompts as attention wants them; `rows` of each by request index. None: no rows."""
        members = [rows.get(prompt.index, []) for prompt in self.prompts]
        if self.arena is None or not any(members):
            return None
        return Shared(self.arena, [prompt.length for prompt in self.prompts], members)


class Batch:
    """Which completions wait, run or are done, and their memory. `run` may be called once."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        slots: int,
        version: int,
        on_finished: OnFinished | None,
    ) -> None:
        self._decoder, self._vocabulary, self._version = decoder, vocabulary, version
        self._slots, self._on_finished = slots, on_finished
        self._device = decoder.embed.device
        self._waiting: deque[tuple[int, Request]] = deque()
        self._starting: deque[Row] = deque()  # prefilled, but without a slot
        self._prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # k, v of lone ones there
        self._rows: list[Row] = []  # _rows[i] is row i of _own and of _hidden
        self._own: Arena | None = None
        self._hidden = torch.empty(
            0, decoder.arch.hidden, dtype=decoder.dtype, device=self._device
        )  # [B, d], of the newest token: the next one is sampled from it
        self._shelves: dict[int, Shelf] = defaultdict(Shelf)  # by the longest prompt they take
        self._results: dict[int, list[Completion]] = {}

    def run(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self._slots = min(self._slots, sum(request.completions for request in requests))
        self._waiting.extend(enumerate(requests))
        while self._waiting or self._starting or self._rows:
            self._admit()
            self._sample()
            self._retire()
            self._decode()
        return [self._results[index] for index in range(len(requests))]

    def _admit(self) -> None:
        """Give the free slots to completions, prefilling as many prompts as that takes."""
        free = self._slots - len(self._rows)
        lacking = free - len(self._starting)
        fresh: list[tuple[int, Request]] = []
        if not self._rows or lacking >= self._slots * ADMIT_SHARE:
            while self._waiting and lacking > 0:
                fresh.append(self._waiting.popleft())
                lacking -= fresh[-1][1].completions
        for prompt in self._prefill(fresh):
            numbers = range(prompt.request.completions)
            self._starting += [Row(prompt, number, self._vocabulary) for number in numbers]
        admitted = [self._starting.popleft() for _ in range(min(free, len(self._starting)))]
        if admitted:
            hidden = torch.stack([row.prompt.hidden for row in admitted])
            self._hidden = torch.cat([self._hidden, hidden])
            for row in admitted:
                if row.prompt.lone:
                    assert self._own is not None
                    self._own.append(len(self._rows), *self._prompts.pop(row.prompt.index))
                self._rows.append(row)

    def _prefill(self, fresh: Sequence[tuple[int, Request]]) -> list[Prompt]:
        """Compute the prompts of `fresh`, by length class; returns them in the order of `fresh`."""
        classes: dict[int, list[tuple[int, Request]]] = defaultdict(list)
        for index, request in fresh:
            power = 1 << (len(request.prompt_tokens) - 1).bit_length()
            classes[max(SHORTEST_CLASS, power)].append((index, request))
        prompts: list[Prompt] = []
        for longest, members in classes.items():
            chunk = max(1, PREFILL_TOKENS // longest)
            for start in range(0, len(members), chunk):
                part = members[start : start + chunk]
                prompts += self._prefill_chunk(part, self._shelves[longest])
        return sorted(prompts, key=lambda prompt: prompt.index)

    def _prefill_chunk(self, fresh: Sequence[tuple[int, Request]], shelf: Shelf) -> list[Prompt]:
        """One forward pass over prompts of similar length, which are kept on `shelf`."""
        texts = [request.prompt_tokens for _, request in fresh]
        common = _common(texts)
        rests = [tokens[common:] for tokens in texts]
        attend = Prefill(common, [len(rest) for rest in rests], self._device)
        stream = [*texts[0][:common], *itertools.chain(*rests)]
        hidden = self._decoder(self._tensor(stream), attend.positions, attend)  # [N, d]
        last = hidden[attend.last]
        prompts = [
            Prompt(index, request, state, request.completions == 1 and len(text) <= LONE_PROMPT)
            for (index, request), text, state in zip(fresh, texts, last, strict=True)
        ]
        k, v = attend.stored()
        if self._own is None:
            self._own = Arena(k, v)
            self._own.reserve(self._slots, 1)
        for place, prompt in enumerate(prompts):
            if prompt.lone:
                rows = slice(place, place + 1), slice(None), slice(prompt.length)
                self._prompts[prompt.index] = k[:, *rows], v[:, *rows]
        shelf.add(prompts, k, v)
        return prompts

    def _sample(self) -> None:
        """Draw the next token of every row."""
        rules = [row.sampling for row in self._rows]
        noise = [row.noise() for row in self._rows]
        tokens, logprobs = sample(self._decoder.logits(self._hidden), rules, noise)
        if not logprobs.isfinite().all():
            raise TrainingError(
                f"the logits of weight version {self._version} are not finite: training broke the "
                "weights, or the generator's dtype is too narrow for them"
            )
        drawn = zip(self._rows, tokens.tolist(), logprobs.tolist(), strict=True)
        for row, token, logprob in drawn:
            row.push(token, logprob)

    def _retire(self) -> None:
        """Hand over what is finished, and close the gaps it leaves among rows and prompts."""
        finished = [row for row in self._rows if row.finish is not None]
        if not finished:
            return
        for row in finished:
            prompt = row.prompt
            prompt.finished[row.number] = row.completion(self._version)
            if prompt.done:
                self._results[prompt.index] = prompt.completions()
                if self._on_finished is not None:
                    self._on_finished(prompt.index, self._results[prompt.index])
        self._rows = _compact(self._rows, [row.finish is None for row in self._rows], self._own)
        for shelf in self._shelves.values():
            shelf.compact()

    def _decode(self) -> None:
        """Run the newest token of every row through the decoder."""
        if not self._rows:
            self._hidden = self._hidden[:0]
            return
        assert self._own is not None
        stored = [row.stored for row in self._rows]
        self._own.reserve(self._slots, max(stored) + 1)
        attend = Decode(self._own, stored, self._shared())
        tokens = self._tensor([row.tokens[-1] for row in self._rows])
        positions = self._tensor([row.prompt.length + len(row.tokens) - 1 for row in self._rows])
        self._hidden = self._decoder(tokens, positions, attend)

    def _shared(self) -> list[Shared]:
        """The prompts of the rows, shelf by shelf."""
        rows: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(self._rows):
            rows[row.prompt.index].append(number)
        found = [shelf.shared(rows) for shelf in self._shelves.values()]
        return [shared for shared in found if shared is not None]

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _common(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share; each keeps one of its own. None for a lone one."""
    if len(prompts) == 1:
        return 0
    # What the first and the last in order share is shared by all between them.
    pairs = zip(min(prompts), max(prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(shared, min(len(tokens) for tokens in prompts) - 1)


def _compact(items: list[Item], kept: Sequence[bool], arena: Arena | None) -> list[Item]:
    """The kept items in the first places: the last of them move into the gaps, in the arena too."""
    count = sum(kept)
    gaps = [place for place in range(count) if not kept[place]]
    movers = [place for place in range(count, len(items)) if kept[place]]
    moved = dict(zip(gaps, movers, strict=True))
    if moved and arena is not None:
        arena.move(movers, gaps)
    return [items[moved.get(place, place)] for place in range(count)]
