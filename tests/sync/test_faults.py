"""Damaged files, disks that refuse, remote stores that fail or hang, and killed publishers."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import fsspec
import hypothesis.strategies as st
import msgspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from interlock.errors import ConfigError, RunError, SyncError
from interlock.records.rl import WeightVersion
from interlock.sync import Publisher, Replica, codec, identity

Same = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
Moved = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


class Chain:
    """Versions 0 (anchor), 1 and 2 in a directory."""

    def __init__(self, directory: Path, model: dict[str, Tensor], moved: Moved) -> None:
        self.directory, self.url = directory, str(directory)
        self.publisher = Publisher(self.url, 9)
        self.tensors = [model, moved(model, 1), moved(moved(model, 1), 2)]
        self.versions = [
            self.publisher.publish(number, tensors).version
            for number, tensors in enumerate(self.tensors)
        ]
        self.files = sorted(path.name for path in directory.iterdir())


@pytest.fixture
def chain(tmp_path: Path, model: dict[str, Tensor], moved: Moved) -> Chain:
    return Chain(tmp_path / "store", model, moved)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("holding", [None, 0, 1])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_or_a_cut_never_gives_wrong_tensors(
    chain: Chain, same: Same, holding: int | None, data: st.DataObject
) -> None:
    path = chain.directory / data.draw(st.sampled_from(chain.files))
    whole = path.read_bytes()
    replica = Replica(chain.url)
    if holding is not None:
        replica.fetch(chain.versions[holding])
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole[:at] if data.draw(st.booleans()) else damaged)
    try:
        got = replica.fetch(chain.versions[2])
    except SyncError as error:
        assert "\n" not in str(error)
        assert replica.version is None
        assert replica.digests == {}
    else:
        assert same(got, chain.tensors[2])
    finally:
        path.write_bytes(whole)
    assert same(replica.fetch(chain.versions[2]), chain.tensors[2])


def test_a_damaged_payload_is_refused(chain: Chain) -> None:
    """At least here: a flip in the property above might always have been harmless."""
    path = next(chain.directory.glob("v00000001-*.delta"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SyncError, match="is not what its manifest says"):
        Replica(chain.url).fetch(chain.versions[2])


def test_what_changed_in_memory_is_noticed_and_fetched_anew(chain: Chain, same: Same) -> None:
    replica = Replica(chain.url)
    replica.fetch(chain.versions[1])
    held = replica._current
    assert held is not None
    held.tensors["norm"][3] = 7  # a fault in memory
    assert same(replica.fetch(chain.versions[2]), chain.tensors[2])


def test_a_failed_fetch_leaves_nothing_half_applied(chain: Chain, same: Same) -> None:
    replica = Replica(chain.url)
    replica.fetch(chain.versions[0])
    path = next(chain.directory.glob("v00000002-*.delta"))
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(SyncError, match="there is no v00000002-"):
        replica.fetch(chain.versions[2])
    assert replica.version is None
    assert same(replica.fetch(chain.versions[1]), chain.tensors[1])
    path.write_bytes(whole)
    assert same(replica.fetch(chain.versions[2]), chain.tensors[2])


def test_an_interrupted_fetch_starts_again_at_the_anchor(
    chain: Chain, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(chain.url)
    replica.fetch(chain.versions[0])

    def interrupted(tensors: object, expected: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(identity, "verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            replica.fetch(chain.versions[2])
    assert replica.version is None
    assert same(replica.fetch(chain.versions[2]), chain.tensors[2])


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_digest_that_was_never_published_is_refused(chain: Chain, number: int) -> None:
    replica = Replica(chain.url)
    replica.fetch(chain.versions[0])
    with pytest.raises(SyncError):
        replica.fetch(WeightVersion(number, chain.versions[1].digest))


def forge(chain: Chain, number: int, /, **changes: object) -> WeightVersion:
    """Rewrite a manifest, with the root digest that its tensors now have."""
    path = chain.directory / f"v{number:08d}.json"
    tree = msgspec.json.decode(path.read_bytes()) | changes
    tree["digest"] = identity.digest({n: spec["digest"] for n, spec in tree["tensors"].items()})
    path.write_bytes(msgspec.json.encode(tree))
    return WeightVersion(tree["number"], tree["digest"])


def specs(chain: Chain, number: int) -> dict[str, dict[str, object]]:
    tree = msgspec.json.decode((chain.directory / f"v{number:08d}.json").read_bytes())
    return tree["tensors"]


def test_a_replayed_manifest_is_refused(chain: Chain) -> None:
    """Version 1's manifest under the name of version 2."""
    one, two = (chain.directory / f"v0000000{number}.json" for number in (1, 2))
    two.write_bytes(one.read_bytes())
    with pytest.raises(SyncError, match=r"v00000002\.json is version 1"):
        Replica(chain.url).fetch(chain.versions[2])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, "has format 2; this Interlock reads 1"),
        ({"kind": "anchor"}, "contradicts itself"),
        ({"base": None}, "contradicts itself"),
        ({"base": {"number": 2, "digest": "0"}}, "contradicts itself"),
        ({"base": {"number": 0, "digest": "0"}}, r"v00000000\.json is version 0 with digest"),
        ({"anchor": 1}, "no chain"),
        ({"anchor": 2}, "contradicts itself"),
        ({"size": 1 << 40}, "too many for its tensors"),
        ({"sha256": "../../../../etc/passwd"}, "is damaged"),
        ({"payload": "../../secret"}, "is damaged"),
        ({"number": "2"}, "is damaged"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    chain: Chain, changes: dict[str, object], complaint: str
) -> None:
    forge(chain, 2, **changes)
    with pytest.raises(SyncError, match=complaint):
        Replica(chain.url).fetch(chain.versions[2])


@pytest.mark.parametrize(
    "bomb",
    [
        '"base":' + '{"a":' * 100_000 + "1" + "}" * 100_000,
        '"base":' + "[" * 100_000,
        '"more":' + '{"a":[' * 20_000 + "]}" * 20_000,
    ],
)
def test_a_manifest_nested_without_end_is_damaged(chain: Chain, bomb: str) -> None:
    path = chain.directory / "v00000002.json"
    path.write_bytes(b"{" + bomb.encode() + b"," + path.read_bytes()[1:])
    with pytest.raises(SyncError, match="is damaged"):
        Replica(chain.url).fetch(chain.versions[2])


def test_a_header_nested_without_end_is_damaged(model: dict[str, Tensor]) -> None:
    header = b"\x91" * 100_000
    payload = codec.MAGIC + len(header).to_bytes(4, "little") + header
    with pytest.raises(SyncError, match="header is damaged"):
        codec.decode_anchor(payload, identity.specs(model))


@pytest.mark.parametrize("shape", [[1] * 30_000, [2**48] * 16, [2**40], [6, 8, 1], []])
def test_no_memory_is_taken_for_shapes_of_another_model(
    chain: Chain, model: dict[str, Tensor], shape: list[int]
) -> None:
    """The digests are as they were asked for: only the shapes are wrong."""
    tensors = specs(chain, 0)
    tensors["norm"]["shape"] = shape
    asked = forge(chain, 0, tensors=tensors)
    assert asked == chain.versions[0]
    replica = Replica(chain.url, {name: list(tensor.shape) for name, tensor in model.items()})
    with (
        mock.patch.object(torch, "empty", side_effect=AssertionError("memory is taken")),
        pytest.raises(SyncError, match=r"shape of another model|is damaged"),
    ):
        replica.fetch(asked)


def test_no_memory_is_taken_for_names_of_another_model(chain: Chain) -> None:
    with pytest.raises(SyncError, match="lacks or adds the tensor"):
        Replica(chain.url, {"norm": [1]}).fetch(chain.versions[0])


@pytest.mark.parametrize("start", [None, 1])
@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda tensors: tensors.pop("norm"), "'norm'"),
        (lambda tensors: tensors.update(more=tensors["norm"]), "'more' is missing"),
        (lambda tensors: tensors["norm"].update(shape=[6, 8]), r"not float32 \[6, 8\]"),
        (lambda tensors: tensors["norm"].update(dtype="int32"), "not int32"),
        (lambda tensors: tensors["norm"].update(digest="0" * 64), "'norm' does not have"),
        (lambda tensors: tensors["norm"].update(shape=[-1]), "is damaged"),
        (lambda tensors: tensors["norm"].update(dtype="object"), "unknown dtype"),
    ],
)
def test_updates_that_do_not_fit_the_tensors_are_refused(
    chain: Chain, start: int | None, edit: Callable[..., object], complaint: str
) -> None:
    tensors = specs(chain, 2)
    edit(tensors)
    version = forge(chain, 2, tensors=tensors)
    replica = Replica(chain.url)
    if start is not None:
        replica.fetch(chain.versions[start])
    with pytest.raises(SyncError, match=complaint):
        replica.fetch(version)
    assert replica.version is None


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` fails with EFBIG, as it fails with ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("allowed", [4, 500])  # the payload fails; the larger manifest does
def test_a_disk_that_refuses_leaves_the_store_as_it_was(
    chain: Chain, same: Same, moved: Moved, allowed: int
) -> None:
    before = contents(chain.directory)
    tensors = moved(chain.tensors[2], 3)
    for _ in range(2):
        with largest_file(allowed), pytest.raises(RunError, match="ulimit") as caught:
            chain.publisher.publish(3, tensors)
        assert str(chain.directory) in str(caught.value)
        assert contents(chain.directory) == before
    again = chain.publisher.publish(3, tensors)
    assert again.kind == "delta"
    assert same(Replica(chain.url).fetch(again.version), tensors)


def test_a_directory_that_vanished_is_one_line(chain: Chain, moved: Moved) -> None:
    chain.directory.rename(chain.directory.with_name("elsewhere"))
    with pytest.raises(RunError, match=r"/store: the directory is gone"):
        chain.publisher.publish(3, moved(chain.tensors[2], 3))


def test_an_error_after_the_manifest_took_its_name_keeps_the_payload(
    chain: Chain, same: Same, moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of the directory may fail when the rename is done: the version exists then."""
    tensors = moved(chain.tensors[2], 3)
    write = chain.publisher._storage.write

    def late(name: str, data: bytes) -> None:
        write(name, data)
        if name.endswith(".json"):
            raise RunError("the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(chain.publisher._storage, "write", late)
        with pytest.raises(RunError):
            chain.publisher.publish(3, tensors)
    manifest = msgspec.json.decode((chain.directory / "v00000003.json").read_bytes())
    version = WeightVersion(3, manifest["digest"])
    assert same(Replica(chain.url).fetch(version), tensors)
    assert chain.publisher.publish(3, tensors).version == version


def test_files_that_cannot_be_removed_are_counted_and_tried_again(
    chain: Chain, moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(chain.url, 1)
    publisher.publish(3, chain.tensors[0])

    def refuse(name: str) -> None:
        raise RunError("no permission")

    with monkeypatch.context() as patch:
        patch.setattr(publisher._storage, "remove", refuse)
        assert publisher.publish(4, chain.tensors[1]).uncollected == 6
    assert publisher.publish(5, chain.tensors[2]).uncollected == 0
    assert sorted({name[:9] for name in contents(chain.directory)}) == ["v00000004", "v00000005"]


# -- remote stores -------------------------------------------------------------------------------


class Unruly(MemoryFileSystem):
    """A remote file system that can be told to fail, to write half, or to hang."""

    protocol = "unruly"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    mood = "good"
    awake = threading.Event()

    def pipe_file(
        self, path: str, value: bytes, mode: str = "overwrite", **options: object
    ) -> None:
        if Unruly.mood == "hang":
            Unruly.awake.wait(60)
        if Unruly.mood == "refuse":
            raise ConnectionError("the server said no\nand more")
        if Unruly.mood == "no bucket":
            raise FileNotFoundError(path)
        if Unruly.mood == "half":
            super().pipe_file(path, value[: len(value) // 2])
            raise ConnectionError("the link was cut")
        super().pipe_file(path, value)

    def _open(self, path: str, *args: object, **options: object) -> object:
        if Unruly.mood == "hang":
            Unruly.awake.wait(60)
        return super()._open(path, *args, **options)


@pytest.fixture
def unruly(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    fsspec.register_implementation("unruly", Unruly, clobber=True)
    monkeypatch.setattr("interlock.sync.storage._CONNECT_S", 0.1)
    monkeypatch.setattr("interlock.sync.storage._SILENCE_S", 0.1)
    monkeypatch.setattr("interlock.sync.storage._SLOWEST", 1 << 30)
    Unruly.store.clear()
    Unruly.awake.clear()
    yield "unruly://bucket/weights"
    Unruly.mood = "good"
    Unruly.awake.set()


@pytest.mark.parametrize(
    ("mood", "complaint"),
    [
        ("refuse", "the server said no"),
        ("half", "the link was cut"),
        ("hang", "no answer in time"),
        ("no bucket", "no such bucket"),
    ],
)
def test_a_remote_store_that_fails_is_left_as_it_was(
    unruly: str, model: dict[str, Tensor], moved: Moved, same: Same, mood: str, complaint: str
) -> None:
    publisher, replica = Publisher(unruly, 9), Replica(unruly)
    replica.fetch(publisher.publish(0, model).version)
    before = set(Unruly.store)
    tensors = moved(model, 1)
    Unruly.mood = mood
    with pytest.raises(SyncError, match=complaint) as caught:
        publisher.publish(1, tensors)
    assert "\n" not in str(caught.value)
    assert set(Unruly.store) == before
    Unruly.mood = "good"
    published = publisher.publish(1, tensors)
    assert published.kind == "delta"
    assert same(replica.fetch(published.version), tensors)


def test_a_remote_store_that_hangs_is_not_waited_for(
    unruly: str, model: dict[str, Tensor], same: Same
) -> None:
    version = Publisher(unruly, 9).publish(0, model).version
    replica = Replica(unruly)
    Unruly.mood = "hang"
    with pytest.raises(SyncError, match="no answer in time"):
        replica.fetch(version)
    Unruly.mood = "good"
    assert same(replica.fetch(version), model)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"needs a package more: .*aiohttp"):
        Replica("https://localhost/weights")


# -- a publisher killed where it hurts -----------------------------------------------------------

KILLED = """
import sys, time, torch
from interlock.sync import Publisher
from interlock.sync import storage

url, moment = sys.argv[1:]
publisher = Publisher(url, 9)
tensors = {"w": torch.arange(5000).bfloat16()}
publisher.publish(0, tensors)
tensors["w"][7] = 5.0
publisher.publish(1, tensors)

def pause(*arguments):
    print("now", flush=True)
    time.sleep(120)

write = publisher._storage.write
def write_first(name, data):
    if name.endswith(".json"):
        pause()
    write(name, data)

if moment == "between":
    publisher._storage.write = write_first
else:
    import os
    os.fsync = pause
tensors["w"][8] = 5.0
publisher.publish(2, tensors)
"""


@pytest.mark.parametrize("moment", ["between", "in the payload"])
def test_a_publisher_killed_before_the_manifest_has_published_nothing(
    tmp_path: Path, same: Same, moment: str
) -> None:
    store = tmp_path / "store"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store), moment],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    left = {
        path.name
        for path in store.iterdir()
        if not path.name.startswith(("v00000000", "v00000001"))
    }
    assert len(left) == 1
    one = {"w": torch.arange(5000).bfloat16()}
    one["w"][7] = 5.0
    version = WeightVersion(1, identity.root(identity.specs(one)))
    replica = Replica(str(store))
    assert same(replica.fetch(version), one)
    two = {"w": one["w"].clone()}
    two["w"][8] = 5.0
    second = WeightVersion(2, identity.root(identity.specs(two)))
    with pytest.raises(SyncError, match=r"there is no v00000002\.json"):
        replica.fetch(second)
    published = Publisher(str(store), 9).publish(2, two)
    assert published.version == second
    assert same(replica.fetch(second), two)
    assert not left & {path.name for path in store.iterdir()}
