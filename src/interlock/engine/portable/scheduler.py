"""Continuous batching: which sequences wait, start and run, and one step of them all.

    waiting ──prefill: each prompt once──> starting ──a slot is free──> running
                                                                           │
    step:  decode the newest token of what runs ─> hidden [B, d] <─────────┤ + those that start
                       ^                              v                    │
                       └── slots fall free <── sample, retire <── vocabulary projection

Computed are: each prompt once, and what prompts prefilled together begin with (a system turn, say)
once for all of them; one row per sequence and token but the last; the vocabulary projection of just
the rows that sample. A prompt is prefilled when the first of its sequences gets a slot and
forgotten with the last, so memory is bounded by the slots, not by the requests.

Between two steps nothing but keys and values depends on the weights: `recompute` makes them anew
when these change.

Legend: B sequences that sample, d hidden size, N tokens of the stream
"""

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from interlock.engine.base import Progress, Request, Vocabulary
from interlock.engine.portable.kv_cache import Decode, KVCache, Prefill, SharedPrompts
from interlock.engine.portable.recorded_steps import RecordedSteps, recordable
from interlock.engine.portable.sampler import Noise, sample
from interlock.engine.sequence import LiveSequence
from interlock.errors import TrainingError
from interlock.models.decoder import Decoder

PREFILL_TOKENS = 2048  # of one forward pass, padding included; a longer prompt goes alone
# Prompts are prefilled once this share of the slots lacks sequences, so that several go together:
# larger matrix products, and what they begin with in common is computed once. A free slot costs no
# work meanwhile, but whoever waits may be read by somebody: after so many steps they go alone.
ADMIT_SHARE = 1 / 8
ADMIT_STEPS = 8
SHORTEST_CLASS = 32  # prompts up to this length share a cache
# A prompt of one completion, if no longer than this, is kept in the sequence's own row: one
# attention instead of two that are merged. All rows are as long as the longest, hence the bound.
LONE_PROMPT = 128

Item = TypeVar("Item", "Prompt", "Running")
KV = tuple[torch.Tensor, torch.Tensor]  # k [Y, n, K, S, D] and v [Y, n, K, S, E]


class Prompt:
    """A request with what its sequences share."""

    def __init__(self, name: str, request: Request, number: int) -> None:
        self.name, self.request = name, request
        self.number = number  # in the order of being added
        self.length = len(request.prompt_tokens)
        self.lone = request.completions == 1 and self.length <= LONE_PROMPT  # in the row of its own
        self.unfinished = request.completions
        self.hidden = torch.empty(0)  # [d], of the last token, once it is prefilled
        self.kv: KV | None = None  # of a lone one without a slot

    @property
    def done(self) -> bool:
        return self.unfinished == 0


class Running(LiveSequence):
    """A sequence with its prompt and its noise."""

    def __init__(self, prompt: Prompt, number: int, vocabulary: Vocabulary) -> None:
        super().__init__(prompt.name, prompt.request, number, vocabulary)
        self.prompt = prompt
        self._noise = Noise(prompt.request.seed, prompt.request.problem_id, number)

    @property
    def stored(self) -> int:
        """Tokens whose keys and values are in its row: all but the newest."""
        return (self.prompt.length if self.prompt.lone else 0) + len(self.tokens) - 1

    def noise(self) -> tuple[float, float]:
        """The uniforms of the next token."""
        return self._noise.at(len(self.tokens))


class PromptCache:
    """The live prompts of one length class, so that none is padded to more than twice its length.

    `prompts[i]` is row i of the cache.
    """

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self.cache: KVCache | None = None

    def add(self, prompts: Sequence[Prompt], k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep those of the prompts that are not lone; k and v [Y, A, K, P, *] are of all."""
        kept = [place for place, prompt in enumerate(prompts) if not prompt.lone]
        if not kept:
            return
        if self.cache is None:
            self.cache = KVCache(k, v)
        self.cache.append(len(self.prompts), k[:, kept], v[:, kept])
        self.prompts += [prompts[place] for place in kept]

    def compact(self) -> None:
        """Forget the prompts whose sequences are all finished."""
        self.prompts = _compact(
            self.prompts, [not prompt.done for prompt in self.prompts], self.cache
        )
        if not self.prompts:
            self.cache = None

    def shared(self, rows: dict[int, list[int]]) -> SharedPrompts | None:
        """The prompts as attention wants them; `rows` of each by its number. None: no rows."""
        members = [rows.get(prompt.number, []) for prompt in self.prompts]
        if self.cache is None or not any(members):
            return None
        return SharedPrompts(self.cache, [prompt.length for prompt in self.prompts], members)


class Scheduler:
    """The sequences of one decoder, `slots` of them running at a time."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        slots: int,
        fused_above: int,
        graphs: bool = False,
    ) -> None:
        self._decoder, self._vocabulary, self._slots = decoder, vocabulary, slots
        self._decode_step: Callable[[torch.Tensor, torch.Tensor, Decode], torch.Tensor] = (
            RecordedSteps(decoder) if graphs and recordable(decoder) else decoder
        )
        self._fused_above = fused_above
        self._device = decoder.embed.device
        self._added = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything; what comes next is computed as if it were the first."""
        self._prompts: dict[str, Prompt] = {}  # those with unfinished sequences, by name
        self._waiting: deque[Prompt] = deque()
        self._starting: deque[Running] = deque()  # prefilled, but without a slot
        self._running: list[Running] = []  # _running[i] is row i of _own
        self._own: KVCache | None = None
        self._caches: dict[int, PromptCache] = defaultdict(PromptCache)  # by longest prompt
        self._kept_free = 0  # steps in a row that a slot was, though something waited
        self.pending = 0  # sequences that are not finished

    @property
    def longest(self) -> int:
        """Tokens that any pending sequence may at most be given."""
        return max((p.request.sampling.max_tokens for p in self._prompts.values()), default=0)

    def add(self, name: str, request: Request) -> None:
        assert name not in self._prompts, name
        self._added += 1
        prompt = self._prompts[name] = Prompt(name, request, self._added)
        self._waiting.append(prompt)
        self.pending += request.completions

    def abort(self, name: str) -> bool:
        prompt = self._prompts.pop(name, None)
        if prompt is None:
            return False
        self.pending -= prompt.unfinished
        prompt.unfinished = 0
        self._waiting = deque(other for other in self._waiting if other is not prompt)
        self._starting = deque(each for each in self._starting if each.prompt is not prompt)
        self._close_gaps([each.prompt is not prompt for each in self._running])
        return True

    def step(self, version: int) -> list[Progress]:
        """Draw the next token of all that run, with the decoder's weights, those of `version`."""
        hidden = [self._decode()] if self._running else []
        if started := self._admit():
            hidden.append(torch.stack([each.prompt.hidden for each in started]))
        if not self._running:
            return []
        progress = self._sample(torch.cat(hidden), version)
        self._retire()
        return progress

    def recompute(self) -> None:
        """Make the keys and values of all that runs anew: the decoder has other weights."""
        running, starting = self._running, self._starting
        self._own, self._caches = None, defaultdict(PromptCache)
        own: dict[int, KV] = {}  # by row
        for prompt in {each.prompt.number: each.prompt for each in (*running, *starting)}.values():
            rows = [row for row, each in enumerate(running) if each.prompt is prompt]
            for part in _parts({row: running[row].tokens[:-1] for row in rows}):
                found, shared = self._recompute(prompt, part)
                own |= found
            self._caches[_length_class(prompt.length)].add([prompt], *shared)
        for row in range(len(running)):
            assert self._own is not None
            self._own.append(row, *own[row])

    def _recompute(self, prompt: Prompt, drawn: dict[int, list[int]]) -> tuple[dict[int, KV], KV]:
        """One forward pass over a prompt and what was `drawn` behind it, by row; keys and values
        of the rows, and of the prompt."""
        length, longer = prompt.length, {row: tokens for row, tokens in drawn.items() if tokens}
        texts = list(longer.values())
        if texts:
            attend = self._prefilling(length, [len(tokens) for tokens in texts])
        else:
            attend = self._prefilling(0, [length])
        stream = [*prompt.request.prompt_tokens, *itertools.chain(*texts)]
        hidden = self._decoder(self._tensor(stream), attend.positions, attend)
        k, v = attend.stored()
        self._own = self._own or KVCache(k, v)
        prompt.hidden = hidden[length - 1]
        shared = k[:, :1, :, :length], v[:, :1, :, :length]
        prompt.kv = shared if prompt.lone and not drawn else None
        first = 0 if prompt.lone else length
        places = {row: place for place, row in enumerate(longer)}
        found = {}
        for row, tokens in drawn.items():
            place = places.get(row, 0)  # one that has drawn nothing to store takes nothing
            part = slice(place, place + 1), slice(None), slice(first, length + len(tokens))
            found[row] = k[:, *part], v[:, *part]
        return found, shared

    def _admit(self) -> list[Running]:
        """Give the free slots to sequences, prefilling as many prompts as that takes."""
        free = self._slots - len(self._running)
        lacking = free - len(self._starting)
        fresh: list[Prompt] = []
        several = lacking >= self._slots * ADMIT_SHARE
        if several or not self._running or self._kept_free == ADMIT_STEPS:
            while self._waiting and lacking > 0:
                fresh.append(self._waiting.popleft())
                lacking -= fresh[-1].request.completions
        self._kept_free = self._kept_free + 1 if self._waiting and lacking > 0 else 0
        self._prefill(fresh)
        for prompt in fresh:
            numbers = range(prompt.request.completions)
            self._starting += [Running(prompt, number, self._vocabulary) for number in numbers]
        started = [self._starting.popleft() for _ in range(min(free, len(self._starting)))]
        for each in started:
            assert self._own is not None
            if each.prompt.kv is not None:
                self._own.append(len(self._running), *each.prompt.kv)
                each.prompt.kv = None
            self._running.append(each)
        if self._own is not None:
            self._own.reserve(min(self._slots, self.pending), 1)
        return started

    def _prefill(self, fresh: Sequence[Prompt]) -> None:
        """Compute the prompts of `fresh`, by length class."""
        classes: dict[int, list[Prompt]] = defaultdict(list)
        for prompt in fresh:
            classes[_length_class(prompt.length)].append(prompt)
        for longest, members in classes.items():
            chunk = max(1, PREFILL_TOKENS // longest)
            for start in range(0, len(members), chunk):
                self._prefill_chunk(members[start : start + chunk], self._caches[longest])

    def _prefill_chunk(self, fresh: Sequence[Prompt], cache: PromptCache) -> None:
        """One forward pass over prompts of similar length, which are kept in `cache`."""
        texts = [prompt.request.prompt_tokens for prompt in fresh]
        common = _common(texts)
        rests = [tokens[common:] for tokens in texts]
        attend = self._prefilling(common, [len(rest) for rest in rests])
        stream = [*texts[0][:common], *itertools.chain(*rests)]
        hidden = self._decoder(self._tensor(stream), attend.positions, attend)  # [N, d]
        k, v = attend.stored()
        self._own = self._own or KVCache(k, v)
        for place, (prompt, last) in enumerate(zip(fresh, hidden[attend.last], strict=True)):
            prompt.hidden = last
            if prompt.lone:
                part = slice(place, place + 1), slice(None), slice(prompt.length)
                prompt.kv = k[:, *part], v[:, *part]
        cache.add(fresh, k, v)

    def _prefilling(self, common: int, rests: Sequence[int]) -> Prefill:
        return Prefill(common, rests, self._device, self._fused_above)

    def _sample(self, hidden: torch.Tensor, version: int) -> list[Progress]:
        """Draw the next token of every running sequence from its hidden state [B, d]."""
        rules = [each.request.sampling for each in self._running]
        noise = [each.noise() for each in self._running]
        tokens, logprobs = sample(self._decoder.logits(hidden), rules, noise)
        if not logprobs.isfinite().all():
            raise TrainingError(
                f"the logits of weight version {version} are not finite: training broke the "
                "weights, or the generator's dtype is too narrow for them"
            )
        drawn = zip(self._running, tokens.tolist(), logprobs.tolist(), strict=True)
        return [each.push(token, logprob, version) for each, token, logprob in drawn]

    def _retire(self) -> None:
        """Let go of what is finished."""
        finished = [each for each in self._running if each.finish is not None]
        for each in finished:
            each.prompt.unfinished -= 1
            self.pending -= 1
            if each.prompt.done:
                del self._prompts[each.name]
        if finished:
            self._close_gaps([each.finish is None for each in self._running])

    def _close_gaps(self, kept: Sequence[bool]) -> None:
        """Keep these of the running sequences, and the prompts that are not done."""
        self._running = _compact(self._running, kept, self._own)
        for cache in self._caches.values():
            cache.compact()
        if not self._prompts:
            self.clear()
        elif self._own is not None:
            self._own.trim(max((each.stored for each in self._running), default=0))

    def _decode(self) -> torch.Tensor:
        """Run the newest token of every running sequence through the decoder -> [B, d]."""
        assert self._own is not None
        stored = [each.stored for each in self._running]
        self._own.reserve(len(stored), max(stored) + 1)
        attend = Decode(self._own, stored, self._shared())
        tokens = self._tensor([each.tokens[-1] for each in self._running])
        positions = [each.prompt.length + len(each.tokens) - 1 for each in self._running]
        return self._decode_step(tokens, self._tensor(positions), attend)

    def _shared(self) -> list[SharedPrompts]:
        """The prompts of the running sequences, class by class."""
        rows: dict[int, list[int]] = defaultdict(list)
        for number, each in enumerate(self._running):
            rows[each.prompt.number].append(number)
        found = [cache.shared(rows) for cache in self._caches.values()]
        return [shared for shared in found if shared is not None]

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _length_class(length: int) -> int:
    """The longest prompt that is kept with one of `length` tokens: a power of two."""
    return max(SHORTEST_CLASS, 1 << (length - 1).bit_length())


def _parts(drawn: dict[int, list[int]]) -> Iterator[dict[int, list[int]]]:
    """What was drawn, by row, in parts for one forward pass each; a single empty one of nothing."""
    together = max(1, PREFILL_TOKENS // max([1, *map(len, drawn.values())]))
    rows = list(drawn)
    for first in range(0, max(1, len(rows)), together):
        yield {row: drawn[row] for row in rows[first : first + together]}


def _common(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share; each keeps one of its own. None for a lone one."""
    if len(prompts) == 1:
        return 0
    # What the first and the last in order share is shared by all between them.
    pairs = zip(min(prompts), max(prompts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return min(shared, min(len(tokens) for tokens in prompts) - 1)


def _compact(items: list[Item], kept: Sequence[bool], cache: KVCache | None) -> list[Item]:
    """The kept items in the first places: the last of them move into the gaps, in the cache too."""
    count = sum(kept)
    gaps = [place for place in range(count) if not kept[place]]
    movers = [place for place in range(count, len(items)) if kept[place]]
    moved = dict(zip(gaps, movers, strict=True))
    if moved and cache is not None:
        cache.move(movers, gaps)
    return [items[moved.get(place, place)] for place in range(count)]
