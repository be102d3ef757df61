"""Other processes that hold what a test says, beside four threads on four processors."""

from collections.abc import Iterator

import pytest
import torch

from interlock.chips import threads
from interlock.recipes import update_threads


class Told:
    """Stands in for processes.others.Others."""

    held_now = 0.0
    seconds = threads.WINDOW_S

    def held(self) -> float:
        return self.held_now


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chosen by nobody."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for module in (threads, update_threads):
        monkeypatch.setattr(module, "Others", Told)
    monkeypatch.setattr(threads, "processors", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)
