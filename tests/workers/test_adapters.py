"""Adapters through the store into a worker: what is served, what it costs, what is refused."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from real_workers import CANARY, RealWorker
from torch import Tensor

from interlock.config.schema import GeneratorSettings
from interlock.engine.portable import engine
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import SyncError
from interlock.models import adapters
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.adapters import Adapted, AdapterForm
from interlock.records.rl import WeightVersion
from interlock.sync.manifest import below
from interlock.sync.replica import Replica
from interlock.sync.store import Publisher
from interlock.workers.protocol import Failed, Failure, Load, Loaded, Open

ASIDE = 99  # the version of an engine that only scores
FORM = AdapterForm(rank=4, alpha=8.0)


class Adapters:
    """Versions of an adapter of a model whose weights are other than its files'."""

    def __init__(self, model: Path, store: Path) -> None:
        self.model, self.url = model, str(store)
        self.decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
        self.publisher = Publisher(self.url, 5)
        whole = dict(self.decoder.tensors())
        self.base = self.publisher.of_base().publish(0, whole).version
        adapters.attach(self.decoder, FORM, torch.float32, seed=2)

    def publish(self, number: int, base: WeightVersion | None = None) -> Load:
        noise = torch.Generator().manual_seed(number)
        for view in adapters.adapter_tensors(self.decoder).values():
            view.copy_(torch.randn(view.shape, generator=noise) * 0.2)
        own = adapters.published_adapter(self.decoder, torch.float32)
        written = self.publisher.publish(number, own, Adapted(FORM, base or self.base))
        return Load(number, written.version.digest, id=number + 1)

    def score(self) -> list[float]:
        """Of the merged weights, in an engine that knows no adapters."""
        plain = load_decoder(self.model, torch.float32, torch.device("cpu"))
        engine = PortableEngine(plain, Tokenizer.load(self.model), 1)
        engine.load(dict(adapters.merged_weights(self.decoder, torch.float32)), ASIDE)
        return engine.score(CANARY.text).logprobs

    def open(self) -> Open:
        settings = GeneratorSettings(
            dtype="float32", kernel="torch", fused_attention_above=512, slots=8
        )
        return Open("w", str(self.model), settings, None, self.url, CANARY, id=1)


@pytest.fixture
def published(chatty: Path, tmp_path: Path) -> Adapters:
    return Adapters(chatty, tmp_path / "store")


def answered(worker: RealWorker, asked: Load) -> Loaded | Failed:
    worker.ask(asked)
    worker.turn()
    worker.fetched()
    worker.finish()
    (told,) = [r for r in worker.said[-3:] if isinstance(r, Loaded | Failed)][-1:]
    return told


def opened(published: Adapters) -> RealWorker:
    worker = RealWorker()
    worker.ask(published.open())
    worker.turn()
    return worker


def close(found: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("takes", [True, False])
def test_a_worker_proves_the_base_and_each_adapter_that_it_serves(
    published: Adapters, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter, and merged for an engine that takes none (vLLM without slots for them)."""
    why = "" if takes else "there are no slots"
    monkeypatch.setattr(PortableEngine, "merges", lambda self, form: why)
    loads: list[int] = []
    load = PortableEngine.load

    def counted(self: PortableEngine, tensors: dict[str, Tensor], version: int) -> None:
        if version != ASIDE:
            loads.append(version)
        load(self, tensors, version)

    worker = opened(published)
    monkeypatch.setattr(PortableEngine, "load", counted)
    first = published.publish(1)
    told = answered(worker, first)
    assert isinstance(told, Loaded) and told.digest == first.digest
    close(told.text, published.score())
    whole = told.fetched_bytes
    second = published.publish(2)
    told = answered(worker, second)
    assert isinstance(told, Loaded) and (told.number, told.digest) == (2, second.digest)
    assert told.merged == why
    close(told.text, published.score())
    close(told.prefill, told.decode)
    # The weights that it stands beside were fetched and loaded once.
    assert told.fetched_bytes < 0.5 * whole
    assert loads == ([1] if takes else [1, 2])


def test_an_engine_is_opened_for_the_form_that_will_come(
    published: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def listening(*asked: object) -> PortableEngine:
        given.append(asked[-1])
        return opening(*asked)  # type: ignore[arg-type]

    opening = engine.open_engine
    monkeypatch.setattr(engine, "open_engine", listening)
    opened(published)
    worker = RealWorker()
    worker.ask(replace(published.open(), adapter=FORM))
    worker.turn()
    assert given == [None, FORM]


def test_weights_that_changed_beside_the_adapter_break_the_proof(published: Adapters) -> None:
    worker = opened(published)
    assert isinstance(answered(worker, published.publish(1)), Loaded)
    with torch.no_grad():
        worker.engine.decoder.layers[0].mlp.down.weight[0, 0] += 1  # type: ignore[union-attr, index]
    told = answered(worker, asked := published.publish(2))
    assert isinstance(told, Loaded) and told.digest != asked.digest


def test_an_adapter_of_another_base_is_refused_and_nothing_is_lost(published: Adapters) -> None:
    worker = opened(published)
    assert isinstance(answered(worker, published.publish(1)), Loaded)
    before = worker.engine.score(CANARY.text)
    told = answered(worker, published.publish(2, base=WeightVersion(0, "0" * 64)))
    assert isinstance(told, Failed) and told.kind is Failure.LINK and "\n" not in told.reason
    assert "v00000000.json is version 0 with digest" in told.reason
    assert worker.engine.version == 1 and worker.engine.score(CANARY.text) == before
    assert isinstance(answered(worker, published.publish(3)), Loaded)


def test_a_manifest_says_of_what_an_adapter_is_and_its_digest_is_over_that(
    published: Adapters,
) -> None:
    decoder: Decoder = published.decoder
    shapes = {name: list(tensor.shape) for name, tensor in decoder.tensors().items()}
    asked = published.publish(1)
    replica = Replica(published.url, shapes, lambda form: adapters.adapter_shapes(shapes, form))
    own = replica.fetch(WeightVersion(1, asked.digest))
    assert replica.adapter == Adapted(FORM, published.base)
    assert all(torch.equal(t, adapters.adapter_tensors(decoder)[n]) for n, t in own.items())
    assert published.base.digest == adapters.base_digest(decoder)
    again = Publisher(str(Path(published.url).with_name("other")), 5)
    elsewhere = Adapted(FORM, WeightVersion(0, "0" * 64))
    assert again.publish(1, own, elsewhere).version.digest != asked.digest
    with pytest.raises(SyncError, match="is an adapter, where whole weights are read"):
        Replica(published.url, shapes).fetch(WeightVersion(1, asked.digest))
    with pytest.raises(SyncError, match="lacks or adds the tensor"):
        narrow = {name: shape for name, shape in shapes.items() if "q_proj" not in name}
        Replica(published.url, narrow, lambda form: adapters.adapter_shapes(narrow, form)).fetch(
            WeightVersion(1, asked.digest)
        )
    assert Replica(below(published.url), shapes).fetch(published.base).keys() == shapes.keys()
