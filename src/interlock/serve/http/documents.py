"""The OpenAPI document: FastAPI's, with all that a route answers, its key and an example.

routes, `documented` bodies ──get_openapi──> + refusals, streams, keys, examples ──> /openapi.json
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from interlock.serve.http.gate import ADMIN, OPEN

_TEXT = {"type": ["string", "null"]}
_PLAIN = {"/metrics": "text/plain"}
_ANTHROPIC = "/v1/messages"
_TALK = [{"role": "user", "content": "Name three colours."}]
# Of a request of each route, without the model's name.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _TALK, "max_completion_tokens": 8},
    "/v1/completions": {"prompt": "The capital of France is", "max_tokens": 8},
    "/v1/responses": {"input": "Name three colours.", "max_output_tokens": 8},
    "/v1/messages": {"messages": _TALK, "max_tokens": 8},
    "/v1/messages/count_tokens": {"messages": _TALK},
    "/inference/v1/generate": {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 8}},
    "/tokenize": {"prompt": "The capital of France"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
ANYWHERE = {
    400: "The request cannot be understood, or asks for what cannot be served",
    401: "The key is missing or wrong",
    403: "The Host or the Origin is not this server's",
    500: "A defect of the server: its log says more",
    503: "No replica serves",
}
OF_BODIES = {
    404: "What is named is not there: the model, the session",
    408: "The body did not arrive in time",
    413: "The body is too long",
    415: "The body is no JSON by its type, or is compressed",
    429: "Too much is asked at once; Retry-After tells when to come again",
    504: "The deadline passed",
}


def document(app: FastAPI, model: str) -> dict[str, Any]:
    """As `FastAPI.openapi`, whose place it takes; `model`: its name, for the examples."""
    if app.openapi_schema is None:
        tree = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, methods in tree["paths"].items():
            for operation in methods.values():
                _complete(path, operation)
                if path in _EXAMPLES:
                    body = operation["requestBody"]["content"]["application/json"]
                    body["example"] = {"model": model} | _EXAMPLES[path]
        bearer = {"type": "http", "scheme": "bearer"}
        tree["components"] = {"securitySchemes": {"key": bearer, "admin": bearer}}
        app.openapi_schema = tree
    return app.openapi_schema


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)  # FastAPI's own, for parameters: ours are 400
    done = next(value for key, value in responses.items() if key.startswith("2"))
    if (plain := _PLAIN.get(path)) is not None:
        done["content"] = {plain: {"schema": {"type": "string"}}}
    if _streams(operation):
        done["content"]["text/event-stream"] = {}
    statuses = dict(ANYWHERE)
    if "requestBody" in operation:
        statuses |= OF_BODIES
    elif operation.get("parameters"):
        statuses[404] = OF_BODIES[404]
    if path not in OPEN:
        admin = path == ADMIN or path.startswith(f"{ADMIN}/")
        operation["security"] = [{"admin" if admin else "key": []}]
    for status, said in sorted(statuses.items()):
        content = {"application/json": {"schema": _error(path)}}
        responses[str(status)] = {"description": said, "content": content}


def _streams(operation: dict[str, Any]) -> bool:
    content = operation.get("requestBody", {}).get("content", {})
    fields = content.get("application/json", {}).get("schema", {}).get("properties", {})
    return "stream" in fields


def _error(path: str) -> dict[str, Any]:
    error = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": {
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": _TEXT,
            "code": _TEXT,
        },
    }
    found = {"type": "object", "required": ["error"], "properties": {"error": error}}
    if path.endswith((_ANTHROPIC, f"{_ANTHROPIC}/count_tokens")):
        found["required"] = ["error", "type"]
        found["properties"] = {"error": error, "type": {"const": "error"}}
    return found
