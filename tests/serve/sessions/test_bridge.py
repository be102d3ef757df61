"""What follows a recorded answer: against transformers' rendering, and never a token changed."""

from pathlib import Path
from typing import Any

import pytest
from chat_models import oracle_chat
from session_talk import TEMPLATES, WITH_TOOLS, Talk, call
from transformers import AutoTokenizer

from interlock.records.rl import FinishReason
from interlock.serve.sessions.record import TurnOrigin
from interlock.serve.sessions.session import PastThinking

SAID = ["12 + 30?", "Sure?  😀 naïve", "\n\nhe said us", "the last", "日本語 \t ok"]
REPLIES = ["42", "Yes, the 😀", "he\n\nhe us", "", "最後 the"]


def as_rendered(talk: Talk, ids: list[int]) -> list[int] | str:
    """The ids; the text where this tokenizer reads what is before an answer differently with it:
    Llama's two line breaks are one token at the end of a text, and two before a word.
    """
    return ids if talk.name != "llama3" else talk.tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_one_text_to_the_token(tmp_path: Path, name: str, system: bool) -> None:
    talk = Talk(tmp_path, name)
    if system:
        talk.messages.append({"role": "system", "content": "Be brief."})
    before: list[int] = []
    for said, reply in zip(SAID, REPLIES, strict=True):
        prompt, answer = talk.turn(said, reply)
        assert prompt[: len(before)] == before  # what is in a prefix cache stays of use
        before = prompt + answer
        assert talk.session.record.turns[-1].prompt == prompt
    assert talk.session.record.origins == {}
    [branch] = talk.session.branches()
    assert branch.prompt_tokens + branch.completion.tokens == before
    # Llama's template trims what was said, and R1's opens thinking that it then leaves out: what
    # was really drawn and given is kept, and no rendering is that.
    if name not in ("llama3", "deepseek-r1"):
        oracle = AutoTokenizer.from_pretrained(tmp_path)
        more = [*talk.messages, {"role": "user", "content": "x"}]  # Qwen3 shows its last otherwise
        assert oracle_chat(oracle, more)[: len(before)] == before


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_prompt_is_what_transformers_renders(tmp_path: Path, name: str) -> None:
    talk = Talk(tmp_path, name)
    for said, reply in zip(SAID[:2], ["42", "Yes"], strict=True):
        talk.turn(said, reply)
    prompt, _ = talk.turn("More?", "No")
    rendered = oracle_chat(AutoTokenizer.from_pretrained(tmp_path), talk.messages[:-1])
    if name == "deepseek-r1":  # "<think>\n" was given before each answer, and stays
        thinks = talk.tokenizer.encode("<think>\n")
        for _ in range(2):
            at = next(i for i in range(len(prompt)) if prompt[i : i + len(thinks)] == thinks)
            del prompt[at : at + len(thinks)]
    assert as_rendered(talk, prompt) == as_rendered(talk, rendered)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_results_of_tools_follow_the_calls(tmp_path: Path, name: str) -> None:
    written = {
        "llama3": '{"name": "add", "parameters": {"a": 1, "b": [2, "é"]}}',
    }.get(name, '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "é"]}}\n</tool_call>')
    talk = Talk(tmp_path, name)
    arguments = {"a": 1, "b": [2, "é"]}
    first, answer = talk.turn(
        "add", written, content=None, tool_calls=[call("add", arguments)], finish=FinishReason.STOP
    )
    result = {"role": "tool", "content": "3 <|x|>", "tool_call_id": "call_1"}
    second, last = talk.turn(result, "It is 3.")
    assert second[: len(first) + len(answer)] == first + answer
    third, _ = talk.turn("Thanks", "!")
    assert third[: len(second) + len(last)] == second + last
    if name != "qwen2.5":  # whose template breaks the line before a call only when nothing is said
        oracle = AutoTokenizer.from_pretrained(tmp_path)
        rendered = oracle_chat(oracle, talk.messages[:-1])
        assert as_rendered(talk, third) == as_rendered(talk, rendered)
    assert talk.session.record.origins == {}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_keeps_ids_that_its_text_would_not_have(tmp_path: Path, name: str) -> None:
    talk = Talk(tmp_path, name)
    draft = talk.begin("Who?")
    encode = talk.tokenizer.encode
    split = [token for letter in "he us" for token in encode(letter)] + talk.end
    assert encode("he us") + talk.end != split  # the merges are not applied
    talk.messages.append(talk.answer(draft, split))
    follow = talk.begin("Why?")
    assert follow.prompt[: len(draft.prompt) + len(split)] == draft.prompt + split
    assert follow.origin is TurnOrigin.EXTENDS


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_that_was_cut_off_is_closed_by_the_template(tmp_path: Path, name: str) -> None:
    talk = Talk(tmp_path, name)
    draft = talk.begin("Count")
    cut = talk.tokenizer.encode("one two thr")
    talk.messages.append(talk.answer(draft, cut, finish=FinishReason.LENGTH))
    follow = talk.begin("Go on")
    before = draft.prompt + cut
    assert follow.prompt[: len(before)] == before
    assert follow.prompt[len(before) :][:1] == talk.end
    ended = Talk(tmp_path / "ended", name)
    ended.turn("Count", "one two thr")
    assert ended.begin("Go on").prompt == follow.prompt
    talk.answer(follow, talk.end)
    [branch] = talk.session.branches()
    # The close was not drawn: it is read and not learned.
    assert branch.completion.mask[: len(cut) + 1] == [True] * len(cut) + [False]


def test_an_answer_that_a_stop_string_ended_keeps_what_was_drawn(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "smollm2")
    draft = talk.begin("Say")
    drawn = talk.tokenizer.encode("yes STOP!")
    talk.messages.append(talk.answer(draft, drawn, content="yes "))
    follow = talk.begin("And?")
    behind = talk.tokenizer.encode(
        "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert follow.prompt == draft.prompt + drawn + behind


THOUGHT = "<think>\nten and thirty\n</think>\n\n42"


def thinking(
    talk: Talk, said: dict[str, Any] | str, thought: str, reply: str, **told: Any
) -> tuple[list[int], list[int]]:
    text = f"<think>\n{thought}\n</think>\n\n{reply}"
    return talk.turn(said, text, **{"content": reply, "reasoning_content": thought} | told)


@pytest.mark.parametrize("drops", [False, True], ids=["sent back", "dropped by the client"])
def test_thinking_stays_between_calls_and_branches_at_the_next_question(
    tmp_path: Path, drops: bool
) -> None:
    talk = Talk(tmp_path, "qwen3-tools")
    written = '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    calls = [call("f", "{}")]
    first, answer = thinking(talk, "Go", "hm", written, content=None, tool_calls=calls)
    if drops:
        del talk.messages[-1]["reasoning_content"]
    result = {"role": "tool", "content": "7", "tool_call_id": "call_1"}
    second, last = thinking(talk, result, "so", "Seven.")
    assert second[: len(first) + len(answer)] == first + answer
    third, _ = talk.turn("And?", "8")
    assert talk.session.record.origins == {"thinking": 1}
    told = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in talk.messages[:-1]]
    assert third == oracle_chat(AutoTokenizer.from_pretrained(tmp_path), told)
    one, two = talk.session.branches()
    assert one.prompt_tokens + one.completion.tokens == second + last
    assert (two.prompt_tokens, two.origin) == (third, TurnOrigin.THINKING)
    follow = talk.begin("More")
    assert follow.prompt[: len(third)] == third and follow.origin is TurnOrigin.EXTENDS


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_session_may_keep_thinking_that_the_template_leaves_out(
    tmp_path: Path, name: str
) -> None:
    talk = Talk(tmp_path, name, past_thinking=PastThinking.KEEP)
    before: list[int] = []
    for said in SAID:
        prompt, answer = thinking(talk, said, "hm 😀", "the answer")
        assert prompt[: len(before)] == before
        before = prompt + answer
    assert len(talk.session.branches()) == 1


@pytest.mark.parametrize("name", ["qwen3", "qwen3-tools", "deepseek-r1"])
def test_thinking_within_the_content_branches_too(tmp_path: Path, name: str) -> None:
    talk = Talk(tmp_path, name)
    talk.turn("12 + 30?", THOUGHT)
    prompt, _ = talk.turn("Sure?", "Yes")
    assert talk.session.record.origins == {"thinking": 1}
    assert "ten and thirty" not in talk.tokenizer.decode(prompt)


def test_an_answer_cut_off_while_it_thinks_is_given_the_end_of_thinking(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "qwen3-tools")
    draft = talk.begin("Go")
    cut = talk.tokenizer.encode("<think>\nlet me s")
    told = {"content": "", "reasoning_content": "let me s"}
    talk.messages.append(talk.answer(draft, cut, finish=FinishReason.LENGTH, **told))
    follow = talk.begin({"role": "tool", "content": "late", "tool_call_id": "x"})
    assert follow.prompt[: len(draft.prompt) + len(cut)] == draft.prompt + cut
    given = talk.tokenizer.decode(follow.prompt[len(draft.prompt) + len(cut) :], skip_special=False)
    assert given.startswith("\n</think>\n\n<|im_end|>\n<|im_start|>user\n<tool_response>\nlate")


def test_a_prompt_that_switches_thinking_off_is_extended(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "qwen3-tools")
    draft = talk.begin("Go", enable_thinking=False)
    tokens = talk.tokenizer.encode("Gone") + talk.end
    talk.messages.append(talk.answer(draft, tokens))
    follow = talk.begin("And?", enable_thinking=False)
    assert follow.prompt[: len(draft.prompt) + len(tokens)] == draft.prompt + tokens
    assert follow.text.endswith("<think>\n\n</think>\n\n")


def test_a_template_that_refuses_the_mark_or_closes_nothing_branches(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "smollm2")
    talk.turn("a", "b")
    talk.messages.append({"role": "user", "content": "c"})
    asked = talk.asked(talk.messages)

    def upper(turns: list[dict[str, Any]]) -> str:
        return asked.render(turns).upper()

    draft = talk.session.begin(type(asked)(asked.messages, upper, asked.encode, asked.settings))
    assert draft.origin is TurnOrigin.TEMPLATE
    assert draft.prompt == talk.tokenizer.encode(upper(talk.messages))
