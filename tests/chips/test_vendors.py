"""The table of vendors: what it says, and that nobody else names one."""

import ast
import re
import tokenize
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from interlock.chips import vendors

SOURCE = Path(__file__).parents[2] / "src" / "interlock"
NAMES = re.compile(
    r"(?<![a-z])(cuda|npu|mps|xpu|mlu|musa|hpu|gaudi|habana|ascend|cann|hccl|nvidia|nccl|rocm|hip|amd|sim)(?![a-z])",
    re.IGNORECASE,
)
# Who else may name a vendor outside of comments and docstrings, and why.
ALLOWED = {
    "chips/vendors": "the table",
    "chips/sim": "the simulated device is an npu to torch",
    "chips/device.py": "sets the simulated device up",
    "cli/judging.py": "examples of devices in the help",
    "cli/migrating.py": "examples of devices in the help",
}


def named(path: Path) -> list[str]:
    """Vendors in the code of a file; its comments and docstrings may give examples."""
    source = path.read_text()
    bodies = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, bodies)]
    documented = {node.body[0].lineno for node in nodes if ast.get_docstring(node) is not None}
    found = []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or token.start[0] in documented:
                continue
            found += [f"{token.start[0]}: {word[0]}" for word in NAMES.finditer(token.string)]
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_only_the_table_names_vendors(path: Path) -> None:
    inside = str(path.relative_to(SOURCE))
    if not any(inside == allowed or inside.startswith(f"{allowed}/") for allowed in ALLOWED):
        assert named(path) == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Of cuda."""\n\n# npu\nx = {"cuda": 1}  # xpu\nprint(torch.npu, "simple", f"{x} MPS")\n'
    )
    assert named(path) == ["4: cuda", "5: npu", "5: MPS"]
    assert named(SOURCE / "chips" / "vendors" / "table.py") != []


def test_a_kind_without_a_row_has_nothing_special() -> None:
    assert vendors.kind_of("abacus:3") == "abacus"
    abacus = vendors.of("abacus")
    assert (abacus.kind, abacus.numbered, abacus.host, abacus.plugin) == ("abacus", True, False, "")
    assert vendors.software(abacus) == ("", "", "", "")


def test_rows_are_found_by_their_kinds() -> None:
    assert all(vendors.of(kind).kind == kind for kind in vendors.KINDS)
    assert {kind for kind, vendor in vendors.VENDORS.items() if vendor.fused_adamw} == {
        *("cpu", "sim", "cuda", "rocm", "xpu")
    }
    assert {kind for kind, vendor in vendors.VENDORS.items() if not vendor.numbered} == {
        *("sim", "mps")
    }


def test_variables_that_change_numbers_are_those_of_torch_and_of_every_vendor() -> None:
    for variable in ("TORCH_LOGS", "CUBLAS_WORKSPACE_CONFIG", "HCCL_DETERMINISTIC", "MLU_X"):
        assert vendors.changes_numbers(variable)
    for variable in ("PATH", "HOME", "MY_CUDA_HOME", "LANG"):
        assert not vendors.changes_numbers(variable)


def test_strict_mode_is_asked_for_by_environment() -> None:
    assert vendors.of("npu").strict_env == {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
    assert vendors.of("hpu").strict_env == {"PT_HPU_PLACE_ON_CPU": "none"}
    assert vendors.of("mps").strict_env == {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    for kind in ("cpu", "cuda", "sim", "abacus"):
        assert vendors.of(kind).strict_env == {}


def test_two_vendors_of_one_kind_are_told_apart_by_what_torch_is_built_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [row.name for row in vendors.named("cuda")] == ["cuda", "rocm"]
    for built, name in [({"cuda": "13.0"}, "cuda"), ({"hip": "7.2.1"}, "rocm"), ({}, "cuda")]:
        monkeypatch.setattr(vendors, "built", lambda built=built: built)
        assert vendors.of("cuda").name == name
    assert vendors.KINDS.count("cuda") == 1


def test_every_vendor_of_the_table_says_what_a_user_needs() -> None:
    assert set(vendors.VENDORS) == {
        *("cpu", "sim", "cuda", "rocm", "npu", "mlu", "musa", "xpu", "mps", "hpu")
    }
    for vendor in vendors.VENDORS.values():
        if not vendor.host:
            assert vendor.codes and vendor.get_torch
            assert vendor.nodes or vendor.bus or vendor.system
            assert bool(vendor.plugin) == bool(vendor.plugin_module)
            assert vendor.versions_command or vendor.name == "xpu"  # torch tells its driver


def test_rules_of_the_table_are_regular_expressions_and_versions() -> None:
    for vendor in vendors.VENDORS.values():
        for pattern in (vendor.nodes, vendor.bus, vendor.libraries):
            re.compile(pattern)
        for setting in (*vendor.settings, *vendors.SETTINGS):
            re.compile(setting.right)
            assert setting.otherwise and setting.remedy
        for trap in vendor.traps:
            assert re.fullmatch(r"[\w./-]+#\d+", trap.thread)
            assert trap.remedy
            SpecifierSet(trap.versions)
            assert not trap.versions or trap.part


def test_what_strict_mode_sets_is_a_good_value_of_the_settings() -> None:
    for vendor in vendors.VENDORS.values():
        for variable, value in vendor.strict_env.items():
            rules = [setting for setting in vendor.settings if setting.variable == variable]
            assert rules and all(re.fullmatch(rule.right, value) for rule in rules)
