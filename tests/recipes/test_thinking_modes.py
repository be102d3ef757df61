"""One stage asks its problems with thinking and without, and measures both apart."""

from pathlib import Path

from chat_templates import QWEN3

from interlock.config.reading import load_recipe
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.train import train
from interlock.rundir import RunDir

_MODES = {
    "think": ("thinking = true", "<|im_start|>assistant\n"),
    "plain": ("thinking = false", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "told": ('thinking = false\nthinking_switch = "tags"', " /no_think<|im_end|>\n"),
}


def test_modes_are_mixed_by_weight_and_measured_apart(
    tiny_recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "qwen3.jinja"
    template.write_text(QWEN3)
    head, _, rest = tiny_recipe.read_text().partition("[stage.task]")
    tables = [
        f'[[stage.task]]\nlabel = "{name}"\n{own}\nweight = {2 if name == "think" else 1}\n{rest}'
        for name, (own, _) in _MODES.items()
    ]
    recipe, run = tmp_path / "modes.toml", tmp_path / "run"
    own = f'model.chat_template = "{template}"\n'
    recipe.write_text(head.replace("learner.dtype", f"{own}learner.dtype") + "".join(tables))
    changes = ["steps=1", "problems_per_step=8", "completions=2", "optimizer.warmup_steps=0"]
    train(load_recipe(recipe, [f"stage.{change}" for change in changes]), run)
    tokenizer, kept = Tokenizer.load(tiny_model), RunDir.read(run)
    counts = dict.fromkeys(_MODES, 0)
    for scored in (*kept.ledger.read(0, 1), *kept.ledger.read_evaluation(0, 1)):
        task = scored.group.problem.task
        prompt = tokenizer.decode(scored.group.prompt_tokens, skip_special=False)
        assert _MODES[task][1] in prompt
        assert prompt.endswith(_MODES["plain" if task == "plain" else "think"][1])
        counts[task] += 1
    (step,) = kept.metrics()[1:]
    assert counts == {"think": 4 + 5, "plain": 2 + 5, "told": 2 + 5}
    assert {name: each.completions for name, each in step.rollout.tasks.items()} == {
        "think": 8,
        "plain": 4,
        "told": 4,
    }
    assert {name: each.completions for name, each in step.held_out.items()} == dict.fromkeys(
        _MODES, 5
    )
