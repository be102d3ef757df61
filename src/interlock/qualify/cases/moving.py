"""Cases that only move numbers, write into views, or must be refused: every bit must arrive."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.qualify.cases.case import FP32, Case, flags, index, normal, shuffled


def _moves() -> Iterator[Case]:
    """What only moves numbers: every bit must arrive."""
    for size in (257, 1025):
        x, rows = normal(size, 65), index(size, 129)
        for label, pick in _PICKING.items():
            yield Case(label, pick, (x, rows), 0, grad=True)
        yield Case("gather", lambda x, at: x.gather(0, at), (x, index(size, 33, 65)), 0, grad=True)
        for label, view in _VIEWS.items():
            yield Case(label, view, (x,), 0, grad=True)
    for size, share in ((513, 0.5), (65_537, 0.01), (1_048_577, 0.3)):
        some = flags(size, share=share)
        yield Case("nonzero", lambda keep: keep.nonzero()[:, 0], (some,), 0, dtypes=(FP32,))
        yield Case("nonzero of columns", _nonzero_columns, (some,), 0, dtypes=(FP32,))
        yield Case("pick by flags", lambda x, keep: x[keep], (normal(size), some), 0)
    counted = index(64, 4097)
    yield Case("bincount", lambda x: x.bincount(minlength=64), (counted,), 0, dtypes=(FP32,))
    yield Case("integer cumsum", lambda x: x.cumsum(0), (counted,), 0, dtypes=(FP32,))


_PICKING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda x, at: F.embedding(at, x),
    "index_select": lambda x, at: x.index_select(0, at),
    "pick by index": lambda x, at: x[at],
    "pick of pairs": lambda x, at: x[at, at % 65],
    "index_select of repeated rows": lambda x, at: x.index_select(0, at % 7),
    "embedding of repeated rows": lambda x, at: F.embedding(at % 7, x),
}
_VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda x: torch.cat([x[:, 3:], x[:0, 3:], x[5:, :62]]),
    "stack": lambda x: torch.stack([x[:100], x[100:200]], dim=1),
    "expand": lambda x: x[:, None].expand(-1, 3, -1).contiguous(),
    "split": lambda x: torch.cat(x.split([5, 60], dim=1)[::-1], dim=1),
    "transpose": lambda x: x.T.contiguous(),
    "permute": lambda x: x[:, :64].unflatten(1, (4, 16)).permute(2, 0, 1).contiguous(),
    "flip": lambda x: x.flip(0),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=0),
    "tril": lambda x: x.tril(-3),
    "every other": lambda x: x[1::2, ::3].contiguous(),
    "masked_fill": lambda x: x.masked_fill(x > 0.5, -1.0),
}


def _nonzero_columns(keep: Tensor) -> Tensor:
    return keep[: keep.numel() // 8 * 8].view(-1, 8).nonzero()


def _writes() -> Iterator[Case]:
    """What writes into memory that has been there: weight loading, caches, updates."""
    x, rows = normal(257, 65), normal(64, 65)
    for label, write in _WRITING.items():
        terms = 64 if "add" in label else 0
        yield Case(label, write, (x, rows, shuffled(64)), terms)
    weights = normal(3 * 128, 512)
    yield Case("copy_ of a weight into stacked rows", _load, (weights, normal(128, 512)), 0)
    yield Case("copy_ of a weight in fp32", _load_wide, (weights, normal(128, 512)), 0)
    cache = normal(2, 5, 3, 33, 64)
    yield Case("cache rows", _append, (cache, normal(2, 2, 3, 17, 64)), 0)
    yield Case("cache at places", _write_places, (cache, normal(15, 64), shuffled(15)), 0)


_WRITING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "copy_": lambda x, rows, at: _after(x, x[:64].copy_(rows)),
    "copy_ at an offset": lambda x, rows, at: _after(x, x[33:97].copy_(rows)),
    "copy_ into every other row": lambda x, rows, at: _after(x, x[1:129:2].copy_(rows)),
    "copy_ into columns": lambda x, rows, at: _after(x, x[7:71, 3:40].copy_(rows[:, 3:40])),
    "copy_ into a view of a view": lambda x, rows, at: _after(
        x, x[5:][2:66][:, 1:][:, :9].copy_(rows[:, :9])
    ),
    "copy_ into a transposed view": lambda x, rows, at: _after(x, x.T[:, :64].copy_(rows.T)),
    "copy_ of one expanded row": lambda x, rows, at: _after(x, x[9:73].copy_(rows[:1])),
    "copy_ of one number": lambda x, rows, at: _after(x, x[9, 3].copy_(rows[1, 1])),
    "copy_ of nothing": lambda x, rows, at: _after(x, x[9:9].copy_(rows[:0])),
    "copy_ into what was empty": lambda x, rows, at: x.new_empty(0).resize_(rows.shape).copy_(rows),
    "copy of no elements": lambda x, rows, at: torch.cat(
        [x[:0].clone(), rows[:0].contiguous(), rows]
    ),
    "fill_": lambda x, rows, at: _after(x, x[5:9, 1:3].fill_(2.0)),
    "zero_": lambda x, rows, at: _after(x, x[5:9].zero_()),
    "masked_fill_": lambda x, rows, at: _after(x, x[:64].masked_fill_(rows > 0, -1.0)),
    "index_copy_": lambda x, rows, at: x.index_copy_(0, at, rows),
    "index_put_": lambda x, rows, at: x.index_put_((at,), rows),
    "assignment by list": lambda x, rows, at: _assigned(x, rows),
    "scatter_": lambda x, rows, at: x.scatter_(0, at[:, None].expand(-1, 65), rows),
    "scatter_reduce_ amax": lambda x, rows, at: x.scatter_reduce_(
        0, (at % 9)[:, None].expand(-1, 65), rows, "amax"
    ),
    "index_add_": lambda x, rows, at: x.index_add_(0, at % 9, rows),
    "scatter_add_": lambda x, rows, at: x.scatter_add_(0, (at % 9)[:, None].expand(-1, 65), rows),
    "adding index_put_": lambda x, rows, at: x.index_put_((at % 9,), rows, accumulate=True),
    "add_ into a slice": lambda x, rows, at: _after(x, x[3:67].add_(rows, alpha=0.5)),
}


def _after(whole: Tensor, written: Tensor) -> Tensor:
    return whole


def _assigned(x: Tensor, rows: Tensor) -> Tensor:
    x[[3, 1, 200]] = rows[:3]
    return x


def _load(stacked: Tensor, weight: Tensor) -> Tensor:
    """As checkpoints are loaded: a view of rows of one parameter takes one tensor of the file."""
    stacked.detach()[128:256].copy_(weight)
    return stacked


def _load_wide(stacked: Tensor, weight: Tensor) -> Tensor:
    """A checkpoint in fp32, whatever the dtype of the parameters."""
    stacked.detach()[128:256].copy_(weight.float())  # fp64 is not on every device
    return stacked


def _append(cache: Tensor, fresh: Tensor) -> Tensor:
    cache[:, 1:3, :, :17] = fresh
    cache[:, [0, 3]] = cache[:, [4, 1]]
    return cache


def _write_places(cache: Tensor, fresh: Tensor, at: Tensor) -> Tensor:
    cache[1].view(-1, 64).index_copy_(0, at * 33 + 4, fresh)
    return cache


def _refused() -> Iterator[Case]:
    """Calls that the host must refuse before the device sees them."""
    a, b = normal(2, 3), normal(4, 5)
    for table, lenient in ((_MISSHAPEN, False), (_MISTYPED, True)):
        for label, run in table.items():
            case = Case(f"refusal of {label}", run, (a, b), 0, dtypes=(FP32,))
            yield replace(case, raises=True, lenient=lenient)


_MISSHAPEN: dict[str, Callable[[Tensor, Tensor], object]] = {
    "mm of shapes that do not fit": lambda a, b: torch.mm(a, b),
    "add of shapes that do not fit": lambda a, b: a + b,
    "cat of shapes that do not fit": lambda a, b: torch.cat([a, b]),
    "copy_ of shapes that do not fit": lambda a, b: a.copy_(b),
    "view of the wrong size": lambda a, b: a.view(4, 2),
    "an index beyond the end, known to the host": lambda a, b: a[5],
}
# Some vendors convert what the CPU refuses.
_MISTYPED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "mm of two dtypes": lambda a, b: torch.mm(a, a.T.bfloat16()),
    "index_select by floats": lambda a, b: a.index_select(0, a[0]),
    "gather by floats": lambda a, b: a.gather(1, a),
    "embedding by floats": lambda a, b: F.embedding(a, b),
    "a mask of floats": lambda a, b: a.masked_fill(a, 0.0),
}


TABLES = (_moves, _writes, _refused)
