"""The locks are the constraints with hashes, whole, and nothing else is installed."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
CLIENTS = {path.stem: path.read_text() for path in (ROOT / "requirements/clients").glob("*.txt")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def constraints(*names: str) -> dict[str, str]:
    return {k: v for name in names for k, v in pins((ROOT / f"{name}.txt").read_text()).items()}


def locked(name: str) -> dict[str, str]:
    """With the locks that it begins with."""
    below = re.findall(r"^-r (\S+)\.txt$", LOCKS[name], re.MULTILINE)
    return {k: v for each in below for k, v in locked(each).items()} | pins(LOCKS[name])


def asked(extra: str) -> dict[str, Requirement]:
    """The direct requirements of an extra, those of its extras of our own included."""
    found = {}
    own = [*PROJECT["project"]["dependencies"]]
    for text in own + PROJECT["project"]["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "interlock":
            for more in requirement.extras:
                found |= asked(more)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize("name", [*sorted(LOCKS), *(f"clients/{name}" for name in sorted(CLIENTS))])
def test_a_lock_is_pins_with_hashes_and_names_no_index(name: str) -> None:
    lock = (ROOT / f"requirements/{name}.txt").read_text()
    text = re.sub(r"^(#|-r [\w-]+\.txt$).*\n", "", lock, flags=re.MULTILINE)
    entry = r"[\w.-]+==[\w.+!]+( ; [\w\s'.<>=!()]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert text and re.fullmatch(f"({entry})+", text)


def test_the_locks_and_the_constraints_are_the_same_pins() -> None:
    ours = locked("lint") | locked("bench") | locked("cuda")
    assert ours == constraints("constraints", "constraints-cuda")
    assert locked("cuda") == constraints("constraints-cuda")
    assert locked("vllm") == constraints("constraints-vllm")
    assert pins(LOCKS["torch-cpu"]) == {"torch": f"{ours['torch']}+cpu"}


@pytest.mark.parametrize(
    ("lock", "extra"),
    [(name, name) for name in ("demo", "test", "lint", "bench")] + [("vllm", "vllm-cpu")],
)
def test_an_extra_finds_all_it_asks_for_in_its_range(lock: str, extra: str) -> None:
    there = locked(lock)
    wrong = {
        name: f"{there.get(name)} is not in {requirement.specifier}"
        for name, requirement in asked(extra).items()
        if not (name in there and requirement.specifier.contains(there[name], prereleases=True))
    }
    assert not wrong


def test_what_builds_is_locked() -> None:
    (backend,) = PROJECT["build-system"]["requires"]
    name, _, version = backend.partition("==")
    assert locked("build")[name] == locked("vllm")[name] == version
    assert set(PROJECT["dependency-groups"]["build"]) <= locked("build").keys()


def test_each_client_is_locked_as_it_was_asked_for() -> None:
    asked_for = {path.stem: path for path in (ROOT / "requirements/clients").glob("*.in")}
    assert asked_for.keys() == CLIENTS.keys() >= {"openai", "lm-eval", "inspect-ai", "guidellm"}
    cuda = constraints("constraints-cuda")
    for name, path in asked_for.items():
        there = pins(CLIENTS[name])
        for line in path.read_text().splitlines():
            requirement = Requirement(line)
            assert str(requirement.specifier) == f"=={there[canonicalize_name(requirement.name)]}"
        # Where a client wants torch it is ours, whose CPU build is known; CUDA's packages never.
        assert there.get("torch", locked("demo")["torch"]) == locked("demo")["torch"]
        assert not there.keys() & cuda.keys()


def test_the_clients_of_npm_are_locked_and_name_no_index() -> None:
    directory = ROOT / "requirements/clients/npm"
    asked_for = json.loads((directory / "package.json").read_text())["dependencies"]
    packages = json.loads((directory / "package-lock.json").read_text())["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked_for} == asked_for
    assert all("integrity" in each and "resolved" not in each for k, each in packages.items() if k)


def test_the_makefile_installs_nothing_else() -> None:
    makefile = (ROOT / "Makefile").read_text()
    kinds = [line for line in makefile.splitlines() if "pip install" in line]
    assert len(kinds) == 1 and "--no-deps --no-build-isolation" in kinds[0]
    given = re.findall(r"\$\((?:INSTALL)\) (.*)", makefile)
    assert sorted(given) == ["--require-hashes -r requirements", "-e .", "-e .", "build/*.whl"]
