"""Qualifies the device of a generator worker in quarantine, on its machine, in its environment.

    channel ──Qualify──> runner.qualify ──Certificate──> filed here ──Qualified | Failed──> channel
    every few seconds ── Alive ──> channel

A fleet starts it in the worker's place (rollout/crew.py), with the worker's Python and variables.
"""

import threading
import time

from interlock.errors import InterlockError, UserError
from interlock.fleet.base import Channel
from interlock.rollout import protocol
from interlock.rollout.protocol import Alive, Failed, Qualified, Qualify

_BEAT_S = 2.0


def serve(channel: Channel) -> None:
    """Answer requests until the dispatcher is gone. Bugs end the process, with a traceback."""
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    while (data := channel.receive()) is not None:
        asked = protocol.request(data)
        assert isinstance(asked, Qualify)
        channel.send(protocol.encode(_answer(asked)))


def _answer(asked: Qualify) -> Qualified | Failed:
    # Here, so that there are signs of life while torch is imported.
    from interlock.chips import certificates
    from interlock.qualify.check import Level
    from interlock.qualify.runner import qualify

    try:
        certificate = qualify(asked.device, Level(asked.level), fail_fast=True)
        certificates.keep(certificate)  # so that the worker, when it comes back, has it to show
    except InterlockError as error:
        return Failed(" ".join(str(error).split()), permanent=isinstance(error, UserError))
    return Qualified(certificate)


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(_BEAT_S)
        channel.send(protocol.encode(Alive()))
