"""Whether a replica is the same model as the others: a canary before it serves, and again later.

    CanaryExam:  prompts ──Complete──> continuations ──┐
                                      text ──────┴─ScoreTexts──> CanaryScores
    Parity.judge:  CanaryScores ──> its text against the reference's   (mean k3, band)
                           └──> its decode against its own prefill

The reference of a weight version is the first that was admitted with it. Replicas are admitted in
the order of `rank`: the one that was named, else torch in float32 on a CPU before all others, else
the order of the settings. A replica that comes up sooner than one before it waits for that one's
answer, as long as it is on its way.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from interlock.chips import vendors
from interlock.config.schema import GeneratorSettings, GuardSettings
from interlock.mismatch import mismatch
from interlock.records.rl import FinishReason, Sampling, WeightVersion
from interlock.records.serving import Generation
from interlock.workers.protocol import Canary, Complete, ScoreTexts, Stretch
from interlock.workers.replies import odd_logprobs

_VERSIONS = 16  # of which the reference's scores are kept


class CanaryScores(NamedTuple):
    """What a replica says of the canary."""

    text: list[float]  # logprobs of canary.text[1:], through prefill
    decode: list[float]  # of the continuations as they were drawn
    prefill: list[float]  # of the same tokens, through prefill


class Judgement(NamedTuple):
    """Whether a replica is inside its band, and why not."""

    refused: str  # why it may not serve; "": it may
    warning: str
    facts: dict[str, Any]


@dataclass(eq=False)
class CanaryExam:
    """The canary of one replica on its way."""

    canary: Canary
    weights: WeightVersion
    deadline: float
    drawing: dict[int, int] = field(default_factory=dict)  # place of the prompt, by ask
    tokens: dict[int, list[int]] = field(default_factory=dict)  # by place
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    scoring: int = 0  # number of the ScoreTexts
    found: CanaryScores | None = None

    def prompts(self) -> list[Complete]:
        """What is asked first."""
        number, sampling = self.weights.number, Sampling(max_tokens=self.canary.tokens)
        return [
            Complete(number, Generation(prompt, sampling, seed=number, noise=f"canary/{place}"))
            for place, prompt in enumerate(self.canary.prompts)
        ]

    def drew(self, stretch: Stretch) -> bool:
        """Whether all continuations are there."""
        place = self.drawing[stretch.ask]
        self.tokens.setdefault(place, []).extend(stretch.tokens)
        self.logprobs.setdefault(place, []).extend(stretch.logprobs)
        if stretch.finish is not None:
            del self.drawing[stretch.ask]
        return not self.drawing

    def texts(self) -> ScoreTexts:
        """What is asked when they are."""
        prompts = enumerate(self.canary.prompts)
        return ScoreTexts([self.canary.text, *(p + self.tokens[place] for place, p in prompts)])

    def longest(self) -> ScoreTexts:
        """No `texts` is longer."""
        most = [0] * self.canary.tokens
        return ScoreTexts([self.canary.text, *(each + most for each in self.canary.prompts)])

    def scored(self, scores: list[list[float]]) -> str | None:
        """Take the answer to `texts`. Why it is none; None: `found` is there."""
        wanted = [len(text) - 1 for text in self.texts().texts]
        if [len(each) for each in scores] != wanted:
            return "it scored another canary than it was given"
        text, *continued = scores
        decode: list[float] = []
        prefill: list[float] = []
        for place, prompt in enumerate(self.canary.prompts):
            decode += self.logprobs[place]
            prefill += continued[place][len(prompt) - 1 :]
        self.found = CanaryScores(text, decode, prefill)
        return odd_logprobs([*text, *decode, *prefill])


def odd_stretch(stretch: Stretch, vocab: int, most: int) -> str | None:
    """Why it cannot be what a step drew for a choice that may draw `most` more."""
    count = len(stretch.tokens)
    if not 0 < count <= most:
        return f"{count} tokens where 1 to {most} may be drawn"
    if len(stretch.logprobs) != count or len(stretch.top) not in (0, count):
        return f"{len(stretch.logprobs)} logprobs for {count} tokens"
    if min(stretch.tokens) < 0 or max(stretch.tokens) >= vocab:
        return f"a token id outside the vocabulary of {vocab}"
    if stretch.finish is None and count == most:
        return "no end where max_tokens are drawn"
    if stretch.finish is FinishReason.LENGTH and count < most:
        return f"an end by length, {most - count} tokens too soon"
    if stretch.cached < 0:
        return f"{stretch.cached} cached tokens"
    return odd_logprobs(stretch.logprobs)


class Parity:
    """What the references said, and how far the others may be from it."""

    def __init__(self, band: GuardSettings) -> None:
        self._band = band
        self._references: dict[WeightVersion, tuple[str, list[float]]] = {}

    def knows(self, weights: WeightVersion) -> bool:
        return weights in self._references

    def text(self, weights: WeightVersion) -> list[float] | None:
        """What the reference of a version says of the canary's text."""
        return self._references[weights][1] if weights in self._references else None

    def judge(self, name: str, weights: WeightVersion, found: CanaryScores) -> Judgement:
        """Whether replica `name` may serve; the first one of a version becomes its reference."""
        band, own = self._band, mismatch(found.prefill, found.decode)
        reference, text = self._references.get(weights, (name, found.text))
        if len(text) != len(found.text):
            return Judgement("it scored another canary than it was given", "", {})
        apart = mismatch(text, found.text)
        facts = {
            "reference": reference,
            "version": weights.number,
            "k3": apart.k3,
            "max": apart.max,
            "tokens": apart.tokens,
            "decode_k3": own.k3,
            "decode_tokens": own.tokens,
            "band": [band.warn, band.quarantine],
        }
        against = f"k3 {apart.k3:.2g} against {reference} on {apart.tokens} tokens"
        inside = f"decode and prefill disagree, k3 {own.k3:.2g} on {own.tokens} tokens"
        for k3, said in ((apart.k3, against), (own.k3, inside)):
            if not k3 <= band.quarantine:
                return Judgement(f"{said}, more than {band.quarantine:g}", "", facts)
        if weights not in self._references:
            self._references[weights] = name, found.text
            for old in list(self._references)[:-_VERSIONS]:
                del self._references[old]
        warned = [
            f"{said}, more than {band.warn:g}"
            for k3, said in ((apart.k3, against), (own.k3, inside))
            if k3 > band.warn
        ]
        return Judgement("", "; ".join(warned), facts)


def rank(name: str, settings: GeneratorSettings, reference: str | None) -> tuple[bool, bool]:
    """The smaller, the sooner is a replica the reference; of equals, the first of the settings."""
    on_cpu = vendors.kind_of(settings.device) == "cpu"
    plain = settings.engine == "torch" and settings.dtype == "float32" and on_cpu
    return name != reference, not plain
