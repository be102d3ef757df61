# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar
import json
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.chat_models import write_model
from tests.support.chat_templates import CHATML, DEEPSEEK, HERMES
from tests.support.tool_models import WEATHER, add_marks

from interlock.models.tokenizer import Tokenizer
from interlock.serve.prompts.prompting import ChatFormat, ThinkingStage
from interlock.serve.prompts.turns import Tool, tools_of
from interlock.serve.reading.deltas import ChatAnswer, Delta, DeltaKind, ToolCall
from interlock.serve.reading.reader import AnswerReader

TOOLS = tools_of([WEATHER, {"type": "function", "function": {"name": "now"}}])
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ōsaka"}}\n</tool_call>'
OPEN, INSIDE, OFF = ThinkingStage.OPEN, ThinkingStage.INSIDE, ThinkingStage.OFF


@cache
def model(kind: str) -> tuple[ChatFormat, Tokenizer]:
    """Vocabularies with the marks as tokens, but for "spelt", which has none of them."""
    directory = Path(mkdtemp())
    template = {"deepseek": DEEPSEEK}.get(kind, HERMES)
    eos = "<｜end▁of▁sentence｜>" if kind == "deepseek" else "<|im_end|>"
    write_model(directory, template, eos=eos)
    if kind == "spelt":
        path = directory / "tokenizer.json"
        tree = json.loads(path.read_text())
        tree["added_tokens"] = [t for t in tree["added_tokens"] if "think" not in t["content"]]
        path.write_text(json.dumps(tree))
    else:
        add_marks(directory)
    tokenizer = Tokenizer.load(directory)
    form = "qwen3_coder" if kind == "xml" else "auto"
    return ChatFormat(tokenizer, tool_form=form), tokenizer


def read(
    kind: str,
    text: str,
    stage: ThinkingStage = OPEN,
    tools: list[Tool] = TOOLS,
    sizes: Iterator[int] | None = None,
) -> tuple[ChatAnswer, list[Delta]]:
    form, tokenizer = model(kind)
    numbers = count(1)
    reader = AnswerReader(form, stage, tools, ids=lambda: f"id{next(numbers)}")
    tokens, deltas = tokenizer.encode(text), []
    while tokens:
        size = next(sizes) if sizes else len(tokens)
        deltas += reader.push(tokens[:size])
        tokens = tokens[size:]
    deltas += reader.finish()
    return reader.answer, deltas


def weather(number: int = 1, arguments: str = '{"city": "Ōsaka"}') -> ToolCall:
    return ToolCall(f"id{number}", "get_weather", arguments)


THOUGHTS = {
    "<think>\nhm\n</think>\n\nYes.": ("hm", "Yes."),
    "Yes.": (None, "Yes."),
    " Yes. \n": (None, " Yes. \n"),
    "": (None, ""),
    "\n<think>hm</think>Yes.\n": ("hm", "Yes.\n"),
    "<think>\n\n</think>\n\nYes.": (None, "Yes."),
    "<think>never ended\n": ("never ended", None),
    "<think>a<think>b</think>c": ("a<think>b", "c"),
    "<think>a</think>b</think>c": ("a", "b</think>c"),
    "hm\n</think>\n\nYes.": ("hm", "Yes."),
    "<think>a\n\nb</think>c < d <thi": ("a\n\nb", "c < d <thi"),
    "<think>1 </thin 2</think>x": ("1 </thin 2", "x"),
}


@pytest.mark.parametrize("kind", ["hermes", "spelt"])
@pytest.mark.parametrize("text", THOUGHTS)
def test_thinking_is_split_from_the_answer(kind: str, text: str) -> None:
    answer, _ = read(kind, text)
    assert (answer.reasoning, answer.content) == THOUGHTS[text]


@pytest.mark.parametrize("kind", ["hermes", "spelt"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nhm\n</think>\n\nYes.", ("hm", "Yes.")),
        ("<think>\nhm</think>Yes.", ("hm", "Yes.")),  # R1-0528 writes the mark once more
        ("never ended", ("never ended", None)),
        ("</think>Yes.", (None, "Yes.")),
        ("", (None, "")),
    ],
)
def test_the_prompt_may_have_opened_thinking(kind: str, text: str, expected: tuple) -> None:
    answer, _ = read(kind, text, INSIDE)
    assert (answer.reasoning, answer.content) == expected


def test_thinking_that_was_told_as_an_answer_is_taken_back() -> None:
    _, deltas = read("hermes", "hm</think>Yes.")
    assert deltas == [
        Delta(DeltaKind.CONTENT, "hm"),
        Delta(DeltaKind.RETRACTED),
        Delta(DeltaKind.CONTENT, "Yes."),
    ]


def test_a_second_thought_behind_an_answer() -> None:
    answer, _ = read("hermes", "<think>a</think>b <think>c</think>d")
    assert (answer.reasoning, answer.content) == ("ac", "b d")
    answer, _ = read(
        "spelt", "<think>a</think>Tags: <think> and </think>."
    )  # text that speaks of it
    assert answer.content == "Tags: <think> and </think>."


@pytest.mark.parametrize(
    ("kind", "text", "stage", "tokens"),
    [
        ("hermes", "<think>abc</think>de", OPEN, 3),
        ("spelt", "<think>abc</think>de", OPEN, 3),
        ("spelt", "<think>a<b</think>de", OPEN, 3),
        ("hermes", "abc", INSIDE, 3),
        ("spelt", "ab</th", INSIDE, 6),
        ("hermes", "abc", OPEN, 0),
        ("hermes", "</think>abc", INSIDE, 0),
    ],
)
def test_tokens_of_thinking_are_counted(
    kind: str, text: str, stage: ThinkingStage, tokens: int
) -> None:
    assert read(kind, text, stage)[0].reasoning_tokens == tokens


DEEP = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
DEEP_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Ōsaka"}\n```<｜tool▁call▁end｜>'
)
BARE_CALL = '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Ōsaka"}<｜tool▁call▁end｜>'
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
WHOLE = [
    ("hermes", CALL, None, [weather()]),
    ("hermes", f"Let me see.\n{CALL}\n", "Let me see.", [weather()]),
    ("hermes", f"<think>\nhm</think>\n\n{CALL}\n{CALL}", None, [weather(), weather(2)]),
    ("hermes", f"{CALL}\nDone. ", "Done. ", [weather()]),
    ("hermes", CALL.removesuffix("\n</tool_call>"), None, [weather()]),
    ("hermes", f"{CALL.removesuffix('</tool_call>')}{CALL}", None, [weather(), weather(2)]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', None, [ToolCall("id1", "now", "{}")]),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": [1, {}]}, "name": "now"}</tool_call>',
        None,
        [ToolCall("id1", "now", '{"a": [1, {}]}')],
    ),
    (
        "hermes",
        CALL.replace("Ōsaka", "</tool_call> <think>\\n{"),
        None,
        [weather(arguments='{"city": "</tool_call> <think>\\n{"}')],
    ),
    ("deepseek", DEEP.format(DEEP_CALL), None, [weather()]),
    ("deepseek", "hm</think>Look.\n" + DEEP.format(DEEP_CALL), "Look.", [weather()]),
    ("deepseek", DEEP.format(f"{DEEP_CALL}\n{DEEP_CALL}"), None, [weather(), weather(2)]),
    ("deepseek", DEEP.format(BARE_CALL), None, [weather()]),
    ("deepseek", DEEP.format(BARE_CALL + DEEP_CALL) + "\nx", "x", [weather(), weather(2)]),
    ("xml", XML, None, [weather(arguments='{"city": "12", "days": 3}')]),
    (
        "xml",
        XML.replace("12", 'a <b>\n"</tool_call>"'),
        None,
        [weather(arguments='{"city": "a <b>\\n\\"</tool_call>\\"", "days": 3}')],
    ),
    (
        "xml",
        "<tool_call><function=now></function></tool_call>",
        None,
        [ToolCall("id1", "now", "{}")],
    ),
]
BROKEN = [
    ("hermes", "<tool_call>\nno JSON\n</tool_call>"),
    ("hermes", 'a <tool_call>{"name": 3, "arguments": {}}</tool_call> b'),
    ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": tru}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": 1}, "name": "b"}</tool_call>'),
    ("hermes", 'x\n<tool_call>{"name": "now", "arguments": {"a": "'),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", "</tool_call>"),
    ("hermes", '<tool_call>{"name": "now", "arguments": {"a": </tool_call>'),
    ("hermes", "<tool_call><tool_call>"),
    ("deepseek", "<｜tool▁calls▁begin｜> only words"),
    ("deepseek", "x <｜tool▁calls▁begin｜>"),
    ("deepseek", DEEP.format("<｜tool▁call▁begin｜>now<｜tool▁call▁end｜>")),
    ("deepseek", "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{]"),
    ("xml", "<tool_call>\n<function=now>\n<parameter=a>\n1</tool_call>"),
    ("xml", "<tool_call>\n<function=now>\nwords</tool_call>"),
]


@pytest.mark.parametrize(("kind", "text", "content", "calls"), WHOLE)
def test_calls(kind: str, text: str, content: str | None, calls: list[ToolCall]) -> None:
    answer, deltas = read(kind, text)
    assert (answer.content, answer.calls) == (content, calls)
    assert not [d for d in deltas if d.kind is DeltaKind.BROKEN]
    assert all(isinstance(json.loads(call.arguments), dict) for call in answer.calls)


@pytest.mark.parametrize(("kind", "text"), BROKEN)
def test_what_is_no_call_is_given_back_whole(kind: str, text: str) -> None:
    answer, _ = read(kind, text)
    assert (answer.content, answer.calls) == (text, [])


def test_a_stream_loses_nothing_of_a_call_that_breaks() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": 1}, "b": x}</tool_call>!'
    _, deltas = read("hermes", text, sizes=iter([1] * 99))
    told = [(d.kind, d.text) for d in deltas]
    arguments = "".join(text for kind, text in told if kind is DeltaKind.ARGUMENTS)
    rest = "".join(t for k, t in told if k in (DeltaKind.BROKEN, DeltaKind.CONTENT))
    assert (arguments, rest) == ('{"a": 1}', ', "b": x}</tool_call>!')


@pytest.mark.parametrize(
    ("text", "calls"), [(CALL, 1), (CALL[:-20], 0), (f"{CALL}{CALL[:-20]}", 1)]
)
def test_calls_that_broke_off_do_not_count(text: str, calls: int) -> None:
    form, tokenizer = model("hermes")
    reader = AnswerReader(form, OPEN, TOOLS)
    reader.push(tokenizer.encode(text))
    reader.finish()
    assert reader.calls == calls == len(reader.answer.calls)


def test_arguments_come_as_they_are_written() -> None:
    _, deltas = read("hermes", CALL, sizes=iter([1] * 99))
    assert deltas[0] == Delta(DeltaKind.CALL, id="id1", name="get_weather")
    pieces = [delta.text for delta in deltas if delta.kind is DeltaKind.ARGUMENTS]
    assert len(pieces) > 10
    assert "".join(pieces) == '{"city": "Ōsaka"}'


def test_without_tools_everything_is_content() -> None:
    assert read("hermes", CALL, tools=[])[0] == ChatAnswer(CALL, None, [])


EVERYTHING = [(kind, text) for kind, text, *_ in WHOLE] + BROKEN
EVERYTHING += [(kind, text) for text in THOUGHTS for kind in ("hermes", "spelt")]


def told_of(deltas: list[Delta]) -> list[Delta]:
    """What a client was told, however it was cut."""
    joined: list[Delta] = []
    for delta in deltas:
        if joined and joined[-1][:1] == delta[:1] and delta.kind not in ("call", "broken"):
            joined[-1] = joined[-1]._replace(text=joined[-1].text + delta.text)
        else:
            joined.append(delta)
    return joined


@settings(max_examples=120)
@given(st.data(), st.sampled_from([OPEN, INSIDE]))
def test_how_an_answer_is_cut_changes_nothing(data: st.DataObject, stage: ThinkingStage) -> None:
    kind, text = data.draw(st.sampled_from(EVERYTHING))
    whole, at_once = read(kind, text, stage)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(text) * 4, max_size=len(text) * 4))
    cut, pieces = read(kind, text, stage, sizes=iter(sizes))
    assert cut == whole
    assert told_of(pieces) == told_of(at_once)


NOISE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", "a", '{"name": "now"']
NOISE += [', "arguments": {', '"x": "', '"', "}", "}", CALL, "<", "</th", "<function=now>"]
NOISE += ["</function>", "<parameter=a>", "</parameter>"]


@settings(max_examples=120)
@given(
    st.sampled_from(["hermes", "spelt", "xml"]),
    st.lists(st.sampled_from(NOISE), max_size=12).map("".join),
    st.randoms(use_true_random=False),
)
def test_noise_is_cut_alike_and_every_argument_is_json(kind, text, random) -> None:  # type: ignore[no-untyped-def]
    whole, at_once = read(kind, text)
    cut, pieces = read(kind, text, sizes=iter(lambda: random.randint(1, 9), 0))
    assert (cut, told_of(pieces)) == (whole, told_of(at_once))
    assert all(isinstance(json.loads(call.arguments), dict) for call in whole.calls)


@given(st.text(alphabet="ab <>/thinkool_c\n", max_size=40))
def test_text_without_marks_comes_back_whole(text: str) -> None:
    for kind in ("hermes", "spelt"):
        if "<think>" not in text and "</think>" not in text:
            assert read(kind, text)[0] == ChatAnswer(text, None, [])


def test_a_vocabulary_of_no_thinking(tmp_path: Path) -> None:
    write_model(tmp_path, CHATML)
    form = ChatFormat(Tokenizer.load(tmp_path), thinking_marks="none")
    reader = AnswerReader(form, OFF)
    reader.push(Tokenizer.load(tmp_path).encode("<think>a</think>b"))
    reader.finish()
    assert reader.answer == ChatAnswer("<think>a</think>b", None, [])
