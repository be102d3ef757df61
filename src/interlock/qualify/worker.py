"""Qualifies the device of a generator worker in quarantine, on its machine, in its environment.

    channel ──Qualify──> runner.qualify ──Certificate──> filed here ──Qualified | Failed──> channel
    every few seconds ── Alive ──> channel

A fleet starts it in the worker's place (workers/pool.py), with the worker's Python and variables.
"""

import sys

from interlock.errors import InterlockError, RunError
from interlock.processes.channel import Channel
from interlock.records.trust import Role
from interlock.workers import protocol
from interlock.workers.protocol import Failed, Qualified, Qualify


def serve(channel: Channel) -> None:
    """Answer requests until the dispatcher is gone. Bugs end the process, with a traceback."""
    protocol.beat(channel)
    while (data := channel.receive()) is not None:
        asked = protocol.ask(data)
        assert isinstance(asked, Qualify)
        channel.send(protocol.encode(_answer(asked)))


def _answer(asked: Qualify) -> Qualified | Failed:
    # Here, so that there are signs of life while torch is imported.
    from interlock.chips import certificates
    from interlock.qualify.check import Level
    from interlock.qualify.checks import CHECKS
    from interlock.qualify.runner import qualify

    # Collectives and the rest of what training needs would use other devices of the run.
    checks = [check for check in CHECKS.values() if Role.GENERATE in check.needed]
    try:
        certificate = qualify(asked.device, Level(asked.level), checks=checks, fail_fast=True)
    except InterlockError as error:
        return protocol.failed(error, [asked.id])
    try:
        certificates.keep(certificate)  # so that the worker, when it comes back, has it to show
    except RunError as error:
        print(f"not filed: {error}", file=sys.stderr, flush=True)
    return Qualified(certificate, id=asked.id)
