"""A node's side: qualifies its devices, all at once, and takes part in collectives over links.

    channel ──Examine──> a thread a device ──> runner.qualify ──> Certificate, filed here ┐
            ──LinkPlan──> a thread ──> link.py, a process with a deadline ─> LinkWord ─┴─> channel

It ends with its channel, and with it all its processes (processes/reaper.py).
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing, suppress

import msgspec
import torch

import interlock
from interlock.chips import certificates, device, versions
from interlock.errors import InterlockError, RunError
from interlock.processes.channel import Channel
from interlock.processes.child import UNASKED_BYTES, Child, ChildError, ChildLate, inherited
from interlock.processes.run_delay import processors
from interlock.qualify import runner
from interlock.qualify.check import Check, Level
from interlock.qualify.fleet import link
from interlock.qualify.fleet.talk import (
    CheckNews,
    DeviceNews,
    Examine,
    LinkBroken,
    LinkMeasured,
    LinkNews,
    LinkPlan,
    LinkStep,
    LinkWord,
    Listening,
    NodeAlive,
    NodeFacts,
    NodeReply,
    NodeRequest,
)
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.trust import Certificate, Finding
from interlock.text import described, error_line

_BEAT_S = 5.0
JOIN_S = 300.0  # for a process to import torch, on a busy machine; and for all of a link to meet
_COLLECTIVES = "collectives"


def serve(channel: Channel) -> None:
    """Say what this node is, then do what is asked until the channel ends."""

    def say(reply: NodeReply) -> None:
        with suppress(OSError):  # nobody listens any more: the process ends in a moment
            channel.send(to_bytes(reply))

    say(_facts())
    _thread(_beat, say)
    alone = threading.Lock()
    while (data := channel.receive()) is not None:
        match from_bytes(data, NodeRequest):
            case Examine() as asked:
                share = max(1, processors() // len(asked.devices))
                os.environ["OMP_NUM_THREADS"] = str(share)  # of the processes of the checks
                for number in range(len(asked.devices)):
                    _thread(_examine, say, asked, number, alone)
            case LinkPlan() as plan:
                _thread(_join, say, plan)


def _facts() -> NodeFacts:
    return NodeFacts(
        host=socket.gethostname(),
        interlock=interlock.__version__,
        suite=versions.suite(),
        commit=versions.commit(),
        torch=str(torch.__version__),
        cores=processors(),
        devices=device.available(),
    )


def _thread(run: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=run, args=arguments, daemon=True).start()


Say = Callable[[NodeReply], None]


def _beat(say: Say) -> None:
    while True:
        time.sleep(_BEAT_S)
        say(NodeAlive())


class _CheckWatch(runner.Watch):
    """Tells of every check; and lets one device at a time prove its collectives, which use the
    node's other devices."""

    def __init__(self, say: Say, number: int, alone: threading.Lock) -> None:
        self._say, self._number, self._alone = say, number, alone

    def begins(self, check: Check) -> None:
        if check.id == _COLLECTIVES:
            self._alone.acquire()

    def ended(self, finding: Finding) -> None:
        if finding.check == _COLLECTIVES:
            self._alone.release()
        self._say(CheckNews(self._number, finding.check))


def _examine(say: Say, asked: Examine, number: int, alone: threading.Lock) -> None:
    try:
        found = runner.qualify(
            asked.devices[number],
            Level(asked.level),
            checks=runner.chosen(asked.checks),
            minutes=asked.minutes,
            seed=asked.seed,
            fail_fast=asked.fail_fast,
            watch=_CheckWatch(say, number, alone),
        )
        say(DeviceNews(number, found, _file(found, alone)))
    except InterlockError as error:
        say(DeviceNews(number, None, error_line(error)))
    except Exception as error:
        traceback.print_exc()
        say(DeviceNews(number, None, described(error, 300)))


def _file(certificate: Certificate, alone: threading.Lock) -> str:
    """Where runs on this node look for it; "" or why not."""
    try:
        with alone:  # devices of one stack have one file
            certificates.keep(certificate)
    except RunError as error:
        return f"not filed on the node: {error_line(error)}"
    return ""


def _join(say: Say, plan: LinkPlan) -> None:
    """One rank of a link, to its end or to its deadline."""

    def tell(word: LinkWord) -> None:
        say(LinkNews(plan.link, plan.rank, word))

    step, seconds = "", JOIN_S
    try:
        with closing(Child(link.__name__, inherited())) as child:
            child.send(to_bytes(plan))
            while True:
                word: LinkWord = from_bytes(child.receive(seconds, UNASKED_BYTES), LinkWord)
                tell(word)
                match word:
                    case Listening():
                        seconds = JOIN_S
                    case LinkStep():
                        step, seconds = word.step, plan.seconds
                    case LinkMeasured() | LinkBroken():
                        return
    except ChildLate as late:
        where = f"hangs in {step}" if step else "did not meet"
        tell(LinkBroken(f"{where}: not over after {late.deadline}", hangs=True))
    except (ChildError, OSError, msgspec.MsgspecError) as error:
        print(f"{plan.link}: {error}", file=sys.stderr)
        tell(LinkBroken(f"its process failed{step and f' in {step}'}: {error_line(error, 300)}"))
