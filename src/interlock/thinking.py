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


def pair(text: str) -> tuple[str, str]:
    """The marks whose end stands in a chat template or among a model's tokens, else the usual."""
    return next((each for each in PAIRS if each[1] in text), PAIRS[0])


def after(turn: str) -> str:
    """What stands behind the last thinking that was ended, up to the next that begins.

    All of it when nothing was thought, and nothing when it was never ended.
    """
    start, end = answer_span(turn)
    return turn[start:end]


def answer_span(turn: str) -> tuple[int, int]:
    """The characters of `after(turn)`, [start, end); all others are thinking, with its marks."""
    ends = [tag.end() for tag in _TAG.finditer(turn) if tag["ends"] or tag["over"]]
    start = ends[-1] if ends else 0
    begun = _TAG.search(turn, start)
    return start, begun.start() if begun else len(turn)


def is_open(turn: str) -> bool:
    """Whether the last thinking that begins is never ended."""
    tags = list(_TAG.finditer(turn))
    return bool(tags) and not (tags[-1]["ends"] or tags[-1]["over"])


def since(text: str) -> str:
    """From the first mark of thinking on; "" without any."""
    begun = _TAG.search(text)
    return text[begun.start() :] if begun else ""
