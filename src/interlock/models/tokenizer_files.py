"""What the files of a directory say of its tokenizer, and what they say wrongly.

tokenizer_settings   tokenizer_config.json, with what its older form keeps elsewhere
roles_of             bos_token, eos_token, …
open_backend         tokenizer.json, with the tokens that the others add
template_text        the chat template
end_ids              eos_token_id of a configuration

All raise ModelError, which names the file.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from interlock.errors import ModelError
from interlock.models.detokenizer import no_panic
from interlock.models.files import inside, read_object, read_text
from interlock.text import error_line, one_line


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json; special_tokens_map.json counts only beside the older form of it."""
    config = read_object(directory, "tokenizer_config.json") or {}
    if "added_tokens_decoder" in config:
        return config
    return config | (read_object(directory, "special_tokens_map.json") or {})


def roles_of(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as text; the files hold a string or an object with `content`."""
    roles = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in roles.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def open_backend(
    directory: Path, config: dict[str, Any], roles: dict[str, str]
) -> tokenizers.Tokenizer:
    """tokenizer.json with the added and the special tokens of tokenizer_config.json."""
    path = inside(directory, "tokenizer.json")
    if path is None:
        raise ModelError(
            f"{directory} has no tokenizer.json; save its tokenizer again with transformers"
        )
    text = read_text(path)
    try:
        with no_panic():
            backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        problem = error_line(error, 200)
        raise ModelError(f"cannot read {path}: {problem}; fetch the model again") from None
    backend.no_truncation()
    backend.no_padding()
    try:
        tokens = config.get("added_tokens_decoder") or {}
        added = sorted((int(index), AddedToken(**token)) for index, token in tokens.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{directory} has damaged added_tokens_decoder entries ({error_line(error, 90)}); "
            "fetch the model again"
        ) from None
    for index, token in added:
        backend.add_tokens([token])
        if (found := backend.token_to_id(token.content)) != index:
            raise ModelError(
                f"{directory} gives the token {one_line(repr(token.content), 60)} the id {index} "
                f"in tokenizer_config.json and {found} in tokenizer.json; use those of one model"
            )
    known = [token for token in roles.values() if backend.token_to_id(token) is not None]
    backend.add_special_tokens(known)
    return backend


def template_text(directory: Path, config: dict[str, Any], replacement: str | None) -> str | None:
    """The Jinja text: the user's file, else chat_template.jinja, else tokenizer_config.json's."""
    if replacement:
        remedy = "give [model] chat_template a Jinja file"
        return read_text(Path(replacement).expanduser(), remedy)
    if path := inside(directory, "chat_template.jinja"):
        return read_text(path)
    text = config.get("chat_template")
    if isinstance(text, list):
        named = {str(e.get("name")): e.get("template") for e in text if isinstance(e, dict)}
        if "default" not in named:
            raise ModelError(
                f"{directory} has the chat templates {one_line(str(sorted(named)), 100)} and no "
                "default; put the one you want in a file and set [model] chat_template to it"
            )
        text = named["default"]
    if text is not None and not isinstance(text, str):
        raise ModelError(
            f"the chat_template in {directory}/tokenizer_config.json is no text; set [model] "
            "chat_template to a Jinja file"
        )
    return text


def end_ids(config: dict[str, Any], directory: Path) -> set[int]:
    """eos_token_id of config.json or generation_config.json: absent, one id or a list."""
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ModelError(
            f"eos_token_id {one_line(repr(value), 60)} in {directory} is no list of token ids; use "
            "the config.json and generation_config.json that came with the model"
        )
    return set(ids)
