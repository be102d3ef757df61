"""Versions in a store: what replicas get, by which files, and what the store keeps."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlock.errors import ConfigError, SyncError
from interlock.records.rl import WeightVersion
from interlock.sync import Publisher, Replica, digest, tensor_digest

Same = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
Moved = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


class History:
    """Some published versions, by number, with the tensors that they must give."""

    def __init__(self, url: str, anchor_every: int, model: dict[str, Tensor], moved: Moved) -> None:
        self.publisher = Publisher(url, anchor_every)
        self.versions: dict[int, WeightVersion] = {}
        self.tensors: dict[int, dict[str, Tensor]] = {}
        self._now, self._moved = model, moved

    def publish(self, *numbers: int) -> list[str]:
        kinds = []
        for number in numbers:
            self._now = self._moved(self._now, number)
            published = self.publisher.publish(number, self._now)
            self.versions[number], self.tensors[number] = published.version, self._now
            kinds.append(published.kind)
        return kinds


Store = Callable[..., History]


@pytest.fixture
def store(tmp_path: Path, model: dict[str, Tensor], moved: Moved) -> Store:
    def make(anchor_every: int = 4, url: str | None = None) -> History:
        return History(url or str(tmp_path / "store"), anchor_every, model, moved)

    return make


def numbers(directory: Path) -> list[int]:
    """Of the versions that a store has; every one must have its payload, and nothing else be."""
    names = sorted(path.name for path in directory.iterdir())
    manifests = [name for name in names if name.endswith(".json")]
    payloads = [name for name in names if not name.endswith(".json")]
    assert [name[:9] for name in manifests] == [name[:9] for name in payloads]
    return [int(name[1:9]) for name in manifests]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_two_replicas_follow_on_any_url(
    store: Store, tmp_path: Path, same: Same, scheme: str
) -> None:
    url = f"{scheme}{tmp_path}/store"
    history = store(url=url)
    first, second = Replica(url), Replica(url)
    for number in range(10):
        history.publish(number)
        replicas = [first] if number % 3 else [first, second]  # the second one skips versions
        for replica in replicas:
            assert same(replica.fetch(history.versions[number]), history.tensors[number])
            assert replica.version == history.versions[number]
    assert same(second.fetch(history.versions[9]), history.tensors[9])
    expected = {name: tensor_digest(tensor) for name, tensor in history.tensors[9].items()}
    assert first.digests == second.digests == expected
    assert digest(expected) == history.versions[9].digest


def test_anchors_come_every_so_often_and_old_versions_go(store: Store, tmp_path: Path) -> None:
    history = store(anchor_every=3)
    assert history.publish(*range(7)) == [
        *("anchor", "delta", "delta"),
        *("anchor", "delta", "delta"),
        "anchor",
    ]
    assert numbers(tmp_path / "store") == [3, 4, 5, 6]
    history.publish(7, 8, 20)
    assert numbers(tmp_path / "store") == [6, 7, 8, 20]


def test_what_is_published_is_told(store: Store, tmp_path: Path, model: dict[str, Tensor]) -> None:
    publisher = store().publisher
    result = publisher.publish(0, model)
    assert result.full_bytes == sum(t.numel() * t.element_size() for t in model.values())
    assert result.written_bytes == sum(p.stat().st_size for p in (tmp_path / "store").iterdir())
    assert (result.kind, result.uncollected) == ("anchor", 0)


def test_a_late_joiner_reads_the_anchor_and_what_follows(
    store: Store, tmp_path: Path, same: Same
) -> None:
    history = store()
    history.publish(*range(7))
    replica = Replica(str(tmp_path / "store"))
    assert same(replica.fetch(history.versions[6]), history.tensors[6])
    # 4 is the newest anchor: versions 4, 5 and 6, a manifest and a payload each.
    needed = [p for p in (tmp_path / "store").iterdir() if int(p.name[1:9]) >= 4]
    assert replica.fetched_bytes == sum(path.stat().st_size for path in needed)


def test_a_replica_reads_only_the_deltas_it_lacks(store: Store, tmp_path: Path, same: Same) -> None:
    history = store(anchor_every=9)
    history.publish(0, 1)
    replica = Replica(str(tmp_path / "store"))
    replica.fetch(history.versions[1])
    before = replica.fetched_bytes
    history.publish(2, 3)
    assert same(replica.fetch(history.versions[3]), history.tensors[3])
    new = [p for p in (tmp_path / "store").iterdir() if int(p.name[1:9]) >= 2]
    assert replica.fetched_bytes - before == sum(path.stat().st_size for path in new)
    replica.fetch(history.versions[3])
    assert replica.fetched_bytes - before == sum(path.stat().st_size for path in new)


def test_an_anchor_is_a_shorter_way_than_many_deltas(
    store: Store, tmp_path: Path, same: Same
) -> None:
    history = store()
    history.publish(0)
    replica = Replica(str(tmp_path / "store"))
    replica.fetch(history.versions[0])
    history.publish(1, 2, 3, 4, 5)
    before = replica.fetched_bytes
    assert same(replica.fetch(history.versions[5]), history.tensors[5])
    needed = [p for p in (tmp_path / "store").iterdir() if int(p.name[1:9]) >= 4]
    assert replica.fetched_bytes - before == sum(path.stat().st_size for path in needed)


def test_older_versions_can_be_fetched_while_they_are_kept(
    store: Store, tmp_path: Path, same: Same
) -> None:
    history = store()
    history.publish(*range(4))
    replica = Replica(str(tmp_path / "store"))
    for number in (3, 1, 2, 0, 3):
        assert same(replica.fetch(history.versions[number]), history.tensors[number])


def test_the_same_version_again_is_no_publication(store: Store, tmp_path: Path) -> None:
    history = store()
    history.publish(0, 1)
    files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store").iterdir()}
    again = history.publisher.publish(1, history.tensors[1])
    assert (again.kind, again.written_bytes) == ("unchanged", 0)
    assert again.version == history.versions[1]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store").iterdir()} == files


def test_numbers_have_to_grow(store: Store) -> None:
    history = store()
    history.publish(0, 5)
    with pytest.raises(SyncError, match="version 3 is not above the last one, 5"):
        history.publisher.publish(3, history.tensors[5])
    with pytest.raises(SyncError, match="version 5 is published already, with other tensors"):
        history.publisher.publish(5, history.tensors[0])
    assert history.publish(6) == ["delta"]


def test_weights_that_did_not_move_make_an_empty_delta(
    store: Store, tmp_path: Path, same: Same
) -> None:
    history = store()
    history.publish(0)
    published = history.publisher.publish(1, history.tensors[0])
    assert published.kind == "delta"
    assert [p.stat().st_size for p in (tmp_path / "store").glob("*.delta")] == [9]
    replica = Replica(str(tmp_path / "store"))
    assert same(replica.fetch(published.version), history.tensors[0])


def test_another_set_of_tensors_is_an_anchor(store: Store, tmp_path: Path, same: Same) -> None:
    history = store()
    history.publish(0)
    other = {"embed": history.tensors[0]["embed"].float()}
    replica = Replica(str(tmp_path / "store"))
    replica.fetch(history.versions[0])
    published = history.publisher.publish(1, other)
    assert published.kind == "anchor"
    assert same(replica.fetch(published.version), other)


def test_what_is_published_does_not_follow_the_learners_tensors(
    store: Store, tmp_path: Path, same: Same, model: dict[str, Tensor]
) -> None:
    """An optimizer that writes in place must not reach the publisher's copy."""
    publisher, replica = store().publisher, Replica(str(tmp_path / "store"))
    replica.fetch(publisher.publish(0, model).version)
    for number in (1, 2):
        model["norm"] += 1
        model["scale"] *= 2
        published = publisher.publish(number, model)
        assert published.kind == "delta"
        assert same(replica.fetch(published.version), model)


def test_a_resumed_run_replaces_the_future_it_lost(
    store: Store, tmp_path: Path, same: Same
) -> None:
    lost = store()
    lost.publish(0, 1, 2, 3, 4, 5)
    replica, behind = Replica(str(tmp_path / "store")), Replica(str(tmp_path / "store"))
    replica.fetch(lost.versions[5])
    behind.fetch(lost.versions[2])
    resumed = store()
    assert resumed.publish(3, 4) == ["anchor", "delta"]
    assert resumed.versions[4] != lost.versions[4]
    assert numbers(tmp_path / "store") == [0, 1, 2, 3, 4]
    for follower in (replica, behind):
        assert same(follower.fetch(resumed.versions[4]), resumed.tensors[4])
    with pytest.raises(SyncError):
        replica.fetch(lost.versions[5])


def test_files_of_others_are_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    names = {"README", "v1.json", "v00000000.json.bak", "v00000000-abc.anchor"}
    for name in names:
        (tmp_path / "store" / name).write_text("mine")
    store(anchor_every=1).publish(*range(4))
    kept = {path.name for path in (tmp_path / "store").iterdir()}
    assert names <= kept
    assert len(kept - names) == 4


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nosuch://bucket/x", "cannot be used: ValueError: Protocol not known: nosuch"),
        ("http://127.0.0.1:9/store", "can only be read"),
        ("simplecache::memory://x", "is a chain"),
    ],
)
def test_a_url_that_cannot_be_published_to_is_refused_at_once(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Publisher(url, 1)
    assert url in str(caught.value)


def test_manifests_are_plain_json_that_names_no_file(store: Store, tmp_path: Path) -> None:
    history = store()
    history.publish(0, 1)
    manifest = json.loads((tmp_path / "store" / "v00000001.json").read_text())
    assert manifest["base"] == {"number": 0, "digest": history.versions[0].digest}
    assert manifest["tensors"]["embed"] == {
        "dtype": "bfloat16",
        "shape": [64, 48],
        "digest": tensor_digest(history.tensors[1]["embed"]),
    }
    assert set(manifest) == {
        *("format", "number", "digest", "kind", "base", "anchor", "size", "sha256", "tensors")
    }
    assert torch.equal(history.tensors[0]["norm"], torch.ones(48))


def test_what_changed_nearly_everywhere_is_an_anchor(tmp_path: Path, same: Same) -> None:
    """Other weights altogether; a delta of these would have to be larger."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(64, 64), "norm": torch.ones(64), "none": torch.empty(0)}
    publisher = Publisher(str(tmp_path), anchor_every=20)
    assert not publisher.publish(0, weights).dense
    for number in (1, 2):
        weights = weights | {"w": torch.randn(64, 64)}
        published = publisher.publish(number, weights)
        assert (published.kind, published.dense) == ("anchor", True)
        assert published.written_bytes <= published.full_bytes + 1024
        assert same(Replica(str(tmp_path)).fetch(published.version), weights)
    weights = weights | {"norm": torch.zeros(64)}
    published = publisher.publish(3, weights)
    assert (published.kind, published.dense) == ("delta", False)
    replica = Replica(str(tmp_path))
    assert same(replica.fetch(published.version), weights)
    assert len(list(tmp_path.glob("*.anchor"))) == 2  # older ones went


def test_deltas_never_come_to_much_more_than_their_anchor(tmp_path: Path, same: Same) -> None:
    """Who joins late reads them all: of float32 weights, each of which moves at every step."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(64, 64)}
    publisher, kinds, sizes = Publisher(str(tmp_path), anchor_every=20), "", {}
    for number in range(12):
        weights = {"w": weights["w"] + 1e-5 * torch.randn(64, 64)}
        published = publisher.publish(number, weights)
        kinds += published.kind[0]
        sizes[number] = sum(p.stat().st_size for p in tmp_path.glob(f"v{number:08}-*"))
        late = Replica(str(tmp_path))
        assert same(late.fetch(published.version), weights)
        anchor = kinds.rindex("a")
        deltas = [sizes[each] for each in range(anchor + 1, number + 1)]
        assert sum(deltas[:-1]) < sizes[anchor]
    assert kinds == "addd" * 3
