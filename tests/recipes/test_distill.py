"""Whole distill stages of tiny random models, and what a teacher may be."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distilling import SOON, a_model, a_recipe, distilled, logprobs
from running import finish, kill_during, start, weights
from safetensors.torch import load_file, save_file
from scoring_endpoint import scoring

from interlock.config.distilling import TeacherSettings, teacher_of
from interlock.config.reading import load_recipe
from interlock.config.stages import Distill
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError, ModelError, RunError, TrainingError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.distill import lesson_of
from interlock.recipes.teachers import compare
from interlock.recipes.train import check_processes, train
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Segment,
    Verdict,
)
from interlock.rundir import RunDir


def reverse_kl(model: Path, teacher: Path, groups: Sequence[ScoredGroup]) -> float:
    """Nats per token, over the whole vocabulary."""
    ours, theirs = (
        torch.cat([logprobs(each, scored.group) for scored in groups]) for each in (model, teacher)
    )
    return (ours.exp() * (ours - theirs)).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("more", "overrides", "left"),
    [
        ("", [], 0.8),
        ("beta = 0.0", [], 0.8),
        ("beta = 0.5\nsampling.temperature = 0.8", [], 0.85),
        ('loss = "topk"\nbeta = 0.0', [], 0.85),
        ('loss = "policy_gradient"', ["stage.steps=12", "stage.problems_per_step=32"], 0.9),
    ],
)
def test_a_stage_brings_the_student_towards_its_teacher(
    student: Path, teacher: Path, tmp_path: Path, more: str, overrides: list[str], left: float
) -> None:
    recipe = a_recipe(tmp_path, student, f'model = "{teacher}"', more)
    logged = distilled(recipe, tmp_path / "run", *overrides)
    first = RunDir.read(tmp_path / "run").ledger.read(0, 1)
    before = reverse_kl(student, teacher, first)
    after = reverse_kl(tmp_path / "run" / "weights", teacher, first)
    assert after < left * before
    told = logged[0].teachers["teacher-0"]
    tokens = sum(len(each.tokens) for scored in first for each in scored.group.completions)
    assert told.tokens == tokens
    assert told.reverse_kl is not None
    if "temperature" not in more and "topk" not in more and "policy" not in more:
        assert told.reverse_kl == pytest.approx(before, rel=0.4)  # of twice as many texts
        assert logged[0].scalars()["teachers/teacher-0/reverse_kl"] == told.reverse_kl
        assert told.overlap is not None and 0 < told.overlap < 1
    (held,) = [e for e in RunDir.read(tmp_path / "run").events() if e.kind == "teacher_held"]
    assert re.fullmatch(r"teachers held in float32: 1, of 0\.\d MB", held.message)


def test_a_served_teacher_teaches_what_the_same_one_in_the_process_does(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    loss = 'loss = "topk"'
    local = a_recipe(tmp_path, student, f'model = "{teacher}"', loss)
    ours = distilled(local, tmp_path / "local")
    with scoring(teacher) as endpoint:
        recipe = a_recipe(tmp_path, student, f'url = "{endpoint.url}/v1"', loss)
        served = distilled(recipe, tmp_path / "served")
        assert endpoint.asked == 1 + 4 * 8  # before the run, and in it
    for here, there in zip(ours, served, strict=True):
        one, other = here.teachers["teacher-0"], there.teachers["teacher-0"]
        assert one.divergence == pytest.approx(other.divergence, abs=1e-4)
        assert one.reverse_kl == pytest.approx(other.reverse_kl, abs=1e-4)
    first = RunDir.read(tmp_path / "served").ledger.read(0, 1)
    read = sum(
        len(scored.group.prompt_tokens) + len(each.tokens)
        for scored in first
        for each in scored.group.completions
    )
    assert served[0].teachers["teacher-0"].asked_tokens == read
    # A checkpoint is past all that was said.
    kept = sorted(path.name for path in (tmp_path / "served" / "teachers").iterdir())
    assert kept == ["stage00-step000003-0.msgpack", "stage00-step000004-0.msgpack"]


@pytest.mark.parametrize("loss", ["topk", "policy_gradient"])
def test_a_run_whose_teacher_went_down_goes_on_to_the_same_weights(
    student: Path, teacher: Path, tmp_path: Path, loss: str
) -> None:
    def down(path: str, number: int) -> tuple[int, bytes] | None:
        return (503, b'{"error": {"message": "no room"}}') if number > 20 else None

    with scoring(teacher) as endpoint:
        more = f'url = "{endpoint.url}"\n{SOON}'
        recipe = a_recipe(tmp_path, student, more, f'loss = "{loss}"')
        distilled(recipe, tmp_path / "undisturbed")
        endpoint.asked, endpoint.fault = 0, down
        with pytest.raises(TrainingError) as raised:
            distilled(recipe, tmp_path / "down")
        assert re.fullmatch(
            rf"teacher 'teacher-0' at {endpoint.url}: HTTP 503: no room; not answered within "
            r"3 s: see to it, and go on with --resume",
            str(raised.value),
        )
        run = RunDir.read(tmp_path / "down")
        newest = run.latest_checkpoint()
        assert newest is not None and newest.step == 2
        assert len(run.ledger.read(0, 3)) == 4  # what was sampled is kept
        late = [event.message for event in run.events() if event.kind == "teacher_late"]
        assert len(late) == 1 and late[0].startswith("step 3: teacher 'teacher-0' at http")
        endpoint.asked, endpoint.fault = 0, lambda path, number: None
        distilled(recipe, tmp_path / "down", resume=True)
        assert endpoint.asked == 1 + 2 * 8  # of steps 3 and 4
    assert weights(tmp_path / "down") == weights(tmp_path / "undisturbed")


def test_what_a_teacher_said_is_not_asked_again(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    with scoring(teacher) as endpoint:
        more = f'url = "{endpoint.url}"\n'
        recipe = a_recipe(tmp_path, student, more, 'loss = "topk"')
        distilled(recipe, tmp_path / "run", "checkpoint_every=0", "stage.steps=2")
        before = weights(tmp_path / "run")
        again = tmp_path / "again"
        distilled(recipe, again, "checkpoint_every=0", "stage.steps=2")
        for path in (again / "checkpoints").glob("*/*"):
            path.unlink()
        for path in (again / "checkpoints").iterdir():
            path.rmdir()
        asked = endpoint.asked
        distilled(recipe, again, "checkpoint_every=0", "stage.steps=2", resume=True)
        assert endpoint.asked == asked + 1 and weights(again) == before


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = a_recipe(tmp_path, student, f'model = "{teacher}"')
    finish(start(recipe, tmp_path / "undisturbed"))
    process = start(recipe, tmp_path / "killed")
    kill_during(process, tmp_path / "killed", 2, 0.0)
    finish(start(recipe, tmp_path / "killed", "--resume"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "undisturbed")


def another_tokenizer(teacher: Path, directory: Path) -> Path:
    directory.mkdir()
    for path in teacher.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    content = json.loads((directory / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    first, second = list(words)[:2]
    words[first], words[second] = words[second], words[first]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def test_a_teacher_with_another_tokenizer_is_refused(
    student: Path, teacher: Path, tmp_path: Path
) -> None:
    other = another_tokenizer(teacher, tmp_path / "other")
    recipe = a_recipe(tmp_path, student, f'model = "{other}"')
    with pytest.raises(ModelError, match=r"'teacher-0' has another tokenizer: its token 0 is '.*'"):
        train(load_recipe(recipe, []), tmp_path / "run")
    with scoring(other) as endpoint:
        recipe = a_recipe(tmp_path, student, f'url = "{endpoint.url}"', 'loss = "topk"')
        with pytest.raises(ModelError, match=r"'teacher-0' at http.* has another tokenizer than"):
            train(load_recipe(recipe, []), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    compare("same", Tokenizer.load(teacher), Tokenizer.load(student))


def conflicts(teachers: Sequence[dict[str, Any]], **more: Any) -> list[str]:
    stage = Distill(
        steps=1,
        task=[TaskSettings(name="arithmetic")],
        teacher=[TeacherSettings(**each) for each in teachers],
        **more,
    )
    return list(stage.conflicts())


@pytest.mark.parametrize(
    ("teachers", "more", "found"),
    [
        ([{}], {}, "teacher.0: give either model or url"),
        ([{"model": "a", "url": "http://b"}], {}, "teacher.0: give either model or url"),
        ([{"url": "http://b"}], {}, 'needs; take "topk"'),
        ([{"url": "ftp://b"}], {"loss": "topk"}, "is no address; give one such as"),
        ([{"url": "http://b", "dtype": "float32"}], {"loss": "topk"}, "dtype says nothing of a te"),
        (
            [{"model": "a", "patience_s": 3.0}],
            {},
            "patience_s says nothing of a teacher with model",
        ),
        ([{"model": "a"}, {"model": "b"}], {}, "several name no tasks"),
        ([{"model": "a", "tasks": ["gsm8k"]}], {}, "'gsm8k' is no task of the stage, which has ar"),
        ([{"model": "a", "tasks": ["arithmetic"]}] * 2, {}, "2 teach 'arithmetic'"),
        ([{"model": "a", "name": "x"}, {"model": "b", "name": "x"}], {}, "2 are named 'x'"),
        ([{"model": "a"}], {"loss": "policy_gradient", "beta": 0.5}, "beta is not for loss"),
        ([{"model": "a"}], {"correction": "off"}, "correction is not for loss = 'jsd'"),
    ],
)
def test_what_does_not_go_together_is_told(
    teachers: list[dict[str, Any]], more: dict[str, Any], found: str
) -> None:
    assert any(found in each for each in conflicts(teachers, **more))
    assert conflicts([{"model": "a"}]) == []


def test_several_processes_are_refused_before_any_stage_has_run(
    student: Path, tmp_path: Path
) -> None:
    path = a_recipe(tmp_path, student, 'model = "m"')
    grpo = '[[stage]]\nkind = "grpo"\nsteps = 1\ntask = { name = "gsm8k" }\n\n[[stage]]'
    path.write_text(path.read_text().replace("[[stage]]", grpo, 1))
    recipe = load_recipe(path, [])
    check_processes(recipe, 1)
    with pytest.raises(ConfigError, match=r"stage 1: a distill stage learns in one process, .* 2;"):
        check_processes(recipe, 2)


def test_a_served_teacher_scores_at_temperature_1_alone(tmp_path: Path, student: Path) -> None:
    more = 'loss = "topk"\nsampling.temperature = 0.7'
    recipe = a_recipe(tmp_path, student, 'url = "http://127.0.0.1:9"', more)
    with pytest.raises(ConfigError, match=r"scores at temperature 1, not at sampling\.temp"):
        load_recipe(recipe, [])


TWO_TASKS = """
[[stage.task]]
name = "arithmetic"
label = "sums"
held_out = 8
options = { operators = ["+"] }

[[stage.task]]
name = "arithmetic"
label = "products"
held_out = 8
options = { operators = ["*"] }

"""


def sure(model: Path) -> Path:
    """The same model, three times as sure of everything."""
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_two_specialists_are_merged_each_on_its_own_task(student: Path, tmp_path: Path) -> None:
    teacher = sure(a_model(tmp_path / "one", hidden_size=48))
    other = sure(a_model(tmp_path / "other", hidden_size=40))
    parts = f'model = "{teacher}"\ntasks = ["products"]\nname = "p"\n\n[[stage.teacher]]\n'
    parts += f'model = "{other}"\nname = "s"'
    text = a_recipe(tmp_path, student, parts).read_text()
    head, _, tail = text.partition("[stage.task]\n")
    recipe = tmp_path / "two.toml"
    recipe.write_text(head + TWO_TASKS + tail[tail.index("[[stage.teacher]]") :])
    logged = distilled(recipe, tmp_path / "run", "stage.steps=40", "stage.problems_per_step=8")
    run = RunDir.read(tmp_path / "run")
    after = tmp_path / "run" / "weights"
    for task, its, another, name in (
        ("products", teacher, other, "p"),
        ("sums", other, teacher, "s"),
    ):
        groups = [each for each in run.ledger.read(0, 1) if each.group.problem.task == task]
        before, now = (reverse_kl(each, its, groups) for each in (student, after))
        assert now < 0.85 * before
        old, new = (reverse_kl(each, another, groups) for each in (student, after))
        assert now / before < new / old - 0.1  # it is its own that it went to
        tokens = sum(len(each.tokens) for one in groups for each in one.group.completions)
        assert logged[0].teachers[name].tokens == tokens


def test_whose_task_it_is() -> None:
    tasks: list[list[str]] = [[], ["math"], ["code"]]
    teachers = [TeacherSettings(model="m", tasks=each) for each in tasks]
    assert [teacher_of(teachers, task) for task in ("math", "code", "prose")] == [1, 2, 0]
    assert teacher_of(teachers[1:], "prose") is None


def test_every_sampled_token_has_the_same_share_and_groups_go_by_teacher() -> None:
    def scored(name: str, *texts: Completion) -> ScoredGroup:
        problem = Problem(name, [{"role": "user", "content": name}], "", task=name)
        return ScoredGroup(Group(problem, [1], list(texts), "w"), [Verdict(0.0)] * len(texts))

    plain = Completion.sampled([5, 6], [-0.5, -0.25], FinishReason.STOP, "x", 0)
    tool = Completion(
        [Segment([7], [-1.0], 0), Segment([8, 9]), Segment([10], [-2.0], 0)], FinishReason.STOP, "y"
    )
    teachers: Any = SimpleNamespace(of=lambda task: {"b": 0, "a": 1}[task])
    lesson = lesson_of([scored("a", plain), scored("b", tool)], teachers, lambda _: 3)
    assert [group.weights for group in lesson.groups] == [[[0.25, 0, 0, 0.25]], [[0.25, 0.25]]]
    assert [group.sampled for group in lesson.groups] == [[[True, False, False, True]], None]
    assert lesson.owners.tolist() == [0] * 4 + [1] * 2
    assert [group.label for group in lesson.groups] == ["w/3", "w/3"]
    assert math.isclose(sum(w for g in lesson.groups for t in g.weights for w in t), 1)


def test_a_run_goes_on_with_its_own_teacher_alone(student: Path, tmp_path: Path) -> None:
    teacher = a_model(tmp_path / "other", hidden_size=48)
    recipe = a_recipe(tmp_path, student, f'model = "{teacher}"')
    distilled(recipe, tmp_path / "run", "stage.steps=2")
    before = (teacher / "model.safetensors").read_bytes()
    sure(teacher)
    with pytest.raises(RunError, match=r"began with another stage 0: model\.safetensors "):
        distilled(recipe, tmp_path / "run", "stage.steps=2", resume=True)
    (teacher / "model.safetensors").write_bytes(before)
    distilled(recipe, tmp_path / "run", "stage.steps=2", resume=True)
