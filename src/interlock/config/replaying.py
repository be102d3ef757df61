"""How completions are drawn and repeated: what does not go together in a stage's `sampling` and
`replay`."""

from collections.abc import Iterator, Sequence
from typing import Literal

from interlock.records.replay import MOST_KEPT
from interlock.records.rl import Sampling

Replayed = Literal["kept", "routes"]


def thinking_conflicts(sampling: Sampling) -> Iterator[str]:
    budget = sampling.thinking_budget
    if budget is None and sampling.thinking_words:
        yield (
            "sampling.thinking_words are said where a budget ends the thinking, and there is none; "
            "set sampling.thinking_budget, or remove them"
        )
    if budget is not None and budget >= sampling.max_tokens:
        yield (
            f"sampling.thinking_budget = {budget} leaves nothing of max_tokens = "
            f"{sampling.max_tokens} for an answer; lower it, or raise max_tokens"
        )


def replayed(sampling: Sampling, replay: Sequence[Replayed] | None) -> frozenset[Replayed]:
    """`replay` None: what is usual, the kept sets where there are any."""
    if replay is not None:
        return frozenset(replay)
    return frozenset(["kept"]) if sampling.narrows else frozenset()


def replay_conflicts(sampling: Sampling, replay: Sequence[Replayed] | None) -> Iterator[str]:
    """`replay`: as of `replayed`."""
    wanted = replay or []
    if len(set(wanted)) < len(wanted):
        yield f"replay = {wanted} names one twice; name each once"
    if "kept" in wanted and not sampling.narrows:
        yield (
            "replay has 'kept', and neither sampling.top_p, top_k nor min_p leaves anything out; "
            "remove it"
        )
    if replay is None or "kept" in wanted:
        yield from kept_conflicts(sampling, ", or set replay = []")


def kept_conflicts(sampling: Sampling, remedy: str = "") -> Iterator[str]:
    """Where kept sets are repeated; `remedy`: another one than a lower top_k."""
    if sampling.top_k > MOST_KEPT:
        yield (
            f"sampling.top_k = {sampling.top_k}: no more than the {MOST_KEPT} likeliest tokens are "
            f"drawn from where the learner repeats it; lower it{remedy}"
        )
