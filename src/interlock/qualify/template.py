"""The process that imports what checks need, once, and forks for each.

    runner ──modules──────> import them, and torch, without vendors' plug-ins
           ──ProbeRequest──> fork ──> probe.py: plug-ins, device, check ──ProbeReply──> runner
                               ⋮

Nothing is opened here: what a check does to its process, and a process to its device, ends with the
fork. A check that does not answer ends this process, or is killed with it: the runner starts a new
one for the next.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from interlock.processes.channel import Channel
from interlock.processes.fork import FORKS, in_fork

_PROBE = "interlock.qualify.probe"
_LATER = "torch._dynamo"  # half a thousand modules that torch imports with the first optimizer
_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def serve(channel: Channel) -> None:
    """Answer requests, after the modules, until the runner has gone; one where nothing forks."""
    modules = channel.receive()
    if modules is None:
        return
    with _without_plugins():
        for name in [_PROBE, _LATER, *modules.decode().split()]:
            with suppress(Exception):  # which comes again when it is asked for
                importlib.import_module(name)
    if not FORKS:
        importlib.import_module(_PROBE).serve(channel)
        return
    gc.freeze()  # no fork looks for garbage among what was imported, nor copies it
    while (request := channel.receive()) is not None:
        channel.send(in_fork(_PROBE, request))


@contextmanager
def _without_plugins() -> Iterator[None]:
    """torch loads those of vendors when it is imported, and they may open the device."""
    users = os.environ.get(_AUTOLOAD)
    os.environ[_AUTOLOAD] = "0"
    try:
        yield
    finally:
        del os.environ[_AUTOLOAD]
        if users is not None:
            os.environ[_AUTOLOAD] = users
