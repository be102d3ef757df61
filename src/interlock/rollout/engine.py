"""The portable engine: the model's own decoder and a batch of slots, on any torch device.

    requests ──check──> Batch (rollout/batch.py) ──> completions, per request
    weights ──load──> decoder

The same call on the same weights gives the same bits. Another mix of requests or number of slots
changes the shapes of the matrix products and may round differently: the noise of a completion stays
the same (rollout/sampler.py), but a token on the very edge may flip.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interlock.errors import ConfigError, ModelError
from interlock.models.decoder import Decoder
from interlock.records import Completion
from interlock.rollout.batch import Batch, OnFinished
from interlock.rollout.request import Request, Vocabulary


class TorchEngine:
    """Generates with its own copy of the decoder; `version` says which weights it holds."""

    def __init__(self, decoder: Decoder, vocabulary: Vocabulary, slots: int) -> None:
        """`decoder` belongs to the engine from now on. `slots`: completions decoded at a time."""
        assert slots > 0
        self.decoder = decoder.requires_grad_(False)
        _lay_out_for_products(decoder)
        self.version = 0
        self._vocabulary = vocabulary
        self._slots = slots

    def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Take over the weights of `version`: tensors under Hugging Face names, cast to the dtype
        of the decoder's own.

        Raises ModelError, with nothing copied, on a missing or unknown name or a wrong shape.
        """
        views = self.decoder.tensors()
        if odd := sorted(views.keys() ^ tensors.keys()):
            state = "lack the" if odd[0] in views else "have an unknown"
            raise ModelError(
                f"the weights of version {version} {state} tensor {odd[0]!r} ({len(odd)} such "
                "names); publish them from the model that this engine was opened with"
            )
        for name, view in views.items():
            if (shape := tensors[name].shape) != view.shape:
                raise ModelError(
                    f"tensor {name!r} of version {version} has the shape {list(shape)}, but the "
                    f"model's is {list(view.shape)}; publish weights of the same model"
                )
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
            self._check(request)
        batch = Batch(self.decoder, self._vocabulary, self._slots, self.version, on_finished)
        return batch.run(requests)

    def _check(self, request: Request) -> None:
        name, prompt, sampling = request.problem_id, request.prompt_tokens, request.sampling
        arch = self.decoder.arch
        if not prompt:
            raise ConfigError(f"problem {name!r} has an empty prompt; give it at least one token")
        if min(prompt) < 0 or max(prompt) >= arch.vocab:
            raise ConfigError(
                f"problem {name!r} has a token id outside the model's vocabulary of {arch.vocab}; "
                "use the tokenizer that belongs to the model"
            )
        if len(prompt) + sampling.max_tokens > arch.context:
            raise ConfigError(
                f"problem {name!r} has {len(prompt)} prompt tokens, which with max_tokens = "
                f"{sampling.max_tokens} is more than the model's context of {arch.context}; lower "
                "max_tokens or leave the problem out"
            )
        if request.completions < 1 or sampling.max_tokens < 1:
            raise ConfigError(
                f"problem {name!r} asks for {request.completions} completions of at most "
                f"{sampling.max_tokens} tokens; ask for at least one of each"
            )
        if "" in sampling.stop:
            raise ConfigError("sampling.stop holds an empty string, which ends nothing; remove it")


def _lay_out_for_products(decoder: Decoder) -> None:
    """On a CPU, store the projections column by column; shapes and values stay as they are.

    x Wᵀ then needs no transposition: at 64 rows of float32 it takes 0.7 to 0.9 of the time, and in
    bfloat16 the same. The embedding is also read row by row, and stays.
    """
    for parameter in decoder.parameters():
        is_projection = parameter.ndim == 2 and parameter is not decoder.embed
        if is_projection and parameter.device.type == "cpu":
            parameter.data = parameter.data.T.contiguous().T
