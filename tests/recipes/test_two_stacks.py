"""A learner in torch and a generator in vLLM, each in its own environment, in one run."""

from pathlib import Path

import pytest
from running import finish, start

from interlock.rundir import RunDir

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-vllm: run `make vllm`")
def test_two_stacks_train_one_model(smollm2: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    fleet = "fleet = { kind = 'local' }\n\n[[generator]]\nengine = 'vllm'\n"
    worker = f'{fleet}python = "{PYTHON}"\nenv = {{ OMP_NUM_THREADS = "1" }}\n'
    recipe = tmp_path / "two-stacks.toml"
    text = tiny_recipe.read_text().replace("[[generator]]\n", worker)
    recipe.write_text(text.replace('kind = "grpo"\n', 'kind = "grpo"\nstaleness = 1\n'))
    run = tmp_path / "run"
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
    kinds = [event.kind for event in view.events()]
    assert kinds == ["worker_started", "weights_whole"], view.events()
