"""The portable engine: the model's own decoder and a batch of slots, on any torch device.

    requests ──check──> Scheduler (scheduler.py) ──step──> Progress
    weights ──load──> decoder; what runs is computed anew (Scheduler.recompute)

The noise of a sequence does not depend on its company (sampler.py); what else may differ says
engine/base.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from interlock.chips import device, probe
from interlock.chips.threads import Threads
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import (
    Engine,
    Limits,
    Progress,
    Request,
    Scores,
    Shapes,
    check_request,
    check_routed,
    check_scored,
    check_weights,
)
from interlock.engine.portable.kv_cache import Prefill
from interlock.engine.portable.prepacked import PackedProducts
from interlock.engine.portable.schedule import EXACT, Schedule
from interlock.engine.portable.scheduler import Scheduler
from interlock.engine.vocabulary import Vocabulary
from interlock.models import adapters
from interlock.models.attention import FUSED_ABOVE
from interlock.models.checkpoint import load_decoder
from interlock.models.decoder import Decoder
from interlock.models.routes import route_shape
from interlock.records.adapters import AdapterForm


class PortableEngine(Engine):
    """Generates with its own copy of the decoder; see engine/base.py for the contract."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        slots: int,
        kernel: str = "torch",
        fused_above: int = FUSED_ABOVE,
        graphs: bool = False,
        schedule: Schedule = EXACT,
    ) -> None:
        """`decoder` belongs to the engine from now on. `slots`: sequences decoded at a time.

        `kernel` (chips/products.py) is offered for the decoder's dtype and device; `fused_above`:
        see models/attention.py; `graphs`: decoding steps are recorded (recorded_steps.py).
        `schedule`: what goes first (schedule.py).
        """
        assert slots > 0
        decoder.use(kernel)
        self.decoder = decoder.requires_grad_(False)
        self.version = 0
        self.limits = Limits(decoder.arch.vocab, decoder.arch.context, slots)
        self.description = f"torch {torch.__version__}"
        self.device = device.name(decoder.embed.device)
        self.dtype = str(decoder.dtype).removeprefix("torch.")
        self._fused_above = fused_above
        self._scheduler = Scheduler(decoder, vocabulary, slots, fused_above, graphs, schedule)
        self._packed = PackedProducts(decoder, kernel)
        self._threads = Threads(decoder.embed.device)
        self._grown = False  # something was added since it was last seen whether packing pays

    @property
    def shapes(self) -> Shapes:
        return {name: list(view.shape) for name, view in self.decoder.tensors().items()}

    @property
    def pending(self) -> int:
        return self._scheduler.pending

    def prepare(self) -> None:
        self._scheduler.prepare()

    def add(self, name: str, request: Request) -> None:
        check_request(request, self.limits)
        check_routed(request, route_shape(self.decoder.arch))
        self._scheduler.add(name, request)
        self._grown = True

    @property
    def threads(self) -> int | None:
        return self._threads.fewest if self.decoder.embed.device.type == "cpu" else None

    @torch.inference_mode()
    def abort(self, name: str) -> bool:
        found = self._scheduler.abort(name)
        self._rest()
        return found

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        self._threads.follow()
        if self._grown:
            self._grown = False
            self._packed.begin(min(self.limits.slots, self.pending), self._scheduler.longest)
        try:
            return self._scheduler.step(self.version)
        except BaseException:
            self._scheduler.clear()
            raise
        finally:
            self._rest()

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        check_weights(tensors, self.shapes, version)
        self._packed.end()
        if self.decoder.adapter is not None:
            self.decoder.drop_adapter()
            self._scheduler.rebuilt()
        with torch.no_grad():
            for name, view in self.decoder.tensors().items():
                view.copy_(tensors[name])
        self._serve(version)

    def merges(self, form: AdapterForm) -> str:
        return ""

    def load_adapter(self, tensors: Mapping[str, Tensor], form: AdapterForm, version: int) -> None:
        check_weights(tensors, adapters.adapter_shapes(self.shapes, form), version)
        self._packed.end()
        if self.decoder.adapter != form:
            adapters.attach(self.decoder, form, self.decoder.dtype)
            self.decoder.requires_grad_(False)
            self._scheduler.rebuilt()
        adapters.set_adapter(self.decoder, tensors)
        self._serve(version)

    def _serve(self, version: int) -> None:
        """From now on, by the weights as they are; what runs is computed anew."""
        self.version = version
        try:
            with torch.inference_mode():
                self._scheduler.recompute()
        except BaseException:  # half of what runs would be of other weights
            self._scheduler.clear()
            self._rest()
            raise
        self._grown = self.pending > 0

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], top_k: int = 0) -> Scores:
        check_scored(tokens, top_k, self.limits)
        place = self.decoder.embed.device
        stream = torch.tensor(tokens, device=place)
        attend = Prefill(0, [len(stream)], place, self._fused_above)
        hidden = self.decoder(stream, attend.positions, attend)[:-1]
        logprobs = self.decoder.logits(hidden).float().log_softmax(-1)
        given = logprobs.gather(1, stream[1:, None])[:, 0].tolist()
        best = logprobs.topk(top_k)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Scores(given, [list(zip(*each, strict=True)) for each in pairs])

    def held(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.decoder.tensors().items()
        yield from adapters.adapter_tensors(self.decoder).items()

    def _rest(self) -> None:
        """Nothing is held for sequences where there are none: an update may come."""
        if not self.pending:
            self._packed.end()
            self._threads.rest()


def open_engine(
    settings: GeneratorSettings,
    model: Path,
    vocabulary: Vocabulary,
    adapter: AdapterForm | None = None,
) -> PortableEngine:
    """The engine that `settings` ask for, with the weights in the directory `model` as version 0.

    `adapter`: the form that versions will have; nothing is made ready for it.

    Raises ConfigError when the device is not there, ModelError when the model cannot be read.
    """
    place = device.claim(settings.device)
    settings = probe.settled(settings, place)
    decoder = load_decoder(model, device.dtype(settings.dtype), place)
    return sharing_engine(settings, decoder, vocabulary)


def sharing_engine(
    settings: GeneratorSettings, decoder: Decoder, vocabulary: Vocabulary
) -> PortableEngine:
    """As `open_engine`, with a decoder that is there; the settings are settled."""
    assert settings.graphs != "auto"
    how = settings.kernel, settings.fused_attention_above, settings.graphs
    first = Schedule(settings.patience, settings.prefill_chunk, settings.prefix_cache_mb)
    return PortableEngine(decoder, vocabulary, settings.slots, *how, first)
