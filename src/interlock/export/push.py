"""Puts an export on a Hugging Face hub, or one with its interface (HF_ENDPOINT).

    NAME/ or NAME.gguf ──huggingface_hub──> org/name, private when it is made

The token is the client's own: HF_TOKEN, or what `hf auth login` keeps. It is in no argument, no
message and no file of ours.
"""

import re
from pathlib import Path

from interlock.errors import ConfigError, UserError
from interlock.text import error_headline, hide_credentials

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TOKEN = re.compile(r"hf_\w+")


def check_name(name: str) -> None:
    """Raise ConfigError now on what could not be pushed to, UserError without the client."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--push {name!r} is no name on the hub; write org/name")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError("--push needs pip install 'interlock[hub]'") from None


def push(written: Path, name: str) -> str:
    """Upload a directory or a file. -> where it is now

    Raises UserError when the hub does not take it; what was written stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        place = api.create_repo(name, private=True, exist_ok=True)
        if written.is_dir():
            api.upload_folder(repo_id=name, folder_path=written)
        else:
            api.upload_file(repo_id=name, path_or_fileobj=written, path_in_repo=written.name)
    except Exception as error:  # the client raises its own, its HTTP library's, OSError, ValueError
        told = _TOKEN.sub("…", hide_credentials(error_headline(error, 200)))
        raise UserError(
            f"{written} is written, but the hub did not take {name} ({told}); check the network "
            "and HF_TOKEN, or upload it yourself"
        ) from None
    return str(place)
