"""The runs that a page follows, by one task for all who look at it.

    the files ──poll──> Following ──told──> whoever waits for news      a watcher who comes ends
       └── again at once, soon, or after an idle second ──┘             the idle second

While a backlog is read, it is told of once it is read, or now and then where that takes long: what
is drawn of a part of it is drawn for nothing.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from interlock.report.live.following import Following

_LOOK_S = 0.05  # between looks at the files while somebody watches
_IDLE_S = 1.0  # and while nobody does
_BACKLOG_S = 2.0  # between words of one that is still read
_BEAT_S = 15.0  # that anybody waits for news


class FollowedRuns:
    """Each with its name, and the version of it that may be told."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = [Following(path) for path in runs]
        self.names = _names([run.path.resolve() for run in self.runs])
        self.told = [-1] * len(self.runs)  # -1: it has not been read yet
        self._telling = time.monotonic()  # when they were told of last, or all was read
        self._news = asyncio.Condition()
        self._watchers = 0
        self._watched = asyncio.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Somebody looks as long as the block goes on; who comes is not left to wait."""
        self._watchers += 1
        self._watched.set()
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._watched.clear()

    async def follow(self) -> None:
        """Look at the files for ever."""
        while True:
            if await self._look():
                continue
            if self._watched.is_set():
                await asyncio.sleep(_LOOK_S)
            else:
                await self._idle()

    async def news(self, seen: Sequence[int]) -> bool:
        """Wait until something else than `seen` is told. False: a beat has passed without."""

        async def newer() -> None:
            async with self._news:
                await self._news.wait_for(lambda: self.told != seen)

        try:
            await asyncio.wait_for(newer(), _BEAT_S)
        except TimeoutError:
            return False
        return True

    async def begun(self, number: int) -> None:
        """Wait until there is something to tell of a run, or a beat has passed without."""
        with self.watching():
            while self.told[number] < 0 and await self.news(list(self.told)):
                pass

    async def _idle(self) -> None:
        """A while, or until somebody comes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._watched.wait(), _IDLE_S)

    async def _look(self) -> bool:
        """-> whether there is more to read at once"""
        more = [await asyncio.to_thread(run.poll) for run in self.runs]
        now = time.monotonic()
        late = now - self._telling >= _BACKLOG_S
        told = [
            run.version if late or not behind else before
            for run, behind, before in zip(self.runs, more, self.told, strict=True)
        ]
        if late or not any(more):
            self._telling = now
        if told != self.told:
            async with self._news:
                self.told = told
                self._news.notify_all()
        return any(more)

    def close(self) -> None:
        for run in self.runs:
            run.close()


def _names(paths: Sequence[Path]) -> list[str]:
    """As little of each path's end as tells it from the others."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            break
    return found
