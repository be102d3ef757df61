"""Minus the share of an answer's n-grams that repeat an earlier one: 0 to -1.

Words are runs of letters and digits, without regard to case; every Han, kana or Hangul sign is one.
"""

import re

from interlock.config.rewards import RepetitionReward
from interlock.config.tasks import TaskSettings
from interlock.tasks.rewards import Reward

_SIGN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_WORD = re.compile(rf"{_SIGN}|(?:(?!{_SIGN})\w)+")


def open_reward(settings: RepetitionReward, task: TaskSettings) -> Reward:
    return lambda attempt: -repeated(attempt.text, settings.n)


def repeated(text: str, n: int) -> float:
    """The share of n-grams of words that were said before; 0 of a text that has none."""
    words = _WORD.findall(text.casefold())
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
