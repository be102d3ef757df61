"""Continuous batching: which sequences wait, start and run, and one step of them all.

    waiting ──prefill: each prompt once──> starting ──a slot is free──> running
                                                                           │
    step:  decode the newest token of what runs ─> hidden [B, d] <─────────┤ + those that start
                       ^                              v                    │
                       └── slots fall free <── sample, retire <── vocabulary projection

Computed are: each prompt once, and what prompts prefilled together begin with (a system turn, say)
once for all of them; one row per sequence and token but the last; the vocabulary projection of just
the rows that sample. Where prompts are computed in parts, what runs goes along with a part in one
pass (passes.py). A prompt is prefilled when the first of its sequences gets a slot and
forgotten with the last, so memory is bounded by the slots, not by the requests.

Between two steps nothing but keys and values depends on the weights: `recompute` makes them anew
when these change.

Legend: B sequences that sample, d hidden size, N tokens of the stream
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import torch

from interlock.engine import guides
from interlock.engine.base import Progress, Request
from interlock.engine.portable.chunks import PromptChunks
from interlock.engine.portable.kv_cache import KVCache, Prefill
from interlock.engine.portable.passes import DecodeStep, Forward, WithRunning, last_routes
from interlock.engine.portable.prefilling import (
    PREFILL_TOKENS,
    PromptsToCompute,
    WholePrompts,
)
from interlock.engine.portable.prompts import KV, Prompt, Running
from interlock.engine.portable.recorded_steps import RecordedSteps, recordable
from interlock.engine.portable.sampler import draw
from interlock.engine.portable.schedule import EXACT, Schedule
from interlock.engine.portable.stored import Stored
from interlock.engine.sequence import TokenReplay
from interlock.engine.vocabulary import Vocabulary
from interlock.errors import TrainingError
from interlock.models.decoder import Decoder

# Prompts are prefilled once this share of the slots lacks sequences, so that several go together. A
# free slot costs no work meanwhile, but whoever waits may be read by somebody: `Schedule.patience`.
ADMIT_SHARE = 1 / 8


class Scheduler:
    """The sequences of one decoder, `slots` of them running at a time."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        slots: int,
        fused_above: int,
        graphs: bool = False,
        schedule: Schedule = EXACT,
    ) -> None:
        self._decoder, self._vocabulary, self._slots = decoder, vocabulary, slots
        recorded = graphs and recordable(decoder)
        self._decode_step: DecodeStep = RecordedSteps(decoder) if recorded else decoder
        self._fused_above, self._schedule = fused_above, schedule
        self._guides = guides.Guides(vocabulary, decoder.arch.vocab)
        self._to_compute: PromptsToCompute = (
            PromptChunks(schedule, decoder, fused_above)
            if schedule.prefill_chunk or schedule.prefix_cache_mb
            else WholePrompts(fused_above)
        )
        self._device = decoder.embed.device
        self._added = 0
        self.clear()

    def clear(self) -> None:
        """Forget everything; what comes next is computed as if it were the first."""
        self._to_compute.clear()
        self._rest()

    def _rest(self) -> None:
        """Nothing is pending; all that is kept is what texts begin with."""
        self._prompts: dict[str, Prompt] = {}  # those with unfinished sequences, by name
        self._waiting: deque[Prompt] = deque()
        self._starting: deque[Running] = deque()  # prefilled, but without a slot
        self._running: list[Running] = []  # in the order of _stored's rows
        self._stored = Stored()
        self._kept_free = 0  # steps in a row that a slot was, though something waited
        self.pending = 0  # sequences that are not finished

    @property
    def longest(self) -> int:
        """Tokens that any pending sequence may at most be given."""
        return max((p.request.sampling.max_tokens for p in self._prompts.values()), default=0)

    def rebuilt(self) -> None:
        """The decoder has other parts now; what runs is computed anew by `recompute`."""
        if isinstance(self._decode_step, RecordedSteps):
            self._decode_step.forget()

    def prepare(self) -> None:
        """What the first grammar would have all that runs wait for."""
        self._guides.prepare()

    def add(self, name: str, request: Request) -> None:
        assert name not in self._prompts, name
        self._added += 1
        prompt = Prompt(name, request, self._added)
        self._guides.check(request)
        if request.drawn:  # a ConfigError where it has ended
            Running(prompt, request.first, self._vocabulary, None)
        self._prompts[name] = prompt
        self._waiting.append(prompt)
        self.pending += request.completions

    def abort(self, name: str) -> bool:
        prompt = self._prompts.pop(name, None)
        if prompt is None:
            return False
        self.pending -= prompt.unfinished
        prompt.unfinished = 0
        self._waiting = deque(other for other in self._waiting if other is not prompt)
        self._to_compute.forget(prompt)
        self._starting = deque(each for each in self._starting if each.prompt is not prompt)
        self._close_gaps([each.prompt is not prompt for each in self._running])
        return True

    def step(self, version: int) -> list[Progress]:
        """Draw the next token of all that run, with the decoder's weights, those of `version`."""
        running = self._newest() if self._running else None
        if running is not None and not self._schedule.prefill_chunk:
            running.hidden()  # by itself: in company it would round otherwise
        self._compute_prompts(running or self._decoder)
        hidden = [] if running is None else [running.hidden()]
        routes = [] if running is None else running.routes
        if started := self._start():
            hidden.append(torch.stack([each.prompt.hidden for each in started]))
            routes = [*routes, *(each.prompt.last_route for each in started)]
        if not self._running:
            return []
        progress = self._sample(torch.cat(hidden), routes, version)
        self._retire()
        return progress

    def recompute(self) -> None:
        """Make the keys and values of all that runs anew: the decoder has other weights."""
        self._to_compute.renew()
        running, starting = self._running, self._starting
        self._stored = Stored()
        own: dict[int, KV] = {}  # by row
        for prompt in {each.prompt.number: each.prompt for each in (*running, *starting)}.values():
            rows = [row for row, each in enumerate(running) if each.prompt is prompt]
            for part in _parts({row: running[row].fresh[:-1] for row in rows}):
                found, shared = self._recompute(prompt, part)
                own |= found
            if prompt.kept is not None:
                self._stored.keep(prompt, *shared)
        for row in range(len(running)):
            assert self._stored.own is not None
            self._stored.own.append(row, *own[row])

    def _recompute(self, prompt: Prompt, drawn: dict[int, list[int]]) -> tuple[dict[int, KV], KV]:
        """One forward pass over a prompt and what was `drawn` behind it, by row; keys and values
        of the own rows, and of what they begin with."""
        length, longer = prompt.length, {row: tokens for row, tokens in drawn.items() if tokens}
        texts = list(longer.values())
        if texts:
            attend = self._prefilling(length, [len(tokens) for tokens in texts])
        else:
            attend = self._prefilling(0, [length])
        stream = [*prompt.text, *itertools.chain(*texts)]
        hidden = self._decoder(self._tensor(stream), attend.positions, attend)
        k, v = attend.stored()
        self._stored.own = self._stored.own or KVCache(k, v)
        prompt.hidden, first = hidden[length - 1], prompt.first_own
        if prompt.routed:
            prompt.routes = last_routes(self._decoder, len(stream))[:length]
        shared = k[:, :1, :, :first], v[:, :1, :, :first]
        prompt.kv = None
        if first < length and not drawn:
            prompt.kv = k[:, :1, :, first:length], v[:, :1, :, first:length]
        places = {row: place for place, row in enumerate(longer)}
        found = {}
        for row, tokens in drawn.items():
            place = places.get(row, 0)  # one that has drawn nothing to store takes nothing
            part = slice(place, place + 1), slice(None), slice(first, length + len(tokens))
            found[row] = k[:, *part], v[:, *part]
        return found, shared

    def _compute_prompts(self, forward: Forward) -> None:
        """As many as the free slots take."""
        free = self._slots - len(self._running)
        self._choose(free - len(self._starting) - self._to_compute.sequences)
        computed: list[Prompt] = []
        for filled in self._to_compute.step(self._decoder, forward):
            self._stored.put(*filled)
            computed += filled.prompts
        for prompt in sorted(computed, key=lambda each: each.number):
            numbers = prompt.request.numbers
            self._starting += [self._begin(prompt, number) for number in numbers]

    def _start(self) -> list[Running]:
        """Give the free slots to sequences whose prompts are computed."""
        free = self._slots - len(self._running)
        started = [self._starting.popleft() for _ in range(min(free, len(self._starting)))]
        for each in started:
            self._stored.start(len(self._running), each.prompt)
            self._running.append(each)
        if self._stored.own is not None:
            self._stored.own.reserve(min(self._slots, self.pending), 1)
        return started

    def _begin(self, prompt: Prompt, number: int) -> Running:
        return Running(prompt, number, self._vocabulary, self._guides.open(prompt.request))

    def _choose(self, lacking: int) -> None:
        """Take prompts that wait, for so many slots without a sequence."""
        several = lacking >= self._slots * ADMIT_SHARE
        if several or not self._running or self._kept_free >= self._schedule.patience:
            while self._waiting and lacking > 0:
                prompt = self._waiting.popleft()
                self._to_compute.add(prompt)
                lacking -= prompt.unfinished
        self._kept_free = self._kept_free + 1 if self._waiting and lacking > 0 else 0

    def _prefilling(self, common: int, rests: Sequence[int]) -> Prefill:
        return Prefill(common, rests, self._device, self._fused_above)

    def _sample(
        self, hidden: torch.Tensor, routes: Sequence[bytes], version: int
    ) -> list[Progress]:
        """Draw the next token of every running sequence from its hidden state [B, d]."""
        rules = [each.request.sampling for each in self._running]
        noise = [each.noise() for each in self._running]
        asked = [each.request.rules.top_logprobs for each in self._running]
        logits = guides.apply(self._decoder.logits(hidden), [each.guide for each in self._running])
        most = [each.request.most_kept for each in self._running]
        tokens, logprobs, tops, kept = draw(logits, rules, noise, asked, most)
        if not logprobs.isfinite().all():
            raise TrainingError(
                f"the logits of weight version {version} are not finite: training broke the "
                "weights, or the generator's dtype is too narrow for them"
            )
        told = [
            TokenReplay(among, route if each.prompt.routed else b"")
            for each, among, route in zip(self._running, kept, routes, strict=True)
        ]
        drawn = zip(self._running, tokens.tolist(), logprobs.tolist(), tops, told, strict=True)
        pushed = [
            (each, each.push(token, logprob, version, top, more))
            for each, token, logprob, top, more in drawn
        ]
        return [each.told(progress) for each, progress in pushed]

    def _retire(self) -> None:
        """Let go of what is finished."""
        finished = [row for row, each in enumerate(self._running) if each.finish is not None]
        for row in finished:
            each = self._running[row]
            text = [*each.prompt.text, *each.fresh[:-1]]
            span = self._stored.span(row, each.prompt)
            self._to_compute.keep(text, each.request.owner, span, each.text_routes)
            each.prompt.unfinished -= 1
            self.pending -= 1
            if each.prompt.done:
                del self._prompts[each.name]
        if finished:
            self._close_gaps([each.finish is None for each in self._running])

    def _close_gaps(self, kept: Sequence[bool]) -> None:
        """Keep these of the running sequences, and the prompts that are not done."""
        if self._prompts:
            left = self._prompts.values()
            self._running = self._stored.close_gaps(self._running, kept, left)
        else:
            self._rest()

    def _newest(self) -> WithRunning:
        """The newest token of every running sequence, on its way through the decoder."""
        attend = self._stored.decode(self._running, self._prompts.values())
        tokens = self._tensor([each.tokens[-1] for each in self._running])
        positions = [each.prompt.length + len(each.fresh) - 1 for each in self._running]
        alone, routed = self._decode_step, any(each.prompt.routed for each in self._running)
        places = self._tensor(positions)
        return WithRunning(self._decoder, tokens, places, attend, alone, routed)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _parts(drawn: dict[int, list[int]]) -> Iterator[dict[int, list[int]]]:
    """What was drawn, by row, in parts for one forward pass each; a single empty one of nothing."""
    together = max(1, PREFILL_TOKENS // max([1, *map(len, drawn.values())]))
    rows = list(drawn)
    for first in range(0, max(1, len(rows)), together):
        yield {row: drawn[row] for row in rows[first : first + together]}
