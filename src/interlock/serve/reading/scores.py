"""Log-probabilities as clients are told them: chat's form, the completions' older one, vLLM's.

DrawnToken, PromptScores ──> {"content": […]} | {"tokens": […], …} | prompt_logprobs
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from interlock.models.tokenizer import Tokenizer
from interlock.records.serving import Alternatives, PromptScores
from interlock.serve.reading.pieces import DrawnToken

_LEAST = -9999.0  # told for a probability of 0, whose logarithm is no JSON


def chat_logprobs(tokens: Sequence[DrawnToken], tokenizer: Tokenizer, asked: int) -> dict[str, Any]:
    """`asked`: how many alternatives are shown."""
    content = [
        _entry(each.token, each.logprob, tokenizer)
        | {"top_logprobs": [_entry(t, p, tokenizer) for t, p in each.top[:asked]]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.bytes_of.of(token)
    told = raw.decode("utf-8", "replace")
    return {"token": told, "logprob": _told(logprob), "bytes": list(raw)}


class TextToken(NamedTuple):
    """A token of a text with what is known of it; None: nothing, as of a text's first."""

    token: int
    logprob: float | None
    top: Alternatives
    offset: int  # characters of the text before it


def text_logprobs(tokens: Sequence[TextToken], tokenizer: Tokenizer, asked: int) -> dict[str, Any]:
    """The older form: lists side by side. Alternatives by their text, the token itself included."""
    names: list[str] = []
    tops: list[dict[str, float] | None] = []
    for each in tokens:
        names.append(_name(each.token, tokenizer))
        if each.logprob is None:
            tops.append(None)
            continue
        top = {_name(token, tokenizer): _told(value) for token, value in each.top[:asked]}
        tops.append(top | {names[-1]: _told(each.logprob)})
    return {
        "tokens": names,
        "token_logprobs": [e.logprob if e.logprob is None else _told(e.logprob) for e in tokens],
        "top_logprobs": tops,
        "text_offset": [each.offset for each in tokens],
    }


def prompt_scored(
    prompt: Sequence[int], scores: PromptScores, tokenizer: Tokenizer
) -> tuple[str, list[TextToken]]:
    """The prompt's text, and its tokens."""
    stream, text, found = tokenizer.stream(), "", []
    for n, token in enumerate(prompt):
        logprob = scores.logprobs[n - 1] if n else None
        top = scores.top[n - 1] if n and n <= len(scores.top) else []
        found.append(TextToken(token, logprob, top, len(text)))
        text += stream.push(token)
    return text, found


def prompt_logprobs(
    prompt: Sequence[int], scores: PromptScores, tokenizer: Tokenizer
) -> list[dict[str, Any] | None]:
    """vLLM's form: for each token of the prompt its own and its alternatives, by token id."""
    told: list[dict[str, Any] | None] = [None]
    for n, token in enumerate(prompt[1:]):
        ranked = list(enumerate(scores.top[n] if n < len(scores.top) else [], 1))
        found = {
            str(other): _ranked(other, value, rank, tokenizer) for rank, (other, value) in ranked
        }
        if str(token) not in found:
            found[str(token)] = _ranked(token, scores.logprobs[n], None, tokenizer)
        told.append(found)
    return told


def _ranked(token: int, logprob: float, rank: int | None, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"logprob": _told(logprob), "rank": rank, "decoded_token": _name(token, tokenizer)}


def _name(token: int, tokenizer: Tokenizer) -> str:
    """Its text; where its bytes are none, these, so that no two tokens have one name."""
    raw = tokenizer.bytes_of.of(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _told(logprob: float) -> float:
    return max(logprob, _LEAST)
