"""What decode.py and learner.py have in common: shapes in turn, as deep as memory and time allow.

    bounds ──> how many layers fit ──> ours, timed ──> transformers, timed ──> SpeedReport, as JSON

The report is written after every figure: what a deadline kills leaves those that were there.
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import torch

from interlock.chips import device, vendors
from interlock.models.architecture import Architecture
from interlock.preflight import bounds
from interlock.preflight.bounds import Bounds
from interlock.preflight.shapes import SHAPES, shallower
from interlock.processes.deadline import Deadline
from interlock.rundir.files import write_atomically
from interlock.text import described

_MEMORY = 0.7  # share of what is free that a measurement may take
# What a whole measurement is taken to need, in times the bound: warming up, and distance from it.
# Too little of it costs figures, too much costs layers.
_SLACK = 12.0
_PEER = 3.0  # times longer than ours that transformers may take, with making its model


class SpeedRow(msgspec.Struct, kw_only=True):
    """One measurement. Rates are in tokens a second."""

    shape: str
    layers: int  # measured
    of_layers: int  # that the shape has
    rows: int  # sequences at a time
    rate: float = 0.0
    bound: float = 0.0  # what the device's products and copies would allow, with these layers
    at_full_depth: float = 0.0  # the rate, scaled by the work of all layers
    recorded: float | None = None  # the rate with recorded steps; None: there are none
    transformers: float | None = None  # its rate, with these layers
    note: str = ""  # what was not measured, and why


class SpeedReport(msgspec.Struct):
    """Of one device."""

    device: str
    dtype: str
    bounds: Bounds
    rows: list[SpeedRow] = []


class Demand(NamedTuple):
    """What one measurement asks of a device."""

    memory: float  # bytes
    seconds: float  # that the bounds allow


class Workload(Protocol):
    """One kind of work at some number of rows."""

    rows: int
    tokens: int  # that one run of it is counted as

    def load(self, arch: Architecture, dtype: torch.dtype, limits: Bounds) -> Demand: ...
    def ours(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        """Seconds of one run."""
        ...

    def recorded(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float | None:
        """The same with recorded steps, where the device has them (chips/graphs.py)."""
        ...

    def theirs(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        """The same with transformers. Raises whatever it raises."""
        ...


def depth(
    arch: Architecture, need: Callable[[Architecture], Demand], memory: float, seconds: float
) -> int:
    """The most layers of `arch` that fit; 0: not even one."""
    for layers in range(arch.layers, 0, -1):
        asked = need(shallower(arch, layers))
        if asked.memory <= memory and asked.seconds <= seconds:
            return layers
    return 0


def run(workloads: list[Workload]) -> None:
    """The command line of a measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--shapes", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    time = Deadline(given.seconds)
    place = device.claim(given.device)
    dtype = torch.float32 if vendors.of(device.kind(place)).host else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    report = SpeedReport(given.device, name, bounds.measured(place, dtype))
    asked = [(shape, work) for shape in given.shapes.split(",") for work in workloads]
    for left, (shape, work) in zip(range(len(asked), 0, -1), asked, strict=True):
        row = _row(shape, work, report.bounds, dtype, place, time.left / left)
        report.rows.append(row)
        if row.layers:
            _measure(row, work, dtype, place, Deadline(time.left / left), report, given.out)
        _write(report, given.out)


def _row(
    shape: str,
    work: Workload,
    limits: Bounds,
    dtype: torch.dtype,
    place: torch.device,
    seconds: float,
) -> SpeedRow:
    """What is to be measured, and what the device would allow."""
    arch, free = SHAPES[shape], _MEMORY * device.room(place)
    layers = depth(arch, lambda a: work.load(a, dtype, limits), free, seconds / _SLACK)
    row = SpeedRow(shape=shape, layers=layers, of_layers=arch.layers, rows=work.rows)
    need = work.load(shallower(arch, layers or 1), dtype, limits)
    if layers:
        row.bound = work.tokens / need.seconds
        if layers < arch.layers:
            row.note = f"{layers} of {arch.layers} layers, for memory or time"
    else:
        row.note = (
            f"not measured: one layer takes {need.memory / 1e9:.1f} GB and about "
            f"{need.seconds * _SLACK:.0f} s, there are {free / 1e9:.1f} GB and {seconds:.0f} s"
        )
    return row


def _measure(
    row: SpeedRow,
    work: Workload,
    dtype: torch.dtype,
    place: torch.device,
    time: Deadline,
    report: SpeedReport,
    out: Path,
) -> None:
    arch = shallower(SHAPES[row.shape], row.layers)
    began = time.left
    took = work.ours(arch, dtype, place)
    ours_s = began - time.left
    row.rate = work.tokens / took
    full = work.load(SHAPES[row.shape], dtype, report.bounds).seconds
    row.at_full_depth = row.rate * work.tokens / row.bound / full
    _write(report, out)
    _forget(place)
    if (took_recorded := work.recorded(arch, dtype, place)) is not None:
        row.recorded = work.tokens / took_recorded
        _write(report, out)
        _forget(place)
    if time.left < _PEER * ours_s:
        _add(row, f"transformers not measured: {time.left:.0f} s left")
        return
    try:
        row.transformers = work.tokens / work.theirs(arch, dtype, place)
    except ModuleNotFoundError as error:
        _add(row, f"transformers not measured: {error.name} is not installed")
    except Exception as error:  # a peer's failure on this device is no failure of ours
        _add(row, f"transformers not measured: {described(error, 120)}")
    _forget(place)


def _add(row: SpeedRow, note: str) -> None:
    row.note = "; ".join(filter(None, [row.note, note]))


def _forget(place: torch.device) -> None:
    gc.collect()
    device.empty_cache(place)


def _write(report: SpeedReport, out: Path) -> None:
    write_atomically(out, msgspec.json.format(msgspec.json.encode(report), indent=1))
