"""Texts of completions as token ids."""

import asyncio
from pathlib import Path

import tokenizers
from chat_models import write_model
from chat_templates import CHATML
from tokenizers import processors

from interlock.models.tokenizer import Tokenizer
from interlock.serve.requests.texts import encoded

BOS = "<｜begin▁of▁sentence｜>"  # noqa: RUF001


def test_a_text_is_begun_once(tmp_path: Path) -> None:
    path = str(write_model(tmp_path, CHATML) / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(path)
    bos = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos)]
    )
    backend.save(path)
    tokenizer = Tokenizer.load(tmp_path)
    bare = tokenizer.encode("hi")

    def ids(text: str, framed: bool = True) -> list[int]:
        return asyncio.run(encoded(text, tokenizer, framed))

    assert tokenizer.framed(f"{BOS}hi") == [bos, bos, *bare]  # as the tokenizer alone would
    assert ids("hi") == ids(f"{BOS}hi") == [bos, *bare]
    assert ids(f"{BOS}{BOS}hi") == [bos, bos, *bare], "what was sent is there"
    assert ids(BOS) == ids("") == [bos]
    assert ids("hi", framed=False) == bare
    assert ids(f"{BOS}hi", framed=False) == [bos, *bare]
