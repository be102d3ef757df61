import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict


def scored_group(problem: str, *rewards: float, text: str = "4") -> ScoredGroup:
    completions = [
        Completion.sampled([5, 6], [-0.5, -0.25], FinishReason.STOP, text, weight_version=3)
        for _ in rewards
    ]
    question = Problem(problem, [{"role": "user", "content": "2 + 2?"}], "4")
    group = Group(question, [1, 2, 3], completions, worker="w0")
    return ScoredGroup(group, [Verdict(reward) for reward in rewards])


@pytest.fixture
def make_group() -> Callable[..., ScoredGroup]:
    return scored_group


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code args…` with piped output; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a tmpfs of some size, or remount it read-only; skips where mounting is not allowed."""
    target = tmp_path / "disk"
    target.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode != 0:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted = True
        return target

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(target)], check=True)
