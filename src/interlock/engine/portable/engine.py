"""The portable engine: the model's own decoder and a batch of slots, on any torch device.

    requests ──check──> Batch (engine/portable/scheduler.py) ──> completions, per request
    weights ──load──> decoder

The same call on the same weights gives the same bits. Another mix of requests or number of slots
changes the shapes of the matrix products and may round differently: the noise of a completion stays
the same (engine/portable/sampler.py), but a token on the very edge may flip.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from interlock.chips import device
from interlock.engine.base import OnFinished, Request, Vocabulary, check, check_weights
from interlock.engine.portable.kv_cache import Prefill
from interlock.engine.portable.prepacked import packed
from interlock.engine.portable.scheduler import Batch
from interlock.models.decoder import Decoder
from interlock.records.rl import Completion


class TorchEngine:
    """Generates with its own copy of the decoder; `version` says which weights it holds."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, slots: int) -> None:
        """`decoder` belongs to the engine from now on. `slots`: completions decoded at a time."""
        assert slots > 0
        self.decoder = decoder.requires_grad_(False)
        self.version = 0
        self._vocabulary = vocabulary
        self._slots = slots

    @property
    def vocab(self) -> int:
        return self.decoder.arch.vocab

    @property
    def description(self) -> str:
        return f"torch {torch.__version__}"

    @property
    def device(self) -> str:
        return device.name(self.decoder.embed.device)

    @property
    def dtype(self) -> str:
        return str(self.decoder.dtype).removeprefix("torch.")

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take over the weights of `version`: tensors under Hugging Face names, cast to the dtype
        of the decoder's own.

        Raises ModelError, with nothing copied, on a missing or unknown name or a wrong shape.
        """
        views = self.decoder.tensors()
        check_weights(tensors, {name: list(view.shape) for name, view in views.items()}, version)
        with torch.no_grad():
            for name, view in views.items():
                view.copy_(tensors[name])
        self.version = version

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """All completions of all requests, in order; on_finished(index, completions) once a
        request has all of its own.

        Raises ConfigError, before anything is computed, on a request that cannot be served, and
        TrainingError when the model's logits are not finite.
        """
        for request in requests:
            check(request, self.vocab, self.decoder.arch.context)
        batch = Batch(self.decoder, self._vocabulary, self._slots, self.version, on_finished)
        rows = min(self._slots, sum(request.completions for request in requests))
        steps = max((request.sampling.max_tokens for request in requests), default=0)
        with packed(self.decoder, rows, steps):
            return batch.run(requests)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens[1:] at temperature 1, through the prefill of a prompt."""
        place = self.decoder.embed.device
        stream = torch.tensor(tokens, device=place)
        attend = Prefill(0, [len(stream)], place)
        hidden = self.decoder(stream, attend.positions, attend)[:-1]
        logprobs = self.decoder.logits(hidden).float().log_softmax(-1)
        return logprobs.gather(1, stream[1:, None])[:, 0].tolist()

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as they are used, under Hugging Face names."""
        yield from self.decoder.tensors().items()
