"""A model's chat template: messages to the one string the model was trained to read.

    messages ──ChatTemplate──> renderer, a process (templates.py) ──> text, and the spans inside
                                                                      {% generation %} blocks

Templates are foreign code, so they are read and rendered in another process, one for all of this
process's templates, which has limits of time and memory. It is started when it is first needed, and
again when a template has killed it. What goes wrong in a template is a ModelError that names it.
"""

import json
import threading
from datetime import datetime
from typing import Any

import msgspec

from interlock.errors import ModelError, TrainingError
from interlock.models.templates import MEMORY_BYTES, MOST_CHARACTERS, Span
from interlock.processes.child import Child, ChildEnded, ChildError, bare
from interlock.text import error_line

Messages = list[dict[str, Any]]

CPU_S = 5.0  # of processor time for one text; a conversation of 40 turns takes a thousandth

_TRIES = 3  # when it was killed, which no template can do
_ANSWER_S = 60.0  # of the clock: for a machine that is too busy, or a process that is stopped
_MOST_BYTES = 8 * MOST_CHARACTERS  # of a reply; a character is six bytes at the most, a span fewer


class ChatTemplate:
    """One template. `source` names it in errors, `tokens` are its bos_token, eos_token, …
    `clock` is the time that it is told, however often it asks; None: that of the asking.

    Raises ModelError when the template does not parse.
    """

    def __init__(
        self, text: str, tokens: dict[str, str], source: str, clock: datetime | None = None
    ) -> None:
        self.text = text
        self._source = source
        told = None if clock is None else clock.isoformat()
        self._template = json.dumps([text, tokens, told])
        self._render(None)

    def render(self, messages: Messages, add_generation_prompt: bool = True, **more: Any) -> str:
        """The text of a conversation. `more` are the template's own settings (enable_thinking, …).

        With `add_generation_prompt` it ends where the assistant is to begin. Raises ModelError.
        """
        return self.render_spans(messages, add_generation_prompt, **more)[0]

    def render_spans(
        self, messages: Messages, add_generation_prompt: bool = False, **more: Any
    ) -> tuple[str, list[Span]]:
        """The text, and the character span of each of its {% generation %} blocks, in order."""
        if not messages:
            raise ModelError("a conversation needs at least one message")
        # A key without a value is the same as no key: templates only test for presence. But some
        # tell by its content that a turn of calls has none.
        present = [
            {
                k: v
                for k, v in turn.items()
                if v is not None or (k == "content" and "tool_calls" in turn)
            }
            for turn in messages
        ]
        return self._render(
            {"messages": present, "add_generation_prompt": add_generation_prompt, **more}
        )

    def _render(self, variables: dict[str, Any] | None) -> tuple[str, list[Span]]:
        try:
            request = f"{CPU_S}\n{self._template}\n{json.dumps(variables)}".encode()
        except RecursionError:
            raise ModelError("a conversation is nested too deep to be rendered") from None
        reply = _renderer.ask(request)
        if isinstance(reply, str):
            raise TemplateFailure(self._source, reply)
        return reply


class TemplateFailure(ModelError):
    """A template does not render what it was given; `reason` does not tell where it lies."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"the chat template of {source} {reason}")
        self.reason = reason


class _Renderer:
    """The talk with the process: one request at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None

    def ask(self, request: bytes) -> tuple[str, list[Span]] | str:
        """Text and spans, or what is wrong with the template. Raises TrainingError."""
        with self._lock:
            for _ in range(_TRIES):
                try:
                    child = self._child or self._started()
                    data = child.ask(request, _ANSWER_S, _MOST_BYTES)
                    return msgspec.convert(json.loads(data), tuple[str, list[Span]] | str)
                except ChildEnded as error:
                    self._stop()
                    if not child.was_killed:
                        return f"needs more than {CPU_S:g} s or {MEMORY_BYTES >> 20:,} MB ({error})"
                except (OSError, ChildError, ValueError) as error:
                    self._stop()
                    raise _failed(error) from None
                except BaseException:  # an interrupt: the answer would be taken for the next one's
                    self._stop()
                    raise
            raise _failed(f"it was killed {_TRIES} times; is there too little memory?")

    def _started(self) -> Child:
        self._child = Child("interlock.models.templates", bare())
        try:
            self._child.receive(_ANSWER_S, most=0)
        except ChildEnded as error:
            raise _failed(error) from None
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


def _failed(reason: Exception | str) -> TrainingError:
    reason = reason if isinstance(reason, str) else error_line(reason)
    return TrainingError(f"the process that renders chat templates fails: {reason}")


_renderer = _Renderer()
