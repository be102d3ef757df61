"""A directory over HTTP, read by each worker below its own name; one worker's link can be cut."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Link(ThreadingHTTPServer):
    """`cuts`: how many payloads for worker `a` are still to end in their middle."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(directory)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cuts = 0
        self.struck: list[float] = []  # time.monotonic() of each cut


class _Handler(SimpleHTTPRequestHandler):
    server: Link

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not (self.path.startswith("/a/") and self.server.cuts and path.suffix != ".json"):
            super().do_GET()
            return
        self.server.cuts -= 1
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.server.struck.append(time.monotonic())

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.split("/", 2)[2])

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def link(directory: Path) -> Iterator[Link]:
    directory.mkdir(exist_ok=True)
    with Link(directory) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
