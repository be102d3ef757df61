"""llama.cpp's own converter, out of the sdist of llama-cpp-python; fetched once into the cache.

pip download ──> cache/llama-cpp-python-0.3.36/ convert_hf_to_gguf.py, conversion/, gguf-py/
run ──> a process of its own, with that gguf and not ours
"""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from interlock.models.fetch import cache_dir

_VERSION = "0.3.36"
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
# The tokenizers of tests are known to nobody: both sides are told the same rule for them.
_TOLD = """
import runpy, sys
sys.path.insert(0, {place!r})
sys.path.insert(0, {place!r} + "/packages")
sys.argv = ["convert_hf_to_gguf.py", *{arguments!r}]
import conversion.base
if {rule!r}:
    conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: {rule!r}
runpy.run_path({place!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def converter() -> Path:
    """The directory it is in; skips where it cannot be had."""
    place = cache_dir() / "tests" / f"llama-cpp-python-{_VERSION}"
    if place.is_dir():
        return place
    scratch = place.with_name(f"{place.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    named = f"llama-cpp-python=={_VERSION}"
    _pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(scratch), named)
    _pip("install", "--no-deps", "--target", str(scratch / "packages"), "sentencepiece")
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and name.startswith(_WANTED):
                opened.extract(member.replace(name=name), scratch, filter="data")
    archive.unlink()
    scratch.rename(place)
    return place


def convert(place: Path, model: Path, target: Path, type_: str, rule: str | None) -> None:
    """`rule`: the pre-tokenizer it is told; None: it looks for itself."""
    arguments = [str(model), "--outfile", str(target), "--outtype", type_.lower()]
    script = _TOLD.format(place=str(place), arguments=arguments, rule=rule)
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=280)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", "--no-input", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    if done.returncode:
        pytest.skip(f"pip {' '.join(arguments[:1])}: {done.stderr.strip()[-200:]}")
