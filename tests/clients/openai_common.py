"""The client of all sections of the openai package, what they ask, and what they ask beside it."""

import json
import os
import urllib.request
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field
from reporting import BASE_URL, KEY, MODEL

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, timeout=120, max_retries=0)
ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASK, "temperature": 0}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} two whole numbers",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 99},
                    "b": {"type": "integer", "minimum": 0, "maximum": 99},
                },
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "multiply")
]


class Sum(BaseModel):
    """What the parse helpers are given."""

    operator: Literal["plus", "minus"]
    left: int = Field(ge=0, le=99)
    right: int = Field(ge=0, le=99)


def tokenize(text: str) -> list[int]:
    """/tokenize is no route of OpenAI's, but the client can ask for any."""
    root = BASE_URL.removesuffix("/v1")
    told: Any = client.post(f"{root}/tokenize", body={"prompt": text}, cast_to=object)
    return list(told["tokens"])


def admin(method: str, path: str, body: Any = None, key: str | None = None) -> Any:
    """What the operator does beside the client."""
    request = urllib.request.Request(
        BASE_URL.removesuffix("/v1") + path,
        None if body is None else json.dumps(body).encode(),
        {
            "Authorization": f"Bearer {key or os.environ['INTERLOCK_ADMIN_KEY']}",
            "Content-Type": "application/json",
        },
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
