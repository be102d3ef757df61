"""An engine that serves: prompts in parts, and from what is known, against a plain pass."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from draws import Drawn, assert_drawn
from engine_contract import Collector, alone, reloaded
from expert_models import ROUTING
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_close, in_float64
from torch import Tensor

from interlock.engine.base import Request
from interlock.engine.portable import prompts, stored
from interlock.engine.portable.chunks import Further, PromptChunks, PromptPart, Started
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.prompts import CROWD, LONE_PROMPT, Prompt
from interlock.engine.portable.schedule import SERVING, Schedule
from interlock.engine.portable.stored import SPILL
from interlock.errors import TrainingError
from interlock.models.decoder import Decoder
from interlock.records.rl import Sampling, Segment

Tiny = Callable[..., Decoder]
Text = Callable[[int], list[int]]
KNOWN = Schedule(patience=0, prefix_cache_mb=1)


def model(family: str, tiny: Tiny) -> Decoder:
    """Of another family: QK-norm, experts, or latent attention."""
    if family in ("llama", "deepseek_v3"):
        return tiny(family)
    changes: dict[str, Any] = {"qk_norm": True} if family == "qwen3" else {"routing": ROUTING}
    decoder, noise = Decoder(msgspec.structs.replace(tiny().arch, **changes)), torch.Generator()
    noise.manual_seed(4)
    with torch.no_grad():
        for parameter in decoder.parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(1 + 0.1 * drawn if parameter.ndim == 1 else 0.5 * drawn)
    return decoder


def other_weights(decoder: Decoder) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(9)
    return {
        name: view + 0.2 * torch.randn(view.shape, generator=noise, dtype=torch.float32)
        for name, view in decoder.tensors().items()
    }


def asked(name: str, text: list[int], tokens: int = 4, count: int = 1) -> Request:
    return Request(name, text, count, Sampling(max_tokens=tokens), seed=5)


class Served(Collector):
    """What an engine says, with the tokens it computes in every forward pass."""

    def __init__(self, engine: PortableEngine) -> None:
        super().__init__(engine)
        self.passes: list[int] = []
        self.cached: dict[str, list[int]] = {}
        forward = engine.decoder.forward

        def counted(tokens: Tensor, *rest: Any) -> Tensor:
            self.passes.append(len(tokens))
            return forward(tokens, *rest)

        engine.decoder.forward = counted  # type: ignore[method-assign]

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(request.problem_id, request)

    def serve(self, *requests: Request) -> list[int]:
        """The passes that these took."""
        self.passes.clear()
        self.add(*requests)
        self.finish()
        self.check()
        return list(self.passes)

    def step(self, times: int = 1) -> list[Any]:
        found = super().step(times)
        for each in found:
            self.cached.setdefault(each.name, []).append(each.cached)
        return found


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6),
    fused_above=st.sampled_from([8, 512]),
    seed=st.integers(0, 100),
)
def test_parts_see_their_own_past_and_themselves(
    pieces: list[tuple[int, int]], fused_above: int, seed: int
) -> None:
    """`pieces`: tokens stored, and further ones. Four query heads on two of keys."""
    noise = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise)

    parts, whole = [], []
    for past, length in pieces:
        k, v = random(past + length, 2, 5), random(past + length, 2, 7)
        started = Started(Prompt("p", asked("p", [1] * (past + length)), 0))
        started.k, started.v = (torch.full_like(x, torch.nan).transpose(0, 1)[None] for x in (k, v))
        started.k[0, :, :past] = k[:past].transpose(0, 1)
        started.v[0, :, :past] = v[:past].transpose(0, 1)
        started.past = past
        parts.append(PromptPart(started, length))
        whole.append((random(length, 4, 5), k, v))
    attend = Further(parts, torch.device("cpu"), fused_above)
    assert attend.positions.tolist() == [at for p, n in pieces for at in range(p, p + n)]
    given = [
        torch.cat([each[which][-n:] for each, (_, n) in zip(whole, pieces, strict=True)])
        for which in range(3)
    ]
    found = attend(0, *given, 0.3)

    def plain(dtype: torch.dtype) -> Tensor:
        outs = []
        for q, k, v in whole:
            k, v = (x.to(dtype).repeat_interleave(2, 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q.to(dtype), k) * 0.3
            seen = torch.ones(len(k), len(k), dtype=torch.bool).tril()[-len(q) :]
            outs.append(torch.einsum("hqk,khe->qhe", scores.where(seen, -torch.inf).softmax(-1), v))
        return torch.cat(outs)

    assert_close(found, plain(torch.float64), plain(torch.float32))
    for (_, k, v), part in zip(whole, parts, strict=True):
        assert part.of.k[0].transpose(0, 1).equal(k) and part.of.v[0].transpose(0, 1).equal(v)


@pytest.mark.parametrize("family", ["llama", "qwen3", "experts", "deepseek_v3"])
@pytest.mark.parametrize("chunk", [0, 5, 64])
def test_tokens_are_those_of_a_plain_pass_however_prompts_are_cut_and_whatever_is_known(
    family: str, chunk: int, tiny: Tiny, prompt: Text, letters: Any
) -> None:
    engine = PortableEngine(model(family, tiny), letters(), 5, schedule=Schedule(0, chunk, 1))
    run = Served(engine)
    system = prompt(45)
    first = [
        asked("alone", prompt(33), 6),
        asked("group", system + prompt(9), 5, count=3),
        asked("long", system + prompt(LONE_PROMPT - 30), 6),
    ]
    run.serve(*first)
    (turn,) = (run.done["long", 0],)
    again = [
        asked("again", prompt(33), 6),
        asked("branch", system + prompt(20), 4, count=2),
        asked("turn", [*first[2].prompt_tokens, *turn.tokens, *prompt(12)], 5),
    ]
    run.serve(*again)
    assert_drawn(
        Drawn(model(family, tiny), request, number, each.tokens, each.logprobs)
        for request in first + again
        for number in range(request.completions)
        for each in [run.done[request.problem_id, number]]
    )
    # Whole blocks of 16, and never the last token: 32 of 33, 32 of 45, 208 of 45 + 162 + 5.
    known = (45 + LONE_PROMPT - 30 + 5) // 16 * 16
    assert [run.cached[name][0] for name in ("again", "branch", "turn")] == [32, 32, known]
    assert sum(run.cached["turn"]) == known, "told once"


def test_only_what_is_not_known_is_computed(tiny: Tiny, prompt: Text, letters: Any) -> None:
    run = Served(PortableEngine(tiny(), letters(), 4, schedule=KNOWN))
    text = prompt(100)
    assert run.serve(asked("a", text, 1)) == [100]
    assert run.serve(asked("b", text, 1)) == [100 - 96]
    assert run.serve(asked("c", text[:96], 1)) == [16]  # the last token's block is computed
    assert run.serve(asked("d", text[:70] + prompt(30), 1)) == [36]
    assert run.serve(asked("e", prompt(99), 1)) == [99]
    assert [run.cached[name] for name in "abcde"] == [[0], [96], [80], [64], [0]]


def test_of_prompts_that_begin_alike_and_come_together_one_computes_the_beginning(
    tiny: Tiny, prompt: Text, letters: Any
) -> None:
    run = Served(PortableEngine(tiny(), letters(), 8, schedule=KNOWN))
    turns = [prompt(n) for n in (5, 6, 7, 8)]
    passes = run.serve(*(asked(f"p{n}", prompt(64) + t, 1) for n, t in enumerate(turns)))
    assert passes == [64 + 5, 6 + 7 + 8]


def test_an_answer_is_known_in_the_next_turn(tiny: Tiny, prompt: Text, letters: Any) -> None:
    """With the prompt in the answer's own row, and in one that is shared."""
    for length in (20, LONE_PROMPT + 3):
        run = Served(PortableEngine(tiny(), letters(), 2, schedule=KNOWN))
        first = asked("first", prompt(length), 30)
        run.serve(first)
        turn = [*first.prompt_tokens, *run.done["first", 0].tokens, *prompt(9)]
        known = (length + 29) // 16 * 16  # the last token's keys were never computed
        assert run.serve(asked("turn", turn, 1)) == [len(turn) - known]
        assert run.cached["turn"] == [known]


def test_what_was_drawn_elsewhere_goes_on_from_what_is_known(
    tiny: Tiny, prompt: Text, letters: Any
) -> None:
    for length in (20, LONE_PROMPT + 3):
        run = Served(PortableEngine(tiny(), letters(), 2, schedule=Schedule(0, 64, 1)))
        whole = asked("p", prompt(length), 30)
        run.serve(whole)
        done = run.done["p", 0]
        drawn = [Segment(done.tokens[:20], done.logprobs[:20], 0)]
        run = Served(run.engine)  # type: ignore[arg-type]
        run.add(dataclasses.replace(whole, drawn=drawn))
        run.finish()
        assert run.done["p", 0].tokens == done.tokens
        assert run.passes == [(length + 20 - 1) % 16 + 1, *[1] * 9]
        assert run.cached["p"] == [min(length, (length + 19) // 16 * 16)] + [0] * 9


def test_a_long_prompt_does_not_stall_what_runs(tiny: Tiny, prompt: Text, letters: Any) -> None:
    run = Served(PortableEngine(tiny(), letters(), 4, schedule=Schedule(0, 16)))
    run.add(asked("runs", prompt(7), 60))
    run.step()
    run.passes.clear()
    run.add(asked("long", prompt(150), 3))
    told = [[each.name for each in run.step()] for _ in range(12)]
    assert told == [["runs"]] * 9 + [["runs", "long"]] * 3
    # What runs goes along with each part, in one pass.
    assert run.passes[:11] == [1 + 16] * 9 + [1 + 150 - 9 * 16, 2]


def test_a_short_prompt_passes_a_long_one_which_goes_on(
    tiny: Tiny, prompt: Text, letters: Any
) -> None:
    run = Served(PortableEngine(tiny(), letters(), 4, schedule=Schedule(0, 32)))
    run.add(asked("long", prompt(200), 1))
    run.step()
    run.add(asked("s1", prompt(10), 1), asked("s2", prompt(11), 1), asked("s3", prompt(12), 1))
    assert [each.name for each in run.step()] == ["s1"]  # 16 of the long one, 10, and 6 of s2
    assert [each.name for each in run.step()] == ["s2"]  # 16, the other 5, and 11 of s3
    assert [each.name for each in run.step()] == ["s3"]
    run.finish()
    assert run.passes == [32] * 7 + [200 + 33 - 7 * 32]


def test_one_that_finds_a_slot_starts_at_once(tiny: Tiny, prompt: Text, letters: Any) -> None:
    run = Served(PortableEngine(tiny(), letters(), 32, schedule=SERVING))
    run.add(asked("runs", prompt(5), 50, count=30))
    run.step()
    run.add(asked("late", prompt(6), 50))
    assert "late" in [each.name for each in run.step()]


def test_what_is_known_stays_within_its_memory(tiny: Tiny, prompt: Text, letters: Any) -> None:
    engine = PortableEngine(tiny(), letters(), 4, schedule=KNOWN)
    held = engine._scheduler._to_compute
    assert isinstance(held, PromptChunks)
    a_token = 2 * 2 * (8 + 8) * 4  # layers, heads, elements of a key and a value, bytes of each
    for length in range(200, 220):
        engine.generate([asked("p", prompt(length), 8)])
        assert held.prefixes.held_bytes <= 1 << 20
    assert held.prefixes.held_bytes == (1 << 20) // (16 * a_token) * 16 * a_token
    run = Served(engine)
    run.serve(asked("first", prompt(200), 1), asked("last", prompt(219), 1))
    # They took 262 blocks, of which 256 fit: the oldest has lost the last six of its twelve.
    assert run.cached == {"first": [6 * 16], "last": [208]}


def test_nothing_of_other_weights_is_used(tiny: Tiny, prompt: Text, letters: Any) -> None:
    decoder = tiny()
    weights = other_weights(decoder)
    run = Served(PortableEngine(decoder, letters(), 4, schedule=KNOWN))
    run.serve(asked("before", prompt(80), 20))
    run.engine.load(weights, 3)
    assert run.serve(asked("after", prompt(80), 1)) == [80]
    assert run.serve(asked("then", prompt(80), 1)) == [16]
    assert [run.cached[name][0] for name in ("before", "after", "then")] == [0, 0, 64]


def test_weights_that_come_when_a_prompt_is_half_computed_compute_all_of_it(
    tiny: Tiny, prompt: Text, letters: Any
) -> None:
    new = tiny()
    weights = other_weights(new)
    run = Served(PortableEngine(tiny(), letters(), 4, schedule=Schedule(0, 32, 1)))
    requests = [asked("runs", prompt(20), 9, count=2), asked("half", prompt(90), 5)]
    run.add(*requests)
    run.step(2)
    assert ("half", 0) not in run.tokens and run.engine.pending == 3
    run.engine.load(weights, 7)
    run.finish()
    with torch.no_grad():
        for name, view in new.tensors().items():
            view.copy_(weights[name])
    half = run.done["half", 0]
    assert half.weight_versions == [7] and run.cached["half"][0] == 0
    drawn = [Drawn(new, requests[1], 0, half.tokens, half.logprobs)]
    for number in range(2):
        before, after = run.done["runs", number].segments
        drawn += [
            Drawn(tiny(), requests[0], number, before.tokens, before.logprobs),
            Drawn(new, requests[0], number, after.tokens, after.logprobs, before.tokens),
        ]
    assert_drawn(drawn)


def test_a_request_is_aborted_in_every_state(tiny: Tiny, prompt: Text, letters: Any) -> None:
    run = Served(PortableEngine(tiny(), letters(), 3, schedule=Schedule(0, 32)))
    engine, scheduler = run.engine, run.engine._scheduler  # type: ignore[attr-defined]
    running, half = asked("running", prompt(5), 50), asked("half", prompt(90), 5)
    starting = asked("starting", prompt(6), 50, count=2)
    run.add(running)
    run.step()
    run.add(starting, half)
    run.add(asked("waiting", prompt(8), 5))
    run.step()
    run.add(asked("more", prompt(150), 5))
    assert engine.pending == 6
    assert engine.abort("waiting") and engine.pending == 5
    assert engine.abort("running") and engine.pending == 4
    run.step()
    assert scheduler._to_compute.sequences == 1  # the slot that fell free is for the next
    assert engine.abort("half") and engine.pending == 3
    assert scheduler._to_compute.sequences == 0
    run.step()
    assert engine.abort("more") and engine.abort("starting") and engine.pending == 0
    assert not engine.abort("more")
    assert scheduler._stored.own is None and not scheduler._stored.caches
    assert not scheduler._to_compute._started
    (expected,) = alone(PortableEngine(tiny(), letters(), 3), half)
    run.serve(dataclasses.replace(half))
    assert run.done["half", 0].tokens == expected.tokens


def test_a_step_that_fails_leaves_nothing_known(tiny: Tiny, prompt: Text, letters: Any) -> None:
    run = Served(PortableEngine(tiny(), letters(), 2, schedule=Schedule(0, 16, 1)))
    engine = run.engine
    run.serve(asked("good", prompt(60), 1))
    run.add(asked("a", prompt(50), 3), asked("b", prompt(60), 3))
    weight = dict(engine.decoder.named_parameters())["norm.weight"]  # type: ignore[attr-defined]
    kept = weight.data.clone()
    weight.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        run.finish()
    assert engine.pending == 0 and engine.step() == []
    weight.data.copy_(kept)
    run.serve(asked("again", prompt(60), 1))
    assert run.cached["again"] == [0]


def test_what_running_prompts_begin_with_is_there_once(
    tiny: Tiny, prompt: Text, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever has nothing in common with others is not padded to their number."""
    parts: list[list[int]] = []
    decode = stored.Decode

    def noted(own: Any, lengths: Any, shared: Any) -> Any:
        parts[:] = [list(map(len, each.members)) for each in shared]
        return decode(own, lengths, shared)

    monkeypatch.setattr(stored, "Decode", noted)
    run = Served(PortableEngine(tiny(), letters(), 9, schedule=KNOWN))
    system = prompt(LONE_PROMPT)
    others = [asked("other", prompt(LONE_PROMPT + 6), 12)]
    others += [asked("group", prompt(LONE_PROMPT + 1), 12, count=2)]
    alike = [asked(f"p{n}", system + prompt(20 + n), 12) for n in range(CROWD + 2)]
    run.add(others[0], alike[0])
    run.step()
    run.add(*alike[1:], others[1])
    run.step(3)
    # The first computed all of its prompt; of the others only their own questions are new.
    assert [run.cached[f"p{n}"][0] for n in range(CROWD + 2)] == [0] + [LONE_PROMPT] * (CROWD + 1)
    assert sorted(parts) == [[1, 1, 0, 2], [CROWD + 1]]
    run.finish()
    assert_drawn(
        Drawn(tiny(), each, number, found.tokens, found.logprobs)
        for each in alike + others
        for number in range(each.completions)
        for found in [run.done[each.problem_id, number]]
    )


def test_one_long_answer_does_not_make_the_rows_of_others_long(
    tiny: Tiny, prompt: Text, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    decode = stored.Decode

    def noted(own: Any, *rest: Any) -> Any:
        lengths.append(own.length)
        return decode(own, *rest)

    monkeypatch.setattr(stored, "Decode", noted)
    monkeypatch.setattr(stored, "SPILL", 32)
    run = Served(PortableEngine(tiny(), letters(), 6))
    requests = [asked("long", prompt(5), 200), asked("first", prompt(20), 60)]
    requests += [asked("late", prompt(150), 90), asked("group", prompt(9), 30, count=3)]
    run.add(*requests)
    run.finish()
    assert len(lengths) == 199 and max(lengths) == 32
    assert_drawn(
        Drawn(tiny(), each, number, found.tokens, found.logprobs)
        for each in requests
        for number in range(each.completions)
        for found in [run.done[each.problem_id, number]]
    )


@settings(max_examples=10, deadline=None)
@given(
    plan=st.lists(
        st.tuples(
            st.integers(0, 40),  # tokens that the prompt has in common with others
            st.integers(1, 40),  # of its own
            st.integers(1, 3),  # completions
            st.integers(1, 20),  # of how many tokens
            st.integers(0, 6),  # steps before it is added
            st.one_of(st.none(), st.integers(1, 8)),  # steps after which it is aborted
        ),
        min_size=1,
        max_size=7,
    ),
    slots=st.integers(1, 6),
    chunk=st.sampled_from([0, 3, 16, 50]),
    cache=st.integers(0, 1),
    load_at=st.integers(0, 25),
    lone=st.sampled_from([LONE_PROMPT, 20]),
    spill=st.sampled_from([SPILL, 3]),
)
def test_any_order_of_joining_leaving_and_loading(
    plan: list[tuple[int, int, int, int, int, int | None]],
    slots: int,
    chunk: int,
    cache: int,
    load_at: int,
    lone: int,
    spill: int,
    request: Any,
) -> None:
    """A sequence is what it is alone, in an engine that cuts, knows, shares and moves nothing."""
    tiny, prompt = request.getfixturevalue("tiny"), request.getfixturevalue("prompt")
    letters = request.getfixturevalue("letters")()
    with in_float64(tiny()) as exact, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "LONE_PROMPT", lone)
        patch.setattr(stored, "LONE_PROMPT", lone)
        patch.setattr(stored, "SPILL", spill)
        weights = other_weights(exact)
        how = Schedule(0, chunk, cache)
        engine = PortableEngine(copy.deepcopy(exact), letters, slots, schedule=how)
        run, clock, when = Served(engine), 0, 0
        wanted: dict[str, Request] = {}
        events: dict[int, list[tuple[str, str]]] = {load_at: [("load", "")]}
        for index, (common, own, count, tokens, wait, leaves) in enumerate(plan):
            name, when = f"p{index}", when + wait
            wanted[name] = asked(name, prompt(40)[:common] + prompt(own), tokens, count)
            events.setdefault(when, []).append(("add", name))
            if leaves is not None:
                events.setdefault(when + leaves, []).append(("abort", name))
        while events or engine.pending:
            for what, name in events.pop(clock, []):
                if what == "add":
                    run.add(wanted[name])
                elif what == "abort" and engine.abort(name):
                    del wanted[name]
                elif what == "load":
                    engine.load(weights, 9)
            assert engine.pending or not engine._scheduler._to_compute.sequences
            run.step()
            clock += 1
            assert clock < 2000
        run.check()
        for name, each in wanted.items():
            assert all(one <= len(each.prompt_tokens) - 1 for one in run.cached[name])
            for number in range(each.completions):
                found = run.done[name, number]
                before = sum(len(s.tokens) for s in found.segments if s.weight_version == 0)
                single = PortableEngine(copy.deepcopy(exact), letters, each.completions)
                if not before:
                    single.load(weights, 9)
                if before in (0, len(found.tokens)):
                    expected = alone(single, each)[number]
                else:
                    expected = reloaded(single, [each], weights, before).done[name, number]
                assert found.tokens == expected.tokens
