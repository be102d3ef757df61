"""`interlock export` from the command line: what is said, where it goes, and how it ends."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from gguf import GGUFReader

from interlock.cli import main
from interlock.errors import UserError
from interlock.export.push import push

Build = Callable[..., Path]
Known = Callable[[Path], Path]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["export", *arguments])
    return int(end.value.code or 0)


def test_where_it_goes_by_default(
    build: Build,
    known: Known,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(known(build("qwen3")))
    monkeypatch.chdir(tmp_path)
    assert run(model, "--to", "hf") == 0
    assert run(model, "--to", "gguf", "--type", "Q8_0") == 0
    assert capsys.readouterr().out == "exports/qwen3\nexports/qwen3-Q8_0.gguf\n"
    assert json.loads((tmp_path / "exports/qwen3/config.json").read_text())["hidden_size"] == 64
    told = GGUFReader(tmp_path / "exports/qwen3-Q8_0.gguf").fields["general.file_type"].contents()
    assert told == 7
    assert run(model, "--to", "hf") == 2
    assert "exports/qwen3 is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--to", "gguf", "--dtype", "float16"], "--dtype float16 says nothing of --to gguf"),
        (["--to", "hf", "--type", "Q8_0"], "--type Q8_0 says nothing of --to hf"),
        (["--to", "gguf", "--type", "Q4_K_M"], "invalid choice: 'Q4_K_M'"),
        (["--to", "hf", "--push", "name"], "--push 'name' is no name on the hub"),
        ([], "--to"),
    ],
)
def test_mistakes_are_one_line(
    build: Build,
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(str(build("llama")), *arguments) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1
    assert not (tmp_path / "exports").exists()


def test_without_gguf_it_says_what_to_install(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("interlock.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run(str(build("llama")), "--to", "gguf", "--out", str(tmp_path / "x.gguf")) == 2
    assert "pip install 'interlock[export]'" in capsys.readouterr().err


class _Hub:
    """Stands for huggingface_hub.HfApi."""

    calls: ClassVar[list[tuple[str, dict]]] = []

    def create_repo(self, name: str, **more: object) -> str:
        self.calls.append((name, more))
        return f"https://hub/{name}"

    def upload_folder(self, **more: object) -> None:
        self.calls.append(("folder", more))


def test_what_is_pushed_is_private_and_whole(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub)
    monkeypatch.setattr(_Hub, "calls", [])
    out = tmp_path / "out"
    assert run(str(build("llama")), "--to", "hf", "--out", str(out), "--push", "org/name") == 0
    assert _Hub.calls == [
        ("org/name", {"private": True, "exist_ok": True}),
        ("folder", {"repo_id": "org/name", "folder_path": out}),
    ]
    assert "pushed to https://hub/org/name" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_one_line_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is written, but the hub did not take org/name") as caught:
        push(tmp_path, "org/name")

    def refuses(self: object, *_: object, **__: object) -> None:
        raise ValueError("401 for token hf_secret at https://me:pw@hub/api?token=hf_secret")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuses)
    with pytest.raises(UserError) as again:
        push(tmp_path, "org/name")
    for told in (str(caught.value), str(again.value)):
        assert "\n" not in told
        assert "hf_secret" not in told
        assert "pw" not in told
