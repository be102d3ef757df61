"""The tokenizer of a GGUF file: a byte-level BPE whose rule for splitting text is known here.

    tokens, merges ──────────┐
    tokenizer.ggml.pre ──RULES┴──> tokenizer.json
    kinds, roles, template ──────> tokenizer_config.json

A rule that is not in the table is refused, never guessed: on other tokens than it was trained on a
model answers worse, and nothing says so. SentencePiece vocabularies ("llama") are refused too.
"""

from collections.abc import Callable
from typing import Any

from gguf import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from interlock.errors import ModelError
from interlock.models.detokenizer import no_panic
from interlock.models.from_gguf.header import GgufFile, told
from interlock.text import error_line, one_line

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_ENDS = ("eos", "eot", "eom")  # what ends an answer
# As published in the tokenizer.json of Llama 3 and of Qwen2: they differ in how digits group.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _smollm(tokenizer: Tokenizer) -> None:
    """Every digit alone, then GPT-2's regular expression."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def _gpt2(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)


def _llama3(tokenizer: Tokenizer) -> None:
    _split(tokenizer, r"\p{N}{1,3}")


def _qwen2(tokenizer: Tokenizer) -> None:
    """With composed characters, as published; llama.cpp leaves that out."""
    tokenizer.normalizer = normalizers.NFC()
    _split(tokenizer, r"\p{N}")


def _r1_qwen(tokenizer: Tokenizer) -> None:
    _split(tokenizer, r"\p{N}")


def _split(tokenizer: Tokenizer, digits: str) -> None:
    words = Regex(_WORDS.format(digits=digits))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


RULES: dict[str, Callable[[Tokenizer], None]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": _llama3,
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _r1_qwen,
}
_WHOLE_FIRST = {"llama-bpe"}  # a word that is a token is that, whatever the merges say
_BEGUN = {"llama-bpe"}  # texts begin with BOS where the file does not say


def tokenizer_of(file: GgufFile) -> tuple[Tokenizer, dict[str, Any], dict[str, Any]]:
    """The tokenizer, its `tokenizer_config.json`, and the ids of config.json.

    Raises ModelError for a tokenizer that is not known here, or is not whole.
    """
    found = file.metadata
    model, rule = found.get("tokenizer.ggml.model"), found.get("tokenizer.ggml.pre")
    known = isinstance(model, str) and model == "gpt2"
    if not known or not isinstance(rule, str) or rule not in RULES:
        shown = one_line(repr((model, rule)), 60)
        raise ModelError(
            f"{file.path}: GGUF tokenizer {shown} is not read, only 'gpt2' with "
            f"{', '.join(RULES)}; give its Hugging Face directory"
        )
    tokens, kinds = _tokens(file)
    used = [token for token, kind in zip(tokens, kinds, strict=True) if kind != TokenType.UNUSED]
    tokenizer = _bpe(
        file, {t: i for i, t in enumerate(tokens) if kinds[i] != TokenType.UNUSED}, rule
    )
    if len(used) != len(set(used)):
        raise file.error("a token stands twice in its vocabulary")
    special = [i for i, kind in enumerate(kinds) if kind == TokenType.CONTROL]
    own = [i for i, kind in enumerate(kinds) if kind == TokenType.USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(tokens[i], normalized=False) for i in special])
    tokenizer.add_tokens([AddedToken(tokens[i], normalized=False) for i in own])
    ids = {ours: _role(file, theirs, tokens) for ours, theirs in _ROLES.items()}
    bos = ids["bos"]
    begun = told(file, "tokenizer.ggml.add_bos_token", bool, rule in _BEGUN)
    if begun and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]}:0 $A:0",
            pair=f"{tokens[bos]}:0 $A:0 {tokens[bos]}:1 $B:1",
            special_tokens=[(tokens[bos], bos)],
        )
    return tokenizer, _settings(file, tokens, special, own, ids), _ids(file, tokens, ids)


def _tokens(file: GgufFile) -> tuple[list[str], list[int]]:
    """Spelling and kind of every id."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise file.error("it lacks the metadata key 'tokenizer.ggml.tokens', or has no list there")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return tokens, [int(TokenType.NORMAL)] * len(tokens)
    if isinstance(kinds, list | str) or not hasattr(kinds, "tolist") or len(kinds) != len(tokens):
        raise file.error("tokenizer.ggml.token_type is not as long as tokenizer.ggml.tokens")
    return tokens, kinds.tolist()


def _bpe(file: GgufFile, vocabulary: dict[str, int], rule: str) -> Tokenizer:
    merges = file.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise file.error("it lacks the metadata key 'tokenizer.ggml.merges', or has no list there")
    pairs = []
    for merge in merges:
        place = merge.find(" ", 1)  # a piece may itself begin with a space
        if place < 0:
            raise file.error(f"merge {one_line(repr(merge), 40)} is no pair")
        pairs.append((merge[:place], merge[place + 1 :]))
    try:
        with no_panic():
            bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule in _WHOLE_FIRST)
    except Exception as error:  # of the library, which has one class for all
        raise file.error(f"its merges do not fit its tokens ({error_line(error)})") from None
    tokenizer = Tokenizer(bpe)
    RULES[rule](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _role(file: GgufFile, role: str, tokens: list[str]) -> int | None:
    """The id of a role; None: it has none."""
    index: int | None = told(file, f"tokenizer.ggml.{role}_token_id", int)
    if index is not None and not 0 <= index < len(tokens):
        raise file.error(f"tokenizer.ggml.{role}_token_id is {index}, no token")
    return index


def _ids(file: GgufFile, tokens: list[str], ids: dict[str, int | None]) -> dict[str, Any]:
    """bos_token_id, eos_token_id (a list where several end an answer) and pad_token_id."""
    ends = [end for role in _ENDS if (end := _role(file, role, tokens)) is not None]
    ends = list(dict.fromkeys(ends))
    found: dict[str, Any] = {"bos_token_id": ids["bos"]}
    found["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)
    return found | {"pad_token_id": ids["pad"]}


def _settings(
    file: GgufFile, tokens: list[str], special: list[int], own: list[int], ids: dict[str, Any]
) -> dict[str, Any]:
    roles = {f"{role}_token": tokens[i] for role, i in ids.items() if i is not None}
    added = {
        str(i): {
            "content": tokens[i],
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": i in set(special),
        }
        for i in sorted([*special, *own])
    }
    settings: dict[str, Any] = {
        # Loads tokenizer.json as it stands; a class of a family would put its own pre-tokenizer in
        # place of this one.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.metadata.get(
            f"{file.metadata.get('general.architecture')}.context_length"
        ),
    }
    template = told(file, "tokenizer.chat_template", str)
    if template is not None:
        settings["chat_template"] = template
    return settings
