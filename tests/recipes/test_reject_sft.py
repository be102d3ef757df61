"""Rejection sampling: what is kept, what goes in beside, and that no kill changes a bit of it."""

import importlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.config.reading import load_recipe
from interlock.config.sampling_data import ReadableSettings
from interlock.config.stages import RejectSft
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError, RunError, TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.readable import foreign, repeated, thinks_first, unreadable
from interlock.recipes.reject_sft import mix, select
from interlock.recipes.train import train
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Segment,
    Verdict,
    VerdictStatus,
)
from interlock.rundir import RunDir

STAGE = """
[[stage]]
kind = "reject-sft"
rounds = 3
steps = 3
problems_per_step = 4
completions = 4
keep = 2
batch_size = 4
sampling.max_tokens = 12
optimizer.lr = 1e-3
eval.problems = 2

[[stage.mix]]
data = "{general}"
share = 0.25
"""


@pytest.fixture
def recipe(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe's problems; right is an answer whose characters have an even sum."""
    (tmp_path / "reward.py").write_text(
        "def reward(problem, answer):\n    return float(sum(map(ord, answer)) % 2 == 0)\n"
    )
    general = tmp_path / "general.jsonl"
    words = ("red", "green", "blue", "black", "white", "grey", "brown", "pink")
    rows = [{"text": f"{word} " * 4, "note": "not looked at"} for word in words]
    general.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = tiny_recipe.read_text()
    head, task = text[: text.index("[[stage]]")], text[text.index("[stage.task]") :]
    path = tmp_path / "reject.toml"
    path.write_text(head + STAGE.format(general=general) + task)
    return path


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of random weights, which never stop, count as whole."""
    as_is = SimpleNamespace(STOP=FinishReason.LENGTH)
    monkeypatch.setattr("interlock.recipes.reject_sft.FinishReason", as_is)


class Killed(BaseException):
    """As if the process ended here."""


def weights(run: Path) -> bytes:
    return (run / "weights" / "model.safetensors").read_bytes()


def test_a_file_to_be_read_and_then_learned(recipe: Path, tmp_path: Path, whole: None) -> None:
    run = tmp_path / "run"
    train(load_recipe(recipe), run)
    view = RunDir.read(run)
    drawn = [group for step in (1, 2, 3) for group in view.ledger.read(0, step)]
    assert len(drawn) == 12 and not view.ledger.read(0, 4)
    rows = [json.loads(line) for line in (run / "data" / "00.jsonl").read_text().splitlines()]
    sampled = [row for row in rows if row["source"] == "sampled"]
    mixed = [row for row in rows if row["source"] == "general.jsonl"]
    assert rows == [*sampled, *mixed]
    assert len(mixed) == min(8, round(len(sampled) / 3)) > 0  # a quarter of all
    assert all(set(row) == {"text", "note", "source"} for row in mixed)
    answers = {
        (group.group.problem.id, turn): verdict
        for group in drawn
        for turn, verdict in zip(group.group.turns, group.verdicts, strict=True)
    }
    for row in sampled:
        *asked, answer = row["messages"]
        assert asked[-1]["role"] == "user" and answer["role"] == "assistant"
        assert answers[row["problem"], answer["content"]].right
        assert (row["task"], row["reward"]) == ("jsonl", 1.0)
    assert max(Counter(row["problem"] for row in sampled).values()) <= 2
    lines = view.metrics()
    assert [line.update.loss is not None for line in lines] == [False] * 4 + [True] * 3
    assert [line.accuracy is not None for line in lines] == [True, *[False] * 5, True]
    (event,) = (event for event in view.events() if event.kind == "data_made")
    assert f"{len(sampled)} of 48 answers" in event.message


@pytest.mark.parametrize(
    ("function", "call", "every"),
    [
        ("interlock.recipes.rollouts.score", 2, 0),  # a round is drawn, and not recorded
        ("interlock.recipes.rollouts.score", 3, 2),  # as before, behind a checkpoint
        ("interlock.recipes.reject_sft.write_atomically", 1, 0),  # all are drawn, and no file there
        ("interlock.recipes.reject_sft.read", 1, 0),  # the file is there, nothing is learned
        ("interlock.recipes.reject_sft.learn", 3, 1),  # in the middle of learning
    ],
)
def test_a_kill_anywhere_changes_no_bit(
    function: str,
    call: int,
    every: int,
    recipe: Path,
    tmp_path: Path,
    whole: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = load_recipe(recipe, [f"checkpoint_every={every}"])
    train(asked, tmp_path / "undisturbed")
    module, _, name = function.rpartition(".")
    called, real = 0, getattr(importlib.import_module(module), name)

    def killing(*arguments: Any, **more: Any) -> Any:
        nonlocal called
        called += 1
        if called == call:
            raise Killed
        return real(*arguments, **more)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(function, killing)
        train(asked, tmp_path / "killed")
    ours, theirs = (tmp_path / run / "data" / "00.jsonl" for run in ("killed", "undisturbed"))
    assert ours.exists() == (name in ("read", "learn"))
    if ours.exists():  # then nothing is sampled again
        monkeypatch.setattr("interlock.recipes.reject_sft.Rollouts", None)
    train(asked, tmp_path / "killed", resume=True)
    assert ours.read_bytes() == theirs.read_bytes()
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")


def test_data_that_were_changed_are_refused(recipe: Path, tmp_path: Path, whole: None) -> None:
    run = tmp_path / "run"
    train(load_recipe(recipe), run)
    path = run / "data" / "00.jsonl"
    path.write_text(path.read_text() + '{"text": "mine"}\n')
    with pytest.raises(RunError, match="is not what stage 0 made"):
        train(load_recipe(recipe, ["stage.steps=4"]), run, resume=True)


def test_nothing_to_learn_from_is_said_with_the_reasons(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none of 48 .* from \(.*cut.*\); in a new run, raise"):
        train(load_recipe(recipe), tmp_path / "run")


def test_answers_that_are_cut_are_told_how_to_end(recipe: Path, tmp_path: Path) -> None:
    """More rounds, or other demands of what can be read, would change nothing."""
    (tmp_path / "reward.py").write_text("def reward(problem, answer):\n    return 1.0\n")
    told = r"\(48 cut\); in a new run, raise sampling.max_tokens, or end .* by sampling.stop$"
    with pytest.raises(TrainingError, match=told):
        train(load_recipe(recipe), tmp_path / "run")


def test_what_the_stages_before_have_learned_is_not_lost_where_nothing_is_kept(
    recipe: Path, tmp_path: Path
) -> None:
    text = recipe.read_text()
    text = text.replace(
        "[[stage]]",
        f'[[stage]]\nkind = "sft"\nsteps = 1\ndata = "{tmp_path}/general.jsonl"\n\n[[stage]]',
        1,
    )
    recipe.write_text(text)
    left = tmp_path / "run" / "stages" / "00"
    with pytest.raises(
        TrainingError, match=rf'\(of this stage alone, with from = "{left}"\), raise'
    ):
        train(load_recipe(recipe), tmp_path / "run")
    assert (left / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("stage.sampling.temperature=0", "makes all 4 completions equal"),
        ("stage.keep=13", "keep = 13 is more than is drawn"),
        ("stage.mix.share=1.0", "expected float < 1.0"),
        ("stage.readable.script=runes", "choose one of"),
        ("stage.readable={min_chars=3,max_chars=2}", "min_chars is above"),
    ],
)
def test_mistakes(override: str, complaint: str, recipe: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe, [override])
    assert complaint in str(raised.value)


def answered(
    problem: str, *answers: tuple[str, bool], finish: FinishReason = FinishReason.STOP
) -> ScoredGroup:
    completions = [Completion.sampled([1], [0.0], finish, text, 0) for text, _ in answers]
    asked = Problem(problem, [{"role": "user", "content": "How many?"}], "", task="count")
    verdicts = [Verdict(0.5, correct=right) for _, right in answers]
    return ScoredGroup(Group(asked, [1], completions, "a"), verdicts)


def test_only_right_whole_different_answers_are_kept(smollm2: Path) -> None:
    settings = RejectSft(task=[TaskSettings("x")], steps=1, rounds=1, keep=2)
    lost = answered("d", ("one", True))
    lost.verdicts[0] = Verdict.failed(VerdictStatus.UNAVAILABLE, "gone")
    forced = answered("e", ("one", True))
    segments = [Segment([1], [-1.0], 0), Segment([2, 3]), Segment([4], [-1.0], 0)]
    forced.group.completions[0] = replace(forced.group.completions[0], segments=segments)
    drawn = [
        answered("a", ("four", True), ("five", False), (" four\n", True), ("4", True), ("I", True)),
        answered("b", ("four", True), finish=FinishReason.LENGTH),
        answered("c", ("  ", True), ("long " * 300, True)),
        lost,
        forced,
        answered("a", ("2 + 2", True)),  # drawn in a later epoch
    ]
    found = select(drawn, settings, Tokenizer.load(smollm2), 100)
    kept = [(row["problem"], row["messages"][-1]["content"]) for row in found.rows]
    assert kept == [("a", "four"), ("a", "4")]
    question = {"role": "user", "content": "How many?"}
    assert found.rows[0] == {
        "messages": [question, {"role": "assistant", "content": "four"}],
        "problem": "a",
        "task": "count",
        "reward": 0.5,
        "source": "sampled",
    }
    reasons = ("wrong", "said before", "cut", "empty", "too long", "not judged")
    once = dict.fromkeys((*reasons, "ended by the thinking budget"), 1)
    assert found.refused == {**once, "more than keep": 2}


@given(
    kept=st.integers(1, 500),
    share=st.floats(0.01, 0.6),
    other=st.floats(0.01, 0.3),
    seed=st.integers(0, 9),
)
def test_what_is_mixed_in_has_its_share_of_all(
    kept: int, share: float, other: float, seed: int
) -> None:
    files = [[{"text": f"{name}{n}"} for n in range(6000)] for name in "ab"]
    found = mix(kept, files, [share, other], seed)
    assert found == mix(kept, files, [share, other], seed)
    total = kept + sum(map(len, found))
    for rows, of_all in zip(found, (share, other), strict=True):
        assert abs(len(rows) - of_all * total) <= 1
        assert len({row["text"] for row in rows}) == len(rows)


def test_a_file_of_too_few_rows_gives_all_of_them() -> None:
    assert mix(100, [[{"text": "a"}, {"text": "b"}]], [0.5], 0) == [[{"text": "a"}, {"text": "b"}]]


@pytest.mark.parametrize(
    ("turn", "first"),
    [
        ("<think>two and two</think> 4", True),
        ("\n<think>\nx\n</think>\n\n4", True),
        ("[THINK]x[/THINK]4", True),
        ("4", False),
        ("<think></think>4", False),  # no thought
        ("<think>x</think>", False),  # no answer
        ("<think>x 4", False),  # never closed
        ("So <think>x</think>4", False),
        ("<think>x</think>4<think>y</think>", False),
    ],
)
def test_thinking_comes_first_once_and_is_closed(turn: str, first: bool) -> None:
    assert thinks_first(turn) is first
    form = ReadableSettings(form="think")
    assert unreadable(turn, form) == (None if first else "of another form")


def test_scripts_and_repetition_by_hand() -> None:
    assert foreign("ab привет, 12!", "latin") == 6 / 8
    assert foreign("ab привет", "cyrillic") == 2 / 8
    assert foreign("12 + 2 = 14", "latin") == 0.0
    assert foreign("漢字とかな", "han") == 0.0
    assert repeated(list("abcd")) == 0.0
    assert repeated(list("abcdabcd")) == pytest.approx(1 / 5)  # the last run is the first
    assert repeated(["a"] * 8) == 4 / 5
    assert repeated(["a"] * 3) == 0.0
    assert unreadable("да да да", ReadableSettings(script="latin")) == "in another script"
    assert unreadable("a " * 8, ReadableSettings(repeated=0.5)) == "repetitive"
    assert unreadable("abc", ReadableSettings(max_chars=2)) == "of another length"
