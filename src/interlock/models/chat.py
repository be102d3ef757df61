"""A model's chat template: messages to the one string the model was trained to read.

    messages ──ImmutableSandboxedEnvironment──> text, and the spans inside {% generation %} blocks

Templates are foreign code. They run in jinja2's immutable sandbox with the settings and globals of
transformers' `apply_chat_template`, so the text is the same to the character. Whatever goes wrong
inside one becomes a ModelError that names its source. The sandbox bounds `range` (100,000 steps);
nothing bounds the loops a template may nest.
"""

import json
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from interlock.errors import ModelError
from interlock.text import error_line

Messages = list[dict[str, Any]]
Span = tuple[int, int]  # characters [start, end)


class ChatTemplate:
    """One compiled template. `source` names it in errors, `tokens` are its bos_token, eos_token, …
    `clock` is the time that it is told, however often it asks; None: that of the asking.

    Raises ModelError when the template does not parse.
    """

    def __init__(
        self, text: str, tokens: dict[str, str], source: str, clock: datetime | None = None
    ) -> None:
        self.text = text
        self._tokens = tokens
        self._source = source
        environment = _environment()
        environment.globals["strftime_now"] = lambda form: (clock or datetime.now()).strftime(form)
        generation = environment.extensions[_Generation.identifier]
        assert isinstance(generation, _Generation)
        self._generation = generation
        try:
            self._template = environment.from_string(text)
        except (TemplateError, RecursionError) as error:
            raise ModelError(
                f"the chat template of {source} does not parse: {error_line(error)}"
            ) from None

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
        # A key without a value is the same as no key: templates only test for presence.
        present = [{k: v for k, v in turn.items() if v is not None} for turn in messages]
        settings = {"tools": None, "documents": None, **self._tokens, **more}
        try:
            marked = self._template.render(
                messages=present, add_generation_prompt=add_generation_prompt, **settings
            )
        except Exception as error:  # foreign code: it may raise anything, and none of it is our bug
            raise ModelError(
                f"the chat template of {self._source} failed: {error_line(error)}"
            ) from None
        return _unmark(marked, self._generation.start, self._generation.end)


def _unmark(marked: str, start_mark: str, end_mark: str) -> tuple[str, list[Span]]:
    """Take the marks out of a rendered text; return it with the spans they enclosed."""
    first, *blocks = marked.split(start_mark)
    text, spans = first, []
    for block in blocks:
        inside, _, after = block.partition(end_mark)
        spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return text, spans


class _Generation(Extension):
    """Transformers' {% generation %} … {% endgeneration %}: what is inside, the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # Random, so that no message can forge a mark.
        self.start, self.end = f"<{secrets.token_hex(16)}>", f"<{secrets.token_hex(16)}>"

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{self.start}{caller()}{self.end}"


class _Namespace(Namespace):
    """jinja2's namespace without underscore attributes, which could shadow Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=…)` must stay possible
        self, *rest = args
        Namespace.__init__(self, *rest, **kwargs)
        for name in dict(*rest, **kwargs):
            _refuse_underscore(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r} begins with an underscore")


def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox, as transformers sets it up (`utils/chat_template_utils.py`)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "dict": _new_dict,
        "namespace": _Namespace,
    }
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
