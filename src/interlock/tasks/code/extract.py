"""The program in an answer: text in, variants of Python source out. Nothing is parsed or run here.

What the model wrote is parsed where it is run, in the sandbox: a parser can be made to crash too.
"""

import re
import textwrap

from interlock import thinking

_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[ \t\r]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)


def program(answer: str, entry: str) -> str:
    """What the answer says the program is: the last fenced block that defines `entry`; without one
    the last block; without any, the whole answer. Thinking is none of it.
    """
    text = thinking.after(answer)
    blocks: list[str] = [found["code"] for found in _FENCE.finditer(text)]
    if not blocks:
        return text
    return next((block for block in reversed(blocks) if _defines(block, entry)), blocks[-1])


def variants(code: str, preamble: str, entry: str) -> list[str]:
    """Sources of which the first that compiles is meant.

    Behind a preamble (HumanEval's prompt: imports, helpers, the head of the function) a program is
    whole, or goes on with the function's body, whose indentation chats often lose.
    """
    whole = textwrap.dedent(code)
    if not preamble:
        return [whole, code]
    head = preamble.rstrip() + "\n"
    first = [whole, code] if _defines(code, entry) else [code, whole]
    body = [textwrap.indent(whole, "    "), "    " + code.lstrip()]
    return [head + each for each in (*first, *body)]


def _defines(code: str, entry: str) -> bool:
    name = re.escape(entry)
    pattern = rf"^[ \t]*(?:(?:async[ ]+)?def|class)[ ]+{name}\b|^{name}[ ]*(?::[^=\n]+)?=(?!=)"
    return re.search(pattern, code, re.MULTILINE) is not None
