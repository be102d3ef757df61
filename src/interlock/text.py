"""Foreign text made fit to be shown: nothing in it acts, and nothing in it hides.

What a model, a worker, a library or a file says may hold escape sequences, marks that reorder what
stands beside them, and more lines than a message has room for.

    visible            any number of lines, for a page or a terminal
    one_line           all of it on one line
    first_line, last_line
    error_line         what an error says, on one line
    error_headline     its first line: what libraries raise goes on with a trace
    described          its kind, and that first line
    label              one line for a figure: plotly reads tags in names and labels
    hide_credentials   without the user names, passwords and queries of the URLs in it

The pages' templates escape HTML themselves.
"""

import html
import re
import unicodedata

_USERINFO = re.compile(r"(?<=://)[^/\s'\"@]*@")
_QUERY = re.compile(r"(://[^\s'\"?]+)\?[^\s'\"]*[^\s'\".,:;)]")
_NUMBER = re.compile(r"\A\[Errno -?\d+\] ")  # words follow it
_UNPRINTED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LOOKED_AT = 16  # characters per character shown: foreign text may be of any length


def visible(text: str) -> str:
    """Make what does not print, or reorders what does, visible: ESC as ␛, others as ⟨U+202E⟩.

    Line feeds and tabs stay as they are.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def one_line(text: str, limit: int | None = None) -> str:
    """All of `text` on one line that is `visible`, in at most `limit` characters.

    White space of any length, line breaks included, becomes one space; what is cut ends in "…".
    """
    looked_at = text if limit is None else text[: _LOOKED_AT * limit]
    line = visible(" ".join(looked_at.split()))
    if limit is None or (len(line) <= limit and len(looked_at) == len(text)):
        return line
    return f"{line[: limit - 1]}…"


def first_line(text: str, limit: int | None = None) -> str:
    """The first line that is not empty, as `one_line`; "" when there is none."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""), limit)


def last_line(text: str, limit: int | None = None) -> str:
    """The last line that is not empty, as `one_line`; "" when there is none."""
    return one_line(next((line for line in text.splitlines()[::-1] if line.strip()), ""), limit)


def error_line(error: BaseException, limit: int | None = None) -> str:
    """All that an error says, as `one_line`; its kind when it says nothing."""
    return one_line(_said(error), limit) or type(error).__name__


def error_headline(error: BaseException, limit: int | None = None) -> str:
    """The first line of what an error says; its kind when it says nothing."""
    return first_line(_said(error), limit) or type(error).__name__


def described(error: BaseException, limit: int | None = None) -> str:
    """The kind of an error and the first line of what it says, if it says anything."""
    kind, said = type(error).__name__, first_line(_said(error), limit)
    return one_line(f"{kind}: {said}" if said else kind, limit)


def label(text: str, limit: int = 200) -> str:
    """One line of at most `limit` characters that plotly shows as it is written."""
    return html.escape(one_line(text, limit))


def hide_credentials(text: str) -> str:
    """What may be told of a text with URLs: "http://…@host/weights", without what is secret."""
    return _QUERY.sub(r"\1?…", _USERINFO.sub("…@", text))


def _said(error: BaseException) -> str:
    try:
        said = str(error)
        return _NUMBER.sub("", said) if isinstance(error, OSError) else said
    except Exception:  # a foreign error may fail to describe itself
        return ""


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in _UNPRINTED:
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the block of control pictures
    return f"⟨U+{code:04X}⟩"
