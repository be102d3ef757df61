"""From a request's fields to a Generation, with what the model and the limits allow.

ChatRequest, CompletionRequest, … ──sampling, rules──> Generation
"""

from interlock.config.serving import LimitSettings
from interlock.engine.base import Limits
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Sampling
from interlock.records.serving import Rules
from interlock.serve.http.refusals import wrong
from interlock.serve.requests.schemas import GenerateSampling, SamplingFields

_LEAST_P = 1e-6  # top_p 0: the likeliest token alone


def sampling(fields: SamplingFields | GenerateSampling, max_tokens: int) -> Sampling:
    """How the tokens are drawn."""
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return Sampling(
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else max(fields.top_p, _LEAST_P),
        top_k=max(fields.top_k or 0, 0),
        min_p=fields.min_p or 0.0,
        max_tokens=max_tokens,
        stop=list(dict.fromkeys(stops)),
    )


def rules(fields: SamplingFields | GenerateSampling, top: int, limits: Limits) -> Rules:
    """What else is asked of them. Raises Refusal on a token that is not the model's."""
    bias = {int(token): value for token, value in (fields.logit_bias or {}).items()}
    if bias and max(bias) >= limits.vocab:
        raise wrong("logit_bias", f"the token {max(bias)} is not one of the {limits.vocab} tokens")
    return Rules(logit_bias=bias, top_logprobs=top, ignore_eos=bool(fields.ignore_eos))


def stop_ids(
    fields: SamplingFields | GenerateSampling, tokenizer: Tokenizer, limits: Limits
) -> list[int]:
    """Tokens that end an answer, those of stop strings that no text shows included.

    Raises Refusal on a token that is not the model's.
    """
    ids = fields.stop_token_ids or []
    if ids and max(ids) >= limits.vocab:
        said = f"the token {max(ids)} is not one of the {limits.vocab} tokens"
        raise wrong("stop_token_ids", said)
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return sorted({*ids, *tokenizer.special_ids(stops)})


def check_prompt(prompt: list[int], limits: Limits, param: str) -> None:
    """Raise Refusal on what the model cannot read."""
    if not prompt:
        raise wrong(param, "the prompt has no token; give it one")
    if max(prompt) >= limits.vocab:
        raise wrong(param, f"the token {max(prompt)} is not one of the {limits.vocab} tokens")
    if len(prompt) >= limits.context:
        said = f"the prompt has {len(prompt)} tokens, and the model's context {limits.context}"
        raise wrong(param, f"{said}; shorten it", "context_length_exceeded")


def room(
    prompt: list[int], asked: int | None, param: str, limits: Limits, own: LimitSettings
) -> int:
    """How many tokens an answer may have; None asked: as many as there is room for.

    Raises Refusal when more were asked than there can be.
    """
    left = limits.context - len(prompt)
    most = min(left, own.max_tokens or left)
    if asked is None:
        return most
    if asked > left:
        said = f"{len(prompt)} tokens of the prompt and {asked} of the answer"
        raise wrong(
            param,
            f"{said} are more than the model's context of {limits.context}",
            "context_length_exceeded",
        )
    if asked > most:
        raise wrong(param, f"{param} = {asked} is over this server's limit of {most}")
    return asked
