"""A run's adapter as PEFT has it: what transformers, vLLM and SGLang load beside its base.

Source ──> NAME/: adapter_model.safetensors, and adapter_config.json and README.md with the base's
           name on the hub; of a base on this machine the last part of its path
"""

import json
import shutil
from pathlib import Path

from interlock.errors import ModelError
from interlock.export.card import rendered, run_card
from interlock.export.source import Source
from interlock.export.target import new_directory
from interlock.models.checkpoint import StoredWeights
from interlock.models.files import read_object
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
    config = read_object(kept, CONFIG) or {}
    with new_directory(target) as directory:
        shutil.copyfile(kept / WEIGHTS, directory / WEIGHTS)
        if source.run is not None:
            front, text = run_card(source)
            path = Path(str(config.get("base_model_name_or_path")))
            config["base_model_name_or_path"] = front.get("base_model", path.name)
            front["library_name"] = "peft"
            (directory / "README.md").write_text(rendered(front, text), encoding="utf-8")
        told = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG).write_text(told, encoding="utf-8")
