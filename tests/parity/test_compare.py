"""Whole comparisons: what two sides say of each other, held against what is known of them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from real_workers import RealWorker
from rounding import allowed, assert_close, in_both, in_float64
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.cli import arguments, devices
from interlock.config.schema import GuardSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError, VoidResult
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.parity import page
from interlock.parity.compare import Question, compare
from interlock.parity.outcome import Agreement, Answer, How, Report, judged
from interlock.parity.sides import parse
from interlock.records.rl import Sampling

EPS = torch.finfo(torch.float32).eps
DOWN = "model.layers.1.mlp.down_proj.weight"


def ask(model: Path, tmp_path: Path, a: str = "float32", b: str = "float32", **more: Any) -> Report:
    sides = parse("a", "torch:cpu", dtype=a), parse("b", "torch:cpu", dtype=b)
    limits = Sampling(max_tokens=more.pop("tokens", 4))
    question = Question(model, *sides, sampling=limits, samples=1, **more)
    return compare(question, tmp_path, lambda note: None)


def test_a_side_against_itself_is_exactly_the_same(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    found = ask(small, tmp_path)
    assert found.verdict is Agreement.SAME and found.failures == [] and found.left_out == 1
    across = [each for each in found.differences if each.sides == "ab" and "drew" not in each.name]
    assert len(across) == 3 and all(each.mismatch.tokens > 0 for each in across)
    assert all(each.k3 == each.mismatch.max == each.share_apart == 0 for each in across)
    assert found.greedy is not None and found.greedy.identical == found.greedy.answers == 2
    assert found.weights.tensors == 20 and not found.weights.wrong_b
    assert found.weights.different == found.weights.hidden == []


def test_the_k3_of_two_dtypes_is_that_of_their_logits(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    found = ask(small, tmp_path, b="bfloat16")
    drawn = [each for each in found.answers if each.side == "a" and each.how is How.DRAWN]
    apart = []
    for answer in drawn:
        with in_float64(decoder_of(small, torch.float32)) as decoder:
            exact = logprobs(decoder, answer)
        a, b = (
            logprobs(decoder_of(small, dtype), answer) for dtype in (torch.float32, torch.bfloat16)
        )
        assert_close(answer.a, exact, a)
        apart += [y - x for x, y in zip(a, b, strict=True)]
    # Their logits are these, bit for bit; the engine's softmax is in float32, and this in float64.
    slack = 4 * EPS * max(abs(x) for each in drawn for x in (*each.a, *each.b))
    k3 = math.fsum(math.exp(d) - 1 - d for d in apart) / len(apart)
    k3_slack = math.fsum(abs(math.expm1(d)) * slack + slack**2 for d in apart) / len(apart)
    row = next(each for each in found.differences if each.name.endswith("answers drawn by A"))
    assert k3 > 100 * k3_slack and row.k3 == pytest.approx(k3, abs=k3_slack)
    assert row.mismatch.max == pytest.approx(max(map(abs, apart)), abs=slack)
    assert row.mean == pytest.approx(math.fsum(apart) / len(apart), abs=slack)
    assert any("float32, b in bfloat16" in reason for reason in found.reasons)
    assert not found.weights.wrong_b  # rounding to bfloat16 is no conversion error


def test_k3_is_taken_under_the_side_that_drew(inline: Any, small: Path, tmp_path: Path) -> None:
    """x = p of the other over p of the sampler, as mismatch.py has it."""
    found = ask(small, tmp_path, b="bfloat16", tokens=16)
    rows = {each.name: each for each in found.differences}
    for name, side, theirs, ours in (
        ("B against A, answers drawn by A", "a", "b", "a"),
        ("A against B, answers drawn by B", "b", "a", "b"),
        ("A's prefill against B as it drew", "b", "a", "decode"),
        ("B's prefill against B as it drew", "b", "b", "decode"),
    ):
        drawn = [each for each in found.answers if each.side == side and each.how is How.DRAWN]
        apart = [
            y - x
            for each in drawn
            for x, y in zip(getattr(each, ours), getattr(each, theirs), strict=True)
        ]
        k3 = math.fsum(math.expm1(d) - d for d in apart) / len(apart)
        assert rows[name].k3 == pytest.approx(k3, rel=1e-9), name
        assert rows[name].mean == pytest.approx(math.fsum(apart) / len(apart), rel=1e-9)


def test_equal_sides_draw_other_answers(inline: Any, small: Path, tmp_path: Path) -> None:
    found = ask(small, tmp_path, tokens=16)
    for how in (How.DRAWN, How.ALONE):
        texts = [each.tokens for each in found.answers if each.how is how]
        assert len(texts) >= 2 and len({tuple(text) for text in texts}) == len(texts)


def decoder_of(model: Path, dtype: torch.dtype) -> Decoder:
    return load_decoder(model, dtype, torch.device("cpu"))


def logprobs(decoder: Decoder, answer: Answer) -> list[float]:
    """Of the answer's tokens, by the training forward pass and a softmax in float64."""
    tokens = torch.tensor(answer.prompt + answer.tokens)
    attend = causal(len(tokens), tokens.device)
    with torch.no_grad():
        logits = decoder.logits(decoder(tokens, attend.positions, attend)).double()
    every = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0].tolist()
    return every[len(answer.prompt) - 1 :]


def test_a_tensor_that_was_converted_wrongly_is_named_first(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    def spoil(side: RealWorker) -> None:
        with torch.no_grad():
            held = dict(side.engine.held())
            held[DOWN][0, 0] += held[DOWN].abs().max()

    inline.spoil = staticmethod(spoil)
    found = ask(small, tmp_path, band=GuardSettings(warn=100.0, quarantine=100.0))
    assert found.verdict is Agreement.DIFFERENT  # whatever the band
    assert [each.tensor for each in found.weights.wrong_b] == [DOWN]
    assert found.weights.wrong_b[0].error == pytest.approx(1.0) and not found.weights.wrong_a
    assert DOWN in found.reasons[0] and "side b" in found.reasons[0]


def test_other_files_on_the_other_side_are_named(inline: Any, small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small, other)
    tensors = load_file(other / "model.safetensors")
    tensors[DOWN] = tensors[DOWN].flip(0)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = ask(small, tmp_path, b_model=other)
    assert found.weights.different == [DOWN] and not found.weights.wrong_b
    assert found.verdict is Agreement.DIFFERENT
    assert "different weights" in found.reasons[0] and DOWN in found.reasons[0]


def test_the_band_decides(inline: Any, small: Path, tmp_path: Path) -> None:
    found = ask(small, tmp_path, b="bfloat16")
    assert found.worst is not None
    k3 = found.worst.k3
    assert 0 < k3 == max(each.k3 for each in found.differences)
    for warn, quarantine, expected in (
        (k3, 2 * k3, Agreement.SAME),
        (k3 / 2, k3, Agreement.CLOSE),
        (k3 / 4, k3 / 2, Agreement.DIFFERENT),
    ):
        band = GuardSettings(warn=warn, quarantine=quarantine)
        assert judged(msgspec.structs.replace(found, band=band)).verdict is expected


def test_logits_that_are_not_finite_are_a_result(inline: Any, small: Path, tmp_path: Path) -> None:
    def spoil(side: RealWorker) -> None:
        with torch.no_grad():
            side.engine.decoder.layers[0].mlp.down.weight[0] = math.nan  # type: ignore[index, union-attr]

    inline.spoil = staticmethod(spoil)
    found = ask(small, tmp_path, bisect=True)
    assert found.verdict is Agreement.DIFFERENT and found.differences == []
    assert any("side b" in failure and "not finite" in failure for failure in found.failures)
    assert found.weights.wrong_b[0].error == math.inf
    assert found.bisection is not None and found.bisection.point == "layers.0.mlp.down"
    page.write(found, tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "different"


def test_a_verifier_that_always_fails_says_nothing_of_either_side(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("def judge(problem, answer):\n    raise OSError('no disk')")
    rows = ({"question": f"{n}?", "answer": f"{n}"} for n in range(9))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = ["parity", str(small), "--b", "torch:cpu", "--out", str(tmp_path / "out")]
    given += ["--max-tokens", "8", "--task", "jsonl", "--problems", "3"]
    given += [f"options.path={tmp_path}/rows.jsonl"]
    given += [f"options.verifier={tmp_path}/broken.py:judge"]
    with pytest.raises(VoidResult, match="failed on every answer: OSError: no disk"):
        devices.parity(arguments.parse(given))
    page = (tmp_path / "out" / "parity.html").read_text()
    assert "jsonl tells nothing, its verifier failed on every answer" in page
    assert "McNemar" not in page and "Accuracy on" not in page


def test_a_task_gives_both_accuracies(inline: Any, small: Path, tmp_path: Path) -> None:
    """Rewards are made up from the question, so that both sides earn a known share."""
    verifier, problems = tmp_path / "reward.py", tmp_path / "problems.jsonl"
    verifier.write_text("def reward(problem, answer):\n    return float(problem['answer'])\n")
    rows = ({"question": f"Say {n}.", "answer": str(n % 2)} for n in range(12))
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(problems), "verifier": f"{verifier}:reward"}
    task = TaskSettings("jsonl", options=options, held_out=8)
    found = ask(small, tmp_path, task=task, problems=8)
    assert found.task is not None and found.task.problems == 8
    assert found.task.a == found.task.b and found.task.p == 1.0
    assert 0 < found.task.a.share < 1
    assert found.greedy is not None and found.greedy.answers == 10
    assert "no difference that 8 problems can show" in " ".join(found.reasons)
    page.write(found, tmp_path)
    text = (tmp_path / "parity.html").read_text()
    assert "jsonl, problems" in text and text.count('class="figure"') >= 4


def test_the_page_carries_no_foreign_text_as_markup(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    found = ask(small, tmp_path, b="bfloat16", bisect=True)
    bad = "<img src=x onerror=alert(1)>"
    found = msgspec.structs.replace(found, failures=[bad], reasons=[bad], model=bad)
    text = page.render(found)
    assert bad not in text and "&lt;img" in text and "Error over depth" in text


@pytest.mark.parametrize(
    ("a", "kwargs", "said"),
    [
        ("tensorflow:cpu", {}, "--a 'tensorflow:cpu'"),
        ("torch", {}, "--a 'torch'"),
        ("torch:", {}, "--a 'torch:'"),
        ("torch:cpu", {"dtype": "int4"}, "--a-dtype 'int4'"),
    ],
)
def test_a_side_that_is_none_is_refused(a: str, kwargs: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse("a", a, **kwargs)


def test_what_a_side_may_be() -> None:
    side = parse("b", "torch:sim:mask-512,crash")
    assert (side.engine, side.device, side.label) == (
        "torch",
        "sim:mask-512,crash",
        "torch:sim:mask-512,crash",
    )
    assert parse("b", "vllm:cuda", python="python3").settings.engine == "vllm"


def test_mistakes_before_anything_runs(small: Path, tmp_path: Path) -> None:
    vllm = Question(
        small, parse("a", "torch:cpu"), parse("b", "vllm:cpu", python="python3"), bisect=True
    )
    with pytest.raises(ConfigError, match="side b is vllm:cpu"):
        compare(vllm, tmp_path, print)
    with pytest.raises(ConfigError, match="--max-tokens 96 leaves no room"):
        ask(small, tmp_path, tokens=96)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_for_single_rows_that_is_off_is_seen(
    inline: Any, small: Path, tmp_path: Path
) -> None:
    """Batches never meet it: only an answer that is drawn alone does."""

    class Drifting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.linear.default and len(args[0]) == 1:
                out += 0.3 * out.roll(1, -1)
            return out

    inline.defect = staticmethod(Drifting)
    found = ask(small, tmp_path, tokens=16)
    k3 = {each.name: each.k3 for each in found.differences}
    assert found.worst is not None and found.worst.name.endswith("B drawing one answer alone")
    assert found.verdict is Agreement.DIFFERENT
    assert found.headline.startswith("side b (torch:cpu), drawing token by token, does not")
    slack = 0.0
    for answer in (each for each in found.answers if each.side == "a" and each.how is How.ALONE):
        exact, plain = in_both(
            decoder_of(small, torch.float32), lambda made, answer=answer: logprobs(made, answer)
        )
        slack = max(slack, allowed(exact, plain).max().item())
    # Both may be off by that: k3 is half the square of what they are apart.
    assert k3["A's prefill against A drawing one answer alone"] <= (2 * slack) ** 2
    assert k3["B against A, answers drawn by A"] == 0
