"""Both sides in this process: every message still goes through the protocol, strictly decoded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_model import make_model, write_tokenizer
from real_workers import RealWorker

from interlock.config.schema import GeneratorSettings
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.parity.prompts import prompts
from interlock.parity.sides import Sides
from interlock.qualify.tiny_model import NumberVocabulary
from interlock.workers.generator import Generator
from interlock.workers.protocol import Opened


class InlineSides(Sides):
    """Sides without processes. `defect` surrounds all that side "b" computes; `spoil` changes its
    worker once it is open.
    """

    defect: Callable[[], AbstractContextManager[Any]] = nullcontext
    spoil: Callable[[RealWorker], None] | None = None

    def __init__(self, logs: Path, answer_s: float = 60.0) -> None:
        super().__init__(logs, answer_s)
        self.workers: dict[str, RealWorker] = {}
        self._taken: Counter[str] = Counter()

    def start(self, name: str, label: str, python: str | None = None) -> None:
        self._labels[name] = label
        self.workers[name] = RealWorker(name)

    def open(self, sides: Mapping[str, tuple[Path, GeneratorSettings]]) -> dict[str, Opened]:
        opened = super().open(sides)
        if type(self).spoil is not None:
            type(self).spoil(self.workers["b"])
        return opened

    def settle(self, model: Path, dtype: str) -> None:
        """Both sides with the decoder in `model`, which needs no tokenizer."""
        for name in "ab":
            self.start(name, f"torch:{name}")
            decoder = load_decoder(model, getattr(torch, dtype), torch.device("cpu"))
            engine, worker = (
                PortableEngine(decoder, NumberVocabulary(), slots=8),
                self.workers[name],
            )
            worker.worker._generator = Generator(engine, None, name)  # type: ignore[arg-type]
            worker.worker._inspector.engine = engine
        if type(self).spoil is not None:
            type(self).spoil(self.workers["b"])

    def _pids(self, names: Iterable[str]) -> list[int]:
        return []

    def _send(self, name: str, message: bytes) -> None:
        self.workers[name].put(message)

    def _take(self, name: str, most: int) -> bytes | None:
        worker = self.workers[name]
        with self.defect() if name == "b" else nullcontext():
            worker.finish()
        if self._taken[name] == len(worker.raw):
            return None
        data = worker.raw[self._taken[name]]
        self._taken[name] += 1
        assert len(data) <= most
        return data


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[InlineSides]:
    """Let `compare` have its sides in this process, and few prompts; a fresh class per test."""
    few = [prompts()[number] for number in (0, 1, 8)]
    monkeypatch.setattr("interlock.parity.compare.prompts", lambda: few)
    sides = type("InlineSides", (InlineSides,), {})
    monkeypatch.setattr("interlock.parity.compare.Sides", sides)
    return sides


@pytest.fixture(scope="session")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tokens, and no tokenizer."""
    return make_model(tmp_path_factory.mktemp("bare-model"))


@pytest.fixture(scope="session")
def mixture_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like bare_model, with four experts in each layer, of which a token passes two."""
    return make_model(
        tmp_path_factory.mktemp("mixture"),
        model_type="qwen3_moe",
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token per byte, and a context of 1024."""
    directory = tmp_path_factory.mktemp("long-model")
    write_tokenizer(directory)
    return make_model(directory, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with no room for the shipped long prompts."""
    directory = tmp_path_factory.mktemp("small")
    write_tokenizer(directory)
    return make_model(directory, max_position_embeddings=96)
