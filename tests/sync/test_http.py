"""Replicas that read a directory over HTTP: the server lists nothing and knows no ranges."""

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from interlock.errors import SyncError
from interlock.records.rl import WeightVersion
from interlock.sync import Publisher, Replica

Same = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
Moved = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    fault: str | None = None  # of the next payload
    requests = 0

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
        self.quiet = threading.Event()


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        path = Path(self.translate_path(self.path))
        fault, payload = self.server.fault, not path.name.endswith(".json")
        if fault is None or not payload:
            super().do_GET()
            return
        if fault != "always cut":
            self.server.fault = None
        data = path.read_bytes()
        if fault == "error":
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data) + (1 << 20) * (fault == "longer")))
        self.end_headers()
        if fault == "longer":
            self.wfile.write(data + bytes(1 << 20))
        else:  # "cut", "always cut", "silence"
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
        if fault == "silence":
            self.server.quiet.wait(30)

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.FORBIDDEN)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "store").mkdir()
    with Server(tmp_path / "store") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.quiet.set()
        server.shutdown()
        thread.join(30)


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_replica_follows_over_http(
    server: Server, tmp_path: Path, model: dict[str, Tensor], moved: Moved, same: Same
) -> None:
    publisher, replica = Publisher(str(tmp_path / "store"), 3), Replica(address(server))
    tensors = model
    for number in range(5):
        tensors = moved(tensors, number)
        version = publisher.publish(number, tensors).version
        requests = server.requests
        assert same(replica.fetch(version), tensors)
        assert server.requests - requests == 2  # a manifest and a payload, once
    assert same(Replica(address(server) + "/").fetch(version), tensors)
    with pytest.raises(SyncError, match=r"there is no v00000009\.json"):
        replica.fetch(WeightVersion(9, version.digest))


@pytest.mark.parametrize("fault", ["error", "cut", "longer", "silence"])
def test_a_transfer_that_fails_is_made_again(
    server: Server,
    tmp_path: Path,
    model: dict[str, Tensor],
    same: Same,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr("interlock.sync.storage._SILENCE_S", 0.5)
    version = Publisher(str(tmp_path / "store"), 3).publish(0, model).version
    replica = Replica(address(server))
    server.fault = fault
    assert same(replica.fetch(version), model)
    assert server.fault is None
    assert server.requests == 4


def test_a_link_that_is_always_cut_is_reported(
    server: Server, tmp_path: Path, model: dict[str, Tensor], same: Same
) -> None:
    version = Publisher(str(tmp_path / "store"), 3).publish(0, model).version
    replica = Replica(address(server))
    server.fault = "always cut"
    with pytest.raises(SyncError) as caught:
        replica.fetch(version)
    assert "\n" not in str(caught.value)
    server.fault = None
    assert same(replica.fetch(version), model)


def test_a_server_that_is_not_there_is_reported(server: Server) -> None:
    url = address(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(SyncError, match="v00000000"):
        Replica(url).fetch(WeightVersion(0, "0" * 64))
