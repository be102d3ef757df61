"""guidellm's command line: a short load of synthetic prompts at two rates, streamed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import BASE_URL, KEY, MODEL, report

STREAMS, REQUESTS = [1, 8], 16
PROMPT, OUTPUT = 48, 12  # tokens


def load(route: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "benchmarks.json"
        _run(route, report, Path(directory))
        return {"runs": [_figures(each) for each in json.loads(report.read_text())["benchmarks"]]}


def _run(route: str, report: Path, directory: Path) -> None:
    backend = {"kind": "openai_http", "target": BASE_URL, "model": MODEL, "api_key": KEY}
    tokenizer = {"kind": "huggingface_auto", "model": os.environ["INTERLOCK_TOKENIZER"]}
    data = {"kind": "synthetic_text", "prompt_tokens": PROMPT, "output_tokens": OUTPUT}
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-progress"]
    command += ["--backend", json.dumps(backend | {"request_format": route})]
    command += ["--tokenizer", json.dumps(tokenizer), "--data", json.dumps(data)]
    command += ["--profile", json.dumps({"kind": "concurrent", "streams": STREAMS})]
    command += ["--constraint", json.dumps({"kind": "max_requests", "count": REQUESTS})]
    command += ["--output", json.dumps({"kind": "json", "path": str(report)})]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-4000:])


def _figures(run: dict[str, Any]) -> dict[str, Any]:
    metrics = run["metrics"]
    totals = metrics["request_totals"]
    found = {name: totals[name] for name in ("successful", "incomplete", "errored")}
    for name, told in (
        ("prompt_token_count", "prompt"),
        ("output_token_count", "output"),
        ("time_to_first_token_ms", "first_ms"),
        ("inter_token_latency_ms", "between_ms"),
        ("output_tokens_per_second", "tokens_per_s"),
    ):
        found[told] = metrics[name]["successful"]["mean"]
    return found


if __name__ == "__main__":
    report({"chat": lambda: load("/v1/chat/completions"), "text": lambda: load("/v1/completions")})
