"""Routes as the engine tells them: those of a plain pass, whichever way the keys came about."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from expert_models import mixture

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.engine.portable.schedule import EXACT, Schedule
from interlock.errors import ConfigError
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.models.routes import problem, route_shape, unpacked
from interlock.records.replay import Replay, RouteShape
from interlock.records.rl import Completion, FinishReason, Sampling, Segment

SHAPE = RouteShape(layers=3, per_token=4, experts=16)
ROUTES = Replay(routes=SHAPE)
Experts = list[list[list[int]]]  # of each token and layer, in order


class Letters:
    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""

    def stream(self) -> "Letters":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return ""


def experts(routes: bytes) -> Experts:
    return [[sorted(layer) for layer in token] for token in unpacked(routes, SHAPE).tolist()]


def plain(decoder: Decoder, text: Sequence[int]) -> Experts:
    """By one pass over the text alone."""
    tokens = torch.tensor(text)
    with torch.no_grad():
        attend = causal(len(tokens), tokens.device)
        decoder(tokens, attend.positions, attend)
    return [[sorted(layer) for layer in token] for token in decoder.routes().tolist()]


def asked(prompt: list[int], count: int = 2, tokens: int = 9, **more: object) -> Request:
    sampling = Sampling(max_tokens=tokens)
    return Request(str(prompt[:3]), prompt, count, sampling, 5, replay=ROUTES, **more)  # type: ignore[arg-type]


def assert_routed(
    decoders: dict[int, Decoder], request: Request, answers: list[Completion]
) -> None:
    """`decoders` by weight version."""
    prompt = request.prompt_tokens
    told = [each.prompt_routes for each in answers]
    assert bool(told[0]) == (len(prompt) > 1) and not any(told[1:])
    first = min(answers[0].weight_versions)
    assert experts(told[0]) == plain(decoders[first], prompt)[:-1]
    for answer in answers:
        read = list(prompt)
        for segment in answer.segments:
            assert segment.weight_version is not None
            expected = plain(decoders[segment.weight_version], [*read, *segment.tokens])
            assert experts(segment.routes) == expected[len(read) - 1 : -1]
            read += segment.tokens
        assert problem(answer.routes, len(answer.tokens), SHAPE) is None


SCHEDULES = {
    "whole": EXACT,
    "in parts": Schedule(patience=0, prefill_chunk=6, prefix_cache_mb=0),
    "cached": Schedule(patience=0, prefill_chunk=0, prefix_cache_mb=4),
    "both": Schedule(patience=0, prefill_chunk=6, prefix_cache_mb=4),
}
LONG = [(7 * n + 3) % 61 for n in range(40)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("slots", [3, 16])
def test_routes_are_those_of_a_plain_pass(schedule: str, slots: int) -> None:
    decoder = mixture()
    engine = PortableEngine(decoder.shared(), Letters(), slots, schedule=SCHEDULES[schedule])
    requests = [asked(LONG), asked([*LONG[:33], 5, 6]), asked([9, 8, 7], 1), asked([4], 3, 1)]
    for request, answers in zip(requests, engine.generate(requests), strict=True):
        assert_routed({0: decoder}, request, answers)


def test_a_prefix_that_is_known_brings_its_routes_or_is_computed() -> None:
    """Blocks that were kept unasked, of finished answers too, have none; later ones do."""
    decoder = mixture()
    engine = PortableEngine(decoder.shared(), Letters(), 4, schedule=SCHEDULES["cached"])
    silent = Request("s", LONG, 1, Sampling(max_tokens=20), 1)
    (quiet,) = engine.generate([silent])[0]
    assert quiet.routes == quiet.prompt_routes == b""
    for text, known in ((LONG, 0), (LONG, 32), ([*LONG, *quiet.tokens[:20]], 32)):
        request = asked(text)
        engine.add("a", request)
        found: dict[int, Completion] = {}
        cached = 0
        while engine.pending:
            for progress in engine.step():
                cached = max(cached, progress.cached)
                if progress.completion is not None:
                    found[progress.number] = progress.completion
        assert cached == known
        assert_routed({0: decoder}, request, [found[0], found[1]])
    drawn = [*LONG, *found[0].tokens]  # an answer that told its routes is known with them
    engine.add("b", asked([*LONG, *quiet.tokens[:20], *found[0].tokens, 1]))
    assert len(drawn) > 40
    assert max(progress.cached for progress in engine.step()) == 64


def test_each_segment_has_the_routes_of_its_weights() -> None:
    first, second = mixture(0), mixture(1)
    engine = PortableEngine(mixture(0), Letters(), 4)
    request = asked(LONG[:11], 6)  # more than the slots: two begin under the new weights
    engine.add("a", request)
    found: dict[int, Completion] = {}
    for step in itertools.count():
        if step == 4:
            engine.load(second.tensors(), 1)
        for progress in engine.step():
            if progress.completion is not None:
                found[progress.number] = progress.completion
        if not engine.pending:
            break
    answers = [found[number] for number in range(6)]
    assert [each.weight_versions for each in answers] == [[0, 1]] * 4 + [[1]] * 2
    assert_routed({0: first, 1: second}, request, answers)


def test_what_is_gone_on_with_keeps_its_routes() -> None:
    decoder = mixture()
    engine = PortableEngine(decoder.shared(), Letters(), 4)
    request = asked(LONG[:9], 1)
    (whole,) = engine.generate([request])[0]
    width = SHAPE.token_bytes
    begun = Segment(whole.tokens[:4], whole.logprobs[:4], 0, routes=whole.routes[: 4 * width])
    (later,) = engine.generate([asked(LONG[:9], 1, drawn=[begun])])[0]
    assert (later.tokens, later.routes) == (whole.tokens, whole.routes)
    assert later.prompt_routes == whole.prompt_routes


@pytest.mark.parametrize("shape", [RouteShape(3, 4, 8), RouteShape(2, 4, 16)])
def test_a_request_for_routes_that_the_model_has_not_is_one_clear_line(shape: RouteShape) -> None:
    engine = PortableEngine(mixture(), Letters(), 4)
    request = Request("p", [1], 1, Sampling(), 0, replay=Replay(routes=shape))
    with pytest.raises(ConfigError, match="asks for routes as RouteShape"):
        engine.add("a", request)
    assert route_shape(mixture().arch) == SHAPE


def test_routes_are_joined_only_where_all_are_told() -> None:
    parts = [Segment([1], [-1.0], 0, routes=b"abc"), Segment([2], routes=b"def")]
    assert Completion(parts, FinishReason.STOP, "").routes == b"abcdef"
    parts.append(Segment([3], [-1.0], 1))
    assert Completion(parts, FinishReason.STOP, "").routes == b""
