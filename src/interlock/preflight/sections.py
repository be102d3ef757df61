"""The sections, a table: the command of each, and what of its results is told.

The time that is left is shared by the weights of the sections that are still to come.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec

from interlock.errors import ConfigError
from interlock.preflight.command import python

_CLI = "interlock.cli"
_DEFAULT_LEVEL_S = 200.0  # for less, qualify is asked in its smallest form
Figures = dict[str, float | str]


@dataclass(frozen=True)
class PreflightSetting:
    """What a preflight is asked."""

    device: str
    model: Path  # a model directory: the one given, or a small one with random weights
    given: bool  # whether it was
    shapes: str = "qwen3-0.6b,qwen3-8b"
    checkout: Path | None = None  # with tests/


class Job(msgspec.Struct, frozen=True):
    """One section's command, to be run in a directory of its own."""

    command: list[str]
    files: tuple[str, ...] = ()  # results, relative to that directory
    done: frozenset[int] = frozenset({0})  # exit codes
    shortened: str = ""
    env: dict[str, str] = {}


class SectionResult(msgspec.Struct, frozen=True):
    """What a section found, of the files that are there."""

    headline: str
    figures: Figures = {}
    nothing: bool = False  # it came to its end, but nothing was tried


@dataclass(frozen=True)
class PreflightSection:
    name: str
    proves: str
    weight: float  # of the time
    job: Callable[[PreflightSetting, float], Job | str]  # str: why it cannot be run here
    told: Callable[[Path], SectionResult]
    least_s: float = 5.0  # for less it is not begun
    uses: frozenset[str] = field(default=frozenset({"model"}))  # of the setting


def _qualify(setting: PreflightSetting, seconds: float) -> Job:
    # A device that is rejected has an answer, and the time is for what it can do.
    command = python(_CLI, "qualify", "--device", setting.device, "--out", ".", "--fail-fast")
    files = ("certificate.json", "report.html")
    if seconds >= _DEFAULT_LEVEL_S:
        return Job(command, files)
    return Job([*command, "--quick"], files, shortened=f"quick, for {seconds:.0f} s were left")


def _told_of_qualify(where: Path) -> SectionResult:
    found = _read(where / "certificate.json")
    results = [finding["result"] for finding in found["findings"]]
    failed = [each["check"] for each in found["findings"] if each["result"] == "fail"]
    says = f"{found['trust']}, level {found['level']}"
    says += f"; failed: {', '.join(failed)}" if failed else ""
    figures: Figures = {"verdict": found["trust"], "level": found["level"]}
    figures |= {f"checks: {kind}": float(results.count(kind)) for kind in ("pass", "fail")}
    return SectionResult(says, figures)


def _parity(setting: PreflightSetting, seconds: float) -> Job:
    command = python(_CLI, "parity", setting.model, "--a", "torch:cpu", "--a-dtype", "float32")
    command += ["--b", f"torch:{setting.device}", "--b-dtype", "float32", "--out", "."]
    command += ["--samples", "1", "--max-tokens", "16", "--timeout", f"{seconds:.0f}"]
    return Job(command, ("parity.json", "parity.html"))


def _told_of_parity(where: Path) -> SectionResult:
    found = _read(where / "parity.json")
    apart = [each["mismatch"]["k3"] for each in found["differences"]]
    figures: Figures = {"verdict": found["verdict"]}
    if apart:  # JSON has null for what is not finite
        figures["largest k3"] = "not finite" if None in apart else max(apart)
    return SectionResult(f"{found['verdict']}: {found['headline']}", figures)


def _tests(setting: PreflightSetting, seconds: float) -> Job | str:
    if setting.checkout is None:
        return "no checkout with tests/ at hand"
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        return f"the package {missing[0]} is not installed"
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--junitxml", "tests.xml"]
    root = setting.checkout
    command = python("pytest", *options, "--rootdir", root, "-c", root / "pyproject.toml")
    return Job(
        [*command, str(root / "tests")],
        ("tests.xml",),
        frozenset({0, 5}),  # 5: none was selected
        env={"INTERLOCK_TEST_DEVICE": setting.device},
    )


def _told_of_tests(where: Path) -> SectionResult:
    suites = ElementTree.parse(where / "tests.xml").getroot().iter("testsuite")
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        counts = {name: count + int(suite.get(name, 0)) for name, count in counts.items()}
    ran = counts["tests"] - counts["skipped"]
    bad = counts["failures"] + counts["errors"]
    figures: Figures = {name: float(count) for name, count in counts.items()}
    return SectionResult(
        f"{ran - bad} passed, {bad} failed, {counts['skipped']} skipped", figures, ran == 0
    )


def _speed(module: str) -> Callable[[PreflightSetting, float], Job]:
    def job(setting: PreflightSetting, seconds: float) -> Job:
        # It ends by itself a little before it would be killed.
        options = ["--device", setting.device, "--seconds", f"{0.9 * seconds:.0f}"]
        command = python(f"interlock.preflight.{module}", *options, "--shapes", setting.shapes)
        return Job([*command, "--out", f"{module}.json"], (f"{module}.json",))

    return job


def _told_of_speed(module: str) -> Callable[[Path], SectionResult]:
    def told(where: Path) -> SectionResult:
        found = _read(where / f"{module}.json")
        figures: Figures = {
            "dtype": found["dtype"],
            "TFLOP/s of the best product": found["bounds"]["flops"] * 1e-12,
            "GB/s of the best copy": found["bounds"]["bytes"] * 1e-9,
        }
        best = []
        for row in found["rows"]:
            of = f"{row['shape']}, {row['rows']} rows"
            if row["rate"]:
                share = row["rate"] / row["bound"]
                figures[f"{of}: tokens/s"] = row["rate"]
                figures[f"{of}: of the bound"] = f"{share:.0%}"
                figures[f"{of}: tokens/s at full depth (scaled)"] = row["at_full_depth"]
                best.append(f"{of}: {row['rate']:.0f} tokens/s, {share:.0%} of the bound")
            if row["recorded"]:
                figures[f"{of}: tokens/s, recorded steps"] = row["recorded"]
                best.append(f"{row['recorded']:.0f} with recorded steps")
            if row["transformers"]:
                figures[f"{of}: times transformers"] = row["rate"] / row["transformers"]
            if row["note"]:
                figures[f"{of}: note"] = row["note"]
        return SectionResult("; ".join(best) or "nothing fitted", figures, not best)

    return told


def _demo(setting: PreflightSetting, seconds: float) -> Job:
    device = setting.device
    settings = [f"model.path={setting.model}", f"learner.device={device}", "stage.steps=3"]
    settings += [f"generator.0.device={device}", "stage.problems_per_step=4"]
    settings += ["stage.completions=4", "stage.sampling.max_tokens=16", "stage.eval.problems=8"]
    # What is being looked at here has no certificate yet, or one that says no.
    command = python(_CLI, "demo", *settings, "--run", "run", "--unqualified")
    # Random weights earn no reward: that nothing was learned (3) is no failure of the device.
    done = frozenset({0} if setting.given else {0, 3})
    return Job(command, ("run/metrics.jsonl",), done)


def _told_of_demo(where: Path) -> SectionResult:
    lines = [json.loads(line) for line in (where / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("step") and "seconds" in line]
    taken = [line["seconds"]["step"] for line in steps]
    figures: Figures = {"steps": float(len(steps))}
    if taken:
        figures["seconds of the last step"] = taken[-1]
    return SectionResult(f"{len(steps)} steps of GRPO", figures)


SECTIONS = {
    section.name: section
    for section in (
        PreflightSection(
            "qualify",
            "what it can be trusted with",
            4.5,
            _qualify,
            _told_of_qualify,
            45,
            frozenset(),
        ),
        PreflightSection("parity", "it computes what the CPU does", 0.75, _parity, _told_of_parity),
        PreflightSection(
            "tests", "the tests marked gpu", 1, _tests, _told_of_tests, 5, frozenset()
        ),
        PreflightSection(
            "decode",
            "speed of generating",
            1.25,
            _speed("decode"),
            _told_of_speed("decode"),
            uses=frozenset({"shapes"}),
        ),
        PreflightSection(
            "learner",
            "speed of learning",
            1,
            _speed("learner"),
            _told_of_speed("learner"),
            uses=frozenset({"shapes"}),
        ),
        PreflightSection("demo", "a run of GRPO", 0.5, _demo, _told_of_demo),
    )
}


def chosen(only: str | None, skip: str | None) -> list[PreflightSection]:
    """The sections that --only and --skip leave. Raises ConfigError on an unknown name, or none."""
    wanted, unwanted = ([n for n in (each or "").split(",") if n] for each in (only, skip))
    if unknown := next((n for n in (*wanted, *unwanted) if n not in SECTIONS), None):
        raise ConfigError(f"there is no section {unknown!r}; choose from {', '.join(SECTIONS)}")
    left = [
        s for s in SECTIONS.values() if (not wanted or s.name in wanted) and s.name not in unwanted
    ]
    if not left:
        raise ConfigError("--only and --skip leave no section; choose at least one")
    return left


def check_shapes(names: str) -> None:
    """Raises ConfigError on a shape that is not known."""
    from interlock.preflight.shapes import SHAPES

    if unknown := next((name for name in names.split(",") if name not in SHAPES), None):
        raise ConfigError(f"there is no shape {unknown!r}; choose from {', '.join(SHAPES)}")


def checked_model(directory: Path | None) -> Path | None:
    """The model directory in full. Raises ConfigError where it is none: nothing is fetched."""
    if directory is None:
        return None
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ConfigError(
                f"--model {directory} has no {name}; preflight fetches nothing: give a Hugging "
                "Face model directory with its tokenizer, or leave --model out"
            )
    return directory.resolve()


def random_model(sections: Sequence[PreflightSection], directory: Path) -> Path:
    """Where a small model is, made if one of `sections` needs it."""
    if any("model" in section.uses for section in sections):
        from interlock.preflight import random_model

        random_model.write(directory)
    return directory


def checkout() -> Path | None:
    """Where the tests are: the checkout that runs, or the one that we stand in."""
    for root in (Path(__file__).parents[3], Path.cwd()):
        if (root / "tests/conftest.py").is_file() and (root / "src/interlock").is_dir():
            return root
    return None


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())
