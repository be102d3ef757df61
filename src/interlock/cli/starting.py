"""`interlock init` and `interlock tasks`, and what `train --check` prints."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.config.schema import Recipe
from interlock.errors import ConfigError
from interlock.text import one_line, visible

if TYPE_CHECKING:
    from interlock.recipes.starting import Wishes

_FLAGS = "--model, --task or --data, --device, --length, or --yes for what is usual"


def add_init(choices: Any) -> None:
    """The verb's place in the parser."""
    verb = choices.add_parser(
        "init",
        help="write a first recipe, from three questions",
        description="Nothing is overwritten. On a terminal it asks what no option says; elsewhere "
        "--task or --data, or --yes, is needed.",
    )
    verb.add_argument("file", nargs="?", type=Path, metavar="FILE|DIR", help="default: recipe.toml")
    verb.add_argument("--model", metavar="MODEL", help="default: smollm2-135m-instruct")
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--task", metavar="NAME", help="see interlock tasks (default: arithmetic)")
    what.add_argument(
        "--data", metavar="PATH", help="JSONL, Parquet, a saved data set, hf:org/name"
    )
    verb.add_argument("--stage", choices=["grpo", "sft"], help="default: as the data says")
    verb.add_argument("--device", metavar="NAME", help="default: cpu")
    verb.add_argument("--length", choices=["short", "long"], help="default: short")
    verb.add_argument("--yes", action="store_true", help="ask nothing")
    verb.set_defaults(verb=init)


def add_tasks(choices: Any) -> None:
    """The verb's place in the parser."""
    verb = choices.add_parser(
        "tasks",
        help="list the tasks, each with a problem and the verdict on a right answer",
    )
    verb.add_argument("name", nargs="?", metavar="NAME", help="this one alone, in full")
    verb.add_argument("--json", action="store_true", help="print one JSON object a task")
    verb.set_defaults(verb=tasks)


def init(given: argparse.Namespace) -> None:
    """Ask, write, and say what comes next."""
    from interlock.recipes.starting import place, write

    path = place(given.file)
    wishes = _wishes(given)
    write(wishes, path)
    shown = shlex.quote(str(path))
    print(visible(f"{path} is written. Read it, then:"))
    print(visible(f"  interlock train {shown} --check"))
    print(visible(f"  interlock train {shown}"))


def _wishes(given: argparse.Namespace) -> "Wishes":
    from interlock.recipes.starting import Wishes

    said = {
        name: value
        for name in ("model", "task", "data", "stage", "device", "length")
        if (value := getattr(given, name)) is not None
    }
    asks = not given.yes and sys.stdin.isatty() and sys.stderr.isatty()
    if not asks and not given.yes and not {"task", "data"} & said.keys():
        raise ConfigError(f"nobody is here to be asked; give {_FLAGS}")
    if asks:
        said |= _answers(said)
    if not {"task", "data"} & said.keys():
        said["task"] = "arithmetic"
    return Wishes(**said)


def _answers(said: dict[str, Any]) -> dict[str, Any]:
    """What the three questions add."""
    found: dict[str, Any] = {}
    if "model" not in said:
        found["model"] = _ask("Which model? A directory or hf:org/name", "smollm2-135m-instruct")
    if not {"task", "data"} & said.keys():
        what = _ask("What is it to learn? A task (interlock tasks) or a path of data", "arithmetic")
        looks_like_data = Path(what).exists() or what.startswith("hf:") or "." in what
        found["data" if looks_like_data else "task"] = what
    if "device" not in said or "length" not in said:
        where, _, long = _ask(
            "Where (a device of interlock doctor) and how long (short or long)?", "cpu short"
        ).partition(" ")
        found["device"] = said.get("device", where)
        found["length"] = said.get("length", long.strip() or "short")
        if found["length"] not in ("short", "long"):
            raise ConfigError(f"{one_line(repr(long), 40)} is no length; say short or long")
    return found


def _ask(question: str, usual: str) -> str:
    print(f"{question} [{usual}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise ConfigError(f"the input ended before the answer; give {_FLAGS}")
    return line.strip() or usual


def tasks(given: argparse.Namespace) -> None:
    """List them, or show one."""
    import msgspec

    from interlock.tasks import catalogue

    for name in [given.name] if given.name else catalogue.names():
        found = catalogue.example(name)
        if given.json:
            print(json.dumps(msgspec.to_builtins(found)), flush=True)
            continue
        judged = found.why or f"a right answer earns {found.reward:g}"
        if given.name:
            print(visible(f"{found.name}: {found.needs}".rstrip(": ")))
            if found.problem:
                print("\n".join(map(visible, found.problem.splitlines())))
                print(visible(f"answer: {one_line(found.answer, 400)}"))
            print(visible(judged))
        else:
            told = f"{one_line(found.problem, 60)} -> {one_line(found.answer, 20)}"
            print(visible(f"{found.name}: {told if found.problem else ''} ({judged})"), flush=True)


def check(recipe: Recipe, directory: Path, resume: bool) -> None:
    """Print what a run would do; all that is wrong goes to stderr, and ends with exit code 2."""
    from interlock.recipes.check import check as tried

    found = tried(recipe, directory, resume)
    for line in found.plan:
        print(visible(line))
    if found.mistakes:
        for line in found.mistakes[:-1]:
            print(visible(f"interlock: {one_line(line)}"), file=sys.stderr)
        raise ConfigError(found.mistakes[-1])
    print("nothing is wrong; nothing was run")
