"""The formulas against numbers worked out by hand, with constants that make these easy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.plan.chips import find
from interlock.plan.constants import Rates, values
from interlock.plan.lengths import AnswerLengths
from interlock.plan.seconds import (
    GeneratorReplica,
    Learners,
    StepLoad,
    bubble,
    decode_s,
    forward_s,
    generation_s,
    publication_s,
    refilled_s,
    shared_s,
    update_s,
)
from interlock.plan.shapes import named

LLAMA = named("Llama-3.1-8B")
V3 = named("DeepSeek-V3")
H100 = find("H100")
assert LLAMA is not None and V3 is not None

# Nothing but rooflines: shares of 1, no fixed time, no traffic between products.
IDEAL = Rates(
    **(
        dict.fromkeys(Rates._fields, 0.0)
        | dict.fromkeys(
            ("memory", "routed", "alike", "products", "learning", "attention", "link"), 1.0
        )
        | {"spread": 0.8, "scoring": 1.0, "apart": 1.0}
    )
)


def test_one_row_reads_all_weights_once() -> None:
    of = GeneratorReplica(LLAMA, H100, 1, 64)
    weights = LLAMA.active * 2 / 3.35e12  # 15.0 GB of them
    cache = 1000 * 131_072 / 3.35e12  # 32 layers * 8 heads * 128 * 2, of 2 bytes
    assert decode_s(of, 1, 1000, IDEAL) == pytest.approx(weights + cache)
    assert decode_s(of, 1, 1000, IDEAL) == pytest.approx(4.52e-3, rel=0.01)


def test_many_rows_are_bound_by_products() -> None:
    of = GeneratorReplica(LLAMA, H100, 1, 4096)
    flops = 2 * 4096 * (LLAMA.active + 32 * 8192 * 16)
    assert decode_s(of, 4096, 16, IDEAL) == pytest.approx(flops / 989e12)


def test_layers_rows_and_steps_have_their_fixed_times() -> None:
    of = GeneratorReplica(LLAMA, H100, 1, 64)
    fixed = IDEAL._replace(layer_s=1e-4, token_s=3e-3, row_s=1e-5)
    more = decode_s(of, 10, 0, fixed) - decode_s(of, 10, 0, IDEAL)
    assert more == pytest.approx(32 * 1e-4 + 3e-3 + 10 * 1e-5)


def test_a_ring_within_and_beyond_the_domain() -> None:
    rates = IDEAL._replace(hop_s=1e-5, far_hop_s=1e-4)
    assert shared_s(H100, 1, 1e6, rates) == 0
    assert shared_s(H100, 8, 1e6, rates) == pytest.approx(1e-5 + 2 * 7 / 8 * 1e6 / 450e9)
    far = 1e-4 + 2 * 7 / 8 * 1e6 / 450e9 + 2 * 1 / 2 * 1e6 / 8 / 50e9
    assert shared_s(H100, 16, 1e6, rates) == pytest.approx(far)


def test_equal_lengths_take_a_step_a_token() -> None:
    of = GeneratorReplica(LLAMA, H100, 1, 64)
    flat = IDEAL._replace(token_s=1.0)  # so that only the count of steps matters
    load = StepLoad(8, 64, 0, AnswerLengths(100, 100, 0.8))
    assert generation_s(of, 1, load, flat) == pytest.approx(100, rel=0.01)
    assert refilled_s(of, 1, load, flat) == pytest.approx(100, rel=0.01)
    # Twice as many as there are slots: twice as long either way.
    twice = load._replace(completions=128)
    assert generation_s(of, 1, twice, flat) == pytest.approx(200, rel=0.01)
    assert refilled_s(of, 1, twice, flat) == pytest.approx(200, rel=0.01)


def test_the_tail_sets_a_synchronous_step_and_the_mean_a_refilled_one() -> None:
    of = GeneratorReplica(LLAMA, H100, 1, 4096)
    flat = IDEAL._replace(token_s=1e3)
    load = StepLoad(64, 1024, 0, AnswerLengths(1000, 8192, 0.8, 0.01))
    assert generation_s(of, 1, load, flat) == pytest.approx(8192e3, rel=0.01)  # 10 are endless
    assert refilled_s(of, 1, load, flat) == pytest.approx(1000e3, rel=0.01)


def test_an_update_is_eight_flops_a_weight_and_token() -> None:
    load = StepLoad(8, 64, 0, AnswerLengths(100, 100, 0.8))
    of = Learners(LLAMA, H100, 4)
    products = 8 * LLAMA.active * 6400 / (4 * 989e12)
    # attention: 4.5 passes over E[L^2]/2 pairs; the optimizer: 34 bytes a weight; gradients: 6
    scores = 2 * 4.5 * 32 * 8192 * 64 * 100**2 / 2 / (4 * 989e12)
    optimizer = LLAMA.params * 34 / (4 * 3.35e12) + LLAMA.params * 6 / 450e9
    wanted = products + scores + optimizer
    assert update_s(of, load, 1, IDEAL) == pytest.approx(wanted, rel=1e-3)
    kept = of._replace(recompute=False)
    assert products * 3 / 4 < update_s(kept, load, 1, IDEAL) < wanted
    forward = 2 * LLAMA.active * 6400 / (4 * 989e12)
    assert forward_s(of, load, IDEAL) == pytest.approx(forward, rel=0.01)


def test_of_an_adapter_an_update_is_two_thirds_without_gradients_of_the_weights() -> None:
    load = StepLoad(8, 64, 0, AnswerLengths(100, 100, 0.8))
    of = Learners(LLAMA, H100, 1, recompute=False, adapter=4e7)
    products = 4 * LLAMA.active * 6400 / 989e12  # forward, and backward to the inputs
    scores = 2 * 3.5 * 32 * 8192 * 64 * 100**2 / 2 / 989e12
    wanted = products + scores + 34 * 4e7 / 3.35e12
    assert update_s(of, load, 1, IDEAL) == pytest.approx(wanted, rel=1e-3)
    again = update_s(of._replace(recompute=True), load, 1, IDEAL)
    assert again - wanted == pytest.approx(products / 2 + scores / 3.5, rel=1e-2)


def test_more_chips_than_sequences_have_tokens_are_idle() -> None:
    load = StepLoad(1, 8, 0, AnswerLengths(1000, 1000, 0.8))
    attended = 2 * 32 * 8192 * 8 * 1000**2 / 2
    forward = 2 * LLAMA.active * 8000 + attended
    # 8 sequences, of which each is split over 16 chips at the most: 128 of 1,024 have work.
    for chips, working in ((64, 64), (128, 128), (1024, 128)):
        seconds = forward_s(Learners(LLAMA, H100, chips), load, IDEAL)
        assert seconds == pytest.approx(forward / (working * 989e12)), chips
    # Of two optimizer steps each has 4 of them; a copy that is cut over 32 chips has all of these.
    of = Learners(LLAMA, H100, 1024, tensor=8, context=4, recompute=False)
    without = update_s(of, load, 2.0, IDEAL) - 2.0 * _beside_passes(of)
    learned = 3 * 2 * LLAMA.active * 8000 + 3.5 * attended
    assert without == pytest.approx(learned / (4 * 32 * 989e12), rel=1e-6)


def _beside_passes(of: Learners) -> float:
    """Of one optimizer step: 34 bytes of a weight moved; 6 sent, beyond a node."""
    sent = 6 * LLAMA.params / 8 / 50e9
    return 34 * LLAMA.params / (of.chips * 3.35e12) + sent


def test_answers_that_queue_read_as_much_cache_as_refilled_ones() -> None:
    # 64 slots for 6,400 answers: but for the last of them the same rows run, over the same tokens.
    of = GeneratorReplica(LLAMA, H100, 1, 64)
    load = StepLoad(64, 6400, 0, AnswerLengths(1000, 8000, 0.8, 0.01))
    in_step, refilled = generation_s(of, 1, load, IDEAL), refilled_s(of, 1, load, IDEAL)
    assert refilled < in_step < 1.05 * refilled


def test_a_pipeline_waits_to_fill() -> None:
    load = StepLoad(32, 512, 0, AnswerLengths(100, 100, 0.8))
    of = Learners(V3, H100, 256, stages=16, expert=16, bucket=512)
    assert bubble(of, load) == pytest.approx(1 + 15 / 32)  # 16 copies, 32 batches each
    assert bubble(of._replace(chips=512), load) == pytest.approx(1 + 15 / 16)


def test_prompts_are_learned_from_once_where_they_are_packed() -> None:
    load = StepLoad(2, 16, 50, AnswerLengths(100, 100, 0.8))
    assert load.tokens == 16 * 150
    assert load._replace(packed=True).tokens == 2 * 50 + 16 * 100


def test_publication_over_ten_gigabit() -> None:
    assert publication_s(16e9, 1.25e9, 0.2) == pytest.approx(13.0)


@given(st.integers(0, 7), st.integers(16, 8192), st.sampled_from(["Qwen3-8B", "Qwen3-30B-A3B"]))
@settings(max_examples=40, deadline=None)
def test_more_chips_are_never_slower(power: int, completions: int, model: str) -> None:
    shape = named(model)
    assert shape is not None
    load = StepLoad(completions / 16, completions, 115, AnswerLengths(900, 4096, 0.8, 0.01))
    rates = values()
    replicas = 2**power

    def both(count: int) -> tuple[float, float]:
        of = GeneratorReplica(shape, H100, 1, 256)
        return generation_s(of, count, load, rates), refilled_s(of, count, load, rates)

    few, many = both(replicas), both(2 * replicas)
    assert many[0] <= few[0] * 1.0001 and many[1] <= few[1] * 1.0001
    learn = Learners(shape, H100, replicas)
    more = learn._replace(chips=2 * replicas)
    assert forward_s(more, load, rates) <= forward_s(learn, load, rates)
