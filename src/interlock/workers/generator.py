"""Turns problems into groups: chat template and tokenizer in front of an engine.

    Problem ──chat template──> PendingGroup ──its request──> engine ──> completions ──> Group

The engine knows tokens only; what a problem is, and which worker answered it, is known here. In the
learner's own process `generate` is called; a worker (worker.py) gives the requests to the engine
itself, among those of others.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from torch import Tensor

from interlock.config.schema import EngineName, GeneratorSettings
from interlock.engine.base import Engine, Progress, Request, in_order
from interlock.engine.budget import budget_of
from interlock.errors import ConfigError
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.adapters import AdapterForm
from interlock.records.replay import NO_REPLAY, Replay
from interlock.records.rl import Completion, Group, Problem, Sampling

# The module of each engine, with open_engine(settings, model, vocabulary, adapter) -> Engine.
ENGINES: dict[EngineName, str] = {
    "torch": "interlock.engine.portable.engine",
    "vllm": "interlock.engine.vllm.engine",
}


class PendingGroup:
    """A problem whose completions are on their way."""

    def __init__(self, problem: Problem, request: Request) -> None:
        self.problem, self.request = problem, request
        self._found: dict[int, Completion] = {}

    @property
    def missing(self) -> int:
        """Completions that are not finished."""
        return self.request.completions - len(self._found)

    def take(self, progress: Progress) -> list[Completion] | None:
        """All completions, in order, if this step has finished the last of them."""
        if progress.completion is not None:
            self._found[progress.number] = progress.completion
        return None if self.missing else in_order(self._found)


class Generator:
    """One generation worker. `name` is put on every group it makes."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, name: str) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.name = name

    def load(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Serve other weights. Raises ModelError, with nothing changed, when they do not fit."""
        self.engine.load(tensors, version)

    def load_adapter(self, version: int, tensors: Mapping[str, Tensor], form: AdapterForm) -> None:
        """Serve an adapter beside the weights. Raises ModelError as `load`."""
        self.engine.load_adapter(tensors, form, version)

    def generate(
        self,
        problems: Sequence[Problem],
        completions: int,
        sampling: Sampling,
        seed: int,
        on_group: Callable[[Group], None] | None = None,
        replay: Replay = NO_REPLAY,
    ) -> list[Group]:
        """`completions` answers to each problem, in order; on_group as soon as a group is complete.

        The same arguments on the same weights give the same groups. Raises ModelError when the chat
        template refuses a problem, ConfigError when a prompt is empty or too long, and
        TrainingError when the model's logits are not finite.
        """
        rules = completions, sampling, seed, replay
        pending = [self.pending(problem, *rules) for problem in problems]

        def group(index: int, answers: list[Completion]) -> Group:
            asked = pending[index]
            opening = self.tokenizer.opening(asked.problem.messages, **asked.problem.template)
            prompt = asked.request.prompt_tokens
            return Group(asked.problem, prompt, answers, self.name, opening)

        def finished(index: int, answers: list[Completion]) -> None:
            if on_group is not None:
                on_group(group(index, answers))

        answers = self.engine.generate([each.request for each in pending], finished)
        return [group(*each) for each in enumerate(answers)]

    def pending(
        self,
        problem: Problem,
        completions: int,
        sampling: Sampling,
        seed: int,
        replay: Replay = NO_REPLAY,
    ) -> PendingGroup:
        """A problem, to be given to the engine. Raises ModelError when the template refuses it,
        ConfigError when its thinking cannot be ended as `sampling` has it.
        """
        prompt = self.tokenizer.chat(problem.messages, **problem.template)
        stop_ids = self.tokenizer.special_ids(sampling.stop)
        budget = budget_of(sampling, self.tokenizer, problem.messages, problem.template)
        asked = problem.id, prompt, completions, sampling, seed, stop_ids
        return PendingGroup(problem, Request(*asked, budget=budget, replay=replay))

    def recent(self, messages: list[dict[str, str]], most: int) -> tuple[list[dict[str, str]], int]:
        """The newest turns of a conversation, and the system turn, that leave the context room for
        an answer; and how many tokens that may have, `most` at the most.

        Raises ConfigError when the last turn alone leaves none.
        """
        context = self.engine.limits.context
        first, room = messages[0]["role"] == "system", min(most, max(1, context // 2))
        kept = list(messages)
        while (left := context - len(self.tokenizer.chat(kept))) < room and len(kept) > first + 2:
            del kept[first : first + 2]  # a question and its answer
        if left < 1:
            raise ConfigError(
                f"the question has {-left} tokens more than the model's context of {context} has "
                "room for; ask a shorter one"
            )
        return kept, min(most, left)

    def reply(
        self,
        messages: list[dict[str, str]],
        sampling: Sampling,
        seed: int,
        on_text: Callable[[str], None],
    ) -> str:
        """One answer to a conversation; on_text with every piece of it as it is written."""
        stream = self.tokenizer.stream()
        asked = self.pending(Problem("chat", messages, ""), 1, sampling, seed)
        self.engine.add("chat", asked.request)
        try:
            while True:
                for progress in self.engine.step():
                    on_text("".join(map(stream.push, progress.tokens)))
                    if progress.completion is not None:
                        return progress.completion.text
        finally:
            self.engine.abort("chat")


def sharing_generator(
    settings: GeneratorSettings,
    decoder: Decoder,
    model: Path,
    chat_template: str | None,
    name: str,
    clock: datetime | None = None,
) -> Generator:
    """A generator of the torch engine that has no weights of its own but those of `decoder`: they
    may change only where the version that is loaded next does.
    """
    from interlock.engine.portable.engine import sharing_engine

    tokenizer = Tokenizer.load(model, chat_template, clock)
    tokenizer.check_fits(decoder.arch.vocab)
    return Generator(sharing_engine(settings, decoder.shared(), tokenizer), tokenizer, name)


def open_generator(
    settings: GeneratorSettings,
    model: Path,
    chat_template: str | None,
    name: str,
    clock: datetime | None = None,
    adapter: AdapterForm | None = None,
) -> Generator:
    """The generator that `settings` describes, with the weights in the directory `model` as
    version 0. `chat_template`: a Jinja file that replaces the model's own, or None; `clock`: the
    time that it is told, or None for the present; `adapter`: the form that versions will have,
    where they are adapters.

    Raises ConfigError when the device is not there, ModelError when the model cannot be read.
    """
    tokenizer = Tokenizer.load(model, chat_template, clock)
    module = importlib.import_module(ENGINES[settings.engine])
    engine: Engine = module.open_engine(settings, model, tokenizer, adapter)
    tokenizer.check_fits(engine.limits.vocab)
    return Generator(engine, tokenizer, name)
