"""A budget of thinking in what is learned from: where it is used up, the answer is given the end.

    token ──ThinkingMeter──> it thinks on
                         └─> the budget is used up: owed are the tokens of `close`, which are given
                             one after another; then it draws on

What is given is no choice of the policy: it has no log-probability and no weight version, and
nothing is learned of it (records/rl.py, Segment). Who serves forces the end by its rules instead
(guides.py), as drawn tokens: an endpoint has no word for given ones.

Which tokens are owed is a function of those before: whoever has the tokens of an answer can tell
whether its given ones are where they must be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from interlock.engine.vocabulary import TextStream
from interlock.errors import ConfigError
from interlock.records.rl import Sampling


class Marked(Protocol):
    """What is needed of models.tokenizer.Tokenizer."""

    @property
    def thinking_marks(self) -> tuple[str, str]: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...
    def token_id(self, token: str) -> int | None: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def begun(self, messages: list[dict[str, str]], **more: Any) -> str: ...
    def special_ids(self, stops: Sequence[str]) -> frozenset[int]: ...


class Streaming(Protocol):
    """What a ThinkingMeter reads tokens with."""

    def stream(self) -> TextStream: ...


@dataclass(frozen=True)
class ThinkingBudget:
    """Tokens of thinking that one answer may draw, between the marks; all its blocks share them.

    A mark that is one token of the vocabulary (`begin_id`, `end_id`) is that token alone; another
    is found in the text. `close` is what ends the thinking. `inside`: the prompt ends in thinking.
    """

    tokens: int
    close: list[int]
    begin: str
    end: str
    begin_id: int | None = None
    end_id: int | None = None
    inside: bool = False


class ThinkingMeter:
    """Counts the thinking of one answer. `owed`: what it is to be given before it draws on."""

    def __init__(self, budget: ThinkingBudget, vocabulary: Streaming) -> None:
        self._budget, self._left = budget, budget.tokens
        self._inside = budget.inside
        self._stream = vocabulary.stream()
        self._text = ""  # in which the next mark may stand, or have begun to
        self.owed: list[int] = []
        self._settle()

    def push(self, token: int) -> None:
        """Take the next token of the answer: the first that is owed, where some are."""
        if self.owed:
            assert token == self.owed[0], "what is owed comes first"
            del self.owed[0]
        before, self._text = self._inside, self._text + self._stream.push(token)
        while self._turns(token):
            token = -1  # it is one mark at most; its text may hold others
        if before and self._inside:
            self._left -= 1
        longest = max(len(self._budget.begin), len(self._budget.end))
        self._text = self._text[-longest:]
        self._settle()

    def _turns(self, token: int) -> bool:
        """Whether a mark is complete, behind which it thinks or does not."""
        budget = self._budget
        if self._inside:
            mark, own = budget.end, budget.end_id
        else:
            mark, own = budget.begin, budget.begin_id
        if own is not None:
            found = token == own
            rest = ""
        else:
            _, sign, rest = self._text.partition(mark)
            found = bool(sign)
        if found:
            self._inside, self._text = not self._inside, rest
        return found

    def _settle(self) -> None:
        if self._inside and self._left <= 0 and not self.owed and not self._ending:
            self.owed = list(self._budget.close)

    @property
    def _ending(self) -> bool:
        """Whether the end's mark is being spelt: it may be a token or two late."""
        if self._budget.end_id is not None:
            return False
        mark = self._budget.end
        return any(self._text.endswith(mark[:length]) for length in range(1, len(mark)))


def budget_of(
    sampling: Sampling,
    tokenizer: Marked,
    messages: list[dict[str, str]] | None = None,
    template: Mapping[str, Any] | None = None,
) -> ThinkingBudget | None:
    """What `sampling` allows an answer to these messages; None: as much as it likes.

    The text that ends the thinking is Qwen3's (arXiv 2505.09388, section 4.3): two line ends and
    `thinking_words`, if there are any, then a line end, the model's mark, two line ends.

    Raises ConfigError where that text would leave no answer, or end it.
    """
    if sampling.thinking_budget is None:
        return None
    begin, end = tokenizer.thinking_marks
    words = f"\n\n{sampling.thinking_words}" if sampling.thinking_words else ""
    text = f"{words}\n{end}\n\n"
    close = tokenizer.encode(text)
    if (room := sampling.max_tokens - sampling.thinking_budget) <= len(close):
        raise ConfigError(
            f"sampling.thinking_budget = {sampling.thinking_budget} leaves {room} of max_tokens = "
            f"{sampling.max_tokens} for the {len(close)} tokens that end the thinking and an "
            "answer; lower it, or raise max_tokens"
        )
    ends = tokenizer.eos_ids | tokenizer.special_ids(sampling.stop)
    stop = next((stop for stop in sampling.stop if stop in tokenizer.decode(close)), None)
    if stop is not None or not ends.isdisjoint(close):
        raise ConfigError(
            f"the text that ends the thinking, {text!r:.120}, ends the answer too (sampling.stop "
            "or an end token stands in it); change sampling.thinking_words or sampling.stop"
        )
    begun = tokenizer.begun(messages, **(template or {})) if messages else ""
    return ThinkingBudget(
        sampling.thinking_budget,
        close,
        begin,
        end,
        tokenizer.token_id(begin),
        tokenizer.token_id(end),
        inside=begun.rfind(begin) > begun.rfind(end),
    )
