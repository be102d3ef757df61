"""Decoding steps that are launched as a whole, on accelerators that can (chips/graphs.py).

    a step unlike the one before ─> as it is      } the same kernels on the same
    the second of a kind ─────────> recorded      } shapes, so the same bits
    more of them ─────────────────> replayed

Steps are of a kind when they have as many rows, and keys and values in the same places: until a
sequence ends or begins, or rows are read further, which is every sixteenth step at the most. No
shape is padded for it. Weights are changed in place, so a recorded step has the new ones.
"""

import torch
from torch import Tensor

from interlock.chips.graphs import RecordedWork
from interlock.engine.portable.kv_cache import Decode
from interlock.errors import ConfigError
from interlock.models.decoder import Decoder
from interlock.text import error_line

MOST = 64  # recorded at a time; then all are dropped, since most are of caches that are gone


class RecordedSteps:
    """Calls `decoder` with steps, some of them recorded."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._place = decoder, decoder.embed.device
        self._recorded: dict[object, tuple[list[Tensor], RecordedWork[Tensor]]] = {}
        self._last: object = None  # the kind of the step before

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Decode) -> Tensor:
        """tokens [B], positions [B] -> hidden [B, d], to be used before the next step.

        Raises ConfigError when the device refuses to record one.
        """
        inputs, kind = [tokens, positions, *attend.inputs], attend.kind
        again, self._last = kind == self._last, kind
        if kind in self._recorded:
            places, recorded = self._recorded[kind]
            torch._foreach_copy_(places, inputs)
        elif again:
            recorded = self._record(tokens, positions, attend)
            self._recorded[kind] = inputs, recorded
        else:
            return self._decoder(tokens, positions, attend)
        return recorded.replay()

    def forget(self) -> None:
        """The decoder has other parts now."""
        self._recorded.clear()
        self._last = None

    def _record(self, tokens: Tensor, positions: Tensor, attend: Decode) -> RecordedWork[Tensor]:
        if len(self._recorded) == MOST:
            self._recorded.clear()
        beside = next((recorded for _, recorded in self._recorded.values()), None)
        try:
            return RecordedWork(
                self._place, lambda: self._decoder(tokens, positions, attend), beside
            )
        except RuntimeError as error:
            raise ConfigError(
                f"a decoding step cannot be recorded on {self._place}: {error_line(error)}; "
                "set generator.graphs = false"
            ) from error


def recordable(decoder: Decoder) -> bool:
    """Whether its steps ask for the same kernels whatever the tokens are: experts do not."""
    return decoder.arch.routing is None
