"""The contract of every engine: requests go in, tokens come out, one step at a time.

    add(name, request) ──> waiting ──┐
                                     ├─ step() ──> Progress of every sequence that got a token
    running <────────────────────────┘             └─ its Completion, once that ended it
    abort(name)             what it made is forgotten; the others do not notice
    load(tensors, version)  between any two steps; what runs goes on under the new weights
    load_adapter(…)         the same of an adapter, beside the weights that were loaded last

Streams, joining in mid-flight, refilled slots and serving all come from that; `generate` is one
loop on top, the same for every engine. An engine belongs to one thread.

    engine.add("chat", Request("q1", prompt, 1, Sampling(max_tokens=200), seed=0))
    while engine.pending:
        for progress in engine.step():
            print(stream.push(progress.tokens[0]), end="")

What is exact: a sequence's noise is a function of (seed, problem id, number, position), so its
tokens depend on its company only through rounding: matrix products of other shapes may round
differently, and a token on the very edge flip. An engine that holds nothing, given the same
requests before its first step, gives the same bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from interlock.engine.budget import ThinkingBudget
from interlock.errors import ConfigError, ModelError
from interlock.records.adapters import AdapterForm
from interlock.records.replay import NO_REPLAY, Replay, RouteShape
from interlock.records.rl import Completion, Sampling, Segment
from interlock.records.serving import Alternatives, Rules

if TYPE_CHECKING:  # whoever serves or dispatches has no use for torch itself
    from torch import Tensor

# Called with the index of a request, once all of its completions are there.
OnFinished = Callable[[int, list[Completion]], None]
Shapes = dict[str, list[int]]  # of a model's tensors, by Hugging Face name
NO_RULES = Rules()


@dataclass(frozen=True)
class Request:
    """`completions` answers to one prompt. Their noise depends on seed and problem_id alone.

    `stop_ids` end an answer as the model's own end tokens do: what of `sampling.stop` is no text.
    `first` is the number of the first of them. `drawn`: what the only one was given and has drawn
    already, here or elsewhere; it goes on behind that as if it had never been interrupted.
    `replay`: what its completions are to tell. Where that is the kept sets, no more tokens than
    `sampling.most_kept` are drawn from, of equals the first.
    """

    problem_id: str
    prompt_tokens: list[int]
    completions: int
    sampling: Sampling
    seed: int
    stop_ids: frozenset[int] = frozenset()
    rules: Rules = NO_RULES
    first: int = 0
    drawn: Sequence[Segment] = ()
    owner: str = ""  # a prefix cache gives him nothing of what others asked
    budget: "ThinkingBudget | None" = None  # not beside rules that guide
    replay: Replay = NO_REPLAY

    @property
    def numbers(self) -> range:
        """Of its sequences."""
        return range(self.first, self.first + self.completions)

    @property
    def most_kept(self) -> int:
        """Of the kept set of each token that it is to tell; 0: none."""
        return self.sampling.most_kept if self.replay.kept else 0

    @property
    def begun(self) -> list[int]:
        """The tokens of `drawn`."""
        return [token for segment in self.drawn for token in segment.tokens]


class Progress(NamedTuple):
    """What one step did for one sequence."""

    name: str  # under which its request was added
    number: int  # of the sequence: one of request.numbers
    tokens: list[int]  # drawn in this step, or given (Request.budget); at least one
    logprobs: list[float]  # of these, under the distribution they were drawn from; 0.0 of given
    completion: Completion | None  # all of it, when these tokens ended it
    top: Sequence[Alternatives] = ()  # of each token, if Rules.top_logprobs asked
    cached: int = 0  # tokens of the prompt that were in the prefix cache; told with the first token


class Scores(NamedTuple):
    """Log-probabilities of given tokens at temperature 1, in nats."""

    logprobs: list[float]  # [n - 1]: of tokens[1:]
    top: list[list[tuple[int, float]]]  # [n - 1][top_k]: the most likely there, best first


class Limits(NamedTuple):
    """What an engine can take of its model, as it was opened."""

    vocab: int  # token ids are below it
    context: int  # tokens of a prompt and its completion together
    slots: int  # sequences that run at a time; more wait


class Engine(ABC):
    """What runs the forward pass for generation.

    `version` is that of the weights it serves; `description` names the engine with its version
    ("torch 2.13.0"); `device` and `dtype` are where and in what it computes, as settings name them.
    """

    version: int
    limits: Limits
    description: str
    device: str
    dtype: str

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """Of the weights that `load` takes."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Sequences that were added and are not finished."""

    @property
    def threads(self) -> int | None:
        """The fewest of torch's on a CPU since something was pending; None: not known."""
        return None

    def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Make now what the first request of its kind would have all others wait for."""

    @abstractmethod
    def add(self, name: str, request: Request) -> None:
        """Take a request; nothing is computed before the next step.

        Args:
            name: the caller's, not that of another pending request.

        Raises ConfigError on a request that can never be served.
        """

    @abstractmethod
    def step(self) -> list[Progress]:
        """Start what waits where slots are free, and draw the next token of what runs.

        An engine may keep a slot free for some steps, to start several requests together.

        Returns what every sequence that was given tokens got, in no particular order; nothing when
        nothing is pending, or while prompts are computed in parts and nothing runs beside them. A
        sequence that is finished has left the engine.

        Raises TrainingError when the model's logits are not finite, or the engine gives a sequence
        up; all that was pending is then aborted.
        """

    @abstractmethod
    def abort(self, name: str) -> bool:
        """Forget a request with all its sequences; no step mentions it again.

        Returns whether it was pending.
        """

    @abstractmethod
    def load(self, tensors: Mapping[str, "Tensor"], version: int) -> None:
        """Serve other weights: tensors under Hugging Face names, cast to the engine's dtype.

        Sequences that run go on with what they have drawn; their keys and values are computed anew,
        so every token is drawn from exactly the weights its segment names.

        Raises ModelError, with nothing changed, on a missing or unknown name or a wrong shape.
        """

    def merges(self, form: AdapterForm) -> str:
        """Why adapters of this form are to be merged, and loaded as weights; "": `load_adapter`
        takes them.
        """
        return "the engine takes no adapters"

    def load_adapter(
        self, tensors: Mapping[str, "Tensor"], form: AdapterForm, version: int
    ) -> None:
        """Serve the weights that `load` was given last, with this adapter beside them: tensors by
        PEFT's names. What runs goes on as of `load`.

        Raises ModelError, with nothing changed, as `load` does.
        """
        raise NotImplementedError

    @abstractmethod
    def score(self, tokens: Sequence[int], top_k: int = 0) -> Scores:
        """Log-probabilities of given tokens [n] through the prefill of a prompt.

        Does not touch what is pending. Raises ConfigError on a text that the model cannot read.
        """

    @abstractmethod
    def held(self) -> "Iterator[tuple[str, Tensor]] | None":
        """The weights as they are used, under Hugging Face names, and the adapter beside them, by
        PEFT's; None: they cannot be read.
        """

    def generate(
        self, requests: Sequence[Request], on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """All completions of all requests, in order; on_finished(index, completions) once a
        request has all of its own. For an engine that holds nothing else.

        The same call on the same weights gives the same bits. Raises what `add` and `step` raise;
        the engine then holds nothing.
        """
        assert not self.pending, "generate has the engine to itself"
        found: dict[str, dict[int, Completion]] = {str(i): {} for i in range(len(requests))}
        try:
            for index, request in enumerate(requests):
                self.add(str(index), request)
            while self.pending:
                for name, number, _, _, completion, *_ in self.step():
                    if completion is None:
                        continue
                    found[name][number] = completion
                    done = len(found[name]) == requests[int(name)].completions
                    if done and on_finished is not None:
                        on_finished(int(name), in_order(found[name]))
        except BaseException:
            for name in found:
                self.abort(name)
            raise
        return [in_order(each) for each in found.values()]


def in_order(completions: Mapping[int, Completion]) -> list[Completion]:
    """The completions of one request by their numbers."""
    return [completions[number] for number in sorted(completions)]


def check_request(request: Request, limits: Limits) -> None:
    """Raise ConfigError on a request that no engine with these limits can serve."""
    name, prompt, sampling = request.problem_id, request.prompt_tokens, request.sampling
    check_tokens(f"the prompt of problem {name!r}", prompt, limits)
    if len(prompt) + sampling.max_tokens > limits.context:
        raise ConfigError(
            f"problem {name!r} has {len(prompt)} prompt tokens, which with max_tokens = "
            f"{sampling.max_tokens} is more than the model's context of {limits.context}; lower "
            "max_tokens or leave the problem out"
        )
    if request.completions < 1 or sampling.max_tokens < 1:
        raise ConfigError(
            f"problem {name!r} asks for {request.completions} completions of at most "
            f"{sampling.max_tokens} tokens; ask for at least one of each"
        )
    if "" in sampling.stop:
        raise ConfigError("sampling.stop holds an empty string, which ends nothing; remove it")
    if request.drawn:
        _check_drawn(request, limits)
    _check_rules(name, request.rules, limits)
    if request.budget is not None:
        check_tokens(f"the end of thinking of problem {name!r}", request.budget.close, limits)


def check_routed(request: Request, shape: RouteShape | None) -> None:
    """Raise ConfigError where routes are to be told that the model, with routes of `shape`, has
    not; None: it has no experts."""
    if (wanted := request.replay.routes) is not None and wanted != shape:
        has = "has no experts" if shape is None else f"routes through {shape}"
        raise ConfigError(
            f"problem {request.problem_id!r} asks for routes as {wanted}, and the engine's model "
            f"{has}; give learner and generators the same model, or leave replay of routes out"
        )


def _check_drawn(request: Request, limits: Limits) -> None:
    name, begun = request.problem_id, request.begun
    if request.completions != 1:
        raise ConfigError(
            f"problem {name!r} asks for {request.completions} completions that go on behind drawn "
            "tokens; ask for one at a time"
        )
    check_tokens(f"what was drawn of problem {name!r}", begun, limits)
    for segment in request.drawn:
        if segment.sampled and len(segment.logprobs) != len(segment.tokens):
            raise ConfigError(
                f"what was drawn of problem {name!r} has {len(segment.tokens)} tokens with "
                f"{len(segment.logprobs)} logprobs; give as many"
            )
    if len(begun) >= request.sampling.max_tokens:
        raise ConfigError(
            f"problem {name!r} has drawn {len(begun)} of max_tokens = "
            f"{request.sampling.max_tokens} already; nothing is left to draw"
        )


def _check_rules(name: str, rules: Rules, limits: Limits) -> None:
    ids = {
        "logit_bias": list(rules.logit_bias),
        "grammar_after": rules.grammar_after,
        "thinking_begin": rules.thinking_begin,
        "thinking_end": rules.thinking_end,
    }
    for what, tokens in ids.items():
        if tokens:
            check_tokens(f"{what} of problem {name!r}", tokens, limits)
    if rules.thinking_budget is not None and not rules.thinking_end:
        raise ConfigError(
            f"problem {name!r} has a thinking budget but no thinking_end, so nothing can be forced "
            "at the limit; give the token ids that end the model's thinking"
        )


def check_tokens(what: str, tokens: Sequence[int], limits: Limits) -> None:
    """Raise ConfigError on tokens that the model cannot read; `what` names them."""
    if not tokens:
        raise ConfigError(f"{what} is empty; give it at least one token")
    if min(tokens) < 0 or max(tokens) >= limits.vocab:
        raise ConfigError(
            f"{what} has a token id outside the model's vocabulary of {limits.vocab}; use the "
            "tokenizer that belongs to the model"
        )


def check_scored(tokens: Sequence[int], top_k: int, limits: Limits, room: int = 0) -> None:
    """Raise ConfigError on a text that cannot be scored, with `room` tokens behind it in the
    context, or on more alternatives than there are tokens.
    """
    check_tokens("the text to score", tokens, limits)
    most = limits.context - room
    if len(tokens) > most:
        raise ConfigError(f"the text to score has {len(tokens)} tokens; give it at most {most}")
    if not 0 <= top_k <= limits.vocab:
        raise ConfigError(f"top_k = {top_k}: the model has {limits.vocab} tokens; ask for fewer")


def check_weights(tensors: Mapping[str, "Tensor"], shapes: Shapes, version: int) -> None:
    """Raise ModelError unless `tensors` have these names and shapes."""
    if odd := sorted(shapes.keys() ^ tensors.keys()):
        state = "lack the" if odd[0] in shapes else "have an unknown"
        raise ModelError(
            f"the weights of version {version} {state} tensor {odd[0]!r} ({len(odd)} such "
            "names); publish them from the model that this engine was opened with"
        )
    for name, shape in shapes.items():
        if list(tensors[name].shape) != shape:
            raise ModelError(
                f"tensor {name!r} of version {version} has the shape "
                f"{list(tensors[name].shape)}, but the model's is {shape}; publish weights of the "
                "same model"
            )
