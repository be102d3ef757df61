"""A generator worker that answers at once, for bench/coordinator.py: no engine, no torch.

Open ──> Opened     Load ──> Loaded, proven     Generate ──> Finished, groups of realistic size

Its completions are made once, so that what is measured is carrying and checking them, not making
them. Settings by environment: QUICK_TOKENS per completion.
"""

import os
import threading
import time

from interlock.processes.channel import Channel
from interlock.records.rl import Completion, FinishReason, Group
from interlock.workers import protocol
from interlock.workers.protocol import Alive, Canary, Finished, Generate, Load, Loaded, Open, Opened

VOCAB = 150_000
PROMPT = [1 + 997 * k % VOCAB for k in range(64)]
CANARY = Canary(list(range(20)), [[1, 2], [3]], 4)
TEXT = [-1.0] * (len(CANARY.text) - 1)  # what learner and worker agree on for the canary's text
_BEAT_S = 2.0  # as a real worker's


def serve(channel: Channel) -> None:
    threading.Thread(target=_beat, args=[channel], daemon=True).start()
    tokens = int(os.environ["QUICK_TOKENS"])
    name, answer = "", _answer(tokens, 0)
    while (data := channel.receive()) is not None:
        match protocol.request(data):
            case Open() as asked:
                name = asked.name
                channel.send(protocol.encode(Opened("quick", "nothing", "none")))
            case Load() as asked:
                answer = _answer(tokens, asked.number)
                drawn = [-1.0] * (len(CANARY.prompts) * CANARY.tokens)
                proof = (TEXT, drawn, drawn, 0)
                channel.send(protocol.encode(Loaded(asked.number, asked.digest, *proof)))
            case Generate() as asked:
                groups = [
                    Group(problem, PROMPT, [answer] * asked.completions, name)
                    for problem in asked.problems
                ]
                channel.send(protocol.encode(Finished(asked.unit, groups)))


def _answer(tokens: int, version: int) -> Completion:
    drawn = [1 + 7919 * k % (VOCAB - 1) for k in range(tokens)]
    logprobs = [-1.0 / (k + 1) for k in range(tokens)]
    return Completion.sampled(drawn, logprobs, FinishReason.LENGTH, "word " * tokens, version)


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(_BEAT_S)
        channel.send(protocol.encode(Alive()))
