"""A generator worker that answers at once, for bench/coordinator.py: no engine, no torch.

Open ──> Opened, Room     Load ──> Loaded     Generate ──> Answered, groups of realistic size

Its completions are made once, so that what is measured is carrying and checking them, not making
them. Settings by environment: QUICK_TOKENS per completion.
"""

import os
import threading
import time

from interlock.processes.channel import Channel
from interlock.records.rl import Completion, FinishReason
from interlock.workers import protocol
from interlock.workers.protocol import (
    Alive,
    Answered,
    Canary,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Room,
)

VOCAB = 150_000
PROMPT = [1 + 997 * k % VOCAB for k in range(64)]
CANARY = Canary(list(range(20)), [[1, 2], [3]], 4)
TEXT = [-1.0] * (len(CANARY.text) - 1)  # what learner and worker agree on for the canary's text
HELD = 16  # sequences that it says it has room for: of two groups, one to work on and one ahead
_BEAT_S = 2.0  # as a real worker's


def serve(channel: Channel) -> None:
    threading.Thread(target=_beat, args=[channel], daemon=True).start()
    tokens = int(os.environ["QUICK_TOKENS"])
    answer = _answer(tokens, 0)

    def send(message: protocol.Reply) -> None:
        channel.send(protocol.encode(message))

    while (data := channel.receive()) is not None:
        match protocol.ask(data):
            case Open() as asked:
                send(Opened("quick", "nothing", "none", id=asked.id))
                send(Room(HELD, after=asked.id))
            case Load() as asked:
                answer = _answer(tokens, asked.number)
                drawn = [-1.0] * (len(CANARY.prompts) * CANARY.tokens)
                proof = (TEXT, drawn, drawn, 0)
                send(Loaded(asked.number, asked.digest, *proof, id=asked.id))
            case Generate() as asked:
                for place in range(len(asked.problems)):
                    completions = [answer] * asked.completions
                    send(Answered(place, PROMPT, completions, id=asked.id))
                send(Room(HELD, after=asked.id))


def _answer(tokens: int, version: int) -> Completion:
    drawn = [1 + 7919 * k % (VOCAB - 1) for k in range(tokens)]
    logprobs = [-1.0 / (k + 1) for k in range(tokens)]
    return Completion.sampled(drawn, logprobs, FinishReason.LENGTH, "word " * tokens, version)


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(_BEAT_S)
        channel.send(protocol.encode(Alive()))
