"""schemathesis against /openapi.json: what it makes of the schema, right and wrong, is sent."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from reporting import BASE_URL, KEY, report

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance,ignored_auth,negative_data_rejection"


def fuzzed(key: str, *which: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        told = Path(directory) / "report.json"
        command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
        command += [str(_schema(directory)), "--url", BASE_URL.removesuffix("/v1")]
        command += ["--checks", CHECKS]
        command += ["-H", f"Authorization: Bearer {key}", "--seed", "1", "--max-examples", "10"]
        command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
        command += ["--report", "json", "--report-json-path", str(told), *which]
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
        if not told.exists():
            raise RuntimeError((done.stdout + done.stderr)[-4000:])
        found = json.loads(told.read_text())
        return {
            "cases": found["test_cases"]["generated"],
            "tested": found["operations"]["tested"],
            "selected": found["operations"]["selected"],
            "failures": found["failures"],
            "errors": found["errors"],
            "accepted": {
                name: sum(phase["accepted"] for phase in each.values())
                for name, each in found["valid_rates"].items()
            },
            "output": done.stdout[-6000:] if found["failures"] else "",
        }


def _schema(directory: str) -> Path:
    """As a file: with the admin's key it cannot be asked for."""
    url = BASE_URL.removesuffix("/v1") + "/openapi.json"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    path = Path(directory) / "openapi.json"
    with urllib.request.urlopen(request, timeout=60) as answer:
        path.write_bytes(answer.read())
    return path


def api() -> dict[str, Any]:
    return fuzzed(KEY, "--exclude-path-regex", "^/admin")


def admin() -> dict[str, Any]:
    return fuzzed(os.environ["INTERLOCK_ADMIN_KEY"], "--include-path-regex", "^/admin")


if __name__ == "__main__":
    report({"api": api, "admin": admin})
