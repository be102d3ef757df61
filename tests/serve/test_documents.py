"""/openapi.json says what routes answer, and its examples are answered."""

from collections.abc import Iterator
from typing import Any

import pytest
from endpoints import NAME, Loopback, loopback

POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/inference/v1/generate",
    "/tokenize",
    "/detokenize",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with loopback(tmp_path_factory.mktemp("documents")) as running:
        yield running


@pytest.fixture(scope="module")
def document(served: Loopback) -> Any:
    with served.client() as client:
        return client.get("/openapi.json").json()


def test_every_operation_names_its_refusals_and_its_key(document: Any) -> None:
    operations = {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) >= 20
    for (path, _), operation in operations.items():
        told = set(operation["responses"])
        assert {"400", "401", "403", "500", "503"} < told and "422" not in told, path
        if "requestBody" in operation:
            assert {"404", "408", "413", "415", "429", "504"} < told, path
        open_to_all = path == "/health"
        key = "admin" if path.startswith("/admin/") else "key"
        assert operation.get("security") == (None if open_to_all else [{key: []}]), path
        error = operation["responses"]["400"]["content"]["application/json"]["schema"]
        assert error["properties"]["error"]["required"] == ["message", "type", "param", "code"]
    assert {path for path, method in operations if method == "post"} > set(POSTS)


@pytest.mark.parametrize("path", POSTS)
def test_an_example_is_answered_and_refusals_are_as_documented(
    served: Loopback, document: Any, path: str
) -> None:
    operation = document["paths"][path]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    assert body["example"]["model"] == NAME
    assert served.post(path, body["example"]).status_code == 200
    refused = [
        served.post(path, body["example"] | {"model": "another"}),
        served.post(path, body["example"] | {"colour": "red"}),
        served.post(path, body["example"], headers={"Authorization": "Bearer nobody"}),
        served.post(path, body["example"], headers={"Content-Type": "text/plain"}),
    ]
    assert [each.status_code for each in refused] == [404, 400, 401, 415]
    assert {str(each.status_code) for each in refused} < set(operation["responses"])


def test_streams_and_metrics_have_their_own_types(document: Any) -> None:
    paths = document["paths"]
    for path in POSTS:
        types = paths[path]["post"]["responses"]["200"]["content"]
        streams = "stream" in str(paths[path]["post"]["requestBody"])
        assert ("text/event-stream" in types) == streams, path
    assert set(paths["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
