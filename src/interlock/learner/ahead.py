"""The loss of multi-token prediction (models/predictor.py) on the texts of a micro-batch.

    stream of the decoder     p p p a a a b b       p prompt, a and b completions of it
    sequences of the loss     p p p a a . p p p b   each text whole but for its last two tokens

In the decoder's stream completions share their prompt; here the input at its last token is another
for each of them, so every completion has the prompt anew. Each learned token is predicted by what
stands two before it. The loss is the mean of -log p over the learned tokens of the step, whatever
the sign of their weights: what was sampled is what a generator would have to guess.

Legend: A inputs, Q of them that predict, N tokens of the stream, d hidden size
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.learner.losses.projection import chunked_loss
from interlock.models.attention import FUSED_ABOVE, Groups, repeated
from interlock.models.decoder import Decoder
from interlock.models.predictor import predictor_of

Text = tuple[Sequence[int], Sequence[int], Sequence[float]]  # prompt, completion, its weights


@dataclass(frozen=True)
class Ahead:
    """What is predicted ahead in one micro-batch."""

    rows: Tensor  # [A] int64, of the stream, whose hidden state is read
    tokens: Tensor  # [A] int64, that follow
    attend: Groups  # of the sequences
    chosen: Tensor  # [Q] int64, of the A
    targets: Tensor  # [Q] int64


def ahead_of(
    groups: Iterable[Sequence[Text]], device: torch.device, fused_above: int = FUSED_ABOVE
) -> Ahead | None:
    """Of the groups of a stream, in its order; the texts of one share their prompt there.

    None when nothing is learned that has two tokens before it.
    """
    rows: list[int] = []
    tokens: list[int] = []
    chosen: list[int] = []
    targets: list[int] = []
    lengths, at = [], 0
    for texts in groups:
        prompt = list(range(at, at + len(texts[0][0])))
        at += len(prompt)
        for given, completion, weights in texts:
            own = list(range(at, at + len(completion) - 1))
            at += len(own)
            whole = [*given, *completion]
            first = len(rows) + len(given) - 2  # the input that predicts the completion's first
            picked = [place for place, weight in enumerate(weights) if weight]
            picked = [place for place in picked if len(given) + place >= 2]
            if len(whole) < 3 or not picked:
                continue
            chosen += [first + place for place in picked]
            targets += [completion[place] for place in picked]
            rows += [*prompt, *own][: len(whole) - 2]
            tokens += whole[1:-1]
            lengths.append(len(whole) - 2)
    if not chosen:
        return None
    attend = Groups(lengths, [[] for _ in lengths], device, fused_above)
    columns = (torch.tensor(each, device=device) for each in (rows, tokens, chosen, targets))
    read, follow, picking, wanted = columns
    return Ahead(read, follow, attend, picking, wanted)


def ahead_loss(
    decoder: Decoder, stream: Tensor, ahead: Ahead, weight: float, detached: bool, chunk: int
) -> tuple[Tensor, float]:
    """The loss times `weight`, summed over Q, to be differentiated; and the sum of -log p itself.

    stream [N, d]: the decoder's hidden states. `detached`: only the predictor's own parameters get
    a gradient. `chunk`: logits held at a time.
    """
    predictor = predictor_of(decoder)
    assert predictor is not None
    embed, head = decoder.embed, decoder.head
    if detached:
        stream, embed, head = stream.detach(), embed.detach(), head.detach()  # type: ignore[assignment]
    embedded = F.embedding(ahead.tokens, embed).to(decoder.dtype).to(stream.dtype)
    angles = decoder.rotary(ahead.attend.positions)
    hidden = repeated(stream, ahead.rows)
    made = predictor(hidden, embedded, angles, ahead.attend, decoder.dtype)
    value, logprobs, *_ = chunked_loss(
        repeated(made, ahead.chosen),
        head,
        ahead.targets,
        1.0,
        chunk,
        lambda found, rows: -weight * found,
        decoder.dtype,
        decoder.product,
    )
    return value, -logprobs.sum().item()
