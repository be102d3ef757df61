"""A run whose thinking has a budget: what is given, learned and counted, also when resumed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_templates import begun_thinking
from running import finish, kill_during, start, weights

from interlock.cli.exams import what_to_measure
from interlock.config.reading import load_recipe
from interlock.errors import ConfigError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.check import check as check_recipe
from interlock.recipes.train import train
from interlock.records.rl import Completion
from interlock.rundir import RunDir

# Begins every answer inside of thinking, which random weights do not end: all of them are cut.
TEMPLATE = begun_thinking("<|im_end|>")
BUDGET = 3
SETTINGS = [
    f"stage.sampling.thinking_budget={BUDGET}",
    "stage.sampling.thinking_words=Time is up.",
    "stage.sampling.max_tokens=20",
]


@pytest.fixture
def thinker(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe with that template."""
    template = tmp_path / "thinks.jinja"
    template.write_text(TEMPLATE)
    path = tiny_recipe.with_name("thinker.toml")
    text = tiny_recipe.read_text()
    path.write_text(
        text.replace("learner.dtype", f'model.chat_template = "{template}"\nlearner.dtype')
    )
    return path


def test_every_thinking_is_cut_and_only_what_was_sampled_is_learned(
    thinker: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(load_recipe(thinker, [*SETTINGS, "stage.steps=2"]), run)
    close = Tokenizer.load(tiny_model).encode("\n\nTime is up.\n</think>\n\n")
    ledger, steps = RunDir.read(run).ledger, RunDir.read(run).metrics()[1:]
    for number, step in enumerate(steps, 1):
        scored = ledger.read(0, number)
        answers = [answer for each in scored for answer in each.group.completions]
        for answer in answers:
            check(answer, close)
        assert step.rollout.thinking_cut == len(answers) == 12
        sampled = [sum(answer.mask) for answer in answers]
        assert step.rollout.length == pytest.approx(sum(sampled) / 12)
        taught = [each for each in scored if len(set(each.rewards)) > 1]
        learned = sum(sum(answer.mask) for each in taught for answer in each.group.completions)
        assert step.update.tokens == learned
        assert step.update.mismatch is not None
        # Random weights find the given words unlikely: as sampled with certainty, k3 is of nats.
        assert step.update.mismatch.tokens == learned
        assert step.update.mismatch.k3 < 1e-6
    greedy = ledger.read_evaluation(0, 2)
    assert len(greedy) == 5
    for each in greedy:
        check(each.group.completions[0], close)
    names = [
        "problems",
        "samples",
        "pass_at",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "task",
        "settings",
    ]
    asked = SimpleNamespace(**dict.fromkeys(names), thinking_budget=None, model=str(run))
    measured = what_to_measure(asked).sampling  # type: ignore[arg-type]
    assert (measured.thinking_budget, measured.thinking_words) == (BUDGET, "Time is up.")
    asked.thinking_budget = 0
    assert what_to_measure(asked).sampling.thinking_budget == 0  # type: ignore[arg-type]


def check(answer: Completion, close: list[int]) -> None:
    """Three tokens of thinking, the end of it, and an answer."""
    first, given, *rest = answer.segments
    assert (len(first.tokens), first.sampled) == (BUDGET, True)
    assert (given.tokens, given.logprobs, given.sampled) == (close, [], False)
    assert all(segment.sampled for segment in rest)


@pytest.mark.slow
def test_a_kill_changes_no_bit_and_workers_elsewhere_give_the_same(
    thinker: Path, tmp_path: Path
) -> None:
    undisturbed, killed, apart = (tmp_path / name for name in ("undisturbed", "killed", "apart"))
    unit = "fleet.unit=2"
    finish(start(thinker, undisturbed, unit, *SETTINGS))
    process = start(thinker, killed, unit, *SETTINGS)
    kill_during(process, killed, 4, 0.02)
    finish(start(thinker, killed, "--resume", unit, *SETTINGS))
    workers = ["fleet.kind=local", "stage.staleness=0"]
    finish(start(thinker, apart, unit, *workers, *SETTINGS))
    assert weights(killed) == weights(undisturbed) == weights(apart)
    cuts = [each.rollout.thinking_cut for each in RunDir.read(apart).metrics()[1:]]
    assert cuts == [12] * 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["thinking_words=Well."], "thinking_words are said where a budget ends the thinking"),
        (["thinking_budget=12"], "thinking_budget = 12 leaves nothing of max_tokens = 12"),
        (["thinking_budget=9"], "thinking_budget = 9 leaves 3 of max_tokens = 12 for the 5 tokens"),
        (["thinking_budget=-1"], "thinking_budget"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_written(
    settings: list[str], message: str, thinker: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(load_recipe(thinker, [f"stage.sampling.{s}" for s in settings]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_check_of_a_recipe_tells_of_such_a_budget(thinker: Path, tmp_path: Path) -> None:
    recipe = load_recipe(thinker, ["stage.sampling.thinking_budget=9"])
    mistakes = check_recipe(recipe, tmp_path / "run").mistakes
    assert ["leaves 3 of max_tokens = 12" in each for each in mistakes].count(True) == 1
