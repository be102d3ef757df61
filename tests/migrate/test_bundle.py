"""A run as a bundle: nothing is lost on the way, and nothing else comes in."""

import io
import os
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from a_move import a_move
from stopping import train_until

from interlock.cli import main
from interlock.config.reading import parse_recipe
from interlock.config.schema import Recipe
from interlock.errors import RunError
from interlock.migrate import bundle
from interlock.records.bundles import BundleList
from interlock.rundir import RunDir


def told(line: str) -> None: ...


@pytest.fixture
def made(stopped: Path, tmp_path: Path) -> Path:
    bundle.write(stopped, tmp_path / "b.tar", told)
    return tmp_path / "b.tar"


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def test_a_folder_that_holds_more_than_its_list_is_refused(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    bundle.write(stopped, folder, told)
    for name in ("extra", "run/extra"):
        (folder / name).write_text("x")
        with pytest.raises(RunError, match=f"holds '{name}', which its list does not"):
            bundle.unpack(folder, tmp_path / "there", told)
        (folder / name).unlink()
    (folder / "run").rename(tmp_path / "elsewhere")
    (folder / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="holds 'run', which its list does not"):
        bundle.unpack(folder, tmp_path / "there", told)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["b.tar", "folder"])
def test_a_round_trip_loses_no_bit(
    stopped: Path, recipe: Recipe, tmp_path: Path, name: str
) -> None:
    listed = bundle.write(stopped, tmp_path / name, told)
    assert bundle.is_bundle(tmp_path / name) and not bundle.is_bundle(stopped)
    into = tmp_path / "there"
    assert bundle.unpack(tmp_path / name, into, told) == listed
    for each, facts in listed.files.items():
        if each != "run/config.json":  # whose paths are those of the other machine
            assert digest(into / each.removeprefix("run/")) == facts.sha256, each
    for file in ("metrics.jsonl", "checkpoints/stage00-step000003/masters.safetensors"):
        assert digest(into / file) == digest(stopped / file)
    model = Path(recipe.model.path)
    assert digest(into / "model/model.safetensors") == digest(model / "model.safetensors")
    ours, theirs = RunDir.read(stopped), RunDir.read(into)
    assert theirs.ledger.identity == ours.ledger.identity
    for step in range(1, 6):
        assert theirs.ledger.read(0, step) == ours.ledger.read(0, step)
    options = theirs.config["stage"][0]["task"][0]["options"]
    assert Path(options["path"]).is_relative_to(into)
    assert options["verifier"].endswith("/reward.py:reward")
    assert {into.stat().st_mode & 0o777, (into / "ledger.sqlite").stat().st_mode & 0o777} == {
        0o700,
        0o600,
    }


def test_the_run_goes_on_from_a_bundle_without_what_it_came_from(
    made: Path, stopped: Path, recipe: Recipe, recipe_file: Path, tmp_path: Path
) -> None:
    """In the same weights as where it was, though data and verifier are gone there."""
    into = tmp_path / "there"
    bundle.unpack(made, into, told)
    train_until(recipe, stopped, 99, resume=True)
    files = [recipe_file.with_name(name) for name in ("problems.jsonl", "reward.py")]
    for file in files:
        file.rename(file.with_suffix(".gone"))
    train_until(parse_recipe(RunDir.read(into).config), into, 99, resume=True)
    for file in files:
        file.with_suffix(".gone").rename(file)
    weights = "weights/model.safetensors"
    assert digest(into / weights) == digest(stopped / weights)


def test_the_command_that_goes_on_from_a_bundle_is_one_that_does(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir.read(stopped)
    run.manifest.moves.append(a_move(trust="unqualified"))
    (stopped / "manifest.json").write_bytes(msgspec.json.encode(run.manifest))
    bundle.write(stopped, tmp_path / "b", told)
    with pytest.raises(SystemExit) as end:
        main(["migrate", str(tmp_path / "b"), "--into", str(into := tmp_path / "there")])
    assert end.value.code == 0
    expected = f"to go on: interlock train {into} --resume --unqualified\n"
    assert capsys.readouterr().out == expected


def test_prices_and_a_plan_go_along(stopped: Path, tmp_path: Path) -> None:
    """A resumed run reads them."""
    config = msgspec.json.decode((stopped / "config.json").read_bytes())
    for name in ("prices", "plan"):
        (tmp_path / f"own-{name}").write_text(name)
        config[name] = str(tmp_path / f"own-{name}")
    (stopped / "config.json").write_bytes(msgspec.json.encode(config))
    bundle.write(stopped, tmp_path / "c.tar", told)
    bundle.unpack(tmp_path / "c.tar", into := tmp_path / "there", told)
    for name in ("prices", "plan"):
        there = Path(RunDir.read(into).config[name])
        assert there.is_relative_to(into) and there.read_text() == name


@pytest.mark.parametrize("gone", ["problems.jsonl", "reward.py", "chat.jinja", "prices.toml"])
def test_no_bundle_is_without_what_the_config_names(
    stopped: Path, tmp_path: Path, gone: str
) -> None:
    """A path that was given from another directory, say: it would be missed on the way only."""
    config = msgspec.json.decode((stopped / "config.json").read_bytes())
    options = config["stage"][0]["task"][0]["options"]
    if gone == "chat.jinja":
        config["model"]["chat_template"] = gone
    elif gone == "prices.toml":
        config["prices"] = gone
    else:
        name = "path" if gone.endswith("l") else "verifier"
        options[name] = options[name].replace(f"/{gone}", f"/elsewhere/{gone}")
    (stopped / "config.json").write_bytes(msgspec.json.encode(config))
    with pytest.raises(RunError, match=rf"names .*{gone}, which is not there"):
        bundle.write(stopped, tmp_path / "c.tar", told)
    assert not (tmp_path / "c.tar").exists()


def test_a_bundle_cut_off_anywhere_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.99):
        short = tmp_path / "short.tar"
        short.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(RunError, match="copy it again") as refused:
            bundle.unpack(short, tmp_path / "there", told)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "there").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp-")]


def test_an_altered_bundle_is_refused(made: Path, tmp_path: Path) -> None:
    files = members(made)
    metrics = files["run/metrics.jsonl"]
    cases = {
        "is not what was bundled": {"run/metrics.jsonl": metrics.replace(b"0", b"1")},
        "which its list does not": {"run/lock": b""},
        "lacks run/metrics.jsonl": {"run/metrics.jsonl": None},
    }
    for why, change in cases.items():
        altered = {n: c for n, c in (files | change).items() if c is not None}
        with pytest.raises(RunError, match=why):
            bundle.unpack(tar_of(tmp_path / "altered.tar", altered), tmp_path / "there", told)
        assert not (tmp_path / "there").exists()
    folder = tmp_path / "folder"
    bundle.write(tmp_path / "run", folder, told)
    (folder / "run/metrics.jsonl").write_bytes(metrics[:-1] + b" ")
    with pytest.raises(RunError, match="is not what was bundled"):
        bundle.unpack(folder, tmp_path / "there", told)


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "run/../../out", "run//out", "out", "run/a\nb", "files/..", ""]
)
def test_no_name_leaves_the_run(made: Path, tmp_path: Path, name: str) -> None:
    files = members(made)
    listed = msgspec.json.decode(files["bundle.json"], type=BundleList)
    facts = bundle.BundledFile(sha256(b"x").hexdigest(), 1)
    changed = msgspec.structs.replace(listed, files=listed.files | {name: facts})
    evil = files | {"bundle.json": msgspec.json.encode(changed), name: b"x"}
    with pytest.raises(RunError, match="outside of a run; do not trust it"):
        bundle.unpack(tar_of(tmp_path / "evil.tar", evil), tmp_path / "there", told)
    assert not (tmp_path / "there").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_nothing_but_plain_files_comes_in(made: Path, tmp_path: Path, kind: bytes) -> None:
    files = members(made)
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as tar:
        info = tarfile.TarInfo("bundle.json")
        info.size = len(files["bundle.json"])
        tar.addfile(info, io.BytesIO(files["bundle.json"]))
        link = tarfile.TarInfo("run/metrics.jsonl")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(RunError, match="which is no plain file; do not trust it"):
        bundle.unpack(evil, tmp_path / "there", told)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    "said",
    [
        {"GNU.sparse.map": "a,b", "GNU.sparse.size": "5"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "5"},
    ],
)
def test_a_header_that_is_no_number_is_refused_in_one_line(
    tmp_path: Path, said: dict[str, str]
) -> None:
    """tarfile raises ValueError of these, and no error of its own."""
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("bundle.json")
        info.size, info.pax_headers = 4, {"GNU.sparse.name": "bundle.json", **said}
        tar.addfile(info, io.BytesIO(b"zzz\n"))
    with pytest.raises(RunError, match="is no bundle"):
        bundle.unpack(evil, tmp_path / "there", told)
    assert not (tmp_path / "there").exists()


def test_a_full_disk_leaves_nothing(
    made: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(bundle, "_fill", full)
    for work in (
        lambda: bundle.unpack(made, tmp_path / "there", told),
        lambda: bundle.write(stopped, tmp_path / "folder", told),
    ):
        with pytest.raises(RunError, match="no space left on the disk"):
            work()
    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(RunError, match="no space left on the disk"):
        bundle.write(stopped, tmp_path / "c.tar", told)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_damaged_checkpoint_is_not_bundled(stopped: Path, tmp_path: Path) -> None:
    newest = max((stopped / "checkpoints").iterdir())
    masters, state = newest / "masters.safetensors", newest / "state.json"
    whole = masters.read_bytes()
    masters.write_bytes(whole[:1000])
    with pytest.raises(RunError, match=r"masters\.safetensors is not what was saved; remove that"):
        bundle.write(stopped, tmp_path / "c.tar", told)
    masters.unlink()
    with pytest.raises(RunError, match=r"masters\.safetensors is not what was saved"):
        bundle.write(stopped, tmp_path / "c.tar", told)
    masters.write_bytes(whole)
    state.write_bytes(state.read_bytes()[:30])
    with pytest.raises(RunError, match=r"state\.json is unreadable"):
        bundle.write(stopped, tmp_path / "c.tar", told)
    assert not (tmp_path / "c.tar").exists()


def test_nothing_is_overwritten(made: Path, stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is there already"):
        bundle.write(stopped, made, told)
    with pytest.raises(RunError, match="a bundle is not compressed; end its"):
        bundle.write(stopped, tmp_path / "c.tar.gz", told)
    with pytest.raises(RunError, match="is not empty"):
        bundle.unpack(made, stopped, told)
    with pytest.raises(RunError, match=r"in\.tar lies in the run .* itself; give a place outside"):
        bundle.write(stopped, stopped / "stages" / ".." / "in.tar", told)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="link is a link; give a new directory"):
        bundle.unpack(made, tmp_path / "link", told)
    with pytest.raises(RunError, match="is a file; give a new directory"):
        bundle.unpack(made, made, told)
    bundle.write(stopped, tmp_path / "folder", told)
    held = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=r"inside lies in the bundle .*folder itself"):
        bundle.unpack(tmp_path / "folder", tmp_path / "folder" / "inside", told)
    assert sorted(tmp_path.rglob("*")) == held
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(4096))
    with pytest.raises(RunError, match="is no bundle"):
        bundle.unpack(noise, tmp_path / "there", told)
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        bundle.write(stopped, tmp_path / "c.tar", told)
