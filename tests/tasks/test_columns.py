"""The forms of TRL's data sets, against TRL's own reading of them and by hand."""

import copy
from typing import Any

import pytest

from interlock.tasks.columns import ChatRow, PlainRow, asked, example

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, PlainRow("", "a")),
        ({"prompt": "The sky", "completion": " is blue."}, PlainRow("The sky", " is blue.")),
        ({"messages": [USER, REPLY]}, ChatRow([USER, REPLY])),
        ({"messages": [USER, REPLY], "text": None, "id": 7}, ChatRow([USER, REPLY])),
        ({"prompt": [USER], "completion": [REPLY]}, ChatRow([USER, REPLY], 1)),
        ({"messages": [USER, REPLY], "thinking": False}, ChatRow([USER, REPLY], 0, False)),
        (
            {"messages": [USER, REPLY], "chat_template_kwargs": {"enable_thinking": True, "x": 1}},
            ChatRow([USER, REPLY], 0, True, {"x": 1}),
        ),
        (
            {"messages": [USER, REPLY], "tools": TOOLS},
            ChatRow([USER, REPLY], template={"tools": TOOLS}),
        ),
        (
            {"messages": [USER, {**REPLY, "tool_calls": None, "reasoning_content": "hm"}]},
            ChatRow([USER, {**REPLY, "reasoning_content": "hm"}]),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            ChatRow([USER, REPLY]),
        ),
    ],
)
def test_every_form_is_read(row: dict[str, Any], expected: ChatRow | PlainRow) -> None:
    assert example(row) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, REPLY]},
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yes"}]},
        {"messages": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Yes"}]},
    ],
)
def test_conversations_become_what_trl_makes_of_them(row: dict[str, Any]) -> None:
    trl = pytest.importorskip("trl.data_utils")
    found = example(copy.deepcopy(row))
    assert isinstance(found, ChatRow)
    assert found.turns == trl.maybe_convert_to_chatml(row)["messages"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [USER], "text": "a"}, "messages or text, not both"),
        ({"messages": [USER], "prompt": "a", "completion": "b"}, "messages or prompt, not both"),
        ({"prompt": "a"}, "the column 'prompt' needs a 'completion'"),
        ({"completion": "a"}, "needs a prompt"),
        ({"prompt": "a", "completion": [REPLY]}, "one is a text and the other turns"),
        ({"prompt": [USER], "completion": "b"}, "one is a text and the other turns"),
        ({"prompt": [USER, REPLY], "completion": [REPLY]}, "'prompt' ends with the assistant's"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "'chosen' is a preference"),
        ({"prompt": "a", "completion": "b", "label": False}, "'label' is a judgement"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "'completions' is steps"),
        ({"messages": [USER, REPLY], "images": ["x"]}, "'images' is images"),
        ({"prompt": "a", "completion": 3}, "the column 'completion' is 3"),
        ({"prompt": "a", "completion": "b", "thinking": True}, "'thinking' is for a chat template"),
        ({"messages": "Hi"}, "the column 'messages' is \"Hi\", not a list"),
        ({"messages": None}, "the column 'messages' is null"),
        ({"messages": [{"role": "user"}]}, "needs a role and a content"),
        (
            {"messages": [USER, REPLY], "thinking": "yes"},
            "'thinking' is \"yes\", not true or false",
        ),
        (
            {
                "messages": [USER, REPLY],
                "thinking": True,
                "chat_template_kwargs": {"enable_thinking": False},
            },
            "'thinking' and 'chat_template_kwargs' say different things",
        ),
        ({"messages": [USER, REPLY], "chat_template_kwargs": [1]}, "'chat_template_kwargs' is [1]"),
        ({"messages": [USER, REPLY], "tools": "{"}, "the column 'tools' is"),
        ({"question": "a", "answer": "b"}, "this one has 'question', 'answer'"),
    ],
)
def test_what_could_mean_two_things_or_none_is_refused_by_its_column(
    row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError) as caught:
        example(row)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "question", "answer"),
    [
        ({"question": "1+1?", "answer": 2}, "1+1?", "2"),
        ({"prompt": "1+1?", "solution": "2"}, "1+1?", "2"),
        ({"problem": "1+1?", "ground_truth": "2", "answer": None}, "1+1?", "2"),
        ({"prompt": [USER], "answer": "2"}, [USER], "2"),
    ],
)
def test_a_question_and_its_answer_are_found_by_their_usual_names(
    row: dict[str, Any], question: object, answer: str
) -> None:
    found = asked(row)
    assert (found.question, found.answer) == (question, answer)


def test_a_named_column_goes_before_the_usual_ones() -> None:
    row = {"question": "a", "prompt": "b", "answer": "1", "solution": "long", "q": "c"}
    assert asked(row, "q", "solution")[:2] == ("c", "long")
    found = asked({**row, "thinking": False, "chat_template_kwargs": {"x": 1}}, "q", "answer")
    assert found.template == {"x": 1, "enable_thinking": False}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "a", "prompt": "b", "answer": "1"}, "columns 'question' and 'prompt'"),
        ({"problem": "a", "answer": "1", "solution": "2"}, 'answer_field = "answer"'),
        ({"prompt": None, "answer": "1"}, "the field 'prompt' is null"),
        ({"prompt": [], "answer": "1"}, "is to end with the user's turn"),
        ({"prompt": [USER, REPLY], "answer": "1"}, "is to end with the user's turn"),
        ({"prompt": [{**USER, "name": "x"}], "answer": "1"}, "a role and a content alone"),
        ({"prompt": ["a"], "answer": "1"}, "needs a role and a content"),
        ({"prompt": {"a": 1}, "answer": "1"}, "not a text or a number"),
    ],
)
def test_a_problem_that_is_not_clear_is_refused_by_its_column(
    row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError) as caught:
        asked(row)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
