"""lm-eval's command line: log-likelihoods and a generation on rows of our own, without a hub.

The tokenizer is the server's own (/tokenizer_info, /tokenize): nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from reporting import BASE_URL, KEY, MODEL, report

ROWS = [
    {"question": "The capital of France is", "choices": ["Paris", "Berlin", "cheese"], "label": 0},
    {"question": "Two plus two is", "choices": ["four", "five hundred", "green"], "label": 0},
    {"question": "Das Gegenteil von heiß ist", "choices": ["kalt", "naïve 日本", "x"], "label": 0},
    {"question": "Water freezes at zero degrees", "choices": ["Celsius.", "\n\ncats"], "label": 0},
]
CHOICES = """
task: interlock_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
"""
TEXT = """
task: interlock_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 12, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def evaluated() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = directory / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        (directory / "choices.yaml").write_text(CHOICES.format(rows=rows))
        (directory / "text.yaml").write_text(TEXT.format(rows=rows))
        _run(directory)
        return {task: _samples(directory, task) for task in ("interlock_choices", "interlock_text")}


def _run(directory: Path) -> None:
    arguments = f"model={MODEL},base_url={BASE_URL}/completions,auth_token={KEY}"
    arguments += ",num_concurrent=4,max_retries=3,tokenizer_backend=auto"
    command = [
        str(Path(sys.executable).with_name("lm_eval")),
        "run",
        "--model",
        "local-completions",
    ]
    command += ["--model_args", arguments, "--tasks", "interlock_choices,interlock_text"]
    command += ["--include_path", str(directory), "--batch_size", "2"]
    command += ["--output_path", str(directory / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(directory / "hf")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    if "Using remote tokenizer" not in done.stderr + done.stdout:
        raise RuntimeError(f"not the server's tokenizer: {done.stderr[-2000:]}")


def _samples(directory: Path, task: str) -> list[dict[str, Any]]:
    (path,) = (directory / "out").rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {"arguments": each["arguments"], "responses": each["resps"], "metrics": each.get("acc")}
        for each in sorted(samples, key=lambda each: each["doc_id"])
    ]


if __name__ == "__main__":
    report({"evaluated": evaluated})
