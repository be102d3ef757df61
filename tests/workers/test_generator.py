"""Problems to groups with the real SmolLM2; its greedy tokens against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import assert_close
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from interlock.config.schema import GeneratorSettings
from interlock.errors import ConfigError
from interlock.records.rl import FinishReason, Group, Problem, Sampling
from interlock.workers.generator import Generator, open_generator
from interlock.workers.inspection.operators import Doubled

QUESTIONS = [
    "What is the capital of France?",
    "What is 17 + 25?",
    "Write one sentence about the sea, and then say in which month winter begins in the south.",
]


def _problems() -> list[Problem]:
    return [
        Problem(f"q{i}", [{"role": "user", "content": text}], "")
        for i, text in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def generator(smollm2: Path) -> Generator:
    return open_generator(GeneratorSettings(dtype="float32", slots=4), smollm2, None, "worker-0")


def scored(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    logits = model(torch.tensor([prompt + answer])).logits[0]
    logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(generator: Generator, smollm2: Path) -> None:
    reference: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(smollm2)
    groups = generator.generate(_problems(), 1, Sampling(temperature=0, max_tokens=16), seed=0)
    found: list[float] = []
    plain: list[float] = []
    for group in groups:
        prompt = torch.tensor([group.prompt_tokens])
        expected = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=16
        )[0, prompt.shape[1] :].tolist()
        (answer,) = group.completions
        assert answer.tokens == expected
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
        found += answer.logprobs
        plain += scored(reference, group.prompt_tokens, expected)
    with Doubled():
        exact_model, exact = reference.double(), list[float]()
        for group in groups:
            exact += scored(exact_model, group.prompt_tokens, group.completions[0].tokens)
    assert_close(found, exact, plain)
    assert groups[0].completions[0].finish is FinishReason.STOP
    assert groups[0].completions[0].text == "The capital of France is Paris."


def test_groups_come_in_order_with_their_problem_worker_and_version(generator: Generator) -> None:
    problems, rule = _problems(), Sampling(max_tokens=5, stop=["qqq"])
    seen: list[Group] = []
    groups = generator.generate(problems, 2, rule, seed=3, on_group=seen.append)
    assert [group.problem for group in groups] == problems
    assert {group.worker for group in groups} == {"worker-0"}
    assert sorted(seen, key=lambda group: group.problem.id) == groups
    for group in groups:
        assert group.prompt_tokens == generator.tokenizer.chat(group.problem.messages)
        assert [answer.weight_version for answer in group.completions] == [0, 0]
        for answer in group.completions:
            assert answer.text == generator.tokenizer.decode(answer.tokens)
    assert generator.generate(problems, 2, rule, seed=3) == groups
    assert generator.generate(problems, 2, rule, seed=4) != groups


def test_a_real_stop_string_is_cut_off(generator: Generator) -> None:
    rule = Sampling(temperature=0, max_tokens=16, stop=["of Fra"])
    (group,) = generator.generate(_problems()[:1], 1, rule, seed=0)
    (answer,) = group.completions
    assert answer.text == "The capital "
    assert generator.tokenizer.decode(answer.tokens) == "The capital of France"
    assert answer.finish is FinishReason.STOP


def test_weights_come_from_outside_under_a_version(smollm2: Path) -> None:
    generator = open_generator(GeneratorSettings(slots=2, dtype="float32"), smollm2, None, "w")
    weights = {name: view.clone() for name, view in generator.engine.decoder.tensors().items()}
    generator.load(3, {name: weight * 0.5 for name, weight in weights.items()})
    (group,) = generator.generate(_problems()[:1], 1, Sampling(temperature=0), seed=0)
    assert group.completions[0].text != "The capital of France is Paris."
    generator.load(4, weights)
    (group,) = generator.generate(_problems()[:1], 1, Sampling(temperature=0), seed=0)
    assert group.completions[0].weight_version == 4
    assert group.completions[0].text == "The capital of France is Paris."


def test_a_device_that_is_not_there_is_refused(smollm2: Path) -> None:
    with pytest.raises(ConfigError, match="'tpu9'"):
        open_generator(GeneratorSettings(device="tpu9"), smollm2, None, "w")
