"""What is chosen from recorded tables of several machines, and what a table holds of this one."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from recorder import recording

from interlock.chips import probe, products, speeds
from interlock.chips.speeds import Speed, StepSpeed, Table
from interlock.config.schema import GeneratorSettings, LearnerSettings
from interlock.errors import ConfigError
from interlock.records.adapters import AdapterForm

CPU = torch.device("cpu")


def table(*speeds: Speed, attention: dict[int, tuple[float, float]] | None = None) -> Table:
    return Table("a CPU", 2, list(speeds), attention or {}, {512: 1.0, 256: 1.05, 1024: 0.95})


# Two cores each, GFLOP/s as measured there, of products of the sizes of SmolLM2-135M.
ZEN5 = table(  # AVX-512 with bfloat16 instructions, no matrix tiles; MKL has no kernel for it
    Speed("float32", "torch", 197, 212, 3e-7),
    Speed("float32", "mkl", 199, 212, 3e-7),
    Speed("float32", "onednn", 470, 450, 3e-7),
    Speed("bfloat16", "torch", 700, 790, 1.1e-3),
    Speed("bfloat16", "onednn", 870, 850, 1.1e-3),
)
XEON = table(  # AVX-512, no tiles: bfloat16 is slower than float32
    Speed("float32", "torch", 230, 270, 3e-7),
    Speed("float32", "mkl", 270, 270, 3e-7),
    Speed("float32", "onednn", 215, 216, 3e-7),
    Speed("bfloat16", "torch", 140, 150, 1.1e-3),
    Speed("bfloat16", "onednn", 150, 150, 1.1e-3),
)
ZEN3 = table(  # AVX2: bfloat16 is emulated
    Speed("float32", "torch", 70, 124, 3e-7),
    Speed("float32", "mkl", 74, 121, 3e-7),
    Speed("float32", "onednn", 135, 127, 5e-7),
    Speed("bfloat16", "torch", 0, 0, 0),
)


@pytest.mark.parametrize(
    ("measured", "dtype", "kernels"),
    [
        (ZEN5, "bfloat16", ("onednn", "torch")),
        (XEON, "float32", ("mkl", "torch")),
        (ZEN3, "float32", ("onednn", "torch")),
    ],
)
def test_the_fastest_admissible_of_a_recorded_machine_is_taken(
    measured: Table, dtype: str, kernels: tuple[str, str]
) -> None:
    taken = probe.choose(measured)
    assert (taken.dtype, taken.generator, taken.learner) == (dtype, *kernels)


@pytest.mark.parametrize("measured", [ZEN5, XEON, ZEN3])
def test_no_choice_is_a_tenth_behind_the_best_of_its_dtype(measured: Table) -> None:
    for dtype in ("float32", "bfloat16", None):
        taken = probe.choose(measured, dtype)
        ours = {e.kernel: e for e in measured.speeds if e.dtype == taken.dtype}
        best = max(each.decode for each in ours.values())
        assert ours[taken.generator].decode * 1.1 >= best
        best = max(each.learn for each in ours.values())
        assert ours[taken.learner].learn * 1.1 >= best


def test_a_dtype_that_is_asked_for_has_kernels_of_its_own() -> None:
    taken = probe.choose(ZEN5, "float32")
    assert (taken.generator, taken.learner) == ("onednn", "onednn")
    taken = probe.choose(ZEN5, "float16")  # not measured
    assert (taken.dtype, taken.generator, taken.learner) == ("float16", "torch", "torch")


@pytest.mark.parametrize(
    ("dtype", "error"), [("bfloat16", 1.2e-2), ("float32", 3e-4)]
)  # int8 by rows; TF32
def test_what_is_less_exact_than_its_dtype_is_not_taken(dtype: str, error: float) -> None:
    fast = Speed(dtype, "onednn", 9000, 9000, error)
    taken = probe.choose(table(*XEON.speeds[:2], fast))
    assert (taken.dtype, taken.generator, taken.learner) == ("float32", "mkl", "torch")


def test_bfloat16_has_to_pay() -> None:
    """A gain of less than a tenth is not worth its rounding."""
    exact = Speed("float32", "torch", 100, 100, 3e-7)
    for rate, dtype in ((109, "float32"), (112, "bfloat16")):
        narrow = Speed("bfloat16", "torch", rate, rate, 1.1e-3)
        assert probe.choose(table(exact, narrow)).dtype == dtype
    # Learning is three passes, generating one.
    lopsided = Speed("bfloat16", "torch", 200, 85, 1.1e-3)
    assert probe.choose(table(exact, lopsided)).dtype == "float32"


@pytest.mark.parametrize(
    ("seconds", "whole", "adapter"),
    [
        ({512: 1.0, 256: 1.05, 1024: 0.95}, 512, 1024),
        ({512: 1.0, 256: 1.05, 1024: 1.11}, 512, 512),
        ({512: 1.2, 256: 1.3, 1024: 1.0}, 1024, 1024),
        ({512: 1.2, 256: 1.0, 1024: 1.05}, 256, 1024),
        ({}, 512, 512),
    ],
)
def test_an_adapter_learns_from_as_many_tokens_at_a_time_as_cost_no_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    whole: int,
    adapter: int,
) -> None:
    given = tmp_path / "bench.json"
    measured = msgspec.structs.replace(ZEN5, micro_batch=seconds)
    given.write_bytes(msgspec.json.encode({"measured": measured}))
    monkeypatch.setenv(probe.GIVEN, str(given))
    probe._table.cache_clear()
    try:
        for lora, tokens in ((None, whole), (AdapterForm(4), adapter)):
            settled = probe.settled(LearnerSettings(lora=lora), CPU)
            assert settled.micro_batch_tokens == tokens
        kept = LearnerSettings(lora=AdapterForm(4), micro_batch_tokens=64)
        assert probe.settled(kept, CPU).micro_batch_tokens == 64
    finally:
        probe._table.cache_clear()


@pytest.mark.parametrize(
    ("attention", "switch"),
    [
        ({}, 512),
        ({512: (4.0, 4.1), 1024: (15.0, 15.5)}, 512),  # even
        ({512: (4.0, 4.6), 1024: (15.0, 17.0)}, 1024),
        ({512: (5.0, 4.0), 256: (1.0, 1.0)}, 256),
    ],
)
def test_attention_switches_over_where_the_measurement_says(
    attention: dict[int, tuple[float, float]], switch: int
) -> None:
    assert probe.choose(table(*XEON.speeds, attention=attention)).fused_above == switch


def test_the_micro_batch_is_the_usual_one_unless_another_is_clearly_faster() -> None:
    assert probe.choose(XEON).micro_batch == 512
    for seconds, tokens in (({512: 1.0, 1024: 0.8}, 1024), ({512: 1.0, 256: 0.85}, 256)):
        measured = msgspec.structs.replace(XEON, micro_batch=seconds)
        assert probe.choose(measured).micro_batch == tokens


def test_settings_are_filled_in_where_they_are_open_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = msgspec.structs.replace(ZEN3, attention={512: (4.0, 4.6), 1024: (15.0, 17.0)})
    monkeypatch.setattr(probe, "table", lambda place: measured)
    assert probe.settled(GeneratorSettings(), CPU) == GeneratorSettings(
        dtype="float32", kernel="onednn", fused_attention_above=1024, graphs=False
    )
    whole = LearnerSettings(
        dtype="float32", kernel="torch", fused_attention_above=1024, micro_batch_tokens=512
    )
    assert probe.settled(LearnerSettings(), CPU) == whole
    given = LearnerSettings(dtype="bfloat16", micro_batch_tokens=80)
    found = probe.settled(given, CPU)
    assert (found.dtype, found.kernel, found.micro_batch_tokens) == ("bfloat16", "torch", 80)
    # A kernel that is asked for decides the dtype with it.
    assert probe.settled(GeneratorSettings(kernel="mkl"), CPU).dtype == "float32"
    monkeypatch.setattr(probe, "table", lambda place: pytest.fail("nothing was open"))
    assert probe.settled(whole, CPU) == whole


# Accelerators: a decoding step of a small model, in seconds. The figures are made up, for none was
# at hand: kernels that wait for the host, that keep it busy, and a driver that records wrongly.
def accelerator(eager: float, recorded: float, apart: float = 0.0) -> Table:
    plain = [Speed(name, "torch", 900, 900, error) for name, error in (
        ("float32", 3e-7), ("bfloat16", 1.1e-3))]  # fmt: skip
    steps = {"bfloat16": StepSpeed(eager, recorded, apart), "float32": StepSpeed(eager, eager, 0.0)}
    faster = msgspec.structs.replace(plain[1], decode=1800.0, learn=1800.0)
    return Table("a chip", 16, [plain[0], faster], steps=steps)


@pytest.mark.parametrize(
    ("measured", "taken"),
    [
        (accelerator(900e-6, 200e-6), True),  # launching is the cost
        (accelerator(900e-6, 830e-6), False),  # a gain of less than a tenth
        (accelerator(900e-6, 1200e-6), False),
        (accelerator(900e-6, 200e-6, apart=3e-3), True),  # rounds otherwise, as bfloat16 may
        (accelerator(900e-6, 200e-6, apart=0.3), False),  # something else was computed
        (accelerator(900e-6, 200e-6, apart=float("nan")), False),
        (ZEN5, False),  # nothing is recorded on a CPU
    ],
)
def test_recorded_steps_are_taken_where_they_pay_and_are_exact(
    measured: Table, taken: bool
) -> None:
    assert probe.choose(measured).graphs is taken
    assert not probe.choose(measured, "float32").graphs  # even there


def test_graphs_are_settled_by_the_table_where_the_device_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "table", lambda place: accelerator(900e-6, 200e-6))
    with recording():
        settled = probe.settled(GeneratorSettings(), CPU)
        assert settled.graphs is True
        assert "of 8 layers: 0.90 ms, recorded 0.20 ms" in probe.why(settled, CPU)
        assert probe.settled(GeneratorSettings(graphs=False), CPU).graphs is False
        assert probe.settled(GeneratorSettings(dtype="float32"), CPU).graphs is False
        assert probe.settled(LearnerSettings(), CPU).kernel == "torch"
    # A run that was settled goes on as it began, measurement or not.
    assert not probe.left_open(settled)


def test_graphs_where_nothing_records_are_a_mistake_and_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "table", lambda place: pytest.fail("nothing was open"))
    whole = GeneratorSettings(dtype="float32", kernel="torch", fused_attention_above=512)
    assert probe.settled(whole, CPU).graphs is False
    asked = msgspec.structs.replace(whole, graphs=True)
    with pytest.raises(ConfigError, match=r'no work can be recorded on cpu .*set it to "auto"'):
        probe.settled(asked, CPU)


def test_a_table_of_before_there_were_graphs_is_read() -> None:
    old = msgspec.to_builtins(ZEN5)
    del old["steps"]
    assert msgspec.convert(old, Table) == ZEN5


def test_a_kernel_that_does_not_multiply_the_dtype_is_a_mistake() -> None:
    asked = GeneratorSettings(dtype="bfloat16", kernel="mkl", fused_attention_above=1)
    with pytest.raises(ConfigError, match=r"kernel = 'mkl' does not multiply bfloat16 on cpu"):
        probe.settled(asked, CPU)


def test_a_measurement_is_kept_and_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(probe.GIVEN, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def measure(place: torch.device) -> Table:
        made.append(place)
        return msgspec.structs.replace(ZEN5, waited=waited)

    monkeypatch.setattr(probe, "measure", measure)

    def asked() -> Table:
        probe._table.cache_clear()  # as in another process
        return probe.table(CPU)

    try:
        waited = 0.5  # on a busy machine: the figures are of the others, and kept for an hour
        assert asked() == asked()
        (kept,) = (tmp_path / "interlock" / "probe").glob("*.json")
        long_ago = kept.stat().st_mtime - 3601
        os.utime(kept, (long_ago, long_ago))
        waited = 0.0
        assert asked() == ZEN5
        os.utime(kept, (long_ago, long_ago))
        assert asked() == ZEN5
        assert made == [CPU] * 2
        kept.write_text("{ torn")
        assert asked() == ZEN5
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # other kernels: other figures
        asked()
        assert made == [CPU] * 4
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
        assert asked() == ZEN5
    finally:
        probe._table.cache_clear()


def test_a_table_that_is_given_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "measure", lambda place: pytest.fail("it was given"))
    file = tmp_path / "table.json"
    file.write_bytes(b'{"taken": {}, "measured": ' + msgspec.json.encode(ZEN5) + b"}")
    monkeypatch.setenv(probe.GIVEN, str(file))
    try:
        probe._table.cache_clear()
        assert probe.choose(probe.table(CPU)) == probe.choose(ZEN5)
        file.write_text("[]")
        probe._table.cache_clear()
        with pytest.raises(ConfigError, match=r"INTERLOCK_PROBE = '.*' holds no measurement"):
            probe.table(CPU)
    finally:
        probe._table.cache_clear()


def test_processes_that_begin_together_choose_alike(tmp_path: Path) -> None:
    """One measures, the others wait for it and read: the same figures to the last digit."""
    body = "import msgspec, torch; from interlock.chips import probe; "
    body += "print(msgspec.json.encode(probe.table(torch.device('cpu'))).decode())"
    env = {name: value for name, value in os.environ.items() if name != probe.GIVEN}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    command = [sys.executable, "-c", body]
    asked = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(3)]
    told = {process.communicate(timeout=60)[0] for process in asked}
    assert len(told) == 1 and told != {b""}


def test_a_table_of_this_machine_holds_every_way_and_its_true_error() -> None:
    found = speeds.measure(CPU)
    ways = {(each.dtype, each.kernel) for each in found.speeds}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    hopeless = {each.dtype for each in found.speeds if not each.decode}
    assert ways == {
        (name, kernel)
        for name, dtype in dtypes.items()
        for kernel in products.KERNELS
        if products.offered(kernel, dtype, "cpu") and not (name in hopeless and kernel != "torch")
    }
    for each in found.speeds:
        if each.decode:
            rounding = 2.0**-24 if each.dtype == "float32" else 2.0**-9
            assert rounding / 4 < each.error < probe.LIMITS[each.dtype]
    assert probe.choose(found).dtype in dtypes
    assert set(found.micro_batch) == {256, 512, 1024} and 512 in found.attention


def test_the_error_tells_a_coarser_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose factors keep ten bits, as TF32's do, in a gradient alone."""
    torch.manual_seed(0)
    x, weight = torch.randn(16, 576), torch.randn(384, 576)
    exact = speeds._error("torch", x, weight)

    def short(factor: torch.Tensor) -> torch.Tensor:
        return (factor.view(torch.int32) & ~0x1FFF).view(torch.float32)

    def coarse(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if right.shape == weight.shape:
            return F.linear(left, right, bias)
        return F.linear(short(left.contiguous()), short(right.contiguous()), bias)

    monkeypatch.setattr(products, "plain", lambda kernel: coarse)
    assert exact < probe.LIMITS["float32"] < speeds._error("torch", x, weight)


@pytest.mark.parametrize("kernel", products.KERNELS)
def test_every_kernel_has_the_gradients_of_the_product(kernel: str) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)]
    grad = torch.randn(5, 3)
    ours = [each.clone().requires_grad_() for each in inputs]
    exact = [each.double().requires_grad_() for each in inputs]
    products.plain(kernel)(*ours).backward(grad)  # type: ignore[arg-type]
    F.linear(*exact).backward(grad.double())
    for our, true in zip(ours, exact, strict=True):
        assert our.grad is not None and true.grad is not None
        torch.testing.assert_close(our.grad.double(), true.grad, rtol=0, atol=2e-6)
