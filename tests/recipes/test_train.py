"""Whole runs on a tiny model: several stages, the variants of the loss, and runs that go wrong."""

import json
import math
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import assert_close
from safetensors.torch import load_file

from interlock.chips import threads
from interlock.cli import main
from interlock.config.reading import load_recipe, parse_recipe
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import RunError, SandboxError, TrainingError, VoidResult
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.recipes import fleet
from interlock.recipes.sinks import Sink
from interlock.recipes.train import Provided, _run_stages, train
from interlock.records.metrics import Event
from interlock.records.rl import VerdictStatus
from interlock.report import summary, write_report
from interlock.rundir import RunDir
from interlock.sandbox.canary import open_sandbox
from interlock.workers import generator as generators


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sft_recipe(tiny_model: Path, tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    words = ("red", "green", "blue", "black")
    rows.write_text("".join(json.dumps({"text": f"{word} " * 6}) + "\n" for word in words))
    recipe = tmp_path / "sft.toml"
    recipe.write_text(
        f"""
name = "sft"
model.path = "{tiny_model}"
learner.dtype = "float32"
[[stage]]
kind = "sft"
data = "{rows}"
steps = 12
batch_size = 4
optimizer.lr = 1e-2
"""
    )
    return recipe


def run(recipe: Path, directory: Path, *overrides: str) -> Any:
    train(load_recipe(recipe, overrides), directory)
    return RunDir.read(directory)


def test_sft_learns_what_it_is_shown(sft_recipe: Path, tmp_path: Path) -> None:
    losses = [line.update.loss for line in run(sft_recipe, tmp_path / "run").metrics()[1:]]
    assert losses[0] == pytest.approx(math.log(49152), rel=0.05)  # knows nothing
    assert losses[-1] < losses[0] / 2


def test_stages_go_on_with_the_same_weights(
    sft_recipe: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    joined = tmp_path / "joined.toml"
    grpo = tiny_recipe.read_text()
    joined.write_text(sft_recipe.read_text() + grpo[grpo.index("[[stage]]") :])
    view = run(joined, tmp_path / "run", "stage.0.steps=3", "stage.1.steps=2")
    lines = view.metrics()
    assert [(line.stage, line.step, line.kind) for line in lines] == [
        *((0, step, "sft") for step in range(4)),
        *((1, step, "grpo") for step in range(3)),
    ]
    assert [line.weight_version for line in lines] == [None, 1, 1, 1, None, 2, 3]
    # The first completions of the second stage come from the weights the first one ended with.
    versions = {c.weight_version for g in view.ledger.read(1, 1) for c in g.group.completions}
    assert versions == {1}
    assert [(c.stage, c.step) for c in view.checkpoints()] == [(1, 2)]


def test_the_result_is_a_model_that_transformers_reads(tiny_recipe: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(tiny_recipe, tmp_path / "run", "stage.steps=2", "stage.eval.every=0")
    weights = tmp_path / "run" / "weights"
    model = AutoModelForCausalLM.from_pretrained(weights)
    saved = load_file(weights / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
    assert AutoTokenizer.from_pretrained(weights)("Hi 12").input_ids == Tokenizer.load(
        weights
    ).encode("Hi 12")


@pytest.mark.parametrize(
    "overrides",
    [
        ["stage.loss.kl_beta=0.1", "stage.loss.normalize=sequence"],
        ["stage.loss.normalize=constant", "stage.loss.advantage=mean"],
        ["stage.loss.clip_high=0.28", "stage.updates_per_step=3"],
        ["learner.activation_checkpointing=true", "learner.micro_batch_tokens=64"],
        ["stage.sampling.top_p=0.9", "stage.sampling.top_k=50", "stage.sampling.temperature=0.8"],
    ],
)
def test_every_variant_trains(overrides: list[str], tiny_recipe: Path, tmp_path: Path) -> None:
    short = ["stage.steps=2", "stage.eval.every=0"]
    lines = run(tiny_recipe, tmp_path / "run", *short, *overrides).metrics()[1:]
    assert all(line.update.grad_norm > 0 and line.update.bad_steps == 0 for line in lines)
    if "stage.loss.kl_beta=0.1" in overrides:
        assert lines[0].update.kl == 0 and lines[1].update.kl > 1e-6


def test_checkpointing_and_micro_batches_change_nothing_but_rounding(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    short = ["stage.steps=1", "stage.eval.every=0", "stage.optimizer.warmup_steps=0"]

    def learned(number: int, *more: str) -> Any:
        return run(tiny_recipe, tmp_path / str(number), *short, *more).metrics()[1].update

    whole, *parts = (learned(n, f"learner.micro_batch_tokens={n}") for n in (1000, 48, 80, 128))
    other = learned(64, "learner.activation_checkpointing=true", "learner.micro_batch_tokens=64")
    for name in ("loss", "grad_norm", "entropy"):
        values = [getattr(each, name) for each in (whole, *parts)]
        assert_close(getattr(other, name), *values, where=name)


def test_a_generator_that_uses_the_masters_gives_the_run_of_one_with_a_copy(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[PortableEngine, Decoder]] = []

    def watched(settings: Any, masters: Decoder, *rest: Any) -> Any:
        generator = generators.sharing_generator(settings, masters, *rest)
        opened.append((generator.engine, masters))
        return generator

    def result(directory: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
        overrides = ["stage.steps=3", "stage.updates_per_step=2"]
        done = run(tiny_recipe, directory, *overrides)
        lines = [line.rollout.reward for line in done.metrics()[1:]]
        return lines, load_file(directory / "weights" / "model.safetensors")

    monkeypatch.setattr(fleet, "sharing_generator", watched)
    shared = result(tmp_path / "shared")
    ((engine, masters),) = opened
    assert engine.version > 0
    for ours, theirs in zip(engine.decoder.parameters(), masters.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
        assert theirs.requires_grad and not ours.requires_grad
    monkeypatch.setattr(fleet, "_would_copy", lambda *_: False)
    copied = result(tmp_path / "copied")
    assert len(opened) == 1 and shared[0] == copied[0]
    assert shared[1].keys() == copied[1].keys()
    assert all(torch.equal(shared[1][name], copied[1][name]) for name in shared[1])


def test_a_run_that_diverges_stops_and_says_so(sft_recipe: Path, tmp_path: Path) -> None:
    wild = ["stage.optimizer.lr=1e9", "learner.max_bad_steps=2", "stage.optimizer.clip_norm=1e9"]
    with pytest.raises(TrainingError, match="2 steps in a row were not finite"):
        run(sft_recipe, tmp_path / "run", *wild)
    view = RunDir.read(tmp_path / "run")
    assert view.status == "failed" and "not finite" in (view.manifest.reason or "")


def test_a_verifier_that_fails_is_counted_and_stops_nothing(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(problem, answer):\n"
        "    if sum(map(ord, answer)) % 2: raise ValueError('odd')\n"
        "    return sum(map(ord, answer)) % 17 / 16\n"
    )
    notes: list[str] = []

    class Notes(Sink):
        def event(self, event: Event) -> None:
            notes.append(event.message)

    recipe = load_recipe(tiny_recipe, ["stage.steps=2", "stage.eval.every=0"])
    train(recipe, tmp_path / "run", sinks=[Notes()])
    view = RunDir.read(tmp_path / "run")
    scored = [group for step in (1, 2) for group in view.ledger.read(0, step)]
    odd = [
        sum(map(ord, answer.text)) % 2 == 1
        for group in scored
        for answer in group.group.completions
    ]
    verdicts = [verdict for group in scored for verdict in group.verdicts]
    assert [verdict.status is VerdictStatus.ERROR for verdict in verdicts] == odd and any(odd)
    assert all(verdict.reward == 0 for verdict in verdicts if not verdict.status.judged)
    assert sum(line.rollout.verifier_errors or 0 for line in view.metrics()) == sum(odd)
    assert any("odd" in note for note in notes)


def test_reward_and_correctness_are_apart(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(problem, answer):\n"
        "    odd = sum(map(ord, answer)) % 2\n"
        "    parts = {'base': 5, 'odd': -odd}\n"
        "    return {'reward': 5.0 - odd, 'correct': bool(odd), 'parts': parts}\n"
    )
    view = run(tiny_recipe, tmp_path / "run", "stage.steps=2", "stage.eval.every=0")
    before, step, _ = view.metrics()
    right = [
        sum(map(ord, answer.text)) % 2
        for scored in view.ledger.read(0, 1)
        for answer in scored.group.completions
    ]
    share = sum(right) / 12
    assert step.rollout.correct == pytest.approx(share) and 0 < share < 1
    assert step.rollout.reward == pytest.approx(5 - share)
    assert step.rollout.parts == pytest.approx({"base": 5.0, "odd": -share})
    held_out = [each for scored in view.ledger.read_evaluation(0, 0) for each in scored.right]
    assert before.accuracy == sum(held_out) / 5 <= 1
    assert before.held_out_reward == pytest.approx(5 - sum(held_out) / 5)


@pytest.mark.parametrize("advantage", ["mean_std", "mean"])
def test_any_finite_reward_teaches_and_resumes(
    advantage: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Sums of these overflow; accuracies above 1 have no interval."""
    (tmp_path / "reward.py").write_text(
        "def reward(problem, answer):\n"
        "    return (2, -1, 1.1, 1e308, -1e308)[sum(map(ord, answer)) % 5]\n"
    )
    asked = ["stage.steps=2", "stage.eval.every=1", f"stage.loss.advantage={advantage}"]
    view = run(tiny_recipe, tmp_path / "run", *asked)
    train(load_recipe(tiny_recipe, asked), tmp_path / "run", resume=True)
    lines = view.metrics()
    assert [line.update.bad_steps for line in lines] == [None, 0, 0]
    assert all(0 <= (line.accuracy or 0) <= 1 for line in lines)
    rewards = [Fraction(r) for scored in view.ledger.read(0, 1) for r in scored.rewards]
    assert lines[1].rollout.reward == float(sum(rewards) / len(rewards))
    assert "mean reward" in write_report(tmp_path / "run").read_text()


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str]:
    """Exit code of a verb, and its last line on standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return ended.value.code, (capsys.readouterr().err.splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("verifier", "complaint"),
    [
        ("return 1 / 0", "stage 0: the verifier failed on every answer: ZeroDivisionError"),
        ("return 'well done'", "stage 0: the verifier failed on every answer: TypeError"),
        ("return 0.5", "stage 0 learned nothing: in each of its 6 groups all rewards are equal"),
    ],
)
def test_a_run_for_nothing_says_so_and_has_an_exit_code_of_its_own(
    verifier: str,
    complaint: str,
    tiny_recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "reward.py").write_text(f"def reward(problem, answer):\n    {verifier}\n")
    directory = tmp_path / "run"
    short = ("stage.steps=2", "stage.eval.every=0")
    code, last = told(capsys, "train", tiny_recipe, "--run", directory, *short)
    assert code == 3 and last.startswith(f"interlock: {complaint}")
    view = RunDir.read(directory)
    assert view.status == "finished" and complaint in (directory / "report.html").read_text()
    if "verifier failed" in complaint:
        assert [event.kind for event in view.events()] == ["verifier_error"] * 4
        code, last = told(capsys, "eval", directory, "--problems", 2)
        assert code == 3 and "the verifier failed on every answer" in last


def test_a_run_that_learns_exits_with_zero(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("stage.steps=2", "stage.eval.every=0")
    assert told(capsys, "train", tiny_recipe, "--run", tmp_path / "run", *short)[0] == 0
    assert summary.void(RunDir.read(tmp_path / "run")) == []


def test_a_run_keeps_what_it_left_to_a_measurement(tiny_recipe: Path, tmp_path: Path) -> None:
    """The suite's table has one way alone (conftest.py); dtypes are the recipe's."""
    few = ["stage.steps=2", "stage.problems_per_step=1", "stage.eval.every=0"]
    train(load_recipe(tiny_recipe, few), tmp_path / "run")
    run = RunDir.read(tmp_path / "run")
    learner, (generator,) = run.config["learner"], run.config["generator"]
    assert (learner["kernel"], generator["kernel"]) == ("torch", "torch")
    assert (learner["fused_attention_above"], learner["micro_batch_tokens"]) == (512, 512)
    told = run.manifest.versions["kernels"]
    assert told.startswith("generator: float32 by torch; learner: float32 by torch")


def test_a_run_keeps_how_its_answers_were_isolated(tiny_recipe: Path, tmp_path: Path) -> None:
    try:
        way = open_sandbox().name
    except SandboxError as error:
        pytest.skip(str(error))
    few = ["stage.steps=2", "stage.problems_per_step=1", "stage.eval.problems=1"]
    train(load_recipe(tiny_recipe, [*few, "stage.task.sandbox=always"]), tmp_path / "kept")
    executing = [
        *few,
        "stage.task.name=reasoning-gym/spiral_matrix",
        "stage.task.options={max_n = 3, form = 'none'}",
        "stage.task.sandbox=none",
    ]
    with suppress(VoidResult):  # every answer of these weights is wrong
        train(load_recipe(tiny_recipe, executing), tmp_path / "bare")
    found = {}
    for name in ("kept", "bare"):
        events = RunDir.read(tmp_path / name).events()
        found[name] = [
            (each.kind, each.facts.get("way")) for each in events if "sandbox" in each.kind
        ]
    assert found == {"kept": [("sandboxed", way)], "bare": [("unsandboxed", None)]}


def test_a_checkpoint_of_no_stage_is_named(tmp_path: Path) -> None:
    tree = {"model": {"path": "m"}, "stage": [{"kind": "sft", "data": "d", "steps": 1}]}
    nothing: Any = None
    with RunDir.create(tmp_path / "run", tree, {}) as run:
        (run.path / "checkpoints" / "stage01-step000001").mkdir(parents=True)
        with pytest.raises(RunError, match=r"stage01-step000001 is of no stage of this recipe"):
            provided = Provided(parse_recipe(tree), run, *[nothing] * 9)
            _run_stages(provided, nothing)


def test_a_generator_that_took_fewer_threads_says_so_once(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "WINDOW_S", 0.0)
    monkeypatch.setattr(threads, "processors", lambda: 2)
    torch.set_num_threads(2)
    monkeypatch.setattr(threads.Others, "held", lambda self: 1.0)
    view = run(tiny_recipe, tmp_path / "run", "stage.steps=2", "stage.eval.every=0")
    lines = [line.workers["generator-0"] for line in view.metrics()[1:]]
    assert [each.threads for each in lines] == [1, 1]
    events = [event for event in view.events() if event.kind == "threads_changed"]
    assert [event.message for event in events] == [
        "step 1: generator-0 drew on 1 of 2 threads as other processes hold processors",
        "step 2: the update takes 1 of 2 threads as other processes hold processors",
    ]
    assert torch.get_num_threads() == 2
