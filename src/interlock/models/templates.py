"""The process that renders chat templates: a child of chat.py.

    template, messages ──> serve ──ImmutableSandboxedEnvironment──> text, spans │ what went wrong

Templates are foreign code: reading one may take as long, and as much memory, as rendering it. They
run in jinja2's immutable sandbox with the settings and globals of transformers'
`apply_chat_template`, so the text is the same to the character. The process limits its own memory,
and the processor time of every request; what passes that is killed with the process.
"""

import json
import resource
import secrets
import signal
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from interlock.processes.channel import Channel
from interlock.text import error_line

MEMORY_BYTES = 1 << 30  # of address space
MOST_CHARACTERS = 8 << 20  # of a rendered text
_TEMPLATES = 8  # kept ready, the latest used
_ERROR_CHARACTERS = 500

Span = tuple[int, int]  # characters [start, end)


def serve(channel: Channel) -> None:
    """Render what is asked for until nobody asks any more. First says that it is up.

    A request is three lines of JSON: seconds of processor time; [template, bos_token and the like,
    clock]; the template's variables, null to have it read only. The reply is [text, spans], or what
    went wrong.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.send(b"")
    while (request := channel.receive()) is not None:
        seconds, template, variables = request.split(b"\n")
        signal.setitimer(signal.ITIMER_PROF, float(seconds))  # nothing handles its signal: it kills
        reply = json.dumps(_answer(template, variables)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send(reply)


def _answer(template: bytes, variables: bytes) -> tuple[str, list[Span]] | str:
    try:
        read = _read(template)
    except Exception as error:  # foreign code: it may raise anything, and none of it is our bug
        return f"does not parse: {error_line(error, _ERROR_CHARACTERS)}"
    try:
        return read.rendered(json.loads(variables))
    except Exception as error:
        return f"failed: {error_line(error, _ERROR_CHARACTERS)}"


@lru_cache(maxsize=_TEMPLATES)
def _read(template: bytes) -> "_Template":
    return _Template(*json.loads(template))


class _Template:
    """One template, read and ready."""

    def __init__(self, text: str, tokens: dict[str, str], clock: str | None) -> None:
        self._tokens = tokens
        environment = _environment()
        then = None if clock is None else datetime.fromisoformat(clock)
        environment.globals["strftime_now"] = lambda form: (then or datetime.now()).strftime(form)
        generation = environment.extensions[_Generation.identifier]
        assert isinstance(generation, _Generation)
        self._marks = generation.start, generation.end
        self._template = environment.from_string(text)

    def rendered(self, variables: dict[str, Any] | None) -> tuple[str, list[Span]]:
        if variables is None:
            return "", []
        marked = self._template.render(
            {"tools": None, "documents": None, **self._tokens, **variables}
        )
        if len(marked) > MOST_CHARACTERS:
            raise ValueError(f"it renders more than {MOST_CHARACTERS:,} characters")
        return _unmark(marked, *self._marks)


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
