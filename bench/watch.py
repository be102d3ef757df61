"""The live page of a long run: how soon it is open, how soon it has a new step, and in what memory.

    a run's metrics, repeated to N steps ──> interlock watch ──> a page
    one line more, a few times ─────────────────────────────────> the page

Opened: from the request for the page until it has all N steps, by a server that was just started;
the run is read meanwhile. An update: from the line's write until the page has it. The page is a
plain client that asks what the page's script does; or, with --chromium, the page itself, and a step
counts once the charts are drawn (that needs `pip install playwright`).

    python bench/watch.py RUN --steps 1000 100000 --json watch.json
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPResponse
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from urllib.parse import quote
from urllib.request import urlopen

from environment import environment

_DEADLINE = 300.0
# Whether a fact with this text is shown, asked in every frame.
_SHOWN = """
([text, deadline]) => new Promise((resolve, reject) => {
  const late = performance.now() + deadline;
  const look = () => {
    const facts = [...document.querySelectorAll("#facts b")];
    if (facts.some((fact) => fact.textContent === text)) resolve();
    else if (performance.now() > late) reject(new Error("it does not show " + text));
    else requestAnimationFrame(look);
  };
  look();
})
"""


@dataclass(frozen=True)
class Result:
    """Seconds; megabytes of the server's memory with all of the run, and after the updates."""

    steps: int
    opened: float
    processor: float  # of the server, by then, its start included
    updates: list[float]
    memory: float
    memory_after: float


class Page(Protocol):
    def open(self, url: str) -> None: ...

    def until(self, step: int) -> None:
        """Wait until it has this step."""


class PlainPage:
    """What the page's script asks, and nothing drawn."""

    def __init__(self) -> None:
        self._run: dict[str, Any] = {}
        self._stream: HTTPResponse | None = None

    def open(self, url: str) -> None:
        self._url = url
        urlopen(url, timeout=_DEADLINE).close()
        self._ask("runs")
        self._load()
        had = quote(json.dumps([[self._run[name] for name in ("x", "event_count", "generation")]]))
        self._stream = urlopen(f"{url}stream?had={had}", timeout=_DEADLINE)

    def until(self, step: int) -> None:
        """Raises RuntimeError when the stream ends before."""
        assert self._stream is not None
        while self._run["step"] != step:
            line = self._stream.readline()
            if not line:
                raise RuntimeError(f"the stream ended before step {step}")
            if line.startswith(b"data: "):
                news = json.loads(line.removeprefix(b"data: "))
                if news.get("again"):
                    self._load()
                else:
                    self._run = news

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _load(self) -> None:
        self._run = self._ask("runs/0")

    def _ask(self, path: str) -> Any:
        with urlopen(self._url + path, timeout=_DEADLINE) as answer:
            return json.loads(answer.read())


class DrawnPage:
    """The page in a browser."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def open(self, url: str) -> None:
        self._page.goto(url, timeout=1000 * _DEADLINE, wait_until="commit")

    def until(self, step: int) -> None:
        """Its facts are shown, and its charts drawn, in one frame; this looks after each."""
        self._page.evaluate(_SHOWN, [f"step {step:,}", 1000 * _DEADLINE])


@contextmanager
def plain_page() -> Iterator[Page]:
    page = PlainPage()
    try:
        yield page
    finally:
        page.close()


@contextmanager
def drawn_page(browser: Any) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    try:
        yield DrawnPage(page)
    finally:
        page.close()


class Steps:
    """Those of a run, again and again."""

    def __init__(self, run: Path) -> None:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
        self._rest = []
        for line in lines:
            if line.pop("step"):
                line.pop("stage")
                self._rest.append(json.dumps(line).encode().removeprefix(b"{"))

    def line(self, step: int) -> bytes:
        rest = self._rest[step % len(self._rest)]
        return b'{"stage": 0, "step": %d, %b\n' % (step, rest)


def lengthened(run: Path, steps: int, directory: Path) -> Steps:
    """A copy of a run with so many steps. -> the steps, to go on

    Its ledger is that of the run; the page asks it for the newest step alone.
    """
    shutil.copytree(run, directory, ignore=shutil.ignore_patterns("weights", "checkpoints"))
    made = Steps(run)
    with (directory / "metrics.jsonl").open("wb") as file:
        file.writelines(made.line(step) for step in range(1, steps + 1))
    return made


def memory(server: "subprocess.Popen[str]") -> float:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor(server: "subprocess.Popen[str]") -> float:
    """Seconds, whatever else the machine does."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(run: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server that is about to listen, and where."""
    server = subprocess.Popen(
        [sys.executable, "-m", "interlock.cli", "watch", "--port", "0", str(run)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.wait()


def measured(run: Path, steps: int, updates: int, page: Page) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        made = lengthened(run, steps, directory)
        with served(directory) as (server, url):
            began = time.monotonic()
            page.open(url)
            page.until(steps)
            opened, used, least = time.monotonic() - began, processor(server), memory(server)
            seconds = []
            for step in range(steps + 1, steps + 1 + updates):
                with (directory / "metrics.jsonl").open("ab") as file:
                    began = time.monotonic()
                    file.write(made.line(step))
                page.until(step)
                seconds.append(time.monotonic() - began)
            return Result(steps, opened, used, seconds, least, memory(server))


@contextmanager
def opener(chromium: Path | None) -> Iterator[Callable[[], AbstractContextManager[Page]]]:
    """What opens a page: a plain one, or one of this browser's."""
    if chromium is None:
        yield plain_page
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(chromium), args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        yield lambda: drawn_page(browser)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run, whose steps are repeated")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chromium", type=Path, help="the browser's program; without, none draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    with opener(given.chromium) as open_page:
        found = []
        for steps in given.steps * given.rounds:
            with open_page() as page:
                found.append(measured(given.run, steps, given.updates, page))
    heads = ("steps", "opened, s", "processor, s", "first update, ms", "an update, ms")
    print("|".join(("", *heads, "memory, MB", "after", "")) + "\n" + "|---" * 7 + "|")
    for steps in given.steps:
        rows = [each for each in found if each.steps == steps]
        opened = spread([each.opened for each in rows], "%.2f")
        used = spread([each.processor for each in rows], "%.2f")
        first = spread([1000 * each.updates[0] for each in rows], "%.0f")
        later = spread([1000 * second for each in rows for second in each.updates[1:]], "%.0f")
        memory_mb = f"{median(each.memory for each in rows):.0f}"
        after = f"{median(each.memory_after for each in rows):.0f}"
        print(f"| {steps:,} | {opened} | {used} | {first} | {later} | {memory_mb} | {after} |")
    if given.json:
        results = [asdict(each) for each in found]
        given.json.write_text(json.dumps({"environment": environment(), "results": results}))


def spread(figures: list[float], form: str) -> str:
    """The least, the median, the most."""
    return "-".join(form % each for each in (min(figures), median(figures), max(figures)))


if __name__ == "__main__":
    main()
