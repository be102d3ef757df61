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

from interlock.chips import certificates
from interlock.processes.channel import Channel
from interlock.records.rl import Completion, FinishReason, Group, Problem
from interlock.records.trust import Certificate, Finding, Result, Stack, Trust
from interlock.workers import protocol
from interlock.workers.protocol import Generate, Load, Open, Qualified, Qualify

VOCAB = 100
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
                self.send(protocol.Failed("device 'npu' cannot be used here", permanent=True))
                return
            case "mute_start":
                time.sleep(1e6)
        self.send(protocol.Opened("stub 1", "nothing", "float32", STACK))

    def load(self, asked: Load) -> None:
        fault = self.due("load", "die_loading", "link", "wrong_digest", "stale", "decode", "off")
        if fault == "die_loading":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "link":
            self.send(protocol.Failed("the store does not answer", permanent=False))
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
            )
        )

    def qualify(self, asked: Qualify) -> None:
        """As qualify/worker.py would."""
        fault = self.due("qualify", "unfit", "die_qualifying")
        if fault == "die_qualifying":
            os.kill(os.getpid(), signal.SIGKILL)
        trust = Trust.REJECT if fault else Trust.TRAIN
        result = Result.FAIL if fault else Result.PASS
        findings = [Finding("engine-parity", result, "logprobs are off by 0.3")]
        found = Certificate(STACK, asked.device, 1, asked.level, trust, [], findings, time.time())
        self.send(Qualified(certificates.seal(found)))

    def generate(self, asked: Generate) -> None:
        fault = self.due(
            "unit", "kill", "exit", "hang", "freeze", "noise", "slow", "lengths", "nan", "token",
            "empty", "version", "other", "fewer", "unit",
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
        groups = []
        for problem in asked.problems:
            completions = answer(problem, asked.completions, asked.number, asked.seed)
            groups.append(Group(problem, prompt(problem), completions, self.name))
        number = asked.unit + 1000 if fault == "unit" else asked.unit
        self.send(protocol.Finished(number, spoilt(groups, fault)))

    def beat(self) -> None:
        while True:
            time.sleep(0.2)
            self.send(protocol.Alive())


def spoilt(groups: list[Group], fault: str) -> list[Group]:
    first, *rest = groups
    answer, *others = first.completions
    changes: dict[str, dict[str, object]] = {
        "lengths": {"logprobs": [*answer.logprobs, -0.1]},
        "nan": {"logprobs": [math.nan] * len(answer.tokens)},
        "token": {"tokens": [VOCAB] * len(answer.tokens)},
        "empty": {"tokens": [], "logprobs": []},
        "version": {"weight_version": answer.weight_version + 1},
    }
    if fault == "other":
        return [Group(first.problem, [1], first.completions, first.worker), *rest]
    if fault == "fewer":
        return rest
    if fault not in changes:
        return groups
    names = ("tokens", "logprobs", "finish", "text", "weight_version")
    fields = {name: getattr(answer, name) for name in names}
    bad = Completion.sampled(**(fields | changes[fault]))  # type: ignore[arg-type]
    return [Group(first.problem, first.prompt_tokens, [bad, *others], first.worker), *rest]


def serve(channel: Channel) -> None:
    stub = Stub(channel)
    threading.Thread(target=stub.beat, daemon=True).start()
    while (data := channel.receive()) is not None:
        match protocol.request(data):
            case Open() as asked:
                stub.open(asked)
            case Load() as asked:
                stub.load(asked)
            case Generate() as asked:
                stub.generate(asked)
            case Qualify() as asked:
                stub.qualify(asked)
