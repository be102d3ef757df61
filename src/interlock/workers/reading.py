"""What a worker's tokens say, by the tokenizer of whoever asked.

Problem ──prompt──> the tokens that the worker must have read
tokens ────read───> text and end; what the worker says of these is not even looked at; and which
                    had to be given
"""

from collections.abc import Sequence

from msgspec.structs import replace

from interlock.engine.budget import ThinkingBudget, ThinkingMeter, budget_of
from interlock.engine.sequence import Ending
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Problem, Sampling


class Reader:
    """`vocab`: token ids of the model are below it."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.vocab = vocab
        self._tokenizer = tokenizer

    def prompt(self, problem: Problem) -> list[int]:
        """Raises ModelError when the chat template refuses it."""
        return self._tokenizer.chat(problem.messages, **problem.template)

    def opening(self, problem: Problem) -> str:
        """What that prompt says for the assistant already: see Group."""
        return self._tokenizer.opening(problem.messages, **problem.template)

    def read(
        self, drawn: Sequence[Completion], sampling: Sampling, problem: Problem
    ) -> list[Completion] | None:
        """The completions with the text and the end that their tokens have; None when the tokens
        of one go on behind their end, or have none, or others were given than had to be.
        """
        budget = budget_of(sampling, self._tokenizer, problem.messages, problem.template)
        found = [self._read(each, sampling, budget) for each in drawn]
        return [each for each in found if each is not None] if None not in found else None

    def _read(
        self, drawn: Completion, sampling: Sampling, budget: ThinkingBudget | None
    ) -> Completion | None:
        if not self._given_rightly(drawn, budget):
            return None
        stop_ids = self._tokenizer.special_ids(sampling.stop)
        ending, last = Ending(sampling, self._tokenizer, stop_ids), len(drawn.tokens)
        for number, token in enumerate(drawn.tokens, 1):
            if finish := ending.push(token):
                ended = replace(drawn, finish=finish, text=ending.text)
                return ended if number == last else None
        return None

    def _given_rightly(self, drawn: Completion, budget: ThinkingBudget | None) -> bool:
        """Whether its given tokens are those that end a thinking which had used its budget."""
        if budget is None:
            return all(drawn.mask)
        meter = ThinkingMeter(budget, self._tokenizer)
        for token, sampled in zip(drawn.tokens, drawn.mask, strict=True):
            if meter.owed[:1] != ([] if sampled else [token]):
                return False
            meter.push(token)
        return True
