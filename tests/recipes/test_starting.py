"""First recipes: every combination of wishes is one that parses, and that `--check` has tried."""

import errno
import io
import itertools
import json
import re
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlock.cli.arguments import parse
from interlock.config.reading import load_recipe, to_tree
from interlock.errors import ConfigError, RunError, TaskError, UserError
from interlock.models.checkpoint import StoredWeights
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.check import check
from interlock.recipes.starting import Wishes, place, write
from interlock.rundir import RunDir

ASK = {"role": "user", "content": "Hi"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "chats": [{"messages": [ASK, {"role": "assistant", "content": "Hey"}]}],
    "texts": [{"text": "One two three"}],
    "pairs": [{"prompt": "The sky", "completion": " is blue"}],
    "problems": [{"prompt": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(40)],
}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "npu"])
def test_every_combination_parses(tmp_path: Path, device: str) -> None:
    data = [write_rows(tmp_path / f"{kind} ü.jsonl", rows) for kind, rows in ROWS.items()]
    whats: list[dict[str, Any]] = [{"data": each} for each in data]
    whats += [{"task": "arithmetic"}, {"task": "reasoning-gym/chain_sum"}]
    whats += [{"data": data[0], "stage": "sft"}, {"data": data[3], "stage": "grpo"}]
    for number, (what, length) in enumerate(itertools.product(whats, ("short", "long"))):
        path = place(tmp_path / f"d{number}")
        write(Wishes(model='a "model"', device=device, length=length, **what), path)
        recipe = load_recipe(path, [])
        [stage] = recipe.stage
        assert recipe.model.path == 'a "model"' and recipe.learner.device == device
        assert stage.kind == ("sft" if what.get("data") in data[:3] else "grpo")
        assert path.read_text().count("#") > 8
        assert "lr = " in path.read_text()


@pytest.mark.parametrize("kind", [*ROWS, "arithmetic"])
def test_what_is_written_passes_the_check(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    what: dict[str, Any] = {"task": kind}
    if kind in ROWS:
        what = {"data": write_rows(tmp_path / "data.jsonl", ROWS[kind])}
    path = place(tmp_path / "recipe.toml")
    write(Wishes(model=str(tiny_model), **what), path)
    plan, mistakes = check(load_recipe(path, []), tmp_path / "run")
    assert mistakes == [] and len(plan) == 2
    assert not (tmp_path / "run").exists()
    if kind == "problems":
        assert "20 steps of 12 problems × 8 answers: 1,920 answers" in plan[1]
        assert "8 of 8 held-out problems answered 5 times" in plan[1]
    if kind == "texts":
        assert "1 texts of 4 tokens, 4 of them learned; 160.0 times through them" in plan[1]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("mine")
    (tmp_path / "dangling.toml").symlink_to(tmp_path / "nowhere")
    for given in (tmp_path, tmp_path / "recipe.toml", tmp_path / "dangling.toml"):
        with pytest.raises(RunError, match="is there already"):
            place(given)
    with pytest.raises(RunError, match="is there already"):
        write(Wishes(task="arithmetic"), tmp_path / "recipe.toml")
    assert (tmp_path / "recipe.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        ({}, "give --task NAME or --data PATH"),
        ({"task": "arithmetic", "data": "x"}, "give --task NAME or --data PATH"),
        ({"task": "gsm8k"}, "give --data PATH alone"),
        ({"task": "arithmetik"}, "did you mean arithmetic"),
        ({"task": "arithmetic", "stage": "sft"}, "--stage sft learns from data"),
        ({"data": "none.jsonl"}, "there is no none.jsonl"),
    ],
)
def test_wishes_that_make_no_recipe_write_none(
    tmp_path: Path, wishes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        write(Wishes(**wishes), tmp_path / "recipe.toml")
    assert not (tmp_path / "recipe.toml").exists()


def test_a_place_that_cannot_be_is_named_and_half_a_recipe_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file is no directory; give another name"):
        write(Wishes(task="arithmetic"), tmp_path / "file" / "recipe.toml")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("interlock.recipes.starting.load_recipe", full)
    with pytest.raises(RunError, match=r"cannot write .* \(No space left on device\)"):
        write(Wishes(task="arithmetic"), tmp_path / "recipe.toml")
    assert not (tmp_path / "recipe.toml").exists()


def test_data_that_is_neither_is_told_as_both(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"q": "1+1?", "a": "2"}])
    with pytest.raises(ConfigError, match=r"no field 'question'.*text to learn from: a row is"):
        write(Wishes(data=data), tmp_path / "recipe.toml")
    problems = write_rows(tmp_path / "p.jsonl", ROWS["problems"])
    with pytest.raises(
        ConfigError, match=r"p\.jsonl: as text to learn from: the column 'prompt' needs a"
    ):
        write(Wishes(data=problems, stage="sft"), tmp_path / "recipe.toml")
    assert not (tmp_path / "recipe.toml").exists()
    with pytest.raises(TaskError, match="the file is empty"):
        write(Wishes(data=write_rows(tmp_path / "b.jsonl", [])), tmp_path / "recipe.toml")


def test_the_check_tells_all_that_is_wrong(tmp_path: Path, tiny_model: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [*ROWS["chats"], {"messages": "Hi"}])
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tiny_model), data=data), path)
    text = (
        path.read_text()
        + '[[stage]]\nkind = "grpo"\nsteps = 1\n[stage.task]\nname = "arithmetik"\n'
    )
    path.write_text(text + '[[generator]]\npython = "/no/such/python"\n[fleet]\nkind = "local"\n')
    plan, mistakes = check(load_recipe(path, ["learner.device=cuda:77"]), tmp_path / "run")
    assert len(mistakes) == 4 and not any("\n" in each for each in mistakes)
    told = "\n".join(mistakes)
    for part in (
        "cuda:77",
        "/no/such/python",
        "stage 0 (sft): ",
        "a.jsonl:2: the column 'messages'",
    ):
        assert part in told
    assert "stage 1 (grpo): unknown task: 'arithmetik'" in told
    assert len(plan) == 1 and plan[0].startswith("model ")


def test_the_check_tells_of_every_kind_and_of_what_a_stage_starts_from(
    tmp_path: Path, tiny_model: Path
) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "red " * n} for n in (4, 6, 9)])
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
model.path = "{tiny_model}"
[[stage]]
kind = "pretrain"
name = "read"
data = "{texts}"
steps = 10
batch_size = 2
row_tokens = 8
held_out = 1
[[stage]]
kind = "reject-sft"
from = "stage:read"
rounds = 5
steps = 7
problems_per_step = 3
completions = 2
sampling.max_tokens = 4
eval = {{ every = 4, problems = 2, samples = 3 }}
task.name = "arithmetic"
mix = [{{ data = "{texts}", share = 0.5 }}]
"""
    )
    plan, mistakes = check(load_recipe(path, []), tmp_path / "run")
    assert mistakes == []
    tokens = sum(len(Tokenizer.load(tiny_model).document("red " * count)) for count in (4, 6))
    assert plan[1:] == [
        f"stage 0: pretrain, 10 steps; 2 texts of {tokens} tokens in rows of 8, 1 held out; "
        f"{160 / tokens:.1f} times through them",
        # Before the first step, at 8 and at 12 of 12: a round, at 4, changes no weight.
        "stage 1: reject-sft, 7 steps, after 5 rounds of 3 problems × 2 answers: 30 answers of at "
        "most 4 tokens; at most 3 rows are mixed in; starts from stage:read; task arithmetic, 2 of "
        "128 held-out problems answered 3 times, 3 times each",
    ]
    _, mistakes = check(load_recipe(path, ["stage.1.from=/no/such/run"]), tmp_path / "run")
    assert len(mistakes) == 1 and "no model and no run at '/no/such/run'" in mistakes[0]


def test_a_missing_model_and_a_full_disk_are_told(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tmp_path / "none"), task="arithmetic"), path)
    assert "no model and no run at" in check(load_recipe(path, []), tmp_path / "run").mistakes[0]
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("interlock.recipes.check.shutil.disk_usage", lambda _: usage)
    recipe = load_recipe(path, [f'model.path="{tiny_model}"'])
    [mistake] = check(recipe, tmp_path / "run").mistakes
    assert "has 9e-07 GB, and the run takes 0.0" in mistake and "takes 0.0 " not in mistake
    assert "lower keep_checkpoints" in mistake
    # Room for all of it, but for the KL's reference, which is in every checkpoint.
    headers = StoredWeights(tiny_model).shapes.values()
    needed = sum(map(prod, headers)) * (12 * (1 + max(1, recipe.keep_checkpoints)) + 4)
    usage.free = needed
    assert check(recipe, tmp_path / "run").mistakes == []
    recipe = load_recipe(path, [f'model.path="{tiny_model}"', "stage.loss.kl_beta=0.1"])
    [mistake] = check(recipe, tmp_path / "run").mistakes
    assert "lower keep_checkpoints" in mistake
    # What a stage leaves that another comes after takes 4 bytes a weight at most, if it is kept.
    path.write_text(path.read_text() + "[[stage]]" + path.read_text().split("[[stage]]")[1])
    two = [f'model.path="{tiny_model}"']
    [mistake] = check(load_recipe(path, two), tmp_path / "run").mistakes
    assert "or set keep_stages = false" in mistake
    usage.free = needed + 4 * sum(map(prod, headers))
    assert check(load_recipe(path, two), tmp_path / "run").mistakes == []
    usage.free = needed
    asked = load_recipe(path, [*two, "keep_stages=false"])
    assert check(asked, tmp_path / "run").mistakes == []


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'interlock[ray]'")
def test_a_cluster_that_is_not_there_is_told(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "recipe.toml", "no Ray cluster at '127.0.0.1:{}' .* give host:port"
    write(Wishes(model=str(tiny_model), task="arithmetic"), path)
    recipe = load_recipe(path, ["fleet.kind=ray", "fleet.address=127.0.0.1:1"])
    [mistake] = check(recipe, tmp_path / "run").mistakes
    assert re.fullmatch(told.format(1), mistake)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    [mistake] = check(load_recipe(path, ["fleet.kind=ray"]), tmp_path / "run").mistakes
    assert re.fullmatch(told.format(2), mistake)


def test_a_place_where_no_run_can_begin_is_told(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tiny_model), task="arithmetic"), path)
    recipe, run = load_recipe(path, []), tmp_path / "run"
    RunDir.create(run, to_tree(recipe), {}).finish()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for where, resume, told in (
        (run, False, "holds a run already; add --resume, or give another directory"),
        (
            run / "sub",
            False,
            f"{run / 'sub'} is inside the run {run}, which it would become a part",
        ),
        (tmp_path / "full", False, "is not empty and holds no run; give another directory"),
        (tmp_path / "none", True, str(tmp_path / "none")),
        (path / "sub", False, f"{path} is no directory; give another --run"),
        (tmp_path / ("x" * 300), False, "too long"),
    ):
        [mistake] = check(recipe, where, resume).mistakes
        assert told in mistake
    assert check(recipe, run, resume=True).mistakes == []
    assert not (run / "sub").exists() and not (tmp_path / "none").exists()


def test_prices_and_a_plan_are_opened(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tiny_model), task="arithmetic"), path)
    recipe = load_recipe(path, ['prices="/no/prices"', f'plan="{path}"'])
    prices, plan = check(recipe, tmp_path / "run").mistakes
    assert prices.startswith("prices /no/prices: ") and "give [[price]] tables" in prices
    assert plan.startswith(f"plan {path}: ") and "give what `interlock plan" in plan


def test_limits_and_targets_that_a_run_would_refuse_are_told(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tiny_model), task="arithmetic"), path)
    settings = ["budget.money=3", 'learner.lora.targets=["q_prj"]']
    budget, targets = check(load_recipe(path, settings), tmp_path / "run").mistakes
    assert budget.startswith("budget.money = 3 USD cannot be kept: no price of ")
    assert targets.startswith("learner.lora.targets names 'q_prj', which is no linear layer")


def _as_answered(monkeypatch: pytest.MonkeyPatch, answers: str, *arguments: str) -> int:
    """The exit code of the command on a terminal where these lines are typed."""
    typed = io.StringIO(answers)
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    given = parse(arguments)
    try:
        given.verb(given)
    except UserError as error:
        assert "\n" not in str(error)
        return 2
    return 0


def test_three_questions_make_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _as_answered(monkeypatch, "\n\n\n", "init") == 0
    usual = load_recipe(Path("recipe.toml"), [])
    assert usual.stage[0].task[0].name == "arithmetic" and usual.learner.device == "cpu"
    data = write_rows(tmp_path / "a.jsonl", ROWS["chats"])
    assert _as_answered(monkeypatch, f"hf:a/b\n{data}\ncuda:1 long\n", "init", "b.toml") == 0
    other = load_recipe(Path("b.toml"), [])
    assert other.model.path == "hf:a/b" and other.stage[0].kind == "sft"
    assert other.learner.device == "cuda:1" and other.stage[0].steps == 500
    assert _as_answered(monkeypatch, "", "init", "c.toml", "--task", "arithmetic", "--yes") == 0
    assert _as_answered(monkeypatch, "\n", "init", "d.toml") == 2, "the input ends"
    assert _as_answered(monkeypatch, "\n\ncpu ages\n", "init", "e.toml") == 2
    assert sorted(each.name for each in tmp_path.glob("*.toml")) == [
        *("b.toml", "c.toml", "recipe.toml"),
    ]


def test_check_prints_the_plan_or_ends_with_2(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.toml"
    write(Wishes(model=str(tiny_model), task="arithmetic"), path)
    for settings, code in ([], 0), (["stage.task.options.digits=9"], 2):
        given = parse(["train", str(path), "--check", "--run", str(tmp_path / "run"), *settings])
        if code:
            with pytest.raises(UserError, match=r"stage 0 \(grpo\): "):
                given.verb(given)
        else:
            given.verb(given)
            assert capsys.readouterr().out.endswith("nothing is wrong; nothing was run\n")
    assert not (tmp_path / "run").exists()
