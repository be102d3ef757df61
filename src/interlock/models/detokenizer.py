"""Text of tokens that arrive one by one."""

from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers
from tokenizers.decoders import DecodeStream

from interlock.text import error_line

_BROKEN = "\ufffd"
_LONGEST_WAIT = 64  # tokens; a character is four bytes at the most


class Detokenizer:
    """Text of tokens that arrive one by one, without special tokens and never half a character.

    Bytes that are no UTF-8 become U+FFFD. With some tokenizers a bad byte changes what bytes before
    it say, and the library gives up: what was given then stands, and it begins anew with the rest.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._begin()

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still incomplete."""
        text = self._step(token)
        if text is None:
            waiting = self._waiting
            self._begin()
            text = "".join(map(self._surely, waiting))
        if len(self._waiting) > _LONGEST_WAIT:
            text += "".join(map(self._alone, self._waiting))
            self._begin()
        return text

    def _begin(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._waiting: list[int] = []  # tokens whose text was not given

    def _step(self, token: int) -> str | None:
        """None: the library gives up."""
        self._waiting.append(token)
        try:
            with no_panic():
                text = self._stream.step(self._backend, token) or ""
        except Exception:  # it raises nothing narrower
            return None
        if text:
            self._waiting = []
        return text

    def _surely(self, token: int) -> str:
        text = self._step(token)
        if text is None:
            self._begin()
            return _BROKEN
        return text

    def _alone(self, token: int) -> str:
        try:
            with no_panic():
                return self._backend.decode([token])
        except Exception:  # it raises nothing narrower
            return _BROKEN


@contextmanager
def no_panic() -> Iterator[None]:
    """A panic of `tokenizers` is no Exception to Python; make it one, a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizers library panics: {error_line(error)}") from None
