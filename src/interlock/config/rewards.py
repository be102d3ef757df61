"""`[[stage.task.reward]]`: what an answer earns, as a weighted list; each kind a table of its own.

A task without any has its verifier alone, as it stands. docs/rewards.md has every formula.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from interlock.config.fields import (
    NonNegative,
    Positive,
    Processes,
    Rate,
    SettingsTable,
    Weight,
)
from interlock.config.judging import JudgeSettings

Language = Annotated[str, Meta(pattern="^[a-z]{2,3}$")]  # ISO 639
RewardName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}\Z")]  # within a figure's name
Bound = Annotated[float, Meta(ge=-1e6, le=1e6)]


class RewardSettings(SettingsTable, frozen=True, kw_only=True, tag_field="kind"):
    """Base of every kind of reward."""

    weight: Weight = 1.0  # of its value in the sum
    name: RewardName = ""  # what figures call it; "": its kind
    # Steps of the stage over which its weight falls evenly to 0, from all of it in the first; 0: it
    # stays. For what is to be learned at the beginning alone, such as the form of an answer.
    fades: NonNegative = 0

    def weight_at(self, step: int | None) -> float:
        """Its weight in one step, from 1; None: what is left of it for good."""
        if not self.fades:
            return self.weight
        left = 0 if step is None else max(0, self.fades + 1 - step)
        return self.weight * min(1.0, left / self.fades)

    @property
    def called(self) -> str:
        return self.name or str(self.__struct_config__.tag)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that it gives, before its weight."""
        return 0.0, 1.0

    def conflicts(self) -> Iterator[str]:
        """Why its settings do not go together."""
        low, high = self.bounds
        if low >= high:
            yield f"low = {low} is not below high = {high}"


class AccuracyReward(RewardSettings, frozen=True, kw_only=True, tag="accuracy"):
    """What the task's own verifier gives."""

    low: Bound = 0.0
    high: Bound = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


class FormatReward(RewardSettings, frozen=True, kw_only=True, tag="format"):
    """1 for thinking that is ended once, then one final answer; else 0.

    With `thinks = false` 1 for an answer without thoughts, be it behind an empty block.
    """

    # "text": anything; "boxed": one \\boxed{…}; "tag": <answer>…</answer> and nothing else.
    answer: Literal["text", "boxed", "tag"] = "text"
    thinks: bool = True


class LengthReward(RewardSettings, frozen=True, kw_only=True, tag="length"):
    """0 up to `free` tokens, falling evenly to -1 at `most`."""

    free: NonNegative
    most: Positive

    @property
    def bounds(self) -> tuple[float, float]:
        return -1.0, 0.0

    def conflicts(self) -> Iterator[str]:
        if self.free >= self.most:
            yield f"free = {self.free} is not below most = {self.most}"


class OverlongReward(RewardSettings, frozen=True, kw_only=True, tag="overlong"):
    """0 up to `zone` tokens before sampling.max_tokens, falling evenly to -1 there (DAPO)."""

    zone: Positive

    @property
    def bounds(self) -> tuple[float, float]:
        return -1.0, 0.0


class RepetitionReward(RewardSettings, frozen=True, kw_only=True, tag="repetition"):
    """Minus the share of an answer's n-grams of words that it has already said."""

    n: Annotated[int, Meta(ge=1, le=100)] = 4

    @property
    def bounds(self) -> tuple[float, float]:
        return -1.0, 0.0


class LanguageReward(RewardSettings, frozen=True, kw_only=True, tag="language"):
    """The share of an answer's words that are of one language.

    1 where there is no sentence of three words or more: nothing there is of another language.
    """

    language: Language = "en"
    among: list[Language] = []  # what else it may be taken for; []: any that is known

    def conflicts(self) -> Iterator[str]:
        if self.among and (self.language not in self.among or len(set(self.among)) < 2):
            yield f"among = {self.among} is to name {self.language!r} and another"


class PythonReward(RewardSettings, frozen=True, kw_only=True, tag="python"):
    """What a function of the user's gives."""

    function: str  # "path/to/file.py:function", called with the row and the answer's text
    low: Bound = 0.0
    high: Bound = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low, self.high


class JudgeReward(RewardSettings, frozen=True, kw_only=True, tag="judge"):
    """What a model behind a URL gives, 0 for its lowest score and 1 for its highest."""

    judge: JudgeSettings

    def conflicts(self) -> Iterator[str]:
        for why in self.judge.conflicts():
            yield f"judge.{why}"


class CodeReward(RewardSettings, frozen=True, kw_only=True, tag="code"):
    """1 where the program of an answer passes the hidden tests of its row, else 0."""

    timeout_s: Rate = 5.0  # of the program and the tests, together
    memory_mb: Positive = 1024
    workers: Processes = 1


AnyReward = (
    AccuracyReward
    | FormatReward
    | LanguageReward
    | LengthReward
    | OverlongReward
    | RepetitionReward
    | PythonReward
    | JudgeReward
    | CodeReward
)
# What does not run in the verifier's process: it asks over a network, or starts sandboxes.
OUTSIDE = (JudgeReward, CodeReward)


def rewards_at(rewards: Sequence[AnyReward], step: int | None) -> list[AnyReward]:
    """With the weights of one step."""
    return [replace(each, weight=each.weight_at(step), fades=0) for each in rewards]


def reward_conflicts(rewards: Sequence[AnyReward]) -> Iterator[str]:
    """Why the rewards of one task do not go together."""
    for called, times in Counter(each.called for each in rewards).items():
        if times > 1:
            yield f"reward: {times} are called {called!r}; give each a name of its own"
    for each in rewards:
        if not isinstance(each, AccuracyReward) and each.called == "accuracy":
            yield f'reward: a {type(each).__name__} is called "accuracy"; give it another name'
        for why in each.conflicts():
            yield f"reward.{each.called}.{why}"
    if sum(isinstance(each, AccuracyReward) for each in rewards) > 1:
        yield "reward: a task has one verifier; remove one of kind accuracy"
    if rewards and not any(each.weight for each in rewards):
        yield "reward: every weight is 0, so that nothing is taught; raise one"
    elif rewards and not any(each.weight_at(None) for each in rewards):
        yield "reward: every weight fades, and then nothing is taught; set fades = 0 for one"


def room_conflicts(rewards: Sequence[AnyReward], max_tokens: int) -> Iterator[str]:
    """What does not go with the tokens that an answer may have: it would punish every answer."""
    for each in rewards:
        if isinstance(each, OverlongReward) and each.zone > max_tokens:
            yield (
                f"reward.{each.called}.zone = {each.zone} is more than sampling.max_tokens = "
                f"{max_tokens}; lower it"
            )
