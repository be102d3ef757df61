"""Writes a first recipe, with a comment on every line that somebody will want to change.

    Wishes ──find out what the data is──> recipe_text ──> a file, which is never overwritten

Three things make one: the model, what it is to learn (a task, or data), and where and how long.
"""

import json
import os
import re
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, RunError
from interlock.models.fetch import SMOLLM2
from interlock.tasks import known
from interlock.tasks.columns import asked, example
from interlock.tasks.data import find, rows_of

StageKind = Literal["grpo", "sft"]
Length = Literal["short", "long"]

_LOOKED_AT = 5000  # rows of data, to see how many problems may be held out
_HELD_OUT = 128
_INSTRUCTION = r"Put the final answer into \boxed{}."
# What fits a processor and what fits an accelerator; a name is that of the setting.
_SIZES = {
    ("cpu", "short"): {"steps": 20, "problems": 12, "max_tokens": 64, "batch": 8},
    ("cpu", "long"): {"steps": 100, "problems": 12, "max_tokens": 128, "batch": 8},
    ("chip", "short"): {"steps": 50, "problems": 32, "max_tokens": 512, "batch": 32},
    ("chip", "long"): {"steps": 500, "problems": 64, "max_tokens": 1024, "batch": 32},
}


class Wishes(NamedTuple):
    """What whoever begins has said; `task` or `data`, not both."""

    model: str = SMOLLM2
    task: str | None = None
    data: str | None = None
    stage: StageKind | None = None  # None: as the data says, and grpo for a task
    device: str = "cpu"
    length: Length = "short"


class _Data(NamedTuple):
    kind: StageKind
    problems: int  # different questions among the first rows; 0 where none are asked
    tested: bool  # they are those of a test part, which nothing is trained on


def place(given: Path | None) -> Path:
    """The file to be written; in a directory, recipe.toml. Raises RunError where it is there."""
    path = given or Path("recipe.toml")
    if path.suffix != ".toml" or path.is_dir():
        path = path / "recipe.toml"
    if os.path.lexists(path):
        raise RunError(f"{path} is there already, and is not overwritten; give another name")
    return path


def write(wishes: Wishes, path: Path) -> None:
    """Write the recipe. Raises UserError for wishes that go together to none."""
    text = recipe_text(wishes, path)
    made = False
    try:
        if path.parent.exists() and not path.parent.is_dir():
            raise RunError(f"cannot write {path}: {path.parent} is no directory; give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            made = True
            file.write(text)
        load_recipe(path, [])
    except BaseException as error:
        if made:  # half of it, or one that cannot be read, would be in the way of the next
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise RunError(f"{path} is there already, and is not overwritten") from None
        if isinstance(error, OSError):
            raise RunError(f"cannot write {path} ({error.strerror}); give another name") from None
        raise


def recipe_text(wishes: Wishes, path: Path) -> str:
    """The recipe as TOML; `path` gives the run its name."""
    if (wishes.task is None) is (wishes.data is None):
        raise ConfigError("a recipe has a task or data: give --task NAME or --data PATH")
    if wishes.task in ("gsm8k", "jsonl"):
        raise ConfigError(f"--task {wishes.task} reads data; give --data PATH alone")
    if wishes.task is not None:
        known(wishes.task)
    data = None if wishes.data is None else _looked_at(wishes.data, wishes.stage)
    kind = wishes.stage or ("grpo" if data is None else data.kind)
    if kind == "sft" and data is None:
        raise ConfigError("--stage sft learns from data; give --data PATH in place of --task")
    chip = wishes.device.partition(":")[0] != "cpu"
    sizes = _SIZES["chip" if chip else "cpu", wishes.length]
    parts = [_head(wishes, path, chip)]
    if kind == "sft":
        parts.append(_sft(wishes, sizes))
    else:
        parts += [_grpo(sizes, _held_out(data), chip), _task(wishes, _held_out(data))]
    return "\n".join(parts)


def _looked_at(path: str, stage: StageKind | None) -> _Data:
    """What the first rows are for. Raises TaskError."""
    found = find(path)
    _, _, first = next(iter(rows_of(found.train)))
    either = ""
    if stage != "grpo":
        try:
            example(first)
            return _Data("sft", 0, False)
        except ValueError as error:
            learned = f"as text to learn from: {error}"
            if stage == "sft":
                raise ConfigError(f"{path}: {learned}") from None
            either = f"; and {learned}"
    try:
        asked(first)
    except ValueError as error:
        raise ConfigError(f"{path}: as a problem: {error}{either}") from None
    files = found.test or found.train
    rows = (row for _, _, row in islice(rows_of(files), _LOOKED_AT))
    questions = {json.dumps(_question(row)) for row in rows}
    return _Data("grpo", len(questions), bool(found.test))


def _question(row: dict[str, object]) -> object:
    try:
        question = asked(row).question
    except ValueError:  # told with its line by --check
        return None
    return " ".join(question.split()) if isinstance(question, str) else question


def _held_out(data: _Data | None) -> int:
    """Problems to hold out: at most a fifth, where training would lose them."""
    if data is None or not data.problems:
        return _HELD_OUT
    return max(1, min(_HELD_OUT, data.problems if data.tested else data.problems // 5))


def _head(wishes: Wishes, path: Path, chip: bool) -> str:
    name = path.stem if path.stem != "recipe" else path.absolute().parent.name
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "run"
    device = _quoted(wishes.device)
    lines = [
        "# A first recipe. Every setting, its unit and default: docs/recipes.md",
        "#   interlock train FILE --check    opens all that this needs, and runs nothing",
        "#   interlock train FILE            runs it; any setting can be changed: stage.steps=40",
        f"name = {_quoted(name)} # of the run directory: runs/{name}",
        "checkpoint_every = 20 # steps; what --resume can go on from",
        "",
        "[model]",
        "# A Hugging Face directory, hf:org/name, or smollm2-135m-instruct.",
        f"path = {_quoted(wishes.model)}",
    ]
    if chip:
        lines += [
            "",
            "[learner]",
            "# It needs a certificate: interlock qualify --device …",
            f"device = {device}",
            "activation_checkpointing = true # less memory, a forward pass more",
            "",
            "[[generator]]",
            f"device = {device}",
            "slots = 256 # completions decoded at the same time",
        ]
    return "\n".join([*lines, ""])


def _sft(wishes: Wishes, sizes: dict[str, int]) -> str:
    return f"""[[stage]]
kind = "sft"
# JSONL, Parquet or a saved data set; its columns are those of TRL (docs/recipes.md, Data).
data = {_quoted(wishes.data or "")}
steps = {sizes["steps"]} # optimizer steps
batch_size = {sizes["batch"]} # rows of a step
max_tokens = 1024 # of a row
overlong = "leave_out" # longer rows, which the run counts; "refuse": they end it before it begins
optimizer = {{ lr = 2e-5, warmup_steps = {max(1, sizes["steps"] // 20)}, schedule = "cosine" }}
"""


def _grpo(sizes: dict[str, int], held_out: int, chip: bool) -> str:
    every = max(5, sizes["steps"] // 4)
    problems = min(sizes["problems"], 4 * held_out)
    return f"""[[stage]]
kind = "grpo"
steps = {sizes["steps"]}
problems_per_step = {problems}
completions = 8 # answers to each problem, compared with one another
# max_tokens: where many answers are cut off ("truncated" in the figures), raise it.
sampling = {{ temperature = 1.0, max_tokens = {sizes["max_tokens"]} }}
# lr: 3e-5 suits 135 million weights, as in the demo; 1e-6 is usual from a billion weights on.
optimizer = {{ lr = {"1e-6" if chip else "3e-5"}, schedule = "linear" }}
# Greedy answers to held-out problems, before, after and every so many steps.
eval = {{ every = {every}, problems = {held_out} }}
"""


def _task(wishes: Wishes, held_out: int) -> str:
    if wishes.data is not None:
        task = f"""name = "jsonl"
# question_field, answer_field: the columns, where they have unusual names.
# verifier = "rewards.py:score": a function of yours in place of math-verify.
options = {{ path = {_quoted(wishes.data)}, instruction = {_quoted(_INSTRUCTION)} }}
overlong = "leave_out" # problems that leave no room for an answer, which the run counts
"""
    else:
        options = '{ operators = ["+"], digits = 2 }' if wishes.task == "arithmetic" else "{}"
        task = f"""name = {_quoted(wishes.task or "")} # interlock tasks lists what there is
options = {options} # the task's own
"""
    return f"[stage.task]\n{task}held_out = {held_out} # problems that training never sees\n"


def _quoted(text: str) -> str:
    """As a string of TOML: JSON's are, but for the half of a character and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
