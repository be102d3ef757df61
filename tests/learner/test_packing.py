import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlock.errors import TrainingError
from interlock.learner.packing import MicroBatch, TrainingGroup, labels_of, pack

CPU = torch.device("cpu")


def group(
    prompt: list[int], completions: list[list[int]], sampler: bool = True, label: str = ""
) -> TrainingGroup:
    weights = [[1.0] * len(tokens) for tokens in completions]
    logprobs = [[-1.0] * len(tokens) for tokens in completions] if sampler else None
    return TrainingGroup(prompt, completions, weights, logprobs, label=label)


def test_the_prompt_is_computed_once_and_last_tokens_are_no_inputs() -> None:
    first = TrainingGroup(
        prompt=[1, 2, 3],
        completions=[[4, 5], [6], [7, 8, 9]],
        weights=[[0.1, 0.2], [0.3], [-0.4, -0.5, -0.6]],
        sampler_logprobs=[[-1, -2], [-3], [-4, -5, -6]],
        kl_weights=[[1, 2], [3], [4, 5, 6]],
    )
    second = TrainingGroup([10], [[11, 12]], [[0.7, 0.8]], [[-7, -8]], None)
    (batch,) = pack([first, second], 100, 20, CPU)
    # row:                       0  1  2  3  4  5   6   7
    assert batch.tokens.tolist() == [1, 2, 3, 4, 7, 8, 10, 11]
    assert batch.attend.positions.tolist() == [0, 1, 2, 3, 3, 4, 0, 1]
    assert batch.rows.tolist() == [2, 3, 2, 2, 4, 5, 6, 7]
    assert batch.targets.tolist() == [4, 5, 6, 7, 8, 9, 11, 12]
    assert batch.source.tolist() == list(range(8))
    assert batch.weights.tolist() == pytest.approx([0.1, 0.2, 0.3, -0.4, -0.5, -0.6, 0.7, 0.8])
    assert batch.sampler_logprobs is not None and batch.kl_weights is not None
    assert batch.sampler_logprobs.tolist() == [-1, -2, -3, -4, -5, -6, -7, -8]
    assert batch.kl_weights.tolist() == [1, 2, 3, 4, 5, 6, 0, 0]


def test_tokens_without_weight_are_context_unless_a_sampler_is_measured() -> None:
    # A chat row: the user's turn 7, 8 inside the completion is not learned.
    row = TrainingGroup([1, 2], [[5, 6, 7, 8, 9]], [[1, 1, 0, 0, 1]])
    (batch,) = pack([row], 100, 20, CPU)
    assert batch.tokens.tolist() == [1, 2, 5, 6, 7, 8]
    assert batch.rows.tolist() == [1, 2, 5]
    assert batch.targets.tolist() == [5, 6, 9]
    assert batch.source.tolist() == [0, 1, 4]
    (batch,) = pack([row], 100, 20, CPU, every_token=True)
    assert batch.targets.tolist() == [5, 6, 7, 8, 9]
    with_kl = TrainingGroup([1, 2], [[5, 6, 7]], [[1, 0, 0]], None, [[0, 0, 0.5]])
    assert pack([with_kl], 100, 20, CPU)[0].targets.tolist() == [5, 7]
    measured = TrainingGroup([1, 2], [[5, 6]], [[0, 0]], [[-1, -1]])
    assert pack([measured], 100, 20, CPU)[0].targets.tolist() == [5, 6]
    nothing = TrainingGroup([1, 2], [[5, 6]], [[0, 0]])
    assert pack([nothing], 100, 20, CPU) == []


def test_a_group_is_split_only_when_it_is_larger_than_a_micro_batch() -> None:
    big = group([1, 2], [[3, 3, 3], [4, 4, 4], [5, 5, 5]])  # inputs: 2 + 2 + 2 + 2
    small = group([6], [[7, 7]])  # inputs: 1 + 1
    batches = pack([small, big, small], 6, 20, CPU)
    assert [batch.tokens.tolist() for batch in batches] == [
        [6, 7],
        [1, 2, 3, 3, 4, 4],
        [1, 2, 5, 5, 6, 7],
    ]
    assert batches[1].source.tolist() == [2, 3, 4, 5, 6, 7]
    assert batches[2].source.tolist() == [8, 9, 10, 11, 12]


def test_a_completion_longer_than_a_micro_batch_goes_alone() -> None:
    batches = pack([group([1], [[2], [3] * 9, [4]])], 4, 20, CPU)
    assert [len(batch.tokens) for batch in batches] == [1, 9, 1]


def test_every_target_knows_its_label_when_a_group_is_split() -> None:
    groups = [
        group([6], [[7, 7]], label="b"),
        group([1, 2], [[3, 3, 3], [4, 4, 4], [5, 5, 5]], label="a"),
        group([6], [[7]], label="b"),
        group([6], [[7, 7]]),
    ]
    assert labels_of(groups) == ["b", "a", ""]
    labels = [batch.labels for batch in pack(groups, 6, 20, CPU)]
    assert [found.tolist() for found in labels if found is not None] == [
        [0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0],
        [2, 2],
    ]
    (batch,) = pack([group([1], [[2]], sampler=False, label="a")], 6, 20, CPU)
    assert batch.labels is None


token = st.integers(0, 19)
completions = st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=5)
prompts = st.lists(token, min_size=1, max_size=5)


@given(st.lists(st.tuples(prompts, completions), min_size=1, max_size=5), st.integers(1, 30))
def test_every_token_is_a_target_once_under_its_own_context(
    texts: list[tuple[list[int], list[list[int]]]], limit: int
) -> None:
    groups = [group(prompt, members) for prompt, members in texts]
    batches = pack(groups, limit, 20, CPU)
    order = [source for batch in batches for source in batch.source.tolist()]
    expected = [
        (prompt + completion[:at], completion[at])
        for prompt, members in texts
        for completion in members
        for at in range(len(completion))
    ]
    assert order == list(range(len(expected)))
    found = [pair for batch in batches for pair in contexts(batch)]
    assert found == expected
    owners = [
        member
        for member, length in enumerate(len(tokens) for _, members in texts for tokens in members)
        for _ in range(length)
    ]
    for batch in batches:
        assert len(batch.tokens) <= limit or len({owners[at] for at in batch.source.tolist()}) == 1


def contexts(batch: MicroBatch) -> list[tuple[list[int], int]]:
    """The tokens before each target, read back from positions, and the target."""
    stream, positions = batch.tokens.tolist(), batch.attend.positions.tolist()
    prompts = []  # of each row, where its prompt starts
    for row, position in enumerate(positions):
        prompts.append(row if position == 0 else prompts[-1])
    pairs = []
    for row, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
        before, at = [stream[row]], row
        while (wanted := positions[at] - 1) >= 0:
            # A completion's first row follows its prompt, though others may lie between.
            at = at - 1 if positions[at - 1] == wanted else prompts[row] + wanted
            before.append(stream[at])
        pairs.append((before[::-1], target))
    return pairs


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (TrainingGroup([], [[1]], [[1.0]]), "group 0 has an empty prompt"),
        (TrainingGroup([1], [], []), "or none at all"),
        (TrainingGroup([1], [[1], []], [[1.0], []]), "an empty completion"),
        (TrainingGroup([20], [[1]], [[1.0]]), "token id 20 is outside the vocabulary of 20"),
        (TrainingGroup([1], [[-1]], [[1.0]]), "token id -1 is outside"),
        (
            TrainingGroup([1], [[1, 2]], [[1.0]]),
            r"completions of \[2\] tokens, but weights of \[1\]",
        ),
        (TrainingGroup([1], [[1]], [[1.0]], [[]]), r"sampler_logprobs of \[0\] values"),
        (TrainingGroup([1], [[1]], [[1.0]], None, []), r"kl_weights of \[\] values"),
        (TrainingGroup([1], [[1]], [[math.nan]]), "weights holds nan"),
        (TrainingGroup([1], [[1]], [[1.0]], [[-math.inf]]), "sampler_logprobs holds -inf"),
        (
            TrainingGroup([1], [[1]], [[1.0]], [[math.nan]], label="npu/0"),
            r"group 0 \(npu/0\): sampler_logprobs holds nan",
        ),
        (
            TrainingGroup([1], [[1, 2]], [[1.0, 1.0]], [[-1.0]], label="npu/0"),
            r"group 0 \(npu/0\): completions of \[2\] tokens, but sampler_logprobs of \[1\]",
        ),
        (
            TrainingGroup([1], [[1, 2]], [[1.0, 1.0]], [[-1.0, 0.002]], label="npu/0"),
            r"group 0 \(npu/0\): sampler_logprobs holds 0.002; no probability",
        ),
    ],
)
def test_malformed_groups_are_refused(bad: TrainingGroup, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        pack([bad], 100, 20, CPU)


def test_a_logprob_above_zero_by_rounding_is_accepted() -> None:
    (batch,) = pack([TrainingGroup([1], [[1]], [[1.0]], [[5e-4]])], 100, 20, CPU)
    assert batch.sampler_logprobs is not None
    assert batch.sampler_logprobs.tolist() == pytest.approx([5e-4])


def test_sampler_logprobs_are_for_all_groups_or_none() -> None:
    groups = [group([1], [[2]]), group([1], [[2]], sampler=False, label="npu/0")]
    with pytest.raises(
        TrainingError, match=r"group 1 \(npu/0\) and 0 more of 2 lack the sampler's"
    ):
        pack(groups, 100, 20, CPU)
