"""One comparison of two sides: what is asked of them, and what becomes of the answers.

model, prompts ──> side a ─ greedy, samples ─┐
               └─> side b ─ greedy, samples ─┴─ forced on both ──> differences, verdict
                   both ─── weights ─────────────────────────────> what they hold
                   both ─── passes, operators (bisect.py) ───────> where they part
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from interlock import __version__
from interlock.config.schema import GuardSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError
from interlock.models.huggingface import read_architecture
from interlock.models.tokenizer import Tokenizer
from interlock.parity.bisect import Bisection, bisect
from interlock.parity.figures import Difference, TaskResult, difference, greedy, task_result
from interlock.parity.outcome import (
    Answer,
    How,
    Parted,
    Report,
    SideFacts,
    Weights,
    judged,
    weights,
)
from interlock.parity.prompts import prompts
from interlock.parity.sides import ANSWER_S, SideFailed, Sides, SideSpec
from interlock.records.rl import Completion, Group, Problem, Sampling
from interlock.tasks import open_task
from interlock.tasks.verifier_pool import VerifierPool
from interlock.workers.protocol import Generate, Scored, ScoreTexts, Text, Weigh, Weighed
from interlock.workers.reading import Reader

Note = Callable[[str], None]

_SEEDS = {"a": 0, "b": 1}  # from one seed, equal engines draw one text, which would count twice
_PARTED = 4  # differing answers kept
_PREFILL_TOKENS, _DECODE_TOKENS = 1024, 32  # of the text that is bisected


class Question(msgspec.Struct, frozen=True):
    """What to compare. `problems` of the task, if there is one, are asked besides the prompts."""

    model: Path
    a: SideSpec
    b: SideSpec
    b_model: Path | None = None  # the same model in other files, such as a converted one
    task: TaskSettings | None = None
    problems: int = 64
    samples: int = 2  # answers drawn at temperature 1, per prompt and side
    sampling: Sampling = Sampling(max_tokens=64)  # limits of every answer
    band: GuardSettings = GuardSettings()
    bisect: bool = False
    answer_s: float = ANSWER_S  # for a side to answer one request

    def directory(self, side: str) -> Path:
        return self.b_model if side == "b" and self.b_model is not None else self.model


def compare(question: Question, logs: Path, note: Note) -> Report:
    """Run both sides, measure and judge. `logs`: an existing directory for what they print.

    Raises UserError for what the user can mend, TrainingError when a side is lost.
    """
    begun = time.time()
    specs = {"a": question.a, "b": question.b}
    _check(question)
    problems, asked, left_out = _problems(question)
    with Sides(logs, question.answer_s) as sides:
        for name, spec in specs.items():
            sides.start(name, spec.label, spec.python)
        note(f"starting {question.a.label} and {question.b.label}")
        opened = sides.open({n: (question.directory(n), s.settings) for n, s in specs.items()})
        facts = {
            n: SideFacts(specs[n].label, o.engine, o.device, o.dtype, o.stack)
            for n, o in opened.items()
        }
        note("comparing weights")
        weighed = sides.ask({"a": Weigh(), "b": Weigh()}, Weighed)
        held = weights(weighed["a"].tensors, weighed["b"].tensors)
        trials = _Trials(sides, question, note)
        try:
            trials.run(problems)
        except SideFailed as error:
            trials.failures.append(str(error))
        found = None
        if question.bisect:
            note("looking for the place where they part")
            found = _bisect(sides, question, facts, trials)
    return _report(question, facts, held, trials, found, asked, left_out, time.time() - begun)


def _check(question: Question) -> None:
    counts = {"samples": question.samples, "problems": question.problems}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{name} {count}: ask for at least one")
    if not question.answer_s > 0:
        raise ConfigError(f"--timeout {question.answer_s:g}: give a number of seconds above 0")
    for spec in (question.a, question.b):
        if question.bisect and spec.engine != "torch":
            raise ConfigError(
                f"--bisect looks into the layers of torch engines, and side {spec.name} is "
                f"{spec.label}; leave it out, or compare with torch:{spec.device}"
            )


def _problems(question: Question) -> tuple[list[Problem], int, int]:
    """What is asked: the prompts that fit, then the task's problems; how many of the latter; and
    how many prompts are left out because they do not fit into the model's context.
    """
    tokenizer = Tokenizer.load(question.model)
    context = read_architecture(question.model).context
    room = context - question.sampling.max_tokens

    def fits(problem: Problem) -> bool:
        return len(tokenizer.chat(problem.messages, **problem.template)) < room

    shipped = prompts()
    kept = [problem for problem in shipped if fits(problem)]
    held_out: list[Problem] = []
    if question.task is not None:
        held_out = list(open_task(question.task).held_out(question.problems))
    if long := next((problem for problem in held_out if not fits(problem)), None):
        raise ConfigError(
            f"--max-tokens {question.sampling.max_tokens}: problem {long.id!r} and its answer are "
            f"more than the model's context of {context}; lower it"
        )
    if not kept and not held_out:
        raise ConfigError(
            f"--max-tokens {question.sampling.max_tokens} leaves no room for a prompt in the "
            f"model's context of {context}; lower it"
        )
    return kept + held_out, len(held_out), len(shipped) - len(kept)


class _Trials:
    """What the sides did: as far as they came."""

    def __init__(self, sides: Sides, question: Question, note: Note) -> None:
        self._sides, self._question, self._note = sides, question, note
        model = question.model
        self._reader = Reader(Tokenizer.load(model), read_architecture(model).vocab)
        self.greedy: dict[str, list[Group]] = {}
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    def run(self, problems: list[Problem]) -> None:
        """Raises SideFailed; what was measured before that stays."""
        limits = self._question.sampling
        coldest = Sampling(0.0, max_tokens=limits.max_tokens, stop=limits.stop)
        warm = Sampling(1.0, max_tokens=limits.max_tokens, stop=limits.stop)
        self._note(f"{len(problems)} greedy answers each")
        self.greedy = self._generate(problems, 1, coldest)
        self._note(f"{len(problems)} × {self._question.samples} sampled answers each")
        drawn = self._generate(problems, self._question.samples, warm)
        alone = self._generate(problems[:1], 1, warm)
        written = [
            *_written(self.greedy["a"], "a", How.GREEDY),
            *(each for side in "ab" for each in _written(drawn[side], side, How.DRAWN)),
            *(each for side in "ab" for each in _written(alone[side], side, How.ALONE)),
        ]
        self._note(f"{len(written)} texts scored by both")
        texts = [answer.prompt + answer.tokens for answer in written]
        scored = self._sides.ask({"a": ScoreTexts(texts), "b": ScoreTexts(texts)}, Scored)
        self.answers = [
            answer.scored(a, b)
            for answer, a, b in zip(
                written, scored["a"].logprobs, scored["b"].logprobs, strict=True
            )
        ]

    def _generate(
        self, problems: list[Problem], completions: int, sampling: Sampling
    ) -> dict[str, list[Group]]:
        # Exact: what is asked together is computed together, and alone means alone.
        groups = self._sides.generate(
            {
                side: Generate(0, problems, completions, sampling, seed, exact=True)
                for side, seed in _SEEDS.items()
            },
            self._reader,
        )
        for a, b in zip(groups["a"], groups["b"], strict=True):
            if a.prompt_tokens != b.prompt_tokens:
                raise ConfigError(
                    f"the two sides read the prompt {a.problem.id!r} as other tokens; give both "
                    "the same tokenizer and chat template"
                )
        return groups


def _written(groups: Sequence[Group], side: str, how: How) -> list[Answer]:
    def one(group: Group, answer: Completion) -> Answer:
        prompt = group.prompt_tokens
        return Answer(group.problem.id, side, how, prompt, answer.tokens, answer.logprobs)

    return [one(group, answer) for group in groups for answer in group.completions]


def _bisect(
    sides: Sides, question: Question, facts: dict[str, SideFacts], trials: _Trials
) -> Bisection | None:
    """On the text that the sides disagree about most, or the longest when there are no scores."""
    if trials.answers:
        worst = max(trials.answers, key=lambda answer: answer.apart)
        prompt, answer = worst.prompt, worst.tokens
    elif trials.greedy:
        group = max(trials.greedy["a"], key=lambda group: len(group.prompt_tokens))
        prompt, answer = group.prompt_tokens, group.completions[0].tokens
    else:  # a side could not even answer
        tokenizer = Tokenizer.load(question.model)
        texts = [
            tokenizer.chat(problem.messages, **problem.template)
            for problem in _problems(question)[0]
        ]
        prompt = max(texts, key=len)
        prompt, answer = prompt[:-8], prompt[-8:]
    whole = prompt + answer
    prefill = Text(whole[:1], whole[1:_PREFILL_TOKENS], decode=False)
    decode = Text(prompt[:_PREFILL_TOKENS], answer[:_DECODE_TOKENS], decode=True)
    dtypes = {name: each.dtype for name, each in facts.items()}
    return bisect(sides, str(question.model), dtypes, prefill, decode)


def _report(
    question: Question,
    facts: dict[str, SideFacts],
    held: Weights,
    trials: _Trials,
    found: Bisection | None,
    asked: int,
    left_out: int,
    seconds: float,
) -> Report:
    pairs = []
    if trials.greedy:
        pairs = [
            (a.completions[0].tokens, b.completions[0].tokens)
            for a, b in zip(trials.greedy["a"], trials.greedy["b"], strict=True)
        ]
    report = Report(
        model=str(question.model),
        a=facts["a"],
        b=facts["b"],
        band=question.band,
        weights=held,
        failures=trials.failures,
        differences=_differences(trials.answers),
        greedy=greedy(pairs) if pairs else None,
        parted=_parted(trials.greedy),
        task=_task(question, trials, asked),
        bisection=found,
        answers=trials.answers,
        left_out=left_out,
        seconds=seconds,
        created=time.time(),
        interlock=__version__,
    )
    return judged(report)


def _differences(answers: Sequence[Answer]) -> list[Difference]:
    """Every pair of scores of the same tokens that should agree; `ours` is of who wrote them."""
    rows = [
        ("B against A, A's greedy answers", "a", How.GREEDY, "b", "a"),
        ("B against A, answers drawn by A", "a", How.DRAWN, "b", "a"),
        ("A against B, answers drawn by B", "b", How.DRAWN, "a", "b"),
        ("A's prefill against A as it drew", "a", How.DRAWN, "a", "decode"),
        ("B's prefill against B as it drew", "b", How.DRAWN, "b", "decode"),
        ("A's prefill against B as it drew", "b", How.DRAWN, "a", "decode"),
        ("A's prefill against A drawing one answer alone", "a", How.ALONE, "a", "decode"),
        ("B's prefill against B drawing one answer alone", "b", How.ALONE, "b", "decode"),
    ]
    found = []
    for name, side, how, theirs, ours in rows:
        written = [each for each in answers if each.side == side and each.how is how]
        if written:
            scores = [
                [value for each in written for value in getattr(each, score)]
                for score in (theirs, ours)
            ]
            found.append(difference(name, "".join(sorted({theirs, side})), *scores))
    return found


def _parted(groups: Mapping[str, Sequence[Group]]) -> list[Parted]:
    pairs = zip(groups.get("a", ()), groups.get("b", ()), strict=True)
    found = [
        Parted(a.problem.messages[-1]["content"], a.completions[0].text, b.completions[0].text)
        for a, b in pairs
        if a.completions[0].tokens != b.completions[0].tokens
    ]
    return found[:_PARTED]


def _task(question: Question, trials: _Trials, asked: int) -> TaskResult | None:
    if question.task is None or not trials.greedy:
        return None
    verdicts = {}
    with VerifierPool(question.task) as verifier:
        for side, groups in trials.greedy.items():
            pairs = [(group.problem, group.turns[0]) for group in groups[-asked:]]
            verdicts[side] = verifier.verify(pairs)
    return task_result(question.task.name, verdicts["a"], verdicts["b"])
