"""vLLM's adapter slots, as far as no vLLM is needed: when there are any, and what lies in them.

tests/engine/test_vllm_adapter.py has the real ones.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_contract import Collector
from fake_vllm import Opened, draw, filled, opener
from msgspec.structs import replace
from safetensors.torch import load_file
from torch import Tensor, nn

from interlock.engine.base import Request, Shapes
from interlock.engine.vllm.cpu_products import add_low_rank
from interlock.engine.vllm.engine import NO_VERSION, VllmEngine
from interlock.engine.vllm.extension import WorkerExtension
from interlock.engine.vllm.slots import AdapterSlots, unfolded
from interlock.errors import ConfigError, ModelError, SyncError, TrainingError
from interlock.models.adapters import adapter_shapes
from interlock.models.architecture import Architecture, DefaultRope, Latent, Routing
from interlock.records.adapters import AdapterForm
from interlock.records.rl import Sampling

FORM = AdapterForm(rank=4, alpha=8.0)
RANKS = [1, 8, 16, 512]
SHAPES: Shapes = {
    "model.embed_tokens.weight": [64, 8],
    "model.layers.0.self_attn.q_proj.weight": [8, 8],
    "model.layers.0.self_attn.k_proj.weight": [4, 8],
    "model.layers.0.self_attn.o_proj.weight": [8, 8],
    "model.layers.0.input_layernorm.weight": [8],
}
DENSE = Architecture(
    family="llama",
    vocab=64,
    hidden=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    value_dim=4,
    inner=8,
    norm_eps=1e-5,
    context=64,
    tied=True,
    rope=DefaultRope(),
    rope_dim=4,
)
A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{which}.weight" for which in "AB")


def slots(form: AdapterForm | None = FORM, arch: Any = DENSE, **options: Any) -> AdapterSlots:
    return AdapterSlots(arch, SHAPES, form, options)


def test_a_recipe_with_an_adapter_opens_slots_that_it_fits_into() -> None:
    found = slots()
    assert found.arguments(RANKS, "cpu", "float32") == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 8,
        "lora_target_modules": ["k_proj", "o_proj", "q_proj"],
    }
    found.opened([adapter_shapes(SHAPES, AdapterForm(rank=8))])
    assert found.enabled and found.merges(FORM) == ""
    assert "rank 9 is above that of vLLM's slots, 8" in found.merges(AdapterForm(rank=9))
    alone = slots(AdapterForm(rank=16, targets=["q_proj"])).arguments(RANKS, "cuda", "bfloat16")
    assert alone["max_lora_rank"] == 16 and alone["lora_target_modules"] == ["q_proj"]


def test_what_has_no_slot_or_another_is_merged() -> None:
    found, shapes = slots(), adapter_shapes(SHAPES, AdapterForm(rank=8))
    found.arguments(RANKS, "cpu", "float32")
    found.opened([{name: shape for name, shape in shapes.items() if name != B}])
    assert found.merges(FORM) == f"vLLM has no slot for {B}"
    found.opened([shapes | {A: [8, 4]}])  # of half of its columns
    assert found.merges(FORM) == f"vLLM has no slot for {A}"
    assert found.merges(AdapterForm(rank=4, targets=["o_proj"])) == ""


LATENT = replace(DENSE, latent=Latent(q_rank=None, kv_rank=4, interleaved=True))
MIXTURE = replace(
    DENSE,
    routing=Routing(
        layers=frozenset({0}),
        experts=4,
        per_token=2,
        inner=8,
        shared_inner=0,
        gate="softmax",
        corrected=False,
        groups=1,
        kept_groups=1,
        group_top=1,
        normalize=True,
        scale=1.0,
    ),
)
CANNOT: list[tuple[str, dict[str, Any], tuple[list[int], str, str]]] = [
    ("the weights of experts", {"arch": MIXTURE}, (RANKS, "cpu", "float32")),
    ("the weights of latent attention", {"arch": LATENT}, (RANKS, "cpu", "float32")),
    ("cannot replace weights below its slots", {}, ([], "cpu", "float32")),
    ("not in float32", {}, (RANKS, "cuda", "float32")),
    ("rank 513 is above the highest", {"form": AdapterForm(rank=513)}, (RANKS, "cpu", "float32")),
    ("tensor_parallel_size above 1", {"tensor_parallel_size": 2}, (RANKS, "cuda", "bfloat16")),
]


@pytest.mark.parametrize(("says", "more", "build"), CANNOT)
def test_where_vllm_cannot_adapters_are_merged_and_why_is_said(
    says: str, more: dict[str, Any], build: tuple[list[int], str, str]
) -> None:
    found = slots(**more)
    assert found.arguments(*build) == {} and not found.enabled
    assert says in found.merges(more.get("form", FORM))
    with pytest.raises(ConfigError, match=f"enable_lora = true: .*{says}.*; remove it"):
        slots(enable_lora=True, **more).arguments(*build)


def test_slots_are_opened_by_hand_and_left_closed_by_hand() -> None:
    closed = slots(enable_lora=False)
    assert closed.arguments(RANKS, "cpu", "float32") == {}
    assert closed.merges(FORM) == "generator.options.enable_lora is false"
    plain = slots(form=None)
    assert plain.arguments(RANKS, "cpu", "float32") == {}
    assert "was started without slots" in plain.merges(FORM)
    opened = slots(form=None, enable_lora=True).arguments(RANKS, "cpu", "float32")
    assert opened["max_lora_rank"] == 16  # vLLM's own
    assert opened["lora_target_modules"] == ["k_proj", "o_proj", "q_proj"]


def in_slots(given: Mapping[str, Tensor], form: AdapterForm, most: int) -> dict[str, Tensor]:
    """As vLLM has them: in its dtype, B scaled there, zeros around."""
    found = {}
    for name, tensor in given.items():
        own = tensor.to(torch.bfloat16)
        if ".lora_B." in name:
            own *= form.alpha / form.rank
        shape = [most, own.shape[1]] if ".lora_A." in name else [own.shape[0], most]
        found[name] = torch.zeros(shape, dtype=torch.bfloat16)
        found[name][: own.shape[0], : own.shape[1]] = own
    return found


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0, 4.0, 11.0, 32.0])
def test_what_lies_in_a_slot_is_the_adapter_bit_for_bit(alpha: float) -> None:
    """By division alone where the scale is a power of two; else some of B would not come back."""
    form, noise = AdapterForm(rank=2, alpha=alpha), torch.Generator().manual_seed(0)
    shapes = adapter_shapes({"q_proj.weight": [4000, 8]}, form)
    given = {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
    held = in_slots(given, form, 8)
    found = dict(unfolded(held.items(), given, form))
    own = {name: tensor.to(torch.bfloat16) for name, tensor in given.items()}
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    b = next(name for name in given if ".lora_B." in name)
    divided = held[b][:, :2] / form.scale
    assert torch.equal(divided, own[b]) == (alpha in (0.5, 1.0, 2.0, 4.0, 32.0))

    held[b][17, 1] *= 2  # is told
    found = dict(unfolded(held.items(), given, form))
    assert not torch.equal(found[b], own[b])
    torch.testing.assert_close(found[b][17, 1], 2 * own[b][17, 1], rtol=0.02, atol=0)


def test_more_in_the_slots_than_the_adapter_is_an_error() -> None:
    given = {name: torch.ones(4, 4) for name in (A, B)}
    held = in_slots(given, FORM, 8)
    assert dict(unfolded(held.items(), given, FORM)).keys() == given.keys()
    beside = A.replace("q_proj", "k_proj")
    assert len(dict(unfolded([*held.items(), (beside, torch.zeros(8, 4))], given, FORM))) == 2
    for name, slot in ((A, held[A].clone()), (B, held[B].clone()), (beside, torch.zeros(8, 4))):
        slot[-1, -1] = 1  # of a rank that the adapter has not
        with pytest.raises(TrainingError, match=f"slot for {name} holds more"):
            dict(unfolded((held | {name: slot}).items(), given, FORM))
    with pytest.raises(TrainingError, match=f"no slot for {B}"):
        dict(unfolded([(A, held[A])], given, FORM))


class _Wrapped(nn.Module):
    """A layer of vLLM's, and slots for two adapters of rank 8 beside it."""

    def __init__(self, rows: list[int], bias: bool) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, sum(rows), bias)
        self.lora_a_stacked = [torch.randn(2, 1, 8, 6) for _ in rows]
        self.lora_b_stacked = [torch.randn(2, 1, each, 8) for each in rows]


def test_a_layer_below_its_slots_has_its_own_name_and_each_part_of_it_a_slot(
    tmp_path: Path,
) -> None:
    qkv, out = _Wrapped([4, 2, 2], bias=True), _Wrapped([6], bias=False)
    model = nn.ModuleDict({"qkv_proj": qkv, "o_proj": out, "norm": nn.LayerNorm(6, bias=False)})
    parts = [f"{each}_proj" for each in "qkv"]
    model.packed_modules_mapping = {"qkv_proj": parts}  # type: ignore[assignment]
    manager = SimpleNamespace(
        modules={"qkv_proj": qkv, "o_proj": out},
        packed_modules={"qkv_proj": parts},
        lora_index_to_id=[7, 9],
    )
    worker = WorkerExtension()
    lora = SimpleNamespace(_adapter_manager=manager)
    worker.model_runner = SimpleNamespace(lora_manager=lora, get_model=lambda: model)
    shapes, packed = worker.interlock_shapes()
    assert packed == {"qkv_proj": parts}
    assert shapes == {
        "qkv_proj.weight": [8, 6],
        "qkv_proj.bias": [8],
        "o_proj.weight": [6, 6],
        "norm.weight": [6],
    }
    weights = {"q_proj.weight": [4, 6], "k_proj.weight": [2, 6], "v_proj.weight": [2, 6]}
    weights["o_proj.weight"] = [6, 6]
    assert worker.interlock_slots() == adapter_shapes(weights, AdapterForm(rank=8))
    worker.interlock_save(str(tmp_path / "alone"))
    worker.interlock_save(str(tmp_path / "both"), 9)
    alone, both = load_file(tmp_path / "alone"), load_file(tmp_path / "both")
    assert alone.keys() == shapes.keys()
    assert both.keys() == shapes.keys() | worker.interlock_slots().keys()
    assert torch.equal(alone["qkv_proj.weight"], qkv.base_layer.weight)
    for part, stacks in enumerate(zip(qkv.lora_a_stacked, qkv.lora_b_stacked, strict=True)):
        for which, stack in zip("AB", stacks, strict=True):
            name = f"base_model.model.{parts[part]}.lora_{which}.weight"
            assert torch.equal(both[name], stack[1, 0])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Opened:
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    return opener(tmp_path_factory.mktemp("model"), patch)


def adapter(engine: VllmEngine, value: float) -> dict[str, Tensor]:
    shapes = adapter_shapes(engine.shapes, FORM)
    return {name: torch.full(shape, value) for name, shape in shapes.items()}


def moved(engine: VllmEngine, value: float) -> float:
    """What the fake's weights are the more with such an adapter."""
    given = adapter(engine, value)
    return sum(t.sum().item() * (FORM.scale if ".lora_B." in n else 1) for n, t in given.items())


def test_what_runs_goes_on_with_the_adapter_of_its_version(opened: Opened, letters: Any) -> None:
    """Three versions of one adapter, then weights alone, under the same sequences: each token is
    drawn from all before it as the weights and adapter of its segment read that."""
    engine, vllm = opened(letters(), slots=3, adapter=FORM)
    assert vllm.rank == 8 and engine.merges(FORM) == ""
    plain = vllm.weights(None)
    values = {1: 0.5, 2: 0.25, 3: 2.0}
    weights = {0: plain, 4: 2 * plain} | {n: plain + moved(engine, v) for n, v in values.items()}
    run = Collector(engine)
    prompts = {"a": [3, 1, 4], "bb": [1, 5, 9, 2]}
    for name, prompt in prompts.items():  # the last waits for a slot
        engine.add(name, Request(name, prompt, 2, Sampling(max_tokens=20), seed=5))
    for version, value in values.items():
        run.step(3)
        engine.load_adapter(adapter(engine, value), FORM, version)
        assert engine.version == version and vllm.adapter.lora_int_id == version
        assert engine.score([1, 2, 3]).logprobs  # another token of what runs
        assert vllm.adapters[-1] is vllm.adapter
    run.step(3)
    engine.load(filled(2.0, vllm.tensors), 4)
    assert vllm.adapter is None
    run.finish()
    assert not vllm.requests
    for (name, number), found in run.done.items():
        tokens = list[int]()
        for segment in found.segments:
            assert segment.weight_version is not None
            key = 5, name, number
            expected = draw(
                weights[segment.weight_version],
                [*prompts[name], *tokens],
                key,
                len(tokens),
                len(segment.tokens),
            )
            assert list(zip(segment.tokens, segment.logprobs, strict=True)) == expected
            tokens += segment.tokens
    assert {tuple(each.weight_versions) for each in run.done.values()} >= {(0, 1, 2, 3, 4)}


def test_base_and_adapter_are_read_back(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2, adapter=FORM)
    given = adapter(engine, 0.5)
    engine.load_adapter(given, FORM, 1)
    shown = dict(engine.held() or ())
    assert shown.keys() == engine.shapes.keys() | given.keys()
    assert all(torch.equal(shown[name], tensor) for name, tensor in given.items())
    engine.load(filled(2.0, vllm.tensors), 2)
    assert dict(engine.held() or ()).keys() == engine.shapes.keys()


def test_an_adapter_that_is_not_the_models_changes_nothing(
    opened: Opened, letters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, vllm = opened(letters(), slots=2, adapter=FORM)
    good = adapter(engine, 0.5)
    (first, *_) = good
    with pytest.raises(ModelError, match="lack the tensor"):
        engine.load_adapter({name: each for name, each in good.items() if name != first}, FORM, 1)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/nowhere")
        with pytest.raises(SyncError, match="set TMPDIR"):
            engine.load_adapter(good, FORM, 1)
    assert engine.version == 0 and vllm.adapter is None


def test_an_adapter_that_vllm_does_not_take_leaves_no_version(opened: Opened, letters: Any) -> None:
    engine, vllm = opened(letters(), slots=2, adapter=FORM)
    engine.load_adapter(adapter(engine, 0.5), FORM, 1)
    engine.add("a", Request("a", [1, 2], 1, Sampling(max_tokens=5), seed=5))
    engine.step()
    vllm.tears = True
    with pytest.raises(ModelError, match=r"does not take the adapter \(no memory.*enable_lora"):
        engine.load_adapter(adapter(engine, 0.25), FORM, 2)
    assert engine.version == NO_VERSION and engine.pending == 0
    with pytest.raises(SyncError, match="loaded half-way"):
        engine.score([1, 2])
    vllm.tears, vllm.adapter = False, None
    engine.load_adapter(adapter(engine, 0.25), FORM, 3)
    assert engine.version == 3 and len(engine.score([1, 2]).logprobs) == 1


def test_closed_slots_are_no_ones_business(opened: Opened, letters: Any) -> None:
    for more in ({}, {"adapter": FORM, "enable_lora": False}):
        engine, vllm = opened(letters(), slots=2, **more)
        assert vllm.rank == 0 and engine.merges(FORM)
    engine, vllm = opened(letters(), slots=2, enable_lora=True, max_lora_rank=2)
    assert vllm.rank == 2 and "rank 4 is above" in engine.merges(FORM)
    with pytest.raises(ConfigError, match=r"enable_lora = true: .*tensor_parallel"):
        opened(letters(), slots=2, enable_lora=True, tensor_parallel_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_rank_products_are_added_stretch_by_stretch(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise).to(dtype)

    x, y = drawn(5, 16), drawn(5, 12)
    pairs = [(drawn(4, 16), drawn(width, 4)) for width in (6, 2, 3)]  # and one column of padding
    expected = y.double()
    for (begin, end), (a, b) in zip(((0, 6), (6, 8), (8, 11)), pairs, strict=True):
        for token in range(5):
            inner = a.double() @ x[token].double()
            expected[token, begin:end] += 0.5 * (b.double() @ inner)
    add_low_rank(y, x, pairs, (6, 2, 3), 0.5)
    band = 1e-5 if dtype is torch.float32 else 0.2
    torch.testing.assert_close(y.double(), expected, atol=band, rtol=band / 10)
