r"""The form of R1 and Qwen3: thinking, ended once, and then one final answer.

    <think> … </think> answer        1        anything else        0

Of a task that is asked not to think: the same with nothing between the tags, or without them.

The turn is read whole, with what the prompt's end had said for the assistant already. One pair of
tags (those of interlock.thinking) begins it and is met once; neither side of the end is blank. Of
an answer "boxed" has exactly one \boxed{…}; "tag" is <answer>…</answer> and nothing beside it.
"""

import re

from interlock import thinking
from interlock.config.rewards import FormatReward
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Attempt
from interlock.tasks import answers
from interlock.tasks.rewards import Reward

_TAGGED = re.compile(r"\s*<answer>((?:(?!</?answer>).)*\S(?:(?!</?answer>).)*)</answer>\s*", re.S)


def open_reward(settings: FormatReward, task: TaskSettings) -> Reward:
    def reward(attempt: Attempt) -> float:
        answer = _answer(attempt.text) if settings.thinks else _unthought(attempt.text)
        if answer is None:
            return 0.0
        match settings.answer:
            case "text":
                return 1.0
            case "boxed":
                boxes = answers.boxed(answer)
                return float(len(boxes) == 1 and bool(boxes[0]))
            case "tag":
                return float(_TAGGED.fullmatch(answer) is not None)

    return reward


def _answer(turn: str) -> str | None:
    """What stands behind thinking that is in form; None where it is not."""
    thought, answer = _parts(turn)
    return answer if thought is not None and thought.strip() else None


def _unthought(turn: str) -> str | None:
    """What is answered without a thought; None where there is one."""
    thought, answer = _parts(turn)
    return answer if thought is None or not thought.strip() else None


def _parts(turn: str) -> tuple[str | None, str | None]:
    """What stands between the tags that begin a turn, None without any, and what behind them, None
    where that is no answer.
    """
    for begin, end in thinking.PAIRS:
        if turn.lstrip().startswith(begin):
            thought, _, answer = turn.lstrip()[len(begin) :].partition(end)
            clean = not thinking.since(thought) and not thinking.since(answer)
            return thought, answer if clean and answer.strip() else None
    return None, turn if turn.strip() and not thinking.since(turn) else None
