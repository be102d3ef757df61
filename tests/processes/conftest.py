"""Children with the module of a test's own, closed when the test ends."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock.processes.child import Child, inherited

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(source)`: the body of `serve(channel)`, or with `whole` a module of its own."""
    children: list[Child] = []

    def make(source: str, whole: bool = False, **changes: Any) -> Child:
        name = f"module_{len(children)}"
        body = textwrap.dedent(source)
        if not whole:
            body = "import os, signal, subprocess, sys, time\n" + (
                "def serve(channel):\n" + textwrap.indent(body, "    ")
            )
        (tmp_path / f"{name}.py").write_text(body)
        env = inherited({"PYTHONPATH": _path(tmp_path), **changes.pop("env", {})})
        children.append(Child(name, env, **changes))
        return children[-1]

    yield make
    for child in children:
        child.close()


def _path(directory: Path) -> str:
    return f"{directory}:{Path(__file__).parents[2] / 'src'}"
