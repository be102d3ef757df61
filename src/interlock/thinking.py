"""Thinking that is marked as such, by a model or by its chat template: <think> … </think>.

It belongs to a turn of the assistant, and not to the answer that the turn gives. The marks are
those of DeepSeek, Qwen, Kimi, Magistral and OpenThinker, and of prompts that ask for some.
"""

import re

_TAG = re.compile(
    r"[<[◁](?P<ends>/?)(?:think|thinking|thought|reasoning)\s*[>\]▷]"
    r"|<\|(?:begin|(?P<over>end))_of_thought\|>",
    re.IGNORECASE,
)

# Begin and end as those models write them, the most usual first.
PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
)


def after(turn: str) -> str:
    """What stands behind the last thinking that was ended, up to the next that begins.

    All of it when nothing was thought, and nothing when it was never ended.
    """
    ends = [tag.end() for tag in _TAG.finditer(turn) if tag["ends"] or tag["over"]]
    answer = turn[ends[-1] :] if ends else turn
    begun = _TAG.search(answer)
    return answer[: begun.start()] if begun else answer


def since(text: str) -> str:
    """From the first mark of thinking on; "" without any."""
    begun = _TAG.search(text)
    return text[begun.start() :] if begun else ""
