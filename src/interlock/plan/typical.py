"""How long the answers of a kind of model are, where nobody has measured it.

A model that thinks writes some thousand tokens, one that does not about one thousand; what
max_tokens cuts off shortens the mean. On the published rows that state a mean this rule gives it
within a quarter (docs/planning.md). It is an assumption all the same, and the plan says so.
"""

import math
import re

from interlock.plan.lengths import AnswerLengths, censored_mean

_THINKS = re.compile(
    r"r1|qwq|distill|think|reason|qwen3(?!.*(instruct|base))|gpt-oss|kimi-k1", re.I
)
_THINKING = 7000.0  # mean tokens of an answer without a limit; assumed
_PLAIN = 1100.0  # assumed


def thinks(model: str) -> bool:
    """By the name of a model, whether it thinks before it answers."""
    return _THINKS.search(model) is not None


def typical_lengths(model: str, longest: float, spread: float, endless: float) -> AnswerLengths:
    """Of a model by its name; `spread` is sigma of the logarithm."""
    mean = _THINKING if thinks(model) else _PLAIN
    mu = math.log(mean) - spread * spread / 2
    ended = max(1.0, censored_mean(mu, spread, longest))
    return AnswerLengths((1 - endless) * ended + endless * longest, longest, spread, endless)
