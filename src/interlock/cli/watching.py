"""`interlock watch RUN…`, and `interlock train --live`, which starts one beside it."""

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interlock.errors import ConfigError

HOST, PORT = "127.0.0.1", 8480


def add_watch(choices: Any) -> None:
    verb = choices.add_parser("watch", help="runs as they go on, as a page in the browser")
    verb.add_argument("run", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    verb.add_argument("--host", default=HOST, help=f"default: {HOST}; others are given a key")
    verb.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0: any")
    verb.add_argument("--socket", type=int, help=argparse.SUPPRESS)  # of `train --live`
    verb.set_defaults(verb=watch)


def watch(given: argparse.Namespace) -> None:
    """Serve the page until interrupted."""
    need_packages()
    from interlock.report.live.app import make_app
    from interlock.report.live.server import listen, names_of, new_key, run_server, url_of

    if given.socket is not None:
        listener = socket.socket(fileno=given.socket)
        run_server(make_app(given.run, names_of(HOST, None)), listener, beside=True)
        return
    for path in given.run:
        if not (path / "manifest.json").is_file():
            raise ConfigError(f"there is no run at {path}; give the directory a run writes to")
    listener, key = listen(given.host, given.port), new_key(given.host)
    print(f"watch at {url_of(listener, given.host, key)}", flush=True)
    run_server(make_app(given.run, names_of(given.host, key), key), listener)


@contextmanager
def beside(run: Path) -> Iterator[str]:
    """A page of the run in a process of its own, which ends with the block. Yields its URL."""
    need_packages()
    from interlock.report.live.server import listen, url_of

    try:
        listener = listen(HOST, PORT)
    except ConfigError:  # another run's page is there
        listener = listen(HOST, 0)
    command = [sys.executable, "-m", "interlock.cli", "watch", str(run)]
    with listener:
        child = subprocess.Popen(
            [*command, "--socket", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is the run's
        )
        url = url_of(listener, HOST, None)
    try:
        yield url
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=10)


def need_packages() -> None:
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError('the page needs FastAPI; pip install "interlock[serve]"')
