"""Problems asked with thinking and without: what the template is told, what the user says."""

import pytest
from msgspec.structs import replace

from interlock.config.tasks import TaskSettings, task_conflicts
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks.mixture import open_tasks
from interlock.tasks.modes import asked, tagged

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]
PROBLEM = Problem("p", TURNS, "4", template={"lang": "en"})


@pytest.mark.parametrize(
    ("thinking", "switch", "row", "template", "last"),
    [
        (None, "template", None, {"lang": "en"}, "2+2?"),
        (None, "tags", None, {"lang": "en"}, "2+2?"),
        (True, "template", None, {"lang": "en", "enable_thinking": True}, "2+2?"),
        (False, "template", None, {"lang": "en", "enable_thinking": False}, "2+2?"),
        (True, "tags", None, {"lang": "en"}, "2+2? /think"),
        (False, "tags", None, {"lang": "en"}, "2+2? /no_think"),
        # What a row says goes before what its task says.
        (True, "template", False, {"lang": "en", "enable_thinking": False}, "2+2?"),
        (True, "tags", False, {"lang": "en"}, "2+2? /no_think"),
        (None, "tags", True, {"lang": "en"}, "2+2? /think"),
    ],
)
def test_a_problem_is_asked_as_its_row_or_its_task_says(
    thinking: bool | None, switch: str, row: bool | None, template: dict[str, object], last: str
) -> None:
    own = {} if row is None else {"enable_thinking": row}
    problem = replace(PROBLEM, template=PROBLEM.template | own)
    task = TaskSettings("jsonl", thinking=thinking, thinking_switch=switch)  # type: ignore[arg-type]
    found = asked(problem, task)
    assert found.template == template
    assert found.messages == [*TURNS[:3], {"role": "user", "content": last}]
    assert (found.id, found.answer) == ("p", "4")
    assert TURNS[3]["content"] == "2+2?"


def test_a_tag_needs_a_turn_of_the_user() -> None:
    with pytest.raises(TaskError, match="no user turn that could end with /no_think"):
        tagged(TURNS[:1], thinks=False)


def arithmetic(label: str, **given: object) -> TaskSettings:
    return TaskSettings("arithmetic", label=label, **given)  # type: ignore[arg-type]


def test_both_modes_are_mixed_by_weight_and_hold_out_the_same_problems() -> None:
    tasks = [
        arithmetic("think", thinking=True, thinking_switch="tags", weight=3.0),
        arithmetic("plain", thinking=False, thinking_switch="tags"),
    ]
    seen: list[Problem] = []
    source = open_tasks(tasks, lambda problem: seen.append(problem))  # type: ignore[func-returns-value]
    assert seen and all("think" in each.messages[-1]["content"] for each in seen)
    asked_by = {"think": " /think", "plain": " /no_think"}
    counts = {"think": 0, "plain": 0}
    for step in range(1, 5):
        for problem in source.train(step, 8):
            counts[problem.task] += 1
            assert problem.messages[-1]["content"].endswith(asked_by[problem.task])
    assert counts == {"think": 24, "plain": 8}
    held = source.held_out(20)
    ids = {t: [p.id.partition(": ")[2] for p in held if p.task == t] for t in counts}
    assert ids["think"] == ids["plain"] and len(ids["think"]) == 20
    trained = {p.id.partition(": ")[2] for n in range(1, 5) for p in source.train(n, 8)}
    assert not trained & set(ids["plain"])


def test_what_contradicts_itself_or_would_train_on_what_is_held_out_is_refused() -> None:
    odd = arithmetic("a", thinking=True, template={"enable_thinking": False})
    assert "contradict each other" in next(task_conflicts([odd]))
    other = [arithmetic("a", thinking=True), arithmetic("b", thinking=False, seed=1)]
    assert "give both one seed and one held_out" in next(task_conflicts(other))
    fine = [arithmetic("a", thinking=True), arithmetic("b", thinking=False)]
    assert list(task_conflicts(fine)) == []
    others = [arithmetic("a"), arithmetic("b", options={"digits": 1}, seed=1)]
    assert list(task_conflicts(others)) == []
