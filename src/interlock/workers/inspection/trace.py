"""Forward passes over forced tokens, watched from inside: what every module gave, and how.

    text ──Prefill, or Prefill and then Decode token by token (the engine's own)──> decoder
                      every module's output, rotated q and k, attention, logits
                                              │
              Sketches: a few projections <───┴───> Section: the operators between two points

A sketch of x [N, W] is x S / sqrt(R) with fixed random signs S [W, R], and the norm of each row.
It is linear: the difference of two sketches is the sketch of the difference, whose length estimates
that of the difference (Alon, Matias, Szegedy, 1996). So whole passes of two machines are compared
in megabytes.

Legend: N tokens, W numbers of a token at a point, R projections, M points
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from interlock.engine.portable.kv_cache import Decode, KVCache, Prefill, SharedPrompts
from interlock.models.attention import Attend
from interlock.models.decoder import Attention, Decoder
from interlock.models.latent import LatentAttention
from interlock.models.layers import Mlp
from interlock.models.rope import Angles
from interlock.workers.inspection.operators import Call, Doubled, Recording
from interlock.workers.protocol import Text, Where

PROJECTIONS = 16
_ROWS = 64  # of the vocabulary projection at a time
_NO_POINT = (Attention, LatentAttention, Mlp, nn.ModuleList, Decoder)  # the last module in it is


class Probe(Protocol):
    def begin(self, step: int) -> None:
        """A forward pass begins; 0 is the prefill."""

    def at(self, point: str, x: Tensor) -> None:
        """x [N, …] was computed."""


class Sketches:
    """The sketches of a text: of its prefill, or else of its decoding."""

    def __init__(self, decode: bool) -> None:
        self._decode, self._watching = decode, False
        self._rows: dict[str, list[Tensor]] = defaultdict(list)
        self._signs: dict[int, Tensor] = {}

    def begin(self, step: int) -> None:
        self._watching = self._decode == (step > 0)

    def at(self, point: str, x: Tensor) -> None:
        if not self._watching:
            return
        flat = x.detach().cpu().double().flatten(1)  # [N, W]
        projected = flat @ self._signs_of(flat.shape[1])
        self._rows[point].append(torch.cat([projected, flat.norm(dim=1, keepdim=True)], dim=1))

    def result(self) -> tuple[list[str], Tensor]:
        """The points in the order they were passed, and [M, N, R + 1] float64."""
        return list(self._rows), torch.stack([torch.cat(rows) for rows in self._rows.values()])

    def _signs_of(self, width: int) -> Tensor:
        if width not in self._signs:
            # RandomState's numbers are frozen: two versions of numpy or torch get the same signs.
            bits = np.random.RandomState(width).randint(0, 2, size=(width, PROJECTIONS))
            self._signs[width] = torch.from_numpy(2.0 * bits - 1.0) / PROJECTIONS**0.5
        return self._signs[width]


class Section:
    """Switches a recording on between two points of one pass."""

    def __init__(self, where: Where, recording: Recording) -> None:
        self._where, self._recording = where, recording
        self._inside = False

    def begin(self, step: int) -> None:
        self._inside = step == self._where.step
        self._recording.on = self._inside and not self._where.after

    def at(self, point: str, x: Tensor) -> None:
        if not self._inside:
            return
        if point == self._where.until:
            self._inside = self._recording.on = False
        elif point == self._where.after:
            self._recording.on = True


class Watched:
    """An Attend that tells a probe what goes in and what comes out."""

    def __init__(self, attend: Attend, probe: Probe) -> None:
        self._attend, self._probe = attend, probe

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        at = f"layers.{layer}.attention"
        self._probe.at(f"{at}.rotated_q", q)
        self._probe.at(f"{at}.rotated_k", k)
        out = self._attend(layer, q, k, v, scale)
        self._probe.at(f"{at}.attended", out)
        return out


def sketched(decoder: Decoder, text: Text) -> tuple[list[str], Tensor]:
    """The points of a text and their sketches [M, N, R + 1]; N: its tokens, or its answer's.

    A decoder in float64 computes in float64 throughout, but for the angles of rotary positions.
    """
    sketches = Sketches(text.decode)
    if decoder.dtype == torch.float64:
        with Doubled():
            run(decoder, text, sketches)
    else:
        run(decoder, text, sketches)
    return sketches.result()


def recorded(decoder: Decoder, text: Text, where: Where) -> list[Call]:
    """The operators of one part of one pass, in order, with their inputs."""
    with torch.inference_mode(), Recording() as recording:
        run(decoder, text, Section(where, recording))
    return recording.calls


@torch.inference_mode()
def run(decoder: Decoder, text: Text, probe: Probe) -> None:
    """Compute the text as the torch engine does for a single completion, and show it to `probe`."""
    place = decoder.embed.device
    prompt = text.prompt if text.decode else text.prompt + text.answer
    with _hooked(decoder, probe):
        probe.begin(0)
        prefill = Prefill(0, [len(prompt)], place)
        _pass(decoder, prompt, prefill.positions, prefill, probe)
        if not text.decode:
            return
        k, v = prefill.stored()
        shared, own = KVCache(k, v), KVCache(k, v)
        shared.append(0, k, v)
        for step, token in enumerate(text.answer):
            probe.begin(step + 1)
            own.reserve(1, step + 1)
            decode = Decode(own, [step], [SharedPrompts(shared, [len(prompt)], [[0]])])
            position = torch.tensor([len(prompt) + step], device=place)
            _pass(decoder, [token], position, decode, probe)


def _pass(
    decoder: Decoder, tokens: list[int], positions: Tensor, attend: Attend, probe: Probe
) -> None:
    stream = torch.tensor(tokens, device=positions.device)
    hidden = decoder(stream, positions, Watched(attend, probe))
    for rows in hidden.split(_ROWS):
        probe.at("logits", decoder.logits(rows))


@contextmanager
def _hooked(decoder: Decoder, probe: Probe) -> Iterator[None]:
    """Show `probe` the output of every module, the angles, the embedding, and what `down` reads."""

    def shows_output(point: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            probe.at(point, out[1] if isinstance(out, tuple) else out)  # a router's weights

        return hook

    def shows_input(point: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            probe.at(point, args[0])

        return hook

    rotary = decoder.rotary

    def watched_rotary(positions: Tensor) -> Angles:
        cos, sin = rotary(positions)
        probe.at("angles", torch.cat([cos, sin], dim=-1))
        return cos, sin

    decoder.rotary = watched_rotary  # type: ignore[assignment]
    handles = [decoder.layers[0].register_forward_pre_hook(shows_input("embed"))]
    for name, module in decoder.named_modules():
        if isinstance(module, Mlp):
            handles.append(module.down.register_forward_pre_hook(shows_input(f"{name}.activation")))
        elif not isinstance(module, _NO_POINT):
            handles.append(module.register_forward_hook(shows_output(name)))
    try:
        yield
    finally:
        decoder.rotary = rotary
        for handle in handles:
            handle.remove()
