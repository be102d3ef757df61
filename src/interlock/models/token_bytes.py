"""The bytes of single tokens, where text has only whole characters.

    token ──> its bytes: one that is part of an emoji has no text of its own

Read off tokenizer.json's own spellings: byte-level tokens are written in an alphabet of 256
letters, and byte fallback as <0xE2>. Other vocabularies have the text that decoding gives.
"""

import json
import re
from functools import cache
from typing import Any

import tokenizers


class TokenBytes:
    """`of(token)`, remembered."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        kinds = _kinds(json.loads(backend.to_str()).get("decoder"))
        self._letters = _alphabet() if "ByteLevel" in kinds else None
        self._fallback = "ByteFallback" in kinds
        self._marks_words = "Replace" in kinds or "Metaspace" in kinds
        self._known: dict[int, bytes] = {}

    def of(self, token: int) -> bytes:
        """b"" for an id that no token has."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._found(token)
        return found

    def _found(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        written = self._backend.id_to_token(token)
        if written is None:
            return b""
        if self._letters is not None:
            try:
                return bytes(self._letters[letter] for letter in written)
            except KeyError:
                return written.encode()
        if self._fallback and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", written)):
            return bytes.fromhex(byte[1])
        if self._marks_words:
            return written.replace("\u2581", " ").encode()
        return self._backend.decode([token], skip_special_tokens=False).encode()


def _kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    inner = [_kinds(each) for each in decoder.get("decoders") or []]
    return {str(decoder.get("type"))}.union(*inner)


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: those that print stand for themselves, the others follow 255."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = {chr(byte): byte for byte in printing}
    return letters | {chr(256 + n): byte for n, byte in enumerate(others)}
