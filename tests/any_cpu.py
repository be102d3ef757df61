"""The numerical rooms' tests under the kernels of other CPUs, as far as this one can run them.

    python tests/any_cpu.py [--quick] [PATH ...]

torch, oneDNN and MKL choose kernels by what a CPU offers, and each choice adds numbers up in an
order of its own. They can be told to do as on a lesser CPU; none can be given what it lacks, such
as AVX-512 or bfloat16 products. So this is no substitute for a run on another machine. On arm64,
whose kernels have other names, it is untried.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
KERNELS: dict[str, dict[str, str]] = {
    "plain": {},
    "ATen without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL as on any x86": {"MKL_CBWR": "COMPATIBLE"},
}
THREADS = (1, 2)
ROOMS = ("models", "engine", "learner", "parity", "qualify", "test_work.py")
LIMIT_S = 1800.0  # of one configuration; ten minutes are usual on two cores

# The quick form: what computes much in little time, each choice of kernels in one or two threads.
QUICK = (
    *("models/test_layers.py", "models/test_moe.py", "engine/test_kv_cache.py"),
    *("engine/test_prepacked.py", "learner/test_loss.py", "learner/test_learner.py"),
    *("learner/test_corrections.py", "learner/test_optimizer.py"),
)
QUICK_LIMIT_S = 60.0


class Ran(NamedTuple):
    kernels: str
    threads: int
    result: str  # "passed", or in which way not
    seconds: float
    log: Path

    def row(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in KERNELS[self.kernels].items())
        told = f"{self.kernels:<18} {settings:<28} {self.threads:>7}  "
        return told + f"{self.seconds:6.0f} s  {self.result}"


TITLE = f"{'kernels':<18} {'environment':<28} {'threads':>7}  {'time':>8}  result"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a selection, in about a minute")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="these, under tests/, instead")
    asked = parser.parse_args()
    paths = asked.paths or (QUICK if asked.quick else ROOMS)
    limit_s = QUICK_LIMIT_S if asked.quick else LIMIT_S
    logs = Path(tempfile.mkdtemp(prefix="any-cpu-"))
    print(TITLE, flush=True)
    found = []
    for number, kernels in enumerate(KERNELS):
        for threads in THREADS[number % 2 :][:1] if asked.quick else THREADS:
            found.append(ran(kernels, threads, paths, logs, limit_s))
            print(found[-1].row(), flush=True)
    bad = [each for each in found if each.result != "passed"]
    for each in bad:
        last = each.log.read_text(errors="replace").splitlines()[-40:]
        print(f"\n{each.kernels}, threads: {each.threads}; the end of {each.log}:", *last, sep="\n")
    if bad:
        print("", TITLE, *(each.row() for each in found), sep="\n")
    else:
        shutil.rmtree(logs)
    return bool(bad)


def ran(kernels: str, threads: int, paths: Sequence[str], logs: Path, limit_s: float) -> Ran:
    choices = {name for each in KERNELS.values() for name in each}
    environment = {name: value for name, value in os.environ.items() if name not in choices}
    environment |= KERNELS[kernels] | {"OMP_NUM_THREADS": str(threads)}
    environment["OMP_WAIT_POLICY"] = "passive"  # spinning, where cores are few, takes minutes
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not gpu and not chaos"]
    log, begun = logs / f"{kernels.replace(' ', '-')}-{threads}.txt", time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *(str(TESTS / path) for path in paths)],
            cwd=TESTS.parent,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = process.wait(limit_s)
            result = "passed" if ended == 0 else f"FAILED, exit code {ended}"
        except subprocess.TimeoutExpired:
            result = f"FAILED, not done in {limit_s:g} s"
        finally:
            if process.poll() is None:  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ran(kernels, threads, result, time.monotonic() - begun, log)


if __name__ == "__main__":
    sys.exit(main())
