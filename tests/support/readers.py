"""A reader for workers whose answers are made up: their texts and ends are taken as they are."""

from collections.abc import Callable, Sequence

from interlock.records.rl import Completion, Problem, Sampling
from interlock.workers.reading import Reader


class Believer(Reader):
    """See Reader. `prompt`: the tokens that a problem is expected to be read as."""

    def __init__(self, prompt: Callable[[Problem], list[int]], vocab: int) -> None:
        self.vocab, self._prompt = vocab, prompt

    def prompt(self, problem: Problem) -> list[int]:
        return self._prompt(problem)

    def opening(self, problem: Problem) -> str:
        return ""

    def read(
        self, drawn: Sequence[Completion], sampling: Sampling, problem: Problem
    ) -> list[Completion] | None:
        return list(drawn)
