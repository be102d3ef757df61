"""What an engine needs of a tokenizer."""

from typing import Protocol


class TextStream(Protocol):
    """Text of tokens that arrive one by one."""

    def push(self, token: int) -> str: ...


class Vocabulary(Protocol):
    """What an engine needs of models.tokenizer.Tokenizer: it finds where an answer ends."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def stream(self) -> TextStream: ...
    def definition(self) -> str: ...  # as tokenizer.json has it; grammars are read with it
