"""An endpoint that scores prompts as vLLM tells them, and fails when it is told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer

Fault = Callable[[str, int], tuple[int, bytes] | None]


class ScoringEndpoint:
    """`fault`: of a path and the number of the completion asked for, from 0, another answer.

    asked: how many texts were to be scored; keys: the Authorization of every request.
    """

    def __init__(self, model: Path, fault: Fault = lambda path, number: None) -> None:
        self.decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        self.tokenizer = Tokenizer.load(model)
        self.fault = fault
        self.asked = 0
        self.keys: set[str] = set()
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, body: Any) -> tuple[int, bytes]:
        with self.lock:
            number = self.asked
            self.asked += path == "/v1/completions"
        if (other := self.fault(path, number)) is not None:
            return other
        match path:
            case "/v1/models":
                told: Any = {"data": [{"id": "the-teacher"}]}
            case "/tokenize":
                assert body["model"] == "the-teacher" and body["add_special_tokens"] is False
                tokens = self.tokenizer.encode(body["prompt"])
                told = {"tokens": tokens, "count": len(tokens), "max_model_len": 256}
            case "/v1/completions":
                assert (body["max_tokens"], body["temperature"]) == (1, 1.0)
                told = {"choices": [{"prompt_logprobs": self.scores(body)}]}
            case _:
                return 404, b'{"error": {"message": "no such path"}}'
        return 200, json.dumps(told).encode()

    @torch.no_grad()
    def scores(self, body: Any) -> list[dict[str, Any] | None]:
        tokens, k = torch.tensor(body["prompt"]), body["prompt_logprobs"]
        attend = causal(len(tokens), tokens.device)
        logits = self.decoder.logits(self.decoder(tokens, attend.positions, attend))
        logprobs = logits.log_softmax(-1)
        told: list[dict[str, Any] | None] = [None]
        for row, token in zip(logprobs, tokens[1:].tolist(), strict=False):
            top = row.topk(k)
            found = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            found[token] = row[token].item()
            told.append({str(n): {"logprob": v, "rank": None} for n, v in found.items()})
        return told


@contextmanager
def scoring(model: Path, fault: Fault = lambda path, number: None) -> Iterator[ScoringEndpoint]:
    endpoint = ScoringEndpoint(model, fault)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            endpoint.keys.add(self.headers.get("authorization", ""))
            status, told = endpoint.answer(self.path, json.loads(content) if content else None)
            self.send_response(status)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join(20)
