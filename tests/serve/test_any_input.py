"""Whatever is sent, it is answered, refused in OpenAI's form, and nothing stays behind."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from endpoints import Loopback, loopback, saying
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.serve.requests.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    RequestModel,
    TokenizeRequest,
)
from interlock.serve.requests.unsupported import CHAT, COMPLETION

TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
ROUTES: list[tuple[str, type[RequestModel], dict[str, Any], list[str]]] = [
    ("/v1/chat/completions", ChatRequest, TALK, list(CHAT)),
    ("/v1/completions", CompletionRequest, {"model": "tiny", "prompt": "a"}, list(COMPLETION)),
    ("/inference/v1/generate", GenerateRequest, {"token_ids": [1]}, []),
    ("/tokenize", TokenizeRequest, {"prompt": "a"}, []),
    ("/detokenize", DetokenizeRequest, {"tokens": [1]}, []),
]
PLAIN = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
TEXTS = st.sampled_from(["", "a", "\0", "😀", "<|im_end|>", "none", "text", "json_object", "user"])
NAMES = st.sampled_from(
    ["role", "content", "type", "function", "name", "text", "schema", "json_schema", "1", "x"]
)
VALUES = st.recursive(
    PLAIN | TEXTS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    directory = tmp_path_factory.mktemp("served")
    with loopback(directory, lambda tokenizer: saying(tokenizer, "ok")) as running:
        yield running


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[0])
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_value_of_every_field_is_answered_or_refused(
    served: Loopback, route: tuple[str, type[RequestModel], dict[str, Any], list[str]], data: Any
) -> None:
    path, kind, base, inert = route
    fields = st.sampled_from(sorted({*kind.model_fields, *inert, "unknown"} - {"stream"}))
    changes = data.draw(st.dictionaries(fields, VALUES, min_size=1, max_size=2))
    with served.client() as client:
        body = json.dumps(base | changes)
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] in ("invalid_request_error", "not_found_error")
    assert served.replicas.running == 0


def test_the_schema_of_every_route_is_told(served: Loopback) -> None:
    with served.client() as client:
        document = client.get("/openapi.json").json()
    for path, kind, _, inert in ROUTES:
        told = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        schema = told["schema"]
        assert schema["additionalProperties"] is False
        assert {*kind.model_fields, *inert} == schema["properties"].keys()
