"""A learner in torch and a generator in vLLM, each in its own environment, in one run."""

from pathlib import Path

import pytest
from byte_model import make_model, write_tokenizer
from running import finish, start
from safetensors.torch import load_file

from interlock.rundir import RunDir

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: run `make vllm`"),
]


def with_vllm(tiny_recipe: Path, directory: Path) -> Path:
    """The recipe with a worker of vLLM's, which may be a version behind."""
    fleet = "fleet = { kind = 'local' }\n\n[[generator]]\nengine = 'vllm'\n"
    worker = f'{fleet}python = "{PYTHON}"\nenv = {{ OMP_NUM_THREADS = "1" }}\n'
    recipe = directory / "two-stacks.toml"
    text = tiny_recipe.read_text().replace("[[generator]]\n", worker)
    recipe.write_text(text.replace('kind = "grpo"\n', 'kind = "grpo"\nstaleness = 1\n'))
    return recipe


def test_two_stacks_train_one_model(smollm2: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe, run = with_vllm(tiny_recipe, tmp_path), tmp_path / "run"
    # vLLM has no kernels for heads as small as the tiny model's.
    more = ["stage.steps=4", "stage.eval.every=0", "stage.optimizer.lr=1e-5"]
    finish(start(recipe, run, f"model.path={smollm2}", *more))
    view = RunDir.read(run)
    lines = [line for line in view.metrics() if line.step]
    (worker_facts,) = lines[-1].workers.values()
    assert (worker_facts.engine or "").startswith("vllm ")
    # Two implementations of the same float32 arithmetic: they round differently, and no more.
    assert all((line.workers["generator-0"].canary_k3 or 0) < 1e-6 for line in lines)
    fresh = lines[0].workers["generator-0"].mismatch[0]
    assert fresh.tokens > 0 and fresh.k3 < 1e-6 and fresh.share_above_2 == 0
    assert sorted(view.ledger.used(0)) == list(range(4 * 3))
    # All of its float32 weights move, by few of their steps: deltas are worth it.
    assert sum(line.published.deltas for line in lines) >= 2
    assert [event.kind for event in view.events()] == ["worker_started"], view.events()


def test_an_adapter_learns_and_is_served_from_a_slot(tiny_recipe: Path, tmp_path: Path) -> None:
    """Heads as wide as vLLM has kernels for; base and adapter are proven with every version."""
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    write_tokenizer(model)
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    make_model(model, architectures=["LlamaForCausalLM"], **wide)
    lora = ["learner.lora.rank=4", "learner.lora.alpha=8", "stage.optimizer.lr=1e-2"]
    more = [f"model.path={model}", "stage.steps=4", "stage.eval.every=0", "stage.staleness=0"]
    finish(start(with_vllm(tiny_recipe, tmp_path), run, *lora, *more))
    view = RunDir.read(run)
    lines = [line for line in view.metrics() if line.step]
    facts = [line.workers["generator-0"] for line in lines]
    assert all(each.canary_k3 is not None and each.canary_k3 < 1e-6 for each in facts)
    gaps = [line.update.mismatch for line in lines if line.update.mismatch is not None]
    assert gaps and max(gap.k3 for gap in gaps) < 1e-6
    assert facts[-1].weight_version is not None and facts[-1].weight_version >= 3
    assert [event.kind for event in view.events()] == ["worker_started"], view.events()
    adapter = load_file(run / "weights" / "adapter" / "adapter_model.safetensors")
    assert any(bool(tensor.any()) for name, tensor in adapter.items() if ".lora_B." in name)
