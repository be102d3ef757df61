"""What flows between the endpoint and the replicas that serve it: tokens, never text.

    endpoint ── Generation ──> Replicas ── to one replica ──> tokens, step by step
             <── Piece ───────     └── it dies: what is missing goes to another, with what was drawn
             <── Ended ───────

A token's noise is a function of (seed, Generation.noise, number of the choice, position), so an
equal replica that goes on from the tokens drawn so far draws the same ones.
"""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from interlock.records.rl import FinishReason, Sampling, Segment


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request asks of its tokens beside `Sampling`.

    The logprobs told are of the distribution that was drawn from, these rules included.
    """

    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] = {}  # by token id
    top_logprobs: Annotated[int, Meta(ge=0, le=64)] = 0  # alternatives told of every token
    # A llguidance grammar that the answer keeps to ("" none), from its beginning or, where
    # `grammar_after` is not empty, behind these token ids: the end of thinking.
    grammar: str = ""
    grammar_after: list[int] = []
    # Tokens of thinking, after which `thinking_end` is forced if it was not drawn before; None: as
    # many as the model likes. `thinks`: the prompt ends inside of thinking.
    thinking_budget: Annotated[int, Meta(ge=0)] | None = None
    thinking_begin: list[int] = []
    thinking_end: list[int] = []
    thinks: bool = False
    ignore_eos: bool = False  # for measurements: max_tokens, or a stop string, alone ends it

    @property
    def guided(self) -> bool:
        """Whether something is to be done about the logits."""
        return bool(self.logit_bias or self.grammar or self.thinking_budget is not None)


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt, to be continued `choices` times."""

    prompt: list[int]  # [P] token ids
    sampling: Sampling
    seed: int
    noise: str = ""  # beside the seed; the same for requests that are to draw the same
    choices: int = 1
    rules: Rules = Rules()
    stop_ids: list[int] = []  # end an answer as the model's own end tokens do
    key: str = ""  # who asks: keys share the queue fairly; never the secret itself
    priority: int = 0  # higher goes first
    # What choice 0 has drawn already, elsewhere: it goes on behind that. Only where choices is 1.
    drawn: list[Segment] = []
    first: int = 0  # number of the first choice
    # The prompt's own log-probabilities are told too, with so many alternatives; None: not.
    prompt_logprobs: Annotated[int, Meta(ge=0, le=64)] | None = None


Alternatives = list[tuple[int, float]]  # token ids with their logprobs, best first


class Piece(msgspec.Struct, frozen=True):
    """What was drawn of one choice since its last piece."""

    number: int  # of the choice
    tokens: list[int]  # [n]
    logprobs: list[float]  # [n]
    top: list[Alternatives] = []  # [n], where Rules.top_logprobs asked for it
    version: int = 0  # of the weights that drew them
    finish: FinishReason | None = None  # why the choice ends with it
    replica: str = ""  # that drew it
    cached: int = 0  # tokens of the prompt that were in its prefix cache; told with the first piece


class PromptScores(msgspec.Struct, frozen=True):
    """Log-probabilities of the prompt's tokens at temperature 1; told before any piece."""

    logprobs: list[float]  # [P - 1]: of prompt[1:]
    top: list[Alternatives] = []  # [P - 1]


class EndKind(StrEnum):
    DONE = "done"  # every choice has its finish
    MISTAKE = "mistake"  # it can never be served: the asker has to mend it
    LOST = "lost"  # no replica could end it
    LATE = "late"  # its deadline passed


class Ended(msgspec.Struct, frozen=True):
    """Nothing more comes of a generation."""

    kind: EndKind
    reason: str = ""  # one line
    moved: int = 0  # times that it went on on another replica


Told = Piece | PromptScores | Ended


class ReplicaState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"  # weights of another version
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, and is given nothing more
    REFUSED = "refused"  # outside of its band, or without a certificate: it serves nothing
    RESTARTING = "restarting"
    RETIRED = "retired"

    @property
    def serves(self) -> bool:
        return self in (ReplicaState.READY, ReplicaState.DRAINING)


class ReplicaFacts(msgspec.Struct, frozen=True):
    """One replica, for /v1/models, /metrics and the page."""

    name: str
    state: ReplicaState
    reason: str = ""  # why it does not serve
    engine: str = ""  # "torch 2.13.0"
    device: str = ""
    dtype: str = ""
    trust: str = ""  # its certificate's, or "unqualified"
    version: int | None = None
    parity: dict[str, Any] = {}  # against the reference: k3, tokens, band
    slots: int = 0
    running: int = 0  # sequences in the engine
    outstanding_tokens: int = 0  # that it was given and has not drawn, prompts included
    tokens_per_s: float = 0.0  # as measured while it worked
    restarts: int = 0
    served: int = 0  # generations that it ended
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
