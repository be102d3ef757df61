"""Chat templates that never end, or take all memory: each costs its limits and one line."""

import os
import resource
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import ModelError, TrainingError
from interlock.models import chat
from interlock.models.chat import ChatTemplate
from interlock.processes.child import Child

ASKED = [{"role": "user", "content": "a"}]
DOUBLED = "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}"
LONG = {
    "nested loops": "{% for a in range(9999) %}" * 4 + "{% endfor %}" * 4,
    "a power": "{{ 10 ** (10 ** 8) }}",
    "a power while it is read": "{% if 0 %}{{ 7 ** (10 ** 8) }}{% endif %}",
    "loops of macros": "{% macro f(n) %}{% for i in range(99) %}{% if n %}{{ f(n - 1) }}{% endif %}"
    "{% endfor %}{% endmacro %}{{ f(9) }}",
}
LARGE = {
    "a product": "{{ 'a' * 10 ** 9 }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width of format": "{{ '{:1000000000}'.format(messages[0].content) }}",
    "a list": "{{ ([0] * 10 ** 9) | length }}",
    "a filter": "{{ messages[0].content | center(10 ** 9) }}",
    "an indent": "{{ messages | tojson(indent=10 ** 9) }}",
    "doubling": DOUBLED + "{% endfor %}{{ ns.t }}",
    "more text than is taken": "{{ messages[0].content * 8500000 }}",
    "a range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in turns": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}"
    "{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 99_999 + " }}",
    "blocks": "{% if 1 %}" * 9_999 + "{% endif %}" * 9_999,
}


@pytest.fixture(autouse=True)
def one_more() -> Iterator[None]:
    """Whatever a template did, the next one is rendered."""
    yield
    assert ChatTemplate("{{ messages[0].content }}", {}, "next").render(ASKED) == "a"


@pytest.mark.parametrize("name", LONG)
def test_a_template_that_does_not_end_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "CPU_S", 0.3)
    with pytest.raises(
        ModelError, match=r"^the chat template of evil needs more than 0\.3 s"
    ) as no:
        ChatTemplate(LONG[name], {}, "evil").render(ASKED)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("name", LARGE)
def test_a_template_takes_no_more_memory_than_it_is_given(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"^the chat template of evil ") as no:
        ChatTemplate(LARGE[name], {}, "evil").render(ASKED)
    assert "\n" not in str(no.value) and len(str(no.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


def test_a_template_is_told_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    chat._renderer._stop()
    ChatTemplate("x", {}, "any").render(ASKED)
    child = chat._renderer._child
    assert child is not None
    with open(f"/proc/{child.pid}/environ") as variables:
        assert "swordfish" not in variables.read()


def test_a_renderer_that_is_killed_is_started_again() -> None:
    template = ChatTemplate("x", {}, "any")
    child = chat._renderer._child
    assert child is not None
    os.kill(child.pid, 9)
    assert template.render(ASKED) == "x"


def test_one_that_is_killed_again_and_again_is_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template, asked = ChatTemplate("x", {}, "any"), []

    class Doomed(Child):
        def ask(self, message: bytes, timeout_s: float, most: int) -> bytes:
            asked.append(message)
            os.kill(self.pid, 9)
            return super().ask(message, timeout_s, most)

    chat._renderer._stop()
    with monkeypatch.context() as patch:
        patch.setattr(chat, "Child", Doomed)
        with pytest.raises(TrainingError, match="killed 3 times"):
            template.render(ASKED)
    assert len(asked) == 3 and template.render(ASKED) == "x"


def test_one_that_cannot_be_started_is_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat._renderer._stop()
    with monkeypatch.context() as patch:
        patch.setattr(chat, "bare", lambda: {"PYTHONPATH": "", "PYTHONHOME": "/nowhere"})
        with pytest.raises(TrainingError, match="renders chat templates"):
            ChatTemplate("x", {}, "any")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FOR = ["for", "m", "in", "messages", "endfor", "if", "endif", "set", "x", "=", "generation"]
MARKS = [
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "m.",
    "content",
    "[0]",
    "|tojson",
    "'",
    "(",
    ")",
    "~",
    "\ud800",
]
PIECES = st.sampled_from(FOR + MARKS)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES | st.text(max_size=3), max_size=12), st.dictionaries(st.text(), JSON))
def test_whatever_a_template_and_its_messages_say_ends_in_a_text_or_our_error(
    pieces: list[str], turn: dict[str, object]
) -> None:
    try:
        text, spans = ChatTemplate(" ".join(pieces), {}, "any").render_spans([turn])
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert all(0 <= start <= end <= len(text) for start, end in spans)
