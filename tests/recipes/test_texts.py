"""What rows become under the templates of Qwen3, of DeepSeek-R1 and of neither."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_models import write_model
from chat_templates import CHATML, DEEPSEEK_R1, QWEN3
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.fields import ThinkingSwitch
from interlock.config.tasks import TaskSettings
from interlock.errors import UserError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import room
from interlock.recipes.sft import read
from interlock.recipes.texts import texts
from interlock.tasks import open_task
from interlock.workers.reading import Reader

ASK = {"role": "user", "content": "1+1?"}
SAID = {"role": "assistant", "content": "2", "reasoning_content": "one and one"}
PLAIN = {"role": "assistant", "content": "2"}
QWEN_ASKED = "<|im_start|>user\n1+1?{}<|im_end|>\n<|im_start|>assistant\n"
R1_ASKED = "<｜begin▁of▁sentence｜><｜User｜>1+1?{}<｜Assistant｜><think>\n"  # noqa: RUF001
R1_END = "<｜end▁of▁sentence｜>"  # noqa: RUF001
THOUGHT, EMPTY = "<think>\none and one\n</think>\n\n", "<think>\n\n</think>\n\n"


def opened(directory: Path, name: str) -> Tokenizer:
    templates = {"qwen": QWEN3, "r1": DEEPSEEK_R1, "chatml": CHATML}
    eos = R1_END if name == "r1" else "<|im_end|>"
    return Tokenizer.load(write_model(directory / name, templates[name], eos))


def shown(
    row: dict[str, Any], tokenizer: Tokenizer, switch: ThinkingSwitch = "template"
) -> list[tuple[str, str]]:
    """(given, learned) of every text, which is to be learned to its end."""
    found = []
    for tokens, learned in texts(row, tokenizer, switch):
        start = learned.index(True)
        assert all(learned[start:])
        parts = tokens[:start], tokens[start:]
        given_part, learned_part = (tokenizer.decode(part, skip_special=False) for part in parts)
        found.append((given_part, learned_part))
    return found


@pytest.mark.parametrize(
    ("model", "switch", "thinks", "given", "learned"),
    [
        ("qwen", "template", True, QWEN_ASKED.format(""), THOUGHT + "2<|im_end|>"),
        ("qwen", "template", False, QWEN_ASKED.format("") + EMPTY, "2<|im_end|>"),
        ("qwen", "tags", True, QWEN_ASKED.format(" /think"), THOUGHT + "2<|im_end|>"),
        ("qwen", "tags", False, QWEN_ASKED.format(" /no_think"), EMPTY + "2<|im_end|>"),
        ("r1", "template", True, R1_ASKED.format(""), THOUGHT[8:] + "2" + R1_END),
        ("r1", "tags", True, R1_ASKED.format(" /think"), THOUGHT[8:] + "2" + R1_END),
        ("r1", "tags", False, R1_ASKED.format(" /no_think"), EMPTY[8:] + "2" + R1_END),
        ("chatml", "tags", False, QWEN_ASKED.format(" /no_think"), EMPTY + "2<|im_end|>"),
        ("chatml", "template", True, QWEN_ASKED.format(""), THOUGHT + "2<|im_end|>"),
    ],
)  # fmt: skip
def test_a_row_that_says_whether_it_thinks(
    tmp_path: Path, model: str, switch: ThinkingSwitch, thinks: bool, given: str, learned: str
) -> None:
    row = {"messages": [ASK, SAID if thinks else PLAIN], "thinking": thinks}
    assert shown(row, opened(tmp_path, model), switch) == [(given, learned)]


@pytest.mark.parametrize("model", ["qwen", "r1", "chatml"])
def test_thoughts_in_the_content_and_apart_are_the_same(tmp_path: Path, model: str) -> None:
    tokenizer = opened(tmp_path, model)
    for content in ("<think>\none and one\n</think>\n\n2", "one and one</think>2"):
        inside = {"messages": [ASK, {"role": "assistant", "content": content}]}
        assert texts(inside, tokenizer) == texts({"messages": [ASK, SAID]}, tokenizer)


def test_it_is_what_transformers_renders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = opened(tmp_path, "qwen")
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path / "qwen")
    for thinks, turn in ((True, SAID), (False, PLAIN)):
        [row] = texts({"messages": [ASK, turn], "thinking": thinks}, tokenizer)
        kept = dict(return_dict=False, enable_thinking=thinks)
        whole = oracle.apply_chat_template([ASK, turn], tokenize=False, **kept)
        asked = oracle.apply_chat_template([ASK], add_generation_prompt=True, **kept)
        assert oracle.decode(row.tokens) + "\n" == whole
        assert row.tokens[: len(asked)] == asked, "as the model is asked, to the token"
        assert row.learned == [place >= len(asked) for place in range(len(row.tokens))]


def test_every_turn_is_learned_behind_what_the_model_will_see(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "qwen")
    talk = [ASK, SAID, {"role": "user", "content": "2+2?"}, {**SAID, "content": "4"}]
    first, second = shown({"messages": talk}, tokenizer)
    assert first == (QWEN_ASKED.format(""), THOUGHT + "2<|im_end|>")
    past = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert second[0] == past + QWEN_ASKED.format("").replace("1+1", "2+2")
    assert second[1] == "<think>\none and one\n</think>\n\n4<|im_end|>"
    only = {"prompt": talk[:3], "completion": talk[3:]}
    assert shown(only, tokenizer) == [second]


def test_of_a_prompt_nothing_is_learned(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "chatml")
    talk = [ASK, PLAIN, ASK, PLAIN]
    [row] = shown_loosely({"prompt": talk[:3], "completion": talk[3:]}, tokenizer)
    asked = QWEN_ASKED.format("")
    assert row[0] == asked + "2<|im_end|>\n" + asked
    assert row[1] == "2<|im_end|>"
    assert shown({"prompt": "1+1=", "completion": "2"}, tokenizer) == [("1+1=", "2<|im_end|>")]


def test_a_prompt_and_its_completion_are_masked_as_trl_does(tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    transformers = pytest.importorskip("transformers")
    tokenizer = opened(tmp_path, "chatml")
    oracle = transformers.AutoTokenizer.from_pretrained(tmp_path / "chatml")
    row = {"prompt": [ASK], "completion": [PLAIN]}
    parts = data_utils.apply_chat_template(row, oracle)
    [(given, learned)] = shown_loosely(row, tokenizer)
    assert (given, learned) == (parts["prompt"], parts["completion"].removesuffix("\n"))


def shown_loosely(row: dict[str, Any], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(given, learned), without what the template puts behind the end of the turn."""
    found = []
    for tokens, learned in texts(row, tokenizer):
        start, end = learned.index(True), len(learned) - learned[::-1].index(True)
        assert all(learned[start:end])
        found.append(
            (
                tokenizer.decode(tokens[:start], skip_special=False),
                tokenizer.decode(tokens[start:end], skip_special=False),
            )
        )
    return found


WORDS = st.text(st.sampled_from("ab \n42<>/"), max_size=12)


@given(WORDS, WORDS)
def test_any_thought_and_answer_are_learned_to_the_letter(
    tmp_path_factory: pytest.TempPathFactory, thought: str, answer: str
) -> None:
    global _QWEN
    _QWEN = _QWEN or opened(tmp_path_factory.mktemp("any"), "qwen")
    turn = {"role": "assistant", "content": answer, "reasoning_content": thought}
    [(given, learned)] = shown({"messages": [ASK, turn]}, _QWEN)
    body = f"<think>\n{thought.strip(chr(10))}\n</think>\n\n{answer.lstrip(chr(10))}<|im_end|>"
    assert given + learned == QWEN_ASKED.format("") + body


_QWEN: Tokenizer | None = None


@pytest.mark.parametrize(
    ("model", "row", "complaint"),
    [
        ("qwen", {"messages": [ASK, PLAIN], "thinking": True}, "turn 2 thinks nothing"),
        ("qwen", {"messages": [ASK, SAID], "thinking": False}, "turn 2 thinks; take its thinking"),
        ("r1", {"messages": [ASK, PLAIN], "thinking": False}, 'set thinking_switch = "tags"'),
        ("qwen", {"messages": [SAID]}, "the first turn is the assistant's"),
        ("qwen", {"messages": [ASK], "thinking": True}, "no assistant turn"),
        (
            "qwen",
            {"messages": [ASK, {**SAID, "content": "<think>a</think>2"}]},
            "reasoning_content and </think> in its content",
        ),
        (
            "qwen",
            {"messages": [ASK, {**PLAIN, "content": "<think>a"}]},
            "begins to think and never ends it",
        ),
        (
            "qwen",
            {"messages": [ASK, {**PLAIN, "content": "2 <think>a</think>"}]},
            "has it elsewhere",
        ),
        ("qwen", {"messages": [ASK, {**SAID, "reasoning_content": 3}]}, "reasoning_content is 3"),
        ("qwen", {"prompt": "a", "completion": ""}, "the completion is empty"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, model: str, row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError) as caught:
        texts(row, opened(tmp_path, model))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_tells_the_template_and_a_row_goes_before_it(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "qwen")
    data = tmp_path / "a.jsonl"
    rows = [
        {"question": "1+1?", "answer": "2"},
        {"question": "2?", "answer": "2", "thinking": True},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskSettings(
        "jsonl", {"path": str(data)}, held_out=1, template={"enable_thinking": False}
    )
    source = open_task(task, room(8, tokenizer, 256))
    reader = Reader(tokenizer, tokenizer.vocab_size)
    prompts = {
        problem.messages[-1]["content"]: tokenizer.decode(reader.prompt(problem), False)
        for problem in source.train(1, 1) + source.held_out(1)
    }
    assert prompts["1+1?"] == QWEN_ASKED.format("") + EMPTY
    assert prompts["2?"] == QWEN_ASKED.format("").replace("1+1", "2")


def test_a_variable_that_the_template_does_not_know_is_refused(tmp_path: Path) -> None:
    for name, model in (("enable_thinking", "r1"), ("messages", "qwen")):
        task = TaskSettings("arithmetic", template={name: False})
        with pytest.raises(UserError, match=f"the chat template knows no '{name}'"):
            open_task(task, room(8, opened(tmp_path, model), 256))


def test_a_fusion_takes_thoughts_out_of_the_rows_that_are_not_to_think(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, "chatml")

    def fused(turns: list[dict[str, Any]], thinks: bool, **more: Any) -> list[tuple[str, str]]:
        found = []
        for tokens, learned in texts({"messages": turns, **more}, tokenizer, "tags", thinks):
            start = learned.index(True)
            parts = tokens[:start], tokens[start:]
            found.append(tuple(tokenizer.decode(part, skip_special=False) for part in parts))
        return found  # type: ignore[return-value]

    thought = (QWEN_ASKED.format(" /think"), THOUGHT + "2<|im_end|>")
    empty = (QWEN_ASKED.format(" /no_think"), EMPTY + "2<|im_end|>")
    written = {"role": "assistant", "content": "<think>\none and one\n</think>\n\n2"}
    for said in (SAID, written):
        assert fused([ASK, said], True) == [thought]
        assert fused([ASK, said], False) == [empty]
    for thinks in (True, False):
        assert fused([ASK, PLAIN], thinks) == [empty]  # it has no thoughts to teach
        assert fused([ASK, SAID], thinks, thinking=True) == [thought]  # as it says itself
        half = fused([ASK, SAID, ASK, PLAIN], thinks)  # says nothing of both its turns
        assert [learned for _, learned in half] == [THOUGHT + "2<|im_end|>", "2<|im_end|>"]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_rows_with_thoughts_keeps_them(share: float, tmp_path: Path) -> None:
    tokenizer, data = opened(tmp_path, "qwen"), tmp_path / "data.jsonl"
    rows = [{"messages": [ASK, SAID]}] * 400 + [{"messages": [ASK, PLAIN]}] * 100
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = read(data, tokenizer, 1000, switch="tags", share=share)
    thinks = ["one and one" in tokenizer.decode(row.tokens) for row in found]
    assert len(found) == 500 and not any(thinks[400:])
    # Of 400 draws 120 think, give or take three deviations of 9.2.
    assert abs(sum(thinks) - 400 * share) <= (28 if share == 0.3 else 0)
    assert [row.tokens for row in read(data, tokenizer, 1000, switch="tags", share=share)[0]] == [
        row.tokens for row in found
    ]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [ASK, PLAIN | {"role": "asistant"}, ASK, PLAIN]}, "2 is of the role 'asist"),
        ({"messages": [ASK, PLAIN | {"role": "Assistant"}]}, "'Assistant'; did you mean 'assist"),
        ({"messages": [ASK | {"role": "usr"}, PLAIN]}, "turn 1 is of the role 'usr'; did you mean"),
        ({"prompt": [ASK], "completion": [PLAIN | {"role": "gpt"}]}, "did you mean 'assistant'?"),
        (
            {"conversations": [{"from": "humn", "value": "1"}]},
            "the role 'humn'; did you mean 'user'",
        ),
    ],
)
def test_a_misspelt_role_is_no_turn_of_somebody_else(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        texts(row, opened(tmp_path, "chatml"), "template")
    for role in ("tool", "developer", "ipython", "observation", "environment"):
        [(_, learned)] = texts(
            {"messages": [ASK | {"role": role}, PLAIN]}, opened(tmp_path, "chatml"), "template"
        )
        assert sum(learned) == 2  # "2" and the end
