"""What may be written behind `interlock`: the verbs and their options. Nothing is imported here."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from interlock import __version__
from interlock.cli import devices, verbs
from interlock.cli.labelling import add_label
from interlock.cli.migrating import add_migrate
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


def _at_least(least: int) -> Callable[[str], int]:
    """A whole number that is not too small."""

    def number(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="interlock",
        description="Post-train reasoning models by reinforcement learning, and use them.",
    )
    parser.add_argument("--version", action="version", version=f"interlock {__version__}")
    choices = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

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
            _add_bench,
            _add_doctor,
        ),
        *(_add_qualify, _add_parity, _add_preflight, add_evidence),
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
        "--max-tokens", type=_at_least(1), default=512, metavar="N", help="default: 512"
    )
    verb.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="of the noise (default: 0)"
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
        "--problems", type=_at_least(1), metavar="N", help="of each task (default: 128)"
    )
    verb.add_argument(
        "--samples",
        type=_at_least(1),
        metavar="N",
        help="answers to each problem; 1 is a greedy one (default: 1, or the run's own)",
    )
    verb.add_argument(
        "--pass-at",
        type=_at_least(1),
        action="append",
        metavar="K",
        help="the chance that one of K answers is right; repeatable",
    )
    verb.add_argument("--temperature", type=float, metavar="T", help="of samples (default: 0.6)")
    verb.add_argument("--top-p", type=float, metavar="P", help="of samples (default: 0.95)")
    verb.add_argument(
        "--max-tokens", type=_at_least(1), metavar="N", help="default: 256, or the run's own"
    )
    verb.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; repeatable")
    verb.add_argument(
        "--thinking-budget",
        type=_at_least(0),
        metavar="N",
        help="tokens of thinking, after which its end is given (default: none, or the run's own)",
    )
    verb.add_argument(
        "--show", type=_at_least(0), default=3, metavar="N", help="answers to show (default: 3)"
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


def _add_bench(choices: Any) -> None:
    verb = choices.add_parser(
        "bench",
        help="measure what is fast on a device: dtypes, kernels, attention, micro-batches",
        description="What a run leaves to a measurement is chosen so, in its first moments.",
    )
    verb.add_argument("--device", default="cpu", metavar="NAME", help="default: cpu")
    verb.add_argument("--threads", type=_at_least(1), metavar="N", help="default: torch's")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.set_defaults(verb=devices.bench)


def _add_doctor(choices: Any) -> None:
    verb = choices.add_parser(
        "doctor",
        help="say what this machine has, what it lacks, and the remedy",
        description="Exit code 0: nothing is wrong for the devices that are here, or for --device; "
        "1: something is.",
    )
    verb.add_argument("--device", metavar="NAME", help="cuda, npu:0, … (default: all that show)")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(verb=devices.doctor)


def _add_qualify(choices: Any) -> None:
    verb = choices.add_parser(
        "qualify",
        help="prove what a device can be trusted with: train, generate, or neither",
        description="Exit code 0: it may at least generate; 1: it is rejected, or not decided.",
    )
    verb.add_argument(
        "--device", metavar="NAME", help="cuda, npu:0, cpu, sim, sim:DEFECT,… (default: the first)"
    )
    level = verb.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_true", help="every check in its smallest form")
    level.add_argument(
        "--full", action="store_true", help="every check in full (default, but with --fleet)"
    )
    level.add_argument("--soak", type=float, metavar="MINUTES", help="then compute for so long")
    verb.add_argument(
        "--only", metavar="ID,…", help="some checks; what did not run never certifies"
    )
    verb.add_argument("--fail-fast", action="store_true", help="stop once it is rejected")
    verb.add_argument("--model", metavar="PATH", help="try the sizes of this model, too")
    verb.add_argument("--list", action="store_true", help="say what the checks are, and run none")
    verb.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="N", help="of the data (default: 0)"
    )
    verb.add_argument("--json", action="store_true", help="print the certificate as JSON")
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="certificate.json and report.html (default: certificates/DEVICE)",
    )
    _add_fleet(verb)
    verb.set_defaults(verb=devices.qualify)


def _add_fleet(verb: argparse.ArgumentParser) -> None:
    fleet = verb.add_argument_group(
        "a fleet",
        "All devices of all nodes at once, then the links between the nodes; --quick by default. "
        "Exit code 0: every device may at least generate, and nothing is to be mended.",
    )
    fleet.add_argument(
        "--fleet",
        metavar="HOSTS",
        help="HOST,HOST,… or hosts.txt or hosts.toml, over ssh; or ray://HOST:PORT",
    )
    fleet.add_argument(
        "--devices",
        nargs="+",
        metavar="NAME",
        help="of each node (default: all its accelerators, else its CPU)",
    )
    fleet.add_argument(
        "--remote-shell",
        metavar="COMMAND",
        help="what stands before a host's name (default: ssh, which asks nothing)",
    )
    fleet.add_argument(
        "--remote-python", metavar="PATH", help="interpreter on the nodes (default: python3)"
    )
    fleet.add_argument(
        "--timeout",
        type=_at_least(1),
        metavar="S",
        help="for the devices of a node (default: 3600)",
    )


def _add_parity(choices: Any) -> None:
    verb = choices.add_parser(
        "parity",
        help="compare two engines or devices on the same model, prompts and tokens",
        description="Exit code 0: same or close; 1: different; 3: no answer to --task was judged.",
    )
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="a model directory, a GGUF file, a run or hf:org/name",
    )
    verb.add_argument(
        "settings", nargs="*", metavar="key=value", help="of the task: options.digits=3, seed=1, …"
    )
    _add_side(verb, "a", "torch:cpu")
    _add_side(verb, "b", None)
    verb.add_argument(
        "--b-model", metavar="MODEL", help="other files of the same model, for side b"
    )
    verb.add_argument("--task", help="ask its held-out problems too, and compare the accuracy")
    verb.add_argument("--problems", type=_at_least(1), default=64, metavar="N", help="default: 64")
    verb.add_argument(
        "--samples",
        type=_at_least(1),
        default=2,
        metavar="N",
        help="drawn per prompt and side (default: 2)",
    )
    verb.add_argument(
        "--max-tokens", type=_at_least(1), default=64, metavar="N", help="default: 64"
    )
    verb.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; repeatable")
    verb.add_argument(
        "--band",
        default="1e-3,1e-2",
        metavar="K3,K3",
        help="same up to, close up to; nats per token",
    )
    verb.add_argument(
        "--bisect", action="store_true", help="find the layer and operator where they part (torch)"
    )
    verb.add_argument(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="for one answer, the start of an engine included",
    )
    verb.add_argument("--json", action="store_true", help="print what was found as JSON")
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="parity.json and parity.html (default: parity/MODEL)",
    )
    verb.set_defaults(verb=devices.parity)


def _add_preflight(choices: Any) -> None:
    verb = choices.add_parser(
        "preflight",
        help="try a device in all that Interlock does on it, in minutes, without a network",
        description="Exit code 0: no section failed, and one at least was done; 1: otherwise.",
    )
    verb.add_argument(
        "--device", metavar="NAME", required=True, help="cuda:0, npu:0, cpu, sim, sim:DEFECT, …"
    )
    verb.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="of parity and demo: a model directory with its tokenizer (default: random weights)",
    )
    verb.add_argument("--only", metavar="NAME,…", help="some sections")
    verb.add_argument("--skip", metavar="NAME,…", help="all but these")
    verb.add_argument(
        "--minutes", type=float, default=9.0, metavar="M", help="in all, at most (default: 9)"
    )
    verb.add_argument(
        "--shapes",
        default="qwen3-0.6b,qwen3-8b",
        metavar="NAME,…",
        help="at which speed is measured; tiny is for a try (default: qwen3-0.6b,qwen3-8b)",
    )
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="of the results (default: preflight/DEVICE)"
    )
    verb.set_defaults(verb=devices.preflight)


def _add_side(verb: argparse.ArgumentParser, side: str, default: str | None) -> None:
    verb.add_argument(
        f"--{side}",
        default=default,
        required=default is None,
        metavar="ENGINE:DEVICE",
        help=f"torch:DEVICE or vllm:DEVICE{f' (default: {default})' if default else ''}",
    )
    verb.add_argument(f"--{side}-dtype", metavar="DTYPE", help="default: what the device is for")
    verb.add_argument(f"--{side}-python", metavar="PATH", help="interpreter of its environment")
