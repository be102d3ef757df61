"""A run's adapter as PEFT has it: what transformers, vLLM and SGLang load beside its base."""

import shutil
from pathlib import Path

from interlock.errors import ModelError
from interlock.export.source import Source
from interlock.export.target import new_directory
from interlock.models.checkpoint import StoredWeights
from interlock.models.peft_files import ADAPTER, CONFIG, WEIGHTS, load_adapter


def write_adapter(source: Source, target: Path) -> None:
    """Write `target`, which may be an empty directory.

    Raises ModelError when there is no adapter or it is damaged, RunError when the disk refuses.
    """
    kept = source.directory / ADAPTER
    if not kept.is_dir():
        raise ModelError(
            f"{source.directory} has no adapter: only a run with learner.lora leaves one; take "
            "--to hf"
        )
    load_adapter(kept, StoredWeights(source.directory).shapes)
    with new_directory(target) as directory:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(kept / name, directory / name)
