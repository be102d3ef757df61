"""A generator worker without an engine, for the dispatcher's tests: real process, made-up answers.

It behaves well but for the faults in $STUB_FAULTS, JSON: {"fault": [when, …]}. `when` counts the
worker's units (or starts, or loads) over all its lives, from 1; the count is kept in $STUB_STATE.
"""

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

from findings import findings_for
from msgspec.structs import replace

from interlock.chips import certificates
from interlock.processes.channel import Channel
from interlock.records.rl import Completion, FinishReason, Problem, Segment
from interlock.records.trust import Certificate, Finding, Result, Stack, Trust
from interlock.workers import protocol
from interlock.workers.protocol import (
    Answered,
    Failed,
    Failure,
    Generate,
    Load,
    Open,
    Qualified,
    Qualify,
    Room,
)

VOCAB = 100
ROOM = 6  # sequences
STACK = Stack("cpu", "no chip", "", "", "", "", "", "")


def score(version: int, tokens: int) -> list[float]:
    """What learner and engine agree on for the canary's text; differs from version to version."""
    return [-1.0 - math.sin(version + position) / 4 for position in range(tokens - 1)]


def prompt(problem: Problem) -> list[int]:
    return [len(problem.id), *(ord(character) % VOCAB for character in problem.id)]


def answer(problem: Problem, count: int, version: int, seed: int) -> list[Completion]:
    """A function of its arguments alone, as an engine's is."""
    drawn = [[(seed + 7 * n + k) % VOCAB for k in range(1 + n % 3)] for n in range(count)]
    return [
        Completion.sampled(
            tokens, [-0.5] * len(tokens), FinishReason.STOP, f"{problem.id} {tokens}", version
        )
        for tokens in drawn
    ]


class Stub:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.faults = json.loads(os.environ.get("STUB_FAULTS", "{}"))
        self.state = Path(os.environ["STUB_STATE"])
        self.name = ""
        self.version = self.before = -1
        self.canary: protocol.Canary | None = None

    def due(self, event: str, *faults: str) -> str:
        """Count one more `event`; the fault among `faults` that is due at it."""
        counts = json.loads(self.state.read_text()) if self.state.exists() else {}
        counts[event] = counts.get(event, 0) + 1
        self.state.write_text(json.dumps(counts))
        now = counts[event]
        return next((f for f in faults if now in self.faults.get(f, [])), "")

    def send(self, message: object) -> None:
        self.channel.send(protocol.encode(message))

    def open(self, asked: Open) -> None:
        self.name, self.canary = asked.name, asked.canary
        match self.due("start", "refuse", "no_device", "mute_start"):
            case "refuse":
                raise SystemExit("no driver found")
            case "no_device":
                reason = "device 'npu' cannot be used here"
                self.send(Failed(reason, Failure.MISTAKE, [asked.id]))
                return
            case "mute_start":
                time.sleep(1e6)
        self.send(protocol.Opened("stub 1", "nothing", "float32", STACK, id=asked.id))
        self.send(Room(ROOM, asked.id))

    def load(self, asked: Load) -> None:
        fault = self.due("load", "die_loading", "link", "wrong_digest", "stale", "decode", "off")
        if fault == "die_loading":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "link":
            self.send(Failed("the store does not answer", Failure.LINK, [asked.id]))
            return
        self.before, self.version = self.version, asked.number
        canary = self.canary
        assert canary is not None
        served = self.before if fault == "stale" else asked.number
        text = score(served, len(canary.text))
        if fault == "off":
            text = [value - 0.3 for value in text]
        drawn = len(canary.prompts) * canary.tokens
        self.send(
            protocol.Loaded(
                asked.number,
                "0" * 64 if fault == "wrong_digest" else asked.digest,
                text,
                [-1.0] * drawn,
                [-3.0 if fault == "decode" else -1.0] * drawn,
                fetched_bytes=1000,
                id=asked.id,
            )
        )

    def qualify(self, asked: Qualify) -> None:
        """As qualify/worker.py would."""
        fault = self.due("qualify", "unfit", "die_qualifying")
        if fault == "die_qualifying":
            os.kill(os.getpid(), signal.SIGKILL)
        trust = Trust.REJECT if fault else Trust.TRAIN
        result = Result.FAIL if fault else Result.PASS
        shown = Finding("engine-parity", result, "logprobs are off by 0.3")
        kept = (each for each in findings_for(Trust.TRAIN) if each.check != shown.check)
        findings = [shown, *kept]
        found = Certificate(STACK, asked.device, 1, asked.level, trust, [], findings, time.time())
        self.send(Qualified(certificates.seal(found), id=asked.id))

    def generate(self, asked: Generate) -> None:
        fault = self.due(
            "unit", "kill", "exit", "hang", "freeze", "noise", "slow", "lengths", "nan", "token",
            "empty", "version", "other", "fewer", "unit", "twice", "beyond", "segment", "given",
        )  # fmt: skip
        if any(problem.id in self.faults.get("poison", []) for problem in asked.problems):
            fault = "kill"
        match fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                raise SystemExit("device error 507035")
            case "hang":
                time.sleep(1e6)  # alive, but never done
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "noise":
                self.channel.send(b"\xc1 no message")
            case "slow":
                time.sleep(0.5)
        answers = []
        for place, problem in enumerate(asked.problems):
            completions = answer(problem, asked.completions, self.version, asked.seed)
            answers.append(Answered(place, prompt(problem), completions, id=asked.id))
        for each in spoilt(answers, fault):
            self.send(each)
        self.send(Room(ROOM, asked.id))

    def beat(self) -> None:
        while True:
            time.sleep(0.2)
            self.send(protocol.Alive())


def spoilt(answers: list[Answered], fault: str) -> list[Answered]:
    first, *rest = answers
    match fault:
        case "unit":
            return [replace(each, id=each.id + 1000) for each in answers]
        case "other":
            return [replace(first, prompt_tokens=[1]), *rest]
        case "fewer":
            return rest
        case "twice":
            return [first, first, *rest]
        case "beyond":
            return [replace(first, index=len(answers)), *rest]
    completion, *others = first.completions
    (segment,) = completion.segments
    tokens, version = segment.tokens, segment.weight_version
    assert version is not None
    changed: dict[str, list[Segment]] = {
        "lengths": [replace(segment, logprobs=[*segment.logprobs, -0.1])],
        "nan": [replace(segment, logprobs=[math.nan] * len(tokens))],
        "token": [replace(segment, tokens=[VOCAB] * len(tokens))],
        "empty": [replace(segment, tokens=[], logprobs=[])],
        "version": [replace(segment, weight_version=version + 1)],
        "segment": [segment, Segment([1], [-1.0], version - 1)],
        "given": [segment, Segment([1])],
    }
    if fault not in changed:
        return answers
    bad = replace(completion, segments=changed[fault])
    return [replace(first, completions=[bad, *others]), *rest]


def serve(channel: Channel) -> None:
    stub = Stub(channel)
    threading.Thread(target=stub.beat, daemon=True).start()
    while (data := channel.receive()) is not None:
        match protocol.ask(data):
            case Open() as asked:
                stub.open(asked)
            case Load() as asked:
                stub.load(asked)
            case Generate() as asked:
                stub.generate(asked)
            case Qualify() as asked:
                stub.qualify(asked)
