"""The options of the verbs that judge devices and engines, which are in devices.py."""

import argparse
from pathlib import Path
from typing import Any

from interlock.cli import devices
from interlock.cli.numbers import at_least


def add_bench(choices: Any) -> None:
    verb = choices.add_parser(
        "bench",
        help="measure what is fast on a device: dtypes, kernels, attention, micro-batches",
        description="What a run leaves to a measurement is chosen so, in its first moments.",
    )
    verb.add_argument("--device", default="cpu", metavar="NAME", help="default: cpu")
    verb.add_argument("--threads", type=at_least(1), metavar="N", help="default: torch's")
    verb.add_argument("--json", action="store_true", help="print the figures as JSON")
    verb.set_defaults(verb=devices.bench)


def add_doctor(choices: Any) -> None:
    verb = choices.add_parser(
        "doctor",
        help="say what this machine has, what it lacks, and the remedy",
        description="Exit code 0: nothing is wrong for the devices that are here, or for --device; "
        "1: something is.",
    )
    verb.add_argument("--device", metavar="NAME", help="cuda, npu:0, … (default: all that show)")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.set_defaults(verb=devices.doctor)


def add_qualify(choices: Any) -> None:
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
        "--seed", type=at_least(0), default=0, metavar="N", help="of the data (default: 0)"
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
        type=at_least(1),
        metavar="S",
        help="for the devices of a node (default: 3600)",
    )


def add_parity(choices: Any) -> None:
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
    verb.add_argument("--problems", type=at_least(1), default=64, metavar="N", help="default: 64")
    verb.add_argument(
        "--samples",
        type=at_least(1),
        default=2,
        metavar="N",
        help="drawn per prompt and side (default: 2)",
    )
    verb.add_argument("--max-tokens", type=at_least(1), default=64, metavar="N", help="default: 64")
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


def add_preflight(choices: Any) -> None:
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
