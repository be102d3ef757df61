"""Checks that behave in every way a check can, for the runner to see."""

import os
import signal
import sys
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


def exits(subject: Subject) -> Evidence:
    print("about to exit", flush=True)
    os._exit(7)


def prints(subject: Subject) -> Evidence:
    print("of no interest", flush=True)
    return Evidence(True, "")


def in_threads(subject: Subject) -> Evidence:
    """Would hang where the process that it is a fork of had computed in threads."""
    torch.set_num_threads(2)
    x = torch.ones(1 << 20, requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None
    return Evidence(x.grad.sum().item() == 1 << 21, "")


def surroundings(subject: Subject) -> Evidence:
    plugin = sys.modules.get("planted_plugin")
    told: dict[str, float | int | str] = {
        "strict": os.environ.get("PLANTED_STRICT", ""),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "autoload": os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "unset"),
        "plugin": "" if plugin is None else "ours" if plugin.pid == os.getpid() else "inherited",
    }
    return Evidence(True, "", told)
