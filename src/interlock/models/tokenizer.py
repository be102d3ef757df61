"""A model's tokenizer and chat template, from a Hugging Face directory.

    messages ──ChatTemplate──> text ──tokenizers──> token ids
                                 └── assistant_mask: which of them the assistant wrote

Reads tokenizer.json (the `tokenizers` library does all tokenisation), tokenizer_config.json,
special_tokens_map.json and chat_template.jinja; other vocabulary formats (tokenizer.model,
tiktoken) are refused. Ids agree with transformers' `apply_chat_template` on the same directory.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from interlock import thinking
from interlock.errors import ModelError, TaskError
from interlock.models.chat import ChatTemplate, Messages
from interlock.models.detokenizer import Detokenizer, no_panic
from interlock.models.files import check_companions, copy, read_object
from interlock.models.templates import Span
from interlock.models.token_bytes import TokenBytes
from interlock.models.tokenizer_files import (
    end_ids,
    open_backend,
    roles_of,
    template_text,
    tokenizer_settings,
)
from interlock.text import error_line, one_line


class Tokenizer:
    """Text to token ids and back. Made by `Tokenizer.load`.

        tokenizer = Tokenizer.load(directory)
        ids = tokenizer.chat([{"role": "user", "content": "What is 17 + 25?"}])
        text = tokenizer.decode(answer_ids)

    eos_ids: every token that ends a turn or a text, by any of the model's files, and the one with
        which the chat template closes an assistant's turn: what is learned as the end must stop.
    closing: what the template closes such a turn with, white space apart.
    unclosed: the same when that is no token, which nothing stops.
    eos_id: the tokenizer's own end token, to close a plain text with; None when it has none.
    vocab_size: one more than the largest token id.
    roles: bos_token, eos_token, … as they are written.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        template: ChatTemplate | None,
        eos_id: int | None,
        eos_ids: frozenset[int],
        directory: Path,
    ) -> None:
        self._backend = backend
        self._template = template
        self._directory = directory
        self.roles: dict[str, str] = {}
        self.eos_id = eos_id
        closing = self.closing = "" if template is None else _closing(template)
        added = backend.get_added_tokens_decoder()
        first = backend.encode(closing, add_special_tokens=False).ids[:1] if closing else []
        closes = frozenset(first) & added.keys()
        backend.add_special_tokens([added[token].content for token in closes])
        self.eos_ids = eos_ids | closes
        self.unclosed = closing if closing and not closes else None
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @classmethod
    def load(
        cls, directory: Path, chat_template: str | None = None, clock: datetime | None = None
    ) -> "Tokenizer":
        """Read the tokenizer in `directory`; `chat_template` is a Jinja file that replaces its own.

        A template that asks for the time is told `clock`, or what it is where that is None.

        Raises ModelError when a file is missing or damaged, or a token has no row in the model.
        """
        check_companions(directory)
        config = tokenizer_settings(directory)
        roles = roles_of(config)
        backend = open_backend(directory, config, roles)
        text = template_text(directory, config, chat_template)
        source = chat_template or str(directory)
        template = None if text is None else ChatTemplate(text, roles, source, clock)
        eos_id, eos_ids = None, set()
        if eos := roles.get("eos_token"):
            eos_id = backend.token_to_id(eos)
            if eos_id is None:
                raise ModelError(
                    f"eos_token {one_line(repr(eos), 60)} is not in the vocabulary of {directory}; "
                    "use the tokenizer.json and tokenizer_config.json of one model"
                )
            eos_ids = {eos_id}
        model = read_object(directory, "config.json") or {}
        generation = read_object(directory, "generation_config.json") or {}
        eos_ids |= end_ids(model, directory) | end_ids(generation, directory)
        tokenizer = cls(backend, template, eos_id, frozenset(eos_ids), directory)
        tokenizer.roles = roles
        if isinstance(rows := model.get("vocab_size"), int):
            tokenizer.check_fits(rows)
        return tokenizer

    def check_fits(self, rows: int) -> None:
        """Raise ModelError when some token id has no row in an embedding of `rows` rows."""
        largest = max(self.vocab_size - 1, *self.eos_ids, 0)
        if largest >= rows:
            raise ModelError(
                f"the tokenizer in {self._directory} has the token id {largest}, but the model has "
                f"only {rows} embedding rows; use the tokenizer that belongs to the model"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing is put before or after, special tokens in it are parsed."""
        return self._encoding(text).ids

    def document(self, text: str) -> list[int]:
        """Token ids of a plain text to train on: framed as the tokenizer frames texts (a BOS, if it
        puts one), and closed with `eos_id`. Neither is doubled where the text has it already.
        """
        return self.completed("", text)[0]

    def completed(self, prompt: str, text: str) -> tuple[list[int], list[bool]]:
        """The `document` of both in a row, and of each token whether it is of the second alone."""
        encoding, first = self._encoding(prompt + text, framed=True), self.framed("")[:1]
        start = len(prompt)
        ids, mask = encoding.ids, [_within(o, start, start + len(text)) for o in encoding.offsets]
        if first and ids[:2] == 2 * first:
            ids, mask = ids[1:], mask[1:]
        if self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids, mask = [*ids, self.eos_id], [*mask, True]
        return ids, mask

    def entries(self) -> dict[int, tuple[str, AddedToken | None]]:
        """Every token by its id, as the vocabulary spells it; and what was added to it, as that."""
        added = self._backend.get_added_tokens_decoder()
        spelled = self._backend.get_vocab(with_added_tokens=True)
        return {index: (token, added.get(index)) for token, index in spelled.items()}

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        try:
            with no_panic():
                return self._backend.decode(ids, skip_special_tokens=skip_special)
        except Exception:  # the library raises nothing narrower
            stream = self.stream()
            return "".join(map(stream.push, ids))

    @property
    def template(self) -> str | None:
        """The chat template's text."""
        return None if self._template is None else self._template.text

    @property
    def thinking_marks(self) -> tuple[str, str]:
        """Begin and end of thinking: those in the template or among the tokens, else the usual."""
        return thinking.pair("\n".join([self.template or "", *self.added]))

    def framed(self, text: str) -> list[int]:
        """Token ids of the beginning of a text: with a BOS, if the tokenizer puts one."""
        return self._encoding(text, framed=True).ids

    @cached_property
    def bytes_of(self) -> TokenBytes:
        """What each token writes, byte for byte."""
        return TokenBytes(self._backend)

    def special_ids(self, stops: Sequence[str]) -> frozenset[int]:
        """Those of some stop strings that are special tokens, which no decoded text shows."""
        added = self._backend.get_added_tokens_decoder()
        special = {token.content: index for index, token in added.items() if token.special}
        return frozenset(special[s] for stop in stops if (s := stop.strip()) in special)

    @property
    def added(self) -> dict[str, AddedToken]:
        """The tokens that the tokenizer finds in a text before it reads the rest, by their text."""
        return {t.content: t for t in self._backend.get_added_tokens_decoder().values()}

    def token_id(self, token: str) -> int | None:
        """The id of the one token that is written so; None: there is none."""
        return self._backend.token_to_id(token)

    def definition(self) -> str:
        """As tokenizer.json has it, with the tokens that the directory's other files add."""
        return self._backend.to_str()

    def stream(self) -> "Detokenizer":
        """A decoder for tokens that arrive one by one."""
        return Detokenizer(self._backend)

    def render(self, messages: Messages, add_generation_prompt: bool = True, **more: Any) -> str:
        """The conversation as the model reads it; see `ChatTemplate.render`. Raises ModelError."""
        return self._chat_template().render(messages, add_generation_prompt, **more)

    def chat(
        self, messages: Messages, add_generation_prompt: bool = True, **more: Any
    ) -> list[int]:
        """The token ids of `render`. Raises ModelError."""
        return self.encode(self.render(messages, add_generation_prompt, **more))

    def opening(self, messages: Messages, **more: Any) -> str:
        """The thinking that the template itself begins the answer with: "<think>\\n"; as a rule "".

        It is written as answers are decoded. Raises ModelError.
        """
        return self.decode(self.encode(self.begun(messages, **more)))

    def begun(self, messages: Messages, **more: Any) -> str:
        """The same as the template writes it, with the model's special tokens. Raises ModelError"""
        if not thinking.since(self.template or ""):
            return ""
        asked, told = self.render(messages, **more), self.render(messages, False, **more)
        apart = next((n for n, (a, b) in enumerate(zip(asked, told, strict=False)) if a != b), None)
        return thinking.since(asked[len(told) if apart is None else apart :])

    def assistant_mask(self, messages: Messages, **more: Any) -> tuple[list[int], list[bool]]:
        """The ids of a whole conversation, and for each whether the assistant wrote it.

        Each assistant turn counts from where generation would have begun up to and including its
        end-of-turn token; a token that also holds text of the template's does not count. A template
        with {% generation %} blocks says itself which text counts.

        Raises ModelError when the template shows an earlier turn differently once later ones
        follow (some drop past reasoning), so that no span of the text is that turn.
        """
        text, spans = self._chat_template().render_spans(messages, False, **more)
        if not spans:
            spans = self._turns(text, messages, more)
        encoding = self._encoding(text)
        mask = [False] * len(encoding.ids)
        for start, end in spans:
            for i, offsets in enumerate(encoding.offsets):
                mask[i] |= _within(offsets, start, end)
        return encoding.ids, mask

    def continued(self, before: str, text: str) -> tuple[list[int], list[bool]]:
        """The ids of two texts in a row, and for each whether it is of the second.

        Those of the first are the ones that it has alone, as when a model goes on behind it.
        """
        given, ids = self.encode(before), self.encode(before + text)
        if ids[: len(given)] != given:  # a token spans both
            ids = given + self.encode(text)
        return ids, [place >= len(given) for place in range(len(ids))]

    def save(self, directory: Path) -> None:
        """Copy the tokenizer's files to `directory`, a replaced chat template included."""
        copy(self._directory, directory)
        if self._template is not None:
            generation = read_object(directory, "generation_config.json") or {}
            if not self.eos_ids <= end_ids(
                generation, directory
            ):  # for engines that read no template
                generation["eos_token_id"] = sorted(self.eos_ids)
                (directory / "generation_config.json").write_text(json.dumps(generation))
            path = directory / "chat_template.jinja"
            path.write_text(self._template.text, encoding="utf-8", newline="")

    def _turns(self, text: str, messages: Messages, more: dict[str, Any]) -> list[Span]:
        """The span of each assistant turn in `text`, from renderings of the turns before it."""
        template = self._chat_template()
        spans = []
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            if i == 0:
                raise ModelError(
                    "the first turn is the assistant's, and answers nothing: put a system or user "
                    "turn before it"
                )
            before = template.render(messages[:i], True, **more)
            through = template.render(messages[: i + 1], False, **more)
            if not (through.startswith(before) and text.startswith(through)):
                raise ModelError(
                    f"the chat template of {self._directory} renders turn {i + 1} differently when "
                    "it is generated and when it is history, so its loss mask is unknown: split "
                    "the conversation, or set [model] chat_template to one with {% generation %}"
                )
            spans.append((len(before), self._end_of_turn(text, len(before), len(through))))
        return spans

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """Where the last end token in text[start:end] ends; `end` when there is none.

        ChatML and its like put a newline behind that token, which nobody generates.
        """
        tokens = [self._backend.id_to_token(token) for token in self.eos_ids]
        found = [(text.rfind(token, start, end), token) for token in tokens if token]
        ends = [at + len(token) for at, token in found if at >= 0]
        return max(ends, default=end)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise ModelError(
                f"{self._directory} has no chat template; set [model] chat_template to a Jinja file"
            )
        return self._template

    def _encoding(self, text: str, framed: bool = False) -> tokenizers.Encoding:
        try:
            with no_panic():
                return self._backend.encode(text, add_special_tokens=framed)
        except TypeError:  # what `tokenizers` says of half a surrogate pair
            raise TaskError(f"text is not valid Unicode: {text[:80]!a}") from None
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(
                f"the tokenizer of {self._directory} fails on {text[:80]!a}: {error_line(error)}"
            ) from None


def _closing(template: ChatTemplate) -> str:
    """What the template puts behind an assistant's words, white space apart; "" when it fails."""
    words = "what the assistant said"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
    try:
        _, said, after = template.render(turns, add_generation_prompt=False).rpartition(words)
    except ModelError:
        return ""
    return after.strip() if said else ""


def _within(span: Span, start: int, end: int) -> bool:
    """Whether a token's characters lie in [start, end).

    A tokenizer that trims offsets gives a token of blanks an empty span at the end of the blanks.
    """
    first, last = span
    return start <= first and last <= end and not first == last == start
