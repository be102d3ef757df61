r"""Finding the final answer in the text of a completion. It judges nothing."""

import re

# A sign counts unless it follows an operand: "= -5" is minus five, "12-5" ends in five.
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w)\]}])[-\N{MINUS SIGN}])?
    [$€£]?
    (?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)
    (?P<decimals>\.[0-9]+)?
    """,
    re.VERBOSE,
)
_BOX = re.compile(r"\\boxed\s*\{")


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; all of it when there is none."""
    return text.rpartition("</think>")[2]


def last_number(text: str) -> str | None:
    """The last number, as plain digits: "-1234.5". Understands "1,234", "1{,}234" and "$5"."""
    found = list(_NUMBER.finditer(text.replace("{,}", ",")))
    if not found:
        return None
    last = found[-1]
    sign = "-" if last["sign"] else ""
    return sign + last["whole"].replace(",", "") + (last["decimals"] or "")


def boxed(text: str) -> list[str]:
    r"""The contents of every closed \boxed{…}, in order."""
    return [
        text[start.end() : end].strip()
        for start in _BOX.finditer(text)
        if (end := _closing_brace(text, start.end())) is not None
    ]


def marked(text: str, marker: str) -> list[str]:
    """What follows each `marker`, up to the end of its line."""
    return [part.partition("\n")[0].strip() for part in text.split(marker)[1:]]


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    return None
