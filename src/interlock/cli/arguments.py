"""What may be written behind `interlock`: the verbs and their options. Nothing is imported here."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from interlock import __version__
from interlock.cli import verbs
from interlock.cli.judging import add_bench, add_doctor, add_parity, add_preflight, add_qualify
from interlock.cli.labelling import add_label
from interlock.cli.migrating import add_migrate
from interlock.cli.numbers import at_least, no_empty, no_empty_path
from interlock.cli.planning import add_plan
from interlock.cli.reporting import add_evidence
from interlock.cli.reviewing import add_review
from interlock.cli.serving import add_serve
from interlock.cli.starting import add_init, add_tasks
from interlock.cli.watching import add_watch
from interlock.config.reading import nearest
from interlock.config.schema import Recipe
from interlock.errors import ConfigError


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Take key=value arguments behind the options too; argparse alone only takes those before."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(given, "settings") and all("=" in x and x[0] != "-" for x in rest)):
        parser.error(_unrecognized(rest, given))
    if rest:
        given.settings += rest
    return given


def _unrecognized(rest: Sequence[str], given: argparse.Namespace) -> str:
    dashed = next((each for each in rest if each.startswith("--")), None)
    if dashed is None or not hasattr(given, "settings"):
        return f"unrecognized arguments: {' '.join(rest)}"
    name, _, value = dashed.lstrip("-").replace("-", "_").partition("=")
    meant = nearest(name, getattr(given, "settings_of", Recipe)) or name
    return f"{dashed} is no option; a setting is written without dashes: {meant}={value or '…'}"


class _Parser(argparse.ArgumentParser):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.register("type", Path, no_empty_path)
        self.register("type", None, no_empty)  # of what names no type

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="interlock",
        description="Post-train reasoning models by reinforcement learning, and use them.",
    )
    parser.add_argument("--version", action="version", version=f"interlock {__version__}")
    choices = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    choices.type = str  # it is given all that is behind the verb, too

    for add in (
        *(
            _add_demo,
            add_init,
            add_tasks,
            _add_train,
            _add_eval,
            _add_chat,
            add_serve,
            add_plan,
            add_bench,
            add_doctor,
        ),
        *(add_qualify, add_parity, add_preflight, add_evidence),
        *(_add_export, _add_report, add_watch),
        *(add_label, add_review, add_migrate),
    ):
        add(choices)
    return parser


def _add_demo(choices: Any) -> None:
    verb = choices.add_parser(
        "demo", help="teach a small model addition, in minutes, on this machine"
    )
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe's settings"
    )
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/demo…)")
    _add_live(verb)
    _add_unqualified(verb)
    verb.set_defaults(verb=verbs.demo)


def _add_train(choices: Any) -> None:
    verb = choices.add_parser(
        "train",
        help="run a recipe",
        description="Exit code 3: it ended, but a stage learned nothing or had no answer judged.",
    )
    verb.add_argument("recipe", metavar="RECIPE.toml", help="or with --resume a run")
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="change the recipe's settings"
    )
    verb.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/NAME…)")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --run DIR")
    verb.add_argument(
        "--check",
        action="store_true",
        help="open all that it needs, run nothing, tell what is wrong",
    )
    verb.add_argument(
        "--stage",
        metavar="NAME|INDEX",
        help="run this stage alone: the first, one with `from`, or the next of the run to resume",
    )
    _add_live(verb)
    _add_unqualified(verb)
    verb.set_defaults(verb=verbs.train)


def _add_chat(choices: Any) -> None:
    verb = choices.add_parser("chat", help="talk to a model")
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="a model directory, a GGUF file, a run or hf:org/name",
    )
    verb.add_argument("--system", help="a system turn")
    verb.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    verb.add_argument(
        "--max-tokens", type=at_least(1), default=512, metavar="N", help="default: 512"
    )
    verb.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of the noise (default: 0)"
    )
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.set_defaults(verb=verbs.chat)


def _add_report(choices: Any) -> None:
    verb = choices.add_parser("report", help="write a run's report as one HTML file")
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    verb.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    verb.set_defaults(verb=verbs.report)


def _add_live(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--live", action="store_true", help="with a page in the browser beside it")


def _add_unqualified(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--unqualified",
        action="store_true",
        help="use devices without a valid certificate; the run keeps a record of it",
    )


def _add_eval(choices: Any) -> None:
    verb = choices.add_parser(
        "eval",
        help="measure a model's accuracy on a task's held-out problems",
        description="A run directory is measured as the run was, unless --task names a task. "
        "Held out are the problems that a run with the same task settings never trained on.",
    )
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="a model directory, a GGUF file, a run or hf:org/name",
    )
    verb.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="of the task: options.digits=3, seed=1, …; of one of several: 0.options.digits=3",
    )
    verb.add_argument(
        "--task",
        action="append",
        help="arithmetic, gsm8k, jsonl, reasoning-gym/NAME; repeatable",
    )
    verb.add_argument(
        "--problems", type=at_least(1), metavar="N", help="of each task (default: 128)"
    )
    verb.add_argument(
        "--samples",
        type=at_least(1),
        metavar="N",
        help="answers to each problem; 1 is a greedy one (default: 1, or the run's own)",
    )
    verb.add_argument(
        "--pass-at",
        type=at_least(1),
        action="append",
        metavar="K",
        help="the chance that one of K answers is right; repeatable",
    )
    verb.add_argument("--temperature", type=float, metavar="T", help="of samples (default: 0.6)")
    verb.add_argument("--top-p", type=float, metavar="P", help="of samples (default: 0.95)")
    verb.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="default: 256, or the run's own"
    )
    verb.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; repeatable")
    verb.add_argument(
        "--thinking-budget",
        type=at_least(0),
        metavar="N",
        help="tokens of thinking, after which its end is given (default: none, or the run's own)",
    )
    verb.add_argument(
        "--show", type=at_least(0), default=3, metavar="N", help="answers to show (default: 3)"
    )
    verb.add_argument("--device", default="cpu", help="default: cpu")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(verb=verbs.evaluate)


def _add_export(choices: Any) -> None:
    verb = choices.add_parser(
        "export",
        help="write a model as a Hugging Face directory with a card, or as a GGUF file",
        description="Nothing is replaced. A GGUF file is for llama.cpp, Ollama, LM Studio; peft is "
        "the adapter that a run with learner.lora has learned, which hf and gguf merge.",
    )
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="a model directory, a GGUF file, a run or hf:org/name",
    )
    verb.add_argument("--to", required=True, choices=["hf", "gguf", "peft"])
    verb.add_argument("--out", type=Path, metavar="PATH", help="default: exports/NAME…")
    verb.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        help="of a directory (default: bfloat16)",
    )
    verb.add_argument(
        "--type", choices=["BF16", "F16", "Q8_0", "Q4_0"], help="of a GGUF file (default: BF16)"
    )
    verb.add_argument("--push", metavar="ORG/NAME", help="then upload it to the hub, as private")
    verb.set_defaults(verb=verbs.export)
