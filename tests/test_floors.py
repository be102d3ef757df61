"""The house keeps its floors: a module imports only from lower floors or from its own room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "interlock"

# docs/structure.md draws the same picture. Floor 0 is one storey with an order of its own.
GROUND = [
    *("errors", "text", "thinking", "regular", "mismatch", "hub"),
    *("records", "config", "processes", "remote", "listening", "rundir", "sandbox"),
]
FLOORS = [
    set(GROUND),
    {"chips", "tasks", "report", "fleet", "sync"},
    {"models"},
    {"engine", "learner", "plan"},
    {"workers"},
    {"serve"},
    {
        "recipes",
        "qualify",
        "parity",
        "doctor",
        "preflight",
        "export",
        "label",
        "migrate",
        "evidence",
    },
    {"terminal"},
    {"cli"},
]
ONLY = {"fastapi": {"serve", "label"}, "ray": {"fleet"}, "vllm": {"engine"}}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> list[str]:
    """Every module imported anywhere in the file, lazily or for types only included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            base = node.module or ""
            found += [f"{base}.{a.name}" if base == "interlock" else base for a in node.names]
    return found


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def violations(room: str, imported: list[str]) -> list[str]:
    bad = []
    for module in imported:
        top = module.split(".")[0]
        if room not in ONLY.get(top, {room}):
            bad.append(f"{room} imports {module}, which only {' and '.join(sorted(ONLY[top]))} may")
        other = room_of(module) if top == "interlock" else ""
        if not other or other in (room, "__version__"):
            continue
        lower = floor_of(other) < floor_of(room)
        ground = room in GROUND and other in GROUND and GROUND.index(other) < GROUND.index(room)
        if not (lower or ground):
            bad.append(f"{room} imports {module}, which is not on a lower floor")
    return bad


FILES = sorted(
    path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem != "__init__"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_from_lower_floors(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert violations(room, imports(ast.parse(path.read_text()))) == []


def test_the_check_can_fail() -> None:
    source = "def f():\n    from interlock.learner.losses import policy\n    import vllm\n"
    assert len(violations("engine", imports(ast.parse(source)))) == 1
    assert len(violations("models", imports(ast.parse(source)))) == 2
    assert violations("recipes", imports(ast.parse("from interlock import learner, config"))) == []
    assert violations("errors", ["interlock.records.rl"]) != []


def classes(source: Path) -> dict[str, list[str]]:
    """Where each class name of the house is defined."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(source)))
    return found


def test_no_class_name_stands_twice(tmp_path: Path) -> None:
    assert {name: paths for name, paths in classes(SOURCE).items() if len(paths) > 1} == {}
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("class Row:\n    pass\n")
    assert classes(tmp_path) == {"Row": ["a.py", "b.py"]}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import interlock",
        "import interlock.config.reading, interlock.processes.child, interlock.rundir",
        "import interlock.cli.arguments as a; a._parser().format_help()",
    ],
)
def test_light_imports_bring_no_heavy_package(statement: str) -> None:
    heavy = {"torch", "transformers", "numpy", "tokenizers", "plotly", "rich"}
    assert loaded_after(statement) & heavy == set()


def test_the_live_page_is_served_without_what_takes_long_to_import() -> None:
    loaded = loaded_after("import interlock.report.live.app, interlock.report.live.server")
    assert "starlette" in loaded
    assert loaded & {"fastapi", "pydantic", "torch", "numpy"} == set()
