"""Whether a text is fit to be learned from, by its looks: form, script, repetition, length."""

import unicodedata
from collections.abc import Sequence

from interlock import thinking
from interlock.config.sampling_data import ReadableSettings

_RUN = 4  # words
# How Unicode's names of a script's letters begin; of Japanese, kana stands among the Han.
_NAMES: dict[str, tuple[str, ...]] = {"han": ("CJK", "HIRAGANA", "KATAKANA")}


def unreadable(turn: str, settings: ReadableSettings) -> str | None:
    """Why an assistant's turn is not fit, in a word or two; None: it is."""
    if not settings.min_chars <= len(turn) <= settings.max_chars:
        return "of another length"
    if settings.form == "think" and not thinks_first(turn):
        return "of another form"
    if settings.script and foreign(turn, settings.script) > settings.foreign:
        return "in another script"
    if repeated(turn.split()) > settings.repeated:
        return "repetitive"
    return None


def thinks_first(turn: str) -> bool:
    """Whether one closed block of thinking comes first, and an answer after it."""
    text = turn.strip()
    for begin, end in thinking.PAIRS:
        if not text.startswith(begin):
            continue
        thought, closed, answer = text.removeprefix(begin).partition(end)
        marked = thinking.since(thought) or thinking.since(answer)
        return bool(closed and thought.strip() and answer.strip() and not marked)
    return False


def foreign(text: str, script: str) -> float:
    """The share of the letters that are of another script; 0 without letters."""
    names = _NAMES.get(script, (script.upper(),))
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return 0.0
    own = sum(unicodedata.name(letter, "").startswith(names) for letter in letters)
    return 1 - own / len(letters)


def repeated(words: Sequence[str]) -> float:
    """The share of the runs of four words that stand in the text before; 0 of a short one."""
    runs = [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
