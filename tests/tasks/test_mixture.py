"""Several tasks in one stage: proportions, order, names, and who judges what."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.rewards import PythonReward
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.mixture import Mixture, Verifiers, open_tasks, shares
from interlock.tasks.sources import ListSource, TaskSource

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


def listed(name: str, size: int, seed: int = 0) -> ListSource:
    training = [Problem(f"{name}{number}", [], "") for number in range(size)]
    return ListSource(training, [Problem(f"{name}-out", [], "")], seed)


def mixed(sizes: list[int], weights: list[float], seed: int = 0) -> Mixture:
    names = "abcde"[: len(sizes)]
    tasks = [
        TaskSettings("jsonl", label=name, weight=weight, seed=seed)
        for name, weight in zip(names, weights, strict=True)
    ]
    return Mixture(tasks, [listed(n, size, seed) for n, size in zip(names, sizes, strict=True)])


@given(weights=WEIGHTS, seed=st.integers(0, 2**64 - 1), count=st.integers(1, 40))
def test_a_step_has_the_whole_number_below_or_above_what_is_due(
    weights: list[float], seed: int, count: int
) -> None:
    due = [count * weight / sum(weights) for weight in weights]
    for step in (1, 2, 3, 10**6):
        numbers = shares(weights, seed, step, count)
        assert sum(numbers) == count
        assert all(abs(n - each) < 1 + 1e-9 for n, each in zip(numbers, due, strict=True))


@given(weights=WEIGHTS, seed=st.integers(0, 2**64 - 1), count=st.integers(1, 7))
def test_over_many_steps_every_task_has_had_what_is_due(
    weights: list[float], seed: int, count: int
) -> None:
    steps, had = 300, [0] * len(weights)
    for step in range(1, steps + 1):
        had = [a + b for a, b in zip(had, shares(weights, seed, step, count), strict=True)]
    for number, weight in zip(had, weights, strict=True):
        # Of the golden ratio's multiples no stretch is further off than about its logarithm.
        assert abs(number - steps * count * weight / sum(weights)) < 5


def test_three_to_one_is_six_and_two_of_eight() -> None:
    source = mixed([50, 50], [3, 1])
    for step in range(1, 20):
        problems = source.train(step, 8)
        assert Counter(problem.task for problem in problems) == {"a": 6, "b": 2}
        assert all(problem.id.startswith(f"{problem.task}: ") for problem in problems)
    orders = {tuple(problem.task for problem in source.train(step, 8)) for step in range(1, 9)}
    assert len(orders) > 4  # not all of one task first


@given(
    sizes=st.lists(st.integers(7, 20), min_size=2, max_size=3),
    weights=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    count=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_no_step_has_a_problem_twice_and_every_epoch_of_each_task_shows_all(
    sizes: list[int], weights: list[float], count: int, seed: int
) -> None:
    source = mixed(sizes, weights[: len(sizes)], seed)
    shown: dict[str, list[str]] = {name: [] for name in source.names}
    steps = [source.train(step, count) for step in range(1, 80)]
    for problems in steps:
        assert len({problem.id for problem in problems}) == count
        for problem in problems:
            shown[problem.task].append(problem.id)
    for name, size in zip(source.names, sizes, strict=True):
        for epoch in range(len(shown[name]) // size):
            # Within a step the order is the mixture's, so an epoch may end in one with the next.
            seen = Counter(shown[name][: (epoch + 1) * size])
            assert max(seen.values()) <= epoch + 2
            assert sum(seen.values()) == (epoch + 1) * size
    again = mixed(sizes, weights[: len(sizes)], seed)  # begins in the middle, and knows nothing
    assert again.train(60, count) == steps[59]
    assert again.train(3, count) == steps[2]


def test_a_lone_task_is_as_it_is_without_a_mixture() -> None:
    source, plain = mixed([20], [1.0], seed=3), listed("a", 20, seed=3)
    assert [p.id for p in source.train(4, 6)] == [p.id for p in plain.train(4, 6)]
    assert {p.task for p in source.train(4, 6)} == {"a"}
    assert [p.id for p in source.held_out(1)] == ["a-out"]


def test_too_few_problems_name_the_task() -> None:
    with pytest.raises(TaskError, match="b: a step of 4 problems needs more than the 3 training"):
        mixed([20, 3], [1, 1]).check(1, 8)


def test_each_answer_is_judged_by_its_own_tasks_verifier(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def one(problem, answer):\n    return 1.0\n\ndef length(problem, answer):\n"
        "    return float(len(answer))\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{n}", "answer": "{n}"}}\n' for n in range(8)))
    tasks = [
        TaskSettings(
            "jsonl",
            {"path": str(rows), "verifier": f"{tmp_path}/judge.py:{name}"},
            label=name,
            held_out=2,
        )
        for name in ("one", "length")
    ]
    source = open_tasks(tasks)
    problems = source.held_out(2)
    assert [problem.task for problem in problems] == ["one", "one", "length", "length"]
    asked = [problems[place] for place in (2, 0, 3, 1)]
    with Verifiers(tasks) as verifiers:
        verdicts = verifiers.verify([(problem, "four") for problem in asked])
        assert [verdict.reward for verdict in verdicts] == [4.0, 1.0, 4.0, 1.0]
        assert (verifiers.errors, verifiers.retried) == (0, 0)


def test_no_task_trains_on_what_one_with_other_options_holds_out() -> None:
    tasks = [
        TaskSettings("arithmetic", {"digits": 1}, label="sums", held_out=8),
        TaskSettings(
            "arithmetic", {"digits": 1, "operators": ["+", "-"]}, label="both", held_out=8
        ),
    ]

    def operands(problem: Problem) -> str:
        a, b = sorted((problem.meta["a"], problem.meta["b"]))
        return f"{a}{problem.meta['op']}{b}"

    def leaked(source: TaskSource) -> set[str]:
        trained = {operands(each) for step in range(1, 80) for each in source.train(step, 8)}
        assert len(trained) > 80  # of 110 families, nearly all that may be
        return trained & {operands(each) for each in source.held_out(8)}

    apart = Mixture(tasks, [open_task(task) for task in tasks])
    assert leaked(apart)
    assert leaked(open_tasks(tasks)) == set()


def test_rows_of_a_copy_that_another_task_holds_out_are_dropped(tmp_path: Path) -> None:
    rows = [f'{{"question": "{n}", "answer": "{n}"}}\n' for n in range(30)]
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    paths[0].write_text("".join(rows))
    paths[1].write_text("".join(rows[:20]))
    tasks = [
        TaskSettings("jsonl", {"path": str(path)}, label=path.stem, seed=seed, held_out=6)
        for seed, path in enumerate(paths)
    ]
    source = open_tasks(tasks)
    held_out = {each.id.partition(": ")[2] for each in source.held_out(6)}
    apart = [open_task(task) for task in tasks]
    kept = [
        {each.id for each in one.train(1, 30 - 10 * place - 6)} for place, one in enumerate(apart)
    ]
    assert source.dropped == sum(len(each & held_out) for each in kept) > 0
    trained = {each.id.partition(": ")[2] for step in range(1, 9) for each in source.train(step, 6)}
    assert not trained & held_out


def test_a_reward_of_the_users_is_among_the_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import near\n")
    (tmp_path / "near.py").write_text("")
    task = TaskSettings("jsonl", reward=[PythonReward(function=f"{tmp_path / 'mine.py'}:f")])
    mixture = Mixture([task], [listed("a", 3)])
    assert mixture.files == [tmp_path / "mine.py", tmp_path / "near.py"]
    (tmp_path / "mine.py").unlink()
    with pytest.raises(TaskError, match=r"reward 'python': .* there is no file .*mine\.py"):
        Mixture([task], [listed("a", 3)])
