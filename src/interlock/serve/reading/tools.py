"""Calls of tools in an answer, found as they are written.

    words, marks ──CallReader──> content │ call: id, name │ arguments, piece by piece

What turns out to be no call is given back as content: nothing of an answer is lost but the marks of
whole calls and the blanks around them.
"""

import secrets
from collections.abc import Callable, Sequence

from interlock.serve.prompts.families import MARKS, ToolForm
from interlock.serve.prompts.turns import Tool
from interlock.serve.reading.call_bodies import CallBody, body_of
from interlock.serve.reading.deltas import Delta, DeltaKind
from interlock.serve.reading.json_reader import Reading
from interlock.serve.reading.lexer import Item, Mark


def new_id() -> str:
    """A name that no other call has."""
    return f"call_{secrets.token_hex(12)}"


class CallReader:
    """Reads the answer part of one choice. `ids` gives the calls their ids."""

    def __init__(
        self, form: ToolForm, tools: Sequence[Tool], ids: Callable[[], str] = new_id
    ) -> None:
        self._form, self._tools, self._ids = form, tools, ids
        self._marks = MARKS[form]
        self._body: CallBody | None = None  # of the call that is being read
        self._ended = False  # all of it is there, but for its end mark
        self._raw: list[str] = []  # what was written of it, marks included
        self._rest: list[str] = []  # what was written since its arguments last grew
        self._prefix = ""  # the mark before the first of several calls, until that begins
        self._told = -1  # pieces of its arguments that were told; -1: not even its name
        self._fence = Fence()
        self._blanks = ""  # of content, which are dropped where a call follows
        self._drops = False  # blanks: behind a call
        self.calls = 0

    @property
    def inside(self) -> bool:
        """Whether a call is being written: marks of thinking are none in it."""
        return self._body is not None and not self._ended

    def push(self, item: Item) -> list[Delta]:
        """What the item adds."""
        if isinstance(item, Mark):
            return self._mark(item.text)
        return self._words(item)

    def forget_blanks(self) -> None:
        """What was pushed so far is no content after all."""
        self._blanks = ""

    def finish(self) -> list[Delta]:
        """Nothing follows."""
        if self.inside:
            found = [*self._tell(), *self._broken("")]
        else:
            found = self._content(self._fence.close())
        if self._prefix:
            found.append(Delta(DeltaKind.CONTENT, self._prefix))
        if self._blanks and not self._drops:
            found.append(Delta(DeltaKind.CONTENT, self._blanks))
        self._prefix = self._blanks = ""
        return found

    def _mark(self, text: str) -> list[Delta]:
        if self._body is not None and not self._ended:
            return self._mark_inside(self._body, text)
        found = self._content(self._fence.close())
        if text == self._marks.begin:
            self._begin(text)
        elif text == self._marks.calls_begin:
            self._prefix, self._blanks = self._prefix + self._blanks + text, ""
        elif text == self._marks.end and self._ended:
            self._body, self._ended = None, False
        elif not (text == self._marks.calls_end and self.calls):
            found += self._content(text)
        return found

    def _mark_inside(self, body: CallBody, text: str) -> list[Delta]:
        if body.takes_marks:
            return self._words(text)
        if text == self._marks.end or body.mark(text) is Reading.BAD:
            return [*self._tell(), *self._broken(text)]
        self._raw.append(text)
        self._rest.append(text)
        return []

    def _begin(self, text: str) -> None:
        self._body, self._ended, self._told = body_of(self._form, self._tools), False, -1
        self._raw = [self._prefix, self._blanks, text]
        self._rest = []
        self._prefix = self._blanks = ""

    def _words(self, text: str) -> list[Delta]:
        if self._body is None or self._ended:
            return self._content(self._fence.push(text))
        for at, char in enumerate(text):
            known = len(self._body.arguments)
            reading = self._body.push(char)
            if reading is Reading.BAD:
                told = self._tell()
                return [*told, *self._broken(char), *self._words(text[at + 1 :])]
            self._raw.append(char)
            self._rest.append(char)
            if len(self._body.arguments) > known:
                self._rest = []
            if reading is Reading.DONE:
                self._ended = True
                told = self._tell()
                self._drops = True
                if self._marks.separator:
                    self._fence.open()
                return [*told, *self._words(text[at + 1 :])]
        return self._tell()

    def _content(self, text: str) -> list[Delta]:
        if not text.strip() and self._prefix:
            self._prefix += text
            return []
        text, self._prefix, self._blanks = self._prefix + self._blanks + text, "", ""
        if self._drops:
            text = text.lstrip()
        kept = len(text.rstrip())
        text, self._blanks = text[:kept], text[kept:]
        if not text:
            return []
        self._drops = False
        return [Delta(DeltaKind.CONTENT, text)]

    def _tell(self) -> list[Delta]:
        """What is known of the call and was not told."""
        body = self._body
        if body is None or body.name is None or not (body.arguments or self._ended):
            return []
        found = []
        if self._told < 0:
            self._told = 0
            found.append(Delta(DeltaKind.CALL, number=self.calls, id=self._ids(), name=body.name))
            self.calls += 1
        pieces = body.arguments or ["{}"]
        if more := "".join(pieces[self._told :]):
            self._told = len(pieces)
            found.append(Delta(DeltaKind.ARGUMENTS, more, self.calls - 1))
        return found

    def _broken(self, text: str) -> list[Delta]:
        """The call is none: what was written of it, and `text`, are content."""
        raw, rest = "".join(self._raw) + text, "".join(self._rest) + text
        told, self._body = self._told, None
        if told < 0:
            return self._content(raw)
        self._drops = False
        return [Delta(DeltaKind.BROKEN, rest, self.calls - 1, raw=raw)]


class Fence:
    """The end of a code block behind a call's arguments, which is none of the content."""

    def __init__(self) -> None:
        self._text: str | None = None  # None: none is to come

    def open(self) -> None:
        self._text = ""

    def push(self, text: str) -> str:
        """What is content of the text, once that is known."""
        if self._text is None:
            return text
        self._text += text
        stripped = self._text.strip()
        if _FENCE.startswith(stripped):
            return ""
        return self.close()

    def close(self) -> str:
        """Nothing more of it comes."""
        text, self._text = self._text or "", None
        return text.lstrip().removeprefix(_FENCE) if text.strip() else ""


_FENCE = "```"
