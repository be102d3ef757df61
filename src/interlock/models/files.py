"""The files of a model directory, which somebody else made: none leads out of it, none is endless.

    inside       the path of a file that lies in the directory, or in its Hugging Face hub cache
    read_text    a small one, whole
    read_object  the JSON object in it
    copy         the files beside the weights, which go into another directory

Weights are read by stored.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from interlock.errors import ModelError
from interlock.regular import read_regular
from interlock.text import error_line, one_line

_COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_MOST_BYTES = 64 << 20  # of JSON and templates; the largest known are some megabytes


def inside(directory: Path, name: str) -> Path | None:
    """`directory`/`name`; None when there is no such file.

    The hub's cache keeps models--org--name/snapshots/<revision>/<file> as links into
    models--org--name/blobs. Raises ModelError on a link to anywhere else.
    """
    path, root = directory / name, directory.resolve()
    homes = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        homes.append(root.parents[1] / "blobs")
    try:
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise ModelError(f"{path} leads out of the model directory; put the file itself there")
        return path if path.is_file() else None
    # RuntimeError: links in a circle; ValueError: a name that no file can have.
    except (OSError, RuntimeError, ValueError) as error:
        shown = one_line(str(path), 200)
        raise ModelError(
            f"cannot read {shown}: {error_line(error, 200)}; fetch the model again"
        ) from None


def read_text(path: Path, remedy: str = "fetch the model again") -> str:
    """Raises ModelError when the file cannot be read, is no UTF-8 or is far too long."""
    try:
        return read_regular(path, _MOST_BYTES).decode("utf-8")
    except PermissionError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; let this user read it") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
        shown = one_line(str(path), 200)
        raise ModelError(f"cannot read {shown}: {error_line(error, 300)}; {remedy}") from None


def read_object(directory: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in `directory`/`name`, None when there is no such file. Raises ModelError."""
    path = inside(directory, name)
    if path is None:
        return None
    try:
        text = read_text(path)
        tree = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair is no text to any library
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}; fetch the model again") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the model again")
    return tree


def check_companions(directory: Path) -> None:
    """Raise ModelError now on what could not be copied beside the weights that a run ends with."""
    for name in _COMPANIONS:
        inside(directory, name)


def copy(source: Path, directory: Path) -> None:
    """Copy the files beside the weights of `source`. Raises ModelError on one that leads out."""
    for name in _COMPANIONS:
        if (path := inside(source, name)) is not None:
            shutil.copyfile(path, directory / name)
