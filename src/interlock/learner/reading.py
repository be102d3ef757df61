"""A micro-batch through a decoder: the hidden states of its tokens, and of what predicts targets.

Legend: N tokens of the stream, M tokens whose log-probability is needed, d hidden size
"""

from torch import Tensor

from interlock.learner.packing import MicroBatch
from interlock.models.attention import repeated
from interlock.models.decoder import Decoder


def read(decoder: Decoder, batch: MicroBatch, routed: bool = False) -> Tensor:
    """The hidden states of all tokens, [N, d].

    `routed`: by the routes of the batch, where it has some. They are those of the policy that
    sampled it, and of none but its successors.
    """
    routes = batch.routes if routed else None
    hidden: Tensor = decoder(batch.tokens, batch.attend.positions, batch.attend, routes)
    return hidden


def read_targets(decoder: Decoder, batch: MicroBatch, routed: bool = False) -> Tensor:
    """The hidden states that predict the targets, [M, d]."""
    # The last token of a prompt predicts the first one of each completion.
    return repeated(read(decoder, batch, routed), batch.rows)
