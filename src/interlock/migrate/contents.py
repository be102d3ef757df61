"""What of a run, and of the machine that it is on, goes into a bundle.

run/    config, manifest, figures, cost, events, ledger, newest checkpoint, what stages made
model/  the model directory, unless it is the hub's, which is named with its revision
files/  data, verifiers, prices and the plan that the config names, a folder for each setting
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from interlock import hub
from interlock.config.origins import of_stage
from interlock.errors import RunError
from interlock.models.fetch import find_model
from interlock.rundir import RunDir
from interlock.tasks.data import find
from interlock.tasks.user_verifier import sources
from interlock.text import one_line

Tell = Callable[[str], None]
_RUN_FILES = ("manifest.json", "config.json", "config-history.jsonl", "metrics.jsonl")
_RUN_FOLDERS = ("stages", "data", "teachers")
_OF_A_MODEL = {".json", ".safetensors", ".jinja", ".txt", ".model"}
# Settings of a stage that name files; "*" is every table of a list.
_NAMES = (
    "data",
    "mix.*.data",
    "task.*.options.path",
    "task.*.options.verifier",
    "task.*.reward.*.function",
    "teacher.*.model",
)
_OF_THE_RUN = ("prices", "plan")  # settings of the whole run that name a file
_FUNCTIONS = ("verifier", "function")  # "file.py:function"


class Contents(NamedTuple):
    files: dict[str, Path]  # by their names in the bundle
    settings: dict[str, str]  # as BundleList's


def contents(run: RunDir, ledger: Path, tell: Tell) -> Contents:
    """`ledger`: a copy of the run's. `tell` is told what has to be there already on the other
    machine. Raises UserError when something that the config names is gone.
    """
    found = Contents(dict(_of_run(run, ledger)), {})
    for setting, value in _named(run.config):
        name = f"files/{len(found.settings)}"
        if value.startswith(hub.PREFIX) or not _names_files(setting, value):
            continue
        placed, own = _files(setting, value)
        found.files.update({f"{name}/{inside}": path for inside, path in own.items()})
        found.settings[setting] = f"{name}/{placed}".rstrip("/")
    path = run.config["model"]["path"]
    if path.startswith(hub.PREFIX):
        tell(f"{path} is fetched from the hub on the other machine")
    else:
        model = find_model(path, tell)
        found.files.update({f"model/{inside}": each for inside, each in _of_model(model).items()})
        found.settings["model.path"] = "model"
    template = run.config["model"].get("chat_template")
    if template:
        found.files["files/chat_template.jinja"] = _there("model.chat_template", template)
        found.settings["model.chat_template"] = "files/chat_template.jinja"
    for index, stage in enumerate(run.config.get("stage", [])):
        if (origin := stage.get("from")) and Path(origin).expanduser().exists():
            tell(f"stage {index} starts from {origin}, which has to be there on the other machine")
    return found


def placed(config: dict[str, Any], where: Mapping[str, Path]) -> None:
    """Let settings, by their dotted paths, name files at another place."""
    for setting, path in where.items():
        *parts, last = setting.split(".")
        node: Any = config
        for part in parts:
            node = node[int(part)] if isinstance(node, list) else node[part]
        function = node[last].rpartition(":")[2] if last in _FUNCTIONS else ""
        node[last] = f"{path}:{function}" if function else str(path)


def _of_run(run: RunDir, ledger: Path) -> Iterator[tuple[str, Path]]:
    yield "run/ledger.sqlite", ledger
    for name in (*_RUN_FILES, "events.jsonl", "cost.json", "plan.json"):
        if (run.path / name).is_file():
            yield f"run/{name}", run.path / name
    newest = run.checkpoints()[-1].path
    for folder in (newest, *(run.path / name for name in _RUN_FOLDERS)):
        for path in _below(folder):
            yield f"run/{path.relative_to(run.path).as_posix()}", path


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that name files, with what they say."""
    for name in _OF_THE_RUN:
        yield from _matches(config, [name], "")
    for index, stage in enumerate(config.get("stage", [])):
        for pattern in _NAMES:
            yield from _matches(stage, pattern.split("."), f"stage.{index}")


def _matches(node: Any, parts: list[str], path: str) -> Iterator[tuple[str, str]]:
    if not parts:
        if isinstance(node, str) and node:
            yield path, node
        return
    if parts[0] == "*":
        for index, each in enumerate(node or []):
            yield from _matches(each, parts[1:], f"{path}.{index}")
    elif isinstance(node, dict) and parts[0] in node:
        yield from _matches(node[parts[0]], parts[1:], f"{path}.{parts[0]}".lstrip("."))


def _names_files(setting: str, value: str) -> bool:
    """It names no earlier stage, and nothing that Interlock brings itself. Raises RunError when the
    files are not there.
    """
    path = value.rpartition(":")[0] if setting.endswith(_FUNCTIONS) else value
    if not path or of_stage(value) is not None:
        return False
    if setting.endswith("model"):  # or a model by its name
        return Path(path).expanduser().exists()
    _there(setting, path)
    return True


def _there(setting: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise RunError(
            f"{setting} names {one_line(path, 300)}, which is not there; put it back, or bundle "
            "from where the run was begun: that is where its paths begin"
        )
    return found


def _files(setting: str, value: str) -> tuple[str, dict[str, Path]]:
    """What the setting is to name, and the files by their names beside it."""
    if setting.endswith(_FUNCTIONS):
        every = sources(value)
        folder = every[0].resolve().parent
        names = {os.path.relpath(each.resolve(), folder): each for each in every}
        return every[0].name, {name: each for name, each in names.items() if ".." not in name}
    path = Path(value).expanduser()
    if setting.endswith("model"):
        return "", _of_model(find_model(value))
    if path.is_file():
        return path.name, {path.name: path}
    data = find(value)
    every = [*data.train, *data.test]
    return "", {each.relative_to(path).as_posix(): each for each in every}


def _of_model(directory: Path) -> dict[str, Path]:
    inside = sorted(directory.iterdir())
    return {each.name: each for each in inside if each.suffix in _OF_A_MODEL and each.is_file()}


def _below(folder: Path) -> list[Path]:
    """Its files at any depth; none of another writer's temporary ones."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if not path.name.startswith(".tmp-")]
