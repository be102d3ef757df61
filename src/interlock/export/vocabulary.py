"""The tokenizer inside a GGUF file: its tokens and their kinds, merges, end tokens, chat template.

tokenizer.json, … ──Tokenizer──┬─ every id: spelling and kind; [PADi] where the model has rows
                               │  and the tokenizer no token
                               ├─ pretokenizers.py: the rule, or a refusal
                               └─ template: the one that our own engine renders
──gguf.SpecialVocab──> merges, special tokens, what frames a text
"""

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers import AddedToken

from interlock.errors import ModelError
from interlock.export import pretokenizers
from interlock.models.architecture import Architecture
from interlock.models.files import inside, read_object
from interlock.models.tokenizer import Tokenizer
from interlock.text import error_line

# What llama.cpp takes for the end of an answer by its spelling, whatever the file says.
_KNOWN_ENDS = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
}


def add_vocabulary(writer: GGUFWriter, directory: Path, arch: Architecture) -> None:
    """Raises ModelError when llama.cpp would read other tokens than the model was trained on."""
    if inside(directory, "tokenizer.model") is not None:
        raise ModelError(
            f"{directory} has a SentencePiece tokenizer.model, which is not exported to GGUF; "
            "use --to hf"
        )
    tokenizer = Tokenizer.load(directory)
    rule = _rule(tokenizer, directory)
    settings = read_object(directory, "tokenizer_config.json") or {}
    if arch.family == "llama" and isinstance(prefix := settings.get("add_prefix_space"), bool):
        writer.add_add_space_prefix(prefix)
    tokens, kinds = _tokens(tokenizer, arch.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = _special(tokenizer, directory)
    _add_ends(special, tokenizer, tokens, directory)
    special.add_to_gguf(writer, quiet=True)
    if arch.family == "llama" and arch.vocab == 49152:  # SmolLM2 and Granite
        writer.kv_data[0].pop("tokenizer.ggml.add_bos_token", None)
        writer.add_add_bos_token(False)


def _rule(tokenizer: Tokenizer, directory: Path) -> str:
    digest = pretokenizers.digest(tokenizer.framed)
    if digest not in pretokenizers.KNOWN:
        raise ModelError(
            f"llama.cpp knows no pre-tokenizer that splits text as {directory}/tokenizer.json does "
            f"(digest {digest[:16]}…); give the base model's tokenizer files, or use --to hf"
        )
    return pretokenizers.KNOWN[digest]


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[TokenType]]:
    """Spelling and kind of every id that the model has a row for."""
    entries = tokenizer.entries()
    tokens, kinds = [], []
    for index in range(rows):
        token, added = entries.get(index, (f"[PAD{index}]", None))
        kind = TokenType.NORMAL if index in entries else TokenType.UNUSED
        if added is not None:
            token, kind = _added(tokenizer, token, added)
        tokens.append(token)
        kinds.append(kind)
    return tokens, kinds


def _added(tokenizer: Tokenizer, token: str, added: AddedToken) -> tuple[str, TokenType]:
    """llama.cpp looks for these in the text itself, as it looks after the model's normalizer."""
    if not added.normalized:
        token = tokenizer.decode(tokenizer.encode(token), skip_special=False)
    if added.special or _looks_special(token):
        return token, TokenType.CONTROL
    return token.replace("\u2581", " "), TokenType.USER_DEFINED


def _looks_special(token: str) -> bool:
    """Some models do not mark as special what is; llama.cpp's converter goes by these forms."""
    pairs = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    named = token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(token.startswith(a) and token.endswith(b) for a, b in pairs)


def _special(tokenizer: Tokenizer, directory: Path) -> SpecialVocab:
    """Merges, the ids of roles, what is put around a text, and the chat template."""
    try:
        special = SpecialVocab(directory, load_merges=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the tokenizer files of {directory} are damaged ({error_line(error)}); fetch the "
            "model again"
        ) from None
    if not special.merges:
        raise ModelError(
            f"{directory}/tokenizer.json has no merges, and llama.cpp loads none without; use "
            "--to hf"
        )
    _add_frame(special, tokenizer, read_object(directory, "tokenizer.json") or {})
    if isinstance(special.chat_template, str | None) or inside(directory, "chat_template.jinja"):
        special.chat_template = tokenizer.template
    return special


def _add_frame(special: SpecialVocab, tokenizer: Tokenizer, tree: dict[str, Any]) -> None:
    """Whether texts begin with BOS and end with EOS: as the tokenizer does, where it says how."""
    processor = tree.get("post_processor")
    if not isinstance(processor, dict):
        return
    each = processor.get("processors") or [processor]
    if any(part.get("type") == "ByteLevel" for part in each):
        special.add_special_token.setdefault("bos", False)
        special.add_special_token.setdefault("eos", False)
    plain, framed = tokenizer.encode("a"), tokenizer.framed("a")
    for role, differs in (("bos", plain[:1] != framed[:1]), ("eos", plain[-1:] != framed[-1:])):
        if role in special.add_special_token:
            special.add_special_token[role] = differs


def _add_ends(
    special: SpecialVocab, tokenizer: Tokenizer, tokens: list[str], directory: Path
) -> None:
    """Every token that ends an answer for us must end one for llama.cpp, which has three places."""
    ids = special.special_token_ids
    if "eos" not in ids and tokenizer.eos_ids:
        ids["eos"] = min(tokenizer.eos_ids) if tokenizer.eos_id is None else tokenizer.eos_id
    others = sorted(tokenizer.eos_ids - {ids.get("eos")})
    others = [index for index in others if tokens[index] not in _KNOWN_ENDS]
    if len(others) > 2:
        raise ModelError(
            f"{directory} ends answers with {len(others)} tokens that llama.cpp does not know "
            f"({', '.join(repr(tokens[index]) for index in others)}), and a GGUF file can name two "
            "beside EOS; use --to hf"
        )
    ids |= dict(zip(("eot", "eom"), others, strict=False))
