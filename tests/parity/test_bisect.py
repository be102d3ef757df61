"""Planted errors are found: the right point of the right layer, and the operator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_workers import RealWorker
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.models.checkpoint import load_decoder
from interlock.parity.bisect import Bisection, bisect, rows
from interlock.workers.inspection import inspector, trace
from interlock.workers.protocol import Text

TOKENS = list(range(100, 140))
PREFILL, DECODE = Text(TOKENS[:1], TOKENS[1:], False), Text(TOKENS[:30], TOKENS[30:36], True)


class Off(TorchDispatchMode):
    """A device whose operator `name` is off by 1 % where `when` says so."""

    def __init__(self, name: str, when: Callable[[Any], bool]) -> None:
        super().__init__()
        self.name, self.when = name, when

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func) == self.name and self.when(args):
            out[..., :3] *= 1.01
        return out


def always(args: Any) -> bool:
    return True


def of_width(width: int) -> Callable[[Any], bool]:
    return lambda args: isinstance(args[1], Tensor) and args[1].shape[-1] == width


def few_rows(args: Any) -> bool:
    return len(args[0]) < 8 and args[1].shape[-1] == 64


def look(inline: Any, model: Path, tmp_path: Path, dtype: str = "float32") -> Bisection:
    with inline(tmp_path) as sides:
        sides.settle(model, dtype)
        return bisect(sides, str(model), {"a": dtype, "b": dtype}, PREFILL, DECODE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sound_sides_do_not_part(inline: Any, bare_model: Path, tmp_path: Path, dtype: str) -> None:
    found = look(inline, bare_model, tmp_path, dtype)
    assert found.side == "" and found.operators == []
    assert "No point" in found.words and found.tokens == len(TOKENS)
    assert all(depth.a == depth.b == depth.own_a for depth in found.depths)
    assert max(depth.a for depth in found.depths) < 50 * torch.finfo(getattr(torch, dtype)).eps


@pytest.mark.parametrize(
    ("operator", "when", "point", "decode"),
    [
        ("aten.embedding.default", always, "embed", False),
        ("aten.cos.default", always, "angles", False),
        ("aten.rms_norm.default", always, "layers.0.attention_norm", False),
        ("aten.softmax.int", always, "layers.0.attention.attended", False),
        ("aten.silu.default", always, "layers.0.mlp.activation", False),
        ("aten.linear.default", of_width(64), "layers.0.mlp.down", False),
        ("aten.linear.default", few_rows, "layers.0.mlp.down", True),
        ("aten.exp_.default", always, "layers.0.attention.attended", True),
    ],
)
def test_a_wrong_operator_is_named(
    inline: Any,
    bare_model: Path,
    tmp_path: Path,
    operator: str,
    when: Any,
    point: str,
    decode: bool,
) -> None:
    inline.defect = staticmethod(lambda: Off(operator, when))
    found = look(inline, bare_model, tmp_path)
    assert (found.side, found.point, found.decode) == ("b", point, decode)
    guilty = [each for each in found.operators if each.parts]
    # attention over the prompt and over the answer: two of a kind
    assert {each.title.partition(" ")[0] for each in guilty} == {operator}
    assert 1e-3 < guilty[0].error < 1.2e-2 and guilty[0].own < 50 * torch.finfo(torch.float32).eps
    assert guilty[0].title in found.words and ("layer 0" in found.words) == ("layers" in point)


def test_a_mixture_of_experts_is_searched_as_well(
    inline: Any, mixture_model: Path, tmp_path: Path
) -> None:
    assert look(inline, mixture_model, tmp_path).side == ""
    inline.defect = staticmethod(lambda: Off("aten.silu.default", always))
    found = look(inline, mixture_model, tmp_path)
    assert (found.side, found.point) == ("b", "layers.0.mlp")
    guilty = [each.title for each in found.operators if each.parts]
    assert 1 <= len(guilty) <= 4 and all(each.startswith("aten.silu.default [") for each in guilty)


def test_an_error_deep_inside_is_found_in_its_layer(
    inline: Any, bare_model: Path, tmp_path: Path
) -> None:
    """Weights that nobody compared: every operator is right, and the layer is named."""

    def spoil(side: RealWorker) -> None:
        decoder = side.engine.decoder
        with torch.no_grad():
            decoder.layers[1].attention.qkv.weight[0] *= 1.5  # type: ignore[union-attr, index]

    inline.spoil = staticmethod(spoil)
    found = look(inline, bare_model, tmp_path)
    assert (found.side, found.point) == ("b", "layers.1.attention.qkv")
    assert "layer 1, attention.qkv" in found.words and "No single operator" in found.words
    early = [depth for depth in found.depths if depth.point.startswith(("embed", "layers.0"))]
    assert early and all(depth.b == depth.a for depth in early)


def test_what_a_device_refuses_is_quoted(
    inline: Any, bare_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes the pass wrongly, and the operator alone not at all."""
    sound = inspector.operators.applied

    class Refusing(Off):
        def __enter__(self) -> Any:
            monkeypatch.setattr(inspector.operators, "applied", self.refuse)
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            monkeypatch.setattr(inspector.operators, "applied", sound)
            super().__exit__(*error)

        def refuse(self, operator: Any, place: Any, exact: bool) -> Any:
            if operator.name == self.name:
                raise RuntimeError("error code 507035\nand more")
            return sound(operator, place, exact)

    inline.defect = staticmethod(lambda: Refusing("aten.silu.default", always))
    found = look(inline, bare_model, tmp_path)
    assert [each.said for each in found.operators if each.parts] == ["error code 507035"]
    assert "error code 507035" in found.words


def test_decoding_in_float64_is_prefill_in_float64(bare_model: Path) -> None:
    """The reference has no islands of float32: two orders of computation agree to 1e-12."""
    decoder = load_decoder(bare_model, torch.float64, torch.device("cpu"))
    points, prefill = trace.sketched(decoder, PREFILL)
    _, decode = trace.sketched(decoder, DECODE)
    assert points[:4] == ["angles", "embed", "layers.0.attention_norm", "layers.0.attention.qkv"]
    assert points[-2:] == ["norm", "logits"]
    steps = slice(30, 36)
    assert rows(decode, prefill[:, steps]).max() < 1e-12
    assert prefill[..., -1].min() > 0


def test_a_sketch_tells_the_size_of_an_error(bare_model: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(50, 400, generator=noise, dtype=torch.float64)
    apart = 1e-3 * torch.randn(50, 400, generator=noise, dtype=torch.float64)
    found = []
    for values in (x, x + apart):
        sketches = trace.Sketches(decode=False)
        sketches.begin(0)
        sketches.at("x", values)
        found.append(sketches.result()[1])
    ratio = rows(found[1], found[0])[0] / (apart.norm(dim=1) / x.norm(dim=1))
    # 16 projections: each within a factor of two, all together within 10 %.
    assert (
        ratio.min() > 0.4 and ratio.max() < 2 and ratio.mean().item() == pytest.approx(1, abs=0.1)
    )
