"""Tiny decoders, and a vocabulary of letters."""

from collections.abc import Callable, Iterator
from pathlib import Path

import byte_model
import pytest
import torch

from interlock.engine.portable.engine import PortableEngine
from interlock.models.architecture import Architecture, DefaultRope, Latent
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer

VOCAB = 600  # three blocks of the sampler, the last one not full


class Letters:
    """Token t is written as the t-th of these, over and over; eos_ids are written as nothing."""

    pieces = ("a", "b", "cd", "e f", "", "xyz", "\n", "b\n")

    def __init__(self, eos_ids: frozenset[int] = frozenset()) -> None:
        self.eos_ids = eos_ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.push(token) for token in ids)

    def stream(self) -> "Letters":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return "" if token in self.eos_ids else self.pieces[token % len(self.pieces)]


@pytest.fixture
def letters() -> type[Letters]:
    return Letters


@pytest.fixture
def tiny() -> Callable[..., Decoder]:
    """Make a two-layer fp32 decoder with random weights: "llama" or "deepseek_v3" (latent)."""

    def make(family: str = "llama", context: int = 256) -> Decoder:
        latent = Latent(q_rank=None, kv_rank=6, interleaved=True) if family != "llama" else None
        arch = Architecture(
            family=family,
            vocab=VOCAB,
            hidden=16,
            layers=2,
            heads=4,
            kv_heads=4 if latent else 2,
            head_dim=8,
            value_dim=6 if latent else 8,
            inner=24,
            norm_eps=1e-5,
            context=context,
            tied=True,
            rope=DefaultRope(),
            rope_dim=4 if latent else 8,
            latent=latent,
        )
        decoder = Decoder(arch)
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in decoder.parameters():
                drawn = torch.randn(parameter.shape, generator=noise)
                parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.5 * drawn)
        return decoder

    return make


@pytest.fixture
def prompt() -> Callable[[int], list[int]]:
    """`length` random tokens; the same for the same length."""

    def make(length: int) -> list[int]:
        noise = torch.Generator().manual_seed(length)
        return torch.randint(0, VOCAB, (length,), generator=noise).tolist()

    return make


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = byte_model.make_model(tmp_path_factory.mktemp("model"))
    byte_model.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model)


@pytest.fixture(scope="module")
def engine(model: Path, tokenizer: Tokenizer) -> PortableEngine:
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    return PortableEngine(decoder, tokenizer, slots=8)


@pytest.fixture
def nothing_is_left(engine: PortableEngine) -> Iterator[None]:
    yield
    left = engine.pending
    engine.abort("bad")
    assert not left
