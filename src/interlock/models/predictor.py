"""Multi-token prediction: the layer behind the last one that DeepSeek-V3 and GLM-4.5 publish.

    hidden of token i ─ norm ─┐
    embedding of i + 1 ─ norm ┴─ join ─ layer ─ norm ─ the decoder's head ─> logits of token i + 2

arXiv 2412.19437, section 2.2; embedding and head are the decoder's, of which the files hold copies.
A decoder has it only where it is trained: see `checkpoint.load_decoder`. Nothing generates by it.

Legend: A tokens, d hidden size
"""

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor, nn

from interlock.models.architecture import Architecture
from interlock.models.attention import Attend
from interlock.models.decoder import Decoder, Layer, Layout
from interlock.models.layers import LayoutEntry, Linear, RMSNorm
from interlock.models.rope import Angles


class Predictor(nn.Module):
    """Hidden states that predict the token after the next."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        index = arch.layers
        if arch.routing is not None:
            layers = arch.routing.layers | {index}
            routing = msgspec.structs.replace(arch.routing, layers=layers)
            arch = msgspec.structs.replace(arch, routing=routing)
        self.theirs = f"model.layers.{index}"
        self.embed_norm = RMSNorm(arch.hidden, arch.norm_eps)
        self.hidden_norm = RMSNorm(arch.hidden, arch.norm_eps)
        self.join = Linear(2 * arch.hidden, arch.hidden)
        self.layer = Layer(arch, index)
        self.norm = RMSNorm(arch.hidden, arch.norm_eps)

    def forward(
        self, hidden: Tensor, embedded: Tensor, angles: Angles, attend: Attend, dtype: torch.dtype
    ) -> Tensor:
        """hidden [A, d], behind the decoder's last norm, and the embedding [A, d] of what follows
        -> [A, d], for the head; fp32 at least, computed in `dtype`."""
        joined = [self.embed_norm(embedded, dtype), self.hidden_norm(hidden, dtype)]
        x = self.join(torch.cat(joined, dim=-1).to(dtype)).to(hidden.dtype)
        return self.norm(self.layer(x, angles, attend, dtype), dtype)

    def layout(self) -> Layout:
        """As Decoder.layout, of the parameters of a decoder that has this as `predictor`."""
        return dict(self._entries())

    def _entries(self) -> Iterator[LayoutEntry]:
        yield from self.embed_norm.layout("predictor.embed_norm", f"{self.theirs}.enorm")
        yield from self.hidden_norm.layout("predictor.hidden_norm", f"{self.theirs}.hnorm")
        yield from self.join.layout("predictor.join", f"{self.theirs}.eh_proj")
        yield from self.layer.layout("predictor.layer", self.theirs)
        yield from self.norm.layout("predictor.norm", f"{self.theirs}.shared_head.norm")

    @property
    def copies(self) -> dict[str, str]:
        """What the files hold a second time: name there -> name of the original."""
        return {
            f"{self.theirs}.embed_tokens.weight": "model.embed_tokens.weight",
            f"{self.theirs}.shared_head.head.weight": "lm_head.weight",
        }


def predictor_of(decoder: Decoder) -> Predictor | None:
    """The one that the decoder has; None: it has none."""
    found = decoder.predictor
    assert found is None or isinstance(found, Predictor)
    return found


def predictor_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Hugging Face name -> a view into the parameter; {} where the decoder has none."""
    found = predictor_of(decoder)
    if found is None:
        return {}
    parameters = {name: each.detach() for name, each in decoder.named_parameters()}
    return {name: parameters[owner][index] for name, (owner, index) in found.layout().items()}


def published_predictor(decoder: Decoder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """As Decoder.published, of the predictor, with its copies of embedding and head."""
    found = predictor_of(decoder)
    if found is None:
        return
    layout = found.layout()
    for name, view in predictor_tensors(decoder).items():
        exact = layout[name][0].endswith("router.correction")
        yield name, view.to(torch.float32 if exact else dtype, copy=True)
    for name, original in zip(found.copies, (decoder.embed, decoder.head), strict=True):
        assert original is not None
        yield name, original.detach().to(dtype, copy=True)
