"""SmolLM2 as llama.cpp runs it (xllamacpp, in an environment of its own) against our engine."""

import json
import subprocess
from pathlib import Path

import llama_child
import pytest

from interlock.config.schema import GeneratorSettings
from interlock.export.gguf_file import write_gguf
from interlock.export.source import find_source
from interlock.mismatch import Mismatch, mismatch
from interlock.models.tokenizer import Tokenizer
from interlock.workers.generator import open_generator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TEXTS = [
    "The capital of France is Paris, which lies on the river Seine and has two million people.",
    "def add(a, b):\n    return a + b\n\nprint(add(17, 25))  # 42\n",
    "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\nIt is 42.<|im_end|>\n",
    "Es war einmal ein König, der hatte drei Söhne; 2026 naïve café 😀 12345.678",
]


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> tuple[list[list[int]], list[float]]:
    """The tokens of the texts, and our log-probabilities of them in float32."""
    ids = [Tokenizer.load(smollm2).encode(text) for text in TEXTS]
    settings = GeneratorSettings(device="cpu", dtype="float32", slots=1)
    engine = open_generator(settings, smollm2, None, "score").engine
    return ids, [each for tokens in ids for each in engine.score(tokens).logprobs]


# As measured: 2.7e-6, 1.7e-4, 5.6e-3 and 0.35 nats per token.
@pytest.mark.parametrize(
    ("type_", "band"), [("F16", 1e-5), ("BF16", 1e-3), ("Q8_0", 1e-2), ("Q4_0", 0.6)]
)
def test_next_tokens_are_as_likely_there(
    llama: Path,
    smollm2: Path,
    ours: tuple[list[list[int]], list[float]],
    tmp_path: Path,
    type_: str,
    band: float,
) -> None:
    ids, own = ours
    write_gguf(find_source(str(smollm2)), tmp_path / "m.gguf", type_, {})
    asked = {"model": str(tmp_path / "m.gguf"), "texts": TEXTS, "prompts": ids, "top": 5000}
    done = subprocess.run(
        [str(llama), llama_child.__file__],
        input=json.dumps(asked), capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["tokens"] == ids
    pairs = zip([each for text in answer["logprobs"] for each in text], own, strict=True)
    told = [(theirs, mine) for theirs, mine in pairs if theirs is not None]
    assert len(told) >= len(own) - 4  # the others are not among their first 5000
    found: Mismatch = mismatch(*zip(*told, strict=True))
    print(f"{type_}: {found}")
    assert found.k3 < band
