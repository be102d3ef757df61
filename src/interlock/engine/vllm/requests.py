"""Requests in vLLM's words, and its answers in ours: sampling, noise, the most likely tokens."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from interlock.engine.base import Request
from interlock.engine.sequence import LiveSequence
from interlock.engine.vllm.replays import Replays
from interlock.errors import ConfigError
from interlock.records.rl import Sampling
from interlock.records.serving import Alternatives, Rules

LOWEST_TEMPERATURE = 0.01  # vLLM raises a lower one to this, greedy apart


def check_temperature(request: Request) -> None:
    """Raise ConfigError on a temperature that vLLM would not draw at."""
    if 0 < (temperature := request.sampling.temperature) < LOWEST_TEMPERATURE:
        raise ConfigError(
            f"sampling.temperature = {temperature}: vLLM draws at {LOWEST_TEMPERATURE} or above; "
            "raise it to that, or to 0 for the most likely token"
        )


def check_rules(request: Request) -> None:
    """Raise ConfigError on rules that vLLM cannot keep as the contract has them.

    Its structured output needs its own tokenizer, of which there is none here, and knows no text
    that a grammar begins behind; nothing of it forces the end of thinking.
    """
    rules = request.rules
    if not rules.grammar and rules.thinking_budget is None:
        return
    what = "keeps no grammar or JSON schema" if rules.grammar else "knows no thinking budget"
    raise ConfigError(
        f'problem {request.problem_id!r}: engine = "vllm" {what}; have a replica with engine = '
        '"torch" answer it'
    )


def drawing(sequence: LiveSequence, eos_ids: Iterable[int], replays: Replays) -> Any:
    """SamplingParams for the rest of a sequence; logprobs are of the distribution drawn from."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    request, drawn = sequence.request, len(sequence.tokens)
    sampling, rules = request.sampling, request.rules
    own_ends = () if rules.ignore_eos else eos_ids
    return SamplingParams(
        **replays.drawing(sampling),
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        logit_bias=rules.logit_bias or None,
        max_tokens=sampling.max_tokens - drawn,
        seed=noise_seed(request.seed, request.problem_id, sequence.number, drawn),
        stop_token_ids=sorted({*own_ends, *request.stop_ids}),
        ignore_eos=True,  # but for those
        logprobs=rules.top_logprobs,  # beside that of the drawn token
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def scoring(top_k: int, replays: Replays) -> Any:
    """SamplingParams for a text that is scored; vLLM draws one token behind every prompt."""
    from vllm import SamplingParams

    return SamplingParams(
        **replays.drawing(Sampling(temperature=0.0)),
        max_tokens=1,
        prompt_logprobs=top_k,
        detokenize=False,
        ignore_eos=True,
    )


def noise_seed(seed: int, problem_id: str, number: int, drawn: int = 0) -> int:
    """The seed of a completion from its token `drawn` on, in [0, 2^63).

    vLLM's generators cannot be set forward, so a sequence that goes on under other weights begins
    with another seed. A hash, so neighbours have nothing in common.
    """
    key = f"{seed} {number} {drawn} {problem_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def most_likely(entry: Mapping[int, Any], top_k: int) -> Alternatives:
    """The `top_k` first of what vLLM says of one place, which adds the token that was given."""
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)
    return [(token, value.logprob) for token, value in ranked[:top_k]]


def alternatives(entry: Mapping[int, Any], rules: Rules) -> Alternatives | None:
    """What is to be told beside a drawn token: as far as it could have been drawn instead."""
    if not rules.top_logprobs:
        return None
    best = most_likely(entry, rules.top_logprobs)
    return [(token, logprob) for token, logprob in best if logprob > -math.inf]
