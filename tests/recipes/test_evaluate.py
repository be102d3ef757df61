"""Evaluations: of a run as it measured itself, and by workers that fail."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from byte_model import make_model, write_tokenizer

from interlock.config.schema import GeneratorSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.evaluate import Asking, Exam, answer_held_out, measure, room
from interlock.recipes.sinks import Sink
from interlock.records.rl import Completion, FinishReason, Group, Problem, Sampling, Verdict
from interlock.workers.generators import Outcome, Work


def answered(problems: int, aside: set[int]) -> list[Any]:
    """What comes of so many problems, those of these numbers set aside; every answer is right."""
    ordered: list[Work] = []

    def collect(*_: Any) -> list[Outcome]:
        work = ordered.pop(0)
        answer = Completion.sampled([1], [-0.5], FinishReason.STOP, "x", 0)
        found = []
        for key, problem in zip(work.keys, work.problems, strict=True):
            group = None if key in aside else Group(problem, [1], [answer], "a")
            found.append(Outcome(key, group, "it kills"))
        return found

    def verify(pairs: Sequence[Any]) -> list[Verdict]:
        return [Verdict(1.0) for _ in pairs]

    generators: Any = SimpleNamespace(size=2, order=ordered.extend, collect=collect, facts=dict)
    verifier: Any = SimpleNamespace(verify=verify)
    asked = [Problem(f"p{number}", [], "") for number in range(problems)]
    return answer_held_out(asked, generators, verifier, Asking(Sampling()), Sink())


def test_a_run_is_measured_on_what_it_held_out_at_the_time_it_was_told(tmp_path: Path) -> None:
    make_model(tmp_path)
    write_tokenizer(tmp_path)
    template = "{{ strftime_now('%Y') }}: {{ messages[-1].content }}"
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "judge.py").write_text("def judge(problem, answer):\n    return 1.0")
    rows = ({"question": f"{n} {'.' * 12 * n}", "answer": f"{n}"} for n in range(24))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = {"path": f"{tmp_path}/rows.jsonl", "verifier": f"{tmp_path}/judge.py:judge"}
    task = TaskSettings("jsonl", options=options, held_out=6, overlong="leave_out", workers=1)
    own = Exam([task], 6, Sampling(max_tokens=100), 100, datetime(1999, 12, 31))

    def measured(exam: Exam) -> list[Group]:
        scored = measure(str(tmp_path), exam, GeneratorSettings(dtype="float32"), Sink())
        return [each.group for each in scored]

    asked = measured(own)
    shorter = measured(own._replace(sampling=Sampling(max_tokens=4)))
    assert [group.problem for group in shorter] == [group.problem for group in asked]
    other = measured(own._replace(sampling=Sampling(max_tokens=4), room=4))
    assert [group.problem for group in other] != [group.problem for group in asked]
    tokenizer = Tokenizer.load(tmp_path)
    assert {tokenizer.decode(group.prompt_tokens)[:5] for group in asked} == {"1999:"}


def test_a_problem_that_is_set_aside_is_left_out() -> None:
    scored = answered(5, {1, 4})
    assert [each.group.problem.id for each in scored] == ["p0", "p2", "p3"]


def test_an_evaluation_of_which_nothing_is_left_ends_the_run() -> None:
    with pytest.raises(TrainingError, match="all 3 held-out problems were set aside"):
        answered(3, {0, 1, 2})


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (0, "the chat template makes nothing of it"),
        (7, None),
        (8, "8 tokens and sampling.max_tokens = 3 are more than the model's context of 10; lower"),
        (10, "context of 10; shorten it"),
    ],
)
def test_what_has_no_room_names_the_remedy(tokens: int, words: str | None) -> None:
    tokenizer: Any = SimpleNamespace(chat=lambda messages: [1] * tokens)
    why = room(3, tokenizer, 10)(Problem("p", [], ""))
    assert why is None if words is None else words in (why or "")
