"""Tokens a second that the portable engine generates, prompts included.

The bound: the prompts' and the steps' multiplications at the speed of the best product, or their
weights, keys and values at the speed of a copy, whichever takes longer. Work of the vocabulary
counts, sampling does not.
"""

import torch

from interlock.chips import graphs, probe
from interlock.config.schema import GeneratorSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import sharing_engine
from interlock.models.architecture import Architecture
from interlock.preflight import bounds, peer, speed
from interlock.preflight.bounds import Bounds
from interlock.preflight.shapes import layer_weights, random_decoder, vocabulary_weights
from interlock.preflight.speed import Demand
from interlock.records.rl import Sampling

PROMPT, NEW, GROUP = 128, 32, 8  # tokens, tokens, completions of one prompt


class BareVocabulary:
    """Tokens without text: none ends a completion."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def stream(self) -> "BareVocabulary":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return f"{token} "


class Decoding:
    """`rows` completions at a time, of which up to GROUP share a prompt."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.tokens = rows * NEW
        self.prompts = max(1, rows // GROUP)

    def load(self, arch: Architecture, dtype: torch.dtype, limits: Bounds) -> Demand:
        layers, head = arch.layers * layer_weights(arch), arch.vocab * arch.hidden
        read = (layers + head) * dtype.itemsize
        token = arch.layers * arch.kv_heads * (arch.head_dim + arch.value_dim) * dtype.itemsize
        kept = token * (self.prompts * PROMPT + self.rows * NEW)
        step = max(2 * self.rows * (layers + head) / limits.flops, (read + kept) / limits.bytes)
        given = self.prompts * PROMPT
        prefill = max(2 * given * layers / limits.flops, read / limits.bytes)
        # transformers keeps every row's prompt, and makes logits of float32.
        most = token * self.rows * (PROMPT + NEW) + 8 * self.rows * arch.vocab
        weights = (layers + vocabulary_weights(arch)) * dtype.itemsize
        return Demand(1.1 * weights + 2 * most, prefill + NEW * step)

    def ours(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        return self._seconds(arch, dtype, place, False)

    def recorded(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float | None:
        return self._seconds(arch, dtype, place, True) if graphs.offered(place) else None

    def _seconds(
        self, arch: Architecture, dtype: torch.dtype, place: torch.device, recorded: bool
    ) -> float:
        decoder, name = random_decoder(arch, dtype, place), str(dtype).removeprefix("torch.")
        asked = GeneratorSettings(
            dtype=name,  # type: ignore[arg-type]
            slots=self.rows,
            graphs=recorded,
        )
        engine = sharing_engine(probe.settled(asked, place), decoder, BareVocabulary())
        rule, each = Sampling(max_tokens=NEW), self.rows // self.prompts
        requests = [
            Request(str(number), self._prompt(arch, number), each, rule, 0)
            for number in range(self.prompts)
        ]
        return bounds.seconds(place, lambda: engine.generate(requests), 2)

    def theirs(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        net = peer.model(arch, dtype, place).eval()
        prompts = [self._prompt(arch, number % self.prompts) for number in range(self.rows)]
        ids = torch.tensor(prompts, device=place)
        rule = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0}
        rule |= {"max_new_tokens": NEW, "min_new_tokens": NEW}
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            return bounds.seconds(place, lambda: net.generate(ids, attention_mask=mask, **rule), 2)

    def _prompt(self, arch: Architecture, number: int) -> list[int]:
        noise = torch.Generator().manual_seed(number)
        return torch.randint(0, arch.vocab, (PROMPT,), generator=noise).tolist()


if __name__ == "__main__":
    speed.run([Decoding(1), Decoding(64)])
