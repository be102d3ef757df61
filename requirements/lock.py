"""Writes the locks here: the pins of ../constraints*.txt with the hashes of their files.

    make lock      # needs uv and the network; a pin itself is changed in the constraints, by hand

    build.txt <- demo.txt <- test.txt <- lint.txt, bench.txt    each has what those before it lack
    cuda.txt     what torch from PyPI asks for beside on Linux
    vllm.txt     the environment of `make vllm`, whole
    clients/     of each client that `make clients` tries, from its NAME.in: whole, but for CUDA's
    torch-cpu.txt is written by hand: PyPI does not have PyTorch's CPU build

Each pin has the hashes of all files of its version, so one lock serves Linux and macOS alike.
uv resolves; the locks are installed with --no-deps, because whether CUDA's packages are wanted
depends on the build of torch that pip finds, which no marker tells.
"""

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).parent
BELOW = {"build": None, "demo": "build", "test": "demo", "lint": "test", "bench": "test"}
NOT_OURS = re.compile(
    r";.*== '(win32|emscripten)'"
)  # packages of systems that Interlock is not for

Lock = dict[str, str]  # name: its lines


def main() -> None:
    cuda = _names("constraints-cuda.txt")
    pinned = _names("constraints.txt") | cuda
    whole: dict[str | None, Lock] = {None: {}}
    of_cuda: Lock = {}
    for name, below in BELOW.items():
        whole[name] = _resolve("--group" if name == "build" else "--extra", name)
        if unpinned := whole[name].keys() - pinned:
            sys.exit(f"pin in constraints.txt first: {', '.join(sorted(unpinned))}")
        of_cuda |= {key: lines for key, lines in whole[name].items() if key in cuda}
        _write(name, below, whole[name], whole[below].keys() | cuda)
    _write("cuda", None, of_cuda)
    _write("vllm", "torch-cpu", _vllm())
    for client in sorted((HERE / "clients").glob("*.in")):
        lock = _uv(f"requirements/clients/{client.name}", "--universal")
        ours = {key: lines for key, lines in lock.items() if not NOT_OURS.search(lines)}
        _write(f"clients/{client.stem}", None, ours, cuda)


def _resolve(kind: str, name: str) -> Lock:
    """An extra or group of pyproject.toml with all that it depends on, on every platform."""
    of = [] if kind == "--group" else ["pyproject.toml"]
    constraints = ["-c", "constraints.txt", "-c", "constraints-cuda.txt"]
    lock = _uv(*of, kind, name, *constraints, "--universal")
    return {key: lines for key, lines in lock.items() if not NOT_OURS.search(lines)}


def _vllm() -> Lock:
    """The pins as they are, less torch: uv would not find the one that vLLM asks for."""
    pins = (HERE.parent / "constraints-vllm.txt").read_text()
    return _uv("-", "--no-deps", given=re.sub(r"^torch==.*\n", "", pins, flags=re.MULTILINE))


def _write(name: str, below: str | None, lock: Lock, but: Collection[str] = ()) -> None:
    first = f"-r {below}.txt\n" if below else ""
    text = "".join(f"{lock[key]}\n" for key in sorted(lock) if key not in but)
    (HERE / f"{name}.txt").write_text(f"# Written by `make lock`.\n{first}{text}")


def _uv(*arguments: str, given: str | None = None) -> Lock:
    command = ["uv", "--no-config", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", *arguments]
    done = subprocess.run(
        command, cwd=HERE.parent, input=given, stdout=subprocess.PIPE, text=True, check=True
    )
    entries = re.findall(r"^[^ #].*(?:\n .*)*", done.stdout, re.MULTILINE)
    lock: Lock = {}
    for entry in entries:  # one for each range of Pythons, where a package has several
        name = entry.partition("==")[0]
        lock[name] = f"{lock[name]}\n{entry}" if name in lock else entry
    return lock


def _names(constraints: str) -> set[str]:
    """As uv writes them: lower case, hyphens."""
    text = (HERE.parent / constraints).read_text().lower().replace("_", "-")
    return set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE))


if __name__ == "__main__":
    main()
