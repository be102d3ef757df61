"""One forward pass for the newest tokens of all that runs and for parts of prompts.

    what runs ─┐              ┌─> its hidden states, to draw from
               ├─> decoder ──>┤
    a part ────┘              └─> those of the part

The weights are read once for both, and a part of a prompt costs what runs beside it less.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from interlock.engine.portable.kv_cache import Decode
from interlock.models.attention import Attend
from interlock.models.decoder import Decoder
from interlock.models.routes import packed, route_shape

# tokens [N], positions [N], who sees whom -> hidden [N, d], as Decoder.forward
Forward = Callable[[Tensor, Tensor, Attend], Tensor]
DecodeStep = Callable[[Tensor, Tensor, Decode], Tensor]  # of running sequences alone


class WithRunning:
    """A `Forward` whose first pass takes along what runs."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        positions: Tensor,
        attend: Decode,
        alone: DecodeStep,
        routed: bool = False,
    ) -> None:
        """tokens [B], positions [B] of what runs; `alone`: the pass of a step without prompts.
        `routed`: something of it is to tell its routes.
        """
        self._decoder, self._alone, self._routed = decoder, alone, routed
        self.routes = [b""] * len(tokens)  # of these tokens, once they are computed
        self._running = tokens, positions, attend
        self._hidden: Tensor | None = None

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Of the part alone."""
        if self._hidden is not None:
            return self._decoder(tokens, positions, attend)
        newest, places, decode = self._running
        count = len(newest)

        def both(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            ours = decode(layer, q[:count], k[:count], v[:count], scale)
            return torch.cat([ours, attend(layer, q[count:], k[count:], v[count:], scale)])

        hidden = self._decoder(torch.cat([newest, tokens]), torch.cat([places, positions]), both)
        self._hidden = hidden[:count]
        if self._routed:
            self.routes = last_routes(self._decoder, len(hidden))[:count]
        return hidden[count:]

    def hidden(self) -> Tensor:
        """[B, d] of what runs; computed by itself where no part has taken it along."""
        if self._hidden is None:
            self._hidden = self._alone(*self._running)
            if self._routed:
                self.routes = last_routes(self._decoder, len(self._hidden))
        return self._hidden


def last_routes(decoder: Decoder, count: int) -> list[bytes]:
    """The experts of the last `count` tokens of the decoder's last forward pass, each as bytes."""
    shape = route_shape(decoder.arch)
    assert shape is not None, "asked for, and checked before"
    data, width = packed(decoder.routes()[-count:].cpu().numpy(), shape), shape.token_bytes
    return [data[first : first + width] for first in range(0, len(data), width)]
