"""Is what lies beyond 2^31 elements of a tensor reached?

    zeros, a little more than 2 GiB ── written at its end, and before and after 2^31 ──┐
                                   the same places read back, and found by all of it ──┴─> exact

Offsets of 32 bits end there. Tensors of that size are ordinary: the logits of 16,384 tokens over a
vocabulary of 151,936, or a cache. Nothing is computed, so nothing may differ.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from interlock.chips import device
from interlock.qualify.check import Evidence, Subject, judged
from interlock.records.trust import Measure
from interlock.text import described

_COLUMNS = 1 << 10
_ROWS = (1 << 31) // _COLUMNS + 3
_SPARE = 2  # times the tensor must be free
_EDGES = ((1 << 20) - 1, 1 << 20, (1 << 21) - 1, 1 << 21)  # rows on both sides of 2^30 and 2^31


def reached(subject: Subject) -> Evidence:
    """Whole rows, by every way that the engine and the learner have: int8, 2 GiB on the device; on
    one that has less free, as much as it could hold.
    """
    count = min(_ROWS, device.room(subject.device) // (_SPARE * _COLUMNS))
    at = torch.tensor(sorted({0, count - 1, *(row for row in _EDGES if row < count)}))
    drawn = torch.Generator().manual_seed(subject.seed)
    rows = torch.randint(1, 100, (len(at), _COLUMNS), generator=drawn, dtype=torch.int8)
    large = torch.zeros(count, _COLUMNS, dtype=torch.int8, device=subject.device)
    measures = []
    for label, write in _WRITES.items():
        rows = rows.roll(1, 0)
        measures.append(_told(label, partial(_written, write, large, at, rows)))
    for label, read in _READS.items():
        measures.append(_told(label, partial(_read, read, large, at, rows)))
    elements = f"{count * _COLUMNS:,} elements"
    return judged(
        measures,
        f"a tensor of {elements} is written and read in all its length",
        f"of a tensor of {elements}, {{count}} of {{total}} ways to write or read miss some, "
        "worst: {worst}",
        {"elements": count * _COLUMNS},
    )


Write = Callable[[Tensor, Tensor, Tensor], object]
_WRITES: dict[str, Write] = {
    "index_copy_": lambda x, at, rows: x.index_copy_(0, at.to(x.device), rows.to(x.device)),
    "index_put_": lambda x, at, rows: x.index_put_((at.to(x.device),), rows.to(x.device)),
    "copy_ into rows": lambda x, at, rows: [
        x[place].copy_(row) for place, row in zip(at.tolist(), rows, strict=True)
    ],
}
_READS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_select": lambda x, at: x.index_select(0, at.to(x.device)).cpu(),
    "embedding": lambda x, at: torch.nn.functional.embedding(at.to(x.device), x).cpu(),
    "rows": lambda x, at: torch.stack([x[place].cpu() for place in at.tolist()]),
    "the last rows, counted": lambda x, at: _nonzero(x, at),
}


def _nonzero(x: Tensor, at: Tensor) -> Tensor:
    """The rows that all of `x` is searched for."""
    (places,) = x.amax(1).nonzero(as_tuple=True)
    assert torch.equal(places.cpu(), at), f"rows {places.tolist()[:10]} are not zero"
    return x[places].cpu()


def _written(write: Write, x: Tensor, at: Tensor, rows: Tensor) -> float:
    write(x, at, rows)
    return _different(torch.stack([x[place].cpu() for place in at.tolist()]), rows)


def _read(read: Callable[[Tensor, Tensor], Tensor], x: Tensor, at: Tensor, rows: Tensor) -> float:
    return _different(read(x, at), rows)


def _different(found: Tensor, expected: Tensor) -> float:
    return (found != expected).double().sum().item()


def _told(label: str, run: Callable[[], float]) -> Measure:
    """Value: elements that are wrong."""
    try:
        return Measure(label, run(), 0.0, 0.0)
    except Exception as error:
        return Measure(f"{label}: {described(error, 200)}", float("inf"), 0.0)
