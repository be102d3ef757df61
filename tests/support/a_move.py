"""A move from the CPU to the simulated accelerator, with no proof."""

from typing import Any

from interlock.records.moves import Location, Move
from interlock.records.trust import Stack

THERE = Location({"device": "sim", "kernel": "torch"}, Stack("sim"))
HERE = Location({"device": "cpu", "kernel": "onednn"})


def a_move(**changes: Any) -> Move:
    settings = {
        "part": "learner",
        "before": HERE,
        "after": THERE,
        "stage": 0,
        "step": 3,
        "time": 2e9,  # before the rows that a test makes
        "findings": [],
        "trust": "train",
    }
    return Move(**settings | changes)
