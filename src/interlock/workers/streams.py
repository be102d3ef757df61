"""What a worker draws token by token, for whoever serves with it: one message a step for all.

    Complete ──begin──> engine ──take, progress by progress──> told ──> Drawn, of the whole step
             └─ Prompted, where the prompt's own log-probabilities are asked for

A Complete that the engine refuses fails alone.
"""

from interlock.engine.base import Engine, Progress, Request
from interlock.records.serving import Generation
from interlock.workers.protocol import Complete, Drawn, Prompted, Stretch

_NAME = "stream/"  # of its requests in the engine


class Streams:
    """The Completes that are open in one engine, and what the present step drew for them."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}  # choices that are not finished, by the engine's name
        self._drawn: list[Stretch] = []

    @property
    def open(self) -> bool:
        return bool(self._left)

    @property
    def asks(self) -> list[int]:
        """Numbers of those that are open."""
        return [_ask(name) for name in self._left]

    def begin(self, asked: Complete, engine: Engine) -> Prompted | None:
        """Raises ConfigError on what the engine can never serve, with nothing taken."""
        generation, name = asked.generation, f"{_NAME}{asked.id}"
        engine.add(name, _request(generation))
        self._left[name] = generation.choices
        if generation.prompt_logprobs is None:
            return None
        scores = engine.score(generation.prompt, generation.prompt_logprobs)
        return Prompted(scores.logprobs, scores.top, id=asked.id)

    def take(self, progress: Progress) -> bool:
        """Whether it is of a Complete; then it is told with the others of this step."""
        name = progress.name
        if name not in self._left:
            return False
        ended = progress.completion
        self._drawn.append(
            Stretch(
                _ask(name),
                progress.number,
                progress.tokens,
                progress.logprobs,
                None if ended is None else ended.finish,
                progress.cached,
                list(progress.top),
            )
        )
        if ended is not None:
            self._left[name] -= 1
            if not self._left[name]:
                del self._left[name]
        return True

    def told(self, version: int) -> Drawn | None:
        """All that was drawn since it was last told, from weights of `version`."""
        drawn, self._drawn = self._drawn, []
        return Drawn(version, drawn) if drawn else None

    def forget(self, ask: int, engine: Engine) -> None:
        name = f"{_NAME}{ask}"
        if self._left.pop(name, None) is not None:
            engine.abort(name)
        self._drawn = [each for each in self._drawn if each.ask != ask]


def _ask(name: str) -> int:
    return int(name.removeprefix(_NAME))


def _request(generation: Generation) -> Request:
    return Request(
        generation.noise,
        generation.prompt,
        generation.choices,
        generation.sampling,
        generation.seed,
        frozenset(generation.stop_ids),
        generation.rules,
        generation.first,
        generation.drawn,
        owner=generation.key,
    )
