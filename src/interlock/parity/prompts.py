"""What both sides are asked whatever the model is for: eight short questions and two long texts.

The long ones are there for what goes wrong only past a length, such as a mask that is ignored
behind 512 keys. Each is about 700 tokens to a tokenizer of today.
"""

from interlock.records.rl import Problem

_SHORT = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Compute 17 * 23 step by step.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into German: The train leaves at half past nine from platform four.",
    "A farmer has 12 sheep and buys three times as many. How many has he now? Reason first.",
    "Write a short poem about a lighthouse in winter.",
    "List five countries of South America, in alphabetical order.",
)
_COLOURS = ("red", "green", "blue", "yellow", "white", "black", "grey", "brown", "orange", "violet")
_BOXES, _SQUARES = 48, 32


def prompts() -> list[Problem]:
    """The same ones every time, in this order."""
    return [
        Problem(f"parity-{number}", [{"role": "user", "content": text}], answer="")
        for number, text in enumerate((*_SHORT, _boxes(), _squares()))
    ]


def _boxes() -> str:
    lines = (
        f"Box number {n} is {_COLOURS[n * 7 % 10]} and holds {n * 37 % 90 + 10} screws."
        for n in range(1, _BOXES)
    )
    return "\n".join((*lines, "What colour is box number 5, and how many screws does it hold?"))


def _squares() -> str:
    lines = (f"The square of {n} is {n * n}, and its cube is {n**3}." for n in range(1, _SQUARES))
    return "\n".join((*lines, "Which number has the square 144? Explain how you found it."))
