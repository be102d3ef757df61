"""Thinking-mode fusion on a model of 360,000 weights: does it think when told to, and only then?

    random weights ──sft on thoughts──> thinks always ──sft, half of them without──> fused
                                        (before)       thinking_switch = "tags"
                                                       and again with "template"
    fused by tags ──grpo, two tasks: /think within a budget, /no_think──> within
    all ──greedily, told this or that, with this budget or that──> modes, accuracy, lengths

The problems are sums of three to five digits, the thoughts their running sums; a token is a byte,
but for the marks. Everything is made here, and all stages are run by `interlock train`.

    python bench/fusion.py --runs runs/fusion --json fusion.json
    python bench/fusion.py --steps 220 120 0 --seeds 0 --problems 128    # a minute or two
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from environment import environment
from interlock import thinking
from interlock.config.schema import GeneratorSettings
from interlock.config.tasks import TaskSettings
from interlock.models.decoder import Decoder
from interlock.models.huggingface import read_architecture
from interlock.records.rl import Completion, Problem, Sampling
from interlock.rundir import RunDir
from interlock.tasks import modes
from interlock.workers.generator import Generator, open_generator

ROWS, HELD_OUT = 6000, 512
MOST_TOKENS = 80
BUDGETS = (None, 24, 18, 12, 6, 0)
TOLD: dict[str, dict[str, object]] = {
    "nothing": {},
    "/think": {"thinking": True, "thinking_switch": "tags"},
    "/no_think": {"thinking": False, "thinking_switch": "tags"},
    "enable_thinking = false": {"thinking": False},
}
# ChatML without the roles, which take turns, and with Qwen3's switch.
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
TAGS = ("", " /think", " /no_think")
HEAD = """
name = "{name}"
seed = {seed}
checkpoint_every = 0
keep_checkpoints = 0

[model]
path = "{model}"

[[generator]]
dtype = "float32"
slots = 128

[[stage]]

"""
SFT = """kind = "sft"
data = "{data}"
steps = {steps}
batch_size = 32
{fusion}
optimizer = {{ lr = {lr}, warmup_steps = 20, schedule = "cosine", betas = [0.9, 0.98] }}
"""
FUSION = 'thinking_switch = "{switch}"\nthinking_share = 0.5'
WITHIN = 18  # tokens of thinking
GRPO = """kind = "grpo"
steps = {steps}
problems_per_step = 16
completions = 8
sampling = {{ max_tokens = 80, thinking_budget = {budget} }}
optimizer = {{ lr = 5e-5, warmup_steps = 5 }}
loss = {{ normalize = "token" }}
eval.problems = 64
"""
TASK = """
[[stage.task]]
name = "jsonl"
label = "{label}"
weight = {weight}
held_out = 512
thinking = {thinking}
thinking_switch = "tags"
options = {{ path = "{problems}", verifier = "{verifier}:score" }}
"""
VERIFIER = """
def score(row, turn):
    return turn.rpartition("</think>")[2].strip() == row["answer"]
"""


@dataclass(frozen=True)
class Exam:
    """Greedy answers to the held-out problems, told one thing; shares of them, and mean tokens."""

    told: str
    budget: int | None
    accuracy: float
    thinks: float  # share whose turn has thoughts in it
    thought: float  # mean tokens drawn between the marks of these turns
    length: float  # mean tokens drawn
    cut: float  # share whose thinking the budget ended


@dataclass(frozen=True)
class Result:
    seed: int
    minutes: float  # in steps of training
    before: list[Exam]  # told each of TOLD
    tags: list[Exam]  # the same
    template: list[Exam]  # the same
    budgets: list[Exam]  # of the model fused by tags, told /think
    within: list[Exam]  # the same after GRPO, and told /no_think


def write_model(directory: Path, seed: int) -> Path:
    """A decoder with random weights, and a tokenizer of bytes and marks."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    decoder, noise = Decoder(read_architecture(directory)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise) * parameter.shape[-1] ** -0.5
            parameter.copy_(torch.ones(parameter.shape) if parameter.ndim == 1 else drawn)
    save_file(
        dict(decoder.published(torch.float32)),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    letters = {letter: n for n, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(letters, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in thinking.PAIRS[0]])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def sums(count: int) -> list[list[int]]:
    """Different lists of digits, the same every time."""
    rng, found = random.Random(0), dict[tuple[int, ...], None]()
    while len(found) < count:
        found[tuple(rng.randint(1, 9) for _ in range(rng.randint(3, 5)))] = None
    return [list(each) for each in found]


def question(digits: Sequence[int]) -> str:
    return "+".join(map(str, digits)) + "=?"


def running_sums(digits: Sequence[int]) -> str:
    total, said = digits[0], []
    for digit in digits[1:]:
        said.append(f"{total}+{digit}={total + digit}")
        total += digit
    return "\n".join(said)


def write_data(path: Path, rows: Sequence[Sequence[int]], fusion: bool) -> Path:
    """Every row has thoughts. Before the fusion users say what it will mean, and it means nothing:
    else a tag would be bytes that the model has never met.
    """
    said = random.Random(1)
    with path.open("w") as file:
        for digits in rows:
            answer = {"role": "assistant", "content": str(sum(digits))}
            tag = "" if fusion else said.choice(TAGS)
            turns = [
                {"role": "user", "content": question(digits) + tag},
                answer | {"reasoning_content": running_sums(digits)},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def train(directory: Path, model: Path, seed: int, stage: str) -> Path:
    """Run one stage by the command a user would type, unless it was; the directory of its weights.

    What was begun and not finished has to be removed.
    """
    if (directory / "weights").is_dir():
        return directory / "weights"
    recipe = directory.with_suffix(".toml")
    recipe.write_text(HEAD.format(name=directory.name, model=model, seed=seed) + stage)
    command = [sys.executable, "-m", "interlock.cli", "train", str(recipe), "--run", str(directory)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return directory / "weights"


def spent(weights: Path) -> float:
    """Seconds in the steps of a run."""
    return sum(line.seconds.step or 0.0 for line in RunDir.read(weights.parent).metrics())


def grpo(directory: Path, rows: Sequence[Sequence[int]], steps: int) -> str:
    """Its stage, with the files that it needs. The 512 rows that it holds out are of these."""
    problems, verifier = directory / "problems.jsonl", directory / "verifier.py"
    asked = ({"question": question(each), "answer": str(sum(each))} for each in rows)
    problems.write_text("".join(json.dumps(each) + "\n" for each in asked))
    verifier.write_text(VERIFIER)
    files = {"problems": problems, "verifier": verifier}
    tasks = [
        TASK.format(label="thinks", weight=2.0, thinking="true", **files),
        TASK.format(label="answers", weight=1.0, thinking="false", **files),
    ]
    return GRPO.format(steps=steps, budget=WITHIN) + "".join(tasks)


def examine(
    generator: Generator, problems: Sequence[Problem], told: str, budget: int | None = None
) -> Exam:
    task = TaskSettings("jsonl", **TOLD[told])  # type: ignore[arg-type]
    asked = [modes.asked(problem, task) for problem in problems]
    greedy = Sampling(temperature=0.0, max_tokens=MOST_TOKENS, thinking_budget=budget)
    groups = generator.generate(asked, 1, greedy, seed=0)
    answers = [group.completions[0] for group in groups]
    turns = [group.turns[0] for group in groups]
    right = [
        thinking.after(turn).strip() == problem.answer
        for turn, problem in zip(turns, problems, strict=True)
    ]
    thinks = [thought(turn) for turn in turns]
    begin, end = thinking.PAIRS[0]
    marks = generator.tokenizer.token_id(begin), generator.tokenizer.token_id(end)
    lengths = [
        drawn_between(*marks, each) for each, yes in zip(answers, thinks, strict=True) if yes
    ]
    return Exam(
        told,
        budget,
        mean(right),
        mean(thinks),
        mean(lengths),
        mean([sum(each.mask) for each in answers]),
        mean([not all(each.mask) for each in answers]),
    )


def thought(turn: str) -> bool:
    """Whether there is anything between the marks."""
    begin, end = thinking.PAIRS[0]
    return begin in turn and bool(turn.partition(begin)[2].partition(end)[0].strip())


def drawn_between(begin: int | None, end: int | None, answer: Completion) -> int:
    """Tokens drawn between the marks, or to the end where there is only one."""
    tokens = answer.tokens
    assert begin is not None and end is not None
    last = tokens.index(end) if end in tokens else len(tokens)
    return sum(answer.mask[tokens.index(begin) + 1 : last])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def opened(model: Path) -> Generator:
    return open_generator(GeneratorSettings(dtype="float32", slots=64), model, None, "bench")


def run(seed: int, directory: Path, steps: Sequence[int], count: int) -> Result:
    directory.mkdir(parents=True, exist_ok=True)
    digits = sums(ROWS + HELD_OUT)
    rows = digits[HELD_OUT:]
    thoughts = write_data(directory / "thoughts.jsonl", rows, fusion=False)
    both = write_data(directory / "fusion.jsonl", rows, fusion=True)
    problems = [
        Problem(question(each), [{"role": "user", "content": question(each)}], str(sum(each)))
        for each in digits[:count]
    ]
    model = write_model(directory / "random", seed)
    first = SFT.format(data=thoughts, steps=steps[0], lr=2e-3, fusion="")
    models = {"before": train(directory / "before", model, seed, first)}
    for switch in ("tags", "template"):
        fusion = FUSION.format(switch=switch)
        second = SFT.format(data=both, steps=steps[1], lr=1e-3, fusion=fusion)
        models[switch] = train(directory / switch, models["before"], seed, second)
    if steps[2]:
        third = grpo(directory, rows, steps[2])
        models["within"] = train(directory / "within", models["tags"], seed, third)
    minutes = sum(map(spent, models.values())) / 60
    generators = {name: opened(path) for name, path in models.items()}
    told = {
        name: [examine(generators[name], problems, each) for each in TOLD]
        for name in ("before", "tags", "template")
    }
    within = [
        examine(generators[name], problems, *each)
        for name in generators.keys() & {"within"}
        for each in [*(("/think", budget) for budget in BUDGETS), ("/no_think", None)]
    ]
    budgets = [examine(generators["tags"], problems, "/think", budget) for budget in BUDGETS]
    return Result(seed, minutes, **told, budgets=budgets, within=within)


def show(results: Sequence[Result]) -> None:
    """Markdown tables; a cell has a figure for every seed."""
    print("| model | told | thinks | accuracy | tokens |\n|---|---|---|---|---|")
    for name in ("before", "tags", "template"):
        for place, told in enumerate(TOLD):
            exams = [getattr(result, name)[place] for result in results]
            print(f"| {name} | {told} | {shares(exams, 'thinks')} | {figures(exams)} |")
    print("\n| model | told, budget | accuracy | tokens | of these thinking | cut |")
    print("|---|---|---|---|---|---|")
    for name in ("budgets", "within"):
        for place, one in enumerate(getattr(results[0], name)):
            exams = [getattr(result, name)[place] for result in results]
            thought = joined(f"{exam.thought:.1f}" for exam in exams)
            row = f"{figures(exams)} | {thought} | {shares(exams, 'cut')}"
            print(f"| {'tags' if name == 'budgets' else name} | {one.told}, {one.budget} | {row} |")
    print(f"\nminutes of training: {joined(f'{result.minutes:.1f}' for result in results)}")


def shares(exams: Sequence[Exam], field: str) -> str:
    return joined(f"{getattr(exam, field):.1%}" for exam in exams)


def figures(exams: Sequence[Exam]) -> str:
    return f"{shares(exams, 'accuracy')} | {joined(f'{exam.length:.1f}' for exam in exams)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        default=(400, 600, 60),
        help="of sft, fusion, grpo (may be 0)",
    )
    parser.add_argument("--problems", type=int, default=HELD_OUT)
    parser.add_argument("--runs", type=Path, default=Path("runs/fusion"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = [
        run(seed, given.runs / str(seed), given.steps, given.problems) for seed in given.seeds
    ]
    show(results)
    if given.json:
        tree = {"environment": environment(), "results": [asdict(each) for each in results]}
        given.json.write_text(json.dumps(tree, indent=1))


def joined(values: Iterable[str]) -> str:
    return " / ".join(values)


if __name__ == "__main__":
    main()
