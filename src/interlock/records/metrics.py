"""What is told of a run while it goes on: metrics of every step, events, what workers do.

    recipes ── StepMetrics, Event ──> metrics.jsonl, events.jsonl ──> report
                                  └─> sinks: the terminal, trackers

None stands for what a stage does not have or a step did not measure. Where a figure is not finite,
its line in a file says null, which reads as None again.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, get_args

import msgspec

from interlock.mismatch import Mismatch
from interlock.records.coding import Count, Time, Whole


class WorkerState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"  # it holds no unit, and is given weights
    READY = "ready"  # it has nothing to do
    GENERATING = "generating"  # it holds units; new weights are loaded beside these
    RESTARTING = "restarting"
    QUARANTINED = "quarantined"  # its numbers are off: not used, unless it is qualified anew
    QUALIFYING = "qualifying"  # in quarantine, and its device is being qualified
    RETIRED = "retired"  # failed too often

    @property
    def at_work(self) -> bool:
        return self in (WorkerState.READY, WorkerState.LOADING, WorkerState.GENERATING)


OUT_OF_USE = frozenset({WorkerState.QUARANTINED, WorkerState.QUALIFYING})


class WorkerMetrics(msgspec.Struct, gc=False):
    """One worker's present and past, as shown and logged. Counts and sums are over the session."""

    state: WorkerState = WorkerState.STARTING
    engine: str | None = None
    device: str | None = None
    dtype: str | None = None
    trust: str | None = None  # of its certificate; "cpu", which needs none; or "unqualified"
    weight_version: Count | None = None
    chip: str | None = None  # the name that the device's driver gives
    serial: str | None = None  # of the device; "": it has none, or does not tell
    groups: Count = 0  # given
    tokens: Count = 0  # sampled
    seconds_generating: float = 0.0  # while it held units
    seconds_loading: float = 0.0  # while weights were fetched, loaded and proven, perhaps beside
    seconds_busy: float = 0.0  # either
    fetched_bytes: Count = 0
    dropped: Count = 0  # groups too old, or of a worker in quarantine
    redispatched: Count = 0  # units taken from it and given out again
    refused: Count = 0  # answers that were garbage
    restarts: Count = 0
    requalified: Count = 0  # times that its device was qualified anew
    threads: Count | None = None  # the fewest of its last unit; of an inline generator on a CPU
    canary_k3: float | None = None  # nats per token; learner against prefill, text and weights same
    # Of the learner against what it sampled, by staleness in versions; of the logged step only.
    mismatch: dict[Count, Mismatch] = {}


class TaskMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """Of one task, in a stage that has several. Means are over the completions."""

    reward: float | None = None  # mean
    correct: float | None = None  # share of right answers
    length: float | None = None  # mean, tokens; of what was sampled to learn from
    thinking_cut: Count | None = None  # completions whose thinking its budget ended
    groups: Count | None = None  # used
    completions: Count | None = None


class PoolMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """How the problems of a task stand that is drawn by pass rate, after a step."""

    problems: Count | None = None  # all that there are
    retired: Count | None = None  # of these, solved and drawn no more
    untried: Count | None = None  # of the others, without a pass rate
    rates: dict[str, Count] = {}  # the rest, by ranges of their pass rates


class RewardMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """One reward of a weighted list in one step. Figures "within groups" compare the completions
    of one problem with one another alone, as an advantage does: recipes/earnings.py.
    """

    weight: float | None = None  # mean, where tasks differ
    low: float | None = None  # the least that it may give, as declared
    high: float | None = None
    mean: float | None = None  # of the completions that have it, before its weight
    earned: float | None = None  # mean over all of weight * value: these add up to the reward
    error: float | None = None  # standard error of that, over groups
    # Of the variance of rewards within groups: cov(weight * value, reward) / var(reward). Those of
    # a list add up to 1; one that pays against the others is below 0.
    share: float | None = None
    tie: float | None = None  # correlation within groups with the verifier's own verdict, -1 to 1
    tie_error: float | None = None  # standard error of that, were there no tie
    at_low: float | None = None  # share of the completions that are at the bound
    at_high: float | None = None


class RolloutMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """What a step sampled and used. Means are over its completions unless said otherwise."""

    reward: float | None = None  # mean
    reward_error: float | None = None  # standard error of that, over groups
    correct: float | None = None  # share of right answers (Verdict.right)
    parts: dict[str, float] = {}  # of the rewards, by name; mean of the completions that have it
    length: float | None = None  # mean, tokens
    thinking_length: float | None = None  # mean, tokens; with answer_length it is the length
    answer_length: float | None = None
    thinking_open: float | None = None  # share whose thinking never ends: all of it is thinking
    rewards: dict[str, RewardMetrics] = {}  # of a weighted list, by name
    verdict: float | None = None  # mean of what the verifier itself gives, whatever else is paid
    verdict_error: float | None = None
    # Within groups: reward per 100 tokens; the share of the rewards' variance that length explains,
    # those that are declared to be about length left out; and its correlation with the verdict.
    length_slope: float | None = None
    length_share: float | None = None
    length_tie: float | None = None
    length_tie_error: float | None = None
    truncated: float | None = None  # share that ended by max_tokens
    tokens: Count | None = None  # sampled, of all completions
    thinking_cut: Count | None = None  # completions whose thinking its budget ended
    groups: Count | None = None  # used
    completions: Count | None = None  # in these
    groups_skipped: Count | None = None  # of these, the ones that teach nothing: all rewards equal
    groups_extra: Count | None = None  # of `groups`, made in place of such ones
    groups_stale: Count | None = None  # dropped while the step waited: of too old a version
    groups_set_aside: Count | None = None  # problems that the workers failed on
    staleness_mean: float | None = None  # versions, over the groups used
    staleness_max: Count | None = None  # versions
    verifier_errors: Count | None = None  # completions that the verifier failed on, and score 0
    # Completions that what judges was not there for: in none of the means of rewards.
    discarded: Count | None = None
    retried: Count | None = None  # times that one of them was tried again; of this session
    # What a model as the judge cost since the step before, evaluations included, by name: requests,
    # retries, prompt_tokens, completion_tokens, seconds, money; unasked. Of this session.
    judge: dict[str, float] = {}
    tasks: dict[str, TaskMetrics] = {}  # of each, where there are several
    pools: dict[str, PoolMetrics] = {}  # of each task that is drawn by pass rate


class ReplayMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """What normalising over the kept sets (records/replay.py) does in one step: of the tokens that
    were drawn from such sets, with r = pi / mu of each. Where several updates learn from the same
    groups, pi is the policy before the first.
    """

    tokens: Count | None = None
    kept_mass: float | None = None  # mean; what the learner gives the sets
    far_share: float | None = None  # of the tokens, those whose r is outside 0.9 to 1.1
    whole_far_share: float | None = None  # the same, with pi over the whole vocabulary
    whole: Mismatch | None = None  # likewise: what update.mismatch would be without


class UpdateMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """What the optimizer steps of one step did. Means are over these."""

    loss: float | None = None  # mean; a sum over tokens, whose weights hold the normalisation
    grad_norm: float | None = None  # mean; before clipping
    lr: float | None = None  # mean
    entropy: float | None = None  # mean; nats per token
    kl: float | None = None  # mean; k3 against the reference, nats per token
    mismatch: Mismatch | None = None  # learner against sampler on the sampler's tokens
    clipped_share: float | None = None  # mean; of the tokens
    # Mean; of the tokens with a weight, those that gave no gradient: by the rule or the correction.
    masked_share: float | None = None
    # Mean; (sum r)^2 / (n sum r^2) of r = pi / mu over the n tokens with a weight: 1 on-policy.
    effective_share: float | None = None
    off_policy_share: float | None = None  # of the answers, left out for being off-policy
    off_policy_threshold: float | None = None  # for that; nats per token
    corrected_share: float | None = None  # mean; of the tokens: factor truncated or masked
    vetoed: Count | None = None  # tokens: pi / mu is below tis_veto
    tokens: Count | None = None  # trained on
    tokens_per_s: float | None = None  # of these, by the seconds of the update; where it is all
    bad_steps: Count | None = None  # optimizer steps that were not finite, and changed nothing
    # Of a mixture, means: the busiest expert's tokens over the mean of its layer, in the layer that
    # is worst (1 is even); and the share of the experts that no token chose.
    expert_load: float | None = None
    experts_idle: float | None = None
    mtp_loss: float | None = None  # mean; nats per token that was predicted two ahead
    replay: ReplayMetrics = ReplayMetrics()


class TeacherMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """What one teacher said of a step. Means are over the sampled tokens that it scored."""

    tokens: Count | None = None
    # Mean, nats per token, of the student against it: over the whole vocabulary where the loss has
    # that ("jsd"), else estimated on the sampled tokens.
    reverse_kl: float | None = None
    divergence: float | None = None  # mean, nats per token; what the loss makes smaller
    overlap: float | None = None  # mean; share of its top_k tokens that are the student's, too
    # Mean; how much likelier it finds those common tokens than the student does, log nu - log pi
    # weighted by the student's probabilities among them.
    overlap_advantage: float | None = None
    seconds: float | None = None  # that it took to score
    asked_tokens: Count | None = None  # that an endpoint was given to read, prompts included
    retries: Count | None = None  # requests that an endpoint was sent again


class StepSeconds(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """Where the time of one step went, in seconds; `step` is all of it."""

    generate: float | None = None  # the learner's generator, or workers with nothing beside them
    wait: float | None = None  # for groups of workers that go on meanwhile
    verify: float | None = None
    update: float | None = None
    publish: float | None = None
    step: float | None = None


class PublishMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True):
    """The weight versions that were written for the workers since the last step."""

    bytes: Count | None = None
    anchors: Count = 0  # versions written whole
    deltas: Count = 0


class CostMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """What the run has used until now, its earlier sessions counted (records/cost.py)."""

    hours: float | None = None  # pauses between sessions left out
    chip_hours: float | None = None
    chip_hours_of: dict[str, float] = {}  # by role
    unpriced_hours: float | None = None  # of chips whose price is not known
    money: dict[str, float] = {}  # by currency, of the other chips; the middle of low and high
    kwh: float | None = None  # None: nothing tells of the energy
    tokens: float | None = None  # sampled, and learned from


class StepMetrics(msgspec.Struct, gc=False, frozen=True, omit_defaults=True, kw_only=True):
    """All that is logged of one step: a line of metrics.jsonl, and what sinks are given.

    A part that a stage does not have is there all the same, with nothing in it: of an SFT step
    `metrics.rollout.reward` is None, and `metrics.scalars()` has no "rollout/reward".
    """

    time: Time | None = None  # unix seconds when it was logged
    stage: Whole
    step: Whole  # from 1; 0: the weights that the stage begins with
    kind: str = ""  # of the stage
    accuracy: float | None = None  # share of right answers to held-out problems after the step
    held_out_reward: float | None = None  # mean reward of the same answers
    held_out_loss: float | None = None  # nats per token of held-out texts, where there are some
    pass_at: dict[Count, float] = {}  # by k: the chance that one of k such answers is right
    held_out: dict[str, TaskMetrics] = {}  # of these answers by task, where there are several
    weight_version: Count | None = None  # of the weights after the step
    rollout: RolloutMetrics = RolloutMetrics()
    update: UpdateMetrics = UpdateMetrics()
    seconds: StepSeconds = StepSeconds()
    published: PublishMetrics = PublishMetrics()
    teachers: dict[str, TeacherMetrics] = {}  # of a distill stage, by name
    workers: dict[str, WorkerMetrics] = {}
    cost: CostMetrics = CostMetrics()

    def scalars(self) -> dict[str, float]:
        """Every number by a path, as trackers want them: "rollout/reward", "seconds/update".

        Where and when (`time`, `stage`, `step`) are not among them.
        """
        tree = msgspec.to_builtins(self, str_keys=True)
        for place in ("time", "stage", "step"):
            tree.pop(place, None)
        return dict(_numbers(tree, ""))


def _numbers(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


EventKind = Literal[
    "resumed",
    "recovered",  # what a kill had left torn
    "settings_changed",
    "extended",  # by stages
    "moved",  # a part of the run goes on on another device
    "move_refused",  # a device did not prove that it may
    "bundled",  # written as a bundle, to go on on another machine
    "student_made",  # a stage begins with some layers of the weights that it would start from
    "started_from",  # a stage began with other weights than those that the one before it left
    "problems_dropped",  # repeated or held out
    "rows_left_out",
    "turns_unclosed",  # the template ends them with no token that generation could stop at
    "verifier_error",
    "judge_down",  # a service was unreachable so often that it was left alone for a while
    "answers_discarded",  # what judges was not there: no zeros, and in no statistic
    "data_made",  # of sampled answers: how many were kept, and why not the others
    "bad_step",  # not finite: skipped
    "teacher_held",  # in the learner's process, and in how much memory
    "teacher_late",  # an endpoint is asked again
    "reference_replaced",  # what the KL is against
    "sample_size_fell",  # few tokens carry the gradient
    "mask_loosened",  # fewer tokens are masked while learner and sampler move apart
    "reward_hacked",  # a reward grows, and what the verifier says does not
    "off_policy_idle",  # off-policy masking knows no threshold
    "accuracy_fell",  # to less than half of its best
    "nothing_taught",  # no group's rewards differ
    "little_taught",  # few groups' do
    "form_never_met",
    "entropy_collapsed",
    "answers_cut",  # by max_tokens
    "groups_stale",
    "budget_low",  # a share of a limit of [budget] is used
    "budget_spent",
    "problem_set_aside",
    "task_solved",  # too few of its problems are left to draw from
    "unqualified",  # a device is used without a certificate
    "sizes_untried",  # the model is larger than what the device's certificate was made at
    "threads_changed",  # as other processes came or went
    "sandboxed",  # by which way answers are judged in isolation
    "unsandboxed",  # what the model wrote is executed without isolation
    "worker_started",
    "adapter_merged",  # with its weights, for an engine that does not take it
    "worker_failed",
    "worker_lost",
    "worker_late",
    "worker_silent",
    "worker_garbage",
    "worker_unproven",
    "worker_mismatch",
    "worker_quarantined",
    "worker_qualifying",
    "worker_readmitted",
    "worker_retired",
    "worker_refused",  # outside of the band of parity: it serves nothing
    "weights_served",  # a replica serves another version
    "weights_unfit",  # a version that no replica can load
    "weights_whole",  # a delta would have saved next to nothing
    "store_mended",
    "store_damaged",
    "sink_failed",
    "other",  # read from a run of another version, whose word stands in the facts as "kind"
]
EVENT_KINDS: frozenset[str] = frozenset(get_args(EventKind))


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a run and is worth a line of events.jsonl."""

    time: Time  # unix seconds
    kind: EventKind
    message: str  # one line, for a reader
    worker: str | None = None  # whom it is about
    facts: dict[str, str] = {}  # more, by kind

    @property
    def name(self) -> str:
        """The kind in words."""
        word = self.facts.get("kind", self.kind) if self.kind == "other" else self.kind
        return word.replace("_", " ")
