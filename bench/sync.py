"""Weight versions of a training model: bytes, seconds, and what a slow link makes of them.

    python bench/sync.py [--model DIR] [--versions 12] [--lr 1e-6 1e-5] [--json result.json]

The learner takes real AdamW steps on fp32 masters, on the texts of this repository, and publishes
the bf16 cast after each. A replica fetches every version from a directory; its tensors are compared
with the learner's bit by bit. `encode` and `apply` are the codec alone, digests included, in one
thread, per byte of the model; `publish` and `fetch` are all that a learner and a worker wait for.

Then the versions of the first learning rate are read through an HTTP server that sends --mbit
megabits per second: how long a worker waits for a delta, for an anchor (a late joiner's first
version), and for the plain bf16 bytes, and what share of the time that is when it waits after every
step of so many seconds.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from environment import environment
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import WeightVersion
from interlock.sync import Publisher, Replica, codec, identity
from interlock.sync.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS = ("LICENSE", "README.md", "CONTRIBUTING.md", "docs/structure.md", "docs/recipes.md")
ROW = 256  # tokens
PLAIN = "plain"  # a file of as many bytes as the model has


class Row(NamedTuple):
    """One version after the first."""

    changed: float  # share of elements
    share: float  # bytes written, manifest included, of the full bytes
    publish_s: float
    fetch_s: float
    encode_gb_s: float
    apply_gb_s: float


class Throttled(ThreadingHTTPServer):
    """Serves a directory at `rate` bytes per second, all readers together."""

    daemon_threads = True

    def __init__(self, directory: Path, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), partial(Slow, directory=str(directory)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._rate, self._free, self._lock = rate, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        """Until `size` more bytes have passed the link."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + size / self._rate
            free = self._free
        time.sleep(max(0.0, free - time.monotonic()))


class Slow(SimpleHTTPRequestHandler):
    server: Throttled

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while part := source.read(16 * 1024):
            self.server.wait(len(part))
            outputfile.write(part)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def throttled(directory: Path, mbit: float) -> Iterator[str]:
    with Throttled(directory, mbit * 1e6 / 8) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def texts(tokenizer: Tokenizer) -> list[list[int]]:
    ids = [
        token
        for name in TEXTS
        for token in tokenizer.document((REPOSITORY / name).read_text(encoding="utf-8"))
    ]
    return [ids[at : at + ROW] for at in range(0, len(ids) - ROW, ROW)]


def groups(rows: list[list[int]]) -> list[TrainingGroup]:
    weight = 1 / sum(len(row) - 1 for row in rows)
    return [TrainingGroup(row[:1], [row[1:]], [[weight] * (len(row) - 1)]) for row in rows]


def training(model: Path, lr: float, versions: int, rows: int) -> Iterator[dict[str, Tensor]]:
    """The published weights before the first step and after each."""
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    learner = Learner(
        decoder, LearnerSettings(dtype="bfloat16"), OptimizerSettings(lr=lr), total_steps=versions
    )
    source = itertools.cycle(texts(Tokenizer.load(model)))
    yield learner.publish()[1]
    for _ in range(versions):
        learner.step(groups(list(itertools.islice(source, rows))), loss=None)
        yield learner.publish()[1]


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit by bit."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.int16), b.view(torch.int16))


def measure_codec(
    old: dict[str, Tensor], specs: dict[str, identity.TensorSpec], new: dict[str, Tensor]
) -> tuple[codec.Encoded, float, float]:
    """The delta, and the seconds to encode it and to apply and verify it on a copy."""
    start = time.perf_counter()
    encoded = codec.encode_delta(new, old, specs)
    encode_s = time.perf_counter() - start
    held = {name: tensor.clone() for name, tensor in old.items()}
    start = time.perf_counter()
    codec.apply_delta(encoded.payload, held)
    identity.verify(held, encoded.specs)
    return encoded, encode_s, time.perf_counter() - start


def measure(
    weights: Iterator[dict[str, Tensor]], store: Path, threads: int
) -> dict[str, list[float]]:
    """Publish all of `weights` to `store`, the first as the only anchor, and follow them.

    The fields of Row, a value for every later version, and what the anchor took.
    """
    publisher, replica = Publisher(str(store), anchor_every=1 << 30), Replica(str(store))
    rows: list[Row] = []
    anchor: dict[str, list[float]] = {}
    old: dict[str, Tensor] = {}
    specs: dict[str, identity.TensorSpec] = {}
    for number in itertools.count():
        torch.set_num_threads(threads)
        if (new := next(weights, None)) is None:
            columns = zip(Row._fields, zip(*rows, strict=True), strict=True)
            return {name: list(values) for name, values in columns} | anchor
        torch.set_num_threads(1)
        published = publisher.publish(number, new)
        start = time.perf_counter()
        fetched = replica.fetch(published.version)
        fetch_s = time.perf_counter() - start
        assert fetched.keys() == new.keys()
        assert all(equal(fetched[name], tensor) for name, tensor in new.items()), "not lossless"
        share = published.written_bytes / published.full_bytes
        if old:
            encoded, encode_s, apply_s = measure_codec(old, specs, new)
            differ = sum(
                int((old[n].view(torch.int16) != new[n].view(torch.int16)).sum()) for n in new
            )
            gigabytes = published.full_bytes / 1e9
            row = Row(
                differ * 2 / published.full_bytes,
                share,
                published.seconds,
                fetch_s,
                gigabytes / encode_s,
                gigabytes / apply_s,
            )
            specs = encoded.specs
            rows.append(row)
            print(
                f"  version {number}: {row.changed:.3%} changed, {share:.3%} of the bytes",
                flush=True,
            )
        else:
            specs = identity.specs(new)
            anchor = {"anchor share": [share], "anchor publish_s": [published.seconds]}
            print(
                f"  version 0: anchor, {published.full_bytes / 1e6:.1f} MB, stored in {share:.1%}; "
                f"publish {published.seconds:.2f} s, fetch {fetch_s:.2f} s",
                flush=True,
            )
        old = new
    raise AssertionError


def versions_of(store: Path) -> list[WeightVersion]:
    manifests = [json.loads(path.read_bytes()) for path in sorted(store.glob("v*.json"))]
    return [WeightVersion(tree["number"], tree["digest"]) for tree in manifests]


def measure_link(store: Path, mbit: float, full_bytes: int) -> dict[str, list[float]]:
    """Seconds that a replica waits: for the anchor, each delta, and the plain bytes."""
    (store / PLAIN).write_bytes(bytes(full_bytes))
    waits: dict[str, list[float]] = {"anchor": [], "delta": [], "plain": []}
    with throttled(store, mbit) as url:
        replica = Replica(url)
        for version in versions_of(store):
            start = time.perf_counter()
            replica.fetch(version)
            kind = "delta" if waits["anchor"] else "anchor"
            waits[kind].append(time.perf_counter() - start)
        start = time.perf_counter()
        assert len(Storage(url).read(PLAIN, full_bytes)) == full_bytes
        waits["plain"].append(time.perf_counter() - start)
    (store / PLAIN).unlink()
    return waits


def model_bytes(store: Path) -> int:
    """Bytes of the whole model, from the newest manifest."""
    tree = json.loads(max(store.glob("v*.json")).read_bytes())
    return identity.nbytes(
        {name: identity.TensorSpec(**spec) for name, spec in tree["tensors"].items()}
    )


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def table(result: dict[str, dict[str, dict[str, float]]]) -> None:
    """min / median / max of every figure, a line each."""
    for title, figures in result.items():
        print(f"\n{title:36s} {'min':>10s} {'median':>10s} {'max':>10s}")
        for name, values in figures.items():
            percent = name == "changed" or name.endswith("share") or name.startswith("waiting")
            shown = [f"{values[key]:.3%}" if percent else f"{values[key]:.3f}" for key in values]
            print(f"  {name:34s} " + " ".join(f"{text:>10s}" for text in shown))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--versions", type=int, default=12, help="deltas per learning rate")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-6, 1e-5])
    parser.add_argument("--rows", type=int, default=8, help=f"texts of {ROW} tokens a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="to train")
    parser.add_argument("--mbit", type=float, default=10.0, help="of the link; 0: leave it out")
    parser.add_argument("--step-seconds", type=float, nargs="+", default=[10.0, 30.0, 60.0])
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    model = find_model(options.model, print)
    facts = environment()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for place, lr in enumerate(options.lr):
        with tempfile.TemporaryDirectory() as directory:
            store = Path(directory)
            print(f"\nlr {lr:g}")
            weights = training(model, lr, options.versions, options.rows)
            found = measure(weights, store, options.threads)
            result[f"lr {lr:g}"] = {name: spread(values) for name, values in found.items()}
            if place or not options.mbit:
                continue
            waits = measure_link(store, options.mbit, model_bytes(store))
            link = {f"{kind}, s": spread(values) for kind, values in waits.items()}
            for step, kind in itertools.product(options.step_seconds, ("delta", "plain")):
                shares = [wait / (wait + step) for wait in waits[kind]]
                link[f"waiting, {kind}, steps of {step:g} s"] = spread(shares)
            result[f"{options.mbit:g} Mbit/s, lr {lr:g}"] = link
    table(result)
    if options.json is not None:
        setting = {name: str(value) for name, value in vars(options).items()}
        figures = {"environment": facts, "setting": setting, "result": result}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
