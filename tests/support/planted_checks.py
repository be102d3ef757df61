"""Checks that behave in every way a check can, for the runner to see."""

import os
import signal
import time

import torch

from interlock.errors import ConfigError
from interlock.qualify.check import Evidence, Subject, judged
from interlock.records.trust import Measure


def passes(subject: Subject) -> Evidence:
    assert torch.ones(2, device=subject.device).sum().item() == 2
    told: dict[str, float | int | str] = {"level": subject.level, "seed": subject.seed}
    return Evidence(True, "all is well", told, world_size=2)


def fails(subject: Subject) -> Evidence:
    measures = [Measure("mm", 0.5, 0.1, 0.01), Measure("add", 0.0, 0.1, 0.0)]
    return judged(measures, "right", "{count} of {total} are wrong, worst {worst}")


def cannot_run(subject: Subject) -> Evidence:
    raise ConfigError("no compiler here; install one")


def raises(subject: Subject) -> Evidence:
    raise RuntimeError("The Inner error is reported as above. error code is 507035\nsecond line")


def dies(subject: Subject) -> Evidence:
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("not reached")


def hangs(subject: Subject) -> Evidence:
    time.sleep(3600)
    raise AssertionError("not reached")
