"""Runs that learn an adapter: what they leave, what they go on from, and what they refuse."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from running import finish, kill_during, start, weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from interlock.config.reading import load_recipe
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import ModelError
from interlock.recipes import fleet
from interlock.recipes.train import train
from interlock.records.adapters import AdapterForm
from interlock.rundir import RunDir
from interlock.workers.protocol import Canary

LORA = ["learner.lora.rank=4", "learner.lora.alpha=8"]


def said(run: Path, *settings: str, recipe: Path, resume: bool = False) -> list[str]:
    """Run it here; what it told."""
    from interlock.recipes.sinks import Sink

    class Listening(Sink):
        def note(self, message: str) -> None:
            told.append(message)

    told: list[str] = []
    train(load_recipe(recipe, [*LORA, *settings]), run, resume=resume, sinks=[Listening()])
    return told


def test_a_run_leaves_merged_weights_and_the_adapter_that_peft_reads(
    tiny_recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    told = said(run, "stage.steps=3", "stage.eval.every=0", recipe=tiny_recipe)
    assert any(
        "LoRA of rank 4, alpha 8, on all linear layers: 4,096 weights learn" in each
        and each.endswith("lr = 0.001")
        for each in told
    )
    kept = {path.name for path in next((run / "checkpoints").iterdir()).iterdir()}
    size = (next((run / "checkpoints").iterdir()) / "masters.safetensors").stat().st_size
    assert kept == {f"{n}.safetensors" for n in ("masters", "exp_avg", "exp_avg_sq")} | {
        "state.json"
    }
    assert size < 4 * 4096 + 4096
    whole = AutoModelForCausalLM.from_pretrained(run / "weights")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, str(run / "weights" / "adapter"))
    merged = adapted.merge_and_unload().state_dict()
    start_weights = load_file(tiny_model / "model.safetensors")
    moved = 0
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-5)
        before = start_weights.get(name)
        moved += before is not None and not torch.equal(before, tensor)
    assert moved == 14  # two layers of seven


def test_a_target_that_the_model_lacks_is_told(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="names 'query', which is no linear layer of this model; ch"
    ):
        said(tmp_path / "run", 'learner.lora.targets=["q_proj", "query"]', recipe=tiny_recipe)
    assert not (tmp_path / "run").exists()


def test_three_kills_change_no_bit(tiny_recipe: Path, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(tiny_recipe, undisturbed, *LORA, "stage.loss.kl_beta=0.01"))
    process = start(tiny_recipe, killed, *LORA, "stage.loss.kl_beta=0.01")
    for step in (2, 5):
        kill_during(process, killed, step, 0.05)
        process = start(tiny_recipe, killed, *LORA, "stage.loss.kl_beta=0.01", "--resume")
    finish(process)
    assert weights(killed) == weights(undisturbed)
    assert len(RunDir.read(killed).metrics()) == len(RunDir.read(undisturbed).metrics())


STAGES = """
[[stage]]
kind = "grpo"
{more}
steps = 2
problems_per_step = 3
completions = 4
sampling.max_tokens = 12
optimizer.lr = 1e-3
eval = {{ every = 0, problems = 5 }}
[stage.task]
name = "jsonl"
held_out = 8
options = {{ path = "{folder}/problems.jsonl", verifier = "{folder}/reward.py:reward" }}
"""


def staged(recipe: Path, *stages: str) -> Path:
    """The recipe with these stages in place of its own."""
    head = recipe.read_text().partition("[[stage]]")[0]
    text = head + "".join(STAGES.format(more=more, folder=recipe.parent) for more in stages)
    path = recipe.with_name(f"stages-{len(list(recipe.parent.glob('stages-*')))}.toml")
    path.write_text(text)
    return path


def test_stages_hand_on_the_adapter_and_begin_again_from_the_model(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """What a stage left is, read back, what the next would have gone on with."""
    on = staged(tiny_recipe, 'name = "one"', 'name = "two"')
    back = staged(tiny_recipe, 'name = "one"', 'name = "two"\nfrom = "stage:one"')
    anew = staged(tiny_recipe, 'name = "two"', 'name = "one"', 'name = "x"\nfrom = "model"')
    alone = staged(tiny_recipe, 'name = "x"')
    for name, recipe in {"on": on, "back": back, "anew": anew, "alone": alone}.items():
        said(tmp_path / name, recipe=recipe)
    assert weights(tmp_path / "on") == weights(tmp_path / "back")
    assert weights(tmp_path / "anew") == weights(tmp_path / "alone")
    left = json.loads((tmp_path / "on/stages/00-one/adapter/adapter_config.json").read_text())
    assert (left["r"], left["lora_alpha"]) == (4, 8)


def test_workers_are_given_the_adapter_and_serve_what_the_learner_has(
    two_generators: Path, tmp_path: Path
) -> None:
    said(tmp_path / "run", "stage.steps=4", "stage.eval.every=0", recipe=two_generators)
    run = RunDir.read(tmp_path / "run")
    steps = run.metrics()[1:]
    published = [each.published.bytes for each in steps]
    whole = (tmp_path / "run" / "weights" / "model.safetensors").stat().st_size
    assert published[0] > 0.5 * whole and all(0 < each < 0.05 * whole for each in published[1:])
    (store,) = (tmp_path / "run" / "sync").iterdir()
    assert len(list((store / "base").glob("*.json"))) == 1
    kinds = {event.kind for event in run.events()}
    assert not kinds & {"mismatch", "quarantined", "worker_lost", "weights_whole"}
    gaps = [each.update.mismatch for each in steps if each.update.mismatch is not None]
    assert gaps and max(gap.k3 for gap in gaps) < 1e-6


def test_workers_are_opened_for_the_form_that_learns(two_generators: Path, tmp_path: Path) -> None:
    recipe = load_recipe(two_generators, LORA)
    canary, run = Canary([1, 2], [[3]], 1), SimpleNamespace(worker_log=tmp_path.joinpath)
    made = fleet._workers(recipe, tmp_path, "store", canary, run)  # type: ignore[arg-type]
    assert [opening.adapter for _, opening in made.values()] == 2 * [recipe.learner.lora]
    assert recipe.learner.lora == AdapterForm(rank=4, alpha=8.0)


def test_a_generator_that_takes_no_adapter_is_given_both_merged_and_it_is_told(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another dtype than the learner, so that it holds weights of its own."""
    monkeypatch.setattr(PortableEngine, "merges", lambda self, form: "there are no slots")
    monkeypatch.setattr(PortableEngine, "load_adapter", None)
    run = tmp_path / "run"
    more = ["stage.steps=2", "stage.eval.every=0", "generator.0.dtype=bfloat16"]
    said(run, *more, recipe=tiny_recipe)
    (event,) = [each for each in RunDir.read(run).events() if each.kind == "adapter_merged"]
    assert event.message == "the generator has adapters merged: there are no slots"
    steps = RunDir.read(run).metrics()[1:]
    gaps = [each.update.mismatch for each in steps if each.update.mismatch is not None]
    assert gaps and max(gap.k3 for gap in gaps) < 1e-3
