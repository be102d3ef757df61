"""How much a worker may send for what it was asked: no more memory is taken for its answer.

ask ──reply_bytes──> the longest message that may answer it, generously
"""

import msgspec

from interlock.processes.child import UNASKED_BYTES
from interlock.processes.frames import MAX_MESSAGE_BYTES
from interlock.records.replay import kept_bytes
from interlock.records.serving import Generation
from interlock.workers.protocol import (
    Apply,
    Ask,
    Canary,
    Complete,
    Generate,
    Load,
    Open,
    Qualify,
    Record,
    ScoreTexts,
    Take,
    Trace,
    Weigh,
)

_NUMBER_BYTES = 9  # of a float64; of a token's id, 5
_TOKEN_BYTES = 5 + _NUMBER_BYTES  # of a sampled one: id and log-probability
_STEP_TOKENS = 64  # of a choice in one step, at the most
_LIST_BYTES = 5  # before its members
_STRETCH_BYTES = 64  # of all else that is said of it
_COMPLETION_BYTES = 1 << 14  # of all else in a completion, some hundred segments included
_PROMPT_BYTES = 1 << 16  # of what a chat template says beside a problem's messages
_CERTIFICATE_BYTES = 8 << 20
_SHAPES_BYTES = 64 << 20  # of what is said of every tensor of a model


def reply_bytes(asked: Ask, canary: Canary | None) -> int:
    """The longest message that may answer an ask, generously.

    `canary`: that of the worker's Open. Failures and signs of life pass as well.
    """
    match asked:
        case Open() | Qualify():
            return _CERTIFICATE_BYTES
        case Load() if canary is not None:
            drawn = len(canary.prompts) * canary.tokens
            return UNASKED_BYTES + _NUMBER_BYTES * (len(canary.text) + 2 * drawn)
        case Generate():
            sampling, completion = asked.sampling, _COMPLETION_BYTES
            completion += sampling.max_tokens * _TOKEN_BYTES
            if asked.replay.kept:
                completion += kept_bytes(sampling.max_tokens, sampling.most_told)
            # A problem's prompt comes back: a byte of it is a token of five at the most.
            longest = max(len(msgspec.msgpack.encode(each)) for each in asked.problems)
            prompt = 5 * (longest + _PROMPT_BYTES)
            if (shape := asked.replay.routes) is not None:
                completion += sampling.max_tokens * shape.token_bytes
                prompt += (longest + _PROMPT_BYTES) * shape.token_bytes
            return UNASKED_BYTES + prompt + asked.completions * completion
        case Complete():
            return UNASKED_BYTES + step_bytes(asked.generation)
        case ScoreTexts():
            return UNASKED_BYTES + scored_bytes(sum(map(len, asked.texts)), asked.top_k)
        case Weigh():
            return _SHAPES_BYTES
        case Trace() | Record() | Take() | Apply():
            # The operators of one layer of a large model, with their inputs, are hundreds of MB. So
            # much is taken from parity's reference alone, a process of our own on this machine.
            return MAX_MESSAGE_BYTES
    return UNASKED_BYTES


def scored_bytes(tokens: int, top_k: int) -> int:
    """Of what is said of so many given tokens."""
    return tokens * (_NUMBER_BYTES + _LIST_BYTES + top_k * (_TOKEN_BYTES + 1))


def step_bytes(generation: Generation) -> int:
    """What a generation may add to one message: those of all that is open come together."""
    token = _TOKEN_BYTES + _LIST_BYTES + generation.rules.top_logprobs * (_TOKEN_BYTES + 1)
    most = min(_STEP_TOKENS, generation.sampling.max_tokens)
    told = generation.choices * (_STRETCH_BYTES + most * token)
    if (top_k := generation.prompt_logprobs) is not None:
        return max(told, scored_bytes(len(generation.prompt), top_k))
    return told
