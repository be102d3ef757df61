"""Plain texts in rows of one length: what is in them, what is predicted, and how well."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, TaskError
from interlock.models.tokenizer import Tokenizer
from interlock.recipes.pretrain import Stream, learnable
from interlock.recipes.sft import training_groups
from interlock.recipes.train import train
from interlock.rundir import RunDir


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    texts = tmp_path / "texts.jsonl"
    words = ("red", "green", "blue", "black", "white")
    rows = [{"text": f"{word} and {word} again " * n} for n, word in enumerate(words, start=1)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "pretrain.toml"
    path.write_text(
        f"""
checkpoint_every = 2
model.path = "{tiny_model}"
learner.dtype = "float32"
[[stage]]
kind = "pretrain"
data = "{texts}"
steps = 6
batch_size = 3
row_tokens = 16
held_out = 1
optimizer.lr = 1e-2
eval.every = 3
"""
    )
    return path


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    length=st.integers(2, 12),
    seed=st.integers(0, 5),
)
def test_rows_are_the_stream_cut_and_every_epoch_has_every_token_once(
    lengths: list[int], length: int, seed: int
) -> None:
    texts = [[100 * place + at for at in range(size)] for place, size in enumerate(lengths)]
    total, whole = sum(lengths), Stream(texts, seed)
    rows = [whole.row(number, length) for number in range(2 * total)]
    assert all(sum(map(len, row)) == length for row in rows)
    stream = [token for row in rows for piece in row for token in piece]
    for epoch in range(2 * length):
        tokens = stream[epoch * total : (epoch + 1) * total]
        assert Counter(tokens) == Counter(token for text in texts for token in text)
    for row in rows:  # a piece is of one text, and in its order
        for piece in row:
            assert piece == list(range(piece[0], piece[0] + len(piece)))
    again = Stream(texts, seed)
    assert again.row(2 * total - 1, length) == rows[-1]  # from the middle, and back
    assert again.row(0, length) == rows[0]


def test_no_piece_sees_its_neighbour_and_its_first_token_is_not_predicted() -> None:
    groups = training_groups(learnable([[1, 2, 3], [4], [5, 6]]))
    assert [(group.prompt, group.completions) for group in groups] == [
        ([1], [[2, 3]]),
        ([5], [[6]]),
    ]
    assert [weight for group in groups for weight in group.weights[0]] == [1 / 3] * 3


def test_a_run_learns_and_its_held_out_loss_is_that_of_transformers(
    recipe: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    train(load_recipe(recipe), tmp_path / "run")
    lines = RunDir.read(tmp_path / "run").metrics()
    measured = [line.step for line in lines if line.held_out_loss is not None]
    assert measured == [0, 3, 6]
    losses = [line.update.loss or 0.0 for line in lines[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert all((line.update.tokens_per_s or 0) > 0 for line in lines[1:])
    row = json.loads((tmp_path / "texts.jsonl").read_text().splitlines()[-1])
    directory = tmp_path / "run" / "weights"
    tokens = Tokenizer.load(directory).document(row["text"])
    model, total, count = AutoModelForCausalLM.from_pretrained(directory), 0.0, 0
    for at in range(0, len(tokens), 16):
        piece = torch.tensor([tokens[at : at + 16]])
        if (predicted := piece.shape[1] - 1) > 0:
            total += model(piece, labels=piece).loss.item() * predicted
            count += predicted
    assert lines[-1].held_out_loss == pytest.approx(total / count, rel=1e-5)


def test_a_resumed_run_ends_in_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    train(load_recipe(recipe), tmp_path / "whole")
    train(load_recipe(recipe, ["stage.steps=3"]), tmp_path / "parts")
    train(load_recipe(recipe), tmp_path / "parts", resume=True)
    files = [tmp_path / name / "weights" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_mistakes(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="row_tokens = 300 is more than the model's context of 256"):
        train(load_recipe(recipe, ["stage.row_tokens=300"]), tmp_path / "run")
    with pytest.raises(TaskError, match="held_out = 5 leaves none of the 5 texts"):
        train(load_recipe(recipe, ["stage.held_out=5"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="eval says how to evaluate, but on what"):
        load_recipe(recipe, ["stage.held_out=0"])
    (tmp_path / "texts.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    with pytest.raises(TaskError, match="chats are for an sft stage"):
        train(load_recipe(recipe, ["stage.held_out=0", "stage.eval.every=0"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
