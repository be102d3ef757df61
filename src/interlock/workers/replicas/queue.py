"""Generations that no replica was given yet: priority first, and keys share the rest fairly.

    add ──> by priority ──> by key, in order ──pick──> of the key that was given least

What a key was given is counted in tokens that it may use. A key that asks after a pause is counted
as level with those that wait, so that nobody saves up.
"""

from collections import deque
from collections.abc import Iterator

from interlock.workers.replicas.jobs import LivePart


class FairQueue:
    """Parts in the order in which they are to be given out."""

    def __init__(self) -> None:
        self._waiting: dict[int, dict[str, deque[LivePart]]] = {}  # by priority, then by key
        self._given: dict[str, float] = {}  # tokens, of keys that wait or were given lately
        self._level = 0.0  # of the key that was given something last, before that

    def __iter__(self) -> Iterator[LivePart]:
        for keys in self._waiting.values():
            for parts in keys.values():
                yield from parts

    @property
    def sequences(self) -> int:
        """How many wait."""
        return sum(len(part.numbers) for part in self)

    def add(self, part: LivePart) -> None:
        """Behind all of the same key."""
        asked = part.job.generation
        self._given[asked.key] = max(self._given.get(asked.key, 0.0), self._level_for(asked.key))
        self._waiting.setdefault(asked.priority, {}).setdefault(asked.key, deque()).append(part)

    def first(self) -> LivePart | None:
        """Whose turn it is."""
        if not self._waiting:
            return None
        keys = self._waiting[max(self._waiting)]
        return keys[min(keys, key=lambda key: self._given[key])][0]

    def take(self, part: LivePart) -> None:
        """It was given to a replica."""
        asked = part.job.generation
        self._level = self._given[asked.key]
        self._given[asked.key] += len(asked.prompt) + part.room
        self.remove(part)

    def remove(self, part: LivePart) -> None:
        """Take it out, wherever it waits."""
        asked = part.job.generation
        keys = self._waiting[asked.priority]
        keys[asked.key].remove(part)
        if not keys[asked.key]:
            del keys[asked.key]
        if not keys:
            del self._waiting[asked.priority]
        if not self._waiting:  # nobody is owed anything
            self._level = 0.0
            self._given.clear()

    def _level_for(self, key: str) -> float:
        """Nothing of a key waits: what it did not ask for is not owed to it."""
        waits = any(key in keys for keys in self._waiting.values())
        return 0.0 if waits else self._level
