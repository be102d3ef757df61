"""An OpenAI-compatible service on loopback that does what a test tells it, request by request.

    with RudeService(say(grade(7)), status(500), hang) as service ──> service.url, service.asked

The last of its manners stays for all further requests.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Manner = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    server: "RudeService"

    def do_POST(self) -> None:
        self.body = body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counting:
            number = len(self.server.asked)
            self.server.asked.append({"path": self.path, "body": body, "headers": self.headers})
            self.server.at_once += 1
            self.counted = True
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            self.server.manners[min(number, len(self.server.manners) - 1)](self)
        finally:
            self._count_off()

    def _count_off(self) -> None:
        """Once: before the answer, for whoever has it may ask again at once."""
        with self.server.counting:
            self.server.at_once -= self.counted
        self.counted = False

    def reply(self, status: int, data: bytes, length: int | None = None, **headers: str) -> None:
        self._count_off()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class RudeService(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *manners: Manner) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.manners = manners
        self.asked: list[dict[str, Any]] = []
        self.counting = threading.Lock()
        self.over = threading.Event()
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "RudeService":
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


def completion(text: Any, finish: str = "stop", prompt: int = 100, said: int = 20) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": said},
        }
    ).encode()


def grade(score: Any, reason: str = "Fine.") -> str:
    return json.dumps({"reason": reason, "score": score})


def say(text: Any, **more: Any) -> Manner:
    return lambda request: request.reply(200, completion(text, **more))


def status(code: int, data: bytes = b"{}", **headers: str) -> Manner:
    return lambda request: request.reply(code, data, **headers)


def garbage(data: bytes) -> Manner:
    return lambda request: request.reply(200, data)


def hang(request: Request) -> None:
    """Until the test is over."""
    request.server.over.wait(60)


def cut(request: Request) -> None:
    """Promises more than it says."""
    data = completion(grade(7))
    request.reply(200, data[:40], length=len(data))
    request.connection.close()


def drip(request: Request) -> None:
    """A byte at a time, so that no single read is late."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    _again_and_again(request, b" ")


def drip_headers(request: Request) -> None:
    """The same before the answer begins."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _again_and_again(request, b"a")


def progress(request: Request) -> None:
    """Says that it is working on it, as proxies do."""
    _again_and_again(request, b"HTTP/1.1 102 Processing\r\n\r\n")


def _again_and_again(request: Request, data: bytes) -> None:
    while not request.server.over.wait(0.02):
        try:
            request.wfile.write(data)
        except OSError:
            return


def flood(request: Request) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while not request.server.over.is_set():
            request.wfile.write(b" " * 65536)
    except OSError:
        pass
