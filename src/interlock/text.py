"""Foreign text made fit to be shown: nothing in it acts, and nothing in it hides.

The page's templates escape HTML themselves; plotly reads a few tags in names and labels, so what
goes into a figure is escaped here.
"""

import html
import unicodedata

_UNPRINTED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> str:
    """Make what does not print, or reorders what does, visible: ESC as ␛, others as ⟨U+202E⟩.

    Line feeds and tabs stay as they are.
    """
    return "".join(_visible(character) for character in text)


def label(text: str, limit: int = 200) -> str:
    """One line of at most `limit` characters that plotly shows as it is written."""
    line = " ".join(visible(text).split())
    return html.escape(line if len(line) <= limit else f"{line[:limit]}…")


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNPRINTED:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the block of control pictures
    return f"⟨U+{code:04X}⟩"
