"""How llama.cpp splits texts by a GGUF file's rule, against the tokenizer that we make of it."""

import json
import subprocess
from pathlib import Path

import gguf
import llama_child
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from interlock.models.fetch import find_model
from interlock.models.from_gguf.vocabulary import RULES
from interlock.models.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MERGES = ["h e", "l l", "he ll", "1 2", "12 3", "\u0120 t", "\u0120 \u0120", "i n", "in g"]
TOKENS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS += ["".join(merge.split(" ")) for merge in MERGES]
END = len(TOKENS)
TOKENS += ["<|end|>", "<tool>"]
TEXTS = [
    "hello the 12345 things' I'LL you're",
    "  two  spaces\n\n\nand\tlines \r\n end  ",
    "x=1234567;y+=89 na\u00efve \u65e5\u672c\u8a9e \U0001f600 'S",
    "ing123hell<|end|>ing<tool>the",
]


def write(path: Path, rule: str) -> None:
    """One layer of random weights under the vocabulary."""
    noise, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * END + [3, 4])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(TOKENS), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    shapes |= {f"blk.0.attn_{each}": (32, 32) for each in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        drawn = noise.standard_normal(shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", drawn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("rule", RULES)
def test_texts_are_split_as_there(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    write(tmp_path / "m.gguf", rule)
    asked = {"model": str(tmp_path / "m.gguf"), "texts": TEXTS, "prompts": [], "top": 5}
    done = subprocess.run(
        [str(llama), llama_child.__file__],
        input=json.dumps(asked), capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    monkeypatch.setenv("INTERLOCK_CACHE", str(tmp_path / "cache"))
    ours = Tokenizer.load(find_model(str(tmp_path / "m.gguf")))
    assert [ours.encode(text) for text in TEXTS] == json.loads(done.stdout)["tokens"]
