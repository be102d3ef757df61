"""The table of vendors: what it says, where versions are read, and that nobody else names one."""

import ast
import os
import re
import tokenize
from pathlib import Path
from types import SimpleNamespace

import pytest

from interlock.chips import vendors, versions

SOURCE = Path(__file__).parents[2] / "src" / "interlock"
NAMES = re.compile(
    r"(?<![a-z])(cuda|npu|mps|xpu|mlu|musa|ascend|cann|hccl|nvidia|nccl|rocm|hip|amd|sim)(?![a-z])",
    re.IGNORECASE,
)
# Who else may name a vendor outside of comments and docstrings, and why.
ALLOWED = {
    "chips/vendors.py": "the table",
    "chips/sim": "the simulated device is an npu to torch",
    "chips/device.py": "sets the simulated device up",
    "cli/arguments.py": "examples of devices in the help",
    "qualify/faults.py": "what the libraries of all vendors say when they fail, a table as well",
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
    assert named(SOURCE / "chips" / "vendors.py") != []


def test_a_kind_without_a_row_has_nothing_special() -> None:
    assert vendors.kind_of("abacus:3") == "abacus"
    abacus = vendors.of("abacus")
    assert (abacus.kind, abacus.numbered, abacus.host, abacus.plugin) == ("abacus", True, False, "")
    assert abacus.software("", None) == ("", "", "", "")


def test_rows_are_found_by_their_kinds() -> None:
    assert all(vendors.of(kind).kind == kind for kind in vendors.VENDORS)
    assert {kind for kind, vendor in vendors.VENDORS.items() if vendor.fused_adamw} == {
        *("cpu", "sim", "cuda", "xpu")
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
    assert vendors.of("mps").strict_env == {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    for kind in ("cpu", "cuda", "sim", "abacus"):
        assert vendors.of(kind).strict_env == {}


def test_versions_are_read_from_the_vendors_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    monkeypatch.setattr(vendors, "_ASCEND", tmp_path)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    empty = versions.stack("npu", "Ascend910B")
    assert (empty.driver, empty.firmware, empty.runtime, empty.plugin) == ("", "", "", "")
    write("driver/version.info", "Version=24.1.rc2\nascendhal_version=7.35\n")
    write("firmware/version.info", "Version=7.3.0.1.231\n")
    write("ascend-toolkit/latest/version.cfg", "# of CANN\nruntime_running_version=[7.6:8.5.0]\n")
    found = versions.stack("npu", "Ascend910B")
    assert (found.driver, found.firmware, found.runtime) == (
        "24.1.rc2",
        "7.3.0.1.231",
        "CANN 8.5.0",
    )
    write("elsewhere/runtime/version.info", "Version=8.3.RC1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "elsewhere"))
    assert versions.stack("npu", "Ascend910B").runtime == "CANN 8.3.RC1"


def test_nvidias_driver_is_asked_with_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$*" > "$0.asked"\necho "580.82.07, 96.00.74.00.1C"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = versions.stack("cuda", "H100", serial="0a1b")
    assert (found.driver, found.firmware) == ("580.82.07", "96.00.74.00.1C")
    assert "--id=GPU-0a1b" in (tmp_path / "nvidia-smi.asked").read_text()
    monkeypatch.setattr(vendors, "_DEADLINE_S", 0.2)
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    assert versions.stack("cuda", "H100").firmware == ""


def test_the_libraries_that_torch_brings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"nvidia-nccl-cu13": "2.27.3", "nvidia-cudnn-cu13": "9.10.2.21", "numpy": "2", "": "1"}
    found = [SimpleNamespace(name=name, version=version) for name, version in names.items()]
    monkeypatch.setattr(vendors.metadata, "distributions", lambda: found)
    assert vendors._nvidia_libraries() == "cuDNN 9.10.2.21, NCCL 2.27.3"
