"""What a sequence may draw next, by the rules of its request.

    Rules ──Guides.open──> Guide, one per sequence ──wanted──> bias, banned, forced, or a grammar's
                              ^── push: every token                    │
    logits [B, V] ────────────────────────────────────────apply────────┴──> logits [B, V]

Three things that may stand together:

    logit_bias       added to the logits, always; where one token is forced it changes nothing
    grammar          from the first token on; or behind `grammar_after`, until which no end token is
                     drawn. A model that is free to think (`thinking_begin` is named, and the prompt
                     does not end inside of it) decides with its first token: that of the thinking,
                     or one of the grammar, which then holds at once
    thinking_budget  counts the tokens between `thinking_begin` and `thinking_end`; at the limit
                     what is missing of `thinking_end` is forced, token by token. All blocks of
                     thinking share it. Under a grammar there is no thinking

A forced token is drawn from a distribution that holds nothing else, so its logprob is 0.0. All is a
function of the tokens drawn so far: a sequence that goes on elsewhere is guided as it was.

A grammar may give up in the middle (grammars.LIMITS): then an end token is forced, and the answer
is `FinishReason.BROKEN`, which its asker is told as a mistake. The others do not notice.

Legend: B sequences that sample, V vocabulary
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interlock.engine.base import Request
from interlock.engine.grammars import Bits, Grammars, Matcher, words
from interlock.engine.vocabulary import Vocabulary
from interlock.errors import ConfigError
from interlock.records.serving import Rules


class Cells(NamedTuple):
    """What is added to the logits of one row."""

    tokens: NDArray[np.int64]
    values: NDArray[np.float32]


_NOTHING = Cells(np.zeros(0, np.int64), np.zeros(0, np.float32))


class Guide:
    """The rules of one sequence, and what its tokens have made of them."""

    def __init__(self, rules: Rules, matcher: Matcher | None, end_ids: Sequence[int]) -> None:
        self.broken = ""  # why the grammar gave up
        self._rules, self._matcher, self._end_ids = rules, matcher, end_ids
        ends = [(token, -math.inf) for token in end_ids]
        self._bias = _cells(rules.logit_bias.items())
        self._bias_without_end = _cells([*rules.logit_bias.items(), *ends])
        free = matcher is not None and not rules.thinks and bool(rules.thinking_begin)
        self._holds = matcher is not None and not rules.grammar_after  # the grammar does
        self._open = free and not self._holds  # the first token decides whether it does
        self._ended = False  # the text has, though it goes on: end tokens are ignored
        self._thinks = rules.thinks
        self._left = rules.thinking_budget
        patterns = rules.thinking_begin, rules.thinking_end, rules.grammar_after
        self._longest = max(map(len, patterns))
        self._newest: list[int] = []  # as many as the longest of these has
        self._forced: list[int] = []
        self._force_end()

    @property
    def added(self) -> Cells:
        """What is added to the logits."""
        if self._forced:
            return _NOTHING
        # Until the grammar begins the text may not end.
        waits = self._matcher is not None and not self._holds and not self._open
        return self._bias_without_end if waits else self._bias

    @property
    def chooses(self) -> bool:
        """Whether only some tokens may be drawn: those that `fill` tells."""
        return bool(self._forced or self._holds or self._open)

    def fill(self, bits: Bits) -> None:
        """Set the bits, which are clear, of the tokens that may be drawn: of one at least."""
        if self._forced:
            _set(bits, self._forced[:1])
            return
        assert self._matcher is not None
        if not (self._ended or self.broken):
            self._matcher.fill(bits)
            self.broken = self._matcher.error or ("" if bits.any() else "no token may follow")
        if self._ended or self.broken:
            bits[:] = 0
            _set(bits, self._end_ids)
        elif self._open:
            _set(bits, self._rules.thinking_begin[:1])

    def push(self, token: int) -> None:
        """Take the token that was drawn."""
        forced = self._forced[:1] == [token]
        self._forced = self._forced[1:] if forced else []
        if self._open:
            self._open, self._holds = False, not self._begins_thinking(token)
        if self._holds:
            if not forced:  # else it is the rest of `thinking_end`
                self._keep(token)
            return
        self._newest = [*self._newest, token][-self._longest :] if self._longest else []
        self._follow()

    def _begins_thinking(self, token: int) -> bool:
        assert self._matcher is not None
        begin = self._rules.thinking_begin
        if token != begin[0] or self._matcher.takes(token):
            return False
        self._forced = begin[1:]
        return True

    def _keep(self, token: int) -> None:
        """The next token of the grammar's text."""
        assert self._matcher is not None
        if token in self._end_ids:
            self._ended = True
        else:
            self._matcher.take(token)
            self.broken = self.broken or self._matcher.error

    def _follow(self) -> None:
        """See where the newest token leaves the thinking, and whether the grammar begins."""
        after = self._closes(self._rules.grammar_after)
        if not self._thinks:
            self._thinks = self._closes(self._rules.thinking_begin)
        elif after or self._closes(self._rules.thinking_end):
            self._thinks = False
        elif self._left is not None:
            self._left -= 1
        self._holds = self._matcher is not None and after
        self._force_end()

    def _closes(self, pattern: list[int]) -> bool:
        """Whether the newest token is the last of `pattern`."""
        return bool(pattern) and self._newest[-len(pattern) :] == pattern

    def _force_end(self) -> None:
        """Force what is missing of the end, where the budget of a thinking is used up."""
        spent = self._left is not None and self._left <= 0
        if self._thinks and spent and not self._holds and not self._forced:
            end = self._rules.thinking_end
            have = max(
                n for n in range(len(end)) if self._newest[len(self._newest) - n :] == end[:n]
            )
            self._forced = end[have:]


class Guides:
    """The guides of an engine's sequences, over a vocabulary of `size` tokens."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self._grammars = Grammars(vocabulary, size)
        self._end_ids = sorted(vocabulary.eos_ids)

    def prepare(self) -> None:
        """Have grammars of the vocabulary made ready, where there can be any."""
        self._grammars.prepare()

    def check(self, request: Request) -> None:
        """Raise ConfigError unless the request can be guided, with what it has drawn before."""
        if request.rules.grammar:
            self.open(request)

    def open(self, request: Request) -> Guide | None:
        """Of one of its sequences; None where nothing is to be guided. Raises ConfigError."""
        rules = request.rules
        if not rules.guided:
            return None
        matcher = self._grammars.matcher(rules.grammar) if rules.grammar else None
        guide = Guide(rules, matcher, self._end_ids)
        for token in request.begun:
            guide.push(token)
        if guide.broken:
            raise ConfigError(
                f"what was drawn of problem {request.problem_id!r} is no beginning of a text of "
                f"its grammar: {guide.broken}; begin anew"
            )
        return guide


def apply(logits: Tensor, guides: Sequence[Guide | None]) -> Tensor:
    """The logits [B, V] as the guides of their rows want them, in float32; may change them in
    place. Without any guide they come back as they are.
    """
    guided = [(row, guide) for row, guide in enumerate(guides) if guide is not None]
    if not guided:
        return logits
    logits, place = logits.float(), logits.device
    cells = [guide.added for _, guide in guided]
    rows = np.repeat([row for row, _ in guided], [len(each.tokens) for each in cells])
    if len(rows):
        tokens = np.concatenate([each.tokens for each in cells])
        values = np.concatenate([each.values for each in cells])
        at = torch.from_numpy(rows).to(place), torch.from_numpy(tokens).to(place)
        logits.index_put_(at, torch.from_numpy(values).to(place), accumulate=True)
    if any(guide.chooses for _, guide in guided):
        logits.masked_fill_(_barred(logits.shape, guided).to(place), -torch.inf)
    return logits


def _barred(shape: tuple[int, ...], guided: Sequence[tuple[int, Guide]]) -> Tensor:
    """Which tokens may not be drawn, of all rows [B, V]: one pass over memory in the order it is
    in takes a tenth of what gathering the rows takes.
    """
    bits = np.full((shape[0], words(shape[1])), -1, np.int32)
    for row, guide in guided:
        if guide.chooses:
            bits[row] = 0
            guide.fill(bits[row])
    flags = np.unpackbits(~bits.view(np.uint8), 1, shape[1], bitorder="little")
    return torch.from_numpy(flags.view(np.bool_))


def _set(bits: Bits, tokens: Sequence[int]) -> None:
    for token in tokens:
        bits.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)


def _cells(added: Iterable[tuple[int, float]]) -> Cells:
    pairs = list(added)
    tokens = np.array([token for token, _ in pairs], np.int64)
    return Cells(tokens, np.array([value for _, value in pairs], np.float32))
