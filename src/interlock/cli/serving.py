"""`interlock serve`, and its options."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from interlock.config.reading import load_serving
from interlock.config.serving import ServeSettings
from interlock.text import visible


def add_serve(choices: Any) -> None:
    """The verb's place in the parser."""
    verb = choices.add_parser(
        "serve",
        help="serve a model behind an OpenAI-compatible endpoint",
        description="Keys come from --api-keys FILE or INTERLOCK_API_KEY; without, one is made and "
        "told. The first signal drains, a second one ends at once.",
    )
    verb.add_argument(
        "model", metavar="MODEL", help="a model directory, a run directory or hf:org/name"
    )
    verb.add_argument("settings", nargs="*", metavar="key=value", help="change the settings")
    verb.add_argument("--config", type=Path, metavar="FILE", help="settings, as serve.toml")
    verb.add_argument("--host", help="default: 127.0.0.1")
    verb.add_argument("--port", metavar="N", help="default: 8000; 0: any that is free")
    verb.add_argument("--device", metavar="NAME", help="of the replica (default: cpu)")
    verb.add_argument("--dtype", metavar="DTYPE", help="of the replica")
    verb.add_argument("--count", metavar="N", help="replicas (default: 1)")
    verb.add_argument("--follow", metavar="RUN", help="serve the newest weights of a running run")
    verb.add_argument("--api-keys", type=Path, metavar="FILE", help="who may ask: a key a line")
    verb.add_argument("--admin-keys", type=Path, metavar="FILE", help="who may use /admin")
    verb.add_argument(
        "--unqualified", action="store_true", help="use devices without a valid certificate"
    )
    verb.set_defaults(verb=serve, settings_of=ServeSettings)


def serve(given: argparse.Namespace) -> None:
    """Serve until a signal."""
    settings = _settings(given)  # before anything heavy is imported: a slip is told at once

    import logging

    from interlock.serve import command

    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("interlock.serve").setLevel(logging.INFO)  # a line for each request
    who = command.access(given.api_keys, given.admin_keys)
    command.serve(given.model, settings, who, given.follow, _say)


def _settings(given: argparse.Namespace) -> ServeSettings:
    overrides = list(given.settings)
    for name in ("host", "port", "device", "dtype", "count"):
        if (value := getattr(given, name)) is not None:
            setting = name if name in ("host", "port") else f"replica.{name}"
            written = value if re.fullmatch(r"-?\d+", value) else json.dumps(value)
            overrides.append(f"{setting}={written}")
    if given.unqualified:
        overrides.append("unqualified=true")
    return load_serving(given.config, overrides)


def _say(line: str) -> None:
    print(visible(f"interlock: {line}"), file=sys.stderr, flush=True)
