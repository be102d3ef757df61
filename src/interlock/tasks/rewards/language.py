"""The share of an answer's words that are of the wanted language, 0 to 1, by py3langid.

    text ──sentences──> py3langid, each ──> words in sentences of the language / words

R1 (arXiv 2501.12948, section 2.3.2) counts the words of the target language in the thinking. One
word tells little of its language, so all words of a sentence are of the one that it is found to be.
A sentence of fewer than three words, as formulas are, counts neither way; an answer without any
other (digits alone, nothing at all) is worth 1: none of it is of another language.
"""

import re
from collections.abc import Callable

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from interlock.config.rewards import LanguageReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Attempt
from interlock.tasks.rewards import Reward

_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f\n]+")
_SIGN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # each is a word
_WORD = re.compile(rf"{_SIGN}|(?:(?!{_SIGN})[^\W\d_]){{2,}}")
_FEWEST = 3  # words of a sentence that tells its language


def open_reward(settings: LanguageReward, task: TaskSettings) -> Reward:
    """Raises TaskError for a language that py3langid does not know."""
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = set(identifier.labels)
    if strange := sorted({settings.language, *settings.among} - known):
        raise TaskError(
            f"reward {settings.called!r}: py3langid knows no language {strange[0]!r}; "
            f"it knows {', '.join(sorted(known))}"
        )
    if settings.among:
        identifier.set_languages(settings.among)
    return lambda attempt: _of(attempt, settings.language, identifier)


def share(text: str, language: str, identify: Callable[[str], str]) -> float:
    """The share of words in sentences that `identify` finds to be of the language.

    0 to 1; 1 for a text without a sentence of _FEWEST words, of which nothing tells a language.
    """
    of_it = total = 0
    for sentence in _SENTENCE.split(text):
        words = len(_WORD.findall(sentence))
        if words >= _FEWEST:
            total += words
            of_it += words if identify(sentence) == language else 0
    return of_it / total if total else 1.0


def _of(attempt: Attempt, language: str, identifier: LanguageIdentifier) -> float:
    return share(attempt.text, language, lambda text: str(identifier.classify(text)[0]))
