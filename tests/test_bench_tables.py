"""What `make bench` writes into bench/RESULTS.md, from figures made up for it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tables", BENCH / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load()

ENVIRONMENT = {
    "cpu": "Chip (avx2)",
    "cores": "2",
    "memory": "24 GiB",
    "system": "Linux x86_64",
    "python": "3.11.7",
    "interlock": "0.1.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "ray": "2.60.0",
    "date": "2026-11-22 10:00 UTC",
}
MACHINE = "2026-11-22 10:00 UTC; Chip (avx2), 2 cores, 24 GiB; python 3.11.7, torch 2.13.0"


def around(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "min": low, "max": high}


def with_environment(**figures: Any) -> dict[str, Any]:
    return {"environment": ENVIRONMENT, **figures}


ROLLOUT = {
    "environment": ENVIRONMENT | {"vllm": "0.32.0"},
    "setting": {
        "prompts": "64",
        "group": "1",
        "new_tokens": "48",
        "dtype": "float32",
        "threads": "2",
        "rounds": "5",
    },
    "ready_s": {"interlock": 0.44, "transformers": 0.71, "vllm": 122.8},
    "result": {
        "interlock": around(312.4, 274.0, 329.0),
        "transformers": around(182.0, 173.0, 195.0),
        "vllm": around(209.0, 189.0, 248.0),
        "ratio to transformers": around(1.766, 1.5, 1.8),
        "ratio to vllm": around(1.57, 1.1, 1.69),
    },
}
ROLLOUT_TEXT = f"""\
{MACHINE}, transformers 5.23.0, vLLM 0.32.0; 64 prompts x 1, 48 new tokens, float32, 2 threads, \
5 rounds.

| | tokens per second | ready after |
|---|---|---|
| Interlock | 312 (274-329) | 0.4 s |
| transformers | 182 (173-195) | 0.7 s |
| vLLM | 209 (189-248) | 122.8 s |
| Interlock / transformers, round by round | **1.77** (1.50-1.80) | |
| Interlock / vLLM, round by round | **1.57** (1.10-1.69) | |"""

DECODING = {"dtype": "float32", "threads": "2", "rounds": "3", "own": "32"}


def decoded(
    rows: int, group: int, context: int, kept: float, bound: float, *rounds: float
) -> dict[str, Any]:
    return {
        "rows": rows,
        "group": group,
        "context": context,
        "seconds": sorted(rounds)[len(rounds) // 2],
        "rounds": list(rounds),
        "bound": bound,
        "kept_bytes": kept,
    }


SYNC_RATE = {
    "changed": around(0.004, 0.0036, 0.0047),
    "share": around(0.0053, 0.0046, 0.0062),
    "publish_s": around(0.44, 0.36, 0.49),
    "fetch_s": around(0.26, 0.23, 0.33),
    "encode_gb_s": around(0.74, 0.63, 0.85),
    "apply_gb_s": around(1.06, 0.96, 1.16),
    "anchor share": around(0.67, 0.67, 0.67),
    "anchor publish_s": around(2.0, 2.0, 2.0),
}


def coordinated(ledger: bool, cpu: float, per_s: float, trip: float) -> dict[str, Any]:
    return {
        "workers": 4,
        "fleet": "ray",
        "ledger": ledger,
        "start_s": 5.52,
        "cpu_ms": around(cpu, cpu - 0.1, cpu + 0.1),
        "per_s": around(per_s, per_s - 5, per_s + 5),
        "trip_ms": around(trip, trip, trip),
    }


# Name of the benchmark: what it wrote, and what becomes of it.
KNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "rollout": (ROLLOUT, ROLLOUT_TEXT),
    "rollout-bfloat16": (ROLLOUT, ROLLOUT_TEXT),
    "decode": (
        with_environment(
            setting=DECODING,
            result=[
                decoded(1, 1, 128, 1e7, 0.02, 0.025, 0.024, 0.03),
                decoded(1, 1, 4096, 1e8, 0.03, 0.06, 0.05, 0.07),
                decoded(256, 1, 128, 1e9, 0.256, 0.512, 0.5, 0.64),
                {"rows": 256, "context": 4096, "seconds": None, "kept_bytes": 48.7e9},
            ],
        ),
        f"""\
{MACHINE}; float32, 2 threads, 3 rounds, 32 tokens of each sequence alone.

| sequences | context 128 | context 4096 |
|---|---|---|
| 1 | 25.00 ms (24.00-30.00), 80 % | 60.00 ms (50.00-70.00), 50 % |
| 256 | 2.00 ms (1.95-2.50), 50 % | not run: 48.7 GB |""",
    ),
    "decode-groups": (
        with_environment(
            setting=DECODING,
            result=[
                decoded(64, 1, 1024, 3.11e9, 0.3, 0.4, 0.5, 0.45),
                decoded(64, 8, 1024, 0.47e9, 0.1, 0.2, 0.2, 0.3),
            ],
        ),
        f"""\
{MACHINE}; float32, 2 threads, 3 rounds, 32 tokens of each sequence alone.

| sequences | context | a step, groups of 1 | groups of 8 | gain, round by round \
| keys and values, groups of 1 | groups of 8 | saved |
|---|---|---|---|---|---|---|---|
| 64 | 1024 | 450 ms (400-500) | 200 ms (200-300) | **2.00** (1.50-2.50) \
| 3.11 GB | 0.47 GB | 85 % |""",
    ),
    "learner": (
        with_environment(
            setting={
                "problems": "8",
                "completions": "6",
                "length": "48",
                "prompt": "40",
                "dtype": "float32",
                "threads": "2",
                "rounds": "5",
                "micro_batch": "4",
            },
            result={
                "interlock": around(410.4, 400.0, 420.0),
                "transformers": around(150.0, 140.0, 155.0),
                "ratio": around(2.736, 2.7, 2.8),
                "share of peak": around(0.614, 0.59, 0.63),
            },
        ),
        f"""\
{MACHINE}, transformers 5.23.0; 8 x 6 completions of 48 tokens after 40, float32, 2 threads, \
5 rounds, transformers in micro-batches of 4.

| | effective tokens per second |
|---|---|
| Interlock | 410 (400-420) |
| transformers + AdamW | 150 (140-155) |
| Interlock / transformers, round by round | **2.74** (2.70-2.80) |
| Interlock, of the measured GEMM peak | 61 % (59-63) |""",
    ),
    "grpo_step": (
        with_environment(
            dtype="float32",
            trl={"micro_batch": 8, "weights": "bfloat16"},
            summary={
                "ours": {
                    "seconds": 20.4,
                    "seconds_range": [19.7, 22.0],
                    "generate_s": 7.0,
                    "ms_per_token": 7.7,
                    "peak_rss_mb": 4400.0,
                },
                "trl": {
                    "seconds": 66.9,
                    "seconds_range": [56.7, 72.6],
                    "generate_s": 17.0,
                    "ms_per_token": 25.0,
                    "peak_rss_mb": 4700.0,
                },
                "ratio": 3.13,
                "ratio_range": [2.88, 3.64],
                "ratio_per_token": 3.42,
            },
            rounds={"ours": [{}, {}, {}, {}], "trl": [{}, {}, {}, {}]},
        ),
        f"""\
{MACHINE}, transformers 5.23.0, TRL 1.16.0; float32, 4 rounds, TRL with bfloat16 weights in \
micro-batches of 8; OMP_NUM_THREADS not set.

| | seconds a step | of it generation | ms per generated token | peak memory |
|---|---|---|---|---|
| Interlock | 20.4 (19.7-22.0) | 7.0 | 7.7 | 4.6 GB |
| TRL | 66.9 (56.7-72.6) | 17.0 | 25.0 | 4.9 GB |
| TRL / Interlock, round by round | **3.13** (2.88-3.64) | | 3.42 | |""",
    ),
    "demo_seeds": (
        {
            "environment": ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
            "setting": {"recipe": "recipes/demo.toml stage.steps=20"},
            "seeds": [
                {"seed": 0, "curve": [[0, 0.078], [10, 0.633], [20, 0.727]], "minutes": 7.2},
                {"seed": 1, "curve": [[0, 0.078], [10, 0.68], [20, 0.766]], "minutes": 8.1},
                {"seed": 2, "curve": [[0, 0.078], [10, 0.609], [20, 0.625]], "minutes": 7.8},
            ],
        },
        f"""\
{MACHINE}; recipes/demo.toml stage.steps=20; OMP_NUM_THREADS 1.

| seed | before | after 10 | after 20 | minutes |
|---|---|---|---|---|
| 0 | 7.8 % | 63.3 % | 72.7 % | 7.2 |
| 1 | 7.8 % | 68.0 % | 76.6 % | 8.1 |
| 2 | 7.8 % | 60.9 % | 62.5 % | 7.8 |
| median | 7.8 % (7.8-7.8) | 63.3 % (60.9-68.0) | 72.7 % (62.5-76.6) | 7.8 (7.2-8.1) |""",
    ),
    "time_to_half": (
        with_environment(
            setting={"threads": "2", "max_steps": "40", "keep": "None", "json": "x.json"},
            result={
                "interlock": {
                    "seconds_to_half": [100.0, 120.4, 90.0],
                    "steps_to_half": [8, 10, 7],
                },
                "trl": {"seconds_to_half": [500.0, None, 630.0], "steps_to_half": [9, None, 12]},
                "ratio": [5.0, None, 7.0],
            },
        ),
        f"""\
{MACHINE}, transformers 5.23.0, TRL 1.16.0; threads 2, max steps 40.

| run | Interlock: seconds | steps | TRL: seconds | steps | TRL / Interlock |
|---|---|---|---|---|---|
| 1 | 100 | 8 | 500 | 9 | 5.00 |
| 2 | 120 | 10 | not reached | not reached | – |
| 3 | 90 | 7 | 630 | 12 | 7.00 |
| median | 100 (90-120) | 8 (7-10) | 630 (500-not reached) | 12 (9-not reached) \
| **6.00** (5.00-7.00), 2 of 3 runs |""",
    ),
    "sync": (
        with_environment(
            setting={"versions": "12", "rows": "8", "threads": "2"},
            result={
                "lr 1e-06": SYNC_RATE,
                "10 Mbit/s, lr 1e-06": {
                    "anchor, s": around(150.2, 150.2, 150.2),
                    "delta, s": around(1.46, 1.31, 1.67),
                    "plain, s": around(222.0, 222.0, 222.0),
                    "waiting, delta, steps of 10 s": around(0.127, 0.1, 0.2),
                    "waiting, plain, steps of 10 s": around(0.957, 0.9, 0.96),
                },
                "lr 1e-05": SYNC_RATE | {"changed": around(0.024, 0.0153, 0.0286)},
            },
        ),
        f"""\
{MACHINE}; 12 deltas per learning rate, 8 texts a step, 2 threads to train, one to encode and apply.

| | lr 1e-6 | lr 1e-5 |
|---|---|---|
| weights changed | 0.40 % (0.36-0.47) | 2.40 % (1.53-2.86) |
| bytes of a delta, of the full bytes | 0.53 % (0.46-0.62) | 0.53 % (0.46-0.62) |
| publish (encode, write, fsync) | 0.44 s (0.36-0.49) | 0.44 s (0.36-0.49) |
| fetch (read, apply, verify every tensor) | 0.26 s (0.23-0.33) | 0.26 s (0.23-0.33) |
| encode, GB of model per second | 0.74 (0.63-0.85) | 0.74 (0.63-0.85) |
| apply and verify, GB of model per second | 1.06 (0.96-1.16) | 1.06 (0.96-1.16) |
| bytes of the anchor, of the full bytes | 67 % | 67 % |
| publish the anchor | 2.0 s | 2.0 s |

| 10 Mbit/s, lr 1e-6 | deltas | full weights |
|---|---|---|
| one version | 1.46 s (1.31-1.67) | 222 s |
| the first version | 150 s | 222 s |
| share of wall time, steps of 10 s | 12.7 % | 95.7 % |""",
    ),
    "coordinator": (
        with_environment(
            setting={"completions": "8", "tokens": "256", "rounds": "3"},
            result=[coordinated(False, 1.63, 400.0, 3.0), coordinated(True, 2.18, 365.0, 3.3)],
        ),
        f"""\
{MACHINE}, Ray 2.60.0; groups of 8 completions x 256 tokens, 3 rounds; OMP_NUM_THREADS not set.

| workers | fleet | CPU ms a group | with ledger | groups/s with ledger \
| round trip with ledger, ms | started after |
|---|---|---|---|---|---|---|
| 4 | Ray | 1.63 (1.53-1.73) | 2.18 (2.08-2.28) | 365 (360-370) | 3.3 (3.3-3.3) | 5.5 s |""",
    ),
    "recovery": (
        with_environment(
            setting={"repeats": "5", "backoff_s": "0.2"},
            result={
                "killed": {
                    "alone": {
                        "lost": 0,
                        "stopped": [],
                        "noticed": around(0.0, 0.0, 0.01),
                        "whole": around(0.61, 0.61, 0.64),
                    },
                    "beside another": {
                        "lost": 2,
                        "stopped": ["no worker is left"],
                        "noticed": around(0.0, 0.0, 0.0),
                        "whole": around(1.2, 1.1, 1.3),
                    },
                },
                "learner killed": {
                    "alone": {
                        "lost": 0,
                        "stopped": [],
                        "noticed": None,
                        "whole": around(5.93, 5.5, 6.06),
                    }
                },
            },
        ),
        f"""\
{MACHINE}; 5 times each, backoff_s 0.2; OMP_NUM_THREADS not set.

| fault | noticed | whole, alone | whole, beside another | groups lost |
|---|---|---|---|---|
| killed | 0.00 (0.00-0.01) | 0.61 (0.61-0.64) | stops 1.20 (1.10-1.30) | 2 |
| learner killed | – | 5.93 (5.50-6.06) | – | 0 |""",
    ),
    "qualify": (
        with_environment(
            setting={"what": "levels", "threads": "2", "jobs": "1"},
            result=[
                {"device": "cpu", "level": "quick", "seconds": 70.2, "trust": "train"},
                {"device": "sim", "level": "default", "seconds": 223.6, "trust": "generate"},
            ],
        ),
        f"""\
{MACHINE}; 2 threads, 1 at a time.

| device | level | seconds | certified to |
|---|---|---|---|
| cpu | quick | 70 | train |
| sim | default | 224 | generate |""",
    ),
}
for also in ("learner-long", "learner-bfloat16", "grpo_step-bfloat16"):
    KNOWN[also] = KNOWN[also.partition("-")[0]]


def test_every_benchmark_is_known_here() -> None:
    assert sorted(KNOWN) == sorted(tables.RENDERERS)


@pytest.mark.parametrize("name", KNOWN)
def test_figures_become_exactly_this_text(name: str, tmp_path: Path) -> None:
    figures, text = KNOWN[name]
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(figures))
    assert tables.rendered(path) == text


BEFORE = b"# Caf\xc3\xa9 \xe2\x80\x93 results\r\n\r\n  prose \n<!-- rollout -->\nold | one\n"
BETWEEN = b"<!-- end rollout -->\n\n\n<!-- rollout-bfloat16 -->\n\tstays\n<!-- end rollout-bfloat16"
AFTER = BETWEEN + b" -->\n<!-- learner --><!-- end learner -->no newline"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The figures of one benchmark."""
    made = tmp_path / "bench"
    made.mkdir()
    (made / "rollout.json").write_text(json.dumps(ROLLOUT))
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "RESULTS.md"
    path.write_bytes(BEFORE + AFTER)
    return path


def run(folder: Path, results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "tables.py", folder, "--into", results]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_replaces_what_stands_between_the_markers(folder: Path, results: Path) -> None:
    done = run(folder, results)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "written: rollout",
        "left as it was: demo_seeds, time_to_half, grpo_step, grpo_step-bfloat16, "
        "rollout-bfloat16, decode, decode-groups, learner, learner-long, learner-bfloat16, sync, "
        "coordinator, recovery, qualify",
    ]
    head = BEFORE.removesuffix(b"old | one\n")
    assert results.read_bytes() == head + ROLLOUT_TEXT.encode() + b"\n" + AFTER
    assert sorted(path.name for path in results.parent.iterdir()) == ["RESULTS.md", "bench"]


def test_a_second_run_changes_nothing(folder: Path, results: Path) -> None:
    tables.update(folder, results)
    once = results.read_bytes()
    assert tables.update(folder, results) == ["rollout"]
    assert results.read_bytes() == once


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"none\n", "<!-- rollout --> stands there 0 times, not once"),
        (BEFORE + AFTER + BEFORE, "<!-- rollout --> stands there 2 times, not once"),
        (BEFORE, "<!-- end rollout --> stands there 0 times, not once"),
        (
            BEFORE + AFTER + b"<!-- end rollout -->",
            "<!-- end rollout --> stands there 2 times, not once",
        ),
        (
            b"<!-- end rollout --><!-- rollout -->",
            "<!-- end rollout --> stands before <!-- rollout -->",
        ),
    ],
    ids=["missing", "doubled", "no end", "two ends", "wrong order"],
)
def test_markers_must_be_there_once(
    folder: Path, results: Path, content: bytes, complaint: str
) -> None:
    results.write_bytes(content)
    done = run(folder, results)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{results}: {complaint}\n"
    assert results.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "learner",
            '{"environment": ',
            "Expecting value: line 1 column 17 (char 16); run its benchmark again",
        ),
        ("learner", "[]", "not this benchmark's figures (TypeError: "),
        (
            "learner",
            json.dumps(with_environment(setting={})),
            "not this benchmark's figures (KeyError: 'result')",
        ),
        (
            "qualify",
            json.dumps(with_environment(setting={"what": "healthy"}, result=[])),
            "not this benchmark's figures (ValueError: made by `qualify.py healthy`, not by "
            "`levels`)",
        ),
        ("lerner", "{}", "no benchmark of this name; known: demo_seeds, time_to_half, "),
    ],
    ids=["cut", "no object", "a key is missing", "another kind", "unknown"],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(
    folder: Path, results: Path, name: str, content: str, complaint: str
) -> None:
    path = folder / f"{name}.json"
    path.write_text(content)
    done = run(folder, results)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{path}: {complaint}")
    assert done.stderr.count("\n") == 1
    assert results.read_bytes() == BEFORE + AFTER


def test_a_missing_folder_is_one_line(results: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "nowhere", results)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path / 'nowhere'}: no such folder; `make bench` makes it\n"
    assert results.read_bytes() == BEFORE + AFTER


def test_the_real_results_take_every_table(tmp_path: Path) -> None:
    folder, results = tmp_path / "bench", tmp_path / "RESULTS.md"
    folder.mkdir()
    results.write_bytes((BENCH / "RESULTS.md").read_bytes())
    for name, (figures, _) in KNOWN.items():
        (folder / f"{name}.json").write_text(json.dumps(figures))
    assert sorted(tables.update(folder, results)) == sorted(KNOWN)
    text = results.read_text()
    for name, (_, block) in KNOWN.items():
        assert text.count(f"<!-- {name} -->\n{block}\n<!-- end {name} -->\n") == 1
