"""A run's adapter as PEFT has it: what transformers, vLLM and SGLang load beside its base.

Source ──> NAME/: adapter_model.safetensors, and adapter_config.json and README.md with the base's
           name on the hub; of a base on this machine the last part of its path
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

from interlock import hub
from interlock.errors import ModelError
from interlock.export.card import rendered, run_card
from interlock.export.source import Source
from interlock.export.target import new_directory
from interlock.models.checkpoint import StoredWeights
from interlock.models.files import read_object
from interlock.models.peft_files import ADAPTER, CONFIG, WEIGHTS, load_adapter
from interlock.rundir import RunDir


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
    config = read_object(kept, CONFIG) or {}
    with new_directory(target) as directory:
        shutil.copyfile(kept / WEIGHTS, directory / WEIGHTS)
        if source.run is not None:
            front, text = run_card(source)
            told = str(config.get("base_model_name_or_path"))
            front["library_name"] = "peft"
            config["base_model_name_or_path"] = Path(told).name
            if told in _names(source.run) and "base_model" in front:
                config["base_model_name_or_path"] = front["base_model"]
            (directory / "README.md").write_text(rendered(front, text), encoding="utf-8")
        whole = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG).write_text(whole, encoding="utf-8")


def _names(run: Path) -> tuple[str, str]:
    """Of the recipe's model, which is not the base where a stage made one of fewer layers."""
    with closing(RunDir.read(run)) as view:
        path = str(view.config["model"]["path"])
    return path, hub.parts(path)[0]
