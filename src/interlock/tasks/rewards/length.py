"""Rewards that fall with the number of sampled tokens, from 0 to -1.

"overlong" is the soft punishment of DAPO (arXiv 2503.14476, equation 13): 0 up to max_tokens -
zone, then (max_tokens - zone - tokens) / zone, -1 at max_tokens. "length" has ends of its own.
"""

from interlock.config.rewards import LengthReward, OverlongReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Attempt
from interlock.tasks.rewards import Reward


def open_reward(settings: LengthReward | OverlongReward, task: TaskSettings) -> Reward:
    if isinstance(settings, LengthReward):
        return lambda attempt: fallen(_tokens(attempt), settings.free, settings.most)
    zone = settings.zone

    def overlong(attempt: Attempt) -> float:
        if attempt.max_tokens is None:
            raise TaskError("an overlong reward needs to know max_tokens")
        return fallen(_tokens(attempt), attempt.max_tokens - zone, attempt.max_tokens)

    return overlong


def fallen(tokens: int, free: int, most: int) -> float:
    """0 up to `free` tokens, -1 from `most` on, and a straight line between them."""
    return -min(1.0, max(0, tokens - free) / (most - free))


def _tokens(attempt: Attempt) -> int:
    if attempt.tokens is None:
        raise TaskError("a reward of length needs to know how many tokens were sampled")
    return attempt.tokens
